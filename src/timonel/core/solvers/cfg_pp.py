"""CFG++ twins: the clean part of a step is the guided prediction, its noise the unconditional one.

With the guided prediction D and the unconditional one U, k = sigma'/sigma, the step of Euler's twin
is

    x' = alpha'·D + k·(x - alpha·U) = k·x + (alpha' - k·alpha)·D + k·alpha·(D - U)

Source: Chung et al. 2024, arXiv 2406.08070, algorithm 2; the other twins are ComfyUI's `*_cfg_pp`,
which works in sigma/alpha too. In a row that is not guided U = D, and each is its plain namesake.
The scale is the paper's λ: one step of Euler's twin is Euler's of guidance w = λ/(1 - e^-h), h the
step in lam. So no number of steps converges at a fixed λ; with λ = w·(1 - e^-h) per step the twins
converge, with order 1, to the path guided by w.
"""

from __future__ import annotations

from torch import Tensor

from ...errors import among, finite
from ..grids import Grid, ancestral
from ..process import Level, double
from ..table import Rows, Table
from .algebra import decaying, finite_lam, fit, frame, gain, gap, keep, rising, usable
from .runge_kutta import clean_step

CALLS = ("first", "second")


def _euler(now: Level, new: Level) -> dict[str, Tensor]:
    """The step of Euler's twin."""
    clean = now.alpha * keep(now, new)
    return {"x": keep(now, new), "h0": gain(now, new) + clean, "u0": -clean}


def euler_cfg_pp(grid: Grid) -> Table:
    """Euler's method, and DDIM, with CFG++.

    Source: arXiv 2406.08070, algorithm 2; ComfyUI, sample_euler_cfg_pp.
    """
    rows = Rows("euler_cfg_pp", grid, order=1, unconditional=1)
    for k in range(grid.steps):
        rows.add(k, grid[k], _euler(grid[k], grid.end(k)))
    return rows.table()


def euler_ancestral_cfg_pp(grid: Grid, *, eta: float = 1.0) -> Table:
    """`euler_cfg_pp` on ancestral levels.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].

    Source: ComfyUI, sample_euler_ancestral_cfg_pp.
    """
    return euler_cfg_pp(ancestral(grid, eta))


def dpmpp_2m_cfg_pp(grid: Grid) -> Table:
    """`dpmpp_2m` with CFG++: it extrapolates from the unconditional prediction before.

    Source: ComfyUI, sample_dpmpp_2m_cfg_pp.
    """
    rows = Rows("dpmpp_2m_cfg_pp", grid, order=2, unconditional=2)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        row = _euler(now, new)
        if usable(grid, k, 2) == 2:
            r = gap(grid[k - 1], now) / gap(now, new)
            row["u1"] = -gain(now, new) / (2 * r)
            row["h0"] = row["h0"] - row["u1"]
        rows.add(k, now, row)
    return rows.table()


def dpmpp_2s_ancestral_cfg_pp(grid: Grid, *, eta: float = 1.0, variant: str = "first") -> Table:
    """`dpmpp_2s_ancestral` with CFG++: both of its calls begin at the sample moved by D - U.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].
        variant: the call whose U the second one is moved by: "first", as its D; "second" is
            ComfyUI's, which does not converge where D = U.

    Source: ComfyUI, sample_dpmpp_2s_ancestral_cfg_pp.
    """
    down, age = ancestral(grid, eta), CALLS.index(among("variant", variant, CALLS))
    rows = Rows("dpmpp_2s_ancestral_cfg_pp", down, order=2, history=2, unconditional=2)
    for k in range(down.steps):
        now, new = down[k], down.end(k)
        if not finite_lam(new):
            rows.add(k, now, _euler(now, new))
            continue
        half = now.lam + gap(now, new) / 2 if finite_lam(now) else new.lam - double(2.0).log()
        middle = down.process.at_lam(half)
        rows.add(k, now, _euler(now, middle), base={"x": 1.0})
        moved = now.alpha * keep(now, new)
        row = {"base": keep(now, new), "h0": gain(now, new), "h1": moved, f"u{1 - age}": -moved}
        rows.add(k, middle, row)
    return rows.table()


def res_multistep_cfg_pp(grid: Grid) -> Table:
    """`res_multistep` of order 2 with CFG++: it extrapolates the unconditional prediction.

    On a long last step before the one to the clean level too, where `res_multistep` does not.

    Source: ComfyUI, sample_res_multistep_cfg_pp.
    """
    return _res_multistep("res_multistep_cfg_pp", grid, 2)


def res_multistep_ancestral_cfg_pp(grid: Grid, *, eta: float = 1.0) -> Table:
    """`res_multistep_ancestral` with CFG++.

    Args:
        grid: the levels.
        eta: part of DDPM's noise, in [0, 1].

    Source: ComfyUI, sample_res_multistep_ancestral_cfg_pp.
    """
    return _res_multistep("res_multistep_ancestral_cfg_pp", ancestral(grid, eta), 1 if eta else 2)


def _res_multistep(name: str, grid: Grid, order: int) -> Table:
    rows = Rows(name, grid, order=order, unconditional=2)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        if usable(grid, k, 2) == 1:
            rows.add(k, now, _euler(now, new))
            continue
        h = gap(now, new)
        nodes = [h * 0, -gap(grid[k - 1], grid.end(k - 1)) / h]
        u0, u1 = (new.alpha * w for w in fit(nodes, decaying(h, 2)))
        moved = now.alpha * keep(now, new)
        rows.add(k, now, {"x": keep(now, new), "h0": moved, "u0": u0 - moved, "u1": u1})
    return rows.table()


def gradient_estimation_cfg_pp(grid: Grid, *, gamma: float = 2.0) -> Table:
    """`gradient_estimation` with CFG++: its slopes are unconditional.

    Args:
        grid: the levels.
        gamma: in [1, 5]; 1 is Euler's twin.

    Source: ComfyUI, sample_gradient_estimation_cfg_pp.
    """
    g, at = finite("gamma", gamma, 1, 5), frame(grid)
    rows = Rows("gradient_estimation_cfg_pp", grid, order=1, basis=at.basis, unconditional=2)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        if not bool(new.sigma > 0):
            clean_step(rows, grid, at, k)
            continue
        # y = x/m: D = y - s·h0, and the noise of U is y + (1 - s)·u0, or u0 itself
        m, s, s_new = at.m(new), at.s(now), at.s(new)
        data, data_new = (1 - s, 1 - s_new) if at.basis == "velocity" else (s * 0 + 1, s * 0 + 1)
        row = {"x": m / at.m(now), "h0": -m * data_new * s, "u0": m * data * s_new}
        if rising(grid, k, 2, across_noise=False) == 2:
            row["u1"] = -m * (g - 1) * (s_new - s)
            row["u0"] = row["u0"] - row["u1"]
        rows.add(k, now, row)
    return rows.table()
