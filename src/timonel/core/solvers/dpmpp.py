"""The DPM-Solver++ multistep family (Lu et al. 2022, arXiv 2211.01095) and RES multistep.

Exponential integrators in lam = log(alpha/sigma) for the denoised prediction. With h = lam' - lam
and H = (1 + eta)·h,

    x' = (sigma'/sigma)·e^(-eta·h)·x + alpha'·(1 - e^(-H))·D + sigma'·sqrt(1 - e^(-2·eta·h))·eps

where D extrapolates past predictions. A step from pure noise or to the clean level has infinite h
and is of first order, which is exact there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import among, finite, whole
from ..grids import Grid, ancestral
from ..table import Rows, Table
from .algebra import VARIANTS, decaying, fit, gap, line, long_last, noised, parabola, usable

#: step, number of predictions, H -> their weights, of sum 1 - e^(-H)
Weights = Callable[[int, int, Tensor], "list[Tensor]"]


def _multistep(
    name: str,
    grid: Grid,
    top: int,
    order: int,
    eta: float,
    weights: Weights,
    most: Callable[[int], int] | None = None,
) -> Table:
    """The common step, through up to `top` predictions and in step k at most `most(k)`."""
    e = finite("eta", eta, 0, 100)
    rows = Rows(name, grid, order=order, history=top)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        move, count = noised(now, new, e), usable(grid, k, min(top, most(k)) if most else top)
        each = [1 - move.rest] if count == 1 else weights(k, count, (1 + e) * gap(now, new))
        history = {f"h{i}": new.alpha * w for i, w in enumerate(each)}
        rows.add(k, now, {"x": move.keep, **history, "eps": move.fresh})
    return rows.table()


def _second(grid: Grid, variant: str) -> Weights:
    """The line through two predictions."""
    among("variant", variant, VARIANTS)

    def weights(k: int, count: int, big: Tensor) -> list[Tensor]:
        return line(big, -big, gap(grid[k - 1], grid[k]) / gap(grid[k], grid.end(k)), variant)

    return weights


def _third(grid: Grid, curvature: float, variant: str) -> Weights:
    """The parabola through three predictions; before there are three, a line."""
    second = _second(grid, variant)

    def weights(k: int, count: int, big: Tensor) -> list[Tensor]:
        if count == 2:
            return second(k, count, big)
        h = gap(grid[k], grid.end(k))
        r0, r1 = gap(grid[k - 1], grid[k]) / h, gap(grid[k - 2], grid[k - 1]) / h
        return parabola(big, -big, r0, r1, curvature)

    return weights


def dpmpp_2m(grid: Grid, *, variant: str = "midpoint") -> Table:
    """DPM-Solver++(2M): linear extrapolation through two predictions.

    Args:
        grid: the levels.
        variant: "midpoint", the published one; "heun" integrates the line exactly (then it is
            `res_multistep`).

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2.
    """
    return _multistep("dpmpp_2m", grid, 2, 2, 0.0, _second(grid, variant))


def dpmpp_2m_sde(grid: Grid, *, eta: float = 1.0, variant: str = "midpoint") -> Table:
    """`dpmpp_2m` on the reverse SDE.

    Args:
        grid: the levels.
        eta: noise, 0 … 100; 1 is diffusers' sde-dpmsolver++.
        variant: "midpoint", the published one; "heun" integrates the line through two predictions
            exactly.

    Source: Lu et al. 2022, arXiv 2211.01095, appendix; k-diffusion, sample_dpmpp_2m_sde.
    """
    return _multistep("dpmpp_2m_sde", grid, 2, 2, eta, _second(grid, variant))


def dpmpp_3m(
    grid: Grid, *, curvature: float = 1.0, variant: str = "midpoint", final_order: int = 2
) -> Table:
    """DPM-Solver++(3M): quadratic extrapolation through three predictions.

    A run that starts below pure noise has order 2, for its first steps have orders 1 and 2.

    Args:
        grid: the levels.
        curvature: factor of the second derivative, in [0, 1]; diffusers and k-diffusion leave out a
            2, which is 0.5 here and order 2.
        variant: of the second step, see `dpmpp_2m`.
        final_order: order of the step before the last one, 2 or 3, where the end is clean.

    Source: Lu et al. 2022, arXiv 2211.01095.
    """
    return _cubic("dpmpp_3m", grid, 0.0, curvature, variant, final_order)


def dpmpp_3m_sde(
    grid: Grid,
    *,
    eta: float = 1.0,
    curvature: float = 0.5,
    variant: str = "heun",
    final_order: int = 3,
) -> Table:
    """`dpmpp_3m` on the reverse SDE, with k-diffusion's formula by default.

    Which is more accurate at usual steps: on six exact models, Karras levels, eta 0, its rms error
    at 8, 10, 15, 20 steps is 0.065, 0.031, 0.0081, 0.0038, that of `dpmpp_3m`'s formula 0.096,
    0.046, 0.011, 0.0045. At 4 steps `final_order=2` has 0.18, 3 has 0.28. All of them:
    `python benchmarks/third_order.py`.

    Args:
        grid: the levels.
        eta: noise, 0 … 100.
        curvature: as in `dpmpp_3m`, in [0, 1].
        variant: as in `dpmpp_3m`.
        final_order: as in `dpmpp_3m`, 2 or 3.

    Source: k-diffusion, sample_dpmpp_3m_sde.
    """
    return _cubic("dpmpp_3m_sde", grid, eta, curvature, variant, final_order)


def _cubic(
    name: str, grid: Grid, eta: float, curvature: float, variant: str, final_order: int
) -> Table:
    """The two methods of three predictions."""
    bend, final = finite("curvature", curvature, 0, 1), whole("final_order", final_order, 2, 3)
    order = 2 if eta or bend != 1 else 3
    last = grid.steps - 2 if final == 2 and bool(grid.sigma[-1] == 0) else None
    weights = _third(grid, bend, variant)
    return _multistep(name, grid, 3, order, eta, weights, lambda k: 2 if k == last else 3)


def res_multistep(grid: Grid, *, order: int = 2) -> Table:
    """Exponential Adams-Bashforth: the polynomial in lam through the newest predictions.

    Of first order on a long last step before the one to the clean level: on `normal` in 8 steps
    its error is .10 for .41, with order=3 .08 for 1.7 (data of docs/names.md).

    Args:
        grid: the levels.
        order: number of predictions, 1 … 4.

    Source: arXiv 2308.02157 (order 2).
    """
    top = whole("order", order, 1, 4)

    def most(k: int) -> int:
        return 1 if long_last(grid, k) else top

    return _multistep("res_multistep", grid, top, top, 0.0, exact(grid), most)


def res_multistep_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """`res_multistep` of order 2 on ancestral levels; of weak order 1.

    The distance to the previous prediction is the length of its step, down to where the noise was
    added. That damps the extrapolation, for fresh noise has parted the two samples.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].

    Source: ComfyUI, sample_res_multistep_ancestral.
    """
    down = ancestral(grid, eta)

    def weights(k: int, count: int, big: Tensor) -> list[Tensor]:
        nodes = [torch.zeros_like(big), -gap(down[k - 1], down.end(k - 1)) / big]
        return fit(nodes[:count], decaying(big, count))

    return _multistep("res_multistep_ancestral", down, 2, 1 if eta else 2, 0.0, weights)


def exact(grid: Grid) -> Weights:
    """The polynomial through the newest predictions, integrated exactly over the step."""

    def weights(k: int, count: int, big: Tensor) -> list[Tensor]:
        h = gap(grid[k], grid.end(k))
        nodes = [gap(grid[k], grid[k - j]) / h for j in range(count)]
        return fit(nodes, decaying(big, count))

    return weights
