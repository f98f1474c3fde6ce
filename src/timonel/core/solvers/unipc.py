"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor-corrector of one call per step.

The prediction at a level first corrects the sample there (`base`), and then predicts the next
from it; both are linear in the registers, so one row does both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import among, several, whole
from ..grids import Grid
from ..table import Rows, Table
from .algebra import correctable, decaying, fit, gain, gap, keep, long_last, schedule, usable

VARIANTS = ("bh1", "bh2", "vary")


def unipc(
    grid: Grid, *, order: int | str = 2, variant: str = "bh2", uncorrected: Sequence[int] = ()
) -> Table:
    """UniPC for the denoised prediction; of order `order` + 1, for the corrector adds one.

    The order rises while history builds up and falls towards a clean end, to 1 on a long last step
    before it (`normal`). No correction crosses fresh noise.

    Args:
        grid: the levels.
        order: of the predictor, 1 … 3; a string such as "12332" for every step (the paper's order
            schedule).
        variant: "bh1", B(h) = h; "bh2", B(h) = e^h - 1; "vary", exact weights (UniPC_v).
        uncorrected: steps from 0 whose result stays as predicted (diffusers' disable_corrector).

    Source: Zhao et al. 2023, arXiv 2302.04867, appendix C.
    """
    among("variant", variant, VARIANTS)
    clean = bool(grid.sigma[-1] == 0)
    orders = schedule(order, grid.steps)
    alone = [whole("uncorrected", step, 0) for step in several("uncorrected", uncorrected, "[0]")]
    rows = Rows("unipc", grid, order=max(orders) + 1, history=max(orders) + 1)
    used = 0  # order of the step that led here
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        here = {"x": torch.ones_like(now.alpha)}
        if k - 1 not in alone and correctable(grid, k):
            here = _corrected(grid, k, used, variant)
        most = 1 if not isinstance(order, str) and long_last(grid, k) else orders[k]
        used = usable(grid, k, min(most, grid.steps - k) if clean else most)
        ahead = {name: keep(now, new) * c for name, c in here.items()}
        for i, w in enumerate(_predictor(grid, k, used, variant)):
            ahead[f"h{i}"] = ahead.get(f"h{i}", 0.0) + new.alpha * w
        rows.add(k, now, ahead, base=here)
    return rows.table()


def _nodes(grid: Grid, k: int, order: int) -> list[Tensor]:
    """(lam_{k-i} - lam_k) / h for the order - 1 predictions before step k."""
    h = gap(grid[k], grid.end(k))
    return [gap(grid[k], grid[k - i]) / h for i in range(1, order)]


def _predictor(grid: Grid, k: int, order: int, variant: str) -> list[Tensor]:
    """Weights of h0, h1, … in what the predictions add to x'/alpha'."""
    now, new, nodes = grid[k], grid.end(k), _nodes(grid, k, order)
    if not nodes:
        return [gain(now, new) / new.alpha]
    return _weights(nodes, gap(now, new), variant)


def _corrected(grid: Grid, k: int, order: int, variant: str) -> dict[str, Tensor]:
    """Registers of the corrected sample at level k: h0 is the prediction here, h1 that at base."""
    old, now = grid[k - 1], grid[k]
    nodes = [*_nodes(grid, k - 1, order), torch.ones_like(now.alpha)]
    w = [now.alpha * v for v in _weights(nodes, gap(old, now), variant)]
    return {"base": keep(old, now), "h0": w[-1], **{f"h{i + 1}": v for i, v in enumerate(w[:-1])}}


def _weights(nodes: list[Tensor], h: Tensor, variant: str) -> list[Tensor]:
    """Weights of the prediction at the start of the step and of those at `nodes`, in units of h.

    x'/alpha' gains (1 - e^(-h))·D_0 - B(h)·sum_i rho_i·(D_i - D_0)/node_i, for the denoised
    prediction.
    """
    zero = torch.zeros_like(h)
    if variant == "vary":
        return fit([zero, *nodes], decaying(h, len(nodes) + 1))
    b = -h if variant == "bh1" else torch.expm1(-h)
    moments = decaying(h, len(nodes) + 1)[1:]
    # the published choice for one node is 1/2, which is also the limit h -> 0
    rho = [zero + 0.5] if len(nodes) == 1 else fit(nodes, [-m / b for m in moments])
    spread = [-b * r / node for r, node in zip(rho, nodes, strict=True)]
    return [-torch.expm1(-h) - sum(spread, start=zero), *spread]
