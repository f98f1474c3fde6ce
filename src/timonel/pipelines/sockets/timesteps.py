"""The timesteps socket: a tensor whose iteration is driven by the run, and which row a step is of.

A pipeline's own `for t in timesteps` ends when the run is stopped, waits while it is paused and
goes back when it is rewound. Everywhere else it is the plain tensor of network times, one per row.

**Loop or reader.** `list(timesteps)`, `max`, a `for` that breaks: they iterate as the loop does. So
every iteration is a reader, which gets all the times, until `step` is called with the time that it
has shown. From then on it is the loop of the run, and follows it. `Rows.loop_of` finds the
iteration of a step:

1. the one that has shown this very tensor;
2. else the oldest that has shown a time of this value, for some pipelines pass on another tensor;
3. else none: the loop is over a list, a mask or numbers of its own, and nothing follows the run.

Before the first step the oldest iteration counts as the pipeline's: it gets a run to resume, and
the network calls meanwhile are for its run (`Session.coming`).

**The row of a step** is decided by `Rows._at`:

1. a step of an iteration is of the row that this has shown. Its first step begins a run of the rows
   that it goes over, unless it goes on with a run to resume (`Rows.join`);
2. a step of none is of the row that has its time, or the nearest time where it was rounded on its
   way (`Listing.rows`). If that is the run's next row, the run goes on;
3. else a run begins there: where none has begun, or where the run is complete and the sample is not
   its own result. It has to be the first row of a step;
4. else it is refused: a row that was made already, one further on, a time that is not listed.

`add_noise` says where the first step may begin: a picture that was mixed with noise is at the level
of the first row of its loop. Any other sample comes from a loop that ended before the step of that
row, as SDXL's base does for its refiner. Classes of `timonel.compat` whose step reads only its time
and its sample overrule 3 and 4, see `compat/times.py`.

**Idle turns.** Where the pipeline keeps a sample of its own (it blends a mask in, casts, changes
the layout), the run cannot put another into its hands between two turns of the loop. Then the loop
turns once more and idly: the networks repeat their outputs, and `step` hands over the sample
without advancing the run. So do the turns for the rows that a run to resume has behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.table import Table
from ...errors import RunError
from .. import request
from ..session import Loop, Phase, Role, Session, stamp
from . import parts
from .resumed import adopt, is_part
from .times import equal, number

if TYPE_CHECKING:
    from ...core.grids import Grid
    from ...core.process import Process
    from ...core.run import Run
    from ...core.sampler import Sampler
    from .listing import Listing


class Rewound(BaseException):
    """The run's sample is another, and the pipeline, whose loop counts its steps, begins anew."""


