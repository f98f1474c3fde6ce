"""Exponential Runge-Kutta methods: singlestep DPM-Solvers, RES, SEEDS, tableaus of phi functions.

In lam = log(alpha/sigma), with H = (1 + eta)·h and the denoised prediction D_j of stage j at
lam + c_j·h,

    x_i = (evolved sample at stage i) + alpha_i · H·sum_j a_ij(-H)·D_j
    sum_j a_ij(z) = c_i·phi_1(c_i·z)

and the result is the stage with c = 1 and weights b. Between stages the sample evolves as
`algebra.noised` says, with fresh noise where eta > 0, so the stages of a step see one path. From
pure noise h is infinite: there the same tableau at z = 0 is a Runge-Kutta method in
(alpha/sigma)^(1 + eta), in which D is smooth. A step to the clean level is of first order, which is
exact for a constant denoised sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import among, finite, whole
from ..grids import Grid, ancestral
from ..process import Level, double
from ..table import Coefficients, Rows, Table
from .algebra import ancestral_kept, finite_lam, frame, gain, gap, keep, noised, phi, shrink
from .exponential_tableaus import (
    EXPONENTIALS,
    Exponential,
    dpm_3_tableau,
    dpmpp_2s_tableau,
    first,
    res_2s_tableau,
    res_3s_tableau,
)
from .runge_kutta import at_s, clean_step


def singlestep(name: str, grid: Grid, method: Exponential, eta: float = 0.0) -> Table:
    """The table of a method on denoised predictions, with `eta` of the reverse SDE's noise."""
    e = finite("eta", eta, 0, 100)
    order = min(method.order, 2) if e else method.order
    rows = Rows(name, grid, order=order, history=len(method.nodes) + 1)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        if not finite_lam(new):
            rows.add(k, now, {"x": keep(now, new), "h0": gain(now, new)})
            continue
        levels, weights = _stages(grid, now, new, method, e)
        for i, (at, to) in enumerate(zip([now, *levels], [*levels, new], strict=True)):
            start = at if e else now
            move, source = noised(start, to, e), "x" if i == 0 else "base"
            noise = {"eps": move.fresh} if e else {}
            history = {f"h{i - j}": w for j, w in enumerate(weights[i])}
            base = {source: move.keep, **noise} if e else {"x": 1.0} if i == 0 else None
            rows.add(k, at, {source: move.keep, **history, **noise}, base=base)
    return rows.table()


def _stages(
    grid: Grid, now: Level, new: Level, method: Exponential, eta: float
) -> tuple[list[Level], list[list[Tensor]]]:
    """Levels of the inner stages; for each and the result the weights of all predictions so far."""
    nodes, stages = (*method.nodes, 1.0), (*method.stages, method.b)

    def level(c: float) -> Level:
        if c == 1:
            return new
        if finite_lam(now):
            return grid.process.at_lam(now.lam + c * gap(now, new))
        # from pure noise: a Runge-Kutta step in u = (alpha/sigma)^(1 + eta), which begins at u = 0
        return grid.process.at_lam(new.lam + torch.log(double(c)) / (1 + eta))

    levels = [level(c) for c in nodes]
    if finite_lam(now):
        h = (1 + eta) * gap(now, new)
        z, scales = -h, [at.alpha * h for at in levels]
    else:
        z = torch.zeros_like(new.alpha)
        scales = [at.alpha / c for at, c in zip(levels, nodes, strict=True)]
    return levels[:-1], [
        [s * w for w in first(c, a(z), z)] for s, c, a in zip(scales, nodes, stages, strict=True)
    ]


def dpmpp_2s(grid: Grid, *, r: float = 0.5) -> Table:
    """DPM-Solver++(2S): D at lam + r·h, linearly extrapolated to the middle.

    Args:
        grid: the levels.
        r: place of the second call in the step, in [0.01, 1].

    Source: Lu et al. 2022, arXiv 2211.01095, algorithm 1 (r = 1/2).
    """
    return singlestep("dpmpp_2s", grid, dpmpp_2s_tableau(finite("r", r, 0.01, 1)))


