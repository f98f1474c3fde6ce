"""Exponential Runge-Kutta methods: the singlestep DPM-Solvers, RES, SEEDS and any tableau of phi
functions.

In lam = log(alpha/sigma), with H = (1 + eta)·h and the denoised prediction D_j of stage j at lam +
c_j·h,

    x_i = (evolved sample at stage i) + alpha_i · H·sum_j a_ij(-H)·D_j,    sum_j a_ij(z) =
    c_i·phi_1(c_i·z)

and the result is the stage with c = 1 and weights b. Between stages the sample evolves as
`algebra.noised` says, with fresh noise where eta > 0, so stages of one step see one path. From pure
noise h is infinite: there the same tableau at z = 0 is a Runge-Kutta method in (alpha/sigma)^(1 +
eta), in which D is smooth. A step to the clean level is of first order, which is exact for a
constant denoised sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import among, finite, whole
from ..grids import Grid, ancestral
from ..process import Level, double
from ..table import Rows, Table
from .algebra import ancestral_kept, finite_lam, frame, gain, gap, keep, noised, phi, shrink
from .runge_kutta import at_s, clean_step

Stage = Callable[
    [Tensor], "Sequence[Tensor | float]"
]  # z -> weights of D_2, D_3, … ; D_1 has the rest


@dataclass(frozen=True)
class Exponential:
    """An explicit exponential method: node c_i and weights a_ij(z), j >= 2, of stages 2, 3, … and
    the weights b.
    """

    order: int
    nodes: tuple[float, ...]
    stages: tuple[Stage, ...]
    b: Stage


def _first(c: float, weights: Sequence[Tensor | float], z: Tensor) -> list[Tensor]:
    """All weights of a stage: what D_1 gets makes the sum c·phi_1(c·z)."""
    rest = [double(w) for w in weights]
    return [c * phi(1, c * z) - sum(rest, start=torch.zeros_like(z)), *rest]


def dpmpp_2s_tableau(r: float) -> Exponential:
    """arXiv 2211.01095, algorithm 1."""
    return Exponential(2, (r,), (lambda z: (),), lambda z: (phi(1, z) / (2 * r),))


def res_2s_tableau(c: float = 0.5) -> Exponential:
    """arXiv 2308.02157; Hochbruck & Ostermann 2005, "Explicit exponential Runge-Kutta methods"."""
    return Exponential(2, (c,), (lambda z: (),), lambda z: (phi(2, z) / c,))


def res_3s_tableau(c2: float = 0.5, c3: float = 1.0) -> Exponential:
    """arXiv 2308.02157; Hochbruck & Ostermann 2005."""
    g = (3 * c3**3 - 2 * c3) / (c2 * (2 - 3 * c2))
    return Exponential(
        3, (c2, c3),
        (lambda z: (), lambda z: (g * c2 * phi(2, c2 * z) + c3**2 / c2 * phi(2, c3 * z),)),
        lambda z: (g / (g * c2 + c3) * phi(2, z), phi(2, z) / (g * c2 + c3)),
    )  # fmt: skip


def dpm_3_tableau(c2: float = 1 / 3, c3: float = 2 / 3) -> Exponential:
    """arXiv 2206.00927: DPM-Solver-3."""
    return Exponential(
        3,
        (c2, c3),
        (lambda z: (), lambda z: (c3**2 / c2 * phi(2, c3 * z),)),
        lambda z: (0.0, phi(2, z) / c3),
    )


def _etdrk4() -> Exponential:
    """Cox & Matthews 2002, eq. 26 to 29."""
    return Exponential(
        4, (0.5, 0.5, 1.0),
        (
            lambda z: (),
            lambda z: (phi(1, z / 2) / 2,),
            lambda z: (0.0, phi(1, z / 2)),
        ),
        lambda z: (2 * phi(2, z) - 4 * phi(3, z), 2 * phi(2, z) - 4 * phi(3, z),
        4 * phi(3, z) - phi(2, z)),
    )  # fmt: skip


def _krogstad() -> Exponential:
    """Krogstad 2005: like Cox & Matthews', with smaller error constants."""
    return Exponential(
        4, (0.5, 0.5, 1.0),
        (lambda z: (), lambda z: (phi(2, z / 2),), lambda z: (0.0, 2 * phi(2, z))),
        lambda z: (2 * phi(2, z) - 4 * phi(3, z), 2 * phi(2, z) - 4 * phi(3, z),
        4 * phi(3, z) - phi(2, z)),
    )  # fmt: skip


