"""Tables whose rows come from several tables on the same grid: the lower orders at the end of diffusers' runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import solvers
from ..errors import ArgumentError
from ..grids import Grid
from ..process import Level
from ..solvers.exponential import Exponential, dpmpp_2s_tableau, res_2s_tableau, singlestep
from ..table import Table

FEW = 15  # diffusers lowers the order of the last steps of shorter runs


def falling(order: int, steps: int, idle: int) -> list[int]:
    """The most predictions of every step where the order falls to 1 towards the end: min(order, N - k)."""
    return [min(order, steps + idle - k) for k in range(steps)]


def lowered(make: Callable[[int], Table], orders: Sequence[int]) -> Table:
    """Row k from `make(orders[k])`. All tables have one row a step, on one grid, in one basis."""
    made = {order: make(order) for order in sorted(set(orders))}
    top = made[max(made)]
    if len(made) == 1:
        return top
    x, base = (
        [_widened(getattr(made[o], kind)[k], top.history) for k, o in enumerate(orders)] for kind in ("x", "base")
    )
    return replace(top, x=torch.stack(x), base=torch.stack(base))


def _widened(row: Tensor, history: int) -> Tensor:
    """A row's coefficients for a table that remembers `history` predictions."""
    return torch.cat([row[:-1], row.new_zeros(history + 3 - len(row)), row[-1:]])


METHODS: dict[str, Callable[[float], Exponential]] = {"midpoint": dpmpp_2s_tableau, "heun": res_2s_tableau}


def pairs(grid: Grid, last: int) -> Grid:
    """Every second level of a list, and all of the last `last` steps: the steps of a singlestep scheduler."""
    paired = grid.steps - last
    if paired < 0 or paired % 2:
        raise ArgumentError(f"{grid.steps} calls cannot be {last} single and otherwise paired calls")
    kept = [*range(0, paired, 2), *range(paired, grid.steps + 1)]
    return Grid(grid.process, grid.alpha[kept], grid.sigma[kept], grid.time[kept], grid.name)


def second_order(grid: Grid, listed: Grid, variant: str) -> Table:
    """DPM-Solver++(2S) whose inner calls lie at the levels of `listed` between those of `grid`; Euler where none does.

    Algorithm 1 of arXiv 2211.01095 with its own r in every step; "heun" integrates the line exactly.
    """
    euler = solvers.make("euler", grid)
    x: list[Tensor] = []
    base: list[Tensor] = []
    rows: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for k in range(grid.steps):
        inner = [j for j in range(len(listed)) if grid[k].ratio > listed[j].ratio > grid.end(k).ratio]
        table, own = euler, [euler.first_row(k)]
        if inner:
            middle = listed[inner[0]]
            r = (middle.lam - grid[k].lam) / (grid.end(k).lam - grid[k].lam)
            table = singlestep("dpmpp_2s", grid, METHODS[variant](float(r)))
            own = [table.first_row(k), table.first_row(k) + 1]
        for i, row in enumerate(own):
            time = listed[inner[0]].time if i else table.time[row]
            rows.append((k, table.alpha[row], table.sigma[row], time))
            x.append(_widened(table.x[row], 2))
            base.append(_widened(table.base[row], 2))
    end = grid[grid.steps]
    steps, *levels = zip(*rows, strict=True)
    alpha, sigma, time = (torch.stack([*v, e]) for v, e in zip(levels, end, strict=True))
    seen = grid.process.seen(Level(alpha[:-1], sigma[:-1], time[:-1]))
    return Table(
        "dpmpp_2s", grid.name, euler.basis, 2, alpha, sigma, time, steps, torch.stack(x), torch.stack(base), seen=seen
    )