def dpmpp_3s(grid: Grid) -> Table:
    """DPM-Solver++ with the three stages of DPM-Solver-3, at 1/3 and 2/3 of the step.

    Source: Lu et al. 2022, arXiv 2211.01095 and 2206.00927.
    """
    return singlestep("dpmpp_3s", grid, dpm_3_tableau())


def dpmpp_2s_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """`dpmpp_2s` on ancestral levels.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].

    Source: k-diffusion, sample_dpmpp_2s_ancestral.
    """
    return dpmpp_2s(ancestral(grid, eta))


def dpmpp_sde(grid: Grid, *, eta: float = 1.0, r: float = 0.5) -> Table:
    """DPM-Solver++(2S) whose stage and result are both ancestral, on one noise path.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].
        r: place of the second call in the step, in [0.01, 1].

    Source: k-diffusion, sample_dpmpp_sde; diffusers' DPMSolverSDEScheduler.
    """
    e, c = finite("eta", eta, 0, 1), finite("r", r, 0.01, 1)
    rows = Rows("dpmpp_sde", grid, order=2, history=2)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        if not finite_lam(new):
            rows.add(k, now, {"x": keep(now, new), "h0": gain(now, new)})
            continue
        mid = new if c == 1 else grid.process.at_lam(_between(now, new, c))
        kept, kept_mid = ancestral_kept(now, new, e), ancestral_kept(now, mid, e)
        to_mid = from_mid = new.sigma * 0  # fresh noise of both parts of the step, over sigma
        if e:
            to_mid = e * torch.sqrt((1 - shrink(now, mid) ** 2).clamp(min=0))
        if e and c < 1:
            from_mid = e * torch.sqrt((1 - shrink(mid, new) ** 2).clamp(min=0))
        h0 = mid.alpha - now.alpha * kept_mid / now.sigma
        x: Coefficients = {"x": kept_mid / now.sigma, "h0": h0, "eps": mid.sigma * to_mid}
        base = {"x": kept / now.sigma, "eps": new.sigma * shrink(mid, new) * to_mid}
        rows.add(k, now, x, base=base)
        d, tilt = new.alpha - now.alpha * kept / now.sigma, 1 / (2 * c)
        x = {"base": 1.0, "h1": d * (1 - tilt), "h0": d * tilt, "eps": new.sigma * from_mid}
        rows.add(k, mid, x)
    return rows.table()


def _between(now: Level, new: Level, c: float) -> Tensor:
    """lam of the stage with node c; from pure noise alpha/sigma is c times the target's."""
    return now.lam + c * gap(now, new) if finite_lam(now) else new.lam + math.log(c)


def res_2s(grid: Grid) -> Table:
    """RES with two stages, c = 1/2 (arXiv 2308.02157)."""
    return singlestep("res_2s", grid, res_2s_tableau())


def res_3s(grid: Grid) -> Table:
    """RES with three stages, c = 1/2 and 1 (arXiv 2308.02157)."""
    return singlestep("res_3s", grid, res_3s_tableau())


def exponential_rk(grid: Grid, *, tableau: str = "krogstad") -> Table:
    """Any explicit exponential method by its tableau, whose order and calls it has.

    Args:
        grid: the levels.
        tableau: dpmpp_2s, res_2s, heun (order 2), res_3s, res_3s_down, dpm_3, etd3rk,
            etdrk3, etdrk3_b, etd2cf3 (3), etdrk4, krogstad, strehmel_weiner, cfree4, rkmk4t (4),
            res_5s (Hochbruck & Ostermann, 5 calls, 4), res_6s and res_10s (Luan 2021, 6 and 10
            calls, 4 and 5).
    """
    among("tableau", tableau, EXPONENTIALS)
    return singlestep("exponential_rk", grid, EXPONENTIALS[tableau])


SEEDS_2: dict[str, Callable[[float], Exponential]] = {
    "phi_1": dpmpp_2s_tableau,
    "phi_2": res_2s_tableau,
}


def seeds_2(grid: Grid, *, eta: float = 1.0, r: float = 0.5, variant: str = "phi_1") -> Table:
    """SEEDS with two stages: `dpmpp_2s` on the reverse SDE.

    Args:
        grid: the levels.
        eta: noise, 0 … 100.
        r: place of the second call in the step, in [0.01, 1].
        variant: "phi_1"; "phi_2" integrates the line through both predictions exactly, and at r = 1
            is `exp_heun_2_x0_sde`.

    Source: Gonzalez et al. 2023, arXiv 2305.14267.
    """
    among("variant", variant, SEEDS_2)
    return singlestep("seeds_2", grid, SEEDS_2[variant](finite("r", r, 0.01, 1)), eta)


