"""The cosine process in continuous time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import GridError, whole
from .level import MOST_LEVELS, SNAP, Level, Process, double, short

OFFSET = 0.008  # arXiv 2102.09672, eq. 17
LEAST = 1e-4  # abar of the noisiest level


class Cosine(Process):
    """abar(t) = cos²((t + o) / (1 + o) · pi/2) / cos²(o / (1 + o) · pi/2), the network is told t
    from 1 to 0.

    Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17, with a time that is a share of the whole, as
    Würstchen has it (arXiv 2306.00637); abar stays above 1e-4.
    """

    kind = "cosine"
    lists_end = True

    def __init__(self, *, train_steps: int = 1000) -> None:
        self.train_steps = whole("train_steps", train_steps, 2, MOST_LEVELS)
        self._edge = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2)

    @property
    def sigma_min(self) -> float:
        return float(self.at_time(double(1 / self.train_steps)).ratio)

    @property
    def sigma_max(self) -> float:
        return math.sqrt(1 / LEAST - 1)

    def at_time(self, time: Tensor) -> Level:
        time = double(time)
        if not bool(torch.isfinite(time).all()) or bool(((time < 0) | (time > 1 + SNAP)).any()):
            raise GridError(f"times must lie in [0, 1], got {short(time)}")
        time = time.clamp(max=1.0)
        root = torch.cos((time + OFFSET) / (1 + OFFSET) * math.pi / 2) / self._edge
        alpha = root.clamp(LEAST**0.5, 1.0)
        return Level(alpha, torch.sqrt(1 - alpha**2), time)

    def at_sigma(self, sigma: Tensor) -> Level:
        sigma = self._check_sigma(double(sigma))
        alpha = 1 / torch.sqrt(1 + sigma**2)
        time = torch.acos(alpha * self._edge) / (math.pi / 2) * (1 + OFFSET) - OFFSET
        told = torch.where(sigma >= self.sigma_max * (1 - SNAP), 1.0, time.clamp(0.0, 1.0))
        return Level(alpha, sigma * alpha, torch.where(sigma == 0, 0.0, told))

    def at_lam(self, lam: Tensor) -> Level:
        return self.at_sigma(torch.exp(-double(lam)))

    def at_index(self, index: Tensor) -> Level:
        return self.at_time((double(index) + 1) / self.train_steps)
