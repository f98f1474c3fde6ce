"""The timesteps socket: a tensor whose iteration is driven by the run.

A pipeline's own `for t in timesteps` ends when the run is stopped, waits while it is paused and
goes back when it is rewound. Everywhere else it is the plain tensor of network times, one per row.

**Loop or reader.** `list(timesteps)`, `max`, a `for` that breaks: they iterate as the loop does. An
iteration is a reader and gets all the times, until `step` is called with the time that it has
shown; from then on it is the loop of the run, and follows it. Whether an iteration is the loop is
known by the very tensor it has shown, or by its value where a pipeline passes on another; see
`Hand.loop_of`. Which row a step belongs to is decided by `Scheduler._at`: the row that the loop has
shown, or the one whose time it is.

Where the pipeline keeps a sample of its own (it blends a mask in, casts, changes the layout), the
run cannot put another into its hands between two turns of the loop. Then the loop turns once more
and idly: the networks' outputs are remembered ones, and `step` hands over the sample without
advancing the run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.states import allowed
from ...core.table import Table
from ...errors import ArgumentError, RunError

if TYPE_CHECKING:
    from ...core.run import Run
    from .scheduler import Scheduler

ROUNDING = 1e-9  # between two versions or machines that compute one table
EQUAL = 1e-6  # relative distance of two times that float32 does not tell apart


class Rewound(BaseException):
    """The run went back in a pipeline whose loop counts its steps: it has to be called again from
    its beginning.
    """


class Loop:
    """One iteration over rows `start` … `stop - 1` of the list.

    `shown`: the time it has yielded last, that of `row`. `run`: the run that its rows belong to,
    once one was looked for. `stepped`: a step was made with a time that it has shown, so it is the
    loop that drives the run. `renewed`: its run begins anew with the next step, and it goes on with
    that one.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop, self.row = start, stop, start
        self.shown: Tensor | None = None
        self.run: Run | None = None
        self.stepped = self.renewed = False

    def show(self, row: int, time: Tensor) -> Tensor:
        self.row, self.shown = row, time
        return time


class Hand:
    """What the pipeline holds of the run, and how its loop turns.

    `idle`: the loop turns without advancing; `first`: for its first time. `turn`: turns so far.
    `replay`: the pipeline is called again, and passes idly by the rows that the run has behind it.
    `owned`: it last came back with the very tensor it was given. `loops`: the iterations that have
    begun and not ended, the oldest first.
    """

    leader: Scheduler | None

    def __init__(self) -> None:
        self.idle, self.first, self.replay, self.owned, self.turn = False, False, False, False, 0
        self.given = 0
        self.led, self.leader = (
            False,
            None,
        )  # pipelines of video with sound step a copy of the scheduler beside it
        self.loops: list[Loop] = []
        self.copied = False  # its scheduler is a copy, and nothing was given since
        self._held: tuple[Tensor, int] | None = None

    def give(self, sample: Tensor) -> None:
        """The pipeline is handed `sample`."""
        self._held, self.given, self.copied = (sample, _version(sample)), self.given + 1, False

    def holds(self, sample: Tensor) -> bool:
        """Whether the pipeline comes back with what it was given, unchanged."""
        self.owned = self.is_held(sample)
        return self.owned and self._held is not None and _version(sample) == self._held[1]

    def brings(self, sample: Tensor, run: Run) -> bool:
        """Whether the pipeline comes to a copy of the scheduler with the sample that the first one
        gave it.
        """
        return (
            self.copied and run.latents.shape == sample.shape and torch.equal(run.latents, sample)
        )

    def is_held(self, sample: Tensor) -> bool:
        """Whether it is the tensor that the pipeline was given last."""
        return self._held is not None and sample is self._held[0]

    def put(self, sample: Tensor) -> bool:
        """Write `sample` into the tensor that the pipeline holds; False where it holds one of its
        own.
        """
        if self._held is None:
            return False
        held = self._held[0]
        if held is sample:
            return True
        held.copy_(sample)
        self.give(held)
        return self.owned and not self.led

    def rests(self) -> bool:
        """Whether this turn of the loop only hands the sample over."""
        return self.idle or (self.leader is not None and self.leader.hand.idle)

    def follow(self, run: Run) -> None:
        """Stop where the scheduler that this one was copied from has stopped."""
        lead = None if self.leader is None else self.leader.current
        if lead is not None and lead.stopping and allowed("stop", run.phase):
            run.stop(lead.reason)

    def loop_of(self, timestep: Any) -> Loop | None:
        """The iteration that has shown this time: the very tensor, else one of its value; None
        where none has.
        """
        for loop in self.loops:
            if loop.shown is timestep:
                return loop
        if not self.loops:
            return None
        time = number(timestep)
        same = (
            loop for loop in self.loops if loop.shown is not None and equal(float(loop.shown), time)
        )
        return next(same, None)

    def leads(self, loop: Loop) -> bool:
        """Whether `loop` is the oldest iteration that has not ended: the pipeline's, as far as can
        be known.
        """
        return bool(self.loops) and self.loops[0] is loop

    def let_go(self) -> None:
        """The pipeline's loop begins anew."""
        self.idle, self.owned, self._held = False, False, None


