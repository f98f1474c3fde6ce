"""A pipeline's loop as the driver of a run: its switch, its guidance, its caches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..core.driver import Driver
from ..core.guidance import Guidance
from ..core.noise import Noise, source
from ..core.run import Run
from ..core.table import Table
from ..errors import ArgumentError, RunError
from .caller import everywhere, pipeline_of
from .guidance.gate import Gate, networks
from .guidance.guider import memories
from .guidance.prompts import check_guidance
from .inspect_source import counts, indexes_by_time
from .network import caches
from .network.busy import Claim
from .session import Session

OVER = "the loop of the call is over: no row is to come for another prompt"


class Task:
    """An order from another thread that the pipeline's own thread has to carry out.

    Args:
        order: carries it out.
    """

    def __init__(self, order: Callable[[], None]) -> None:
        self.order, self.done = order, threading.Event()
        self.error: BaseException | None = None

    def serve(self) -> None:
        """Carry it out, and let the thread that waits for it go on."""
        try:
            self.order()
        except Exception as error:
            self.error = error
        finally:
            self.done.set()

    def refuse(self) -> None:
        """Let the thread that waits for it go on, with an error."""
        self.error = RunError(OVER)
        self.done.set()


class Stepped(Driver):
    """A loop over the list of a scheduler, whose session it is."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def turn(self, run: Run, table: Table) -> None:
        """Check that the loop can go on with the rows of another table.

        Raises:
            RunError: it cannot.
        """
        session = self.session
        name = type(session.scheduler).__name__
        if not session.scheduler.turns:
            raise RunError(
                f"{name} steps as its own class does, at the times of its list: take a tail with"
                " timonel.Scheduler, or steer the pipeline with timonel.Helm(pipe)"
            )
        if session.copied or session.leader is not None:
            raise RunError(
                "this pipeline steps a copy of its scheduler too, so its levels stay: begin a new"
                " call with another sampler"
            )
        if run is session.run and run.started and not session.stepping:
            raise RunError(
                f"the loop over this {name} is over a list of its own, which stays as it is: loop"
                " over scheduler.timesteps"
            )

    def source(self, kind: str, table: Table, sample: Tensor) -> Noise | None:
        """The noise of the call's seeds."""
        seeds = self.session.request.seeds
        return None if seeds is None else source(kind, seeds, table).spread(sample)


