"""Linear multistep methods on slopes: LMS, PLMS, PNDM, iPNDM, DEIS, gradient estimation. 1 call per
step.

In the coordinates of `algebra.Frame`, `y' = y + (s' - s)·sum_j w_j·slope_j` over the newest slopes.
The methods differ in the weights only.

With `euler_at_final` a step to the clean level is Euler's, which returns the denoised sample, as
ComfyUI has it; without it the slopes are extrapolated there too, as k-diffusion and diffusers do.
The slope turns fast before the clean level, so an extrapolation is farther off the coarser the last
step (docs/names.md has numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
    """`weights(frame, k, count)` give (s' - s)·w for the `count` newest slopes, which are noise
    where eta > 0.
    """
    final = flag("euler_at_final", euler_at_final)
    coordinates = frame(grid)
    rows = Rows(name, grid, order=order, history=top, basis=coordinates.basis)
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        if final and not bool(new.sigma > 0):
            clean_step(rows, grid, coordinates, k)
            continue
        m_new = coordinates.m(new)
        found = weights(coordinates, k, rising(grid, k, top, across_noise=False))
        row = {f"h{i}": (1 + eta) * m_new * w for i, w in enumerate(found)}
        if eta:
            row["eps"] = m_new * torch.sqrt(
                eta * (coordinates.s(now) ** 2 - coordinates.s(new) ** 2)
            )
        rows.add(k, now, {"x": m_new / coordinates.m(now), **row})
    return rows.table()


def lms(grid: Grid, *, order: int = 4, euler_at_final: bool = True) -> Table:
    """Adams-Bashforth for uneven levels: the polynomial in s through `order` slopes, integrated.
    Order 1 to 4.

    1 call per step, deterministic. ComfyUI `lms`; k-diffusion's and diffusers' with
    euler_at_final=False. Liu et al. 2022, arXiv 2202.09778.
    """
    top = whole("order", order, 1, 4)

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        s, step = at.s(grid[k]), at.s(grid.end(k)) - at.s(grid[k])
        nodes = [(at.s(grid[k - j]) - s) / step for j in range(count)]
        return [step * w for w in fit(nodes, [torch.ones_like(s) / (p + 1) for p in range(count)])]

    return _multistep("lms", grid, top, top, weights, euler_at_final=euler_at_final)


def ipndm(grid: Grid, *, order: int = 4, euler_at_final: bool = True) -> Table:
    """Adams-Bashforth with the weights of even spacing, whatever the levels. 1 call per step,
    deterministic.

    Order 2 (1 with order=1): the weights are exact for levels evenly spaced in s. Zhang & Chen
    2022, arXiv 2204.13902, "iPNDM"; Liu et al. 2022, arXiv 2202.09778. ComfyUI `ipndm`; diffusers'
    with euler_at_final=False.
    """
    top = whole("order", order, 1, 4)

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        step = at.s(grid.end(k)) - at.s(grid[k])
        return [step * w for w in ADAMS_BASHFORTH[count - 1]]

    return _multistep("ipndm", grid, top, min(top, 2), weights, euler_at_final=euler_at_final)


DEIS_VARIANTS = ("tab", "logrho")
POINTS, WEIGHTS = (double(v) for v in np.polynomial.legendre.leggauss(32))
#: the VP process of DEIS' time: sigma / alpha is 0.002 at t = 0.001 and 80 at t = 1
LOWEST, EARLIEST, HIGHEST = 0.002, 1e-3, 80.0
SLOPE = 2 * (math.log1p(LOWEST**2) / EARLIEST - math.log1p(HIGHEST**2)) / (EARLIEST - 1)
RISE = math.log1p(HIGHEST**2) - SLOPE / 2


def vp_time(s: Tensor) -> Tensor:
    """The time t of a VP process with log(1 + s²) = RISE·t + SLOPE·t²/2."""
    return (torch.sqrt(RISE**2 + 2 * SLOPE * torch.log1p(s**2)) - RISE) / SLOPE


def deis(grid: Grid, *, order: int | str = 3, variant: str | None = None) -> Table:
    """A polynomial through `order` slopes, integrated in s. Order 1 to 3, 1 call per step,
    deterministic.

    variant "logrho": the polynomial is in log s, as in diffusers; "tab": in the time of a VP
    process, as in ComfyUI. Without one it is the nearer of the two: logrho, and tab on a flow,
    there of order 1 on a long last step before the one to the clean level. logrho has order 2 on
    such a step. A string such as "12321" gives the order of every step. First order to the clean
    level, where log s has no end. Zhang & Chen 2022, arXiv 2204.13902, "tAB-DEIS".
    """
    most, chosen = schedule(order, grid.steps), variant is None
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
        used = 1 if chosen and long_last(grid, k) else min(count, most[k])
        nodes = [(vp_time(at.s(grid[k - j])) - first) / step for j in range(used)]
        if used == 1:
            return [to - s]
        width = torch.log(to / s)  # Gauss-Legendre in log s, in which the integrand is smooth
        u = s * torch.exp((POINTS + 1) / 2 * width)
        measure, v = WEIGHTS / 2 * width * u, (vp_time(u) - first) / step
        return fit(nodes, [(measure * v**p).sum() for p in range(used)])

    return _multistep(
        "deis", grid, max(most), max(most), in_log if variant == "logrho" else in_time
    )


def dpm_multistep(
    grid: Grid,
    *,
    order: int = 2,
    variant: str = "midpoint",
    curvature: float = 1.0,
    eta: float = 0.0,
) -> Table:
    """DPM-Solver of `order` 1 to 3 on slopes, whose polynomial is in log s. 1 call per step,
    deterministic.

    diffusers' DPMSolverMultistepScheduler with algorithm_type="dpmsolver"; on denoised predictions
    it is `dpmpp_2m` and `dpmpp_3m`, which are nearer in few steps. `variant` and `curvature` are
    theirs: with "heun" it is `deis` in logrho. With `eta` it is the reverse SDE ("sde-dpmsolver" at
    1), of order 1 (weak): its slopes contain the fresh noise. First order to the clean level and on
    the step before where that is long. Lu et al. 2022, arXiv 2206.00927; the SDE: arXiv 2211.01095,
    appendix.
    """
    top, bend, e = (
        whole("order", order, 1, 3),
        finite("curvature", curvature, 0, 1),
        finite("eta", eta, 0, 100),
    )
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
            found = line(h, h, r0, variant)
        else:
            found = parabola(h, h, r0, torch.log(at.s(grid[k - 2]) / at.s(grid[k - 1])) / h, bend)
        return [-to * w for w in found]

    declared = 1 if e else min(top, 2) if bend != 1 else top
    return _multistep("dpm_multistep", grid, top, declared, weights, eta=e)


def gradient_estimation(grid: Grid, *, gamma: float = 2.0, euler_at_final: bool = True) -> Table:
    """Slope gamma·h0 + (1 - gamma)·h1. Order 1 (2 at gamma = 1.5 and even spacing), 1 call per
    step, deterministic.

    Permenter & Yuan 2023, arXiv 2306.04848 (gamma = 2). ComfyUI `gradient_estimation`.
    """
    g = finite("gamma", gamma, 1, 5)

    def weights(at: Frame, k: int, count: int) -> list[Tensor]:
        step = at.s(grid.end(k)) - at.s(grid[k])
        return [step] if count == 1 else [g * step, (1 - g) * step]

    return _multistep("gradient_estimation", grid, 2, 1, weights, euler_at_final=euler_at_final)


def plms(grid: Grid) -> Table:
    """iPNDM of order 4 whose first step is Heun's. Order 2, N + 1 calls (N if N = 1),
    deterministic.

    Liu et al. 2022, arXiv 2202.09778; diffusers' PNDMScheduler with `skip_prk_steps`.
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
        # the slope of the second call is not part of the history: where it lies in between, it is
        # passed over
        places = [j if j < k or not bool(grid.end(0).sigma > 0) else j + 1 for j in range(count)]
        row = {f"h{i}": c * w for i, w in zip(places, ADAMS_BASHFORTH[count - 1], strict=True)}
        rows.add(k, now, {"x": m_new / m, **row})
    return rows.table()


def plms_rest(grid: Grid, before: int) -> Table:
    """The steps of `plms` after its first: one call each, and a history that begins anew."""
    return ipndm(grid, euler_at_final=False)


def pndm(grid: Grid) -> Table:
    """iPNDM of order 4 whose first three steps are Runge-Kutta steps through the middle in time.

    Order 2, N + 9 calls (fewer for N < 4), deterministic. Liu et al. 2022, arXiv 2202.09778;
    diffusers' PNDMScheduler.
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
    half, full = m_mid * (at.s(middle) - at.s(now)), m_new * (at.s(new) - at.s(now))
    rows.add(k, now, {"x": m_mid / m, "h0": half}, base={"x": 1.0})
    rows.add(k, middle, {"base": m_mid / m, "h0": half})
    rows.add(k, middle, {"base": m_new / m, "h0": full})
    rows.add(
        k, new, {"base": m_new / m, "h3": full / 6, "h2": full / 3, "h1": full / 3, "h0": full / 6}
    )
