"""Grids whose steps end below the level where the next one begins, so that fresh noise lifts the
sample.

    level k  --solver-->  end(k)  --noise-->  level k + 1

The lift multiplies by alpha'/alpha_end and adds noise of std sqrt(sigma'² -
(alpha'·sigma_end/alpha_end)²), which keeps the marginal of every level; `Rows` writes it into the
table, so any solver may be lifted.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ...errors import ArgumentError, Idle, finite, number_of_steps, whole
from ..process import Level, double
from .grid import Grid, few_enough, ratio

SAME = 1e-9  # relative distance of two levels that are one


def _stack(levels: list[Level]) -> Level:
    return Level(*(torch.stack(list(v)) for v in zip(*levels, strict=True)))


def ancestral(grid: Grid, eta: float) -> Grid:
    """Every step goes below its target, and noise of eta times DDPM's brings it back.

    The part of the old noise that is kept has std sigma'·sqrt(1 - eta²·(1 - e^(-2h))), h the step
    in lam. eta in [0, 1]: 0 is the grid itself, 1 the DDPM posterior (arXiv 2010.02502, eq. 16).
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
    """Before each step the noise s = sigma/alpha is raised to s·(1 + gamma). arXiv 2206.00364,
    algorithm 2.

    gamma = min(s_churn / N, sqrt(2) - 1) where s_tmin <= s <= s_tmax, else 0. A level that churn
    would lift above the noisiest of the process is not churned; neither is pure noise.
    """
    gamma = min(finite("s_churn", s_churn, 0) / grid.steps, math.sqrt(2) - 1)
    low = finite("s_tmin", s_tmin, 0)
    high = math.inf if s_tmax == math.inf else finite("s_tmax", s_tmax, low)
    if gamma == 0:
        return grid
    top = float(grid.process.at_index(double(grid.process.train_steps - 1.0)).ratio)
    starts = []
    for k in range(grid.steps):
        s = grid.ratio_at(k)
        fits = math.isfinite(s) and low <= s <= high and s * (1 + gamma) <= top
        starts.append(
            grid.process.at_lam(-torch.log(grid[k].ratio * (1 + gamma))) if fits else grid[k]
        )
    ends = _stack([grid.end(k) for k in range(grid.steps)])
    return replace(grid, **_stack([*starts, grid[grid.steps]])._asdict(), ends=ends)


def restart(grid: Grid, restarts: int, s_min: float, s_max: float, steps: int) -> Grid:
    """Go down to s_min, then `restarts` times back up to s_max with fresh noise and down again in
    `steps` steps.

    s = sigma/alpha. The levels nearest to s_min and s_max in the grid are taken, and the way down
    again is Karras' with rho = 7. Xu et al. 2023, arXiv 2306.14878.
    """
    again, inner = whole("restarts", restarts, 0, 1000), whole("restart_steps", steps, 1, 1000)
    low, high = finite("s_min", s_min, 1e-9), finite("s_max", s_max, s_min)
    top = float(grid.process.at_index(double(grid.process.train_steps - 1.0)).ratio)
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
    if at is None or ratio(levels[at]) >= high * (1 - SAME):
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
