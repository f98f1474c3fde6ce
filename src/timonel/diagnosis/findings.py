"""What goes wrong with a sampler on a model in diffusers, by running it without weights."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch

from ..core.process.config import read
from ..core.sampler import Sampler
from ..core.table import Table
from ..pipelines.family.facts import Facts, Loop
from . import dry_run, levels
from .dry_run import DATA, Trial, described
from .in_diffusers import FLAGS, Peer, arguments, shipped, written
from .in_timonel import Ours, in_timonel, left, spread, twin

Kind = Literal["fails", "wrong", "ignored", "note"]
#: flags that decide which levels are visited, so that leaving one out must change the list
LEVELS = (
    "timestep_spacing", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "sigma_min", "sigma_max", "shift", "flow_shift", "rescale_betas_zero_snr",
    "steps_offset", "final_sigmas_type",
)  # fmt: skip
TAKEN = {
    "vp": "a variance preserving model with whole times",
    "edm": "an EDM model, whose time is a function of sigma",
    "flow": "a rectified flow",
    "trig": "a TrigFlow",
    "crash": "a model of angles",
}
NOISE_LEFT = 0.05  # noise in a result, beyond what timonel leaves, that one sees
SPREAD_OFF = 0.05  # relative error of the spread, beyond timonel's at the same steps
LATE = 0.3  # of lam: how far below the noisiest level a run may begin
NONE = torch.zeros(0)
DECIDED = ("timesteps", "sigmas", "alphas_cumprod")
KINDS = ("fails", "wrong", "ignored", "note")


@dataclass(frozen=True)
class Finding:
    """What goes wrong.

    Args:
        kind: "fails": nothing comes out; "wrong": something else comes out; "ignored": a flag does
            nothing; "note": no complaint.
        text: a sentence.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Combination:
    """A sampler on a model: what diffusers makes of it, and what timonel does.

    Args:
        name: the sampler or class.
        steps: how many.
        code: what one writes in diffusers; "" where it has none.
        findings: what goes wrong in diffusers, the worst first.
        ours: what timonel does.
        calls, times, left, spread: of diffusers' run, as in `Ours`.
    """

    name: str
    steps: int
    code: str
    findings: tuple[Finding, ...]
    ours: Ours
    calls: int = 0
    times: tuple[float, ...] = ()
    left: float = math.nan
    spread: float = math.nan

    @property
    def sound(self) -> bool:
        """Whether diffusers does the same; notes are not complaints."""
        return all(finding.kind == "note" for finding in self.findings)


@dataclass
class Case:
    """A combination under examination.

    Args:
        facts: of the model.
        loop: of its pipeline.
        peer: the scheduler of diffusers.
        steps: how many.
        grid: the name of the grid that the caller chose.
        table: timonel's table.
        twin: that of timonel's scheduler of the same name and flags, whose levels diffusers' class
            should visit; None where there is none.
        findings: what went wrong.
    """

    facts: Facts
    loop: Loop
    peer: Peer
    steps: int
    grid: str | None = None
    table: Table | None = None
    twin: Table | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The class's name."""
        return "" if self.peer.cls is None else self.peer.cls.__name__

    def say(self, kind: Kind, text: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, text))

    def sorted(self) -> tuple[Finding, ...]:
        """The findings, the worst first."""
        return tuple(sorted(self.findings, key=lambda finding: KINDS.index(finding.kind)))


def examine(
    facts: Facts, loop: Loop, sampler: str | None, steps: int, flags: Mapping[str, Any]
) -> Combination:
    """Run a sampler in diffusers and in timonel.

    Args:
        facts: of the model.
        loop: of its pipeline.
        sampler: a sampler, or a class of diffusers; None is the model's own scheduler.
        steps: how many.
        flags: of the class's `from_config` besides.

    Raises:
        UnknownName: a sampler or class that nobody has.
    """
    peer = shipped(facts) if sampler is None else written(facts, loop, sampler, flags)
    by_class = sampler is None or sampler.endswith("Scheduler") or bool(flags)
    ours, table = in_timonel(facts, loop, peer, sampler, steps, by_class)
    grid = None if sampler is None or by_class else Sampler(sampler).grid
    case = Case(facts, loop, peer, steps, grid, table, twin(facts, loop, peer, steps))
    name = sampler or facts.scheduler_class
    if peer.cls is None:
        case.say("note", peer.lacks)
        return Combination(name, steps, "", case.sorted(), ours)
    with _quiet():
        trial = _in_diffusers(case)
    numbers = (trial.calls, trial.times, trial.left, trial.spread)
    return Combination(name, steps, peer.code, case.sorted(), ours, *numbers)


