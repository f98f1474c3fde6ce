"""Many runs, one network: every call serves as many runs as fit.

Each may be at another sampler, step and guidance: a row of a table is data, so runs can be at
different rows of different tables in one call (iteration-level batching).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.run import Run
from ..errors import ArgumentError, RunError
from .drive import advance, query
from .network import Answer, Network

TICK = 0.02  # seconds until paused runs are looked at again, where there is nothing else to do


@dataclass(eq=False)
class Job:
    """A run in a batch.

    Args:
        run: Not begun, or begun and not ended.
        start: The sample (n, …) that it begins with; None where it has begun.
        conditions: The slot of each of its samples' conditions; empty where the network has none.
        name: Whatever tells it from others.
        keeps_steps: Whether `denoised` gets the prediction of every step.
        priority: Those with a higher one go first.
        turn: The last one of the batch that it was part of.
        seconds: Its share of the calls that it was part of.
        evaluations: Network evaluations so far, conditional and unconditional ones.
        denoised: The predictions (n, …) of its steps.
        reason: Why it failed; empty where it did not.

    Raises:
        ArgumentError: Where it has no start, or one too many, or conditions of other samples.
    """

    run: Run
    start: Tensor | None = None
    conditions: Sequence[int] = ()
    name: str = ""
    keeps_steps: bool = True
    priority: int = 0
    turn: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    denoised: list[Tensor] = field(default_factory=list)
    reason: str = ""

    def __post_init__(self) -> None:
        if self.run.started == (self.start is not None):
            todo = "leave start= out" if self.run.started else "give start=, the noise (n, …)"
            raise ArgumentError(f"the run of a Job is {self.run.status}: {todo}")
        if self.conditions and len(self.conditions) != self.count:
            raise ArgumentError(
                f"{len(self.conditions)} conditions for {self.count} samples: give one slot each"
            )

    @property
    def count(self) -> int:
        """How many samples it has."""
        return len(self.run.latents if self.start is None else self.start)

    def cost(self, network: Network) -> int:
        """Network evaluations of its next row."""
        return self.count * (1 if self.run.forecasting else network.cost(self.run.scale))

    def fail(self, error: Exception, reason: str = "") -> None:
        """End with a reason."""
        self.reason = reason or f"{type(error).__name__}: {error}"
        self.run.fail(error)


class Turn(NamedTuple):
    """What one network call has done: `rows` that it served, jobs that have `ended` before it."""

    rows: int
    ended: list[Job]


class Batch:
    """Runs that share the calls of a network.

    Those that began first go first, or all take turns. A paused run holds nobody up. One that
    fails, or whose sample is no longer finite, ends with its `reason`; the others go on.

    Args:
        network: What evaluates their rows.
        limit: Network evaluations a call, at most; a single row may need more.
        jobs: The first ones; `admit` takes more at any time.
        fair: Whether a call serves those first that have waited longest for one.
    """

    def __init__(
        self, network: Network, limit: int, jobs: Iterable[Job] = (), fair: bool = False
    ) -> None:
        self.network, self.limit, self.fair = network, limit, fair
        self._turn = 0
        self._waiting, self._active = deque(jobs), list[Job]()
        self._news = threading.Event()

    def __len__(self) -> int:
        """How many jobs have not ended."""
        return len(self._active) + len(self._waiting)

    def admit(self, *jobs: Job) -> None:
        """Let more jobs take part, from the next call on; from any thread."""
        self._waiting.extend(jobs)
        self._news.set()

    def turns(self) -> Iterator[Turn]:
        """Go on until every job has ended, those that are admitted meanwhile too."""
        while len(self):
            self._news.clear()
            turn = self.turn()
            yield turn
            if turn == (0, []) and len(self):  # all are paused
                self._news.wait(TICK)

    @torch.no_grad()
    def turn(self) -> Turn:
        """One network call, and one row of every run that it serves."""
        chosen, ended = list[Job](), list[Job]()
        if self.fair:
            self._start_all(ended)
            self._active.sort(key=lambda job: (-job.priority, job.turn))
        if self._go_on(chosen, ended):
            self._let_in(chosen, ended)
        self._turn += 1
        for job in chosen:
            job.turn = self._turn
        self._advance(chosen)
        ended += [job for job in chosen if job.reason]
        self._active = [job for job in self._active if job not in ended]
        return Turn(len(chosen), ended)

    def _left(self, chosen: list[Job]) -> int:
        return self.limit - sum(job.cost(self.network) for job in chosen)

    def _go_on(self, chosen: list[Job], ended: list[Job]) -> bool:
        """Choose among the runs that have begun, and end some; whether there is room for others."""
        for job in self._active:
            goes = job.run.proceed(wait=False)
            if goes is False and self._over(job):
                ended.append(job)
            elif goes:
                if chosen and job.cost(self.network) > self._left(chosen):
                    return False
                chosen.append(job)
        return True

    def _let_in(self, chosen: list[Job], ended: list[Job]) -> None:
        """Begin runs that fit beside those that are chosen."""
        while self._waiting:
            if chosen and self._waiting[0].cost(self.network) > self._left(chosen):
                return
            job = self._waiting.popleft()
            self._active.append(job)
            if self._begin(job) and job.run.proceed(wait=False):
                chosen.append(job)
            elif job.reason:
                ended.append(job)

    def _start_all(self, ended: list[Job]) -> None:
        """Begin all runs that wait; the longest since its last call is then the newest."""
        while self._waiting:
            job = self._waiting.popleft()
            if self._begin(job):
                self._active.append(job)
            else:
                ended.append(job)

    def _begin(self, job: Job) -> bool:
        """Start a run that has not begun. False where its hooks or its start make it fail."""
        try:
            if job.start is not None:
                job.run.start(job.start)
        except Exception as error:
            job.fail(error)
        return not job.reason

    def _over(self, job: Job) -> bool:
        """End a run that has no row left, unless a hook goes back."""
        try:
            job.run.finish()
        except Exception as error:
            job.fail(error)
        if job.run.status == "failed":
            job.reason = job.reason or job.run.reason or "its run has failed"
        return job.run.status != "running"

    def _advance(self, jobs: list[Job]) -> None:
        """One network call for all of them. Where it fails for several, each is tried alone."""
        if not jobs:
            return
        began = time.perf_counter()
        try:
            queries = [query(job.run, job.conditions) for job in jobs]
            answers = self.network.evaluate(queries)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].fail(error)
                return
            for job in jobs:
                self._advance([job])
            return
        spent, costs = time.perf_counter() - began, [q.cost(self.network) for q in queries]
        for job, answer, cost in zip(jobs, answers, costs, strict=True):
            job.seconds += spent * cost / sum(costs)
            job.evaluations += cost
            began = time.perf_counter()
            _step(job, answer)
            job.seconds += time.perf_counter() - began


def _step(job: Job, answer: Answer) -> None:
    """Advance one run by its row."""
    run, row = job.run, job.run.row
    try:
        advance(run, answer)
    except Exception as error:
        job.fail(error)
        return
    if not bool(torch.isfinite(run.latents).all()):
        reason = f"the latents are not finite after row {row} of {run.table.nfe}"
        job.fail(RunError(reason), reason)
    elif job.keeps_steps and run.table.ends_step(row):
        job.denoised.append(run.denoised)
