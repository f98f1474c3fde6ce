"""ER-SDE: extended reverse-time SDEs with a noise scale function phi.

With s = sigma / alpha and r = phi(s')/phi(s), `x'/alpha' = r·x/alpha + int D + sqrt(s'² -
r²·s²)·eps`, where D is the polynomial in s through the past predictions and the integral has the
weight phi(s')·phi'(u)/phi(u)². Cui et al. 2023, arXiv 2309.06169.
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
    """ER-SDE with a polynomial through the newest predictions; of weak order min(`order`, 2).

    First order from pure noise and to the clean level.

    Args:
        grid: the levels.
        order: number of predictions, 1 … 3.

    Source: Cui et al. 2023, arXiv 2309.06169.
    """
    top = whole("order", order, 1, 3)
    rows = Rows("er_sde", grid, order=min(top, 2), history=top)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        count = usable(grid, k, top)
        s, to = now.ratio, new.ratio
        r = left = kept = torch.zeros_like(to)  # nothing of pure noise is kept
        if bool(now.alpha > 0):
            r = noise_scale(to) / noise_scale(s)
            left, kept = r * s, new.alpha * r / now.alpha
        fresh = new.alpha * torch.sqrt(to**2 - left**2) if bool(to > 0) else to * 0
        row = {"x": kept, "eps": fresh}
        nodes = [(grid[k - j].ratio - s) / (to - s) for j in range(count)] if count > 1 else [r * 0]
        row |= {f"h{j}": new.alpha * w for j, w in enumerate(fit(nodes, _moments(s, to, r, count)))}
        rows.add(k, now, row)
    return rows.table()


def _moments(s: Tensor, to: Tensor, r: Tensor, count: int) -> list[Tensor]:
    """What D = v^p adds, v = (u - s)/(s' - s): 1 - r, or 1 - phi(s')·p·int_0^1 v^(p-1)/phi(u) dv.

    Integrated by parts, then by Gauss-Legendre in log u, in which the integrand is smooth.
    """
    moments = [1 - r]
    if count > 1:
        width = torch.log(to / s)
        u = s * torch.exp((POINTS + 1) / 2 * width)
        v, measure = (u - s) / (to - s), WEIGHTS / 2 * width * u / (to - s)
        for p in range(1, count):
            integral = (measure * v ** (p - 1) / noise_scale(u)).sum()
            moments.append(1 - noise_scale(to) * p * integral)
    return moments
