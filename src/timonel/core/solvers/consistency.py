"""Samplers of distilled models: LCM and TCD. They repeat "predict the clean sample, add noise
again".
"""

from __future__ import annotations

import torch

from ...errors import finite
from ..grids import Grid
from ..table import Rows, Table

SIGMA_DATA, TIME_SCALING = 0.5, 10.0  # constants of the released LCM checkpoints
MOST_SCALING = 1e9  # a larger one is a mistake, and its square soon no number


def lcm(grid: Grid, *, scaling: float = TIME_SCALING) -> Table:
    """`x' = alpha'·D + sigma'·eps`, D = c_out·h0 + c_skip·x. 1 call per step, stochastic.

    arXiv 2310.04378, algorithm 3.
    The boundary scalings c_skip, c_out of a time times `scaling` belong to VP models; elsewhere D =
    h0.
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
    """Deterministic step to an intermediate level s, then noise up to the next. 1 call per step.
    arXiv 2402.19159.

    s is at training time floor((1 - eta)·t') for VP and at (1 - eta)·sigma' elsewhere; eta = 0 is
    deterministic, eta = 1 fully stochastic. The last step returns h0 (diffusers returns the sample
    at time 0, which keeps sigma_min of predicted noise).
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
        fresh = (
            torch.sqrt((new.sigma**2 - (rise * mid.sigma) ** 2).clamp(min=0))
            if mid is not new
            else new.sigma * 0
        )
        h0 = rise * (mid.alpha - now.alpha * mid.sigma / now.sigma)
        rows.add(k, now, {"x": rise * mid.sigma / now.sigma, "h0": h0, "eps": fresh})
    return rows.table()
