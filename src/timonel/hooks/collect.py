"""How a picture came to be: the steps kept in memory, then laid out as a sheet or an animation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, finite, whole
from ..files import replacing
from .preview import Convert, LatentRGB, Moment, Pictures
from .worker import Worker

if TYPE_CHECKING:
    from PIL import Image

    from ..core.run import Run

GAP, PAPER, INK = 8, (250, 250, 248), (40, 40, 40)
LAST = 1500  # milliseconds the last frame of an animation stays


class Story(Pictures):
    """A hook that keeps the pictures of a run. Make one with `collect`.

    `frames`: a list of (moment, images), one image per sample, in the order of the steps; complete
    once the run has ended. A moment has step, steps, alpha, sigma, time and a `label`. At most
    `limit` frames are kept: when there are more, every second one goes, and the newest stays.
    """

    def __init__(
        self,
        every: int,
        limit: int,
        rgb: LatentRGB | None,
        decode: bool | Convert | None,
        size: int | None,
    ) -> None:
        super().__init__(every, rgb, decode, size, Worker())
        self.limit = whole("limit", limit, 2)
        self.frames: list[tuple[Moment, list[Image.Image]]] = []
        self._stride = every

    @property
    def name(self) -> str:
        return "collect"

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        self.frames, self._stride = [], self.every

    def deliver(self, run: Run, moment: Moment, images: list[Image.Image]) -> None:
        kept = [
            frame for frame in self.frames if frame[0].step < moment.step
        ]  # a rewound run tells its end anew
        if kept and kept[-1][0].step % self._stride:
            kept.pop()  # it stayed only as the newest
        while len(kept) >= self.limit:
            self._stride *= 2
            kept = [frame for frame in kept if frame[0].step % self._stride == 0]
        self.frames = [*kept, (moment, images)]

    def _told(self, sample: int) -> list[tuple[Moment, Image.Image]]:
        frames = self.frames
        if not frames:
            raise ArgumentError(
                "there are no pictures yet; give this hook to a run and let it take a step"
            )
        whole("sample", sample, 0, len(frames[0][1]) - 1)
        return [(moment, images[sample]) for moment, images in frames]

    def contact_sheet(
        self, path: str | PathLike[str], columns: int | None = None, *, sample: int = 0
    ) -> Path:
        """Write the steps as one labelled picture, e.g. "step 3 · σ 4.80" (σ is sigma/alpha), and
        return its path.

        `columns`: pictures in a row, by default as square as may be. `sample`: which one of the
        batch. Raises `ArgumentError` before the first step, or where the file cannot be written.
        """
        from PIL import Image, ImageDraw

        told = self._told(sample)
        wide = columns if columns is None else whole("columns", columns)
        width, height = (
            max(getattr(image, side) for _, image in told) for side in ("width", "height")
        )
        font, strip = _font(max(10, min(18, width // 12)))
        labels = [_readable(moment.label, font) for moment, _ in told]
        width = max(width, *(math.ceil(font.getlength(label)) for label in labels))
        across = min(len(told), wide or math.ceil(math.sqrt(len(told) * (height + strip) / width)))
        down = -(-len(told) // across)
        sheet = Image.new(
            "RGB", (across * (width + GAP) + GAP, down * (height + strip + GAP) + GAP), PAPER
        )
        draw = ImageDraw.Draw(sheet)
        for i, ((_, image), label) in enumerate(zip(told, labels, strict=True)):
            x, y = GAP + i % across * (width + GAP), GAP + i // across * (height + strip + GAP)
            sheet.paste(image, (x + (width - image.width) // 2, y))
            draw.text(
                (x + width // 2, y + height + strip // 2), label, fill=INK, font=font, anchor="mm"
            )
        return _write(sheet, path)

    def animation(self, path: str | PathLike[str], fps: float = 8.0, *, sample: int = 0) -> Path:
        """Write the steps as an endless animation, `.gif` or `.webp` by the path's suffix, and
        return its path.

        `fps`: pictures a second, 0.1 to 50; the last one stays 1.5 s. `sample`: which one of the
        batch. Raises `ArgumentError` on another suffix, before the first step, or where the file
        cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in (".gif", ".webp"):
            raise ArgumentError(f"an animation is a .gif or a .webp file, got {str(path)!r}")
        told = [image for _, image in self._told(sample)]
        each = round(1000 / finite("fps", fps, 0.1, 50))
        first, *rest = _distinct(told, each)
        more: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {"disposal": 1}
        frames, times = (
            [first[0], *(image for image, _ in rest)],
            [first[1], *(time for _, time in rest)],
        )
        return _write(
            frames[0], path, save_all=True, append_images=frames[1:], duration=times, loop=0, **more
        )


def collect(
    every: int = 1,
    limit: int = 64,
    rgb: LatentRGB | None = None,
    decode: bool | Convert | None = None,
    size: int | None = None,
) -> Story:
    """Keep the picture of every `every`-th step and of the last, for a contact sheet or an
    animation.

    At most `limit` steps (2 or more) stay in memory; a longer run is thinned evenly. `rgb`,
    `decode` and `size` are those of `preview`. Raises `ArgumentError` where there is nothing to
    make pictures with.
    """
    return Story(every, limit, rgb, decode, size)


def _distinct(images: list[Image.Image], each: int) -> Iterator[tuple[Image.Image, int]]:
    """Pictures and their milliseconds; equal neighbours become one that stays longer."""
    shown, time = images[0], 0
    for image in images:
        if image.tobytes() != shown.tobytes():
            yield shown, time
            shown, time = image, 0
        time += each
    yield shown, time - each + LAST


def _write(image: Image.Image, path: str | PathLike[str], **options: Any) -> Path:
    with replacing(path) as temporary:
        try:
            image.save(temporary, **options)
        except ValueError as error:
            raise ArgumentError(f"cannot write {str(path)!r}: {error}") from error
    return Path(path)


def _font(points: int) -> tuple[Any, int]:
    """A font that has σ and ∞, and the height of a line. Pillow's own has neither, matplotlib ships
    one.
    """
    from PIL import ImageFont

    spec = find_spec("matplotlib")
    for folder in spec.submodule_search_locations or [] if spec else []:
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), points), points + 8
    return ImageFont.load_default(points), points + 8


def _readable(label: str, font: Any) -> str:
    """The label in letters the font has."""
    return (
        label
        if font.getname()[0] == "DejaVu Sans"
        else label.replace("σ", "sigma").replace("∞", "inf")
    )
