"""Linear multistep methods on slopes: LMS, PLMS, PNDM, iPNDM, DEIS, gradient estimation.

In the coordinates of `algebra.Frame`, `y' = y + (s' - s)·sum_j w_j·slope_j` over the newest slopes.
The methods differ in the weights only. The slope turns fast before the clean level, so to
extrapolate there is the worse, the coarser the last step (docs/names.md has numbers).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ArgumentError, among, finite, flag, whole
from ..grids import Grid
from ..process import double
from ..table import Rows, Table
from .algebra import (
    VARIANTS,
    Frame,
    fit,
    frame,
    growing,
    line,
    long_last,
    parabola,
    rising,
    schedule,
)
from .runge_kutta import clean_step

# Adams-Bashforth weights for evenly spaced slopes, newest first
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
Weights = Callable[[Frame, int, int], "list[Tensor]"]  # frame, step, how many slopes


def _multistep(
    name: str,
    grid: Grid,
    top: int,
    order: int,
    weights: Weights,
    *,
    euler_at_final: bool = True,
    eta: float = 0.0,
) -> Table:
    """`weights(frame, k, count)` are (s' - s)·w of the `count` newest slopes (noise if eta > 0)."""
    final = flag("euler_at_final", euler_at_final)
    coordinates = frame(grid)
    rows = Rows(name, grid, order=order, history=top, basis=coordinates.basis)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        if final and not bool(new.sigma > 0):
            clean_step(rows, grid, coordinates, k)
            continue
        m_new = coordinates.m(new)
        count = rising(grid, k, top, across_noise=False)
        row = {f"h{i}": (1 + eta) * m_new * w for i, w in enumerate(weights(coordinates, k, count))}
        if eta:
            fall = coordinates.s(now) ** 2 - coordinates.s(new) ** 2
            row["eps"] = m_new * torch.sqrt(eta * fall)
        rows.add(k, now, {"x": m_new / coordinates.m(now), **row})
    return rows.table()


def lms(grid: Grid, *, order: int = 4, euler_at_final: bool = True) -> Table:
    """Adams-Bashforth for uneven levels: the polynomial in s through the newest slopes.

    Args:
        grid: the levels.
        order: number of slopes, 1 … 4.
        euler_at_final: Euler on the step to the clean level, which returns the denoised sample, as
            ComfyUI; False extrapolates there too, as diffusers and k-diffusion.

    Source: k-diffusion, sample_lms; Liu et al. 2022, arXiv 2202.09778.
    """
    top = whole("order", order, 1, 4)
    return _multistep("lms", grid, top, top, uneven(grid), euler_at_final=euler_at_final)


def uneven(grid: Grid) -> Weights:
    """The weights of Adams-Bashforth for uneven levels (Hairer, Nørsett & Wanner, III.5)."""

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        s, step = at.s(grid[k]), at.s(grid.end(k)) - at.s(grid[k])
        nodes = [(at.s(grid[k - j]) - s) / step for j in range(count)]
        return [step * w for w in fit(nodes, [torch.ones_like(s) / (p + 1) for p in range(count)])]

    return weights


def ipndm(grid: Grid, *, order: int = 4, euler_at_final: bool = True) -> Table:
    """Adams-Bashforth with the weights of even spacing, whatever the levels; of order 2 at most.

    Args:
        grid: the levels.
        order: number of slopes, 1 … 4.
        euler_at_final: Euler on the step to the clean level, which returns the denoised sample, as
            ComfyUI; False extrapolates there too, as diffusers and k-diffusion.

    Source: Zhang & Chen 2022, arXiv 2204.13902, "iPNDM"; Liu et al. 2022, arXiv 2202.09778.
    """
    top = whole("order", order, 1, 4)

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        step = at.s(grid.end(k)) - at.s(grid[k])
        return [step * w for w in ADAMS_BASHFORTH[count - 1]]

    return _multistep("ipndm", grid, top, min(top, 2), weights, euler_at_final=euler_at_final)


IPNDM_V = {"exact": 4, "comfyui": 2}  # variants, and the order of the method


def ipndm_v(
    grid: Grid, *, order: int = 4, variant: str = "exact", euler_at_final: bool = True
) -> Table:
    """iPNDM for uneven levels, which is `lms`; or ComfyUI's weights for the same pictures.

    ComfyUI's weights of three and four slopes have two slips, so that those of four sum to 1 where
    the levels are even only: it does not meet a constant denoised sample, and goes astray where
    levels crowd (`beta` on a flow, 8 steps: .83 from the answer for .10).

    Args:
        grid: the levels.
        order: number of slopes, 1 … 4.
        variant: "exact", or "comfyui", which is of order 2 at most.
        euler_at_final: Euler on the step to the clean level, which returns the denoised sample, as
            ComfyUI; False extrapolates there too, as `lms`.

    Source: Zhang & Chen 2022, arXiv 2204.13902, "iPNDM"; `sample_ipndm_v` of ComfyUI.
    """
    top, kind = whole("order", order, 1, 4), among("variant", variant, IPNDM_V)
    weights, most = uneven(grid) if kind == "exact" else _comfyui(grid), min(top, IPNDM_V[kind])
    return _multistep("ipndm_v", grid, top, most, weights, euler_at_final=euler_at_final)


def _comfyui(grid: Grid) -> Weights:
    """ComfyUI's ipndm_v: h the step to come, h1, h2, h3 those before it, newest first."""

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        s = [at.s(grid.end(k)), *(at.s(grid[k - j]) for j in range(count))]
        h, *before = (a - b for a, b in itertools.pairwise(s))
        w = [torch.ones_like(h)]
        if count > 1:
            w = _added(w, h / (2 * before[0]), [1.0, -1.0])
        if count > 2:
            h1, h2 = before[:2]
            bend = (1 - h / (3 * (h + h1)) * h * (h + h1) / (h1 * (h1 + h2))) / 2
            w = _added(w, bend, [1.0, -1 - h1 / h2, h1 / h2])
        if count > 3:
            w = _added(w, *_comfyui_fourth(h, *before))
        return [h * one for one in w]

    return weights


def _comfyui_fourth(h: Tensor, h1: Tensor, h2: Tensor, h3: Tensor) -> tuple[Tensor, list[Any]]:
    """The fourth difference of ComfyUI's, and its share of every slope."""
    all_ = h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    one = (1 - h / (3 * (h + h1))) / 2
    size = (one + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))) * all_
    r, far = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
    return size, [1.0, -1 - r - far, r + far * (1 + h2 / h3), -far * r]


