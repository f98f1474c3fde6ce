"""The process of Dance Diffusion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import whole
from .level import MOST_LEVELS, SNAP, Level, Process, double, within


class Crash(Process):
    """Dance Diffusion: `x = cos(t·pi/2)·x0 + sin(t·pi/2)·eps`; time is t from 1 to 0.

    The training levels are sin(t·pi/2) = sin(u·pi/2)², u evenly spaced; pure noise is one of them.
    Its models predict `v`.

    Args:
        train_steps: number of training levels, at least 2.

    Source: the "crash" schedule of github.com/Harmonai-org/sample-generator.
    """

    kind = "crash"
    sigma_max = math.inf

    def __init__(self, *, train_steps: int = 1000) -> None:
        self.train_steps = whole("train_steps", train_steps, 2, MOST_LEVELS)

    @property
    def sigma_min(self) -> float:
        return float(self.at_index(double(0.0)).ratio)

    def at_time(self, time: Tensor) -> Level:
        time = within(double(time), 1 + SNAP, "times must lie in [0, 1]")
        time = torch.where(time > 1 - SNAP, 1.0, time)
        angle = time * (math.pi / 2)
        return Level(torch.where(time == 1, 0.0, torch.cos(angle)), torch.sin(angle), time)

    def at_sigma(self, sigma: Tensor) -> Level:
        return self.at_time(torch.atan(self._check_sigma(double(sigma))) * (2 / math.pi))

    def at_index(self, index: Tensor) -> Level:
        u = (double(index) + 1) / self.train_steps
        sigma = torch.sin(u * (math.pi / 2)) ** 2
        return self.at_time(torch.asin(sigma.clamp(max=1.0)) * (2 / math.pi))
