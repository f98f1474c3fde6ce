"""The process of Karras et al. 2022."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import finite, whole
from .level import MOST_LEVELS, Level, Process, double

MOST_SIGMA = 1e9  # a larger one is a mistake, and its square soon no number


class EDM(Process):
    """Karras et al. 2022 (arXiv 2206.00364): s = sigma / alpha from `sigma_max` to `sigma_min`.

    The network sees `x / sqrt(s² + sigma_data²)` and the time `0.25 · log s`. With the default
    sigma_data = 1 (SVD) this is a variance preserving process with a continuous time.
    """

    kind = "edm"

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        *,
        sigma_data: float = 1.0,
        train_steps: int = 1000,
    ) -> None:
        self._min = finite("sigma_min", sigma_min, 1e-12)
        self._max = finite("sigma_max", sigma_max, self._min, MOST_SIGMA)
        self.sigma_data = finite("sigma_data", sigma_data, 1e-12, MOST_SIGMA)
        self.train_steps = whole("train_steps", train_steps, 2, MOST_LEVELS)

    @property
    def sigma_min(self) -> float:
        return self._min

    @property
    def sigma_max(self) -> float:
        return self._max

    def _level(self, s: Tensor) -> Level:
        norm = torch.sqrt(s**2 + self.sigma_data**2)
        told = torch.where(s > 0, s, self._min)
        return Level(1 / norm, s / norm, 0.25 * torch.log(told))

    def clean(self) -> Level:
        """The denoised sample itself, whatever sigma_data."""
        return Level(double([1.0]), double([0.0]), 0.25 * torch.log(double([self._min])))

    def at_time(self, time: Tensor) -> Level:
        return self._level(self._check_sigma(torch.exp(4 * double(time))))

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(self._check_sigma(double(sigma)))

    def at_lam(self, lam: Tensor) -> Level:
        return self.at_sigma(torch.exp(-double(lam)))

    def at_index(self, index: Tensor) -> Level:
        share = double(index) / (self.train_steps - 1)
        low, high = math.log(self._min), math.log(self._max)
        return self.at_sigma(torch.exp(low + share * (high - low)))


class VE(EDM):
    """The same levels in coordinates that explode: `x = x0 + s·eps`, as loops keep them that scale their samples
    themselves (Song et al. 2021, arXiv 2011.13456, eq. 9)."""

    def _level(self, s: Tensor) -> Level:
        return super()._level(s)._replace(alpha=torch.ones_like(s), sigma=s)
