"""Pictures read within bounds: bytes and pixels are counted before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError
from .reading import plain_file

if TYPE_CHECKING:
    from PIL import Image

PICTURE = 2**29  # bytes of a file
MOST_PIXELS = 2**26  # of a picture, about 8,200 x 8,200
MOST_VIDEO_PIXELS = 2**28  # of all frames of a video together
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # others start programs in PIL


def picture(path: str | PathLike[str]) -> Image.Image:
    """The picture in a file. Raises `ArgumentError` where it is none, broken or too large."""
    with _opened(path) as image:
        image.load()
        return image


def frames(path: str | PathLike[str], change: Callable[[Image.Image], Any]) -> list[Any]:
    """Every frame of a picture or video, converted.

    Args:
        path: the file.
        change: from a frame to what is kept of it; the next frame overwrites it.

    Returns:
        The results of `change`.

    Raises:
        ArgumentError: as `picture`.
    """
    with _opened(path) as image:
        count = getattr(image, "n_frames", 1)
        if count * image.width * image.height > MOST_VIDEO_PIXELS:
            raise ArgumentError(
                f"{str(path)!r} has {count} frames of {image.width}x{image.height}, together more"
                f" than {MOST_VIDEO_PIXELS:,} pixels"
            )
        results = []
        for number in range(count):
            image.seek(number)
            results.append(change(image))
        return results


def info(path: str | PathLike[str]) -> dict[Any, Any]:
    """PIL's `info`: text and numbers before the pixels of a picture. Raises as `picture`."""
    with _opened(path) as image:
        return dict(image.info)


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """A picture of bounded size, open and not yet decoded."""
    from PIL import Image, UnidentifiedImageError

    Image.preinit()
    with plain_file(path, PICTURE, "the picture") as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ArgumentError(
                        f"{str(path)!r} has {image.width}x{image.height} pixels, more than"
                        f" {MOST_PIXELS:,}: make it smaller"
                    )
                yield image
        except ArgumentError:
            raise
        except UnidentifiedImageError as error:
            raise ArgumentError(f"{str(path)!r} is not a picture") from error
        except Exception as error:  # whatever a decoder says of broken data
            reason = getattr(error, "strerror", None) or error
            raise ArgumentError(f"{str(path)!r} cannot be read as a picture: {reason}") from error
