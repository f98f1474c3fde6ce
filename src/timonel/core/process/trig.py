"""The process of trigonometric flow, of which consistency models are made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import GridError, whole
from .level import MOST_LEVELS, SNAP, Level, Process, double, short


class Trig(Process):
    """TrigFlow (Lu & Song 2024, arXiv 2410.11081, section 3): `x = cos(t)·x0 + sin(t)·eps`, t from
    pi/2 to 0.

    The network is told the angle t; `v` is its prediction. Data and noise are in units of
    sigma_data. The training levels are evenly spaced angles; pure noise (t = pi/2) is one of them,
    so the schedule sigma tan(t) has no bound.
    """

    kind = "trig"
    lists_end = True

    def __init__(self, *, train_steps: int = 1000) -> None:
        self.train_steps = whole("train_steps", train_steps, 2, MOST_LEVELS)

    @property
    def sigma_min(self) -> float:
        return math.tan(math.pi / 2 / self.train_steps)

    @property
    def sigma_max(self) -> float:
        return math.inf

    def _level(self, t: Tensor) -> Level:
        return Level(torch.where(t == math.pi / 2, 0.0, torch.cos(t)), torch.sin(t), t)

    def at_time(self, time: Tensor) -> Level:
        time, top = double(time), math.pi / 2
        if not bool(torch.isfinite(time).all()) or bool(
            ((time < 0) | (time > top * (1 + 1e1 * SNAP))).any()
        ):
            raise GridError(f"angles must lie in [0, pi/2], got {short(time)}")
        return self._level(torch.where(time > top * (1 - SNAP), top, time))

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(torch.atan(self._check_sigma(double(sigma))))

    def at_lam(self, lam: Tensor) -> Level:
        return self.at_sigma(torch.exp(-double(lam)))

    def at_index(self, index: Tensor) -> Level:
        return self.at_time((double(index) + 1) / self.train_steps * (math.pi / 2))
