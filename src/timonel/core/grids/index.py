"""Grids in training index: 0 (cleanest) … T - 1 (noisiest), see `Process.at_index`."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import GridError, whole
from ..process import Process
from .grid import Grid, few_enough


def _training_indices(process: Process, steps: int) -> int:
    if few_enough("steps", steps) > process.train_steps:
        raise GridError(
            f"{steps} steps are more than the {process.train_steps} training levels of this model; "
            f"use at most {process.train_steps}"
        )
    return process.train_steps


def _counted(steps: int) -> Tensor:
    """i = 0 … N - 1."""
    return torch.arange(steps, dtype=torch.float64)


def _top(index: Tensor, total: int) -> Tensor:
    """A list of one index begins at the noisiest: every grid's only step has to remove all the
    noise.
    """
    return index if len(index) > 1 else torch.full_like(index, total - 1)


def leading(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that end at `steps_offset`: i·(T // N) + offset.

    Starts below the noisiest level: with N = 10 of 1000 at index 900. The offset is reduced where
    the list would leave the training range (diffusers then raises IndexError). One step: T - 1, for
    at its own place, the cleanest level, it would give the noise back (as diffusers' does).
    """
    total = _training_indices(process, steps)
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (total // steps)
    offset = min(process.steps_offset, total - 1 - int(index[0]))
    return Grid.of(process, process.at_index(_top(index + offset, total)), "leading")


def ddim_uniform(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that end at index 1: i·T/N + 1; starts below the noisiest
    level.

    ComfyUI's of the same name where N divides T. Elsewhere ComfyUI strides T // N until the range
    ends and makes more steps than asked for; here the stride is T/N, so there are exactly N. Above
    T/2 steps the last index is T/N - 1, so that the first stays in the training range. One step: T
    - 1, as in `leading`.
    """
    total = _training_indices(process, steps)
    stride = total / steps
    index = _counted(steps).flip(0) * stride + min(1.0, stride - 1)
    return Grid.of(
        process, process.at_index(_top(index.clamp(max=total - 1), total)), "ddim_uniform"
    )


def linspace(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices from T - 1 to 0, both included; fractional. One step: T - 1.

    Also listed as `normal`, ComfyUI's name for the same levels. (On a shifted flow ComfyUI shifts
    the cleanest level twice; here it is shifted once.)
    """
    total = _training_indices(process, steps)
    return Grid.of(
        process,
        process.at_index(torch.linspace(total - 1, 0, steps, dtype=torch.float64)),
        "linspace",
    )


def sgm_uniform(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices from T - 1 towards 0, which is left out: (T - 1)·(1 - i/N);
    fractional.

    Stability's generative-models; ComfyUI's grid of the same name. `trailing` is the same up to one
    index.
    """
    total = _training_indices(process, steps)
    return Grid.of(
        process, process.at_index((total - 1) * (1 - _counted(steps) / steps)), "sgm_uniform"
    )


def trailing(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that start at T - 1: round(T - i·T/N) - 1 (arXiv 2305.08891,
    table 2).

    Flow and EDM models take fractional indices, so theirs are not rounded: a flow visits u = 1 -
    i/N.
    """
    total = _training_indices(process, steps)
    if process.kind != "vp":
        return Grid.of(
            process, process.at_index(total - _counted(steps) * (total / steps) - 1), "trailing"
        )
    stride = total - (
        total - total / steps
    )  # as numpy.arange rounds it, so that halves round as in diffusers
    return Grid.of(
        process, process.at_index((total - _counted(steps) * stride).round() - 1), "trailing"
    )


def simple(process: Process, steps: int) -> Grid:
    """Every (T/N)-th training index counted from the noisiest: T - 1 - floor(i·T/N). ComfyUI's
    grid.

    Flow and EDM models take fractional indices, so theirs are not rounded down and equal
    `trailing`'s.
    """
    total = _training_indices(process, steps)
    down = _counted(steps) * (total / steps)
    return Grid.of(
        process,
        process.at_index(total - 1 - (down.floor() if process.kind == "vp" else down)),
        "simple",
    )


def smoothstep(process: Process, steps: int) -> Grid:
    """Training indices (T - 1)·u²·(3 - 2u), u = 1 - i/N: close together at both ends, as `beta`'s.

    stable-diffusion.cpp's grid, which rounds to whole indices and so repeats some from 78 steps on;
    here they are fractional and never repeat.
    """
    total = _training_indices(process, steps)
    u = 1 - _counted(steps) / steps
    return Grid.of(process, process.at_index((total - 1) * u**2 * (3 - 2 * u)), "smoothstep")


def lcm(process: Process, steps: int, *, original_steps: int = 50) -> Grid:
    """Levels a consistency model was distilled at: every T // original_steps-th training index,
    then evenly thinned.

    arXiv 2310.04378, section 4.3. At most `original_steps` steps. On EDM's process they are a whole
    number of places apart, from the noisiest on (diffusers, CMStochasticIterativeScheduler).
    """
    total = process.train_steps
    if few_enough("steps", steps) > whole("original_steps", original_steps, 1, total):
        raise GridError(
            f"{steps} steps are more than original_steps={original_steps}; use fewer, or"
            " grid='trailing'"
        )
    origin = (
        torch.arange(original_steps, 0, -1, dtype=torch.float64) * (total // original_steps) - 1
    )
    apart = original_steps // steps if process.kind == "edm" else original_steps / steps
    pick = torch.floor(_counted(steps) * apart).long()
    return Grid.of(process, process.at_index(origin[pick]), "lcm")
