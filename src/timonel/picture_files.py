"""Pictures from anywhere, read within bounds: a file's size and its number of pixels are looked at
before it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

from .errors import ArgumentError
from .reading import plain_file

if TYPE_CHECKING:
    from PIL import Image

PICTURE = 2**29  # bytes of a picture's file
PIXELS = 2**26  # of a picture, about 8,200 x 8,200
MOVIE = 2**28  # pixels of all frames of a video together
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
)  # PIL also reads some by starting other programs


def picture(path: str | PathLike[str]) -> Image.Image:
    """The picture in a file, read whole. Raises `ArgumentError` for what is none, is broken, or is
    too large.
    """
    with _opened(path) as image:
        image.load()
        return image


def frames(path: str | PathLike[str], change: Callable[[Image.Image], Any]) -> list[Any]:
    """What `change` makes of every frame of a picture or video. Raises as `picture`."""
    with _opened(path) as image:
        count = getattr(image, "n_frames", 1)
        if count * image.width * image.height > MOVIE:
            raise ArgumentError(
                f"{str(path)!r} has {count} frames of {image.width}x{image.height}, together more"
                f" than {MOVIE:,} pixels"
            )
        made = []
        for number in range(count):
            image.seek(number)
            made.append(change(image))
        return made


def info(path: str | PathLike[str]) -> dict[Any, Any]:
    """What is written into a picture beside its pixels, up to them. Raises as `picture`."""
    with _opened(path) as image:
        return dict(image.info)


@contextmanager
def _opened(path: str | PathLike[str]) -> Iterator[Image.Image]:
    """A picture whose size can be decoded."""
    from PIL import Image, UnidentifiedImageError

    Image.preinit()
    with plain_file(path, PICTURE, "the picture") as file:
        try:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > PIXELS:
                    raise ArgumentError(
                        f"{str(path)!r} has {image.width}x{image.height} pixels, more than"
                        f" {PIXELS:,}: make it smaller"
                    )
                yield image
        except ArgumentError:
            raise
        except UnidentifiedImageError as error:
            raise ArgumentError(f"{str(path)!r} is not a picture") from error
        except Exception as error:  # whatever a decoder says of broken data
            reason = getattr(error, "strerror", None) or error
            raise ArgumentError(f"{str(path)!r} cannot be read as a picture: {reason}") from error
