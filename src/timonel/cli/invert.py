"""The command that goes from a picture back to its noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Device,
    Dtype,
    Model,
    Overwrite,
    Pixels,
    SamplerName,
    Settings,
    Steps,
    quiet,
    sampler_of,
    steps_of,
)
from .say import Json, kept, reporting, say

USUAL = 20  # steps
ENDING = ".safetensors"


def invert(
    picture: Annotated[Path, typer.Argument(help="The picture to go back from.")],
    prompt: Annotated[str, typer.Argument(help='What is in it, e.g. "red apple".')],
    model: Model = "emoji",
    sampler: SamplerName = None,
    steps: Steps = None,
    settings: Settings = None,
    guidance: Annotated[
        float, typer.Option(help="Guidance scale of the way back; 1 is the most exact.")
    ] = 1.0,
    method: Annotated[
        str, typer.Option(help="fixed_point, exact where it converges, or ddim: one call a step.")
    ] = "fixed_point",
    width: Pixels = None,
    height: Pixels = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .safetensors file; default: beside the picture."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Find the noise that gives a picture back, write it, and say how far the way back is off.

    In Python helm(prompt, latents=…) begins there, with the same sampler, steps and guidance; with
    another prompt it edits the picture.
    """
    from ..errors import ArgumentError
    from ..files import beside, free, placed, ready, short
    from ..make.animate import still

    path = out or beside(free(picture.parent / f"{short(picture.stem)}-noise", ENDING), ENDING)
    if path.suffix.lower() != ENDING:
        raise ArgumentError(f"latents are written to a {ENDING} file, got {str(path)!r}")
    ready(path, overwrite=overwrite or out is None)
    name = sampler or "ddim"
    chosen = sampler_of(name, steps_of(name, steps, USUAL), settings or [])
    image = still(picture)
    with reporting(as_json) as report:
        quiet()
        from ..make.inversion import invert as make
        from ..pipelines.helm import Helm  # which takes seconds: after what may be refused

        size = {"width": width, "height": height}
        helm = Helm(model, dtype=dtype, device=device)
        result = make(
            helm, image, prompt, sampler=chosen, guidance=guidance, method=method,
            **{key: value for key, value in size.items() if value},
        )  # fmt: skip
        with placed(path, overwrite=overwrite or out is not None) as path:
            result.save(path)
        kept(path)
        say(f"noise      {path}\n{result}")
        report |= {
            "noise": path,
            "latents_error": result.latents_error,
            "picture_error": result.picture_error,
            "residual": result.residual,
            "converged": result.converged,
            "calls": result.calls,
            "sampler": result.sampler,
            "steps": result.steps,
        }
