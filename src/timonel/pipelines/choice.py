"""Which sampler, on which grid, with how many steps a call runs.

The helm, the drop-in scheduler and the command line follow this one rule. The sampler is the first
of these that there is:

1. what the caller names, or what the run was begun with that the call goes on with;
2. what is set on the pipeline, where it maps: a timonel `Scheduler` with its sampler, a class of
   `timonel.compat`, or a scheduler of diffusers with its flags, whoever has set it, the user or the
   author of the checkpoint;
3. the card of a shipped model, or the preset of the family (`family/presets.py`);
4. what was measured nearest: `sampler.DEFAULT` on the grid `grids.usual`, see
   docs/which-sampler.md.

A shipped model is used as its card says: the scheduler in its folder says what the network was
trained for and counts as set once it is replaced or changed.

A sampler that names no grid takes the solver's own, else `grids.usual`, the one usual grid of a
process. The sampler that is set on the pipeline keeps the levels that its config asks for. One that
the caller names is put on them too where somebody chose them: a sigma flag, or trailing times,
which no class of diffusers has by default (few-step models are distilled on them). In the drop-in
scheduler the config is the caller's word, so its `timestep_spacing` always acts.

The steps are the caller's, else the card's, else the few that a model was distilled for where the
sampler is lcm or tcd, else the pipeline's own default, else `STEPS`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

from .. import zoo
from ..core import grids, solvers
from ..core.guidance import Guidance
from ..core.process import Process
from ..core.run import Run
from ..core.sampler import STEPS, Sampler
from ..errors import ArgumentError, SchedulerReplaced, TimonelError
from .classes import config as classes
from .classes import levels
from .classes.rows import CLASSES
from .classes.rule import SHAPES, LevelRequest
from .classes.tables import FEW as LOWERED
from .classes.tables import Part
from .family.facts import read as facts
from .family.families import recognise
from .family.presets import PRESETS
from .inspect_source import indexes_by_time
from .modular import parameters
from .sockets import kept
from .sockets.configured import Configured

# steps of a consistency model: diffusers, LatentConsistencyModelPipeline; h1t/TCD-SD15-LoRA's card
FEW = 4
SPACINGS = ("leading", "linspace")  # what classes of diffusers have by default
NAMED, RESUMED, SET = "as named", "of the run that goes on", "set on the pipeline"
NEAREST = "measured nearest for this noise process"


@dataclass(frozen=True)
class Choice:
    """The sampler of a call with its steps, and where each comes from.

    Args:
        sampler: with steps, and with its grid once the levels are made.
        why: where the sampler comes from.
        steps_why: where the number of steps comes from.
    """

    sampler: Sampler
    why: str
    steps_why: str

    def __str__(self) -> str:
        """The choice in a line."""
        return (
            f"{self.sampler.label}, {self.sampler.steps} steps (sampler {self.why}; steps"
            f" {self.steps_why})"
        )

    def listed(self, settled: Sampler, steps: int) -> Choice:
        """The choice of a call with a list of levels, which makes so many steps."""
        sampler = replace(settled, steps=steps)
        return replace(self, sampler=sampler, steps_why="of your list of levels")

    def on(self, settled: Sampler) -> Choice:
        """The choice with the grid that a scheduler has settled."""
        if self.sampler.fitted is not None or settled.grid is None:
            return self
        grid, options = settled.grid, settled.grid_options
        return replace(self, sampler=replace(self.sampler, grid=grid, grid_options=options))


@dataclass(frozen=True)
class Model:
    """What the rule reads of a model.

    Args:
        process: its noise process.
        pipe: the pipeline.
        card: of a shipped model; else None.
        as_shipped: whether that model's scheduler is the one that came with it, unchanged.
    """

    process: Process
    pipe: Any
    card: zoo.Card | None = None
    as_shipped: bool = False

    @property
    def scheduler(self) -> Any:
        """What is set on the pipeline."""
        return self.pipe.scheduler


def choose(
    model: Model,
    sampler: Sampler | str | None = None,
    steps: int | None = None,
    *,
    fitted: Sampler | None = None,
) -> Choice:
    """The sampler and steps of a call.

    Args:
        model: what the call is made on.
        sampler: what the caller names; None is nothing.
        steps: what the caller names; None is nothing.
        fitted: the shipped sampler for this card, its steps and the call's guidance, which goes
            before the card's own.

    Returns:
        The choice. Its grid is None where the config of the model's scheduler decides it.

    Raises:
        ArgumentError: a sampler that cannot be, or steps that a fitted one does not have.
    """
    named, why = _sampler(model, sampler, fitted)
    count, steps_why = _steps(model, named, steps)
    named = replace(named, steps=count)
    if why.startswith(SET):
        return Choice(_as_set(model, _few(model, named, count), count), why, steps_why)
    if _configured(model):
        return Choice(named, why, steps_why)
    settled = named.on(model.process)
    if not _named_levels(named) and indexes_by_time(model.pipe):
        settled = replace(settled, grid="trailing")  # of whole training times
    return Choice(settled, why, steps_why)


def of_run(run: Run) -> Sampler:
    """The sampler that a run was begun with: what it keeps, else what its table is called.

    Raises:
        ArgumentError: it keeps none, and its table is that of no named sampler.
    """
    table = run.table
    if run.sampler is not None:
        return run.sampler
    try:
        if table.seen is None and not table.first and table.grid in grids.GRIDS:
            return Sampler(table.solver, grid=table.grid, steps=table.steps)
    except TimonelError:
        pass
    raise ArgumentError(
        f"the run to resume is {table.solver!r} on {table.grid!r} with {table.steps} steps and does"
        " not say which sampler of the helm that is: one of your own loop or of timonel.compat"
        " goes on there (for row in run.rows(): run.advance(…)); for another name its sampler= and"
        " steps="
    )


def turned(
    run: Run | None,
    sampler: Sampler | str | None,
    steps: int | None,
    guidance: Guidance | float | None,
) -> dict[str, Any] | None:
    """The tail that a call gives the run that it goes on with, as arguments of `Run.tail`.

    Args:
        run: to go on with; None begins a new one.
        sampler: what the call names; None is nothing.
        steps: as `sampler`.
        guidance: as `sampler`.

    Returns:
        None where the call names what the run was begun with, or nothing.
    """
    begun, total = (None, 0) if run is None else _going(run)
    if begun is None or (sampler is None and steps is None):
        return None
    named = None if sampler is None else Sampler.of(sampler)
    if named is not None:
        steps, named = named.steps if steps is None else steps, replace(named, steps=None)
    if (named is None or _same(named, begun)) and steps in (None, total):
        return None
    return {"sampler": named, "steps": steps, "guidance": guidance}


def _going(run: Run) -> tuple[Sampler | None, int]:
    """The sampler and steps that a run goes on with; where it says none its levels have to fit."""
    if run.journey:
        return run.journey[-1].sampler, run.steps
    try:
        begun = of_run(run)
    except ArgumentError:
        return None, run.steps
    return begun, begun.steps or run.steps


def _same(named: Sampler, begun: Sampler) -> bool:
    """Whether a sampler is what a run has."""
    plain: dict[str, Any] = {"steps": None, "grid": None, "grid_options": {}}
    levels = named.grid is None or begun.grid is None or named.grid == begun.grid
    return levels and replace(named, **plain) == replace(begun, **plain)


def resumed(model: Model, run: Run, steps: int | None) -> Choice:
    """The choice of a call that names no sampler and goes on with a run.

    Args:
        model: what the call is made on.
        run: the run to go on with.
        steps: those that the call names; None is nothing.

    Returns:
        The run's own sampler, with the steps of its whole list.

    Raises:
        ArgumentError: another number of steps, or a run that says no sampler.
    """
    begun = of_run(run)
    choice = choose(model, begun, begun.steps or steps)
    if steps not in (None, choice.sampler.steps):
        raise ArgumentError(
            f"the run to resume is {begun.label!r} with {choice.sampler.steps} steps, this call"
            f" asks for {steps}: leave steps= out to go on with it"
        )
    return replace(choice, why=RESUMED, steps_why=RESUMED)


def _named_levels(sampler: Sampler) -> bool:
    """Whether the sampler's name or its caller says which levels it visits."""
    levels = (sampler.fitted, sampler.grid, sampler.sigmas, sampler.times)
    return any(v is not None for v in levels) or solvers.find(sampler.name).grid is not None


