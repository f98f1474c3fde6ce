"""Orders to a run, from any thread: they act at the next row, or are refused as `states.ORDERS`
says.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..errors import ArgumentError, RunError, instance, shown, whole
from . import border, states
from .driver import Driver
from .kernel import combine

if TYPE_CHECKING:
    from .program import Program, State
    from .table import Table

# seconds that an edit from another thread waits for a hook, which may be waiting for that thread
PATIENCE = 60.0
TICK = 0.1  # seconds after which a thread that waits asks whether the other one is still alive


class Border(NamedTuple):
    """Where a run stands between two rows, when the hooks of the first are through."""

    state: State
    last: tuple[Tensor, Tensor, int] | None
    clean: Tensor | None
    called: int | None
    memory: Any


class Controlled:
    """The part of a `Run` that takes orders. It keeps where its loop is, and who computes, hooks or
    edits.
    """

    table: Table
    program: Program
    driver: Driver
    _change: threading.Condition
    _state: State | None
    _start: State | None

    def _rest(self) -> None:
        """Nobody drives the run, and nobody has given it an order."""
        self._status = "new"
        self._paused, self._stopping, self._finished = False, False, False
        self._goto: int | None = None
        self._until = 0  # the step up to which a run that is paused goes, after a rewind
        self._loop: int | None = None  # the thread whose loop it is in
        self._flight: int | None = None  # the thread that computes a row
        self._hooking: int | None = None  # the thread that calls the hooks of a row
        self._border: Border | None = None  # that of before the row whose hooks are called
        self._waiting = False  # the loop waits for `resume`
        self._watched: tuple[Tensor, int, Tensor] | None = (
            None  # x, its version and a copy, while edits are possible
        )
        self.reason = ""  # why the run was stopped

    if TYPE_CHECKING:

        @property
        def row(self) -> int: ...

        @property
        def step(self) -> int: ...

        @property
        def started(self) -> bool: ...

        @property
        def _here(self) -> State: ...

    # -- the state ---------------------------------------------------------------------------
    @property
    def status(self) -> str:
        """One of new, running, paused, stopped, done, failed."""
        waits = self._paused and (self._status == "running" or self._waiting)
        return "paused" if waits else self._status

    @property
    def phase(self) -> str:
        """The state that `states.ORDERS` is about: `status`, or finishing where a pipeline is past
        its loop.
        """
        with self._change:
            if self._status in ("new", "running"):
                return self.status
            if self._status != "failed" and (alive(self._loop) or self._hooking is not None):
                return (
                    "paused" if self._paused else "running"
                )  # its last row is computed, and it can still go back
            # where a hook raised, its loop has yet to end
            return "finishing" if elsewhere(self._loop) or self.driver.holds() else self._status

    @property
    def stopping(self) -> bool:
        """Whether the run ends at the next row."""
        return self._stopping

    def check(self, order: str) -> None:
        """Raises `RunError` where the present state refuses `order`; see `states`."""
        states.check(order, self.phase)

    def holding(self) -> threading.Condition:
        """What keeps the run in its state for the time of a `with` block. Not for longer than an
        order takes.
        """
        return self._change

    # -- orders ------------------------------------------------------------------------------
    def stop(self, reason: str = "") -> None:
        """End at the next row; `result` is then the newest denoised prediction. Raises `RunError`
        after the end.
        """
        instance("reason", reason, str, "a sentence")
        with self._change:
            self.check("stop")
            self._stop(reason)

    def pause(self) -> None:
        """Wait before the next row until `resume` or `stop`; after a rewind, once its step is
        reached again.

        The row that is computed is finished first. Raises `RunError` where the run has ended.
        """
        with self._change:
            self.check("pause")
            self._paused = True

    def resume(self) -> None:
        """Go on after `pause`; after a stop or a failure, the loop that drives the run can be
        entered again.

        Raises `RunError` for a run that is done, and while its pipeline decodes.
        """
        with self._change:
            self.check("resume")
            self._go_on()

    def rewind(self, step: int) -> None:
        """Go back so that `step` steps are completed, at the next row.

        Continues from the kept state (`keep=`) at or nearest before `step`, else from the start;
        steps in between are computed again, with the same noise and the same hooks, while the run
        is paused too. One that has ended goes on when its loop is entered again. Raises `RunError`
        for a step the run has not reached, and while its pipeline decodes.
        """
        with self._change:
            self.check("rewind")
            try:
                step = whole("step", step, 0, self.step)
            except ArgumentError:
                raise RunError(
                    f"cannot rewind to step {shown(step)}: the run has completed {self.step} of"
                    f" {self.table.steps} steps"
                ) from None
            self._goto, self._until, self._stopping = step, step, False
            if self._status in ("done", "stopped", "failed"):
                self._status, self._finished = "running", False
            self._change.notify_all()

    def _stop(self, reason: str) -> None:
        with self._change:
            self._stopping, self.reason = True, reason or self.reason
            self._change.notify_all()

    def _go_on(self) -> None:
        """Take back a pause, a stop or a failure."""
        with self._change:
            self._paused = self._stopping = False
            if self._status in ("running", "stopped", "failed") and self.started:
                ended = self.row == self.table.nfe
                self._status, self._finished, self.reason = (
                    "done" if ended else "running",
                    False,
                    "",
                )
            self._change.notify_all()

    # -- the sample --------------------------------------------------------------------------
    @property
    def latents(self) -> Tensor:
        """The sample at `level`. In a hook or while paused, change it in place or assign a tensor
        of its shape.

        Of a paused run another thread gets it once the row that is computed is finished. Raises
        `RunError` before there is a sample; an assignment also from another thread while a row of a
        run that is not paused is computed, and while its pipeline decodes.
        """
        with self._change:
            if self._paused:
                self._still()
            return self._here.x

    @latents.setter
    def latents(self, value: Tensor) -> None:
        with self._change:
            self.check("latents")
            if self._paused:
                self._still()
            elif self._busy():
                raise RunError(
                    "latents are refused from another thread while a row is computed: call"
                    " run.pause() first, or change them in a hook, hooks=[tm.edit(…)]"
                )
            self.replace(value)

    def replace(self, value: Tensor) -> None:
        """Go on with `value` in the place of the sample, as the loop that drives the run says. See
        `latents`.
        """
        with self._change:
            here = self._here
            _fits(value, here.x)
            watched = self._watched is not None
            self._unwatch()
            if value is not here.x:
                self._state = self._edited(here.x, self._here._replace(x=value))
            if watched:
                self._watch()

    def see(self, value: Tensor) -> None:
        """Let the network's next output be one for `value` in the place of the sample, and the step
        under way go on.

        What a later row reads of the sample it still reads as it was, where the solver keeps a
        base; `replace` carries the change into that too. Raises `ArgumentError` for another shape.
        """
        with self._change:
            _fits(value, self._here.x)
            self._unwatch()
            self._state = self._here._replace(x=value)

    def release(self) -> None:
        """Let go of the sample tensor that was handed out: the run continues with a copy of its
        own.
        """
        with self._change:
            watched = self._watched is not None
            self._unwatch()
            self._state = self._here._replace(x=self._here.x.clone())
            if watched:
                self._watch()

    def _busy(self) -> bool:
        """Whether another thread computes a row or calls its hooks."""
        return elsewhere(self._flight) or elsewhere(self._hooking)

    def _still(self) -> None:
        """Wait for the end of a row that another thread computes, and of its hooks."""
        ends = time.monotonic() + PATIENCE
        while self._busy():
            self._change.wait(TICK)
            if self._flight is None and time.monotonic() > ends:
                raise RunError(
                    f"a hook of another thread is at work for {PATIENCE:g} s: does it wait for this"
                    " thread? Change the latents in the hook, or let it return first"
                )

    # An edit of x must reach the base of solvers that correct it (UniPC), or the corrector undoes
    # it.
    def _carry(self) -> float | None:
        return (
            self.program.rows[self.row].carry
            if self.started and self.row < self.table.nfe
            else None
        )

    def _watch(self) -> None:
        """From here to `_unwatch` x may be edited in place; remember it where that has to be
        carried on.
        """
        if self._carry() is not None:
            x = self._here.x
            self._watched = (x, -1 if x.is_inference() else x._version, x.clone())

    def _unwatch(self) -> None:
        if self._watched is None:
            return
        x, version, before = self._watched
        self._watched = None
        if self._here.x is x and (version < 0 or x._version != version):
            self._state = self._edited(before, self._here)

    def _edited(self, before: Tensor, state: State) -> State:
        """`state` with the edit x - before carried into its base."""
        carry = self._carry()
        if carry is None or state.base is None:
            return state
        return state._replace(
            base=combine([(1.0, state.base), (carry, state.x), (-carry, before)], state.x.dtype)
        )


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
