"""ER-SDE (Cui et al. 2023, arXiv 2309.06169): extended reverse-time SDEs with a noise scale
function phi.

With s = sigma / alpha and r = phi(s')/phi(s), `x'/alpha' = r·x/alpha + int D + sqrt(s'² -
r²·s²)·eps`, where D is the polynomial in s through the past predictions and the integral has the
weight phi(s')·phi'(u)/phi(u)².
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...errors import whole
from ..grids import Grid
from ..process import double
from ..table import Rows, Table
from .algebra import fit, usable

POINTS, WEIGHTS = (double(v) for v in np.polynomial.legendre.leggauss(48))


def noise_scale(s: Tensor) -> Tensor:
    """phi(s) = s·(e^(s^0.3) + 10), the paper's SDE_5."""
    return s * (torch.exp(s**0.3) + 10)


def er_sde(grid: Grid, *, order: int = 3) -> Table:
    """Polynomial through 1 to 3 predictions: weak order 1 or 2, 1 call per step, stochastic.

    First order from pure noise and to the clean level.
    """
    top = whole("order", order, 1, 3)
    rows = Rows("er_sde", grid, order=min(top, 2), history=top)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        count = usable(grid, k, top)
        s, to = now.ratio, new.ratio
        r = noise_scale(to) / noise_scale(s) if bool(now.alpha > 0) else torch.zeros_like(to)
        left = r * s if bool(now.alpha > 0) else r
        fresh = new.alpha * torch.sqrt(to**2 - left**2) if bool(to > 0) else to * 0
        row = {"x": new.alpha * r / now.alpha if bool(now.alpha > 0) else r, "eps": fresh}
        nodes = [(grid[k - j].ratio - s) / (to - s) for j in range(count)] if count > 1 else [r * 0]
        row |= {f"h{j}": new.alpha * w for j, w in enumerate(fit(nodes, _moments(s, to, r, count)))}
        rows.add(k, now, row)
    return rows.table()


def _moments(s: Tensor, to: Tensor, r: Tensor, count: int) -> list[Tensor]:
    """What D = v^p adds, v = (u - s)/(s' - s): 1 - r, then 1 - phi(s')·p·int_0^1 v^(p-1)/phi(u) dv
    by parts.

    Gauss-Legendre in log u, in which the integrand is smooth.
    """
    moments = [1 - r]
    if count > 1:
        width = torch.log(to / s)
        u = s * torch.exp((POINTS + 1) / 2 * width)
        v, measure = (u - s) / (to - s), WEIGHTS / 2 * width * u / (to - s)
        for p in range(1, count):
            moments.append(
                1 - noise_scale(to) * p * (measure * v ** (p - 1) / noise_scale(u)).sum()
            )
    return moments