def _configured(model: Model) -> bool:
    """Whether the config of the scheduler that is set decides another sampler's levels too."""
    config = model.scheduler.config
    flagged = any(config.get(flag) for flag in SHAPES)
    return not model.as_shipped and (flagged or config.get("timestep_spacing") not in SPACINGS)


def _as_set(model: Model, sampler: Sampler, steps: int) -> Sampler:
    """The sampler of a class with the times of that class, where no grid has them.

    diffusers' DPM family spaces its times otherwise than the rest: `leading` leaves the lowest one
    out. Its Heun of flows goes down to the lowest level, which halves the error of the step to 0
    that no second call corrects.
    """
    name, config = type(model.scheduler).__name__, model.scheduler.config
    flagged = any(config.get(flag) for flag in SHAPES)
    if name not in CLASSES or flagged or sampler.grid is not None:
        return sampler
    row = CLASSES[name]
    spaced = (row.levels.family, model.process.kind) == ("dpm", "vp")
    heun = model.process.kind == row.levels.family == "flow" and sampler.name == "heun"
    if not (spaced or heun):
        return sampler
    keys = classes.carried_over(name, config)
    process, _, named = classes.meaning(keys)
    flags = classes.level_flags(name, process, keys.config)
    listed = levels.make(row.levels, process, flags, LevelRequest(steps))
    row.table(Part(flags, listed, named, listed.grid))  # refuses flags that go astray there
    times = listed.grid.time[:-1].tolist()
    if len(times) != steps:
        return sampler
    if row.orders is not None and bool(listed.grid.sigma[-1] > 0):
        # above zero a full order up to the end goes astray
        order = row.orders(flags, listed, steps)
        sampler = replace(sampler, options={**sampler.options, "order": order})
    return replace(sampler, times=tuple(times))


