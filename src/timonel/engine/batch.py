"""Many runs, one network: every call serves as many runs as fit, whatever sampler, step and
guidance each is at.

A row of a table is data, so runs of different samplers can be at different rows of different tables
in one batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.run import Run

if TYPE_CHECKING:
    from ..pipelines.capture import Captured

Finished = Callable[["Job"], None]


@dataclass(eq=False)
class Job:
    """One run in a fleet. `sample`: whose conditions it has. `seconds`: its share of the calls it
    was part of.
    """

    run: Run
    sample: int
    name: str = ""
    told: bool = True  # whether the denoised prediction of every step is kept
    seconds: float = 0.0
    halves: int = 0  # network evaluations, conditional and unconditional ones
    story: list[Tensor] = field(default_factory=list)
    reason: str = ""  # why it failed

    def cost(self, captured: Captured) -> int:
        """Network evaluations of its next row."""
        return 1 if self.run.forecasting else captured.cost(self.run.scale)


@torch.no_grad()
def drive(
    jobs: Iterable[Job], captured: Captured, batch: int, finished: Finished,
    advanced: Callable[[int], None] = lambda rows: None,
) -> None:  # fmt: skip
    """Drive every job to its end, at most `batch` network evaluations a call; the first jobs end
    first.

    A job that fails, or whose sample is no longer finite, ends with its `reason`; the others go on.
    `advanced`: is called after every network call with the number of rows that it served.
    """
    waiting, active = deque(jobs), list[Job]()
    while active or waiting:
        chosen = _choose(active, waiting, captured, batch)
        _advance(chosen, captured)
        advanced(len(chosen))
        for job in chosen:
            if job.reason or not job.run.proceed():
                job.run.finish()
                active.remove(job)
                finished(job)


def _choose(active: list[Job], waiting: deque[Job], captured: Captured, batch: int) -> list[Job]:
    """The jobs of the next call: those that began first, then new ones."""
    chosen, cost = list[Job](), 0
    for job in active:
        if chosen and cost + job.cost(captured) > batch:
            return chosen
        chosen.append(job)
        cost += job.cost(captured)
    while waiting and (not chosen or cost + waiting[0].cost(captured) <= batch):
        job = waiting.popleft()
        job.run.start(captured.start[job.sample : job.sample + 1])
        active.append(job)
        chosen.append(job)
        cost += job.cost(captured)
    return chosen


def _advance(jobs: list[Job], captured: Captured) -> None:
    """One network call for all of `jobs`, and one row of each. Where it fails for several, each is
    tried alone.
    """
    began = time.perf_counter()
    try:
        raws = _call(jobs, captured)
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].reason = f"{type(error).__name__}: {error}"
            return
        for job in jobs:
            _advance([job], captured)
        return
    costs = [job.cost(captured) for job in jobs]
    spent = time.perf_counter() - began
    for job, raw, cost in zip(jobs, torch.split(raws, 1), costs, strict=True):
        job.seconds += spent * cost / sum(costs)
        job.halves += cost
        began = time.perf_counter()
        _step(job, raw)
        job.seconds += time.perf_counter() - began


def _call(jobs: list[Job], captured: Captured) -> Tensor:
    runs = [job.run for job in jobs]
    x = torch.cat([run.latents for run in runs])
    times = torch.tensor([run.level.time for run in runs], dtype=torch.float64)
    rescales = [0.0 if run.guidance is None else run.guidance.rescale for run in runs]
    asked = x, times, [job.sample for job in jobs], [run.scale for run in runs], rescales
    if not any(run.remembers for run in runs):
        return captured(*asked)
    forecasts = [None if (away := run.forecast) is None else away[0] for run in runs]
    raws, differences = captured.guided(*asked, forecasts)
    for run, difference in zip(runs, differences, strict=True):
        if difference is not None and run.remembers:
            run.remember(difference[None])
    return raws


def _step(job: Job, raw: Tensor) -> None:
    """Advance one run by its row."""
    row = job.run.row
    try:
        job.run.advance(raw)
    except Exception as error:
        job.reason = f"{type(error).__name__}: {error}"
        return
    if not bool(torch.isfinite(job.run.latents).all()):
        job.reason = f"the latents are not finite after row {row} of {job.run.table.nfe}"
    elif job.told and job.run.table.ends_step(row):
        job.story.append(job.run.denoised)
