"""A part of a journey: some of the steps of a table, for image to image, two models, a loop that
begins on the way.

A part has the rows of the whole, one for one. Where its steps read nothing from before it, they are
the very rows of the whole, so that two parts make what one run makes. A multistep solver has to
begin anew with the order that its first predictions allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ...errors import ArgumentError, GridError
from .. import grids
from ..grids import Grid
from ..table import Table

Compile = Callable[[Grid, int], Table]  # of a grid, and of how many steps come before it
SAME = 1e-9  # distance in lam of two noise levels that are one


def first_rows(table: Table, grid: Grid) -> tuple[int, ...]:
    """The row where each step of `grid` begins, in the table that was compiled on it.

    A table that goes up again (restart) has steps of its own besides; there a step of the grid
    begins where its level is left for good.
    """
    begins = [table.first_row(step) for step in range(table.steps)]
    if table.steps <= grid.steps:  # fewer where steps are forecast
        return tuple(begins)
    lam, levels = (torch.log(table.alpha) - torch.log(table.sigma))[begins], grid.lam[:-1]
    same = (lam[None] == levels[:, None]) | ((lam[None] - levels[:, None]).abs() <= SAME)
    if not bool(same.any(1).all()):
        raise GridError(
            f"{table.solver!r} does not visit every level of grid {table.grid!r}, so it has no"
            " parts of it"
        )
    return tuple(begins[max(row.nonzero().flatten().tolist())] for row in same)


def part(table: Table, grid: Grid, first: int, last: int, make: Compile) -> Table:
    """Steps `first` … `last - 1` of a table.

    `grid`: what the table was compiled on; `make` compiles on a part of it. Raises `GridError`
    where no step is left.
    """
    if not 0 <= first < last <= table.steps:
        raise GridError(
            f"no step is left between step {first}, where the part begins, and step {last}, where"
            " it ends"
        )
    if first == 0 or not table.remembers(first):
        return table.part(first, last)
    rest = make(grids.cut(grid, start=first), first)
    if rest.nfe != table.nfe - table.first_row(first):
        raise ArgumentError(
            f"{table.solver!r} cannot begin at step {first}: its first steps have more network"
            " calls than the rest; use a sampler of one call a step, e.g. 'dpmpp_2m'"
        )
    return replace(rest.part(0, last - first), first=table.first + table.first_row(first))
