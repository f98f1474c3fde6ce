"""What the commands share: their common options, and what those mean."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .complete import dtypes, models
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
Dtype = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or bf16, or torch's names for them.", autocompletion=dtypes),
]
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
    """The sampler, with every KEY=VALUE given to the solver if it has that option, else to the
    grid.
    """
    from ..core import names, solvers
    from ..core.grids import GRIDS
    from ..core.sampler import Sampler, is_file
    from ..errors import ArgumentError

    if is_file(name):
        if settings:
            raise ArgumentError(
                f"{settings[0]} has nothing to set: {name!r} is fitted, with no options; leave"
                " it out"
            )
        return Sampler(name, steps=steps, noise=noise)
    named = names.sampler(name)
    grid = GRIDS[named.grid].options if named.grid else ()
    options: dict[str, Any] = {}
    grid_options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ArgumentError(f"--set takes KEY=VALUE such as eta=0.5, got {setting!r}")
        mine = key in grid and key not in solvers.SOLVERS[named.solver].options
        (grid_options if mine else options)[key] = _value(value)
    return Sampler(name, steps=steps, options=options, grid_options=grid_options, noise=noise)


def choose(
    helm: Helm, named: Sampler | None, steps: int | None, settings: Sequence[str],
    noise: str | None,
    guidance: Guidance | None,
) -> Sampler:  # fmt: skip
    """The sampler of a command with its steps, by the rule of `pipelines/choice.py`; says which,
    and why.

    `named`: the one that the command names, as `sampler_of` has read it. `settings` and `noise` of
    a command that names none are those of the sampler that the rule takes; one that was fitted has
    none.
    """
    plain = not settings and noise is None
    found = helm.choose(named, steps, guidance, fitted=plain)
    if named is None and not plain:
        found = helm.choose(
            sampler_of(found.sampler.label, found.sampler.steps, settings, noise), guidance=guidance
        )
    say(f"sampler    {found}")
    return found.sampler


def steps_of(name: str, steps: int | None, usual: int) -> int | None:
    """The steps of a command: those asked for, else the usual; None where a sampler file says them
    itself.
    """
    from ..core.sampler import is_file

    return usual if steps is None and not is_file(name) else steps


def _value(text: str) -> int | float | str:
    """A number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def guidance_of(scale: float | None, until: str | None) -> Guidance | None:
    """Guidance from the command line's two options."""
    from ..core.guidance import parsed

    return parsed(scale, until)


def quiet() -> None:
    """Keep what the libraries say while loading off the screen; errors still come through."""
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