# -- which row -------------------------------------------------------------------------------------
class Rows:
    """The row of a step, and the run that it belongs to; a part of `Scheduler`."""

    session: Session
    process: Process

    if TYPE_CHECKING:

        @property
        def run(self) -> Run: ...

        @property
        def _listed(self) -> Listing: ...

        def _begin(self, table: Table, rows: tuple[int, int]) -> None: ...

        def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table: ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha·x0 + sigma·noise`.

        `x0` itself once the run is stopped: what pipelines blend with the result is to be as clean
        as the result.

        Args:
            original_samples: clean samples, (batch, …).
            noise: unit noise of their shape.
            timesteps: a time for each, or one for all.

        Returns:
            Noisy samples, (batch, …).
        """
        session = self.session
        if session.run is not None and session.run.started and session.run.stopping:
            return original_samples
        times = request.noised(original_samples, noise, timesteps)
        session.mixed = True
        if session.listing is None:
            level = self.process.at_time(times)
        elif session.listing.sampler.fitted is None:
            level = session.listing.grid.process.at_time(times)
        else:
            level = parts.at(self.run.table, session.listing.grid.process, times)
        alpha, sigma = level.factors(original_samples)
        return alpha * original_samples + sigma * noise

    def loop_of(self, timestep: Any) -> Loop | None:
        """The iteration that has shown this time; None where none has."""
        loops = self.session.loops
        if not loops:
            return None
        same = next((loop for loop in loops if loop.shown is timestep), None)
        if same is not None:
            return same
        time = number(timestep)
        return next(
            (one for one in loops if one.shown is not None and equal(float(one.shown), time)), None
        )

    def loop_begin(self, row: int) -> int:
        """The row where a loop over the list from `row` on begins."""
        return self._listed.loop_begin(row, self.session.mixed)

    def _steps(self, start: int, stop: int) -> tuple[int, int]:
        """Rows `start` … `stop` of the list, less a last step that is not completed."""
        table = self._listed.table
        stop = min(stop, table.nfe)  # some lists have the end too
        return self.loop_begin(start), table.first_row(table.step_at(stop))

    def cover(self, start: int, stop: int) -> None:
        """Begin a run of the whole steps in rows `start` … `stop - 1`, as pipelines slice the list.

        Raises:
            ArgumentError: the sampler is made for all of them.
            GridError: no step is left.
        """
        rows = self._steps(start, stop)
        self._begin(self._listed.part(rows, start, stop, self._compile), rows)

    def resumes(self, loop: Loop) -> bool:
        """Whether the run that `loop` begins with has rows behind it.

        A run to resume is not that of a list which is only read before a part of it is run; `join`
        refuses it.
        """
        session = self.session
        resume = session.request.resume if session.phase is Phase.RESUME else None
        if resume is not None:
            session.scheduler._turned(resume, live=False)
            self.cover(loop.start, loop.stop)
            if is_part(resume.table, self.run.table):
                return False
            adopt(resume, self.run)
            session.adopt()
        if session.phase.again:
            loop.run = self.run
        return session.phase.again

    def join(self, loop: Loop) -> None:
        """Let the run be that of `loop`: where it begins, a fresh one from the row it has shown."""
        if loop.steps or loop.shown is None:
            return
        run, resume = self.run, self.session.request.resume
        if self.session.phase is Phase.RESUME and resume is not None:
            adopt(resume, run)  # which says how the two differ
        if loop.run is run and run.started:  # it goes on with a run that has rows behind it
            return
        if run.started or self.session.rows != self._steps(loop.row, loop.stop):
            self.cover(loop.row, loop.stop)
        loop.run = self.run

    def _at(self, timestep: Any, sample: Tensor) -> Run:
        """The run, whose next row is the one that a step with `timestep` is of.

        Raises:
            RunError: it is of another row.
        """
        loop = self.loop_of(timestep)
        if loop is not None:
            if not loop.steps:
                self.join(loop)
                loop.role = Role.LOOP
            rows = [loop.row]
        else:
            rows = self._rows(timestep)
        over = loop is None and self.run.status == "done"
        if not over and self._is_next(timestep, rows):
            return self.run
        return self._elsewhere(
            timestep, rows, not self.run.started or (over and not self.session.is_held(sample))
        )

    def _is_next(self, timestep: Any, rows: list[int]) -> bool:
        """Whether the run's next row is one of `rows`, which the step's time may mean."""
        return self.session.row in rows

    def _elsewhere(self, timestep: Any, rows: list[int], begins: bool) -> Run:
        """The run of a step at one of `rows` that is not the next of the present run.

        `begins`: whether a run may begin with it. Raises `RunError` where none may, or no step
        begins there.
        """
        table = self._listed.table
        firsts = [row for row in rows if row == table.first_row(table.step[row])]
        if begins and firsts:
            self.cover(firsts[0], table.nfe)
            return self.run
        if begins and self.run.started:
            self.cover(0, table.nfe)
        raise RunError(self._listed.refusal(self.run, self.session.rows[0], number(timestep), rows))

    def _rows(self, timestep: Any) -> list[int]:
        """The rows of the list that a step at this time may mean."""
        session = self.session
        return self._listed.rows(number(timestep), session.row if session.under_way else None)

    def begin_anew(self) -> None:
        """Let the next step begin a run of the present levels, at the row of its time.

        A loop over `timesteps` that is turning goes on with that run.
        """
        loops, table = self.session.stepping, self._listed.table
        self._begin(table, (0, table.nfe))
        for loop in loops:
            loop.role = Role.RENEWED


# -- the list --------------------------------------------------------------------------------------
class Timesteps(Tensor):
    """Network times of the rows, noisiest first; the loop over them drives `scheduler.run`.

    A contiguous slice is a part of the journey, as image-to-image and two-stage pipelines take it.
    Its loop runs whole steps: it begins where the step of its first row begins, and ends before a
    step that it does not complete.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    session: Session
    whole: Tensor
    begin: int

    @staticmethod
    def of(
        times: Tensor, session: Session, whole: Tensor | None = None, begin: int = 0
    ) -> Timesteps:
        """A list of times.

        Args:
            times: of its rows.
            session: of the call.
            whole: the list of all rows; None: `times`.
            begin: the first of these rows.
        """
        listed: Timesteps = Tensor._make_subclass(Timesteps, times)
        listed.session, listed.begin = session, begin
        listed.whole = times if whole is None else whole
        return listed

    def plain(self) -> Tensor:
        """The same numbers without the socket."""
        return self.as_subclass(Tensor)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """The list with another dtype, or on another device."""
        times = self.plain().to(*args, **kwargs)
        return Timesteps.of(times, self.session, self.whole, self.begin)

    def __deepcopy__(self, memo: dict[int, Any]) -> Timesteps:
        """A list of its own; of the scheduler's copy where that is copied."""
        session, whole = self.session, self.whole
        if id(session.scheduler) in memo:
            session, whole = copy.deepcopy(session, memo), copy.deepcopy(whole, memo)
        memo[id(self)] = twin = Timesteps.of(self.plain().clone(), session, whole, self.begin)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Its session travels with it.

        The state comes last, for the scheduler has this list among its own.
        """
        state = (self.session, self.whole, self.begin)
        return _alone, (self.plain(),), state, None, None, _joined

    def __getitem__(self, key: Any) -> Tensor:
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            if start < stop:
                part = self.plain()[start:stop]
                return Timesteps.of(part, self.session, self.whole, self.begin + start)
        return self.plain()[key]

    def __iter__(self) -> Iterator[Tensor]:
        # a list of levels that were chosen before the present ones is a plain one
        return _turns(self) if self.session.lists(self.whole) else iter(self.plain())


def _alone(times: Tensor) -> Timesteps:
    """A list that `_joined` gives its session."""
    listed: Timesteps = Tensor._make_subclass(Timesteps, times)
    return listed


def _joined(listed: Timesteps, state: tuple[Session, Tensor, int]) -> None:
    listed.session, listed.whole, listed.begin = state


# -- the turns of a loop ---------------------------------------------------------------------------
def _turns(listed: Timesteps) -> Iterator[Tensor]:
    """All times of the list; for the loop that steps, the time of the run's next row."""
    session = listed.session
    start = session.scheduler.loop_begin(listed.begin)
    lead = listed.whole[start : listed.begin].to(listed.plain())
    times = [*lead.unbind(), *listed.plain().unbind()]
    loop = Loop(start, start + len(times))
    session.loops.append(loop)
    try:
        if session.leads(loop) and session.scheduler.resumes(loop):
            yield from _replayed(loop, times, session)
        place = 0 if loop.run is None else loop.run.row
        yield from _shown(loop, times, place, session, lambda: loop.steps)
        if loop.steps:
            yield from _follow(loop, times, session)
        while loop.role is Role.RENEWED and session.lists(listed.whole):
            place = loop.row - start + 1
            began = lambda: session.scheduler.run.started  # noqa: E731
            yield from _shown(loop, times, place, session, began)
            loop.run, loop.role = session.scheduler.run, Role.LOOP
            if loop.run.started:
                yield from _follow(loop, times, session)
    finally:
        if loop in session.loops:
            session.loops.remove(loop)


def _shown(
    loop: Loop, times: list[Tensor], place: int, session: Session, ended: Callable[[], bool]
) -> Iterator[Tensor]:
    """The times from `place` on, until a step has begun the run that the loop then follows."""
    while not ended() and place < len(times):
        session.turn += session.leads(loop)
        loop.row, loop.shown = loop.start + place, times[place]
        yield times[place]
        place += 1


def _replayed(loop: Loop, times: list[Tensor], session: Session) -> Iterator[Tensor]:
    """Idle turns for the rows that the run has behind it."""
    run, before = loop.run, session.steps
    assert run is not None
    for row, time in enumerate(times[: run.row]):
        session.turn += 1
        session.phase = Phase.REPLAY if row else Phase.OPENING
        yield time
        session.phase = Phase.AGAIN
    stepped = session.steps != before
    if stepped:
        loop.role = Role.LOOP
    if stepped or not run.row:  # else the list was only read, and the loop is still to come
        session.phase = Phase.COMPUTE


def _follow(loop: Loop, times: list[Tensor], session: Session) -> Iterator[Tensor]:
    """Yield the time of the run's next row until the run ends.

    Where nothing advanced since the last time was yielded, the pipeline skips steps because it was
    interrupted: then go on to the next entry.
    """
    run = loop.run
    assert run is not None
    first = session.rows[0]  # the run's row 0 in the list
    times = [*run.table.time[:-1].to(times[0]).unbind()]
    seen, row = -1, run.row
    while session.run is run:
        if run.advances == seen and row + 1 < len(times):
            row += 1
        else:
            if run.advances == seen:
                run.stop("the pipeline was interrupted")
            before = stamp(run.latents)
            if not run.proceed():
                break
            row = run.row
            if run.table is not session.table:
                times = _other(run, times, session)
            if run.take_rewind():
                yield from _went_back(run, times, session)
            elif stamp(run.latents) != before or not session.is_held(run.latents):
                yield from _edited(run, times, session)
        seen = run.advances
        session.turn += 1
        loop.row, loop.shown = first + row, times[row]
        yield times[row]
    if session.run is run:
        yield from _end(run, times, session)


def _other(run: Run, times: list[Tensor], session: Session) -> list[Tensor]:
    """The times of the rows that the run goes on with.

    Raises:
        Rewound: the pipeline has to be called again.
    """
    session.scheduler._turned(run, live=True)
    if session.request.recall:
        run.take_rewind()
        raise Rewound
    return [*run.table.time[:-1].to(times[0]).unbind()]


def _went_back(run: Run, times: list[Tensor], session: Session) -> Iterator[Tensor]:
    """Put the sample of a run that was rewound into the pipeline's hands.

    Raises:
        Rewound: the pipeline has to be called again.
    """
    if session.copied:  # the copy beside it keeps no state: both journeys begin anew
        run.rewind(0)
        run.proceed()
        run.take_rewind()
    if session.copied or session.request.recall:
        raise Rewound
    if not session.is_held(run.latents):
        yield from _edited(run, times, session)


def _edited(run: Run, times: list[Tensor], session: Session) -> Iterator[Tensor]:
    """Put a sample that was changed between two rows into the pipeline's hands.

    Raises:
        Rewound: the pipeline has to be called again.
    """
    if session.put(run.latents):
        return
    if session.request.recall:
        raise Rewound
    yield from _handover(times[max(run.row - 1, 0)], session)


def _handover(time: Tensor, session: Session) -> Iterator[Tensor]:
    """One turn of the loop that only hands the run's sample over."""
    session.phase = Phase.HANDOVER
    session.turn += 1
    yield time
    session.phase = Phase.COMPUTE


def _end(run: Run, times: list[Tensor], session: Session) -> Iterator[Tensor]:
    """The loop is over: what the pipeline holds, and will decode, becomes the result."""
    if run.status == "stopped":
        result = run.result
        if not session.is_held(result):
            run.release()  # the tensor that is written to may be the run's own
            if not session.put(result):
                yield from _handover(times[min(run.row, len(times) - 1)], session)
    run.finish()
