"""Which row a step means where its time is not that of the run's next row.

A step of diffusers' DDIM and DDPM is a function of its time and its sample, and nothing is
remembered between two of them (`by_time`). So they step from any training time, in any order and as
often as wanted, as inversion, null-text optimisation and score distillation do. The other classes
remember predictions, or a place in their list: there a step that is not the next one is a mistake,
unless a journey begins with it.

A journey that begins at a time which is not in the list has the level of that time first. From
there the classes that count back training times go on by their stride, T // N, as diffusers' do;
the others by the cleaner levels of the list, with the order that the predictions allow.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.grids import Grid
from ..core.process import Level, double
from ..core.run import Run
from ..core.sampler import Sampler
from ..core.table import Table
from ..core.tree import TreeNoise
from ..errors import ArgumentError, GridError, RunError
from ..pipelines.classes.rule import NUDGE, SAME, joined
from ..pipelines.session import Loop
from ..pipelines.sockets.listing import Listing
from ..pipelines.sockets.times import equal, number
from .coordinates import Coordinates


class Times(Coordinates):
    """How the time of a step is read; `Compat` is one of these."""

    _astray = False  # the run is not one of the list

    def _begin(self, table: Table, rows: tuple[int, int]) -> None:
        super()._begin(table, rows)
        self._astray = False

    # -- which row ---------------------------------------------------------------------------------
    def _rows(self, timestep: Any) -> list[int]:
        """The rows of the list that have this time.

        A time that is not listed is a level of its own where a journey begins with it, so only
        those that were rounded to half precision are taken for a listed one there. During a run of
        several predictions it is the next row's.
        """
        half = isinstance(timestep, Tensor) and timestep.dtype in (torch.float16, torch.bfloat16)
        here = self.session.under_way and not self._astray
        rounds = half or (here and not self.row.by_time)
        return self._listed.rows(number(timestep), self.session.row if here else None, rounds)

    def _is_next(self, timestep: Any, rows: list[int]) -> bool:
        run = self.run
        if not self._astray:
            return super()._is_next(timestep, rows)
        return run.row < run.table.nfe and equal(run.level.time, number(timestep))

    def _elsewhere(self, timestep: Any, rows: list[int], begins: bool) -> Run:
        free, run = self._steps_freely(), self.run
        if not rows and (free or not self.session.under_way):
            self._stray(number(timestep))
        elif rows and free and run.started:
            # one step, but the rest of the list where a loop has begun or goes on
            row, total = rows[0], self._listed.table.nfe
            goes_on = run.status == "done" and row == self.session.rows[0] + run.table.nfe
            self.cover(row, total if row == 0 or goes_on else row + 1)
        elif run.status == "done" and self._follows(run, rows):
            self._extend(self._listed.table.nfe)
        else:
            return super()._elsewhere(timestep, rows, begins)
        return self.run

    # -- a loop in several parts -------------------------------------------------------------------
    def loop_begin(self, row: int) -> int:
        """The row where a loop over the list from `row` on begins."""
        run = self.current
        inside = run is not None and run.started and not self._astray and self.session.row == row
        return row if inside else super().loop_begin(row)

    def cover(self, start: int, stop: int) -> None:
        """Cover a part of the list, and keep what a loop over the rest may read."""
        super().cover(start, stop)
        total = self._listed.table.nfe
        begins, end = self.session.rows
        if end < total and self._listed.table.remembers(self._listed.table.step[end]):
            longer = self._listed.part((begins, total), start, total, self._compile)
            self.run.keep_for(longer)

    def join(self, loop: Loop) -> None:
        if loop.steps or loop.shown is None or loop.run is not None or not self._continues(loop):
            super().join(loop)
            return
        self._extend(loop.stop)
        loop.run = self.run

    def _continues(self, loop: Loop) -> bool:
        """Whether a loop over a part of the list begins where the run has come to.

        As in diffusers, a step then has the predictions that the loop before it has made.
        """
        run = self.session.run
        return (
            run is not None
            and run.started
            and loop.row == loop.start
            and self._follows(run, [loop.row])
        )

    def _follows(self, run: Run, rows: list[int]) -> bool:
        """Whether the row after the run's rows is one of `rows`, and the run may go on with it."""
        if not run.row or run.stopping or self._astray or self.session.request.hooks:
            return False
        return self.session.row in rows

    def _extend(self, stop: int) -> None:
        """Let the run go on up to row `stop` of the list."""
        run, begins = self.run, self.session.rows[0]
        snapshot = run.snapshot()
        noise, session = run.noise, self.session
        self.cover(begins, stop)
        if session.request.seeds is None and session.noise is None:
            table = self.run.table
            self.run.draw_from(noise.over(table) if isinstance(noise, TreeNoise) else noise)
        self.run.restore(*snapshot)

    def _steps_freely(self) -> bool:
        """Whether a step may be any: nothing is remembered, and no loop or helm follows the run."""
        return self.row.by_time and self.session.gate is None and not self._driven()

    def _driven(self) -> bool:
        """Whether a loop over the list turns by the run."""
        return self.session.run is not None and bool(self.session.stepping)

    def _beside(self, timestep: Any) -> bool:
        """Whether a step is another one than that of the loop that turns, and may be."""
        if (
            not self.row.by_time
            or self.session.gate is not None
            or self.session.idle
            or not self._driven()
        ):
            return False
        loop = self.loop_of(timestep)
        return not self._is_next(timestep, self._rows(timestep) if loop is None else [loop.row])

    def _twin(self, timestep: Any) -> Times:
        """A scheduler whose run begins at `timestep`, for one step of another sample."""
        twin = copy.copy(self)
        loop = self.loop_of(timestep)
        rows = self._rows(timestep) if loop is None else [loop.row]
        if rows:
            twin.cover(rows[0], rows[0] + 1)
        else:
            twin._stray(number(timestep))
        return twin

    def _use_eta(self, eta: float) -> None:
        """Compile again for another eta; pipelines give theirs with the first step."""
        now = self.settled.options.get("eta")
        if now == eta:
            return
        if self.session.under_way and not self._steps_freely():
            raise ArgumentError(
                f"eta={eta} differs from eta={now} of the first step; keep it during a run"
            )
        sampler, grid, _, times = self._listed
        sampler = replace(sampler, options={**sampler.options, "eta": eta})
        self.session.listing = Listing(sampler, grid, self._compile(sampler, grid), times)
        if self._astray or self.session.under_way:
            self.begin_anew()
        else:
            self.cover(*self.session.rows)

    # -- journeys that are not on the list ---------------------------------------------------------
    def _stray(self, time: float) -> None:
        """A fresh run from a time that is not in the list."""
        listed = self._listed
        grid = self._journey(time)
        cleaner = (listed.table.sigma[:-1] / listed.table.alpha[:-1]) < grid[0].ratio
        place = int(cleaner.nonzero()[0]) if bool(cleaner.any()) else listed.table.nfe
        table = self._compile(listed.sampler, grid, alone=True)
        self._begin(table, (place - 1, listed.table.nfe))
        self._astray = True

    def _aimed(self, time: float, target: float) -> Times:
        """The scheduler for a step from `time` that ends at `target`; below 0 is the list's end.

        This one where its list goes there anyhow; else another one whose run is that step.
        """
        listed, table = self._listed, self._listed.table
        rows = range(table.nfe) if self.session.gate is not None else listed.rows(time, None, False)
        for row in rows:
            ends = row + 1 == table.nfe and target < 0
            if ends or self.session.gate is not None or equal(float(table.time[row + 1]), target):
                return self
        if target >= time:
            raise ArgumentError(f"a step from time {time:g} ends below it, not at {target:g}")
        process, twin = listed.grid.process, copy.copy(self)
        start = process.at_time(double([time]))
        end = process.at_time(double([target])) if target >= 0 else process.clean()
        grid = Grid(process, *joined(start, end), listed.grid.name)
        twin._begin(twin._compile(listed.sampler, grid, alone=True), self.session.rows)
        twin._astray = True
        return twin

    if TYPE_CHECKING:

        def _compile(
            self, sampler: Sampler, grid: Grid, before: int = 0, alone: bool = False
        ) -> Table: ...

    def _journey(self, time: float) -> Grid:
        """The levels from a training time on. Raises `RunError` where none can begin there."""
        listed = self._listed.grid
        if self.row.calls > 1:
            raise RunError(
                f"step was given time {time:g}, which is not in scheduler.timesteps, and"
                f" {type(self).__name__} calls the network twice a step: choose the levels with"
                " set_timesteps(timesteps=[…])"
            )
        try:
            first = listed.process.at_time(double([time]))
        except GridError as error:
            raise RunError(
                f"step was given time {time:g}, which this model does not have: {error}"
            ) from error
        end = Level(listed.alpha[-1:], listed.sigma[-1:], listed.time[-1:])
        rest = (
            self._counted(time)
            if self.row.strides
            else Level(listed.alpha[:-1], listed.sigma[:-1], listed.time[:-1])
        )
        between = (rest.lam > first.lam + SAME) & (rest.lam <= end.lam + SAME)
        last = Level(*(torch.cat([a, b[between]])[-1:] for a, b in zip(first, rest, strict=True)))
        if bool(end.lam <= last.lam + SAME):  # a step that moves nothing
            end = listed.process.at_lam(last.lam + NUDGE)
        alpha, sigma, times = (
            torch.cat([a, b[between], c]) for a, b, c in zip(first, rest, end, strict=True)
        )
        return Grid(listed.process, alpha, sigma, times, listed.name)

    def _counted(self, time: float) -> Level:
        """The levels of the training times that are counted back from `time`."""
        stride = max(
            1, self.process.train_steps // (self.num_inference_steps or self.process.train_steps)
        )
        back = torch.arange(1, int(time // stride) + 1, dtype=torch.float64)
        return self._listed.grid.process.at_time(time - stride * back)