def exp_heun_2_x0_sde(grid: Grid, *, eta: float = 1.0, variant: str = "phi_2") -> Table:
    """Exponential Heun on the reverse SDE: `seeds_2` whose second call is at the end of the step.

    Args:
        grid: the levels.
        eta: noise, 0 … 100; 0 is ComfyUI's exp_heun_2_x0.
        variant: "phi_2" integrates the line through both predictions exactly; "phi_1" takes their
            mean.

    Source: Gonzalez et al. 2023, arXiv 2305.14267; ComfyUI.
    """
    among("variant", variant, SEEDS_2)
    return singlestep("exp_heun_2_x0_sde", grid, SEEDS_2[variant](1.0), eta)


def seeds_3(grid: Grid, *, eta: float = 1.0) -> Table:
    """SEEDS with three stages: DPM-Solver-3's tableau on the reverse SDE; of order 3 at eta = 0.

    Args:
        grid: the levels.
        eta: noise, 0 … 100.

    Source: Gonzalez et al. 2023, arXiv 2305.14267.
    """
    return singlestep("seeds_3", grid, dpm_3_tableau(), eta)


# -- the same tableaus on slopes: DPM-Solver ------------------------------------------------------
MIDDLE = Exponential(2, (0.5,), (lambda z: (),), lambda z: (phi(1, z),))
STRAIGHT = Exponential(1, (), (), lambda z: ())
DPM_SOLVERS = {1: STRAIGHT, 2: MIDDLE, 3: dpm_3_tableau()}


def dpm_solver(grid: Grid, *, order: int = 3) -> Table:
    """DPM-Solver-1, -2 or -3 on slopes in log s; first order to the clean level.

    Args:
        grid: the levels.
        order: order, and calls per step, 1 … 3.

    Source: Lu et al. 2022, arXiv 2206.00927.
    """
    whole("order", order, 1, 3)
    return _on_slopes("dpm_solver", grid, [order] * grid.steps)


def dpm_fast(grid: Grid, *, remainder: int = 0) -> Table:
    """DPM-Solver-fast: steps of order 3, the last of lower order.

    Args:
        grid: the levels.
        remainder: 0: the orders are 3, …, 3, 2, 1, in 3(N - 1) calls; 1 or 2: 3, …, 3, remainder.

    Source: Lu et al. 2022, arXiv 2206.00927; k-diffusion, sample_dpm_fast, on the grid `lam`.
    """
    left = whole("remainder", remainder, 0, 2)
    tail = [left] if left else [2, 1]
    orders = [3] * (grid.steps - len(tail)) + tail[-grid.steps :]
    return replace(_on_slopes("dpm_fast", grid, orders), order=3 if left == 2 else 2)


def _on_slopes(name: str, grid: Grid, orders: Sequence[int]) -> Table:
    """x_i = (m_i/m)·x - sigma_i·h·sum_j a_ij(h)·slope_j with h = log(s/s')."""
    at = frame(grid)
    rows = Rows(name, grid, order=max(orders), history=max(orders), basis=at.basis)
    for k, order in enumerate(orders):
        now, new, method = grid[k], grid.end(k), DPM_SOLVERS[order]
        if not bool(new.sigma > 0):
            clean_step(rows, grid, at, k)
            continue
        s, h, level = at.s(now), torch.log(at.s(now) / at.s(new)), now
        stages = [*zip(method.nodes, method.stages, strict=True), (1.0, method.b)]
        for i, (c, weights) in enumerate(stages):
            to = new if c == 1 else at_s(grid, at, s * torch.exp(-c * h))
            row: dict[str, Tensor] = {"x" if i == 0 else "base": at.m(to) / at.m(now)}
            row |= {f"h{i - j}": -to.sigma * h * w for j, w in enumerate(first(c, weights(h), h))}
            rows.add(k, level, row, base={"x": 1.0} if i == 0 else None)
            level = to
    return rows.table()
