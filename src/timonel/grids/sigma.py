"""Grids in schedule sigma: sigma / alpha for VP and EDM, t for flow; see `process`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import GridError, finite, whole
from ..process import Process, double
from .grid import Grid


def _range(process: Process, sigma_min: float | None, sigma_max: float | None, name: str) -> tuple[float, float]:
    """The ends of a sigma grid, checked."""
    low = process.sigma_min if sigma_min is None else finite("sigma_min", sigma_min, 1e-12)
    top = process.sigma_max if sigma_max is None else finite("sigma_max", sigma_max, 1e-12)
    if not math.isfinite(top):
        raise GridError(
            f"grid {name!r} needs a finite sigma_max, and this process starts at pure noise; give one, e.g. "
            f"sigma_max=80, or use grid='trailing'"
        )
    if low >= top:
        raise GridError(f"sigma_min {low:g} must be below sigma_max {top:g}")
    return low, top


def _falling(steps: int) -> Tensor:
    """Evenly spaced from 1 to 0, both included; one step: 1."""
    count = whole("steps", steps)
    return torch.linspace(1, 0, count, dtype=torch.float64) if count > 1 else double([1.0])


def karras(
    process: Process,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """Evenly spaced sigma^(1/rho) from sigma_max to sigma_min, then 0, in schedule sigma.

    arXiv 2206.00364, eq. 5. One step visits sigma_max only.
    """
    low, top = _range(process, sigma_min, sigma_max, "karras")
    r = finite("rho", rho, 1e-3, 1e3)
    u = _falling(steps)
    sigma = (low ** (1 / r) + u * (top ** (1 / r) - low ** (1 / r))) ** r
    return Grid.of(process, process.at_sigma(sigma), "karras")


def exponential(
    process: Process, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Grid:
    """Evenly spaced log(sigma) from sigma_max to sigma_min, then 0, in schedule sigma. One step: sigma_max."""
    low, top = _range(process, sigma_min, sigma_max, "exponential")
    u = _falling(steps)
    return Grid.of(process, process.at_sigma(torch.exp(math.log(low) + u * math.log(top / low))), "exponential")
