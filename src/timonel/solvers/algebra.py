"""The few formulas every solver is made of, in (alpha, sigma) pairs so that alpha = 0 and sigma = 0 are finite."""

from __future__ import annotations

import torch
from torch import Tensor

from ..grids import Grid
from ..process import Level


def shrink(now: Level, new: Level) -> Tensor:
    """e^(-h) = (sigma'/alpha') / (sigma/alpha), in [0, 1): 0 from pure noise and to the clean level."""
    return (new.sigma * now.alpha) / (new.alpha * now.sigma)


def keep(now: Level, new: Level) -> Tensor:
    """sigma' / sigma: the factor of x in every exact step with a constant denoised sample."""
    return new.sigma / now.sigma


def gain(now: Level, new: Level) -> Tensor:
    """alpha' - alpha·sigma'/sigma = alpha'·(1 - e^(-h)): the factor of a constant denoised sample."""
    return new.alpha - now.alpha * new.sigma / now.sigma


def gap(now: Level, new: Level) -> Tensor:
    """h = lam' - lam; inf where either end is infinite."""
    return new.lam - now.lam


def finite_lam(level: Level) -> bool:
    """Whether lam is finite, so that the level can serve as an interpolation node in lam."""
    return bool((level.alpha > 0) & (level.sigma > 0))


def usable(grid: Grid, k: int, wanted: int) -> int:
    """How many of the newest predictions at step k may be interpolated in lam: at least 1, at most `wanted`.

    Nodes need finite lam, and so does the end of the step; pure noise and the clean level do not qualify.
    """
    if not finite_lam(grid[k]) or not finite_lam(grid[k + 1]):
        return 1
    count = 1
    while count < wanted and k - count >= 0 and finite_lam(grid[k - count]):
        count += 1
    return count


def expm1_ratio(h: Tensor) -> Tensor:
    """(e^(-h) - 1) / h + 1, the second exponential-integrator weight, accurate for small h."""
    series = h / 2 - h**2 / 6 + h**3 / 24 - h**4 / 120
    return torch.where(h.abs() < 1e-3, series, torch.expm1(-h) / h + 1)


def ancestral_noise(now: Level, new: Level, eta: float) -> Tensor:
    """eta · sigma' · sqrt(1 - (e^(-h))²): std of the fresh noise that keeps the marginal at eta = 1 (DDPM)."""
    return eta * new.sigma * torch.sqrt((1 - shrink(now, new) ** 2).clamp(min=0))


def ancestral_kept(now: Level, new: Level, eta: float) -> Tensor:
    """sigma' · sqrt(1 - eta²·(1 - e^(-2h))): what is left of the old noise beside `ancestral_noise`."""
    fall = shrink(now, new)
    return new.sigma * (fall if eta == 1 else torch.sqrt(1 - eta**2 * (1 - fall**2)))
