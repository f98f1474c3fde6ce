"""Orders to a run, from any thread.

They act at the next row, or are refused as `states.ORDERS` says.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, RunError, instance, shown, whole
from . import border, states
from .checkpoints import Checkpoints, Point
from .driver import UNKNOWN, Driver
from .edits import EditWatch
from .guidance import CompiledGuidance, Guidance, assigned
from .position import Position
from .program import NOTHING, Aside, Program, State
from .table import Table

# seconds that an edit from another thread waits for a hook, which may be waiting for that thread
PATIENCE = 60.0
TICK = 0.1  # seconds after which a thread that waits asks whether the other one is still alive


class Controlled(Position):
    """The part of a `Run` that takes orders."""

    def __init__(
        self, table: Table, program: Program, guided: CompiledGuidance, keep: int, driver: Driver
    ) -> None:
        super().__init__(table, program, guided)
        self.driver = driver
        self.reason = ""  # why the run was stopped
        self._checkpoints = Checkpoints(keep)
        self._coming: CompiledGuidance | None = None  # from the next row on
        self._aside = NOTHING  # of the row that is computed
        # the orders
        self._status = "new"
        self._paused, self._stopping, self._finished = False, False, False
        self._goto: int | None = None  # the step to go back to
        self._until = 0  # the step up to which a paused run goes, after a rewind
        self._moved = False  # the state was replaced by a rewind since the last row
        # who is at work
        self._loop: int | None = None  # the thread whose loop it is in
        self._flight: int | None = None  # the thread that computes a row
        self._hooking: int | None = None  # the thread that calls the hooks of a row
        self._before: Point | None = None  # that row's beginning
        self._waiting = False  # the loop waits for `resume`
        self._watched: EditWatch | None = None  # while edits in place have to reach the base

    @property
    def status(self) -> str:
        """One of new, running, paused, stopped, done, failed."""
        waits = self._paused and (self._status == "running" or self._waiting)
        return "paused" if waits else self._status

    @property
    def phase(self) -> str:
        """The state in `states.ORDERS`: `status`, or finishing where a pipe is past its loop."""
        with self._change:
            if self._status in ("new", "running"):
                return self.status
            if self._status != "failed" and (alive(self._loop) or self._hooking is not None):
                # its last row is computed, and it can still go back
                return "paused" if self._paused else "running"
            # where a hook raised, its loop has yet to end
            return "finishing" if elsewhere(self._loop) or self.driver.holds() else self._status

    @property
    def stopping(self) -> bool:
        """Whether the run ends at the next row."""
        return self._stopping

    def check(self, order: str) -> None:
        """Refuse an order that the present state does not allow.

        Args:
            order: a key of `states.ORDERS`.

        Raises:
            RunError: it is refused.
        """
        states.check(order, self.phase)

    def holding(self) -> threading.Condition:
        """Keeps the run in its state for a `with` block, not for longer than an order takes."""
        return self._change

    # -- orders ------------------------------------------------------------------------------------
    def stop(self, reason: str = "") -> None:
        """End at the next row; `result` is then the newest denoised prediction.

        Args:
            reason: a sentence, kept as `reason`.

        Raises:
            RunError: after the end.
        """
        instance("reason", reason, str, "a sentence")
        with self._change:
            self.check("stop")
            self._stop(reason)

    def pause(self) -> None:
        """Wait before the next row until `resume` or `stop`.

        The row that is computed is finished first; after a rewind its step is reached again first.

        Raises:
            RunError: the run has ended.
        """
        with self._change:
            self.check("pause")
            self._paused = True

    def resume(self) -> None:
        """Go on after `pause`; after a stop or a failure the run's loop can be entered again.

        Raises:
            RunError: the run is done, or its pipeline decodes.
        """
        with self._change:
            self.check("resume")
            self._take_back()

    def rewind(self, step: int) -> None:
        """Go back so that `step` steps are completed, at the next row.

        Continues from the kept state (`keep=`) at or nearest before `step`, else from the start;
        steps in between are computed again, with the same noise and the same hooks, while the run
        is paused too. A run that has ended goes on when its loop is entered again.

        Args:
            step: 0 to the number of completed steps.

        Raises:
            RunError: the run has not reached `step`, or its pipeline decodes.
        """
        with self._change:
            self.check("rewind")
            try:
                step = whole("step", step, 0, self.step)
            except ArgumentError:
                raise RunError(
                    f"cannot rewind to step {shown(step)}: the run has completed {self.step} of"
                    f" {self.steps} steps"
                ) from None
            self._goto, self._until, self._stopping = step, step, False
            if self._status in ("done", "stopped", "failed"):
                self._status, self._finished = "running", False
            self._change.notify_all()

    def _stop(self, reason: str) -> None:
        with self._change:
            self._stopping, self.reason = True, reason or self.reason
            self._change.notify_all()

    def _take_back(self) -> None:
        """Take back a pause, a stop or a failure."""
        with self._change:
            self._paused = self._stopping = False
            if self._status in ("running", "stopped", "failed") and self.started:
                self._status = "done" if self.row == self.table.nfe else "running"
                self._finished, self.reason = False, ""
            self._change.notify_all()

    # -- between two rows --------------------------------------------------------------------------
    def _await(self, wait: bool) -> bool:
        """Between two rows: do what was ordered meanwhile; whether the run is not paused."""
        while True:
            self._unwatch()
            self._waiting = False
            self._settle()
            if self.driver.pending():
                self._serve()
                continue
            if self._goto is not None:  # also while paused: rewind, look, edit and go on
                self._go_back(self._goto)
                self._goto = None
                self._apply_tail()
            if self.driver.outer and self.driver.interrupted():
                self._stop("the pipeline was interrupted")
            waits = self._paused and self._status in ("running", "done")
            if not waits or self._stopping or self.step < self._until:
                return True
            self._watch()
            self._waiting = True
            if not wait:
                return False
            try:
                self._change.wait(self.driver.patience)
            finally:
                self._waiting = False

    def _serve(self) -> None:
        """Let the driver carry out the tasks of other threads; orders are taken meanwhile."""
        self._change.release()
        try:
            self.driver.serve()
        finally:
            self._change.acquire()

    def _stand(self, point: Point) -> None:
        """Go on from another point."""
        self._at, self._status = point, "running"

    def _go_back(self, step: int) -> None:
        self._stand(self._checkpoints.back_to(step))
        self._moved = True

    @property
    def returning(self) -> bool:
        """Whether the coming row is computed again only to reach the step of a rewind."""
        return self.step < self._until

    def take_rewind(self) -> bool:
        """Whether the run went back since its last row, and since the last call of this."""
        moved, self._moved = self._moved, False
        return moved

    def _between(self) -> Point:
        """Where the run stands between two rows; for other threads than its hooks, before theirs.

        Raises `RunError` while those of the start are called.
        """
        if elsewhere(self._hooking):
            if self._before is None:
                raise RunError(
                    "the run is about to begin, its hooks are called: wait for its first step"
                )
            return self._before
        with self._unwatched():  # an edit in place reaches the base first
            return self._point._replace(memory=self._resting())

    def _resting(self) -> Any:
        """What the network remembers here; `UNKNOWN` while a row is computed or after the end."""
        idle = self._flight is None and self._status == "running"
        return self.driver.remembered() if idle and self.memory is UNKNOWN else self.memory

    # -- guidance ----------------------------------------------------------------------------------
    @property
    def guidance(self) -> Guidance | None:
        """How the run is guided; assign `cfg(…)`, a scale or None to change it.

        From any thread; it acts from the next row on.

        Raises:
            TimonelError: at the assignment, and the run goes on as it was: the rows to come cannot
                be guided so, or no row is to come; see `states`.
        """
        return (self._coming or self._guided).guidance

    @guidance.setter
    def guidance(self, value: Guidance | float | Sequence[float] | None) -> None:
        guidance = assigned(value)
        with self._change:
            self.check("guidance")
            self._guide(guidance)

    @property
    def guided_since(self) -> int:
        """The row from which `guidance` holds."""
        return (self._coming or self._guided).since

    def _guide(self, guidance: Guidance | None) -> None:
        """Guide the rows to come so."""
        run: Any = self
        with self._change:
            # whether another thread computes a row
            in_flight = self._flight not in (None, threading.get_ident())
            new = CompiledGuidance.of(
                guidance, self.table, self.program.prediction, self.row + in_flight
            )
            if guidance is not None:
                self.driver.admit(run, guidance, self.table)
            self._coming = new if guidance != self._guided.guidance else None
            if not in_flight:
                self._settle()

    def _settle(self) -> None:
        """Between two rows: what was assigned while one was computed holds from here on."""
        if self._coming is not None:
            if self._coming.method != self._guided.method:  # whose momentum means nothing to it
                self._checkpoints.forget_momentum()
                if self._at is not None:
                    self._go_on_with(self._here._replace(momentum=None))
            self._guided, self._coming, self._aside = self._coming, None, NOTHING
            self._past = tuple(one for one in self._past if one[0] <= self.row)
        self._apply_tail()

    def _apply_tail(self) -> None:
        """Between two rows: let a tail that was ordered hold from here on, see `tailed`."""

    def remember(
        self, difference: Tensor | None = None, *, uncond: Tensor | None = None,
        momentum: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Keep what the guidance of the coming row leaves beside its output, before `advance`.

        Args:
            difference: (batch, …), cond - uncond of the raw outputs, where both were computed.
            uncond: (batch, …), the unconditional raw output, where `table.reads_uncond`.
            momentum: what `guided.combine` returned with the output.
        """
        self._aside = Aside(difference, uncond, momentum)

    def _take_aside(self, state: State) -> Aside:
        """What `remember` has kept of this row. Raises `RunError` where a part is missing."""
        aside, self._aside = self._aside, NOTHING
        guided = self.guided
        if (
            aside.uncond is None and self.table.reads_uncond
            and guided.guidance is not None and guided.scales[state.row] != 1.0
        ):  # fmt: skip
            raise RunError(
                f"row {state.row} of {self.table.solver!r} reads the unconditional output of a"
                " guided row: give run.remember(uncond=…) before run.advance(…)"
            )
        return aside

    def _with(self, aside: Aside, state: State) -> State:
        """The state after a row, with what its guidance leaves beside the output."""
        order, new = self.guided.order, aside.difference
        if new is not None and order:
            state = state._replace(differences=(new, *state.differences)[:order])
        if self._guided_at(state.row).method != self.guided.method:  # a tail's, which begins anew
            return state._replace(momentum=None)
        return state if aside.momentum is None else state._replace(momentum=aside.momentum)

    # -- prompts -----------------------------------------------------------------------------------
    def prompt(self, prompts: Any = None, *, negative: Any = None) -> None:
        """Let another prompt hold for every row that is computed from here on.

        In a hook or from any thread; another thread waits until the row that is computed is
        finished, and the pipeline has encoded the prompt. After a rewind it holds too.

        Args:
            prompts: a prompt, a mixture or a schedule, see `timonel.prompts`; None leaves it.
            negative: likewise the negative prompt.

        Raises:
            TimonelError: it is refused, and the run goes on as it was: the pipeline cannot take
                it, no row is to come, or the state forbids it, see `states`.
        """
        self.check("prompt")
        self.driver.prompt(self, prompts, negative)

    # -- the sample --------------------------------------------------------------------------------
    @property
    def latents(self) -> Tensor:
        """The sample (batch, …) at `level`.

        In a hook or while paused, change it in place or assign a tensor of its shape. Of a paused
        run another thread gets it once the row that is computed is finished.

        Raises:
            RunError: there is no sample yet; at an assignment also while another thread computes a
                row of a run that is not paused, and while the pipeline decodes.
        """
        with self._change:
            if self._paused:
                self._wait_for_row()
            return self._here.x

    @latents.setter
    def latents(self, value: Tensor) -> None:
        with self._change:
            self.check("latents")
            if self._paused:
                self._wait_for_row()
            elif self._busy():
                raise RunError(
                    "latents are refused from another thread while a row is computed: call"
                    " run.pause() first, or change them in a hook, hooks=[tm.edit(…)]"
                )
            self.replace(value)

    def replace(self, value: Tensor) -> None:
        """Go on with another sample. For the loop that drives the run; hooks assign `latents`.

        Args:
            value: (batch, …), of the sample's shape.

        Raises:
            ArgumentError: another shape.
        """
        with self._change:
            _fits(value, self._here.x)
            with self._unwatched():
                here = self._here
                if value is not here.x:
                    self._go_on_with(self._carried(here._replace(x=value), here.x))

    def see(self, value: Tensor) -> None:
        """Let the network's next output be one for `value`, and the step under way go on.

        What a later row reads of the sample it still reads as it was, where the solver keeps a
        base; `replace` carries the change into that too.

        Args:
            value: (batch, …), of the sample's shape.

        Raises:
            ArgumentError: another shape.
        """
        with self._change:
            _fits(value, self._here.x)
            self._unwatch()
            self._go_on_with(self._here._replace(x=value))

    def release(self) -> None:
        """Let go of the sample tensor that a caller holds: the run goes on with a copy."""
        with self._change, self._unwatched():
            self._go_on_with(self._here._replace(x=self._here.x.clone()))

    def _busy(self) -> bool:
        """Whether another thread computes a row or calls its hooks."""
        return elsewhere(self._flight) or elsewhere(self._hooking)

    def _wait_for_row(self) -> None:
        """Wait for the end of a row that another thread computes, and of its hooks."""
        ends = time.monotonic() + PATIENCE
        while self._busy():
            self._change.wait(TICK)
            if self._flight is None and time.monotonic() > ends:
                raise RunError(
                    f"a hook of another thread is at work for {PATIENCE:g} s: does it wait for this"
                    " thread? Change the latents in the hook, or let it return first"
                )

    # -- edits in place ----------------------------------------------------------------------------
    def _watch(self) -> None:
        """From here to `_unwatch` the sample may be edited in place."""
        if self.started and self._carries():
            self._watched = EditWatch.of(self._here.x)

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._go_on_with(self._edited())
            self._watched = None

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """The edits until here are carried on; the sample is another one afterwards."""
        watched = self._watched is not None
        self._unwatch()
        yield
        if watched:
            self._watch()

    def _edited(self) -> State:
        """The state, with an edit in place carried into its base."""
        here, watched = self._here, self._watched
        if watched is None or not watched.touched(here.x):
            return here
        return self._carried(here, watched.before)

    def _carries(self) -> bool:
        """Whether an edit of the sample has to reach the base too."""
        return self.row < self.table.nfe and self.program.rows[self.row].carry is not None

    def _carried(self, state: State, before: Tensor) -> State:
        """`state` with the edit of its x, which was `before`, carried into its base."""
        return self.program.edited(state, before) if self._carries() else state


def _fits(value: Tensor, sample: Tensor) -> None:
    """Raises `ArgumentError` for what cannot stand in the place of `sample`."""
    border.tensor("latents", value)
    if value.shape != sample.shape:
        raise ArgumentError(
            f"latents must keep their shape {tuple(sample.shape)}, got {tuple(value.shape)}"
        )


def alive(thread: int | None) -> bool:
    """Whether there is a thread of this number."""
    return thread is not None and thread in sys._current_frames()


def elsewhere(thread: int | None) -> bool:
    """Whether it is another thread than the caller's, and alive."""
    return thread != threading.get_ident() and alive(thread)
