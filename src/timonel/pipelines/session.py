"""One call: what it asks for, its run, what the loop's turns do, and the sample handed out.

A call of the helm has one session, and a scheduler on its own has one, whose list every
`set_timesteps` makes anew. Scheduler, timesteps and gate hold only the session. Which row a step
belongs to, and whose loop is the pipeline's, is decided in `sockets/timesteps.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..core.states import allowed

if TYPE_CHECKING:
    from ..core.driver import Driver
    from ..core.guidance import Guidance
    from ..core.noise import Noise
    from ..core.run import Run

# any class here, so that this file imports nothing of those above it, which import it
Gate: TypeAlias = Any  # `guidance.gate.Gate`
Listing: TypeAlias = Any  # `sockets.listing.Listing`
Scheduler: TypeAlias = Any  # `sockets.scheduler.Scheduler`


class Phase(Enum):
    """What the present turn of the pipeline's loop does."""

    COMPUTE = "compute"
    """The networks compute, and the step advances the run."""
    RESUME = "resume"
    """A run to resume waits for the loop over its rows; no turn yet."""
    AGAIN = "again"
    """The loop is to pass by the rows that the run has behind it; no turn yet."""
    OPENING = "opening"
    """An idle turn for the first row that the run has behind it."""
    REPLAY = "replay"
    """An idle turn for a later row that the run has behind it."""
    HANDOVER = "handover"
    """An idle turn whose step hands over the sample of a run that was rewound or stopped."""

    @property
    def idle(self) -> bool:
        """Whether networks repeat their outputs, and the step advances nothing."""
        return self in (Phase.OPENING, Phase.REPLAY, Phase.HANDOVER)

    @property
    def again(self) -> bool:
        """Whether the loop has yet to pass by the rows that the run has behind it."""
        return self in (Phase.AGAIN, Phase.OPENING, Phase.REPLAY)


class Role(Enum):
    """What an iteration over `scheduler.timesteps` is."""

    READER = "reader"
    """No step was made with a time that it has shown: it gets all times."""
    LOOP = "loop"
    """The loop of its run, which it follows."""
    RENEWED = "renewed"
    """The loop of a run that begins anew with the next step."""


@dataclass(frozen=True, eq=False)
class Request:
    """What the helm asks of one call, beyond the sampler.

    Args:
        guidance: of the run; None leaves it to the pipeline.
        scale: the pipeline's own guidance scale, where the helm has set it.
        hooks: of the run.
        seeds: of the sampler's noise, one per sample; None draws them from a generator.
        keep: how many step states stay in memory.
        context: what hooks may need of the model.
        resume: the run to continue.
        recall: whether a rewind calls the pipeline again, because its loop counts its steps.
        named: whether the sampler's grid goes before a list that the pipeline makes; None: nobody
            says who made a list.
        listed: whether the list of levels that comes is the caller's.
        weak: another network, for autoguidance.
    """

    guidance: Guidance | None = None
    scale: float | None = None
    hooks: Sequence[Any] = ()
    seeds: tuple[int, ...] | None = None
    keep: int = 0
    context: Any = None
    resume: Run | None = None
    recall: bool = False
    named: bool | None = None
    listed: bool = False
    weak: Any = None