def ends_low(model: Model, choice: Choice) -> bool:
    """Whether the class that is set ends at the lowest training level, with its orders there.

    To the clean level its last step would be much longer than the others.
    """
    row = CLASSES.get(type(model.scheduler).__name__)
    scheduled = isinstance(choice.sampler.options.get("order"), str)
    chosen = choice.why.startswith((SET, RESUMED)) and scheduled
    return chosen and row is not None and row.levels.end == "lowest"


def _few(model: Model, sampler: Sampler, steps: int) -> Sampler:
    """The sampler with an order that so few steps have; diffusers' classes lower theirs too."""
    order, config = sampler.options.get("order"), model.scheduler.config
    changed: dict[str, Any] = {"order": steps} if isinstance(order, int) and order > steps else {}
    lowered = config.get("lower_order_final", True) and steps < LOWERED
    falls = config.get("solver_order") == 3 and lowered
    if falls and sampler.fitted is None and "final_order" in solvers.find(sampler.name).options:
        changed["final_order"] = 2
    return replace(sampler, options={**sampler.options, **changed}) if changed else sampler


def _sampler(
    model: Model, named: Sampler | str | None, fitted: Sampler | None
) -> tuple[Sampler, str]:
    if named is not None:
        return Sampler.of(named), NAMED
    if model.card is not None and model.as_shipped:
        if fitted is not None:
            return fitted, f"fitted to {model.card.name} for these steps"
        return Sampler(model.card.default_sampler), f"of the card of {model.card.name}"
    try:
        return of_scheduler(model.scheduler), f"{SET}: {type(model.scheduler).__name__}"
    except TimonelError as error:
        sampler, why = _preset(model) or (Sampler(), NEAREST)
        name = type(model.scheduler).__name__
        warnings.warn(
            f"{error}; {sampler.label!r} runs in place of the {name} that is set on the pipeline"
            f" ({why}): name a sampler",
            SchedulerReplaced,
            stacklevel=2,
        )
        return sampler, f"{why}, in place of {name}"


def of_scheduler(scheduler: Any) -> Sampler:
    """The sampler of a scheduler of timonel, `timonel.compat` or diffusers; see `classes.of_class`.

    Raises:
        ArgumentError: it is no sampler of timonel.
    """
    if isinstance(scheduler, Configured) and scheduler.keeps_sampler:
        return kept.sampler(scheduler.config)
    return classes.of_class(type(scheduler).__name__, scheduler.config)


def _preset(model: Model) -> tuple[Sampler, str] | None:
    """The first preset of the family that the pipeline is recognised as."""
    family = recognise(facts(model.pipe))
    if family is None:
        return None
    first = PRESETS[family][0]
    sampler = Sampler(first.sampler, options=dict(first.options), steps=first.steps)
    return sampler, f"preset of {family}"


def _steps(model: Model, sampler: Sampler, steps: int | None) -> tuple[int, str]:
    if steps is not None:
        return int(replace(sampler, steps=steps).steps or 0), NAMED
    if sampler.sigmas is not None or sampler.times is not None:
        return int(sampler.on(model.process).steps or 0), "of the levels that are named"
    if sampler.steps is not None:
        return sampler.steps, "of the sampler"
    if model.card is not None:
        return model.card.default_steps, f"of the card of {model.card.name}"
    if solvers.find(sampler.name).grid == "lcm":
        return FEW, f"few, as for all models distilled for {sampler.name}"
    default = steps_of(model.pipe)
    if default is None:
        return STEPS, "timonel's default"
    return default, f"the default of {type(model.pipe).__name__}"


def steps_of(pipe: Any) -> int | None:
    """The number of steps that a pipeline makes by default; None where it has no such number."""
    parameter = parameters(pipe).get("num_inference_steps")
    value = None if parameter is None else parameter.default
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def checked(named: int | None, by_pipeline: int | None) -> int | None:
    """The steps of a call that may come under two names, `steps` and the pipeline's.

    Raises:
        ArgumentError: those disagree.
    """
    if None not in (named, by_pipeline) and named != by_pipeline:
        raise ArgumentError(
            f"steps={named} and num_inference_steps={by_pipeline} disagree; give one"
        )
    return by_pipeline if named is None else named
