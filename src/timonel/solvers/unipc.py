"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor-corrector that costs no extra network call.

The prediction made at a level first corrects the sample there (`base`), and then predicts the next
from it; both are linear in the registers, so one row does both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError, whole
from ..grids import Grid
from ..process import Level
from ..table import Rows, Table
from .algebra import finite_lam, gain, gap, keep, usable

VARIANTS = ("bh1", "bh2")


def unipc(grid: Grid, *, order: int = 2, variant: str = "bh2") -> Table:
    """UniPC of `order` 1 to 3 with B(h) = h (`bh1`) or e^h - 1 (`bh2`), for the denoised prediction.

    1 call per step, deterministic. Converges with order + 1, for the corrector adds one.
    Order rises while history builds up and falls towards a clean end.
    """
    if variant not in VARIANTS:
        raise ArgumentError(f"variant must be one of {VARIANTS}, got {variant!r}")
    top = whole("order", order, 1, 3)
    rows = Rows("unipc", grid, order=top + 1, history=top + 1)  # the corrector adds one
    clean = bool(grid.sigma[-1] == 0)
    previous = 0  # order of the step that led here
    for k in range(grid.steps):
        now, new = grid[k], grid[k + 1]
        here = _corrected(grid, k, previous, variant) if k else {"x": torch.ones_like(now.alpha)}
        previous = usable(grid, k, min(top, grid.steps - k) if clean else top)
        ahead = {name: keep(now, new) * c for name, c in here.items()}
        for name, c in _predictor(grid, k, previous, variant).items():
            ahead[name] = ahead.get(name, 0.0) + c
        rows.add(k, now, ahead, base=here)
    return rows.table()


def _weights(nodes: list[Tensor], h: Tensor, variant: str) -> tuple[Tensor, list[Tensor]]:
    """B(h) and the weights rho at `nodes` (in units of h); eq. 8 for the denoised prediction."""
    hh = -h
    phi = torch.expm1(hh)
    b = hh if variant == "bh1" else phi
    if len(nodes) == 1:  # the published choice, also exact in the limit h -> 0
        return b, [torch.full_like(h, 0.5)]
    phi_k, factorial, right = phi / hh - 1, 1.0, []
    for i in range(1, len(nodes) + 1):
        right.append(phi_k * factorial / b)
        factorial *= i + 1
        phi_k = phi_k / hh - 1 / factorial
    r = torch.stack(nodes)
    matrix = torch.stack([r**i for i in range(len(nodes))])
    return b, list(torch.linalg.solve(matrix, torch.stack(right)))


def _nodes(grid: Grid, k: int, order: int) -> list[Tensor]:
    """(lam_{k-i} - lam_k) / h for the order - 1 predictions before step k."""
    h = gap(grid[k], grid[k + 1])
    return [gap(grid[k], grid[k - i]) / h for i in range(1, order)]


def _predictor(grid: Grid, k: int, order: int, variant: str) -> dict[str, Tensor]:
    """The part of the prediction of level k + 1 that multiplies predictions (h0 is at level k)."""
    now, new = grid[k], grid[k + 1]
    out = {"h0": gain(now, new)}
    nodes = _nodes(grid, k, order)
    if nodes:
        _spread(out, new, nodes, *_weights(nodes, gap(now, new), variant), newest="h0", first=1)
    return out


def _corrected(grid: Grid, k: int, order: int, variant: str) -> dict[str, Tensor]:
    """Registers of the corrected sample at level k (h0 is at level k, h1 at level k - 1, base at level k - 1)."""
    old, now = grid[k - 1], grid[k]
    if not finite_lam(old):  # from pure noise there is no finite h to correct over
        return {"x": torch.ones_like(now.alpha)}
    out = {"base": keep(old, now), "h1": gain(old, now)}
    nodes = _nodes(grid, k - 1, order)
    b, rho = _weights([*nodes, torch.ones_like(now.alpha)], gap(old, now), variant)
    _spread(out, now, nodes, b, rho[:-1], newest="h1", first=2)
    _add(out, "h0", -now.alpha * b * rho[-1])
    _add(out, "h1", now.alpha * b * rho[-1])
    return out


def _spread(
    out: dict[str, Tensor], at: Level, nodes: list[Tensor], b: Tensor, rho: list[Tensor], *, newest: str, first: int
) -> None:
    """Add -alpha'·B·sum rho_i·(h_i - newest)/node_i to `out`."""
    for i, (node, weight) in enumerate(zip(nodes, rho, strict=True)):
        c = -at.alpha * b * weight / node
        _add(out, f"h{first + i}", c)
        _add(out, newest, -c)


def _add(out: dict[str, Tensor], name: str, value: Tensor) -> None:
    out[name] = out[name] + value if name in out else value
