"""Grids whose steps end below the next level, from where fresh noise brings the sample up to it.

    level k  --solver-->  end(k)  --noise-->  level k + 1

The sample is multiplied by alpha'/alpha_end and gets noise of standard deviation
sqrt(sigma'² - (alpha'·sigma_end/alpha_end)²), which keeps the marginal of every level. `Rows`
writes this into the table, so it goes with any solver.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...errors import ArgumentError, Idle, finite, number_of_steps, whole
from ..process import Level, double
from .grid import Grid, few_enough, ratio

EQUAL = 1e-9  # relative distance of two levels that are one


def _stack(levels: Sequence[Level]) -> Level:
    return Level(*(torch.stack(list(v)) for v in zip(*levels, strict=True)))


def ancestral(grid: Grid, eta: float) -> Grid:
    """Every step goes below its target and gets eta times DDPM's noise.

    The part of the old noise that is kept has standard deviation
    sigma'·sqrt(1 - eta²·(1 - e^(-2h))), h the step in lam.

    Args:
        grid: the levels.
        eta: in [0, 1]; 0 is the grid itself, 1 the DDPM posterior.

    Returns:
        The grid with `ends`.

    Source: Song et al. 2020, arXiv 2010.02502, eq. 16.
    """
    e = finite("eta", eta, 0, 1)
    if e == 0:
        return grid
    down = []
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        fall = (new.sigma * now.alpha) / (new.alpha * now.sigma)  # e^(-h)
        kept = new.sigma * (fall if e == 1 else torch.sqrt(1 - e**2 * (1 - fall**2)))
        if bool(kept > 0):
            down.append(grid.process.at_lam(torch.log(new.alpha) - torch.log(kept)))
        else:
            down.append(Level(*(v[0] for v in grid.process.clean())))
    return replace(grid, ends=_stack(down))


def churn(grid: Grid, s_churn: float, s_tmin: float = 0.0, s_tmax: float = math.inf) -> Grid:
    """EDM's churn: before each step the noise s = sigma/alpha is raised to s·(1 + gamma).

    gamma = min(s_churn / N, sqrt(2) - 1). Pure noise, and a level that would rise above the
    noisiest of the process, stay as they are.

    Args:
        grid: the levels.
        s_churn: at least 0; 0 is the grid itself.
        s_tmin: smallest s that is churned, at least 0.
        s_tmax: largest s that is churned.

    Returns:
        The grid with `ends`.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 2.
    """
    gamma = min(finite("s_churn", s_churn, 0) / grid.steps, math.sqrt(2) - 1)
    low = finite("s_tmin", s_tmin, 0)
    high = math.inf if s_tmax == math.inf else finite("s_tmax", s_tmax, low)
    if gamma == 0:
        return grid
    top = _noisiest(grid)
    starts = []
    for k in range(grid.steps):
        level, s = grid[k], grid.ratio_at(k)
        if math.isfinite(s) and low <= s <= high and s * (1 + gamma) <= top:
            level = grid.process.at_lam(-torch.log(level.ratio * (1 + gamma)))
        starts.append(level)
    ends = _stack([grid.end(k) for k in range(grid.steps)])
    return replace(grid, **_stack([*starts, grid[grid.steps]])._asdict(), ends=ends)


def restart(grid: Grid, restarts: int, s_min: float, s_max: float, steps: int) -> Grid:
    """Restart: from s_min back up to s_max with fresh noise and down again, `restarts` times.

    s = sigma/alpha. A restart begins at the level nearest to s_min; the way down again is Karras'
    with rho = 7.

    Args:
        grid: the levels of the first way down.
        restarts: how many times, 0 … 1000.
        s_min: s where a restart begins, above 0.
        s_max: s where it arrives, at least s_min and at most that of the process.
        steps: steps of each way down again, 1 … 1000.

    Returns:
        The grid with `ends`, with the steps of the restarts.

    Raises:
        ArgumentError: for s_max above the process.
        GridError: where no level lies between 0 and s_max.

    Source: Xu et al. 2023, arXiv 2306.14878.
    """
    again, inner = whole("restarts", restarts, 0, 1000), whole("restart_steps", steps, 1, 1000)
    low, high = finite("s_min", s_min, 1e-9), finite("s_max", s_max, s_min)
    top = _noisiest(grid)
    if high > top:
        raise ArgumentError(
            f"s_max={high:g} is above this process' largest sigma {top:.6g}; use at most that"
        )
    few_enough("restarts * restart_steps", again * inner, 0)
    levels = [grid[k] for k in range(len(grid))]
    inside = [k for k in range(1, grid.steps) if ratio(levels[k]) > 0]
    if again == 0:
        return grid
    at = min(inside, key=lambda k: abs(math.log(ratio(levels[k]) / low)), default=None)
    if at is None or ratio(levels[at]) >= high * (1 - EQUAL):
        raise Idle(
            f"no level of grid {grid.name!r} in {number_of_steps(grid.steps)} lies below"
            f" s_max={high:g}, where a restart could begin; use more steps",
            {"restarts": 0},
        )
    a, b = high ** (1 / 7), levels[at].ratio ** (1 / 7)
    u = torch.linspace(0, 1, inner + 1, dtype=torch.float64)[:-1]
    loop = grid.process.at_lam(-7 * torch.log(a + u * (b - a)))
    once = [Level(*(v[i] for v in loop)) for i in range(inner)]
    starts = levels[:at] + once * again + levels[at:]
    ends = levels[1 : at + 1] + [*once[1:], levels[at]] * again + levels[at + 1 :]
    return replace(grid, **_stack(starts)._asdict(), ends=_stack(ends))


def _noisiest(grid: Grid) -> float:
    """sigma/alpha of the noisiest training level."""
    return float(grid.process.at_index(double(grid.process.train_steps - 1.0)).ratio)
