"""The timesteps socket: a tensor whose iteration is driven by the run.

A pipeline's own `for t in timesteps` ends when the run is stopped, waits while it is paused and
goes back when it is rewound. Everywhere else it is the plain tensor of network times, one per row.

Where the pipeline keeps a sample of its own (it blends a mask in, casts, changes the layout), the run cannot put
another into its hands between two turns of the loop. Then the loop turns once more and idly: the networks' outputs
are remembered ones, and `step` hands over the sample without advancing the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArgumentError

if TYPE_CHECKING:
    from ..run import Run
    from .scheduler import Scheduler


class Rewound(BaseException):
    """The run went back in a pipeline whose loop counts its steps: it has to be called again from its beginning."""


class Hand:
    """What the pipeline holds of the run, and how its loop turns.

    `idle`: the loop turns without advancing; `first`: for its first time. `turn`: turns so far. `replay`: the
    pipeline is called again, and passes idly by the rows that the run has behind it. `owned`: it last came back with
    the very tensor it was given.
    """

    leader: Scheduler | None

    def __init__(self) -> None:
        self.idle, self.first, self.replay, self.owned, self.turn = False, False, False, False, 0
        self.given = 0
        self.led, self.leader = False, None  # pipelines of video with sound step a copy of the scheduler beside it
        self._held: tuple[Tensor, int] | None = None

    def give(self, sample: Tensor) -> None:
        """The pipeline is handed `sample`."""
        self._held, self.given = (sample, _version(sample)), self.given + 1

    def holds(self, sample: Tensor) -> bool:
        """Whether the pipeline comes back with what it was given, unchanged."""
        self.owned = self.is_held(sample)
        return self.owned and self._held is not None and _version(sample) == self._held[1]

    def is_held(self, sample: Tensor) -> bool:
        """Whether it is the tensor that the pipeline was given last."""
        return self._held is not None and sample is self._held[0]

    def put(self, sample: Tensor) -> bool:
        """Write `sample` into the tensor that the pipeline holds; False where it holds one of its own."""
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
        if lead is not None and lead.stopping:
            run.stop(lead.reason)

    def let_go(self) -> None:
        """The pipeline's loop begins anew."""
        self.idle, self.owned, self._held = False, False, None


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; constant where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def adopted(run: Run, fresh: Run) -> Run:
    """`run`, to go on in the place of a fresh one of the same table, with guidance and hooks of that one.

    Raises `ArgumentError` where the two differ or the pipeline cannot guide so, and leaves `run` as it is.
    """
    old, new = run.table, fresh.table
    if old.x.shape != new.x.shape or not (torch.equal(old.x, new.x) and torch.equal(old.time, new.time)):
        raise ArgumentError(
            f"the run to resume is {old.solver!r} on {old.grid!r} with {old.steps} steps, this call is {new.solver!r} "
            f"on {new.grid!r} with {new.steps}: give the same sampler and steps"
        )
    if run.prediction != fresh.prediction:
        raise ArgumentError(
            f"the run to resume has predictions of kind {run.prediction!r}, this model {fresh.prediction!r}: "
            "resume it with the model it was begun with"
        )
    run.adopt(fresh)
    return run


class Timesteps(Tensor):
    """Network times of the rows, noisiest first; iterating drives `scheduler.run`.

    A contiguous slice is a part of the journey, as image-to-image and two-stage pipelines take it: once it is
    iterated, the run covers only that part.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    scheduler: Scheduler
    begin: int

    @staticmethod
    def of(times: Tensor, scheduler: Scheduler, begin: int = 0) -> Timesteps:
        """`begin`: which row of all that `scheduler.set_timesteps` made is the first one here."""
        made: Timesteps = Tensor._make_subclass(Timesteps, times)
        made.scheduler, made.begin = scheduler, begin
        return made

    def plain(self) -> Tensor:
        """The same numbers without the socket."""
        return self.as_subclass(Tensor)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return Timesteps.of(self.plain().to(*args, **kwargs), self.scheduler, self.begin)

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            if start < stop:
                return Timesteps.of(self.plain()[start:stop], self.scheduler, self.begin + start)
        return self.plain()[key]

    def __iter__(self) -> Iterator[Tensor]:
        self.scheduler.cover(self.begin, self.begin + len(self))
        return _drive(self.scheduler.run.table.time[:-1].to(self.plain()), self.scheduler)


def _drive(times: Tensor, scheduler: Scheduler) -> Iterator[Tensor]:
    """Yield the time of the run's next row until the run ends.

    Where nothing advanced since the last time was yielded, the caller is only reading the list (or
    skips steps because the pipeline was interrupted): then go on to the next entry.
    """
    run, hand, listed = scheduler.run, scheduler.hand, list(times)
    if hand.replay:
        before = hand.given
        for row, time in enumerate(listed[: run.row]):
            hand.first = row == 0
            yield from _idly(time, hand)
        hand.first = False
        hand.replay = hand.given == before and run.row > 0  # where the list was only read, the loop is still to come
    position, seen = -1, -1
    while True:
        if run.advances == seen or not run.started:
            position += 1
            if position >= len(listed):
                break
        else:
            if not run.proceed():
                break
            position = run.row
            if run.moved:
                run.moved = False
                if hand.led:  # the copy beside it keeps no state: both journeys begin anew
                    run.rewind(0)
                    run.proceed()
                    run.moved = False
                    raise Rewound
                if scheduler.orders.recall:
                    raise Rewound
                if not hand.put(run.latents):
                    yield from _idly(listed[max(position - 1, 0)], hand)
        seen = run.advances
        hand.turn += 1
        yield listed[position]
    if run.started and run.advances:
        yield from _end(listed, scheduler)


def _idly(time: Tensor, hand: Hand) -> Iterator[Tensor]:
    """One turn of the loop that only hands the run's sample over."""
    hand.idle, hand.turn = True, hand.turn + 1
    yield time
    hand.idle = False


def _end(listed: list[Tensor], scheduler: Scheduler) -> Iterator[Tensor]:
    """The loop is over: what the pipeline holds, and will decode, becomes the result."""
    run, hand = scheduler.run, scheduler.hand
    if run.status == "running":
        run.stop("the pipeline was interrupted")
        run.proceed()
    if run.status == "stopped":
        result = run.result
        if not hand.is_held(result):
            run.release()  # the tensor that is written to may be the run's own
        if not hand.put(result):
            yield from _idly(listed[min(run.row, len(listed) - 1)], hand)
    run.finish()
