"""The density of a row that draws noise: x' = mean + std·eps with eps unit normal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError
from . import border

HALF = (torch.float16, torch.bfloat16)


class Transition(NamedTuple):
    """The law of a row's next x.

    Args:
        mean: (batch, …), in float32 or wider.
        std: of every dimension, above 0.
    """

    mean: Tensor
    std: float

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std²), summed over all dimensions of a sample.

        Args:
            x: (batch, …), of the mean's shape.

        Returns:
            (batch,) in float64, or in float32 on a device that has no float64.

        Raises:
            ArgumentError: another shape.
        """
        border.tensor("the next sample", x)
        if x.shape != self.mean.shape:
            raise ArgumentError(
                f"the next sample must have the shape {tuple(self.mean.shape)}, got"
                f" {tuple(x.shape)}"
            )
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        unit = ((x.to(dtype) - self.mean.to(dtype)) / self.std).flatten(1)
        dimensions = unit.shape[1]
        constant = dimensions * (math.log(self.std) + math.log(2 * math.pi) / 2)
        return -(unit**2).sum(1) / 2 - constant


def wide(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x.float() if x.dtype in HALF else x
