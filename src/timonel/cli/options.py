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
    from ..pipelines.recipe.tails import TailData

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
PromptAt = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt-at",
        metavar="WHERE:PROMPT",
        help="Another prompt from there on: '0.4:a fox in the snow' (of the steps), step:12:… or"
        " sigma:1.2:…; 0.3-0.6:… passes to it. May be repeated.",
    ),
]
NegativeAt = Annotated[
    list[str] | None,
    typer.Option(
        "--negative-at",
        metavar="WHERE:PROMPT",
        help="Another negative prompt from there on, as --prompt-at.",
    ),
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

TailTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--tail",
        metavar="STEP:SAMPLER,KEY=VALUE",
        help="Another sampler from a step on: 12:euler/ays,steps=4 (steps still to come). Also"
        " grid=, sigmas=3/1.2/0.4, guidance= and the sampler's own options; may be repeated.",
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
    from ..core.solvers import find
    from ..errors import ArgumentError

    if is_file(name):
        if settings:
            raise ArgumentError(
                f"{settings[0]} has nothing to set: {name!r} is fitted, with no options; leave"
                " it out"
            )
        return Sampler(name, steps=steps, noise=noise)
    parsed = names.sampler(name)
    of_solver = find(parsed.solver).options
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


def tails_of(texts: Sequence[str]) -> list[TailData]:
    """The tails of a command.

    Args:
        texts: STEP:SAMPLER,KEY=VALUE,… each; the sampler may be left out.

    Raises:
        ArgumentError: a text is none.
    """
    return [_tail(text) for text in texts]


def _tail(text: str) -> TailData:
    from ..core.data import GuidanceData
    from ..core.guidance import cfg
    from ..errors import ArgumentError
    from ..pipelines.recipe.tails import EXAMPLE, TailData

    at, _, rest = text.partition(":")
    name, *settings = [part.strip() for part in rest.split(",")]
    if not at.strip().isdigit() or not name or "=" in name:
        raise ArgumentError(
            f"--tail is STEP:SAMPLER and what else changes, such as {EXAMPLE}, got {text!r}"
        )
    pairs = dict(_pair(setting, text) for setting in settings)
    steps, grid = pairs.pop("steps", None), pairs.pop("grid", None)
    sigmas, scale = pairs.pop("sigmas", ""), pairs.pop("guidance", None)
    label = name if grid is None else f"{name}/{grid}"
    chosen = sampler_of(label, None, [f"{key}={value}" for key, value in pairs.items()])
    data = TailData(
        step=int(at), sampler=chosen.label, steps=_count(steps),
        options=dict(chosen.options), grid_options=dict(chosen.grid_options),
        sigmas=[_number("sigmas", one) for one in sigmas.split("/") if one] or None,
        noise=chosen.source,
        guidance=None if scale is None else GuidanceData.of(cfg(_number("guidance", scale))),
    )  # fmt: skip
    data.chosen()
    return data


def _count(steps: str | None) -> int | None:
    """The steps of a tail."""
    from ..errors import ArgumentError
    from ..pipelines.recipe.tails import EXAMPLE

    if steps is not None and not steps.isdigit():
        raise ArgumentError(f"steps={steps!r} of --tail is no number of steps, e.g. {EXAMPLE}")
    return None if steps is None else int(steps)


def _pair(setting: str, text: str) -> tuple[str, str]:
    """KEY=VALUE of a tail."""
    from ..errors import ArgumentError
    from ..pipelines.recipe.tails import EXAMPLE

    key, equals, value = (part.strip() for part in setting.partition("="))
    if not (key and equals and value):
        raise ArgumentError(
            f"--tail takes KEY=VALUE after the sampler, such as {EXAMPLE}, got {setting!r} in"
            f" {text!r}"
        )
    return key, value


def _number(what: str, text: str) -> float:
    """A number of a tail."""
    from ..errors import ArgumentError

    try:
        return float(text)
    except ValueError:
        example = "sigmas=3/1.2/0.4" if what == "sigmas" else "guidance=3"
        raise ArgumentError(f"{what} of --tail takes numbers, {example}, got {text!r}") from None


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


def variation_of(text: str | None) -> tuple[int, float] | None:
    """The variation of a command, SEED:AMOUNT."""
    from ..errors import ArgumentError

    if text is None:
        return None
    seed, colon, amount = text.partition(":")
    numbers = number_or_text(seed), number_or_text(amount)
    if not colon or not isinstance(numbers[0], int) or isinstance(numbers[1], str):
        raise ArgumentError(f"--variation takes SEED:AMOUNT such as 8:0.2, got {text!r}")
    if numbers[0] < 0 or not 0 <= numbers[1] <= 1:
        raise ArgumentError(
            f"--variation takes a seed from 0 and an amount of 0 to 1, such as 8:0.2, got {text!r}"
        )
    return numbers[0], float(numbers[1])


def schedules(
    prompt: str, changes: Sequence[str] | None, negative: str | None, others: Sequence[str] | None
) -> dict[str, Any]:
    """The prompts of a command over the steps, as fields of its recipe."""
    from ..core.data import PromptsData
    from ..core.prompts import parsed

    read = {
        "prompts": parsed(prompt, changes or ()),
        "negative_prompts": parsed(negative or "", others or ()),
    }
    return {key: PromptsData.of(one) for key, one in read.items() if one is not None}


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