class Piped(Stepped):
    """The loop of `pipe`; `gate`, `claim` and what changes its prompt where a helm steers it."""

    outer, patience = True, 0.2

    def __init__(
        self, session: Session, pipe: Any, gate: Gate | None = None, claim: Claim | None = None,
        change: Callable[[Run, Any, Any], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(session)
        self.pipe, self.gate, self.claim = pipe, gate, claim
        self._change = change
        self._tasks: list[Task] = []
        self._open = threading.Lock()
        self._over = change is None
        self.modules: list[Any] = [*networks(pipe), *memories(pipe)]
        if not hasattr(type(pipe), "interrupt") and getattr(pipe, "_interrupt", False):
            # others switch it off where their call begins; here it is of an earlier call
            pipe._interrupt = False

    def interrupted(self) -> bool:
        """Whether `pipe._interrupt` was set. Some loops, such as SVD's, never look at it."""
        if not getattr(self.pipe, "_interrupt", False):
            return False
        # or a loop that looks skips the turn that hands the result over
        self.pipe._interrupt = False
        return True

    def holds(self) -> bool:
        """Whether the pipeline is at work, in any thread."""
        if self.claim is not None:
            return self.claim.thread is not None
        return any(pipe is self.pipe for _, pipe in everywhere())

    def admit(self, run: Run, guidance: Guidance, table: Table) -> None:
        """Check that the coming rows can be guided so.

        Raises:
            ArgumentError: the pipeline cannot, or no helm steers it.
        """
        if self.gate is None:
            raise ArgumentError(
                "a scheduler alone leaves guidance to the pipeline: steer it with"
                " timonel.Helm(pipe), or change the pipeline's own scale"
            )
        self.gate.admit(run, guidance, table)
        if self.gate.prompts is not None:
            check_guidance(self.gate.prompts.plan, guidance)

    def prompt(self, run: Run, prompts: Any, negative: Any) -> None:
        """Let other prompts hold for the coming rows of a run.

        The pipeline encodes them in its own thread, for which others wait.

        Raises:
            TimonelError: they are refused, and the run goes on as it was.
        """
        if self._change is None or self.claim is None:
            raise RunError(
                "a scheduler alone leaves the prompt to the pipeline: steer it with"
                " timonel.Helm(pipe)"
            )
        order = partial(self._change, run, prompts, negative)
        if self.claim.thread == threading.get_ident():
            return order()
        task = Task(order)
        with self._open:
            if self._over:
                raise RunError(OVER)
            self._tasks.append(task)
        with run.holding():
            run.holding().notify_all()
        task.done.wait()
        if task.error is not None:
            raise task.error

    def pending(self) -> bool:
        """Whether another thread waits for a task, and this is the pipeline's thread."""
        return bool(self._tasks) and self._is_mine()

    def serve(self) -> None:
        """Carry out the tasks that other threads wait for."""
        while self._tasks:
            self._tasks.pop(0).serve()

    def close(self) -> None:
        """The call is over: tasks are refused from here on."""
        with self._open:
            self._over = True
        while self._tasks:
            self._tasks.pop(0).refuse()

    def _is_mine(self) -> bool:
        return self.claim is not None and self.claim.thread == threading.get_ident()

    def turn(self, run: Run, table: Table) -> None:
        """Check that the pipeline's loop can go on with the rows of another table.

        Raises:
            RunError: it counts its turns, and no helm calls it again.
            ArgumentError: it reads its scheduler at whole times, and these are none, or its prompts
                do not fit the new steps.
        """
        super().turn(run, table)
        name = type(self.pipe).__name__
        self.fits(table)
        if counts(self.pipe) and not self.session.request.recall:
            raise RunError(
                f"the loop of {name} counts its turns, so it has to be called again for other"
                " levels: steer it with timonel.Helm(pipe)"
            )
        before = self.session.before
        if before is not None and before.started and counts(self.pipe):
            raise RunError(
                f"{name} makes several runs in a call and counts their turns, so the levels of the"
                " later ones stay: begin a new call with another sampler"
            )
        if indexes_by_time(self.pipe) and _whole(run.table) and not _whole(table):
            raise ArgumentError(
                f"{name} reads its scheduler at whole times, and these levels have others: take"
                " grid='trailing' or 'leading' for the tail"
            )

    def fits(self, table: Table) -> None:
        """Raises `ArgumentError` where the prompts of the call do not fit the steps of a table."""
        plan = self.session.request.prompts
        if self.gate is not None and self.gate.prompts is not None:
            plan = self.gate.prompts.plan
        if plan is not None:
            plan.rows(table)

    def remembered(self) -> Any:
        """What the pipeline's networks keep in caches of diffusers'; None: nothing."""
        return caches.take(self.modules)

    def recall(self, memory: Any) -> None:
        """Give the networks back what they kept."""
        caches.put(self.modules, memory)

    def looping(self, on: bool) -> None:
        """The rows begin or are over; outside them the pipeline has its autoencoders for itself."""
        if self.claim is not None and self.claim.has_turns is on:
            self.claim.looping(on)


def _whole(table: Table) -> bool:
    """Whether all times of a table are whole."""
    times = table.time[:-1]
    return bool((times == times.round()).all())


def calling(scheduler: Any) -> Driver:
    """The pipeline that calls a method of `scheduler` now, as a driver; a plain one without it."""
    pipe = pipeline_of(scheduler)
    session = scheduler.session
    return Stepped(session) if pipe is None else Piped(session, pipe)