EXPONENTIALS = {
    "dpmpp_2s": dpmpp_2s_tableau(0.5),
    "res_2s": res_2s_tableau(),
    "heun": res_2s_tableau(1.0),
    "res_3s": res_3s_tableau(),
    "dpm_3": dpm_3_tableau(),
    "etdrk4": _etdrk4(),
    "krogstad": _krogstad(),
}


def singlestep(name: str, grid: Grid, method: Exponential, eta: float = 0.0) -> Table:
    """The table of an exponential method on denoised predictions, with `eta` of the reverse SDE's
    noise.
    """
    e = finite("eta", eta, 0, 100)
    rows = Rows(
        name, grid, order=min(method.order, 2) if e else method.order, history=len(method.nodes) + 1
    )
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
    """The levels of the inner stages, and for every stage and the result the weights of all
    predictions before it.
    """
    nodes, stages = method.nodes, [*method.stages, method.b]
    if finite_lam(now):
        h = gap(now, new)
        levels = [new if c == 1 else grid.process.at_lam(now.lam + c * h) for c in nodes]
        big = (1 + eta) * h
        scale = [level.alpha * big for level in (*levels, new)]
        return levels, [
            [s * w for w in _first(c, a(-big), -big)]
            for s, c, a in zip(scale, (*nodes, 1.0), stages, strict=True)
        ]
    # from pure noise: a Runge-Kutta step in u = (alpha/sigma)^(1 + eta), which begins at u = 0
    levels = [
        new if c == 1 else grid.process.at_lam(new.lam + torch.log(double(c)) / (1 + eta))
        for c in nodes
    ]
    zero = torch.zeros_like(new.alpha)
    scale = [level.alpha / c for level, c in zip((*levels, new), (*nodes, 1.0), strict=True)]
    return levels, [
        [s * w for w in _first(c, a(zero), zero)]
        for s, c, a in zip(scale, (*nodes, 1.0), stages, strict=True)
    ]


def dpmpp_2s(grid: Grid, *, r: float = 0.5) -> Table:
    """D at lam + r·h, linearly extrapolated to the middle. Order 2, 2 calls per step,
    deterministic.

    arXiv 2211.01095, algorithm 1 (r = 1/2). r in (0, 1].
    """
    return singlestep("dpmpp_2s", grid, dpmpp_2s_tableau(finite("r", r, 0.01, 1)))


def dpmpp_3s(grid: Grid) -> Table:
    """DPM-Solver++ with three stages, DPM-Solver-3's. Order 3, 3 calls per step, deterministic.

    Lu et al. 2022, arXiv 2211.01095, with the inner levels of arXiv 2206.00927 (1/3 and 2/3 of the
    step).
    """
    return singlestep("dpmpp_3s", grid, dpm_3_tableau())


def dpmpp_2s_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """`dpmpp_2s` on ancestral levels. Order 2 (weak), 2 calls per step, stochastic. As
    k-diffusion's.
    """
    return dpmpp_2s(ancestral(grid, eta))


def dpmpp_sde(grid: Grid, *, eta: float = 1.0, r: float = 0.5) -> Table:
    """`dpmpp_2s` whose stage and result are both ancestral, on one noise path. 2 calls per step,
    stochastic.

    Order 2 (weak). k-diffusion `dpmpp_sde`; diffusers' DPMSolverSDEScheduler. eta in [0, 1].
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
        half = e * torch.sqrt((1 - shrink(now, mid) ** 2).clamp(min=0)) if e else new.sigma * 0
        rest = (
            e * torch.sqrt((1 - shrink(mid, new) ** 2).clamp(min=0))
            if e and c < 1
            else new.sigma * 0
        )
        rows.add(
            k, now,
            {"x": kept_mid / now.sigma, "h0": mid.alpha - now.alpha * kept_mid / now.sigma,
            "eps": mid.sigma * half},
            base={"x": kept / now.sigma, "eps": new.sigma * shrink(mid, new) * half},
        )  # fmt: skip
        c_d, tilt = new.alpha - now.alpha * kept / now.sigma, 1 / (2 * c)
        rows.add(
            k, mid, {"base": 1.0, "h1": c_d * (1 - tilt), "h0": c_d * tilt, "eps": new.sigma * rest}
        )
    return rows.table()


def _between(now: Level, new: Level, c: float) -> Tensor:
    """lam of the stage with node c; from pure noise alpha/sigma is c times the target's."""
    return now.lam + c * gap(now, new) if finite_lam(now) else new.lam + math.log(c)


