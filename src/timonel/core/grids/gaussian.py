"""The best levels for Gaussian data, by the standard deviation of the data alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import finite
from ..process import Level, Process, double
from ..process.level import interpolate
from .choose import choose
from .grid import Grid, few_enough

CANDIDATES = 400  # levels to choose from
MOST_CHOSEN = 100  # steps that are chosen; more are interpolated between those
NODES = 8  # of the quadrature between two candidates


def gaussian(process: Process, steps: int, *, std: float = 1.0) -> Grid:
    """The levels of least KL divergence for Gaussian data, by dynamic programming.

    With t = sigma / alpha and c = std, holding the denoised prediction from level a to level b < a
    costs `c^4 * integral from b to a of (1/(t^2 + c^2) - 1/(a^2 + c^2))^2 / t^3 dt`. Above 100
    steps the levels lie evenly in lam between those of 100.

    Args:
        process: the noise process.
        steps: number of steps N.
        std: standard deviation of the data, in [1e-3, 1e3]: 1 for latents, about 0.5 for pictures
            in -1..1.

    Source: Align Your Steps, arXiv 2404.14507, theorem 3.1 and lemma 3.3.
    """
    c = finite("std", std, 1e-3, 1e3)
    count = few_enough("steps", steps)
    levels = _levels(process)
    path = choose(_cost(levels.ratio, c), min(count, MOST_CHOSEN))  # the last is never called
    if count <= MOST_CHOSEN:
        return Grid.of(process, Level(*(v[path[:-1]] for v in levels)), "gaussian")
    lam = levels.lam[path]
    lam[0] = lam[1] - (lam[2] - lam[1]) if not math.isfinite(float(lam[0])) else lam[0]
    places = torch.linspace(0, MOST_CHOSEN, count + 1, dtype=torch.float64)[1:-1]
    knots = torch.arange(MOST_CHOSEN + 1, dtype=torch.float64)
    inner = process.at_lam(interpolate(places, knots, lam))
    parts = (torch.cat([a[:1], b]) for a, b in zip(levels, inner, strict=True))
    return Grid.of(process, Level(*parts), "gaussian")


def _levels(process: Process) -> Level:
    """Levels from the noisiest (or pure noise) to the lowest, even in lam."""
    top = process.at_index(double([process.train_steps - 1.0]))
    if math.isfinite(process.sigma_max):
        top = process.at_sigma(double([process.sigma_max]))
    low = process.at_sigma(double([process.sigma_min]))
    pure = not math.isfinite(float(top.ratio))
    first = -math.log(1e3) if pure else float(top.lam)
    lam = torch.linspace(first, float(low.lam), CANDIDATES, dtype=torch.float64)
    inner = process.at_lam(lam if pure else lam[1:])
    return Level(*(torch.cat([a, b]) for a, b in zip(top, inner, strict=True)))


def _cost(ratio: Tensor, c: float) -> Tensor:
    """(M, M) cost of holding the prediction from level i to level j, read above the diagonal."""
    held = 1 / (ratio**2 + c**2)  # 0 at pure noise
    t_or_far = ratio.clone()
    if not math.isfinite(float(ratio[0])):
        t_or_far[0] = ratio[1] * 1e3  # above it the integrand falls as t^-7
    nodes, weights = _quadrature()
    log = torch.log(t_or_far)
    high, low = log[:-1, None], log[1:, None]
    t = torch.exp(low + (high - low) * nodes)
    measure = weights * (high - low) * t**-2  # dt / t^3 in log t
    shape = 1 / (t**2 + c**2)
    # moments of every interval, added up from the noisy end
    zero, one, two = (
        torch.cat([double([0.0]), (measure * shape**n).sum(1).cumsum(0)]) for n in range(3)
    )
    i, j = slice(None, None), None
    d0, d1, d2 = (m[j, :] - m[i, j] for m in (zero, one, two))
    held = held[:, None]
    return c**4 * (d2 - 2 * held * d1 + held**2 * d0)


def _quadrature() -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    k = torch.arange(1, NODES, dtype=torch.float64)
    beta = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return (values + 1) / 2, vectors[0] ** 2
