"""The command that fits a sampler to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import complete
from .compare import Greedy
from .options import Dtype, Overwrite, guidance_of, quiet
from .say import Json, error, kept, reporting, say


def add(app: typer.Typer) -> None:
    """Give `app` the command."""
    app.command(cls=Greedy, name="tune")(tune)


def tune(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped model (see `timonel models`), a folder or a hub name.",
            autocompletion=complete.models,
        ),
    ],
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
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 is none. Default: the model's own.")
    ] = None,
    guidance_until: Annotated[
        str | None, typer.Option(help="End of guidance: 0.4 (of the steps), step:4 or sigma:1.2.")
    ] = None,
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
            help=(
                "levels, rows, differences or backward. Default: differences, in half precision"
                " backward."
            )
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Network evaluations a call.")] = None,
    dtype: Dtype = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, …")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The sampler file, or a folder for several numbers of steps."
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fit a sampler to a model, so that few steps come near the picture of many, and prove it on
    unseen noise.

    Ctrl-C ends the fit and keeps the best so far; a fit that was killed goes on where it was.

    Example: timonel tune emoji --steps 8 -o fast.json
    """
    from .. import tuning
    from ..files import free, ready

    counts = steps or [8]
    target = out or (
        free(Path("fast"), ".json").with_suffix(".json")
        if len(counts) == 1
        else free(Path("fast"), "")
    )
    tuning.checks.counts(
        counts, seeds=seeds, minutes=minutes, out=target, method=method, batch=batch
    )
    for path in [target] if len(counts) == 1 else [target / f"{count}.json" for count in counts]:
        ready(path, overwrite=overwrite)
    with reporting(as_json) as report:
        quiet()
        from ..pipelines.helm import (
            Helm,
        )  # which takes seconds: after everything that may be refused

        helm = Helm(model, dtype=dtype, device=device)
        interval = guidance_of(guidance, guidance_until)
        if interval is not None and interval.scale is None and helm.card:
            interval = guidance_of(helm.card.default_guidance, guidance_until)
        found = tuning.tune(
            helm, steps=counts, prompts=prompts, seeds=seeds, guidance=interval, minutes=minutes,
            out=target,
            start=start, method=method, batch=batch, log=error,
        )  # fmt: skip
        say("\n".join(found.lines()))
        kept(*found.files)
        for path in found.files:
            say(f"sampler    {path}")
        say(f"{found.evaluations:,} network evaluations, {found.seconds:.0f} s")
        report |= {
            "samplers": found.files, "said": list(found.lines()), "evaluations": found.evaluations,
            "seconds": round(found.seconds, 1),
        }  # fmt: skip
    raise typer.Exit(0 if found.files else 1)
