"""The best levels for Gaussian data: no model is asked, only the data's standard deviation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import finite
from ..process import Level, Process, double
from ..process.level import interpolate
from .choose import choose
from .grid import Grid, few_enough

FINE, MOST = 400, 100  # levels to choose from, and how many of them
NODES = 8  # of the quadrature between two of them


def gaussian(process: Process, steps: int, *, std: float = 1.0) -> Grid:
    """The levels of least KL divergence for Gaussian data of standard deviation `std`, by dynamic
    programming.

    With t = sigma / alpha and c = std, holding the denoised prediction from level a to level b < a
    costs `c^4 * integral from b to a of (1/(t^2 + c^2) - 1/(a^2 + c^2))^2 / t^3 dt` (arXiv
    2404.14507, theorem 3.1 and lemma 3.3). std in [1e-3, 1e3]: 1 for latents, whose scale makes it
    so; about 0.5 for pictures in -1..1.

    Above 100 steps the levels lie evenly in lam between those of 100.
    """
    c = finite("std", std, 1e-3, 1e3)
    count = few_enough("steps", steps)
    levels = _levels(process)
    path = choose(
        _cost(levels.ratio, c), min(count, MOST)
    )  # the last one is the lowest level: nothing is called there
    if count <= MOST:
        return Grid.of(process, Level(*(v[path[:-1]] for v in levels)), "gaussian")
    lam = levels.lam[path]
    lam[0] = lam[1] - (lam[2] - lam[1]) if not math.isfinite(float(lam[0])) else lam[0]
    places = torch.linspace(0, MOST, count + 1, dtype=torch.float64)[1:-1]
    inner = process.at_lam(interpolate(places, torch.arange(MOST + 1, dtype=torch.float64), lam))
    return Grid.of(
        process,
        Level(*(torch.cat([a[:1], b]) for a, b in zip(levels, inner, strict=True))),
        "gaussian",
    )


def _levels(process: Process) -> Level:
    """Levels from the noisiest to the lowest, even in lam; a process that begins at pure noise
    begins there.
    """
    top = process.at_index(double([process.train_steps - 1.0]))
    if math.isfinite(process.sigma_max):
        top = process.at_sigma(double([process.sigma_max]))
    low = process.at_sigma(double([process.sigma_min]))
    pure = not math.isfinite(float(top.ratio))
    first = -math.log(1e3) if pure else float(top.lam)
    lam = torch.linspace(first, float(low.lam), FINE, dtype=torch.float64)
    inner = process.at_lam(lam if pure else lam[1:])
    return Level(*(torch.cat([a, b]) for a, b in zip(top, inner, strict=True)))


def _cost(ratio: Tensor, c: float) -> Tensor:
    """(M, M) cost of holding the prediction from level i to level j, read above the diagonal."""
    held = 1 / (ratio**2 + c**2)  # 0 at pure noise
    finite_ = ratio.clone()
    if not math.isfinite(float(ratio[0])):
        finite_[0] = ratio[1] * 1e3  # above it the integrand falls as t^-7
    nodes, weights = _quadrature()
    log = torch.log(finite_)
    high, low = log[:-1, None], log[1:, None]
    t = torch.exp(low + (high - low) * nodes)
    measure = weights * (high - low) * t**-2  # dt / t^3 in log t
    shape = 1 / (t**2 + c**2)
    # moments of every interval, added up from the noisy end
    zero, one, two = (
        torch.cat([double([0.0]), (measure * shape**n).sum(1).cumsum(0)]) for n in range(3)
    )
    i, j = slice(None, None), None
    difference = [m[j, :] - m[i, j] for m in (zero, one, two)]
    return c**4 * (
        difference[2] - 2 * held[:, None] * difference[1] + held[:, None] ** 2 * difference[0]
    )


def _quadrature() -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    k = torch.arange(1, NODES, dtype=torch.float64)
    beta = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return (values + 1) / 2, vectors[0] ** 2
