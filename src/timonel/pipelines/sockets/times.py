"""The time that a step is called with, as a number."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import ArgumentError

EQUAL = 1e-6  # relative distance of two times that float32 does not tell apart


def number(timestep: Any) -> float:
    """The time of a step as a float; a batch of times has one for all.

    Raises:
        ArgumentError: it is no number.
    """
    try:
        if isinstance(timestep, bool):
            raise TypeError
        return float(torch.as_tensor(timestep).flatten()[0])
    except (TypeError, ValueError, RuntimeError, IndexError):
        raise ArgumentError(
            f"step takes the time of its row, a number of scheduler.timesteps, got {timestep!r}"
        ) from None


def equal(a: float, b: float) -> bool:
    """Whether two times are one in float32."""
    return abs(a - b) <= EQUAL * max(1.0, abs(a), abs(b))
