"""The command that fits a sampler to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import complete
from .compare import Greedy
from .options import Device, Dtype, ModelArgument, Overwrite, Scale, Until, guidance_of, quiet
from .say import Json, error, kept, reporting, say


def add(app: typer.Typer) -> None:
    """Give `app` the command."""
    app.command(cls=Greedy, name="tune")(tune)


def tune(
    model: ModelArgument,
    steps: Annotated[
        list[int] | None, typer.Option(help="Steps to fit for, such as 8, or 4 6 8. Default: 8.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A text file of prompts or pictures, one a line. Default: the model's own."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Samples; a third of them only judge. Default: 64, fewer where time is short."
        ),
    ] = None,
    guidance: Scale = None,
    guidance_until: Until = None,
    minutes: Annotated[float, typer.Option(help="Time for everything.")] = 5.0,
    start: Annotated[
        str | None,
        typer.Option(
            help="Begin at this sampler, such as dpmpp_2m/karras. Default: the best of the usual.",
            autocompletion=complete.samplers,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="levels, rows, differences or backward. Default: differences; of fp16 backward."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Network evaluations a call.")] = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The sampler file, or a folder for several numbers of steps."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit a sampler to a model: few steps near the picture of many, measured on unseen noise.

    Ctrl-C ends the fit and keeps the best so far; a fit that was killed goes on where it was.

    Example: timonel tune emoji --steps 8 -o fast.json
    """
    from .. import tuning
    from ..files import free, ready

    counts = steps or [8]
    several = len(counts) > 1
    default = Path("fast")
    target = out or (free(default, "") if several else free(default, ".json").with_suffix(".json"))
    tuning.checks.counts(
        counts, seeds=seeds, minutes=minutes, out=target, method=method, batch=batch
    )
    for path in [target / f"{count}.json" for count in counts] if several else [target]:
        ready(path, overwrite=overwrite)
    with reporting(as_json) as report:
        quiet()
        from ..pipelines.helm import Helm  # which takes seconds: after what may be refused

        helm = Helm(model, dtype=dtype, device=device)
        interval = guidance_of(guidance, guidance_until)
        if interval is not None and interval.scale is None and helm.card:
            interval = guidance_of(helm.card.default_guidance, guidance_until)
        result = tuning.tune(
            helm,
            steps=counts,
            prompts=prompts,
            seeds=seeds,
            guidance=interval,
            minutes=minutes,
            out=target,
            start=start,
            method=method,
            batch=batch,
            log=error,
        )
        say("\n".join(result.lines()))
        kept(*result.files)
        for path in result.files:
            say(f"sampler    {path}")
        say(f"{result.evaluations:,} network evaluations, {result.seconds:.0f} s")
        report |= {
            "samplers": result.files,
            "said": list(result.lines()),
            "evaluations": result.evaluations,
            "seconds": round(result.seconds, 1),
        }
    raise typer.Exit(0 if result.files else 1)
