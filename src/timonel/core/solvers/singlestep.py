"""Singlestep DPM-Solvers whose inner calls are at levels of the grid: N steps are N network calls.

The calls come in groups of up to `order`. Every call of a group steps from the level where the
group begins, with all predictions since, to the next level of the grid: with order 1, then 2, then
3. The last call makes the result of the group, the others the samples at which it calls. So does
diffusers' DPMSolverSinglestepScheduler; `dpmpp_2s` and `dpm_solver` choose the inner levels
themselves.

Fresh noise begins a new group, and the call to the clean level is a group of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import ArgumentError, among, finite
from ..grids import Grid
from ..process import Level
from ..table import Rows, Table
from .algebra import VARIANTS, decaying, finite_lam, fit, frame, gap, growing, noised, schedule


def dpmpp_singlestep(
    grid: Grid, *, order: int | str = 2, variant: str = "midpoint", eta: float = 0.0
) -> Table:
    """DPM-Solver++ in groups of `order` calls (diffusers' DPMSolverSinglestepScheduler).

    Args:
        grid: the levels.
        order: calls of a group, 1 … 3; in a string, e.g. "1231", the place of every call.
        variant: the slope from two predictions ("midpoint"), or the polynomial through all of the
            group, integrated exactly ("heun").
        eta: noise of every call, 0 … 100, which leaves order 1 (weak).

    Source: Lu et al. 2022, arXiv 2211.01095.
    """
    e, places = finite("eta", eta, 0, 100), _places(grid, order)
    top = max(places)
    rows = Rows("dpmpp_singlestep", grid, order=1 if e else top, history=top)
    for k, place in enumerate(places):
        start, new = grid[k - place + 1], grid.end(k)
        inner = [grid[j] for j in range(k - place + 2, k + 1)]
        weights = _weights(*_denoised(start, inner, new, e), variant)
        row, base = _moved(grid, k, place, lambda now, to: noised(now, to, e).keep)
        row |= {f"h{i}": new.alpha * w for i, w in enumerate(reversed(weights))}
        rows.add(k, grid[k], row | {"eps": noised(start, new, e).fresh}, base=base)
    return rows.table()


def dpm_singlestep(grid: Grid, *, order: int | str = 2, variant: str = "midpoint") -> Table:
    """DPM-Solver in groups of `order` calls on slopes; `dpmpp_singlestep` is more accurate.

    diffusers' DPMSolverSinglestepScheduler with algorithm_type="dpmsolver".

    Args:
        grid: the levels.
        order: calls of a group, 1 … 3; in a string, e.g. "1231", the place of every call.
        variant: the slope from two predictions ("midpoint"), or the polynomial through all of the
            group, integrated exactly ("heun").

    Source: Lu et al. 2022, arXiv 2206.00927.
    """
    at, places = frame(grid), _places(grid, order)
    rows = Rows("dpm_singlestep", grid, order=max(places), history=max(places), basis=at.basis)
    for k, place in enumerate(places):
        start, new = grid[k - place + 1], grid.end(k)
        s, to = at.s(start), at.s(new)
        row, base = _moved(grid, k, place, lambda now, to: at.m(to) / at.m(now))
        if place == 1:
            row["h0"] = at.m(new) * (to - s)
        else:
            h = torch.log(s / to)
            nodes = [torch.log(s / at.s(grid[j])) / h for j in range(k - place + 2, k + 1)]
            weights = _weights(nodes, growing(h, place), variant)
            row |= {f"h{i}": -new.sigma * w for i, w in enumerate(reversed(weights))}
        rows.add(k, grid[k], row, base=base)
    return rows.table()


def _places(grid: Grid, order: int | str) -> list[int]:
    """The place of every call in its group, from 1 on.

    The first group of a string may be incomplete, where a part of a run begins. Raises
    `ArgumentError` where a place is left out, or a group of several calls ends at the clean level.
    """
    tops, clean, places = schedule(order, grid.steps), bool(grid.sigma[-1] == 0), [1]
    for k in range(1, grid.steps):
        if isinstance(order, str):
            fresh = tops[k] == 1
            if tops[k] not in (1, tops[k - 1] + 1):
                raise ArgumentError(
                    "the places of calls in their groups rise from 1 by 1, e.g. '1212', got"
                    f" {order!r}"
                )
        else:
            fresh = places[-1] == tops[k] or (clean and k == grid.steps - 1)
        places.append(1 if fresh or grid.renoised(k) else places[-1] + 1)
    if clean and places[-1] > 1:
        raise ArgumentError(
            f"order={order!r} ends with a group of {places[-1]} calls, and the call to the clean"
            f" level is of order 1: end with 1, for example {str(order)[:-1]}1"
        )
    return places


def _moved(
    grid: Grid, k: int, place: int, keep: Callable[[Level, Level], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The part of the sample where the group began that call k keeps, and the next base.

    The base is that sample without predictions, scaled to the level of the call before, so that an
    edit between two calls is carried into it.
    """
    now, new = grid[k], grid.end(k)
    if place == 1:
        return {"x": keep(now, new)}, {"x": torch.ones_like(now.alpha)}
    return {"base": keep(grid[k - 1], new)}, {"base": keep(grid[k - 1], now)}


def _denoised(
    start: Level, inner: Sequence[Level], new: Level, eta: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Nodes of the inner calls, in units of the step; what denoised u^p adds to x'/alpha'.

    From pure noise the step is one in (alpha/sigma)^(1 + eta), in which D is smooth.
    """
    count = len(inner) + 1
    if not finite_lam(new):
        return [], [1 - noised(start, new, eta).rest]
    if not finite_lam(start):
        nodes = [torch.exp((1 + eta) * gap(new, level)) for level in inner]
        return nodes, [torch.ones_like(new.alpha) / (p + 1) for p in range(count)]
    h = gap(start, new)
    return [gap(start, level) / h for level in inner], decaying((1 + eta) * h, count)


def _weights(nodes: Sequence[Tensor], moments: Sequence[Tensor], variant: str) -> list[Tensor]:
    """Weights of the predictions at the start and at `nodes`, oldest first."""
    among("variant", variant, VARIANTS)
    if variant == "heun" or not nodes:
        return fit([torch.zeros_like(moments[0]), *nodes], moments)
    tilt = (moments[0] / 2 if len(nodes) == 1 else moments[1]) / nodes[-1]
    return [moments[0] - tilt, *(torch.zeros_like(tilt) for _ in nodes[1:]), tilt]