def number(timestep: Any) -> float:
    """The time of a step as a float; a batch of times has one for all."""
    try:
        if isinstance(timestep, bool):
            raise TypeError
        return float(torch.as_tensor(timestep).flatten()[0])
    except (TypeError, ValueError, RuntimeError, IndexError):
        raise ArgumentError(
            f"step takes the time of its row, a number of scheduler.timesteps, got {timestep!r}"
        ) from None


def equal(a: float, b: float) -> bool:
    """Whether two times are one in float32."""
    return abs(a - b) <= EQUAL * max(1.0, abs(a), abs(b))


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; constant where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def adopted(run: Run, fresh: Run) -> Run:
    """`run`, to go on in the place of a fresh one of the same table, with guidance and hooks of
    that one.

    Raises `ArgumentError` where the two differ or the pipeline cannot guide so, and leaves `run` as
    it is.
    """
    old, new = run.table, fresh.table
    if not _alike(old, new):
        raise ArgumentError(
            f"the run to resume is {old.solver!r} on {old.grid!r} with {old.steps} steps, this call"
            f" is {new.solver!r} on {new.grid!r} with {new.steps}: give the same sampler and steps,"
            " or leave both out"
            + (
                _apart(old, new)
                if (old.solver, old.grid, old.nfe) == (new.solver, new.grid, new.nfe)
                else ""
            )
        )
    if run.prediction != fresh.prediction:
        raise ArgumentError(
            f"the run to resume has predictions of kind {run.prediction!r}, this model"
            f" {fresh.prediction!r}: resume it with the model it was begun with"
        )
    run.adopt(fresh)
    return run


def _alike(old: Table, new: Table) -> bool:
    """Whether two tables are one but for the rounding of another version or machine."""
    if old.x.shape != new.x.shape or (old.seen is None) != (new.seen is None):
        return False
    pairs = [
        (getattr(old, key), getattr(new, key)) for key in ("x", "base", "alpha", "sigma", "time")
    ]
    return all(torch.allclose(mine, theirs, rtol=ROUNDING, atol=ROUNDING) for mine, theirs in pairs)


def is_part(old: Table, new: Table) -> bool:
    """Whether `old` is of some rows of `new` only, by their times."""
    start = old.first - new.first
    rows = new.time[start : start + old.nfe] if start >= 0 else new.time[:0]
    return (
        old.nfe < new.nfe
        and len(rows) == old.nfe
        and torch.allclose(old.time[:-1], rows, rtol=ROUNDING)
    )


def _apart(old: Table, new: Table) -> str:
    """In what two tables of one name differ."""
    if (old.seen is None) != (new.seen is None):
        return (
            "; one of them keeps its samples as x0 + sigma·noise, as classes of timonel.compat do"
        )
    if not torch.allclose(old.time, new.time, rtol=ROUNDING, atol=ROUNDING):
        row = int((old.time - new.time).abs().argmax())
        return (
            f"; their levels differ, call {row} is at time {old.time[row]:.6g} there and"
            f" {new.time[row]:.6g} here"
        )
    return (
        "; their coefficients differ: the options of the sampler are others, or its formula is, in"
        " another version"
    )


def check_handover(run: Run, sample: Tensor) -> None:
    """Raises `TimonelError` where a loop that only turns cannot be handed the run's sample in the
    place of its own.
    """
    if not run.started:
        raise RunError(
            "this pipeline steps the sound of its video with a copy of its scheduler, and that"
            " copy's run was not kept: begin a new call, without resume="
        )
    if sample.shape != run.latents.shape:
        raise ArgumentError(
            f"the run to resume has samples {tuple(run.latents.shape)}, this call"
            f" {tuple(sample.shape)}: give the size and the number of pictures that it was begun"
            " with"
        )


