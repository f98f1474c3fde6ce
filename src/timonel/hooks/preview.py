"""Pictures of the denoised prediction while a run goes on, and files of its steps."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..core.hook import Hook
from ..errors import ArgumentError, ModelError, PreviewMissing, flag, shown, whole
from ..files import replacing, writable_later, write_tensors
from . import steps
from .rgb import LatentRGB, bytes_to_images, to_bytes
from .worker import Pending, Worker

if TYPE_CHECKING:
    from PIL import Image

    from ..core.run import Run

Convert = Callable[[Tensor], Tensor]
LINEAR_SIZE = 256  # pixels; linear previews are enlarged to at least this


class Moment(NamedTuple):
    """The step of a picture, and the level (alpha, sigma, time) of its prediction."""

    step: int
    steps: int
    alpha: float
    sigma: float
    time: float

    @property
    def label(self) -> str:
        """E.g. "step 3 · σ 4.80", σ = sigma/alpha."""
        ratio = f"{self.sigma / self.alpha:.2f}" if self.alpha > 0 else "∞"
        return f"step {self.step} · σ {ratio}"


class PictureHook(Hook):
    """Base of hooks for pictures of `run.denoised`; a subclass writes or shows them in `deliver`.

    The conversion is queued on the device of the latents. The copy to the host, PIL and files are
    the work of a background thread, which calls `deliver` in order. Errors of pictures never end a
    run: the warning `PreviewMissing` says each kind once per call.

    The `context` of a run may offer `look(latents)`, called in every step, where the code of the
    pipeline is on the stack; `small(latents)` or `latent_rgb`, to small RGB; and `decode(latents)`,
    to RGB (B, 3, H, W) or (B, F, 3, H, W) in 0 … 1.
    """

    def __init__(
        self,
        every: int,
        rgb: LatentRGB | None,
        decode: bool | Convert | None,
        size: int | None,
        worker: Worker,
    ) -> None:
        if rgb is not None and not callable(rgb):
            raise ArgumentError(f"rgb is a LatentRGB, got {shown(rgb)}")
        if decode is not None and not isinstance(decode, bool) and not callable(decode):
            raise ArgumentError(
                f"decode is True, False or a function latents -> RGB, got {shown(decode)}"
            )
        if rgb is not None and decode:
            raise ArgumentError(
                "give rgb= for the linear preview or decode= for the full one, not both"
            )
        self.every, self.rgb, self.decode = whole("every", every), rgb, decode
        self.size = size if size is None else whole("size", size)
        self.worker = worker
        self._taken: int | None = None
        self._converters: list[tuple[Convert, bool]] = []  # to RGB, and whether it is linear
        self._call: Any = None
        self._said: set[str] = set()

    @property
    def dropped(self) -> int:
        """Number of late pictures that were replaced by newer ones."""
        return self.worker.dropped

    def deliver(self, run: Run, moment: Moment, images: list[Image.Image]) -> None:
        """Write or show the pictures of a step, one per sample; in the background thread."""
        raise NotImplementedError

    def on_start(self, run: Run) -> None:
        self._taken = None
        self._converters = self._find_converters(run)
        call = getattr(run.context, "call", run)
        if call is not self._call:  # some calls make several runs
            self._call, self._said = call, set()

    def on_step(self, run: Run) -> None:
        self._taken = None
        getattr(run.context, "look", _nothing)(run.latents)
        self._report()
        if run.step % self.every == 0 or run.step == run.steps:
            self._take(run)

    def on_end(self, run: Run) -> None:
        if self._taken != run.step and run.step and run.called_at is not None:
            self._take(run)
        self.worker.wait()
        self._report()

    def _find_converters(self, run: Run) -> list[tuple[Convert, bool]]:
        """The functions from latents to RGB, best first."""
        if self.decode is not None and not isinstance(self.decode, bool):
            return [(self.decode, False)]
        if self.rgb is not None:
            return [(self.rgb, True)]
        converters: list[tuple[Convert, bool]] = []
        small = getattr(run.context, "small", None) or getattr(run.context, "latent_rgb", None)
        if small is not None and not self.decode:
            converters.append((small, True))
        full = getattr(run.context, "decode", None)
        if full is not None and self.decode is not False:
            converters.append((full, False))
        if not converters:
            raise ArgumentError(
                f"{self.name} has nothing to make pictures with: the run's model offers no"
                f" {'decode' if self.decode else 'latent_rgb'}; pass rgb=LatentRGB.fit(latents,"
                " images) or decode=a function from latents to RGB (B, 3, H, W) in 0 … 1"
            )
        return converters

    @torch.no_grad()
    def _take(self, run: Run) -> None:
        self._taken = run.step
        at = run.called_at
        assert at is not None
        while self._converters:
            convert, linear = self._converters[0]
            try:
                pixels = Pending(to_bytes(convert(run.denoised)))
                break
            except Exception as error:
                self._converters.pop(0)
                if not self._converters:
                    self._say(f"no more pictures of this run: {_reason(error)}")
        else:
            return
        moment = Moment(run.step, run.steps, at.alpha, at.sigma, at.time)
        size = LINEAR_SIZE if self.size is None and linear else self.size

        def job() -> None:
            images = bytes_to_images(pixels.fetch(), size)
            for image in images:
                image.info.update(moment._asdict())
            self.deliver(run, moment, images)

        self.worker.submit(job)

    def _report(self) -> None:
        """Warn of an error in the background thread."""
        if (error := self.worker.failure()) is not None:
            self._say(f"a picture is lost: {_reason(error)}")

    def _say(self, text: str) -> None:
        kind = text.split(":")[0]
        if kind in self._said:
            return
        self._said.add(kind)
        message = f"{self.name}: {text}; the run goes on"
        try:
            warnings.warn(message, PreviewMissing, stacklevel=2)
        except PreviewMissing:  # warnings are errors here, and no picture is worth a run
            logging.getLogger("timonel").warning(message)


def _nothing(latents: Tensor) -> None:
    """`look` of a run without a pipeline."""


def _reason(error: BaseException) -> str:
    """An error in a line, with its class where that is not one of timonel's."""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, (ModelError, ArgumentError)):
        return first
    return f"{type(error).__name__}: {first}"


