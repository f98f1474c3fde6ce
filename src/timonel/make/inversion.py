"""Inversion over a pipeline: a picture to the noise that gives it back.

    inversion = tm.invert(helm, "cat.png", "cat", sampler="ddim", steps=20)
    print(inversion)                            # how far the way there and back is off
    helm("dog", latents=inversion.latents, sampler="ddim", steps=20, guidance=1.0)

The picture is encoded by the pipeline's autoencoder, its network is captured for the prompt, and
the table of the very call is inverted; then the call is made once, with those latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.guidance import Guidance, assigned
from ..core.sampler import Sampler
from ..core.table import Table
from ..engine import inversion as engine
from ..errors import ArgumentError, ModelError, instance
from ..files import write_tensors
from ..pipelines.capture import capture
from ..pipelines.guidance.gate import Called, Gate
from ..pipelines.helm import Helm
from .animate import still

if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines.session import Session

PACKING = ("latents", "batch_size", "num_channels_latents", "height", "width")


@dataclass(frozen=True, eq=False)
class Inversion:
    """The noise that gives a picture back.

    Args:
        latents: (1, …), unit normal where the picture is one of the model's; `helm(latents=…)`.
        picture: that the call makes of them.
        latents_error: rms of the way there and back in latents, relative to the picture's.
        picture_error: rms of the picture minus the given one, of 1; the autoencoder's own error is
            in it.
        residual: largest of a step's equation, relative; None for "ddim", which does not look.
        converged: whether the equations are solved to the tolerance.
        calls: network calls of the inversion, without those of capture and round trip.
        method: "fixed_point" or "ddim".
        sampler: of the call.
        steps: of the call.
    """

    latents: Tensor = field(repr=False)
    picture: Image.Image = field(repr=False)
    latents_error: float
    picture_error: float
    residual: float | None
    converged: bool
    calls: int
    method: str
    sampler: str
    steps: int

    def __str__(self) -> str:
        how = "solved" if self.converged else "not solved"
        if self.residual is None:
            how = "reversed, not solved"
        return (
            f"{self.sampler}, {self.steps} steps, {how} in {self.calls} network calls: there and"
            f" back is off by {self.latents_error:.2g} of the latents, and by"
            f" {255 * self.picture_error:.2g} of 255 in the picture"
        )

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the latents to a safetensors file, atomically; see `latents_of`.

        Args:
            path: of the file, which is replaced.

        Returns:
            The path.
        """
        notes = {"sampler": self.sampler, "steps": str(self.steps), "method": self.method}
        notes["latents_error"] = repr(self.latents_error)
        write_tensors(path, {"latents": self.latents.contiguous()}, notes)
        return Path(path)


def latents_of(path: str | PathLike[str]) -> Tensor:
    """The latents in a file that `Inversion.save` has written.

    Raises:
        ArgumentError: there are none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        latents: Tensor = load_file(path)["latents"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ArgumentError(
            f"{str(path)!r} is no file of latents ({error}); timonel invert writes one"
        ) from error
    return latents


def invert(
    helm: Helm,
    image: Image.Image | str | PathLike[str],
    prompt: str | None = None,
    *,
    sampler: Sampler | str = "ddim",
    steps: int | None = None,
    guidance: Guidance | float | None = 1.0,
    method: str = "fixed_point",
    tolerance: float = 1e-5,
    iterations: int = 50,
    **options: Any,
) -> Inversion:
    """The noise from which a call of the helm makes a picture.

    Args:
        helm: with the model.
        image: a picture of the size that the call makes, or a file of one.
        prompt: of the call; that of what is to be seen in the picture.
        sampler: a deterministic one.
        steps: of it; None is the call's own.
        guidance: of the call. Above 1 the equations are stiffer: see `converged` and the errors.
        method: "fixed_point" solves every step to the tolerance; "ddim" reverses it in one call.
        tolerance: of a step's equation, relative to its sample.
        iterations: the most for a step.
        **options: the pipeline's other arguments, such as width and height.

    Returns:
        The latents, and how far the round trip is off, which is one more call of the helm.

    Raises:
        ArgumentError: before any network call, for a sampler that draws noise, a picture of
            another size, or a pipeline that takes no latents.
        NotCaptured: the pipeline's network cannot be taken out of its loop.
    """
    instance("helm", helm, Helm, "tm.Helm(…)")
    engine.settings(method, tolerance, iterations)
    name = type(helm.pipe).__name__
    if "latents" not in helm.parameters:
        raise ArgumentError(f"{name} takes no latents=, so no call could begin at the inverse")
    for taken in ("latents", "seeds", "generator", "hooks", "image"):
        if taken in options:
            raise ArgumentError(f"{taken}= is not of an inversion; leave it out")
    picture = _read(image)
    inputs = {**options, **({} if prompt is None else {"prompt": prompt})}
    settings: dict[str, Any] = {
        "sampler": sampler, "steps": steps, "guidance": guidance, "seeds": [0],
    }  # fmt: skip
    with _without_progress_bar(helm.pipe):
        table, chosen, like = _table(helm, {**settings, **inputs})
        clean = _encoded(helm, picture, like, options)
        captured = capture(helm, seeds=[0], guidance=guidance, **inputs)
    if clean.shape != captured.start.shape:
        raise ModelError(
            f"{name} begins with latents {tuple(captured.start.shape)}, and its autoencoder makes"
            f" {tuple(clean.shape)} of the picture: they cannot be inverted"
        )
    start = captured.start
    wide = torch.promote_types(start.dtype, torch.float32)  # half precision would round each step
    inverted = engine.invert(
        captured, table, clean.to(start.device, wide), conditions=(0,), guidance=assigned(guidance),
        method=method, tolerance=tolerance, iterations=iterations,
    )  # fmt: skip
    with _without_progress_bar(helm.pipe):
        latents = inverted.latents.to(start.dtype)
        output = helm(**settings, **inputs, latents=latents, output_type="pil")
    assert helm.run is not None
    remade, back = output.images[0], helm.run.result.float()
    off = (back - clean.to(back)).pow(2).mean().sqrt() / clean.float().pow(2).mean().sqrt()
    return Inversion(
        latents, remade, float(off), _difference(picture, remade),
        max(inverted.residuals, default=None), inverted.converged, inverted.calls, method,
        chosen.label, table.steps,
    )  # fmt: skip


@contextmanager
def _without_progress_bar(pipe: Any) -> Iterator[None]:
    """Calls of a pipeline without its progress bar."""
    before = getattr(pipe, "_progress_bar_config", None)
    pipe._progress_bar_config = {**(before or {}), "disable": True}
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before


class _Opened(BaseException):
    """Ends a call before the first network call of its run."""

    def __init__(self, table: Table, sample: Tensor) -> None:
        super().__init__()
        self.table, self.sample = table, sample


class _OpeningGate(Gate):
    """A gate that ends the call before its first network call."""

    def call(self, called: Called) -> Any:
        """Raise `_Opened` where the pipeline's own network would be called."""
        run = self.session.coming()
        if not called.main or run is None:
            return called.compute()
        sample = called.sample
        raise _Opened(run.table, sample[0] if isinstance(sample, list) else sample)