def res_2s(grid: Grid) -> Table:
    """RES with two stages. Order 2, 2 calls per step, deterministic. arXiv 2308.02157 (c = 1/2)."""
    return singlestep("res_2s", grid, res_2s_tableau())


def res_3s(grid: Grid) -> Table:
    """RES with three stages. Order 3, 3 calls per step, deterministic. arXiv 2308.02157 (c = 1/2,
    1).
    """
    return singlestep("res_3s", grid, res_3s_tableau())


def exponential_rk(grid: Grid, *, tableau: str = "krogstad") -> Table:
    """Any explicit exponential method by its tableau; `EXPONENTIALS` lists them. Order and calls
    are the tableau's.

    dpmpp_2s, res_2s, heun: order 2; res_3s, dpm_3: 3; etdrk4, krogstad: 4. On denoised predictions,
    deterministic.
    """
    among("tableau", tableau, EXPONENTIALS)
    return singlestep("exponential_rk", grid, EXPONENTIALS[tableau])


SEEDS_2: dict[str, Callable[[float], Exponential]] = {
    "phi_1": dpmpp_2s_tableau,
    "phi_2": res_2s_tableau,
}


def seeds_2(grid: Grid, *, eta: float = 1.0, r: float = 0.5, variant: str = "phi_1") -> Table:
    """SEEDS with two stages: `dpmpp_2s` on the reverse SDE. 2 calls per step, stochastic.

    variant "phi_2" integrates the line through both predictions exactly; at r = 1 it is ComfyUI's
    exp_heun_2_x0_sde. Order 2 (weak for eta > 0). Gonzalez et al. 2023, arXiv 2305.14267.
    """
    among("variant", variant, SEEDS_2)
    return singlestep("seeds_2", grid, SEEDS_2[variant](finite("r", r, 0.01, 1)), eta)


def seeds_3(grid: Grid, *, eta: float = 1.0) -> Table:
    """SEEDS with three stages: DPM-Solver-3's tableau on the reverse SDE. 3 calls per step,
    stochastic.

    Order 2 weakly for eta > 0, 3 at eta = 0. Gonzalez et al. 2023, arXiv 2305.14267.
    """
    return singlestep("seeds_3", grid, dpm_3_tableau(), eta)


# -- the same tableaus on slopes: DPM-Solver ------------------------------------------------------
MIDDLE = Exponential(2, (0.5,), (lambda z: (),), lambda z: (phi(1, z),))
STRAIGHT = Exponential(1, (), (), lambda z: ())
DPM_SOLVERS = {1: STRAIGHT, 2: MIDDLE, 3: dpm_3_tableau()}


def dpm_solver(grid: Grid, *, order: int = 3) -> Table:
    """DPM-Solver-1, -2 or -3: an exponential method on slopes in log s. `order` calls per step,
    deterministic.

    Lu et al. 2022, arXiv 2206.00927. First order to the clean level.
    """
    whole("order", order, 1, 3)
    return _on_slopes("dpm_solver", grid, [order] * grid.steps)


def dpm_fast(grid: Grid, *, remainder: int = 0) -> Table:
    """DPM-Solver-fast: third order, the last steps of lower order. Deterministic.

    The orders of N steps are 3, …, 3, 2, 1 for a budget of 3(N - 1) calls (remainder 0), else 3, …,
    3, remainder. Lu et al. 2022, arXiv 2206.00927; k-diffusion `dpm_fast`, which also chooses the
    grid `lam`.
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
        s, h, place = at.s(now), torch.log(at.s(now) / at.s(new)), now
        stages = [*zip(method.nodes, method.stages, strict=True), (1.0, method.b)]
        for i, (c, weights) in enumerate(stages):
            to = new if c == 1 else at_s(grid, at, s * torch.exp(-c * h))
            row: dict[str, Tensor] = {"x" if i == 0 else "base": at.m(to) / at.m(now)}
            row |= {f"h{i - j}": -to.sigma * h * w for j, w in enumerate(_first(c, weights(h), h))}
            rows.add(k, place, row, base={"x": 1.0} if i == 0 else None)
            place = to
    return rows.table()
