"""Euler, DDIM, DDPM and Euler ancestral: one formula on plain and on ancestral levels.

Euler's method on the probability-flow ODE is the same in any coordinates, and is DDIM. The
ancestral samplers take it to a cleaner level and add the noise back (`grids/renoise.py`): eta = 1
is the DDPM posterior.
"""

from __future__ import annotations

from ..grids import Grid, ancestral
from ..table import Rows, Table
from .algebra import gain, keep


def euler(grid: Grid) -> Table:
    """Euler's method: `x' = (sigma'/sigma)·x + (alpha' - alpha·sigma'/sigma)·h0`."""
    rows = Rows("euler", grid, order=1)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        rows.add(k, now, {"x": keep(now, new), "h0": gain(now, new)})
    return rows.table()


def ddim(grid: Grid, *, eta: float = 0.0) -> Table:
    """Euler with a part of DDPM's noise.

    Args:
        grid: the levels.
        eta: part of the noise, in [0, 1].

    Source: Song et al. 2020, arXiv 2010.02502, eq. 12.
    """
    return euler(ancestral(grid, eta))


def ddpm(grid: Grid) -> Table:
    """Ancestral sampling with the posterior variance ("fixed small").

    Source: Ho et al. 2020, arXiv 2006.11239, eq. 7.
    """
    return euler(ancestral(grid, 1.0))


def euler_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """Euler to sigma_down, then fresh noise back up: `ddim` with this `eta`.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].

    Source: k-diffusion, sample_euler_ancestral.
    """
    return euler(ancestral(grid, eta))
