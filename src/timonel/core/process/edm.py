"""The process of Karras et al. 2022."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import among, finite, whole
from .level import MOST_LEVELS, Level, Process, double

MOST_SIGMA = 1e9  # a larger one is a mistake, and its square soon no number
#: network time at s, by the name of its clock
CLOCKS = {"log": "0.25·log(sigma)", "angle": "atan(sigma)·2/pi", "250 log": "250·log(sigma)"}


class EDM(Process):
    """EDM: s = sigma / alpha from `sigma_max` to `sigma_min`; the network's x has unit variance.

    The network sees `x0 + s·eps` over `sqrt(s² + sigma_data²)`, as SVD and Cosmos have it.

    Args:
        sigma_min: smallest s, above 0.
        sigma_max: largest s, at least `sigma_min`.
        sigma_data: standard deviation of the data, above 0; 1 (SVD) makes it variance preserving.
        train_steps: number of training levels, at least 2.
        clock: network time: "log", `0.25·log(s)`; "angle", `atan(s)·2/pi` (Stable Audio, arXiv
            2407.14358); "250 log", `250·log(s)` (consistency models, arXiv 2303.01469).
        rho: the training levels are evenly spaced in `s^(1/rho)`, rho in [1, 100]; None: in log s.

    Raises:
        ArgumentError, UnknownName: for a value outside its range.

    Source: Karras et al. 2022, arXiv 2206.00364.
    """

    kind = "edm"

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        *,
        sigma_data: float = 1.0,
        train_steps: int = 1000,
        clock: str = "log",
        rho: float | None = None,
    ) -> None:
        self.clock = among("clock of an EDM process", clock, CLOCKS)
        self.rho = None if rho is None else finite("rho", rho, 1, 100)
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
        return Level(1 / norm, s / norm, self.network_time(torch.where(s > 0, s, self._min)))

    def network_time(self, s: Tensor) -> Tensor:
        """The network time at s, above 0."""
        if self.clock == "angle":
            return torch.atan(s) * (2 / math.pi)
        return (250 if self.clock == "250 log" else 0.25) * torch.log(s)

    def _sigma(self, time: Tensor) -> Tensor:
        if self.clock == "angle":
            return torch.tan(time * (math.pi / 2))
        return torch.exp(time / (250 if self.clock == "250 log" else 0.25))

    def clean(self) -> Level:
        """The denoised sample itself, whatever sigma_data."""
        return Level(double([1.0]), double([0.0]), self.network_time(double([self._min])))

    def at_time(self, time: Tensor) -> Level:
        return self._level(self._check_sigma(self._sigma(double(time))))

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(self._check_sigma(double(sigma)))

    def at_index(self, index: Tensor) -> Level:
        share = double(index) / (self.train_steps - 1)
        if self.rho is not None:
            low, high = self._min ** (1 / self.rho), self._max ** (1 / self.rho)
            return self.at_sigma((low + share * (high - low)) ** self.rho)
        low, high = math.log(self._min), math.log(self._max)
        return self.at_sigma(torch.exp(low + share * (high - low)))


class VE(EDM):
    """`EDM` in unscaled coordinates `x = x0 + s·eps`, for loops that scale the network's input.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 9.
    """

    def _level(self, s: Tensor) -> Level:
        return super()._level(s)._replace(alpha=torch.ones_like(s), sigma=s)
