"""Quantiles of a Beta distribution: in training index (ComfyUI) or in sigma (A1111, diffusers).

Lee et al. 2024, "Beta Sampling is All You Need", arXiv 2407.12173.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import finite
from ..process import Process
from .grid import Grid, few_enough
from .sigma import falling, span


def _log_tail(y: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """log of the regularised incomplete beta function I_y(a, b), y in (0, 1/2], and d/dlog y.

    I = y^a (1 - y)^b / (a·B) · F, F = sum over k of prod (a + b + j)/(a + 1 + j)·y (DLMF 8.17.8);
    all terms are positive and shrink like 2^-k.
    """
    k = torch.arange(64 + 8 * math.ceil(a + b), dtype=torch.float64)
    terms = torch.cumprod((a + b + k) / (a + 1 + k) * y[:, None], 1)
    total = 1 + terms.sum(1)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    value = a * torch.log(y) + b * torch.log1p(-y) - math.log(a) - log_beta + torch.log(total)
    return value, a / ((1 - y) * total)


def _lower(p: Tensor, a: float, b: float) -> Tensor:
    """y in (0, 1/2] with I_y(a, b) = p, by Newton's method in log y against log p."""
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    aim = torch.log(p)
    y = torch.exp((aim + math.log(a) + log_beta) / a).clamp(min=1e-300, max=0.5)
    for _ in range(60):
        value, rise = _log_tail(y, a, b)
        step = (aim - value) / rise
        y = (y * torch.exp(step)).clamp(min=1e-300, max=0.5)
        if float(step.abs().max()) < 1e-12:
            break
    return y


def quantile(p: Tensor, alpha: float, beta: float) -> Tensor:
    """The inverse of the Beta(alpha, beta) distribution function at p in [0, 1], to 1e-12."""
    out = p.clone()
    centre = math.exp(float(_log_tail(torch.full((1,), 0.5, dtype=torch.float64), alpha, beta)[0]))
    low, high = (p > 0) & (p <= centre), (p > centre) & (p < 1)
    if bool(low.any()):
        out[low] = _lower(p[low], alpha, beta)
    if bool(high.any()):
        out[high] = 1 - _lower(1 - p[high], beta, alpha)
    return out


def _checked(alpha: float, beta: float) -> tuple[float, float]:
    return finite("alpha", alpha, 0.1, 20), finite("beta", beta, 0.1, 20)


def beta(process: Process, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> Grid:
    """Training indices (T - 1)·Q(1 - i/N), Q the quantiles of Beta(alpha, beta): ComfyUI's `beta`.

    The indices are fractional; ComfyUI rounds them and drops those that repeat, so it makes fewer
    than N steps. For A1111's and diffusers' `beta` see `beta_sigma`.

    Args:
        process: the noise process.
        steps: number of steps N.
        alpha: in [0.1, 20].
        beta: in [0.1, 20].

    Source: Lee et al. 2024, arXiv 2407.12173.
    """
    a, b = _checked(alpha, beta)
    u = 1 - torch.arange(few_enough("steps", steps), dtype=torch.float64) / steps
    return Grid.of(process, process.at_index((process.train_steps - 1) * quantile(u, a, b)), "beta")


def beta57(process: Process, steps: int) -> Grid:
    """Training indices (T - 1)·Q(1 - i/N), Q the quantiles of Beta(0.5, 0.7): more at both ends.

    Args:
        process: the noise process.
        steps: number of steps N.

    Source: RES4LYF.
    """
    grid = beta(process, steps, alpha=0.5, beta=0.7)
    return Grid(process, grid.alpha, grid.sigma, grid.time, "beta57")


def beta_sigma(
    process: Process,
    steps: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """sigma_min + (sigma_max - sigma_min)·Q(1 - i/(N - 1)), then 0: diffusers' `use_beta_sigmas`.

    Q are the quantiles of Beta(alpha, beta). A1111's `beta`; for ComfyUI's see `beta`.

    Args:
        process: the noise process.
        steps: number of steps N; one step visits sigma_max only.
        alpha: in [0.1, 20].
        beta: in [0.1, 20].
        sigma_min: last sigma above 0; None: the smallest of the process.
        sigma_max: first sigma; None: the largest of the process, which must be finite.

    Source: Lee et al. 2024, arXiv 2407.12173.
    """
    low, top = span(process, sigma_min, sigma_max, "beta_sigma")
    a, b = _checked(alpha, beta)
    sigma = low + (top - low) * quantile(falling(steps), a, b)
    return Grid.of(process, process.at_sigma(sigma), "beta_sigma")
