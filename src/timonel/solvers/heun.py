"""Heun's method and the stochastic sampler of EDM built on it.

With y = x / m and slope dy/ds = (y - denoised) / s, Heun averages the slopes at both ends. VP and
EDM use m = alpha, s = sigma / alpha as the paper does; flow processes, and the one step that
leaves pure noise (where sigma / alpha is infinite), use m = alpha + sigma, s = sigma / m.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import finite
from ..grids import Grid
from ..process import Level
from ..table import Coefficients, Rows, Table
from .algebra import gain, keep


def _corrected(grid: Grid, now: Level, new: Level) -> dict[str, Tensor]:
    """Registers of the corrected sample: base and h1 are at `now`, x (the Euler sample) and h0 at `new`."""
    flow = grid.process.kind == "flow" or bool(now.alpha == 0)

    def scale(level: Level) -> Tensor:
        return level.alpha + level.sigma if flow else level.alpha

    m, m_new = scale(now), scale(new)
    s, s_new = now.sigma / m, new.sigma / m_new
    half = (s_new - s) / 2
    return {
        "base": m_new / m * (1 + half / s),
        "h1": -m_new * half / s,
        "x": half / s_new,
        "h0": -m_new * half / s_new,
    }


def heun(grid: Grid) -> Table:
    """Order 2, 2 calls per step (1 on the last), deterministic. arXiv 2206.00364, algorithm 1."""
    return _heun("heun", grid, [grid[k] for k in range(grid.steps)], 1.0)


def edm(
    grid: Grid,
    *,
    s_churn: float = 40.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Table:
    """Heun with churn: before each step the noise s = sigma/alpha is raised to s·(1 + gamma).

    gamma = min(s_churn / N, sqrt(2) - 1) where s_tmin <= s <= s_tmax, else 0; the added noise has
    std s_noise·sqrt(s_hat² - s²). A level that churn would lift above the noisiest of the process
    is not churned. Order 2, 2 calls per step. arXiv 2206.00364, algorithm 2.
    """
    gamma = min(finite("s_churn", s_churn, 0) / grid.steps, math.sqrt(2) - 1)
    low = finite("s_tmin", s_tmin, 0)
    high = math.inf if s_tmax == math.inf else finite("s_tmax", s_tmax, low)
    top = float(grid.process.at_index(torch.tensor(grid.process.train_steps - 1.0)).ratio)
    lifted = []
    for k in range(grid.steps):
        s = grid.ratio_at(k)
        fits = math.isfinite(s) and low <= s <= high and s * (1 + gamma) <= top
        ratio = grid[k].ratio * (1 + gamma)
        lifted.append(grid.process.at_lam(-torch.log(ratio)) if fits and gamma > 0 else grid[k])
    return _heun("edm", grid, lifted, finite("s_noise", s_noise, 0))


def _heun(name: str, grid: Grid, start: list[Level], s_noise: float) -> Table:
    """Heun from `start[k]` to `grid[k + 1]`, then noise up to `start[k + 1]`."""
    rows = Rows(name, grid, order=2, history=2)
    for k in range(grid.steps):
        now, new = start[k], grid[k + 1]
        lift = start[k + 1] if k + 1 < grid.steps else new
        euler: Coefficients = {"x": keep(now, new), "h0": gain(now, new)}
        if bool(new.sigma == 0):
            rows.add(k, now, euler)
            continue
        rows.add(k, now, euler, base={"x": 1.0})
        rows.add(k, new, _lift(_corrected(grid, now, new), new, lift, s_noise))
    return rows.table()


def _lift(sample: Coefficients, at: Level, to: Level, s_noise: float) -> Coefficients:
    """Add the noise that takes a sample from level `at` up to the noisier level `to`."""
    if to is at or bool(to.sigma == at.sigma):
        return sample
    rise = to.alpha / at.alpha
    fresh = torch.sqrt((to.sigma**2 - (rise * at.sigma) ** 2).clamp(min=0)) * s_noise
    return {**{name: rise * c for name, c in sample.items()}, "eps": fresh}