def _added(weights: list[Tensor], size: Tensor, shares: list[Any]) -> list[Tensor]:
    """Weights with a difference of one slope more."""
    longer = [*weights, torch.zeros_like(size)]
    return [w + size * share for w, share in zip(longer, shares, strict=True)]


DEIS_VARIANTS = ("tab", "logrho")
POINTS, WEIGHTS = (double(v) for v in np.polynomial.legendre.leggauss(32))
#: the VP process of DEIS' time: sigma / alpha is 0.002 at t = 0.001 and 80 at t = 1
S_MIN, T_MIN, S_MAX = 0.002, 1e-3, 80.0
SLOPE = 2 * (math.log1p(S_MIN**2) / T_MIN - math.log1p(S_MAX**2)) / (T_MIN - 1)
RISE = math.log1p(S_MAX**2) - SLOPE / 2


def vp_time(s: Tensor) -> Tensor:
    """The time t of a VP process with log(1 + s²) = RISE·t + SLOPE·t²/2."""
    return (torch.sqrt(RISE**2 + 2 * SLOPE * torch.log1p(s**2)) - RISE) / SLOPE


def deis(grid: Grid, *, order: int | str = 3, variant: str | None = None) -> Table:
    """DEIS: the polynomial through the newest slopes in log s or time, integrated in s.

    First order to the clean level, where log s has no end.

    Args:
        grid: the levels.
        order: number of slopes, 1 … 3; a string such as "12321" for every step.
        variant: the polynomial is in log s ("logrho", diffusers) or the time of a VP process
            ("tab", ComfyUI). None: the more accurate, "tab" on a flow, else "logrho". On a long
            last step before the clean one "logrho" has order 2, "tab" by None order 1.

    Source: Zhang & Chen 2022, arXiv 2204.13902, "tAB-DEIS".
    """
    most, by_default = schedule(order, grid.steps), variant is None
    if variant is None:
        variant = "tab" if grid.process.kind == "flow" else "logrho"
    among("variant", variant, DEIS_VARIANTS)

    def in_log(at: Frame, k: int, count: int) -> list[Tensor]:
        s, to = at.s(grid[k]), at.s(grid.end(k))
        h, used = torch.log(s / to), min(count, most[k], 2 if long_last(grid, k) else 3)
        nodes = [torch.log(s / at.s(grid[k - j])) / h for j in range(used)]
        return [-to * w for w in fit(nodes, growing(h, used))]

    def in_time(at: Frame, k: int, count: int) -> list[Tensor]:
        s, to = at.s(grid[k]), at.s(grid.end(k))
        first, step = vp_time(s), vp_time(to) - vp_time(s)
        used = 1 if by_default and long_last(grid, k) else min(count, most[k])
        nodes = [(vp_time(at.s(grid[k - j])) - first) / step for j in range(used)]
        if used == 1:
            return [to - s]
        width = torch.log(to / s)  # Gauss-Legendre in log s, in which the integrand is smooth
        u = s * torch.exp((POINTS + 1) / 2 * width)
        measure, v = WEIGHTS / 2 * width * u, (vp_time(u) - first) / step
        return fit(nodes, [(measure * v**p).sum() for p in range(used)])

    weights = in_log if variant == "logrho" else in_time
    return _multistep("deis", grid, max(most), max(most), weights)


