"""The options that several commands share, and what they mean."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .complete import dtypes, models, samplers
from .say import say

if TYPE_CHECKING:
    from ..core.guidance import Guidance
    from ..core.sampler import Sampler
    from ..pipelines.helm import Helm

Model = Annotated[
    str,
    typer.Option(
        help="A shipped model (see `timonel models`), a folder or a hub name.",
        autocompletion=models,
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        help="A shipped model (see `timonel models`), a folder or a hub name.",
        autocompletion=models,
    ),
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        help="solver or solver/grid, see `timonel samplers` and `grids`, or a fitted one's .json"
        " file. Default: one fitted to the model for these steps, else the model's own.",
        autocompletion=samplers,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or bf16, or torch's names for them.", autocompletion=dtypes),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, …")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler. Default: the model's own.")]
Scale = Annotated[
    str | None,
    typer.Option(
        help="Guidance scale, 1 is none, or a method such as apg:5,eta=0.5. Default: the model's"
        " own."
    ),
]
Until = Annotated[
    str | None, typer.Option(help="End of guidance: 0.4 (of the steps), step:4 or sigma:1.2.")
]
Pixels = Annotated[int | None, typer.Option(min=8)]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace files that exist. Without it they are left, or the call refused.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option of the sampler or its grid, such as order=3 or rho=5.",
    ),
]


def sampler_of(
    name: str, steps: int | None, settings: Sequence[str], noise: str | None = None
) -> Sampler:
    """The sampler of a command.

    Args:
        name: solver, solver/grid or a sampler file.
        steps: how many; None for those of a file.
        settings: KEY=VALUE, options of the solver where it has that one, else of the grid.
        noise: "independent" or "brownian".
    """
    from ..core import names
    from ..core.grids import GRIDS
    from ..core.sampler import Sampler, is_file
    from ..core.solvers import SOLVERS
    from ..errors import ArgumentError

    if is_file(name):
        if settings:
            raise ArgumentError(
                f"{settings[0]} has nothing to set: {name!r} is fitted, with no options; leave"
                " it out"
            )
        return Sampler(name, steps=steps, noise=noise)
    parsed = names.sampler(name)
    of_solver = SOLVERS[parsed.solver].options
    of_grid = GRIDS[parsed.grid].options if parsed.grid else ()
    options, grid_options = dict[str, Any](), dict[str, Any]()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ArgumentError(f"--set takes KEY=VALUE such as eta=0.5, got {setting!r}")
        in_grid = key in of_grid and key not in of_solver
        (grid_options if in_grid else options)[key] = number_or_text(value)
    return Sampler(name, steps=steps, options=options, grid_options=grid_options, noise=noise)


def choose(
    helm: Helm,
    named: Sampler | None,
    steps: int | None,
    settings: Sequence[str],
    noise: str | None,
    guidance: Guidance | None,
) -> Sampler:
    """The sampler of a command with its steps, by the rule of `pipelines/choice.py`; printed.

    Args:
        helm: of the model.
        named: the sampler that the command names, from `sampler_of`; None to choose one.
        steps: how many; None for the model's default.
        settings: KEY=VALUE for the chosen sampler, which is then no fitted one.
        noise: "independent" or "brownian", likewise.
        guidance: of the call.
    """
    plain = not settings and noise is None
    choice = helm.choose(named, steps, guidance, fitted=plain)
    if named is None and not plain:
        sampler = sampler_of(choice.sampler.label, choice.sampler.steps, settings, noise)
        choice = helm.choose(sampler, guidance=guidance)
    say(f"sampler    {choice}")
    return choice.sampler


def steps_of(name: str, steps: int | None, usual: int) -> int | None:
    """The steps of a command, or the `usual` ones; None where a sampler file holds them."""
    from ..core.sampler import is_file

    return usual if steps is None and not is_file(name) else steps


def number_or_text(text: str) -> int | float | str:
    """A value of the command line: a number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def guidance_of(scale: float | str | None, until: str | None) -> Guidance | None:
    """Guidance of a command: its scale, and where it ends."""
    from ..core.guidance import parsed

    return parsed(scale, until)


def quiet() -> None:
    """Silence what the libraries print while loading, but for errors."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    for logging in (diffusers, transformers):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextmanager
def stoppable(helm: Helm) -> Iterator[None]:
    """Ctrl-C once stops the run at its next step; twice aborts."""

    def stop(number: int, frame: Any) -> None:
        run = helm.run
        if run is None or run.status not in ("new", "running") or run.stopping:
            raise KeyboardInterrupt
        print("\nstopping at the next step; Ctrl-C again to abort", file=sys.stderr)
        run.stop("Ctrl-C")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
