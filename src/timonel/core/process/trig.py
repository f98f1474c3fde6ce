"""TrigFlow, the process of continuous-time consistency models."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import whole
from .level import MOST_LEVELS, SNAP, Level, Process, double, within


class Trig(Process):
    """TrigFlow: `x = cos(t)·x0 + sin(t)·eps`; time is the angle t from pi/2 to 0.

    Data and noise are in units of sigma_data. The training levels are evenly spaced angles; pure
    noise is one of them, so the schedule sigma tan(t) has no bound. Its models predict `v`.

    Args:
        train_steps: number of training levels, at least 2.

    Source: Lu & Song 2024, arXiv 2410.11081, section 3.
    """

    kind = "trig"
    lists_end = True
    sigma_max = math.inf

    def __init__(self, *, train_steps: int = 1000) -> None:
        self.train_steps = whole("train_steps", train_steps, 2, MOST_LEVELS)

    @property
    def sigma_min(self) -> float:
        return math.tan(math.pi / 2 / self.train_steps)

    def _level(self, t: Tensor) -> Level:
        return Level(torch.where(t == math.pi / 2, 0.0, torch.cos(t)), torch.sin(t), t)

    def at_time(self, time: Tensor) -> Level:
        time, top = double(time), math.pi / 2
        within(time, top * (1 + 10 * SNAP), "angles must lie in [0, pi/2]")
        return self._level(torch.where(time > top * (1 - SNAP), top, time))

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(torch.atan(self._check_sigma(double(sigma))))

    def at_index(self, index: Tensor) -> Level:
        return self.at_time((double(index) + 1) / self.train_steps * (math.pi / 2))
