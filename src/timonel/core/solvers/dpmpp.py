"""The DPM-Solver++ multistep family (Lu et al. 2022, arXiv 2211.01095) and RES multistep. 1 call
per step.

Exponential integrators in lam = log(alpha/sigma) for the denoised prediction. With h = lam' - lam
and H = (1 + eta)·h, `x' = (sigma'/sigma)·e^(-eta·h)·x + alpha'·(1 - e^(-H))·D + sigma'·sqrt(1 -
e^(-2·eta·h))·eps`, where D extrapolates past predictions. A step from pure noise or to the clean
level has infinite h and is of first order, which is exact there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import among, finite, whole
from ..grids import Grid, ancestral
from ..table import Rows, Table
from .algebra import VARIANTS, decaying, fit, gap, line, long_last, noised, parabola, usable

Weights = Callable[
    [int, int, Tensor], "list[Tensor]"
]  # step, order, H -> weights, their sum 1 - e^(-H)


def _multistep(
    name: str,
    grid: Grid,
    top: int,
    order: int,
    eta: float,
    weights: Weights,
    most: Callable[[int], int] | None = None,
) -> Table:
    """The family's common step through up to `top` predictions, and through up to `most(k)` of them
    in step k.
    """
    e = finite("eta", eta, 0, 100)
    rows = Rows(name, grid, order=order, history=top)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        move, count = noised(now, new, e), usable(grid, k, min(top, most(k)) if most else top)
        found = [1 - move.rest] if count == 1 else weights(k, count, (1 + e) * gap(now, new))
        rows.add(
            k,
            now,
            {
                "x": move.keep,
                **{f"h{i}": new.alpha * w for i, w in enumerate(found)},
                "eps": move.fresh,
            },
        )
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
    """Linear extrapolation through two predictions. Order 2, 1 call per step, deterministic.
    Algorithm 2.

    variant "midpoint" is the published one, "heun" integrates the line exactly (then it is
    `res_multistep`).
    """
    return _multistep("dpmpp_2m", grid, 2, 2, 0.0, _second(grid, variant))


def dpmpp_2m_sde(grid: Grid, *, eta: float = 1.0, variant: str = "midpoint") -> Table:
    """`dpmpp_2m` on the reverse SDE. Order 2 (weak for eta > 0), 1 call per step, stochastic.

    k-diffusion `dpmpp_2m_sde`; eta = 1 is diffusers' sde-dpmsolver++.
    """
    return _multistep("dpmpp_2m_sde", grid, 2, 2, eta, _second(grid, variant))


def dpmpp_3m(
    grid: Grid, *, curvature: float = 1.0, variant: str = "midpoint", final_order: int = 2
) -> Table:
    """Quadratic extrapolation through three predictions. Order 3, 1 call per step, deterministic.

    Orders 1 and 2 (by `variant`, as in `dpmpp_2m`) while history builds up, which costs nothing
    near pure noise but leaves order 2 to a run that starts inside; `final_order` 2 or 3 on the step
    before a clean end and 1 on the last. `curvature` in [0, 1] multiplies the second derivative:
    diffusers and k-diffusion leave out a 2, which is 0.5 here and order 2.
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
    """`dpmpp_3m` on the reverse SDE, as k-diffusion has it. Order 2 (weak for eta > 0), 1 call per
    step, stochastic.

    k-diffusion's formula is the default because it is nearer at the steps people use: on six exact
    models, Karras levels, eta 0, its rms error at 8, 10, 15, 20 steps is 0.065, 0.031, 0.0081,
    0.0038 where that of `dpmpp_3m` (`curvature=1, variant="midpoint", final_order=2`, order 3 at
    eta 0) is 0.096, 0.046, 0.011, 0.0045. At 4 and 5 steps `final_order=2` is nearer, 0.18 for 0.28
    at 4. All of them: `python benchmarks/third_order.py`.
    """
    return _cubic("dpmpp_3m_sde", grid, eta, curvature, variant, final_order)


def _cubic(
    name: str, grid: Grid, eta: float, curvature: float, variant: str, final_order: int
) -> Table:
    """The two methods of three predictions."""
    bend, final = finite("curvature", curvature, 0, 1), whole("final_order", final_order, 2, 3)
    order = 2 if eta or bend != 1 else 3
    last = grid.steps - 2 if final == 2 and bool(grid.sigma[-1] == 0) else None
    return _multistep(
        name, grid, 3, order, eta, _third(grid, bend, variant), lambda k: 2 if k == last else 3
    )


def res_multistep(grid: Grid, *, order: int = 2) -> Table:
    """The polynomial in lam through `order` predictions, integrated exactly. Order 1 to 4, 1 call
    per step.

    Deterministic. Exponential Adams-Bashforth; arXiv 2308.02157 (order 2). Of first order on a long
    last step before the one to the clean level: on `normal` in 8 steps .10 off for .41, and order 3
    .08 for 1.7 (docs/names.md's data).
    """
    top = whole("order", order, 1, 4)
    return _multistep(
        "res_multistep",
        grid,
        top,
        top,
        0.0,
        exact(grid),
        lambda k: 1 if long_last(grid, k) else top,
    )


def res_multistep_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """`res_multistep` of order 2 on ancestral levels. Order 1 weakly, 1 call per step, stochastic.
    ComfyUI's.

    The previous prediction counts as one made as far back as its step was long, down to where the
    noise was added: fresh noise has parted the two samples, and the longer way damps the
    extrapolation.
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
