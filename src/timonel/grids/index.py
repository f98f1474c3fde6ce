"""Grids in training index: 0 (cleanest) … T - 1 (noisiest), see `Process.at_index`."""

from __future__ import annotations

import torch

from ..errors import GridError, whole
from ..process import Process
from .grid import Grid


def _training_indices(process: Process, steps: int) -> int:
    if whole("steps", steps) > process.train_steps:
        raise GridError(
            f"{steps} steps are more than the {process.train_steps} training levels of this model; "
            f"use at most {process.train_steps}"
        )
    return process.train_steps


def leading(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that end at `steps_offset`: i·(T // N) + offset.

    Starts below the noisiest level: with N = 10 of 1000 at index 900. The offset is reduced where
    the list would leave the training range (diffusers then raises IndexError).
    """
    total = _training_indices(process, steps)
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (total // steps)
    offset = min(process.steps_offset, total - 1 - int(index[0]))
    return Grid.of(process, process.at_index(index + offset), "leading")


def linspace(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices from T - 1 to 0, both included; fractional. One step: T - 1."""
    total = _training_indices(process, steps)
    return Grid.of(process, process.at_index(torch.linspace(total - 1, 0, steps, dtype=torch.float64)), "linspace")


def trailing(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that start at T - 1: round(T - i·T/N) - 1 (arXiv 2305.08891, table 2).

    Flow and EDM models take fractional indices, so theirs are not rounded: a flow visits u = 1 - i/N.
    """
    total = _training_indices(process, steps)
    index = total - torch.arange(steps, dtype=torch.float64) * (total / steps)
    return Grid.of(process, process.at_index((index.round() if process.kind == "vp" else index) - 1), "trailing")


def lcm(process: Process, steps: int, *, original_steps: int = 50) -> Grid:
    """Levels a consistency model was distilled at: every T // original_steps-th training index, then evenly thinned.

    arXiv 2310.04378, section 4.3. At most `original_steps` steps.
    """
    total = process.train_steps
    if whole("steps", steps) > whole("original_steps", original_steps, 1, total):
        raise GridError(f"{steps} steps are more than original_steps={original_steps}; use fewer, or grid='trailing'")
    origin = torch.arange(original_steps, 0, -1, dtype=torch.float64) * (total // original_steps) - 1
    pick = torch.floor(torch.arange(steps, dtype=torch.float64) * (original_steps / steps)).long()
    return Grid.of(process, process.at_index(origin[pick]), "lcm")
