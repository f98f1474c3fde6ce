"""The list that `set_timesteps` has chosen: its parts, and the rows of a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...core import solvers
from ...core.grids import Grid
from ...core.process import Process
from ...core.run import Run
from ...core.sampler import Sampler
from ...core.table import Table
from ...errors import GridError
from . import parts
from .times import equal

ROUNDED = 2.0**-7  # relative, of a time in bfloat16
Compile = Callable[[Sampler, Grid, int], Table]


class Listing(NamedTuple):
    """The levels of a call, and a row for each network call.

    `table`: what the sampler makes of the grid. `times`: of all rows, as the scheduler shows them.
    """

    sampler: Sampler
    grid: Grid
    table: Table
    times: Tensor

    @classmethod
    def of(cls, sampler: Sampler, grid: Grid, table: Table, process: Process) -> Listing:
        """All rows of `table`; whole numbers where a model counts its training times."""
        times = table.time if process.lists_end else table.time[:-1]
        counted = process.kind == "vp" and bool((times == times.round()).all())
        return cls(sampler, grid, table, times.to(torch.int64 if counted else torch.float32))

    def loop_begin(self, row: int, mixed: bool) -> int:
        """The row where a loop from `row` on begins.

        Args:
            row: an entry of the list.
            mixed: the sample was mixed with noise at this level; else the step of `row` is begun.
        """
        return (
            row if mixed else self.table.first_row(self.table.step_at(min(row, self.table.nfe - 1)))
        )

    def part(self, rows: tuple[int, int], start: int, stop: int, make: Compile) -> Table:
        """The table of the rows from `rows[0]` up to `rows[1]`.

        Args:
            rows: whole steps, of which the first may begin inside.
            start: the first entry of the part.
            stop: the entry after the last.
            make: compiles a sampler on a grid after so many steps.

        Returns:
            The table, with the rows of the first step that are left.

        Raises:
            ArgumentError: the sampler is made for all of the list.
            GridError: no step is left.
        """
        sampler, grid, table, _ = self
        if rows[0] >= rows[1]:
            raise GridError(
                f"entries {start} to {stop} of the {table.nfe} timesteps hold no whole step of"
                f" {table.solver!r}, which calls the network more than once a step: end the part"
                " later (a larger denoising_end), take more steps, or a sampler of one call a"
                " step, e.g. 'dpmpp_2m'"
            )
        if rows == (0, table.nfe):
            return table
        parts.whole(sampler, table.step, start, stop)
        first, last = (table.step_at(row) for row in rows)
        if rows[0] != table.first_row(first):
            return replace(make(sampler, parts.between(grid, table, *rows), first), first=rows[0])
        return solvers.part(table, grid, first, last, partial(make, sampler))

    def rows(self, time: float, following: int | None, rounds: bool = True) -> list[int]:
        """The rows that have this time, or the nearest to it, where it was rounded on its way.

        `following`: the next row of a run that has begun; a rounded time is then that row's or
        none's. `rounds`: whether it may have lost digits, and not only what int(t) takes off a time
        that is no whole number.
        """
        times = self.times[: self.table.nfe].tolist()
        exact = [row for row, listed in enumerate(times) if equal(listed, time)]
        if exact:
            return exact
        near = min(abs(listed - time) for listed in times)
        if near > self._slack(time, rounds):
            return []
        rows = [row for row, listed in enumerate(times) if abs(listed - time) == near]
        return rows if following is None or following in rows else []

    def _slack(self, time: float, rounds: bool) -> float:
        """How far a listed time may be from one that was rounded on its way."""
        if not rounds and not self.times.is_floating_point():
            return 0.0
        whole = 1.0 if self.grid.process.kind == "vp" else 0.0  # int(t)
        return max(whole, ROUNDED * abs(time) if rounds else 0.0)

    def refusal(self, run: Run, first: int, time: float, rows: list[int]) -> str:
        """Why a step cannot be made now.

        Args:
            run: the present run.
            first: the row where it begins.
            time: of the step.
            rows: those of that time.
        """
        at = "the run is complete"
        if run.row < run.table.nfe:
            at = f"the sample is at time {run.level.time:g}, after {run.step} of {run.steps} steps"
        if not rows:
            return f"step was given time {time:g}, which is not in scheduler.timesteps; {at}"
        if not run.started:
            return (
                f"step was given time {time:g}, at which no step begins: it is a call inside a step"
                f" of {run.table.solver!r}; begin at one of scheduler.timesteps[k *"
                " scheduler.order]"
            )
        if first + run.row - 1 in rows:
            return (
                f"step was called again with time {time:g}, whose step is made: {at}. A scheduler"
                " follows one sample: put two into one batch, or step the second with"
                " copy.deepcopy(scheduler); the denoised prediction is in"
                " step(…).pred_original_sample"
            )
        return (
            f"step was given time {time:g}, and {at}: steps cannot be left out or made in another"
            " order. Choose the levels with set_timesteps(timesteps=[…]), and call it again before"
            " another loop"
        )
