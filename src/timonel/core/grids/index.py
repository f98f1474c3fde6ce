"""Grids in training index: 0 (cleanest) … T - 1 (noisiest), see `Process.at_index`.

All take a noise process of T training levels and a number N of steps, at most T.
"""

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


def _one_is_noisiest(index: Tensor, total: int) -> Tensor:
    """The indices; a single one is T - 1, for the only step of a run removes all the noise."""
    return index if len(index) > 1 else torch.full_like(index, total - 1)


def leading(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that end at `steps_offset`: i·(T // N) + offset.

    Starts below the noisiest level: with N = 10 of 1000 at index 900. The offset is reduced where
    an index would leave the training range (diffusers raises IndexError). One step: T - 1, where
    diffusers' single step at the cleanest level returns noise.

    Args:
        process: the noise process, whose `steps_offset` is the last index.
        steps: number of steps N, at most T.

    Source: Song et al. 2020, arXiv 2010.02502.
    """
    total = _training_indices(process, steps)
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (total // steps)
    offset = min(process.steps_offset, total - 1 - int(index[0]))
    return Grid.of(process, process.at_index(_one_is_noisiest(index + offset, total)), "leading")


def ddim_uniform(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that end at 1: i·T/N + 1; starts below the noisiest level.

    ComfyUI's grid of this name where N divides T. Elsewhere ComfyUI strides T // N and makes more
    than N steps; here the stride is T/N. Above T/2 steps the last index is T/N - 1, so that the
    first stays in the training range. One step: T - 1, as in `leading`.
    """
    total = _training_indices(process, steps)
    stride = total / steps
    index = _counted(steps).flip(0) * stride + min(1.0, stride - 1)
    index = _one_is_noisiest(index.clamp(max=total - 1), total)
    return Grid.of(process, process.at_index(index), "ddim_uniform")


def linspace(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices from T - 1 to 0, both included; fractional. One step: T - 1.

    Also called `normal`, as in ComfyUI, which on a shifted flow shifts the cleanest level twice.

    Source: Nichol & Dhariwal 2021, arXiv 2102.09672.
    """
    total = _training_indices(process, steps)
    index = torch.linspace(total - 1, 0, steps, dtype=torch.float64)
    return Grid.of(process, process.at_index(index), "linspace")


def sgm_uniform(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices (T - 1)·(1 - i/N), fractional; 0 is left out.

    `trailing` is the same up to one index.

    Source: Stability's generative-models; ComfyUI's grid of this name.
    """
    index = (_training_indices(process, steps) - 1) * (1 - _counted(steps) / steps)
    return Grid.of(process, process.at_index(index), "sgm_uniform")


def trailing(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that start at T - 1: round(T - i·T/N) - 1.

    Flow and EDM models take fractional indices, so theirs are not rounded: a flow visits
    u = 1 - i/N.

    Source: Lin et al. 2023, arXiv 2305.08891, table 2.
    """
    total = _training_indices(process, steps)
    if process.kind != "vp":
        index = total - _counted(steps) * (total / steps) - 1
    else:  # the stride as numpy.arange rounds it, so that x.5 rounds as in diffusers
        stride = total - (total - total / steps)
        index = (total - _counted(steps) * stride).round() - 1
    return Grid.of(process, process.at_index(index), "trailing")


def simple(process: Process, steps: int) -> Grid:
    """Every (T/N)-th training index counted from the noisiest: T - 1 - floor(i·T/N).

    Flow and EDM models take fractional indices, so theirs are not rounded: they are `trailing`'s.

    Source: ComfyUI's grid of this name.
    """
    total = _training_indices(process, steps)
    down = _counted(steps) * (total / steps)
    if process.kind == "vp":
        down = down.floor()
    return Grid.of(process, process.at_index(total - 1 - down), "simple")


def smoothstep(process: Process, steps: int) -> Grid:
    """Training indices (T - 1)·u²·(3 - 2u), u = 1 - i/N: close together at both ends, as `beta`'s.

    Fractional, so none repeats; stable-diffusion.cpp rounds them and repeats some from 78 steps on.

    Source: stable-diffusion.cpp's grid of this name.
    """
    total = _training_indices(process, steps)
    u = 1 - _counted(steps) / steps
    return Grid.of(process, process.at_index((total - 1) * u**2 * (3 - 2 * u)), "smoothstep")


def lcm(process: Process, steps: int, *, original_steps: int = 50) -> Grid:
    """The levels that a consistency model was distilled at, evenly thinned to N.

    They are every (T // original_steps)-th training index. On EDM the distance between two is a
    whole number of them (diffusers' CMStochasticIterativeScheduler).

    Args:
        process: the noise process.
        steps: number of steps N, at most `original_steps`.
        original_steps: number of levels of the distillation, 1 … T.

    Raises:
        GridError: for more steps than `original_steps`.

    Source: Luo et al. 2023, arXiv 2310.04378, section 4.3.
    """
    total = process.train_steps
    if few_enough("steps", steps) > whole("original_steps", original_steps, 1, total):
        raise GridError(
            f"{steps} steps are more than original_steps={original_steps}; use fewer, or"
            " grid='trailing'"
        )
    origin = _counted(original_steps + 1)[1:].flip(0) * (total // original_steps) - 1
    stride = original_steps // steps if process.kind == "edm" else original_steps / steps
    pick = torch.floor(_counted(steps) * stride).long()
    return Grid.of(process, process.at_index(origin[pick]), "lcm")