class Timesteps(Tensor):
    """Network times of the rows, noisiest first; the loop over them drives `scheduler.run`.

    A contiguous slice is a part of the journey, as image-to-image and two-stage pipelines take it.
    Its loop runs whole steps: it begins where the step of its first row begins, and ends before a
    step that it does not complete.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    scheduler: Scheduler
    whole: Tensor
    begin: int

    @staticmethod
    def of(
        times: Tensor, scheduler: Scheduler, whole: Tensor | None = None, begin: int = 0
    ) -> Timesteps:
        """`whole`: the list of all rows, of which these begin at row `begin`; the times themselves
        unless given.
        """
        made: Timesteps = Tensor._make_subclass(Timesteps, times)
        made.scheduler, made.whole, made.begin = scheduler, times if whole is None else whole, begin
        return made

    def plain(self) -> Tensor:
        """The same numbers without the socket."""
        return self.as_subclass(Tensor)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return Timesteps.of(
            self.plain().to(*args, **kwargs), self.scheduler, self.whole, self.begin
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Timesteps:
        """A list of its own; of the scheduler's copy where that is copied."""
        twin = Timesteps.of(
            self.plain().clone(),
            memo.get(id(self.scheduler), self.scheduler),
            self.whole,
            self.begin,
        )
        if id(self.scheduler) in memo:
            twin.whole = copy.deepcopy(self.whole, memo)
        memo[id(self)] = twin
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its scheduler travels with it; the state comes last, for the scheduler has this list
        among its own.
        """
        return (
            _alone,
            (self.plain(),),
            (self.scheduler, self.whole, self.begin),
            None,
            None,
            _joined,
        )

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            if start < stop:
                return Timesteps.of(
                    self.plain()[start:stop], self.scheduler, self.whole, self.begin + start
                )
        return self.plain()[key]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.scheduler.lists(
            self.whole
        ):  # of levels that were chosen before the present ones
            return iter(self.plain())
        return _turns(self)


def _alone(times: Tensor) -> Timesteps:
    """A list that `_joined` gives its scheduler."""
    made: Timesteps = Tensor._make_subclass(Timesteps, times)
    return made


def _joined(listed: Timesteps, state: tuple[Scheduler, Tensor, int]) -> None:
    listed.scheduler, listed.whole, listed.begin = state


def _turns(listed: Timesteps) -> Iterator[Tensor]:
    """All times of the list; for the loop that steps, the time of the run's next row until the run
    ends.
    """
    scheduler, hand = listed.scheduler, listed.scheduler.hand
    start = scheduler.loop_begin(listed.begin)
    lead = listed.whole[start : listed.begin].to(listed.plain())
    times = [*lead.unbind(), *listed.plain().unbind()]
    loop = Loop(start, start + len(times))
    hand.loops.append(loop)
    try:
        if hand.leads(loop) and scheduler.resumes(loop):
            yield from _replayed(loop, times, hand)
        place = 0 if loop.run is None else loop.run.row
        while not loop.stepped and place < len(times):
            hand.turn += hand.leads(loop)
            yield loop.show(start + place, times[place])
            place += 1
        if loop.stepped:
            yield from _follow(loop, times, scheduler)
        while loop.renewed and scheduler.lists(listed.whole):
            yield from _renewed(loop, times, scheduler)
    finally:
        if loop in hand.loops:
            hand.loops.remove(loop)


def _replayed(loop: Loop, times: list[Tensor], hand: Hand) -> Iterator[Tensor]:
    """Idle turns for the rows that the run has behind it."""
    run, before = loop.run, hand.given
    assert run is not None
    for row, time in enumerate(times[: run.row]):
        hand.first = row == 0
        yield from _idly(time, hand)
    hand.first = False
    loop.stepped = hand.given != before
    hand.replay = (
        not loop.stepped and run.row > 0
    )  # where the list was only read, the loop is still to come


def _follow(loop: Loop, times: list[Tensor], scheduler: Scheduler) -> Iterator[Tensor]:
    """Yield the time of the run's next row until the run ends.

    Where nothing advanced since the last time was yielded, the pipeline skips steps because it was
    interrupted: then go on to the next entry.
    """
    run, hand = loop.run, scheduler.hand
    assert run is not None
    first = scheduler.begins  # the run's row 0 in the list
    times = [*run.table.time[:-1].to(times[0]).unbind()]
    seen, row = -1, run.row
    while scheduler.current is run:
        if run.advances == seen and row + 1 < len(times):
            row += 1
        else:
            if run.advances == seen:
                run.stop("the pipeline was interrupted")
            if not run.proceed():
                break
            row = run.row
            if run.take_rewind():
                if hand.led:  # the copy beside it keeps no state: both journeys begin anew
                    run.rewind(0)
                    run.proceed()
                    run.take_rewind()
                    raise Rewound
                if scheduler.orders.recall:
                    raise Rewound
                if not hand.put(run.latents):
                    yield from _idly(times[max(row - 1, 0)], hand)
        seen = run.advances
        hand.turn += 1
        yield loop.show(first + row, times[row])
    if scheduler.current is run:
        yield from _end(times, scheduler)


def _renewed(loop: Loop, times: list[Tensor], scheduler: Scheduler) -> Iterator[Tensor]:
    """The times after the one shown last, until a step has begun the run anew, which the loop then
    follows.
    """
    place = loop.row - loop.start + 1
    while not scheduler.run.started and place < len(times):
        yield loop.show(loop.start + place, times[place])
        place += 1
    loop.run, loop.renewed = scheduler.run, False
    if scheduler.run.started:
        yield from _follow(loop, times, scheduler)


def _idly(time: Tensor, hand: Hand) -> Iterator[Tensor]:
    """One turn of the loop that only hands the run's sample over."""
    hand.idle, hand.turn = True, hand.turn + 1
    yield time
    hand.idle = False


def _end(listed: list[Tensor], scheduler: Scheduler) -> Iterator[Tensor]:
    """The loop is over: what the pipeline holds, and will decode, becomes the result."""
    run, hand = scheduler.run, scheduler.hand
    if run.status == "stopped":
        result = run.result
        if not hand.is_held(result):
            run.release()  # the tensor that is written to may be the run's own
        if not hand.put(result):
            yield from _idly(listed[min(run.row, len(listed) - 1)], hand)
    run.finish()
