"""The DPM-Solver++ multistep family (Lu et al. 2022, arXiv 2211.01095).

Exponential integrators in lam = log(alpha/sigma) for the denoised prediction. With h = lam' - lam,
`x' = (sigma'/sigma)·x + alpha'·(1 - e^(-h))·D`, where D extrapolates past predictions. A step from
pure noise or to the clean level has infinite h and is of first order, which is exact there.
"""

from __future__ import annotations

import torch

from ..errors import finite
from ..grids import Grid
from ..table import Rows, Table
from .algebra import expm1_ratio, gain, gap, keep, shrink, usable


def dpmpp_2m(grid: Grid) -> Table:
    """D = h0 + (h0 - h1)/(2r), r = h_prev/h. Order 2, 1 call per step, deterministic. Algorithm 2."""
    rows = Rows("dpmpp_2m", grid, order=2, history=2)
    for k in range(grid.steps):
        now, new = grid[k], grid[k + 1]
        c = gain(now, new)
        if usable(grid, k, 2) == 1:
            rows.add(k, now, {"x": keep(now, new), "h0": c})
            continue
        tilt = gap(now, new) / (2 * gap(grid[k - 1], now))
        rows.add(k, now, {"x": keep(now, new), "h0": c * (1 + tilt), "h1": -c * tilt})
    return rows.table()


def dpmpp_3m(grid: Grid) -> Table:
    """Quadratic extrapolation through three predictions. Order 3, 1 call per step, deterministic.

    Orders 1 and 2 while history builds up, which costs nothing near pure noise but leaves order 2 to a
    run that starts inside; order 2 on the step before a clean end and 1 on the last.
    """
    rows = Rows("dpmpp_3m", grid, order=3, history=3)
    clean = bool(grid.sigma[-1] == 0)
    for k in range(grid.steps):
        now, new = grid[k], grid[k + 1]
        c, h = gain(now, new), gap(now, new)
        order = usable(grid, k, 2 if clean and k == grid.steps - 2 else 3)
        row = {"x": keep(now, new), "h0": c}
        if order == 2:
            tilt = h / (2 * gap(grid[k - 1], now))
            row |= {"h0": c * (1 + tilt), "h1": -c * tilt}
        elif order == 3:
            r0, r1 = gap(grid[k - 1], now) / h, gap(grid[k - 2], grid[k - 1]) / h
            second = expm1_ratio(h)
            third = torch.where(h.abs() < 1e-3, -h / 6 + h**2 / 24, second / h - 0.5)
            # h·D' = d0 + (d0 - d1)·r0/(r0 + r1) and h²·D'' = 2·(d0 - d1)/(r0 + r1), d0 = (h0-h1)/r0, d1 = (h1-h2)/r1.
            # diffusers and k-diffusion leave out the 2, which makes theirs order 2.
            bend = (second * r0 - 2 * third) / (r0 + r1)
            d0, d1 = new.alpha * (second + bend) / r0, -new.alpha * bend / r1
            row |= {"h0": c + d0, "h1": d1 - d0, "h2": -d1}
        rows.add(k, now, row)
    return rows.table()


def dpmpp_2m_sde(grid: Grid, *, eta: float = 1.0) -> Table:
    """DPM++ 2M on the reverse SDE, midpoint form. Order 2 (weak for eta > 0), 1 call per step.

    `x' = (sigma'/sigma)·e^(-eta·h)·x + alpha'·(1 - e^(-(1+eta)h))·D + sigma'·sqrt(1 - e^(-2·eta·h))·eps`,
    D = h0 + (h0 - h1)/(2r). k-diffusion `sample_dpmpp_2m_sde`; eta = 1 is diffusers' sde-dpmsolver++.
    """
    e = finite("eta", eta, 0, 100)
    rows = Rows("dpmpp_2m_sde", grid, order=2, history=2)
    for k in range(grid.steps):
        now, new = grid[k], grid[k + 1]
        fall = shrink(now, new)
        fall = fall if bool(fall > 0) else fall.detach()  # fall^eta has no finite slope at 0
        c = new.alpha * (1 - fall ** (1 + e))
        fresh = new.sigma * torch.sqrt((1 - fall ** (2 * e)).clamp(min=0)) if e else new.sigma * 0
        row = {"x": keep(now, new) * fall**e, "h0": c, "eps": fresh}
        if usable(grid, k, 2) == 2:
            tilt = gap(now, new) / (2 * gap(grid[k - 1], now))
            row |= {"h0": c * (1 + tilt), "h1": -c * tilt}
        rows.add(k, now, row)
    return rows.table()
