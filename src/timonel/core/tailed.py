"""The order `run.tail`: another sampler, other steps or levels from here on.

The table of the run is another one then, see `tail.py`; what is behind it stays as it was, so the
whole journey is computed again after a rewind, and is saved and branched as any other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ArgumentError, RunError, instance
from . import grids, tail
from . import noise as noises
from .checkpoints import Point
from .control import Controlled
from .guidance import CompiledGuidance, Guidance, assigned
from .noise import BrownianNoise, Noise, Seeded
from .process import Process
from .program import Program
from .sampler import Sampler
from .table import Table
from .tail_levels import Turn

#: guidance that acted up to a row
Past = tuple[tuple[int, CompiledGuidance], ...]


@dataclass(frozen=True)
class Tail:
    """A change to another sampler, other levels or guidance, as the run records it.

    Args:
        step: completed steps where it begins.
        sampler: of the steps to come; without steps, grid, sigmas and times on the levels that
            were to come.
        guidance: that begins with it; None: the one before goes on.
        reads: how many older predictions its solver reads at first; 0 where it starts anew.
    """

    step: int
    sampler: Sampler
    guidance: Guidance | None = None
    reads: int = 0

    def __str__(self) -> str:
        one = self.sampler
        how = "the levels that were to come" if one.grid is None else f"{one.steps} steps"
        listed = one.sigmas or one.times
        how = f"{len(listed)} levels" if listed is not None else how
        read = f"reads {self.reads} older" if self.reads else "starts anew"
        return f"from step {self.step} on {one.label}, {how}, {read}"


@dataclass(frozen=True)
class _Ahead:
    """A change that is prepared, and holds once the run stands at `row` or before."""

    row: int
    table: Table
    program: Program
    guided: CompiledGuidance
    past: Past
    noise: Noise | None
    journey: tuple[Tail, ...]


class Tailed(Controlled):
    """The part of a `Run` that takes tails."""

    process: Process | None
    sampler: Sampler | None
    noise: Noise | None

    def _no_tails(self) -> None:
        """A run begins without tails."""
        self.journey: tuple[Tail, ...] = ()
        self._ahead: _Ahead | None = None

    def on(self, process: Process | None) -> None:
        """Set the noise process, from which the levels of a tail follow.

        Args:
            process: of the model; None where it is not known.
        """
        self.process = process

    def _copy_tails(self, run: Tailed) -> None:
        """Take over the guidance and the tails of another run of the same table."""
        self._guided, self._past = run._coming or run._guided, run._past
        self.journey, self._ahead = run.journey, run._ahead

    def tail(
        self,
        sampler: Sampler | str | None = None,
        *,
        steps: int | None = None,
        grid: str | None = None,
        sigmas: Sequence[float] | None = None,
        guidance: Guidance | float | Sequence[float] | None = None,
    ) -> Tail:
        """Go on with another sampler, number of steps, or levels, from the end of this step on.

        From any thread. What the run has computed is kept: a multistep solver reads the older
        predictions that it can. A run that goes back to before the change makes it again, unless
        another tail is ordered there.

        Args:
            sampler: of the steps to come, by name ("euler/ays") or a `Sampler`; None keeps it.
            steps: how many steps are to come; None: as many as were to come.
            grid: the name of their levels; None: that of the sampler's name, else with `steps` the
                run's own, else the levels that were to come.
            sigmas: the levels in place of steps and grid, falling from the present one or below.
            guidance: of the steps to come, `cfg(…)` or a scale; scales are one for each step of
                the whole run. None keeps it.

        Returns:
            What was done: where it begins, and how many older predictions are read.

        Raises:
            TimonelError: no step is left, or it cannot go on so; the run goes on as it was.
        """
        with self._change:
            self.check("tail")
            ahead = self._prepared(sampler, steps, grid, sigmas, assigned(guidance))
            self._ahead = ahead
            self._apply_tail()
            self._change.notify_all()
        return ahead.journey[-1]

    # -- before it holds ---------------------------------------------------------------------------
    def _prepared(
        self,
        named: Sampler | str | None,
        steps: int | None,
        grid: str | None,
        sigmas: Sequence[float] | None,
        guidance: Guidance | None,
    ) -> _Ahead:
        """The change that an order stands for, checked and compiled."""
        process = self._process()
        row = self._boundary()
        table = self.table
        last = self._last(table, row)
        sampler = _sampler_to_come(named, steps, grid, sigmas, last, guidance)
        turn = Turn(table, row, process, last, self._knows_newest(row))
        now = (self._coming or self._guided).guidance if guidance is None else guidance
        sampler = graded(sampler, turn, last, process).guided_by(now)
        new = tail.splice(turn, sampler).detach()
        self.driver.turn(self, new)
        noise = self._noise_of(new, row, sampler)
        program = Program.bind(new, self.prediction, self.denoised_fn)
        guided, past = self._guided_on(new, row, guidance)
        reads = len(new.leg(row).reads) if new.legs and new.leg(row).row == row else 0
        before = tuple(one for one in self.journey if one.step < turn.step)
        journey = (*before, Tail(turn.step, sampler, guidance, reads))
        return _Ahead(row, new, program, guided, past, noise, journey)

    def _process(self) -> Process:
        if self.process is None:
            raise RunError(
                "this run does not know its noise process, which levels follow from: give it,"
                " Run(table, …, process=process) or Run.load(path, process=process)"
            )
        return self.process

    def _boundary(self) -> int:
        """The row where the step under way ends, or where a rewind that is ordered goes to."""
        back = self._until if self._goto is None else self._goto
        behind = self._goto is not None or self.step < self._until
        if behind and self._hooking != threading.get_ident():
            return self.table.first_row(back)
        in_flight = self._flight not in (None, threading.get_ident())
        row = self.row + in_flight
        if row < self.table.nfe and row == self.table.first_row(self.table.step_at(row)):
            return row
        step = self.table.step_at(min(row, self.table.nfe - 1)) + 1
        return self.table.nfe if row >= self.table.nfe else self.table.first_row(step)

    def _last(self, table: Table, row: int) -> Sampler | None:
        """The sampler of the rows before, as far as it is known."""
        step = table.step_at(row)
        turned = [one.sampler for one in self.journey if one.step < step]
        if turned:
            return turned[-1]
        if self.sampler is not None:
            return self.sampler
        leg = table.leg(0)
        if table.first or table.seen is not None or leg.grid not in grids.GRIDS:
            return None
        try:
            return Sampler(leg.solver, grid=leg.grid)
        except ArgumentError:
            return None

    def _knows_newest(self, row: int) -> bool:
        """Whether the newest prediction can be had in any basis."""
        if self.row != row or self._call is None:
            return True  # it is computed with the row before, in whatever basis is needed
        return self._call.row == row - 1 and self._call.x is not None

    def _guided_on(
        self, table: Table, row: int, guidance: Guidance | None
    ) -> tuple[CompiledGuidance, Past]:
        """The guidance of the new rows, and those of the rows before."""
        now = self._coming or self._guided
        goes_on = guidance is None
        if guidance is not None:
            run: Any = self
            self.driver.admit(run, guidance, table)
        try:
            new = CompiledGuidance.of(
                now.guidance if goes_on else guidance, table, self.prediction,
                now.since if goes_on else row,
            )  # fmt: skip
        except ArgumentError as error:
            if not goes_on:
                raise
            raise ArgumentError(
                f"the guidance of the run does not fit its tail ({error}): name one with it,"
                " tail(…, guidance=…)"
            ) from error
        past = tuple((until, one) for until, one in self._past if until < row)
        return new, (*past, (row, now)) if row else past

    def _noise_of(self, table: Table, row: int, sampler: Sampler) -> Noise | None:
        """The source of the noise of the whole table."""
        noise = self.noise
        draws = bool((table.x[row:, -1] != 0).any() or (table.base[row:, -1] != 0).any())
        drew = bool((table.x[:row, -1] != 0).any() or (table.base[:row, -1] != 0).any())
        if draws and noise is None:
            noise = self.driver.source(sampler.source, table, self._here.x)
            if noise is None:
                raise ArgumentError(
                    f"{sampler.name!r} draws noise and the run has no seeds: begin it with seeds,"
                    " one per sample, e.g. seeds=[0], or name a sampler that draws none"
                )
            return noise
        if isinstance(noise, Seeded):
            return _seeded(noise, table, sampler, draws, drew)
        if draws and noise is not None and hasattr(noise, "over"):
            raise ArgumentError(
                f"the noise of this run, {type(noise).__name__}, is of its own table: name a"
                " sampler that draws none"
            )
        return noise

    # -- from where it holds -----------------------------------------------------------------------
    def _apply_tail(self) -> None:
        """Let a change that is prepared hold, where no row is computed elsewhere."""
        ahead = self._ahead
        in_flight = self._flight not in (None, threading.get_ident())
        if ahead is None or in_flight or self.row > ahead.row:
            return
        with self._unwatched():
            points = self._checkpoints.points.items()
            kept = {
                step: self._as_new(point, ahead)
                for step, point in points
                if point.state.row <= ahead.row
            }
            here = self._as_new(self._point, ahead)
            before = None if self._before is None else self._as_new(self._before, ahead)
            start = self._checkpoints.start
            if start is not None:
                self._checkpoints.start = self._as_new(Point(start), ahead).state
            self._checkpoints.points, self._at, self._before = kept, here, before
            self.table, self.program = ahead.table, ahead.program
            self._guided, self._past, self._coming = ahead.guided, ahead.past, None
            self.noise, self.journey, self._ahead = ahead.noise, ahead.journey, None

    def _as_new(self, point: Point, ahead: _Ahead) -> Point:
        """A point of the run as one of the new table."""
        if point.state.row == ahead.row and point.call is not None and point.call.clean is None:
            point = point._replace(call=point.call._replace(clean=self._clean_of(point.call)))
        before = ahead.past[-1][1] if ahead.past else ahead.guided
        if point.state.row == ahead.row and before.method != ahead.guided.method:
            point = point._replace(state=point.state._replace(momentum=None))
        return tail.carried(point, ahead.program, ahead.table, ahead.row)


def _sampler_to_come(
    sampler: Sampler | str | None,
    steps: int | None,
    grid: str | None,
    sigmas: Sequence[float] | None,
    last: Sampler | None,
    guidance: Guidance | None,
) -> Sampler:
    """The sampler that an order names, in the place of the last one."""
    method = None if guidance is None else guidance.method
    twin = method is not None and method.reads_uncond  # it needs another solver
    if not twin and all(value is None for value in (sampler, steps, grid, sigmas)):
        raise ArgumentError(
            "a tail names what changes: tail('dpmpp_2m'), tail(steps=4), tail(grid='ays') or"
            " tail(sigmas=[…]); for guidance alone assign run.guidance"
        )
    if isinstance(sampler, Sampler):
        named = sampler if grid is None else replace(sampler, grid=grid)
    elif sampler is not None:
        named = Sampler(_name(sampler), grid=grid)
    else:
        named = _kept(last, grid, listed=sigmas is not None)
    if sigmas is not None:
        named = replace(named, sigmas=tuple(sigmas), grid=None, grid_options={})
    return named if steps is None else replace(named, steps=steps)


def _kept(last: Sampler | None, grid: str | None, listed: bool) -> Sampler:
    """The last sampler, for other levels."""
    if last is None:
        raise ArgumentError(
            "the run does not say which sampler it has: name one, e.g. tail('dpmpp_2m', …)"
        )
    if last.fitted is not None:
        raise ArgumentError(
            f"sampler {last.name!r} is fitted as a whole journey, so it has no other levels: name"
            " a sampler for the tail, e.g. tail('dpmpp_2m', …)"
        )
    if listed:
        return Sampler(last.name, options=last.solver_options, noise=last.noise)
    same = grid in (None, last.grid)
    return Sampler(
        last.name, grid=grid, options=last.options, noise=last.noise,
        grid_options=last.grid_options if same else {},
    )  # fmt: skip


def _name(sampler: Any) -> str:
    name: str = instance("sampler", sampler, str, "a sampler or its name, e.g. 'dpmpp_2m'")
    return name


def graded(sampler: Sampler, turn: Turn, last: Sampler | None, process: Process) -> Sampler:
    """The sampler with steps and a grid, unless its levels are those that were to come.

    Args:
        sampler: of a tail.
        turn: where it begins.
        last: the sampler before.
        process: of the model.
    """
    listed = (sampler.fitted, sampler.sigmas, sampler.times)
    if any(value is not None for value in listed) or (sampler.grid, sampler.steps) == (None, None):
        return sampler
    if sampler.grid is None:
        own = _graded_by(last, process) or sampler.on(process)
        sampler = replace(sampler, grid=own.grid, grid_options=own.grid_options)
    return replace(sampler, steps=sampler.steps or turn.left)


def _graded_by(last: Sampler | None, process: Process) -> Sampler | None:
    """The last sampler, where a grid makes its levels."""
    if last is None or any(v is not None for v in (last.fitted, last.sigmas, last.times)):
        return None
    return last.on(process)


def _seeded(noise: Seeded, table: Table, sampler: Sampler, draws: bool, drew: bool) -> Seeded:
    """The source of a table that goes on with another solver."""
    wanted = sampler.source
    if draws and wanted not in (noise.kind, noises.DEFAULT):
        if drew:
            raise ArgumentError(
                f"the run has drawn {noise.kind} noise, so its tail does: Sampler("
                f"{sampler.name!r}, noise={noise.kind!r}), or begin the run with noise={wanted!r}"
            )
        return replace(
            noises.source(wanted, noise.seeds, table, device=noise.device), first=noise.first
        )
    if isinstance(noise, BrownianNoise) and table.stochastic:
        return replace(noise, table=table)
    return noise
