"""A sampler on a model, in diffusers and in timonel: what goes wrong, measured by running both
without weights.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..core import prediction as predictions
from ..core import process as processes
from ..core.sampler import Sampler
from ..core.table import Table
from ..pipelines.family.facts import Facts, Loop
from . import dry_run as trials
from . import levels
from .dry_run import DATA, Trial, described
from .in_diffusers import FLAGS, Peer, arguments, own, written
from .in_timonel import Ours, in_timonel, left, spread, twin

Kind = Literal["fails", "wrong", "ignored", "note"]
#: flags that decide which levels are visited, so that leaving one out must change the list
LEVELS = (
    "timestep_spacing", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "sigma_min",
    "sigma_max", "shift", "flow_shift", "rescale_betas_zero_snr", "steps_offset",
    "final_sigmas_type",
)  # fmt: skip
TAKEN = {
    "vp": "a variance preserving model with whole times",
    "edm": "an EDM model, which is told a function of sigma",
    "flow": "a rectified flow",
    "trig": "a TrigFlow",
    "crash": "a model of angles",
}
NOISE_LEFT = (
    0.05  # standard deviation of noise in a result, beyond what timonel leaves, that one sees
)
SPREAD_OFF = 0.05  # relative error of the spread, beyond timonel's at the same steps
LATE = 0.3  # of lam: how far below the noisiest level a run may begin
NONE = torch.zeros(0)
DECIDED = ("timesteps", "sigmas", "alphas_cumprod")
KINDS = ("fails", "wrong", "ignored", "note")


@dataclass(frozen=True)
class Finding:
    """`kind`: fails (nothing comes out), wrong (something else comes out), ignored (a flag does
    nothing), note.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Combination:
    """What was asked, what diffusers makes of it, and what timonel does."""

    asked: str
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
        """Whether diffusers does what was asked; notes are not complaints."""
        return all(finding.kind == "note" for finding in self.findings)


@dataclass
class Case:
    """A combination under examination. `table`: timonel's; `twin`: that of timonel's scheduler of
    the same name and
    flags, whose levels are those that diffusers' class should visit; None where there is none."""

    facts: Facts
    loop: Loop
    peer: Peer
    steps: int
    grid: str | None = None
    table: Table | None = None
    twin: Table | None = None
    found: list[Finding] = field(default_factory=list)

    def say(self, kind: Kind, text: str) -> None:
        self.found.append(Finding(kind, text))

    def sorted(self) -> tuple[Finding, ...]:
        return tuple(sorted(self.found, key=lambda finding: KINDS.index(finding.kind)))


def examine(
    facts: Facts, loop: Loop, asked: str | None, steps: int, flags: Mapping[str, Any]
) -> Combination:
    """Run `asked` (a sampler, or a diffusers class; None: the model's own scheduler) in both.

    Raises `UnknownName` for a sampler or class that nobody has.
    """
    peer = own(facts) if asked is None else written(facts, loop, asked, flags)
    by_class = asked is None or asked.endswith("Scheduler") or bool(flags)
    ours, table = in_timonel(facts, loop, peer, asked, steps, by_class)
    named = None if asked is None or by_class else Sampler(asked).grid
    case = Case(facts, loop, peer, steps, named, table, twin(facts, loop, peer, steps))
    name = asked or facts.own
    if peer.cls is None:
        case.say("note", peer.lacks)
        return Combination(name, steps, "", case.sorted(), ours)
    with _quiet():
        done = _in_diffusers(case)
    return Combination(
        name, steps, peer.code, case.sorted(), ours, done.calls, done.times, done.left, done.spread
    )


def _in_diffusers(case: Case) -> Trial:
    """Build, run, compare; every finding goes into the case."""
    peer, config = case.peer, case.facts.scheduler
    for key, value in peer.flags.items():
        if key not in peer.declared:
            assert peer.cls is not None
            case.say(
                "ignored",
                f"{key}={value!r} is dropped without a word: {peer.cls.__name__} has no such"
                " argument",
            )
    try:
        scheduler = peer.build(config)
    except Exception as error:
        case.say("fails", f"it cannot be made: {described(error)}")
        return Trial()
    understood = _understood(case)
    process, prediction = case.facts.process, case.facts.prediction
    done = trials.run(scheduler, case.loop, process, prediction, case.steps, dict(peer.given))
    if done.error:
        case.say("fails", done.error)
    if understood or process.kind != "flow":
        _mistold(case, done)
    _idle_flags(case, scheduler)
    if not done.error:
        _measured(case, done)
        if understood:
            _levels(case, scheduler)
    return done


def _understood(case: Case) -> bool:
    """Whether the class takes the model for what it is, by the arguments that it has."""
    cls, facts = case.peer.cls, case.facts
    assert cls is not None
    config = {**facts.scheduler, **case.peer.flags, "_class_name": cls.__name__}
    seen = {k: v for k, v in config.items() if k in case.peer.declared or k == "_class_name"}
    sigma_data = arguments(cls).get("sigma_data")
    data = getattr(facts.process, "sigma_data", None)
    if (
        sigma_data is not None
        and data is not None
        and seen.get("sigma_data", sigma_data.default) != data
    ):
        case.say(
            "wrong",
            f"its sigma_data is {sigma_data.default:g} where the model has {data:g}: pass"
            f" sigma_data={data:g}",
        )
        return True
    kind, prediction = processes.from_config(seen).kind, predictions.from_config(seen)
    if kind != facts.process.kind:
        case.say(
            "wrong", f"{cls.__name__} takes it for {TAKEN[kind]}; it is {TAKEN[facts.process.kind]}"
        )
    elif prediction != facts.prediction:
        case.say(
            "wrong",
            f"{cls.__name__} reads the output as {prediction}; the model predicts"
            f" {facts.prediction}",
        )
    return kind == facts.process.kind


