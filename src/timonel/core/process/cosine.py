"""The cosine process in continuous time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import whole
from .level import MOST_LEVELS, SNAP, Level, Process, double, within

OFFSET = 0.008  # arXiv 2102.09672, eq. 17
ABAR_MIN = 1e-4  # of the noisiest level


class Cosine(Process):
    """Cosine schedule in continuous time (Würstchen, Stable Cascade); time is t from 1 to 0.

    abar(t) = cos²((t + o) / (1 + o) · pi/2) / cos²(o / (1 + o) · pi/2), o = 0.008, at least 1e-4.

    Args:
        train_steps: number of training levels, at least 2.

    Source: Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17; Pernias et al. 2023, arXiv 2306.00637.
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
        return math.sqrt(1 / ABAR_MIN - 1)

    def at_time(self, time: Tensor) -> Level:
        time = within(double(time), 1 + SNAP, "times must lie in [0, 1]").clamp(max=1.0)
        root = torch.cos((time + OFFSET) / (1 + OFFSET) * math.pi / 2) / self._edge
        alpha = root.clamp(ABAR_MIN**0.5, 1.0)
        return Level(alpha, torch.sqrt(1 - alpha**2), time)

    def at_sigma(self, sigma: Tensor) -> Level:
        sigma = self._check_sigma(double(sigma))
        alpha = 1 / torch.sqrt(1 + sigma**2)
        time = torch.acos(alpha * self._edge) / (math.pi / 2) * (1 + OFFSET) - OFFSET
        time = torch.where(sigma >= self.sigma_max * (1 - SNAP), 1.0, time.clamp(0.0, 1.0))
        return Level(alpha, sigma * alpha, torch.where(sigma == 0, 0.0, time))

    def at_index(self, index: Tensor) -> Level:
        return self.at_time((double(index) + 1) / self.train_steps)