class Loop:
    """One iteration over rows `start` … `stop - 1` of the list.

    `shown`: the time it has yielded last, that of `row`. `run`: the run that its rows belong to,
    once one was looked for.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.row = start, stop, start
        self.shown: Tensor | None = None
        self.run: Run | None = None
        self.role = Role.READER

    @property
    def steps(self) -> bool:
        """Whether a step was made with a time that it has shown."""
        return self.role is not Role.READER


class Handed(NamedTuple):
    """The sample that the pipeline was given last.

    `version`: how often it was changed in place. `owned`: the pipeline came back with the very
    tensor it was given before.
    """

    sample: Tensor | None
    version: int = 0
    owned: bool = False


COPIED = Handed(None)  # of a copied scheduler: the pipeline holds what the first one gave it


class Session:
    """The state of a call. See the module's docstring.

    `scheduler`: the one whose `step` the pipeline calls; classes of `timonel.compat` say in their
    own way which row a step is of. `listing`: the list of `set_timesteps`, whose arguments were
    `requested`. `run`: covers `rows` of it; `before`: the run before. `mixed`: a picture was mixed
    with noise for this list. `loops`: the iterations that have begun and not ended, oldest first.
    `turn`, `steps`: turns and steps of the loop so far. `leader`: the scheduler that this one was
    copied from under a helm, as pipelines of video with sound do; `copied`: such a copy goes beside
    this one.
    """

    def __init__(self, scheduler: Scheduler, request: Request | None = None) -> None:
        self.scheduler = scheduler
        self.request = Request() if request is None else request
        self.noise: Noise | None = None  # of the runs to come, in the place of that of the seeds
        self.driver: Driver | None = None  # the pipeline's loop, where the helm steers it
        self.gate: Gate | None = None  # around its networks
        self.listing: Listing | None = None
        self.requested: tuple[Any, ...] | None = None
        self.run: Run | None = None
        self.before: Run | None = None
        self.rows = (0, 0)
        self.mixed = False
        self.phase = Phase.COMPUTE if self.request.resume is None else Phase.RESUME
        self.loops: list[Loop] = []
        self.turn = self.steps = 0
        self.handed: Handed | None = None
        self.leader: Scheduler | None = None
        self.copied = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what belongs to a pipeline's call, for a copy that stands at one point."""
        request = replace(
            self.request, context=None, resume=None, recall=False, hooks=(), weak=None
        )
        fresh = Session(self.scheduler, request)
        fresh.noise, fresh.listing, fresh.run = self.noise, self.listing, self.run
        fresh.rows, fresh.mixed, fresh.handed = self.rows, self.mixed, COPIED
        return vars(fresh)

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """One for a copy of the scheduler, with a run of its own and the same request."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        for name in ("listing", "run", "scheduler"):
            setattr(twin, name, copy.deepcopy(getattr(self, name), memo))
        return twin

    def beside(self, scheduler: Scheduler) -> Session:
        """One for `scheduler`, a copy of this one's, at the same point."""
        twin = copy.copy(self)
        twin.scheduler = scheduler
        return twin

    # -- where it is -----------------------------------------------------------------------------
    @property
    def newest(self) -> Run | None:
        """The newest run that made a step, or else the current one."""
        fresh = self.run is not None and not self.run.started
        return self.before if fresh and self.before is not None else self.run

    @property
    def under_way(self) -> bool:
        """Whether a run has begun and is not complete."""
        return self.run is not None and self.run.started and self.run.status != "done"

    @property
    def row(self) -> int:
        """The place in the list of the run's next row."""
        return self.rows[0] + (0 if self.run is None else self.run.row)

    @property
    def stepping(self) -> list[Loop]:
        """The iterations that follow the present run."""
        return [loop for loop in self.loops if loop.steps and loop.run is self.run]

    @property
    def idle(self) -> bool:
        """Whether this turn of the loop only hands the sample over."""
        return self.phase.idle or (self.leader is not None and self.leader.session.phase.idle)

    def lists(self, times: Tensor) -> bool:
        """Whether `times` is the present list."""
        return self.listing is not None and times is self.listing.times

    def leads(self, loop: Loop) -> bool:
        """Whether `loop` is the oldest iteration that goes on, which counts as the pipeline's."""
        return bool(self.loops) and self.loops[0] is loop

    @property
    def opens(self) -> bool:
        """Whether the pipeline's loop has begun and made no step."""
        return bool(self.loops) and not self.loops[0].steps and not self.phase.idle

    def coming(self) -> Run | None:
        """The run of the network's coming call; a loop that opens gets its own."""
        if self.run is not None and self.opens:
            self.scheduler.join(self.loops[0])
        return self.run

    # -- the life of a run -----------------------------------------------------------------------
    def list(self, listing: Listing) -> None:
        """A new list: nothing is left of the one before."""
        self.listing, self.requested, self.mixed, self.loops = listing, None, False, []

    def begin(self, run: Run, rows: tuple[int, int]) -> None:
        """`run`, which has not started, is that of `rows` of the list."""
        self.before = self.newest
        self.run, self.rows = run, rows
        self.let_go()

    def adopt(self) -> None:
        """The run to resume takes the place of the present one, and the loop passes by its rows."""
        self.run, self.phase = self.request.resume, Phase.AGAIN

    def follow(self, run: Run) -> None:
        """Stop `run` where that of the scheduler that this one was copied from was stopped."""
        lead = None if self.leader is None else self.leader.session.run
        if lead is not None and lead.stopping and allowed("stop", run.phase):
            run.stop(lead.reason)

    # -- the sample handed out -------------------------------------------------------------------
    def give(self, sample: Tensor) -> None:
        """The pipeline is handed `sample`."""
        owned = self.handed is not None and self.handed.owned
        self.handed = Handed(sample, _version(sample), owned)
        self.steps += 1

    def is_held(self, sample: Tensor) -> bool:
        """Whether it is the tensor that the pipeline was given last."""
        return self.handed is not None and sample is self.handed.sample

    def changed(self, sample: Tensor, run: Run) -> bool:
        """Whether the pipeline comes back with another sample than `run` has."""
        if self.handed is None:
            return True
        if self.handed.sample is None:
            latents = run.latents
            return latents.shape != sample.shape or not torch.equal(latents, sample)
        owned = sample is self.handed.sample
        self.handed = self.handed._replace(owned=owned)
        return not owned or _version(sample) != self.handed.version

    def put(self, sample: Tensor) -> bool:
        """Write `sample` into the tensor that the pipeline holds.

        Returns:
            False where the pipeline holds one of its own.
        """
        held, _, owned = self.handed or Handed(None)
        if held is None:
            return False
        if held is not sample:
            held.copy_(sample)
            self.give(held)
        return owned and not self.copied

    def let_go(self) -> None:
        """The pipeline's loop begins anew."""
        if self.phase.idle:
            self.phase = Phase.AGAIN if self.phase.again else Phase.COMPUTE
        self.handed = None


def stamp(tensor: Tensor) -> tuple[int, int]:
    """Two stamps of a run's sample are equal where nobody changed it between them."""
    return id(tensor), _version(tensor)


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; constant where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version
