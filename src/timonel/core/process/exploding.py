"""Any process in the coordinates of diffusers' sigma schedulers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .edm import EDM
from .level import Level, Process

FLOOR = 2.0**-24  # abar that stands for 0 where betas are rescaled to zero SNR, as in diffusers
FINITE = (1 / FLOOR - 1) ** 0.5  # sigma / alpha of it


class Exploding(Process):
    """The levels of `process` as `x = x0 + s·eps`, s = sigma / alpha; networks see unit variance.

    Pure noise has diffusers' largest finite s, 4096.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 9.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.kind = process.kind  # type: ignore[misc]  # the meaning of its times
        self.train_steps, self.steps_offset = process.train_steps, process.steps_offset

    @property
    def sigma_min(self) -> float:
        return self.process.sigma_min

    @property
    def sigma_max(self) -> float:
        top = self.process.sigma_max
        return top if math.isfinite(top) else FINITE

    def of(self, level: Level) -> Level:
        """A level of `process` in these coordinates."""
        ratio = level.ratio
        return Level(
            torch.ones_like(ratio), torch.where(torch.isinf(ratio), FINITE, ratio), level.time
        )

    def seen(self, level: Level) -> Tensor:
        """The factor of the network's input: `1 / sqrt(s² + d²)`, d the std of the data."""
        data = self.process.sigma_data if isinstance(self.process, EDM) else 1.0
        return 1 / torch.sqrt(level.ratio**2 + data**2)

    def at_time(self, time: Tensor) -> Level:
        return self.of(self.process.at_time(time))

    def at_sigma(self, sigma: Tensor) -> Level:
        return self.of(self.process.at_sigma(sigma))

    def at_lam(self, lam: Tensor) -> Level:
        return self.of(self.process.at_lam(lam))

    def at_index(self, index: Tensor) -> Level:
        return self.of(self.process.at_index(index))

    def clean(self) -> Level:
        return self.of(self.process.clean())
