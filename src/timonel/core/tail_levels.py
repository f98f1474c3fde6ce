"""The levels of a tail, see `tail.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..errors import ArgumentError, GridError, TimonelError
from . import grids
from .grids import MOST_STEPS, Grid
from .process import Level, Process
from .sampler import Sampler
from .table import Table

SAME = 1e-9  # distance in lam of two levels that are one
SNAP = 1e-6  # relative slack of a listed sigma that is the present one
BOUND = 40.0  # |lam| beyond which levels count as pure noise, or as clean


@dataclass(frozen=True)
class Turn:
    """Where a tail begins, and what the run has there.

    Args:
        table: of the run so far.
        row: the first row of a step, where it turns.
        process: of the model.
        last: the sampler of the rows before; None where it is not known.
        newest: whether the newest prediction can be had in another basis.
    """

    table: Table
    row: int
    process: Process
    last: Sampler | None = None
    newest: bool = True

    @property
    def step(self) -> int:
        """Completed steps."""
        return self.table.step_at(self.row)

    @property
    def left(self) -> int:
        """Steps that were to come."""
        return self.table.steps - self.step

    @property
    def present(self) -> Level:
        """The level where the run stands."""
        return self.table.level(self.row)


def levels(turn: Turn, sampler: Sampler) -> Grid:
    """The present level, and those to come.

    Args:
        turn: where it turns.
        sampler: see `splice`.

    Raises:
        TimonelError: they do not fall from the present level.
    """
    if sampler.sigmas is not None or sampler.times is not None:
        return _listed(turn, sampler)
    if sampler.grid is None:
        return _to_come(turn)
    full, place = named(turn, sampler)
    behind = [full[k] for k in range(place + 1, place + 1 + (sampler.steps or turn.left))]
    return _grid(turn, behind, sampler.grid)


def _to_come(turn: Turn) -> Grid:
    """The levels that were to come."""
    table = turn.table
    rows = [table.first_row(step) for step in range(turn.step + 1, table.steps + 1)]
    return _grid(turn, [table.level(row) for row in rows], table.leg(turn.row).grid)


def _grid(turn: Turn, behind: Sequence[Level], name: str) -> Grid:
    """The present level and those behind it, which end where the table does."""
    end = turn.table.level(turn.table.nfe)
    come = [*behind[:-1], end] if bool(end.sigma > 0) else [*behind]
    try:
        return through([turn.present, *come], turn.process, name)
    except GridError as error:
        raise GridError(
            f"the levels of {name!r} do not fall from sigma/alpha {grids.ratio(turn.present):.6g},"
            f" where the run stands ({error}): take fewer or more steps, or list them, e.g."
            f" {_example(turn)}"
        ) from error


def through(
    levels: Sequence[Level], process: Process, name: str, slopes: str | None = None
) -> Grid:
    """The grid through some levels."""
    alpha, sigma, time = (torch.stack(list(v)) for v in zip(*levels, strict=True))
    return Grid(process, alpha, sigma, time, name, slopes=slopes)


def _example(turn: Turn) -> str:
    """A list of sigmas that would do."""
    s = float(turn.present.sigma)
    if turn.process.kind != "flow" and bool(turn.present.alpha > 0):
        s = grids.ratio(turn.present)
    s = min(s, 10.0)
    return f"sigmas=[{0.7 * s:.3g}, {0.3 * s:.3g}, 0]"


def _listed(turn: Turn, sampler: Sampler) -> Grid:
    """Levels by a list, from the present one or from below it."""
    listed = sampler.levels(turn.process)
    if sampler.steps is not None and sampler.steps != listed.steps:
        raise ArgumentError(f"steps={sampler.steps} but these levels make {listed.steps} steps")
    here, first = turn.present, listed[0]
    top, now = (grids.ratio(level) for level in (first, here))
    behind = [listed[k] for k in range(len(listed))]
    if abs(top - now) <= SNAP * now or (top == now):
        behind = behind[1:]
    elif top > now:
        raise GridError(
            f"the levels of a tail begin at or below the present one, sigma/alpha {now:.6g}, and"
            f" the first that is listed has {top:.6g}: leave out what lies above, e.g."
            f" {_example(turn)}"
        )
    return _grid(turn, behind, "custom")


def named(turn: Turn, sampler: Sampler) -> tuple[Grid, int]:
    """A named grid, and the place in it of the present level.

    Args:
        turn: where it turns.
        sampler: names the grid; its steps are those to come.

    Returns:
        The grid of N steps whose level with so many steps to come is nearest to the present one.

    Raises:
        GridError: the grid has no such part.
    """
    steps, here = sampler.steps or turn.left, _lam(turn.present)
    tried: dict[int, tuple[Grid, int] | None] = {}

    def at(count: int) -> tuple[Grid, int] | None:
        """The grid of `count` steps and the place; None where it has too few."""
        if count not in tried:
            try:
                full = replace(sampler, steps=count).levels(turn.process)
                tried[count] = full, _end(turn, full) - steps
            except TimonelError:
                if count == steps:
                    raise
                tried[count] = None
        known = tried[count]
        return known if known is not None and known[1] >= 0 else None

    def below(count: int) -> bool:
        """Whether the place in the grid of `count` steps is cleaner than the present level."""
        known = at(count)
        if known is None:
            return tried[count] is None
        return _lam(known[0][known[1]]) > here + SAME

    exact = at(turn.table.steps) if turn.table.steps > steps else None
    if exact is not None and abs(_lam(exact[0][exact[1]]) - here) <= SAME:
        return exact  # the run's own
    low, high = steps, steps + 1
    while not below(high) and high < MOST_STEPS:
        low, high = high, min(2 * high, MOST_STEPS)
    low = min(low, steps) if below(low) else low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if below(middle) else (middle, high)
    fits = [known for count in (low, high) if (known := at(count)) is not None]
    if not fits:
        raise GridError(
            f"grid {sampler.grid!r} has no {steps} steps from sigma/alpha"
            f" {grids.ratio(turn.present):.6g} on: list them, e.g. {_example(turn)}"
        )
    return min(fits, key=lambda one: abs(_lam(one[0][one[1]]) - here))


def _end(turn: Turn, grid: Grid) -> int:
    """The place in a grid where the run's table ends."""
    end = turn.table.level(turn.table.nfe)
    if not bool(end.sigma > 0):
        return grid.steps
    return min(range(1, grid.steps + 1), key=lambda k: abs(_lam(grid[k]) - _lam(end)))


def _lam(level: Level) -> float:
    """log(alpha / sigma), finite."""
    return float(level.lam.clamp(-BOUND, BOUND))
