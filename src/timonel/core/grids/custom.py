"""Grids from lists of sigmas or times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...errors import ArgumentError, GridError
from ..process import Process, double
from .grid import Grid


def _numbers(what: str, values: Any) -> Tensor:
    """`values` as a 1-D float64 tensor."""
    try:
        return double(values).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"{what} must be a list of numbers, got {values!r}") from None


def custom_sigmas(process: Process, sigmas: Sequence[float] | Tensor) -> Grid:
    """The grid through a list of sigmas.

    Args:
        process: the noise process.
        sigmas: falling schedule sigmas, (steps,); a final 0 is appended unless it is there.

    Returns:
        The grid.

    Raises:
        ArgumentError, GridError: for no numbers, sigmas that do not fall or lie outside.
    """
    values = _numbers("sigmas", sigmas)
    if len(values) and bool(values[-1] == 0):
        values = values[:-1]
    if not len(values):
        raise GridError(
            "a list of sigmas needs at least one value above 0, e.g. sigmas=[14.6, 2.8, 0.6, 0.0]"
        )
    if bool((values == 0).any()):
        raise GridError(f"sigma 0 may stand only once, at the end; got {values.tolist()}")
    return Grid.of(process, process.at_sigma(values), "custom")


def custom_times(process: Process, times: Sequence[float] | Tensor) -> Grid:
    """The grid through a list of network times.

    Args:
        process: the noise process.
        times: network times from the noisiest level on, (steps,), fractional ones too; the clean
            level is appended.

    Returns:
        The grid.

    Raises:
        ArgumentError, GridError: for no numbers, levels that do not fall or lie outside.
    """
    values = _numbers("times", times)
    if not len(values):
        raise GridError("a list of times needs at least one value, e.g. times=[999, 845, 730, 587]")
    return Grid.of(process, process.at_time(values), "custom")
