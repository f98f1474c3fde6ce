"""The pictures of the steps of a run, as a contact sheet or an animation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, finite, whole
from ..files import replacing
from .preview import Convert, Moment, PictureHook
from .rgb import LatentRGB
from .worker import Worker

if TYPE_CHECKING:
    from PIL import Image

    from ..core.run import Run

GAP, PAPER, INK = 8, (250, 250, 248), (40, 40, 40)
LAST_FRAME = 1500  # milliseconds of the last frame of an animation


class Collect(PictureHook):
    """See `collect`.

    `frames`: a list of (moment, images), one image per sample, in the order of the steps; complete
    once the run has ended. A moment has step, steps, alpha, sigma, time and a `label`.
    """

    name = "collect"

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

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        self.frames, self._stride = [], self.every

    def deliver(self, run: Run, moment: Moment, images: list[Image.Image]) -> None:
        # a rewound run replaces what it computes anew
        kept = [frame for frame in self.frames if frame[0].step < moment.step]
        if kept and kept[-1][0].step % self._stride:
            kept.pop()  # it stayed only as the newest
        while len(kept) >= self.limit:
            self._stride *= 2
            kept = [frame for frame in kept if frame[0].step % self._stride == 0]
        self.frames = [*kept, (moment, images)]

    def _of_sample(self, sample: int) -> tuple[list[Moment], list[Image.Image]]:
        """The moments and the pictures of one sample of the batch."""
        if not self.frames:
            raise ArgumentError(
                "there are no pictures yet; give this hook to a run and let it take a step"
            )
        whole("sample", sample, 0, len(self.frames[0][1]) - 1)
        moments, images = zip(*self.frames, strict=True)
        return list(moments), [batch[sample] for batch in images]

    def contact_sheet(
        self, path: str | PathLike[str], columns: int | None = None, *, sample: int = 0
    ) -> Path:
        """Write the steps as one picture with labels such as "step 3 · σ 4.80" (σ = sigma/alpha).

        Args:
            path: a file of any picture format.
            columns: pictures in a row, at least 1; None: as square as possible.
            sample: index in the batch.

        Returns:
            The path.

        Raises:
            ArgumentError: before the first step, or where the file cannot be written.
        """
        from PIL import Image, ImageDraw

        moments, images = self._of_sample(sample)
        wide = columns if columns is None else whole("columns", columns)
        width, height = (max(getattr(one, side) for one in images) for side in ("width", "height"))
        font, strip = _font(max(10, min(18, width // 12)))
        labels = [_readable(moment.label, font) for moment in moments]
        width = max(width, *(math.ceil(font.getlength(label)) for label in labels))
        count, cell = len(images), (width + GAP, height + strip + GAP)
        across = min(count, wide or math.ceil(math.sqrt(count * (height + strip) / width)))
        down = -(-count // across)
        sheet = Image.new("RGB", (across * cell[0] + GAP, down * cell[1] + GAP), PAPER)
        draw = ImageDraw.Draw(sheet)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            x, y = GAP + i % across * cell[0], GAP + i // across * cell[1]
            sheet.paste(image, (x + (width - image.width) // 2, y))
            middle = (x + width // 2, y + height + strip // 2)
            draw.text(middle, label, fill=INK, font=font, anchor="mm")
        return _write(sheet, path)

    def animation(self, path: str | PathLike[str], fps: float = 8.0, *, sample: int = 0) -> Path:
        """Write the steps as an endless animation, whose last picture stays 1.5 s.

        Args:
            path: a .gif or .webp file.
            fps: pictures per second, 0.1 … 50.
            sample: index in the batch.

        Returns:
            The path.

        Raises:
            ArgumentError: for another suffix, before the first step, or where the file cannot be
                written.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in (".gif", ".webp"):
            raise ArgumentError(f"an animation is a .gif or a .webp file, got {str(path)!r}")
        _, images = self._of_sample(sample)
        each = round(1000 / finite("fps", fps, 0.1, 50))
        (first, *rest), times = (list(v) for v in zip(*_distinct(images, each), strict=True))
        more: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {"disposal": 1}
        more |= {"append_images": rest, "duration": times, "loop": 0}
        return _write(first, path, save_all=True, **more)


def collect(
    every: int = 1,
    limit: int = 64,
    rgb: LatentRGB | None = None,
    decode: bool | Convert | None = None,
    size: int | None = None,
) -> Collect:
    """Keep the pictures of a run, for a contact sheet or an animation.

    Args:
        every: of each `every`-th step and of the last, at least 1.
        limit: most steps in memory, at least 2; a longer run is thinned evenly, its newest stays.
        rgb: as in `preview`.
        decode: as in `preview`.
        size: as in `preview`.

    Returns:
        The hook, with `frames`, `contact_sheet` and `animation`.

    Raises:
        ArgumentError: where the model offers nothing to make pictures with.
    """
    return Collect(every, limit, rgb, decode, size)


def _distinct(images: list[Image.Image], each: int) -> Iterator[tuple[Image.Image, int]]:
    """Pictures and their milliseconds; equal neighbours become one that stays longer."""
    shown, time = images[0], 0
    for image in images:
        if image.tobytes() != shown.tobytes():
            yield shown, time
            shown, time = image, 0
        time += each
    yield shown, time - each + LAST_FRAME


def _write(image: Image.Image, path: str | PathLike[str], **options: Any) -> Path:
    with replacing(path) as temporary:
        try:
            image.save(temporary, **options)
        except ValueError as error:
            raise ArgumentError(f"cannot write {str(path)!r}: {error}") from error
    return Path(path)


def _font(points: int) -> tuple[Any, int]:
    """A font with σ and ∞, that of matplotlib where it is installed; the height of a line."""
    from PIL import ImageFont

    spec = find_spec("matplotlib")
    for folder in spec.submodule_search_locations or [] if spec else []:
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), points), points + 8
    return ImageFont.load_default(points), points + 8


def _readable(label: str, font: Any) -> str:
    """The label in letters of the font."""
    if font.getname()[0] == "DejaVu Sans":
        return label
    return label.replace("σ", "sigma").replace("∞", "inf")
