"""Samplers of distilled models, LCM and TCD: predict the clean sample, add noise again."""

from __future__ import annotations

import torch

from ...errors import finite
from ..grids import Grid
from ..table import Rows, Table

SIGMA_DATA, TIME_SCALING = 0.5, 10.0  # constants of the released LCM checkpoints
MOST_SCALING = 1e9  # a larger one is a mistake, and its square soon no number


def lcm(grid: Grid, *, scaling: float = TIME_SCALING) -> Table:
    """LCM: `x' = alpha'·D + sigma'·eps`, D = c_out·h0 + c_skip·x on VP, elsewhere D = h0.

    Args:
        grid: the levels.
        scaling: factor of the time in c_skip and c_out, at least 0 (diffusers'
            timestep_scaling).

    Source: Luo et al. 2023, arXiv 2310.04378, algorithm 3.
    """
    scaling = finite("scaling", scaling, 0, MOST_SCALING)
    rows = Rows("lcm", grid, order=0)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        skip, out = torch.zeros_like(now.alpha), torch.ones_like(now.alpha)
        if grid.process.kind == "vp":
            scaled = now.time * scaling
            norm = scaled**2 + SIGMA_DATA**2
            skip, out = SIGMA_DATA**2 / norm, scaled / torch.sqrt(norm)
        rows.add(k, now, {"x": new.alpha * skip, "h0": new.alpha * out, "eps": new.sigma})
    return rows.table()


def tcd(grid: Grid, *, eta: float = 0.3) -> Table:
    """TCD: a deterministic step to an intermediate level s, then noise up to the next level.

    s is at training time floor((1 - eta)·t') on VP and at (1 - eta)·sigma' elsewhere. The last step
    returns h0; diffusers' returns the sample at time 0, with sigma_min of predicted noise.

    Args:
        grid: the levels.
        eta: in [0, 1]; 0 is deterministic, 1 adds all the noise.

    Source: Zheng et al. 2024, arXiv 2402.19159.
    """
    e = finite("eta", eta, 0, 1)
    rows = Rows("tcd", grid, order=0)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        mid = new
        if e and bool(new.sigma > 0):
            if grid.process.kind == "vp":
                mid = grid.process.at_time(torch.floor((1 - e) * new.time))
            else:
                part = new.sigma if grid.process.kind == "flow" else new.ratio
                mid = grid.process.at_sigma((1 - e) * part)
            mid = new if bool(mid.sigma > new.sigma) else mid
        rise = new.alpha / mid.alpha
        fresh = new.sigma * 0
        if mid is not new:
            fresh = torch.sqrt((new.sigma**2 - (rise * mid.sigma) ** 2).clamp(min=0))
        h0 = rise * (mid.alpha - now.alpha * mid.sigma / now.sigma)
        rows.add(k, now, {"x": rise * mid.sigma / now.sigma, "h0": h0, "eps": fresh})
    return rows.table()
