"""Some of the steps of a table: for img2img, two models that share a run, loops over a part.

A part has the rows of the whole, so that two parts together do what one run does. Where its first
step reads predictions from before it (multistep solvers), it is compiled anew and begins with the
order that its first predictions allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ...errors import ArgumentError, GridError
from .. import grids
from ..grids import Grid
from ..table import Table

Compile = Callable[[Grid, int], Table]  # of a grid and the number of steps before it
EQUAL = 1e-9  # distance in lam of two levels that are one


def first_rows(table: Table, grid: Grid) -> tuple[int, ...]:
    """The row where each step of `grid` begins, in the table that was compiled on it.

    Restarts add steps to those of the grid; there a step begins where its level is left last.
    """
    begins = [table.first_row(step) for step in range(table.steps)]
    if table.steps <= grid.steps:  # fewer where steps are forecast
        return tuple(begins)
    lam, levels = (torch.log(table.alpha) - torch.log(table.sigma))[begins], grid.lam[:-1]
    same = (lam[None] == levels[:, None]) | ((lam[None] - levels[:, None]).abs() <= EQUAL)
    if not bool(same.any(1).all()):
        raise GridError(
            f"{table.solver!r} does not visit every level of grid {table.grid!r}, so it has no"
            " parts of it"
        )
    return tuple(begins[max(row.nonzero().flatten().tolist())] for row in same)


def part(table: Table, grid: Grid, first: int, last: int, make: Compile) -> Table:
    """Steps `first` … `last - 1` of a table.

    Args:
        table: the whole.
        grid: what it was compiled on.
        first: first step, 0 … N - 1.
        last: the step that it stops before, `first` + 1 … N.
        make: compiles on a part of the grid.

    Raises:
        GridError: where no step is left.
        ArgumentError: where the solver cannot begin there.
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
