"""Euler, DDIM, DDPM and Euler ancestral: one formula.

With n the std of fresh noise, `x' = alpha'·h0 + sqrt(sigma'² - n²)·(x - alpha·h0)/sigma + n·eps`,
and n = eta·sigma'·sqrt(1 - e^(-2h)). eta = 0 is Euler's method on the probability-flow ODE in any
coordinates, which is DDIM; eta = 1 is the DDPM posterior, which is Euler ancestral.
"""

from __future__ import annotations

from ..errors import finite
from ..grids import Grid
from ..table import Rows, Table
from .algebra import ancestral_kept, ancestral_noise


def _ancestral(name: str, grid: Grid, eta: float) -> Table:
    rows = Rows(name, grid, order=1)
    for k in range(grid.steps):
        now, new = grid[k], grid[k + 1]
        fresh, kept = ancestral_noise(now, new, eta), ancestral_kept(now, new, eta)
        rows.add(k, now, {"x": kept / now.sigma, "h0": new.alpha - now.alpha * kept / now.sigma, "eps": fresh})
    return rows.table()


def euler(grid: Grid) -> Table:
    """`x' = (sigma'/sigma)·x + (alpha' - alpha·sigma'/sigma)·h0`. Order 1, 1 call per step, deterministic."""
    return _ancestral("euler", grid, 0.0)


def ddim(grid: Grid, *, eta: float = 0.0) -> Table:
    """Euler with `eta` in [0, 1] of the DDPM noise. Order 1, 1 call per step. arXiv 2010.02502, eq. 12."""
    return _ancestral("ddim", grid, finite("eta", eta, 0, 1))


def ddpm(grid: Grid) -> Table:
    """Ancestral sampling with the posterior variance ("fixed small"). Order 1, stochastic. arXiv 2006.11239, eq. 7."""
    return _ancestral("ddpm", grid, 1.0)


def euler_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """Euler to sigma_down, then fresh noise back up; the same table as `ddim` with this `eta`. Order 1, stochastic."""
    return _ancestral("euler_ancestral", grid, finite("eta", eta, 0, 1))
