"""Explicit Runge-Kutta methods, from a Butcher tableau, in the coordinates of `algebra.Frame`.

With y = x / m, s = sigma / m and the slope dy/ds, stage i is
`y_i = y + (s' - s)·sum_j a_ij·slope_j` at s + c_i·(s' - s), and
`y' = y + (s' - s)·sum_j b_j·slope_j`. The slope has no limit at the clean level, so a step that
ends there is Euler's, which is exact for a constant denoised sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import among
from ..grids import Grid, ancestral, churn
from ..grids import restart as restarted
from ..process import Level, double
from ..table import Rows, Table
from .algebra import Frame, frame

Weights = Sequence["Tensor | float"]


@dataclass(frozen=True)
class Tableau:
    """Butcher's tableau of an explicit method: `a[i]` are the weights of stage i + 2."""

    order: int
    a: tuple[Weights, ...]
    b: Weights


ROOT = math.sqrt(5.0)  # of Ralston's method of least error bound
HEUN = Tableau(2, ((1.0,),), (1 / 2, 1 / 2))
RK4 = Tableau(4, ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
TABLEAUS = {
    "midpoint": Tableau(2, ((1 / 2,),), (0.0, 1.0)),
    "heun": HEUN,
    "ralston": Tableau(2, ((2 / 3,),), (1 / 4, 3 / 4)),
    "heun3": Tableau(3, ((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "kutta3": Tableau(3, ((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    "ssprk3": Tableau(3, ((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "bogacki_shampine": Tableau(3, ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "rk4": RK4,
    "rk38": Tableau(4, ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
    "butcher5": Tableau(
        5,
        (
            (1 / 4,), (1 / 8, 1 / 8), (0.0, -1 / 2, 1.0), (3 / 16, 0.0, 0.0, 9 / 16),
            (-3 / 7, 2 / 7, 12 / 7, -12 / 7, 8 / 7),
        ),
        (7 / 90, 0.0, 32 / 90, 12 / 90, 32 / 90, 7 / 90),
    ),
    "houwen_wray3": Tableau(3, ((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4)),
    "ssprk4": Tableau(3, ((1 / 2,), (1 / 2, 1 / 2), (1 / 6,) * 3), (1 / 6, 1 / 6, 1 / 6, 1 / 2)),
    "ralston4": Tableau(
        4,
        (
            (2 / 5,),
            ((1428 * ROOT - 2889) / 1024, (3785 - 1620 * ROOT) / 1024),
            ((2094 * ROOT - 3365) / 6040, -(975 + 3046 * ROOT) / 2552,
             (467040 + 203968 * ROOT) / 240845),
        ),
        ((263 + 24 * ROOT) / 1812, (125 - 1000 * ROOT) / 3828,
         (3426304 + 1661952 * ROOT) / 5924787, (30 - 4 * ROOT) / 123),
    ),
    "dormand_prince": Tableau(
        5,
        (
            (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    "bogacki_shampine5": Tableau(
        5,
        (
            (1 / 6,), (2 / 27, 4 / 27), (183 / 1372, -162 / 343, 1053 / 1372),
            (68 / 297, -4 / 11, 42 / 143, 1960 / 3861),
            (597 / 22528, 81 / 352, 63099 / 585728, 58653 / 366080, 4617 / 20480),
            (174197 / 959244, -30942 / 79937, 8152137 / 19744439, 666106 / 1039181,
             -29421 / 29068, 482048 / 414219),
        ),
        (587 / 8064, 0.0, 4440339 / 15491840, 24353 / 124800, 387 / 44800, 2152 / 5985,
         7267 / 94080),
    ),
    "tsitouras5": Tableau(
        5,
        (
            (0.161,), (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
             -0.028269050394068383),
        ),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
         2.324710524099774),
    ),
    "butcher6": Tableau(
        6,
        (
            (1 / 3,), (0.0, 2 / 3), (1 / 12, 1 / 3, -1 / 12), (-1 / 16, 9 / 8, -3 / 16, -3 / 8),
            (0.0, 9 / 8, -3 / 8, -3 / 4, 1 / 2), (9 / 44, -9 / 11, 63 / 44, 18 / 11, 0.0, -16 / 11),
        ),
        (11 / 120, 0.0, 27 / 40, 27 / 40, -4 / 15, -4 / 15, 11 / 120),
    ),
}  # fmt: skip


def at_s(grid: Grid, coordinates: Frame, s: Tensor) -> Level:
    """The level with coordinate s of the frame."""
    return grid.process.at_lam(-torch.log(s if coordinates.basis == "noise" else s / (1 - s)))


def step(rows: Rows, grid: Grid, coordinates: Frame, k: int, method: Tableau) -> None:
    """Write the rows of step k."""
    now, new = grid[k], grid.end(k)
    if bool(new.sigma == 0):
        return clean_step(rows, grid, coordinates, k)
    m, s, to = coordinates.m(now), coordinates.s(now), coordinates.s(new)
    at = now
    for i, weights in enumerate([*method.a, method.b]):
        node, there = double(sum(weights)), new
        if not bool(torch.isclose(node, double(1.0), rtol=0, atol=1e-12)):
            there = at_s(grid, coordinates, s + node * (to - s))
        scale = coordinates.m(there)
        x: dict[str, Tensor] = {"x" if i == 0 else "base": scale / m}
        x |= {f"h{i - j}": scale * (to - s) * w for j, w in enumerate(weights)}
        rows.add(k, at, x, base={"x": 1.0} if i == 0 else None)
        at = there
    return None


def clean_step(rows: Rows, grid: Grid, coordinates: Frame, k: int) -> None:
    """Write the one row of a step to the clean level: Euler's, whatever the basis."""
    now, new = grid[k], grid.end(k)
    m, step = coordinates.m(new), coordinates.s(new) - coordinates.s(now)
    rows.add(k, now, {"x": m / coordinates.m(now), "h0": m * step})


def explicit(name: str, grid: Grid, method: Tableau) -> Table:
    """The table of an explicit method."""
    coordinates = frame(grid)
    rows = Rows(name, grid, order=method.order, history=len(method.b), basis=coordinates.basis)
    for k in range(grid.steps):
        step(rows, grid, coordinates, k, method)
    return rows.table()


def heun(grid: Grid) -> Table:
    """Heun's method: the mean of the slopes at both ends of the step.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1.
    """
    return explicit("heun", grid, HEUN)


def edm(
    grid: Grid, *, s_churn: float = 40.0, s_tmin: float = 0.0, s_tmax: float = math.inf
) -> Table:
    """Heun with churn, the stochastic sampler of EDM.

    Args:
        grid: the levels.
        s_churn: at least 0, see `grids.churn`.
        s_tmin: smallest sigma/alpha that is churned.
        s_tmax: largest sigma/alpha that is churned.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 2.
    """
    return heun(churn(grid, s_churn, s_tmin, s_tmax))


def restart(
    grid: Grid, *, restarts: int = 1, restart_steps: int = 9, s_min: float = 0.1, s_max: float = 2.0
) -> Table:
    """Heun that goes back up from s_min to s_max with fresh noise, `restarts` times.

    It has no order: each way down again has `restart_steps` steps whatever N.

    Args:
        grid: the levels.
        restarts: how many times, 0 … 1000.
        restart_steps: steps of each way down again, 1 … 1000.
        s_min: sigma/alpha where a restart begins, above 0.
        s_max: sigma/alpha where it arrives, at least s_min.

    Raises:
        GridError: where the grid has no level between 0 and s_max.

    Source: Xu et al. 2023, arXiv 2306.14878.
    """
    return replace(heun(restarted(grid, restarts, s_min, s_max, restart_steps)), order=0)


def heunpp2(grid: Grid) -> Table:
    """Heun++: slopes at this level and the next two, weighted 1 - w2 - w3, s'/(3·s_0), s''/(3·s_0).

    Heun with weights 1 - w2 and w2 = s'/(2·s_0) on the last step but one.

    Source: `heunpp2` of ComfyUI and Forge; there is no paper.
    """
    coordinates = frame(grid)
    rows = Rows("heunpp2", grid, order=1, history=3, basis=coordinates.basis)
    s0 = coordinates.s(grid[0])
    for k in range(grid.steps):
        new = grid.end(k)
        left = grid.steps - k - int(grid.sigma[-1] == 0)  # levels ahead where a slope exists
        if left < 1:
            clean_step(rows, grid, coordinates, k)
        elif left < 2:
            w2 = coordinates.s(new) / (2 * s0)
            step(rows, grid, coordinates, k, Tableau(1, ((1.0,),), (1 - w2, w2)))
        else:
            _heunpp2_step(rows, grid, coordinates, k, s0)
    return rows.table()


def _heunpp2_step(rows: Rows, grid: Grid, coordinates: Frame, k: int, s0: Tensor) -> None:
    now, new, far = grid[k], grid.end(k), grid.end(k + 1)
    m, m_new, m_far = (coordinates.m(v) for v in (now, new, far))
    s, s_new, s_far = (coordinates.s(v) for v in (now, new, far))
    w2, w3 = s_new / (3 * s0), s_far / (3 * s0)
    rows.add(k, now, {"x": m_new / m, "h0": m_new * (s_new - s)}, base={"x": 1.0})
    rows.add(k, new, {"x": m_far / m_new, "h0": m_far * (s_far - s_new)})
    c = m_new * (s_new - s)
    rows.add(k, far, {"base": m_new / m, "h2": c * (1 - w2 - w3), "h1": c * w2, "h0": c * w3})


def dpm2(grid: Grid) -> Table:
    """DPM-Solver-2 of k-diffusion: the slope at the geometric mean of s and s'."""
    coordinates = frame(grid)
    rows = Rows("dpm2", grid, order=2, history=2, basis=coordinates.basis)
    for k in range(grid.steps):
        s, to = coordinates.s(grid[k]), coordinates.s(grid.end(k))
        root = torch.sqrt(s / to)  # (sqrt(s·s') - s) / (s' - s) = root / (root + 1)
        step(rows, grid, coordinates, k, Tableau(2, ((root / (root + 1),),), (0.0, 1.0)))
    return rows.table()


def dpm2_ancestral(grid: Grid, *, eta: float = 1.0) -> Table:
    """`dpm2` on ancestral levels.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].

    Source: k-diffusion, sample_dpm_2_ancestral.
    """
    return dpm2(ancestral(grid, eta))


def rk4(grid: Grid) -> Table:
    """The classical Runge-Kutta method (Kutta 1901)."""
    return explicit("rk4", grid, RK4)


def runge_kutta(grid: Grid, *, tableau: str = "bogacki_shampine") -> Table:
    """Any explicit Runge-Kutta method by its Butcher tableau, whose order and calls it has.

    Args:
        grid: the levels.
        tableau: midpoint, heun, ralston (order 2), heun3, kutta3, ssprk3, bogacki_shampine,
            houwen_wray3, ssprk4 (3), rk4, rk38, ralston4 (4), butcher5, dormand_prince,
            bogacki_shampine5, tsitouras5 (5), butcher6 (6).
    """
    among("tableau", tableau, TABLEAUS)
    return explicit("runge_kutta", grid, TABLEAUS[tableau])
