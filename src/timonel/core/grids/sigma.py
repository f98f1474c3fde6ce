"""Grids in schedule sigma: sigma / alpha for VP and EDM, t for flow; see `process`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import GridError, finite, say_once, whole
from ..process import Flow, Level, Process, double
from .grid import Grid, few_enough


def peak(process: Process, sigma_max: float | None, name: str) -> float:
    """The sigma where a grid starts, checked to be finite."""
    top = process.sigma_max if sigma_max is None else finite("sigma_max", sigma_max, 1e-12)
    if not math.isfinite(top):
        raise GridError(
            f"grid {name!r} needs a finite sigma_max, and this process starts at pure noise; give"
            " one, e.g. sigma_max=80, or use grid='trailing'"
        )
    return top


def span(
    process: Process, sigma_min: float | None, sigma_max: float | None, name: str
) -> tuple[float, float]:
    """The ends of a sigma grid, checked."""
    top = peak(process, sigma_max, name)
    low = process.sigma_min if sigma_min is None else finite("sigma_min", sigma_min, 1e-12)
    if low >= top:
        raise GridError(f"sigma_min {low:g} must be below sigma_max {top:g}")
    return low, top


def _ratios(
    process: Process, sigma_min: float | None, sigma_max: float | None, name: str
) -> tuple[float, float]:
    """The ends of a grid in sigma / alpha."""
    low, top = process.at_sigma(double(span(process, sigma_min, sigma_max, name))).ratio.tolist()
    if not math.isfinite(top):
        raise GridError(
            f"grid {name!r} cannot start at pure noise, where sigma / alpha is infinite, as this"
            " process does; give a sigma_max below 1, e.g. sigma_max=0.999, or use grid='flow'"
        )
    return low, top


def falling(steps: int) -> Tensor:
    """Evenly spaced from 1 to 0, both included; one step: 1."""
    count = few_enough("steps", steps)
    return torch.linspace(1, 0, count, dtype=torch.float64) if count > 1 else double([1.0])


def at_sigmas(process: Process, sigma: Tensor) -> Level:
    """Levels at falling sigmas, the first of which may be infinite: pure noise."""
    if math.isfinite(float(sigma[0])):
        return process.at_sigma(sigma)
    parts = (process.at_index(double([process.train_steps - 1.0])), process.at_sigma(sigma[1:]))
    return Level(*(torch.cat(v) for v in zip(*parts, strict=True)))


KARRAS_MOST = 1e3  # sigma_max beyond which most of Karras' levels are noise (cosine betas: 2e4)


def usual(process: Process) -> str:
    """The default grid of a process: "karras", or "trailing" for flows and pure noise.

    Measured in benchmarks/default_sampler.py. The pipelines of flows list evenly spaced times, and
    few-step models are distilled on them.

    Args:
        process: the noise process.

    Returns:
        The name of the grid.
    """
    return (
        "karras"
        if process.kind in ("vp", "edm") and process.sigma_max <= KARRAS_MOST
        else "trailing"
    )


def karras(
    process: Process,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """Evenly spaced sigma^(1/rho) from sigma_max to sigma_min, then 0, in schedule sigma.

    On a flow a sigma_max above 1 means that both ends are sigma / alpha = t / (1 - t), and the
    levels are spaced in that (Cosmos Predict 2.5: 200 and 0.01).

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        rho: in [0.001, 1000].
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 5.
    """
    r = finite("rho", rho, 1e-3, 1e3)
    top = None if sigma_max is None else finite("sigma_max", sigma_max, 1e-12)
    by_ratio = isinstance(process, Flow) and top is not None and top > 1
    if by_ratio and sigma_min is None:
        sigma_min = process.sigma_min / (1 - process.sigma_min)
    low, top = span(process, sigma_min, top, "karras")
    u = falling(steps)
    sigma = (low ** (1 / r) + u * (top ** (1 / r) - low ** (1 / r))) ** r
    levels = process.at_lam(-torch.log(sigma)) if by_ratio else process.at_sigma(sigma)
    return Grid.of(process, levels, "karras")


def exponential(
    process: Process, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Grid:
    """Evenly spaced log(sigma) from sigma_max to sigma_min, then 0, in schedule sigma.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: k-diffusion, get_sigmas_exponential.
    """
    low, top = span(process, sigma_min, sigma_max, "exponential")
    sigma = torch.exp(math.log(low) + falling(steps) * math.log(top / low))
    return Grid.of(process, process.at_sigma(sigma), "exponential")


def polyexponential(
    process: Process,
    steps: int,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """log(sigma) = log(sigma_min) + u^rho·log(sigma_max / sigma_min), u from 1 to 0; then 0.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        rho: in [0.001, 100]; 1 is `exponential`.
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: k-diffusion, get_sigmas_polyexponential.
    """
    low, top = span(process, sigma_min, sigma_max, "polyexponential")
    u = falling(steps) ** finite("rho", rho, 1e-3, 100)
    sigma = torch.exp(math.log(low) + u * math.log(top / low))
    return Grid.of(process, process.at_sigma(sigma), "polyexponential")


def lam(
    process: Process, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Grid:
    """Evenly spaced lam = log(alpha / sigma), then sigma = 0 (diffusers' `use_lu_lambdas`).

    On VP and EDM these are the levels of `exponential`. A flow, whose lam is infinite at t = 1,
    needs a sigma_max below 1.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: Lu et al. 2022, DPM-Solver, arXiv 2206.00927, section 3.4.
    """
    low, top = _ratios(process, sigma_min, sigma_max, "lam")
    lams = -(math.log(low) + falling(steps) * math.log(top / low))
    return Grid.of(process, process.at_lam(lams), "lam")


def vp(
    process: Process,
    steps: int,
    *,
    beta_d: float = 19.9,
    beta_min: float = 0.1,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """Evenly spaced time t of the continuous VP process, then 0.

    sigma / alpha = sqrt(exp(beta_d·t²/2 + beta_min·t) - 1). t goes from the time of sigma_max to
    that of sigma_min; k-diffusion's goes from 1 (sigma 152) to 0.001 (0.0105) on any model. A flow,
    whose sigma / alpha is infinite at t = 1, needs a sigma_max below 1.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        beta_d: rise of beta over t, in [1e-6, 1000].
        beta_min: beta at t = 0, in [0, 1000].
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 33; k-diffusion, get_sigmas_vp.
    """
    low, top = _ratios(process, sigma_min, sigma_max, "vp")
    d, m = finite("beta_d", beta_d, 1e-6, 1e3), finite("beta_min", beta_min, 0, 1e3)
    start, end = (
        2 * g / (m + math.sqrt(m * m + 2 * d * g)) for g in (math.log1p(top**2), math.log1p(low**2))
    )
    t = end + falling(steps) * (start - end)
    ratio = torch.sqrt(torch.expm1(d * t**2 / 2 + m * t))
    return Grid.of(process, process.at_lam(-torch.log(ratio)), "vp")


def linear_quadratic(
    process: Process,
    steps: int,
    *,
    threshold_noise: float = 0.025,
    linear_steps: int | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """sigma_max·(1 - f): f rises linearly to `threshold_noise`, then quadratically to 1.

    The two pieces meet with the same slope.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        threshold_noise: f where the pieces meet, in (0, 1).
        linear_steps: steps of the linear piece, 1 … N - 1; None: N // 2.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Raises:
        GridError: where the quadratic piece could not fall.

    Source: Mochi (genmoai/models), ComfyUI.
    """
    top, count = peak(process, sigma_max, "linear_quadratic"), few_enough("steps", steps)
    rise = finite("threshold_noise", threshold_noise, 1e-9, 1 - 1e-9)
    if count == 1:
        if linear_steps is not None:
            line = whole("linear_steps", linear_steps)
            say_once(f"linear_steps={line} has nothing to do in 1 step of grid 'linear_quadratic'")
        return Grid.of(process, process.at_sigma(double([top])), "linear_quadratic")
    line = count // 2 if linear_steps is None else whole("linear_steps", linear_steps, 1, count - 1)
    if rise * (count + line) >= 2 * line:  # the slope at the end would not be positive
        raise GridError(
            f"threshold_noise={rise:g} over {line} of {count} steps leaves the quadratic part no"
            f" way to fall; use threshold_noise below {2 * line / (count + line):.4g} or more"
            " linear_steps"
        )
    i, rest = torch.arange(count, dtype=torch.float64), count - line
    bend = (i - line).clamp(min=0) / rest
    f = rise * i / line + (1 - rise * count / line) * bend**2
    return Grid.of(process, process.at_sigma(top * (1 - f)), "linear_quadratic")


def kl_optimal(
    process: Process, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Grid:
    """Evenly spaced atan(sigma) from sigma_max to sigma_min, then 0, in schedule sigma.

    Pure noise has the angle pi/2, so this grid may start there. A1111 stops at sigma_min; ComfyUI
    adds the 0.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process.

    Source: Align Your Steps, arXiv 2404.14507, theorem 3.1.
    """
    infinite = sigma_max is None and not math.isfinite(process.sigma_max)
    low, top = span(process, sigma_min, 1e30 if infinite else sigma_max, "kl_optimal")
    u = falling(steps)
    sigma = torch.tan(math.atan(low) + u * (math.atan(top) - math.atan(low)))
    sigma[0] = math.inf if infinite else top
    return Grid.of(process, at_sigmas(process, sigma), "kl_optimal")


def _tails(log: float, mu: float, beta: float) -> tuple[float, float]:
    """The Laplace(mu, beta) probabilities below and above `log`, both to full precision."""
    tail = 0.5 * math.exp(-abs(log - mu) / beta)
    return (tail, 1 - tail) if log < mu else (1 - tail, tail)


def laplace(
    process: Process,
    steps: int,
    *,
    mu: float = 0.0,
    beta: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """log(sigma) at evenly spaced quantiles of Laplace(mu, beta), then sigma = 0.

    Most steps lie around sigma = e^mu. The distribution is cut to the range between sigma_max and
    sigma_min; ComfyUI clamps sigma to it instead, which repeats levels, and appends no 0.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        mu: log(sigma) of the mode, in [-50, 50].
        beta: width, in [0.01, 100]; smaller is narrower.
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Raises:
        GridError: where the distribution leaves nothing at one of the ends.

    Source: Hang et al. 2024, arXiv 2407.03297, section 3.
    """
    low, top = span(process, sigma_min, sigma_max, "laplace")
    m, b = finite("mu", mu, -50, 50), finite("beta", beta, 0.01, 100)
    (below_top, above_top), (below_low, above_low) = (_tails(math.log(s), m, b) for s in (top, low))
    if above_top == 0 or below_low == 0:
        raise GridError(
            f"mu={m:g}, beta={b:g} leave nothing at sigma {low:g} or {top:g}; use a larger beta"
        )
    u = falling(steps)
    below, above = (1 - u) * below_low + u * below_top, (1 - u) * above_low + u * above_top
    log = torch.where(below < 0.5, m + b * torch.log(2 * below), m - b * torch.log(2 * above))
    return Grid.of(process, process.at_sigma(torch.exp(log)), "laplace")


def cosine(
    process: Process, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Grid:
    """sigma_min + (sigma_max - sigma_min)·(1 + cos(pi·sqrt(p)))/2, p from 0 to 1, then 0.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: reForge's grid of this name, whose single step is at the square root of sigma_max.
    """
    low, top = span(process, sigma_min, sigma_max, "cosine")
    p = 1 - falling(steps)
    share = torch.cos(math.pi / 2 * torch.sqrt(p)) ** 2  # the cosine without cancellation
    return Grid.of(process, process.at_sigma(low + (top - low) * share), "cosine")


def _arctan(count: int, slope: float, pivot: float, start: float, end: float) -> Tensor:
    """`count` values from start to end along -atan(slope·(x - pivot)), x = 0 … count - 1."""
    curve = -torch.atan(slope * (torch.arange(count, dtype=torch.float64) - pivot))
    return end + (start - end) * (curve - curve[-1]) / (curve[0] - curve[-1])


def bong_tangent(
    process: Process,
    steps: int,
    *,
    pivot: float = 0.6,
    slope: float = 0.2,
    middle: float = 0.5,
    sigma_max: float | None = None,
) -> Grid:
    """Two arctangent curves: from sigma_max to middle·sigma_max, then to 0.

    With M = N + 2 the pieces have m = floor(pivot·M) and M - m points and share one; both bend at
    point m with the slope 40·slope/M.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        pivot: share of the steps in the first curve, in (0, 1).
        slope: steepness, in [1e-6, 1000].
        middle: sigma where the curves meet, over sigma_max, in (0, 1).
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: RES4LYF, scaled to sigma_max as in stable-diffusion.cpp.
    """
    top = peak(process, sigma_max, "bong_tangent")
    count, where = few_enough("steps", steps), finite("pivot", pivot, 1e-6, 1 - 1e-6)
    meet, steep = finite("middle", middle, 1e-6, 1 - 1e-6), finite("slope", slope, 1e-6, 1e3)
    total = count + 2
    first = min(max(int(total * where), 2), count)  # each piece needs two points
    if count == 1:
        shape = double([1.0])
    else:
        bend, rate = float(int(total * where)), 40 * steep / total
        start = _arctan(first, rate, bend, 1.0, meet)
        shape = torch.cat([start[:-1], _arctan(total - first, rate, bend - first, meet, 0.0)[:-1]])
    return Grid.of(process, process.at_sigma(top * shape), "bong_tangent")