def _table(helm: Helm, arguments: dict[str, Any]) -> tuple[Table, Sampler, Tensor]:
    """The table of a call, its sampler, and what its network is first called with."""

    def gate(pipe: Any, session: Session, *more: Any) -> Gate:
        engine.check(session.scheduler.run.table)
        return _OpeningGate(pipe, session, *more)

    call = helm.ready((), arguments, gate)
    sampler = call.session.scheduler.sampler
    try:
        with torch.no_grad():
            call()
    except _Opened as opened:
        engine.check(opened.table)
        return opened.table, sampler, opened.sample
    raise ModelError(f"{type(helm.pipe).__name__} calls no network that could be inverted")


def _read(image: Any) -> Image.Image:
    """A picture of PIL in RGB."""
    from PIL import Image

    if isinstance(image, (str, PathLike)):
        return still(image)
    instance("image", image, Image.Image, "a picture of PIL, or the name of its file")
    picture: Image.Image = image
    return picture.convert("RGB")


def _pixels(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in 0..1."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.reshape(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).float() / 255


def _encoded(helm: Helm, picture: Image.Image, like: Tensor, options: dict[str, Any]) -> Tensor:
    """The picture's latents in the layout of the pipeline's.

    Raises:
        ArgumentError: they are not of the size of the call's.
    """
    name = type(helm.pipe).__name__
    try:
        clean = helm.context.encode(_pixels(picture))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise ArgumentError(f"the autoencoder of {name} cannot encode the picture: {error}") from (
            error
        )
    height, width = clean.shape[-2:]
    if like.ndim == 4:
        wanted = tuple(like.shape[-2:])
        if wanted != (height, width):
            ratio = picture.height / height
            size = round(wanted[1] * ratio), round(wanted[0] * ratio)
            raise _another_size(picture, f"{size[0]}x{size[1]}", options)
        return clean
    if like.ndim != 3 or not hasattr(helm.pipe, "_pack_latents"):
        raise ModelError(f"{name} has latents {tuple(like.shape)}, in no layout of pictures")
    packed = _packed(helm.pipe, clean)
    if packed.shape[1] != like.shape[1]:
        side = f"{like.shape[1]} patches, not the {packed.shape[1]} of this one,"
        raise _another_size(picture, side, options)
    return packed


def _packed(pipe: Any, clean: Tensor) -> Tensor:
    """Latents as a sequence of patches, by the pipeline's own rule."""
    import inspect

    names = tuple(inspect.signature(pipe._pack_latents).parameters)
    if names != PACKING:
        raise ModelError(f"{type(pipe).__name__} packs its latents from {', '.join(names)}")
    packed: Tensor = pipe._pack_latents(clean, *clean.shape)
    return packed


def _another_size(picture: Image.Image, wanted: str, options: dict[str, Any]) -> ArgumentError:
    """The error of a picture that is not as large as what the call makes."""
    size = f"width={picture.width}, height={picture.height}"
    more = "" if "width" in options or "height" in options else f", or give {size} to the call"
    return ArgumentError(
        f"the picture is {picture.width}x{picture.height} and the call makes {wanted} pixels:"
        f" resize the picture{more}"
    )


def _difference(a: Image.Image, b: Image.Image) -> float:
    """rms of two pictures, of 1; infinite where their sizes differ."""
    if a.size != b.size:
        return float("inf")
    return float((_pixels(a) - _pixels(b.convert("RGB"))).pow(2).mean().sqrt())
