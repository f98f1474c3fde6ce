"""Euler, DDIM, DDPM and Euler ancestral: one formula on plain and on ancestral levels.

Euler's method on the probability-flow ODE is the same in any coordinates, and is DDIM. The
ancestral samplers take it to a cleaner level and add the noise back (`grids/lifts.py`): eta = 1 is
the DDPM posterior.
"""

from __future__ import annotations

from ..grids import Grid, ancestral
from ..table import Rows, Table
from .algebra import gain, keep


def euler(grid: Grid) -> Table:
    """`x' = (sigma'/sigma)·x + (alpha' - alpha·sigma'/sigma)·h0`. Order 1, 1 call per step,
    deterministic.
    """
    rows = Rows("euler", grid, order=1)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        rows.add(k, now, {"x": keep(now, new), "h0": gain(now, new)})
    return rows.table()


def ddim(grid: Grid, *, eta: float = 0.0) -> Table:
    """Euler with `eta` in [0, 1] of the DDPM noise. Order 1, 1 call per step. arXiv 2010.02502, eq.
    12.
    """
    return euler(ancestral(grid, eta))


def ddpm(grid: Grid) -> Table:
    """Ancestral sampling with the posterior variance ("fixed small"). Order 1, stochastic. arXiv
    2006.11239, eq. 7.
    """
    return euler(ancestral(grid, 1.0))


def euler_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """Euler to sigma_down, then fresh noise back up; the same table as `ddim` with this `eta`.
    Order 1, stochastic.
    """
    return euler(ancestral(grid, eta))