def _mistold(case: Case, done: Trial) -> None:
    """Whether the network is told the level where the sample is."""
    if done.off:
        told, meant = (shown([v[i] for i in done.off]) for v in (done.times, done.meant))
        every = (
            "every call"
            if len(done.off) == done.calls
            else f"{len(done.off)} of {done.calls} calls"
        )
        case.say("wrong", f"at {every} the network is told {told} where {meant} is meant")
    elif done.strange:
        case.say(
            "wrong", f"the network is told {shown(done.times)}, times that it was not trained for"
        )


def _idle_flags(case: Case, scheduler: Any) -> None:
    """Whether each flag that sets the levels changes them; one that says what holds already is no
    complaint.
    """
    config = case.facts.scheduler
    for key, value in case.peer.flags.items():
        if key not in LEVELS or key not in case.peer.declared or config.get(key) == value:
            continue
        try:
            without = case.peer.build(config, leave=key)
            if without.config.get(key) == value:
                continue
            for one in (scheduler, without):
                trials.listed(one, case.loop, case.facts.process, case.steps, dict(case.peer.given))
        except Exception:
            continue  # it fails without the flag: then the flag does something
        if all(
            torch.equal(getattr(scheduler, n, NONE), getattr(without, n, NONE)) for n in DECIDED
        ):
            case.say(
                "ignored",
                f"{key}={value!r} changes nothing: without it the times and sigmas are the same",
            )


def _measured(case: Case, done: Trial) -> None:
    """Noise that is left, and a spread that is off, beyond what exact arithmetic has on the same
    levels.
    """
    same = case.twin or case.table
    noisy = done.left - (0.0 if same is None else left(same)) > NOISE_LEFT
    if noisy:
        case.say("wrong", f"noise of standard deviation {done.left:.2g} is left in the result")
    elif done.left > 0.01:
        case.say(
            "note",
            f"it ends at the lowest training level: noise of {done.left:.2g} stays in the result",
        )
    off, ideal = abs(done.spread - 1), 0.25 if same is None else abs(spread(same) - 1)
    if off > SPREAD_OFF + 2 * ideal and not noisy:
        case.say(
            "wrong", f"data of standard deviation {DATA:g} come out with {done.spread * DATA:.2g}"
        )
    if not case.loop.generator and _stochastic(case):
        case.say(
            "note",
            f"{case.facts.pipeline} hands no generator to its steps: the same seed gives another"
            " result",
        )
    if done.calls != case.steps:
        case.say("note", f"{case.steps} steps are {done.calls} network calls")
    if done.calls > case.steps:
        counts = (
            "the guider of a ModularPipeline counts calls, not steps: guidance ends after"
            f" {case.steps} of {done.calls}, and the next call of the pipeline fails; with"
            " timonel's scheduler it counts steps"
        )
        case.say("wrong" if case.facts.modular else "note", counts)


def _levels(case: Case, scheduler: Any) -> None:
    """Whether the levels are those that the model, the flags and the grid's name ask for."""
    process = case.facts.process
    theirs, top = levels.of_scheduler(process, scheduler), levels.noisiest(process)
    twin, table = (None if t is None else levels.of_table(t) for t in (case.twin, case.table))
    shown, first = levels.ends(process, theirs), levels.sigma(process, theirs[0])
    late = levels.below(theirs[0], top) > LATE
    if twin is not None and levels.moved(theirs, twin):
        means = levels.ends(process, twin)
        case.say("wrong", f"it visits sigmas {shown}; this model's configuration means {means}")
    elif late and table is not None and _shaped(case) and levels.below(theirs[0], table[0]) > LATE:
        begins = levels.sigma(process, table[0])
        case.say(
            "wrong",
            f"timestep_spacing moves the ends: it begins at sigma {first}, {case.grid!r} at"
            f" {begins}",
        )
    elif table is not None and case.table is not None and levels.moved(theirs, table):
        own = levels.ends(process, table)
        case.say(
            "note", f"its sigmas are {shown}; those of timonel's {case.table.grid!r} are {own}"
        )
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
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            scheduler = case.peer.build(case.facts.scheduler)
            try:
                trials.listed(
                    scheduler,
                    case.loop,
                    case.facts.process,
                    max(case.steps, 2),
                    dict(case.peer.given),
                )
                torch.manual_seed(seed)
                x = torch.ones(1, 1, 2, 2)
                results.append(scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)[0])
            except Exception:
                return False
    return not torch.equal(*results)


def shown(values: Sequence[float]) -> str:
    """A few numbers in a row, with runs of one value counted."""
    parts: list[str] = []
    texts = [f"{value if abs(value) > 1e-9 else 0:.4g}" for value in values]
    i = 0
    while i < len(texts):
        run = 1
        while i + run < len(texts) and texts[i + run] == texts[i]:
            run += 1
        parts.append(texts[i] if run == 1 else f"{texts[i]} (x{run})")
        i += run
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