class Preview(PictureHook):
    """See `preview`."""

    name = "preview"

    def __init__(
        self,
        to: str | PathLike[str] | Callable[[Run, list[Image.Image]], None],
        every: int,
        rgb: LatentRGB | None,
        decode: bool | Convert | None,
        size: int | None,
        block: bool | None,
    ) -> None:
        self.call = to if callable(to) else None
        self.folder = None if callable(to) else _folder(to)
        self.files = None if self.folder is None else steps.Folder(self.folder, ".png")
        block = self.folder is not None if block is None else flag("block", block)
        super().__init__(every, rgb, decode, size, Worker(8 if block else 1, block=block))

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        if self.files is not None:
            self.files.begin()

    def on_end(self, run: Run) -> None:
        super().on_end(run)
        if self.files is not None:
            self.files.end()

    def deliver(self, run: Run, moment: Moment, images: list[Image.Image]) -> None:
        if self.call is not None:
            self.call(run, images)
        if self.folder is None or self.files is None:
            return
        samples = [f"-{i}" for i in range(len(images))] if len(images) > 1 else [""]
        names = [self.files.name(moment.step, moment.steps, sample) for sample in samples]
        for name, image in zip(names, images, strict=True):
            with replacing(self.folder / name, lasting=False) as temporary:
                image.save(temporary, pnginfo=steps.chunk(moment.step, moment.steps))
        due = {*range(self.every, run.steps + 1, self.every), run.steps}
        planned = [self.files.name(step, run.steps, sample) for step in due for sample in samples]
        self.files.wrote(names, planned)


def preview(
    to: str | PathLike[str] | Callable[[Run, list[Image.Image]], None],
    every: int = 1,
    rgb: LatentRGB | None = None,
    decode: bool | Convert | None = None,
    size: int | None = None,
    block: bool | None = None,
) -> Preview:
    """Show the denoised prediction while a run goes on.

    The end of the run waits for the last picture. An error of a picture never ends a run; the
    warning `PreviewMissing` has the reason.

    Args:
        to: a folder for `step-01.png`, … (`step-01-0.png`, … for a batch; a video is a grid of its
            frames), where those of an earlier run are removed; or a function `(run, images)`, one
            PIL image per sample, called in a background thread. As `run` may have gone on by then,
            `image.info` has step, steps, alpha, sigma and time of the picture.
        every: after each `every`-th step and after the last, at least 1.
        rgb: the linear map from latents to RGB; None: that of the model.
        decode: True: the full decode of the model; a function from latents to RGB (B, 3, H, W) in
            0 … 1; False: never the full decode. None: only where there is no linear map.
        size: least pixels of the longer side, enlarged by nearest neighbour; None: 256 for linear
            previews, else no change.
        block: True: the sampler waits when 8 pictures wait; False: late ones are dropped, never the
            last. None: True for a folder, False for a function.

    Returns:
        The hook.

    Raises:
        ArgumentError: for a folder that cannot be written; when a run starts, where its model
            offers nothing to make pictures with.
    """
    return Preview(to, every, rgb, decode, size, block)


class SaveSteps(Hook):
    """See `save_steps`."""

    name = "save_steps"

    CHOICES = ("denoised", "latents", "both")

    def __init__(self, folder: str | PathLike[str], what: str = "denoised") -> None:
        if not isinstance(what, str) or what not in self.CHOICES:
            raise ArgumentError(f"save_steps saves one of {self.CHOICES}, got {what!r}")
        self.folder, self.what = _folder(folder), what
        self.files = steps.Folder(self.folder, ".safetensors")

    def on_start(self, run: Run) -> None:
        self.files.begin()

    def on_end(self, run: Run) -> None:
        self.files.end()

    def on_step(self, run: Run) -> None:
        names = ("denoised", "latents") if self.what == "both" else (self.what,)
        tensors = {name: getattr(run, name).detach().cpu().contiguous().clone() for name in names}
        called = run.called_at
        data = {
            "step": run.step,
            "steps": run.steps,
            "latents_at": asdict(run.level),
            steps.PREDICTED: None if called is None else asdict(called),
        }
        name = self.files.name(run.step, run.steps)
        write_tensors(self.folder / name, tensors, {"timonel": json.dumps(data)})
        planned = [self.files.name(step, run.steps) for step in range(1, run.steps + 1)]
        self.files.wrote([name], planned)


def save_steps(folder: str | PathLike[str], what: str = "denoised") -> Hook:
    """Write `step-01.safetensors`, … after every step, atomically.

    The metadata key `timonel` has, as JSON, step, steps and the levels. Files of an earlier run are
    removed, others stay. Waits for the device once a step.

    Args:
        folder: where to.
        what: "denoised" (the prediction), "latents" (the noisy sample) or "both"; these are the
            names of the tensors.

    Returns:
        The hook.

    Raises:
        ArgumentError: for another `what`, or a folder that cannot be written.
    """
    return SaveSteps(folder, what)


def _folder(path: Any) -> Path:
    try:
        folder = Path(path)
    except TypeError:
        raise ArgumentError(
            f"give a folder, or for previews a function (run, images), got {path!r}"
        ) from None
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{str(folder)!r} is a file; give a folder")
    writable_later(folder)
    return folder