def dpm_multistep(
    grid: Grid,
    *,
    order: int = 2,
    variant: str = "midpoint",
    curvature: float = 1.0,
    eta: float = 0.0,
) -> Table:
    """DPM-Solver on slopes, multistep: diffusers' DPMSolverMultistepScheduler of "dpmsolver".

    `dpmpp_2m` and `dpmpp_3m`, on denoised predictions, are more accurate in few steps. First order
    to the clean level, and on the step before where that is long.

    Args:
        grid: the levels.
        order: number of slopes, 1 … 3.
        variant: of two slopes, "midpoint" or "heun" (then it is `deis` in logrho), see `dpmpp_2m`.
        curvature: of three slopes, in [0, 1], see `dpmpp_3m`.
        eta: noise of the reverse SDE, 0 … 100 ("sde-dpmsolver" at 1), which leaves order 1 (weak).

    Raises:
        ArgumentError: for eta > 0 on a flow or from pure noise.

    Source: Lu et al. 2022, arXiv 2206.00927; the SDE: arXiv 2211.01095, appendix.
    """
    top, bend = whole("order", order, 1, 3), finite("curvature", curvature, 0, 1)
    e = finite("eta", eta, 0, 100)
    among("variant", variant, VARIANTS)
    if e and frame(grid).basis != "noise":
        raise ArgumentError(
            f"eta={e:g} of 'dpm_multistep' is for image models that begin below pure noise; take"
            " 'dpmpp_2m_sde'"
        )

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        s, to = at.s(grid[k]), at.s(grid.end(k))
        if count == 1 or long_last(grid, k):
            return [to - s]
        h = torch.log(s / to)
        r0 = torch.log(at.s(grid[k - 1]) / s) / h
        if count == 2:
            return [-to * w for w in line(h, h, r0, variant)]
        r1 = torch.log(at.s(grid[k - 2]) / at.s(grid[k - 1])) / h
        return [-to * w for w in parabola(h, h, r0, r1, bend)]

    of_ode = min(top, 2) if bend != 1 else top
    return _multistep("dpm_multistep", grid, top, 1 if e else of_ode, weights, eta=e)