def _in_diffusers(case: Case) -> Trial:
    """Build, run, compare; every finding goes into the case."""
    peer, config = case.peer, case.facts.scheduler
    for key, value in peer.flags.items():
        if key not in peer.declared:
            dropped = f"{key}={value!r} is dropped without a word"
            case.say("ignored", f"{dropped}: {case.name} has no such argument")
    try:
        scheduler = peer.build(config)
    except Exception as error:
        case.say("fails", f"it cannot be constructed: {described(error)}")
        return Trial()
    understood = _understood(case)
    process, prediction = case.facts.process, case.facts.prediction
    trial = dry_run.run(scheduler, case.loop, process, prediction, case.steps, dict(peer.lists))
    if trial.error:
        case.say("fails", trial.error)
    if understood or process.kind != "flow":
        _wrong_times(case, trial)
    _idle_flags(case, scheduler)
    if not trial.error:
        _measured(case, trial)
        if understood:
            _levels(case, scheduler)
    return trial


def _understood(case: Case) -> bool:
    """Whether the class takes the model for what it is, by the arguments that it has."""
    cls, facts = case.peer.cls, case.facts
    assert cls is not None
    config = {**facts.scheduler, **case.peer.flags, "_class_name": case.name}
    seen = {k: v for k, v in config.items() if k in case.peer.declared or k == "_class_name"}
    argument = arguments(cls).get("sigma_data")
    assumed = None if argument is None else seen.get("sigma_data", argument.default)
    data = getattr(facts.process, "sigma_data", None)
    if argument is not None and data is not None and assumed != data:
        differs = f"its sigma_data is {argument.default:g} where the model has {data:g}"
        case.say("wrong", f"{differs}: pass sigma_data={data:g}")
        return True
    process, prediction = read(seen)
    kind, right = process.kind, facts.process.kind
    if kind != right:
        case.say("wrong", f"{case.name} takes it for {TAKEN[kind]}; it is {TAKEN[right]}")
    elif prediction != facts.prediction:
        reads = f"{case.name} reads the output as {prediction}"
        case.say("wrong", f"{reads}; the model predicts {facts.prediction}")
    return kind == right


def _wrong_times(case: Case, trial: Trial) -> None:
    """Whether the network gets the time of the level where the sample is."""
    if trial.off:
        times, right = (shown([v[i] for i in trial.off]) for v in (trial.times, trial.meant))
        every = len(trial.off) == trial.calls
        calls = "every call" if every else f"{len(trial.off)} of {trial.calls} calls"
        case.say("wrong", f"at {calls} the network gets time {times} where {right} is right")
    elif trial.strange:
        times = shown(trial.times)
        case.say("wrong", f"the network gets times it was not trained for: {times}")


def _idle_flags(case: Case, scheduler: Any) -> None:
    """Whether each flag that sets the levels changes them, unless it says what holds already."""
    config, lists = case.facts.scheduler, dict(case.peer.lists)
    for key, value in case.peer.flags.items():
        if key not in LEVELS or key not in case.peer.declared or config.get(key) == value:
            continue
        try:
            without = case.peer.build(config, leave=key)
            if without.config.get(key) == value:
                continue
            for one in (scheduler, without):
                dry_run.listed(one, case.loop, case.facts.process, case.steps, lists)
        except Exception:
            continue  # it fails without the flag: then the flag does something
        pairs = ((getattr(scheduler, n, NONE), getattr(without, n, NONE)) for n in DECIDED)
        if all(torch.equal(one, other) for one, other in pairs):
            same = "without it the times and sigmas are the same"
            case.say("ignored", f"{key}={value!r} changes nothing: {same}")