def gradient_estimation(grid: Grid, *, gamma: float = 2.0, euler_at_final: bool = True) -> Table:
    """Euler with the slope gamma·h0 + (1 - gamma)·h1; of order 2 at gamma = 1.5 and even spacing.

    Args:
        grid: the levels.
        gamma: in [1, 5]; 1 is Euler.
        euler_at_final: Euler on the step to the clean level, which returns the denoised sample, as
            ComfyUI; False extrapolates there too, as diffusers and k-diffusion.

    Source: Permenter & Yuan 2023, arXiv 2306.04848 (gamma = 2).
    """
    g = finite("gamma", gamma, 1, 5)

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        step = at.s(grid.end(k)) - at.s(grid[k])
        return [step] if count == 1 else [g * step, (1 - g) * step]

    return _multistep("gradient_estimation", grid, 2, 1, weights, euler_at_final=euler_at_final)


def plms(grid: Grid) -> Table:
    """iPNDM with four slopes whose first step is Heun's (diffusers' PNDM with `skip_prk_steps`).

    Source: Liu et al. 2022, arXiv 2202.09778.
    """
    coordinates = frame(grid)
    rows = Rows("plms", grid, order=2, history=5, basis=coordinates.basis)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        m, m_new = coordinates.m(now), coordinates.m(new)
        c = m_new * (coordinates.s(new) - coordinates.s(now))
        if k == 0 and bool(new.sigma > 0):
            rows.add(0, now, {"x": m_new / m, "h0": c}, base={"x": 1.0})
            rows.add(0, new, {"base": m_new / m, "h0": c / 2, "h1": c / 2})
            continue
        count = rising(grid, k, 4, across_noise=False)
        # the slope of the second call is no part of the history
        places = [j if j < k or not bool(grid.end(0).sigma > 0) else j + 1 for j in range(count)]
        row = {f"h{i}": c * w for i, w in zip(places, ADAMS_BASHFORTH[count - 1], strict=True)}
        rows.add(k, now, {"x": m_new / m, **row})
    return rows.table()


def plms_rest(grid: Grid, before: int) -> Table:
    """The steps of `plms` after its first: one call each, and a history that begins anew."""
    return ipndm(grid, euler_at_final=False)


def pndm(grid: Grid) -> Table:
    """iPNDM with four slopes whose first three steps are Runge-Kutta's (diffusers' PNDM).

    Source: Liu et al. 2022, arXiv 2202.09778.
    """
    return pndm_rest(grid, 0)


def pndm_rest(grid: Grid, before: int, whole_times: bool = False) -> Table:
    """The steps of `pndm` after the first `before`, with a history that begins anew.

    `whole_times`: the middle of a step is at a whole training time, rounded down, as in diffusers.
    """
    coordinates = frame(grid)
    rows = Rows("pndm", grid, order=2, history=13, basis=coordinates.basis)
    begins: list[int] = []  # the row of every step's first call
    for k in range(grid.steps):
        begins.append(len(rows.step))
        now, new = grid[k], grid.end(k)
        if not bool(new.sigma > 0) and k + before < 3:
            clean_step(rows, grid, coordinates, k)
        elif k + before < 3:
            _middle_step(rows, grid, coordinates, k, whole_times)
        else:
            c = coordinates.m(new) * (coordinates.s(new) - coordinates.s(now))
            count = rising(grid, k, 4, across_noise=False)
            row = {
                f"h{begins[k] - begins[k - j]}": c * w
                for j, w in enumerate(ADAMS_BASHFORTH[count - 1])
            }
            rows.add(k, now, {"x": coordinates.m(new) / coordinates.m(now), **row})
    return rows.table()


def _middle_step(rows: Rows, grid: Grid, at: Frame, k: int, whole_times: bool) -> None:
    """The classical Runge-Kutta step, its inner stages at the level half way in time."""
    now, new = grid[k], grid.end(k)
    time = (now.time + new.time) / 2
    middle = grid.process.at_time(time.floor() if whole_times else time)
    m, m_mid, m_new = (at.m(v) for v in (now, middle, new))
    to_middle, c = m_mid * (at.s(middle) - at.s(now)), m_new * (at.s(new) - at.s(now))
    rows.add(k, now, {"x": m_mid / m, "h0": to_middle}, base={"x": 1.0})
    rows.add(k, middle, {"base": m_mid / m, "h0": to_middle})
    rows.add(k, middle, {"base": m_new / m, "h0": c})
    rows.add(k, new, {"base": m_new / m, "h3": c / 6, "h2": c / 3, "h1": c / 3, "h0": c / 6})