def _measured(case: Case, trial: Trial) -> None:
    """Noise that is left, and a spread that is off, beyond exact arithmetic on the same levels."""
    same = case.twin or case.table
    exact = (0.0, 0.25) if same is None else (left(same), abs(spread(same) - 1))
    noisy = trial.left - exact[0] > NOISE_LEFT
    if noisy:
        noise = f"noise of standard deviation {trial.left:.2g}"
        case.say("wrong", f"{noise} is left in the result")
    elif trial.left > 0.01:
        noise = f"noise of {trial.left:.2g}"
        case.say("note", f"it ends at the lowest training level: {noise} stays in the result")
    off, ideal = abs(trial.spread - 1), exact[1]
    if off > SPREAD_OFF + 2 * ideal and not noisy:
        came_out = f"{trial.spread * DATA:.2g}"
        case.say("wrong", f"data of standard deviation {DATA:g} come out with {came_out}")
    if not case.loop.generator and _stochastic(case):
        seedless = f"{case.facts.pipeline} hands no generator to its steps"
        case.say("note", f"{seedless}: the same seed gives another result")
    if trial.calls != case.steps:
        case.say("note", f"{case.steps} steps are {trial.calls} network calls")
    if trial.calls > case.steps:
        counts = (
            "the guider of a ModularPipeline counts calls, not steps: guidance ends after"
            f" {case.steps} of {trial.calls}, and the next call of the pipeline fails; with"
            " timonel's scheduler it counts steps"
        )
        case.say("wrong" if case.facts.modular else "note", counts)


def _levels(case: Case, scheduler: Any) -> None:
    """Whether the levels are those that the model, the flags and the grid's name ask for."""
    process = case.facts.process
    theirs, top = levels.of_scheduler(process, scheduler), levels.noisiest(process)
    twin, table = (None if t is None else levels.of_table(t) for t in (case.twin, case.table))
    visits, first = levels.ends(process, theirs), levels.sigma(process, theirs[0])
    late = levels.below(theirs[0], top) > LATE
    if twin is not None and levels.moved(theirs, twin):
        means = levels.ends(process, twin)
        case.say("wrong", f"it visits sigmas {visits}; this model's configuration means {means}")
    elif late and table is not None and _shaped(case) and levels.below(theirs[0], table[0]) > LATE:
        begins = levels.sigma(process, table[0])
        moved = f"timestep_spacing moves the ends: it begins at sigma {first}"
        case.say("wrong", f"{moved}, {case.grid!r} at {begins}")
    elif table is not None and case.table is not None and levels.moved(theirs, table):
        grid = f"{case.table.grid!r} are {levels.ends(process, table)}"
        case.say("note", f"its sigmas are {visits}; those of timonel's {grid}")
    elif late:
        most = levels.sigma(process, top)
        case.say("note", f"it begins at sigma {first} of {most}: the noisiest levels are left out")


def _shaped(case: Case) -> bool:
    """Whether a grid was named that the class has a flag for, and that says where to begin."""
    flags = FLAGS.get(case.grid or "", {})
    return bool(flags) and "timestep_spacing" not in flags and set(flags) <= case.peer.declared


def _stochastic(case: Case) -> bool:
    """Whether a step draws noise: two runs that differ in the global seed only."""
    results = []
    steps, lists = max(case.steps, 2), dict(case.peer.lists)
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            scheduler = case.peer.build(case.facts.scheduler)
            try:
                dry_run.listed(scheduler, case.loop, case.facts.process, steps, lists)
                torch.manual_seed(seed)
                x = torch.ones(1, 1, 2, 2)
                results.append(scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)[0])
            except Exception:
                return False
    return not torch.equal(*results)


def shown(values: Sequence[float]) -> str:
    """A few numbers in a row, with repetitions of one value counted."""
    texts = [f"{value if abs(value) > 1e-9 else 0:.4g}" for value in values]
    runs = [(text, len(list(same))) for text, same in groupby(texts)]
    parts = [text if count == 1 else f"{text} (x{count})" for text, count in runs]
    return " ".join(parts if len(parts) <= 8 else [*parts[:4], "…", *parts[-2:]])


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers says of unknown keys is reported here, so it need not be said twice."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
