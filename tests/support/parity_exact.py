"""Diffusers schedulers on data whose answer is known: one Gaussian, in float64, on levels of our
choice.

Everything is affine there, so a batch of basis vectors (the mean, the start's deviation, every
call's noise) gives the mean and the variance of a scheduler's result exactly, without sampling.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from support.models import drive, propagate, variance
from support.parity import inside
from timonel.core import solvers
from timonel.core.grids import Grid
from timonel.core.process import EDM, At, Level, double

PROCESS = EDM(1e-4, 1e4)
MEAN, STD = 0.7, 0.5
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FULL = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
POINTS = double([2.0, -1.0, 0.3])[:, None, None, None]
Model = Callable[[torch.Tensor, At], torch.Tensor]


def denoise(x: torch.Tensor, at: At) -> torch.Tensor:
    """The denoised sample for data N(MEAN, STD²)."""
    gain = at.alpha * STD**2 / (at.alpha**2 * STD**2 + at.sigma**2)
    return MEAN + gain * (x - at.alpha * MEAN)


def spread(level: Level) -> float:
    """Standard deviation of the marginal at a level."""
    return math.sqrt(float(level.alpha) ** 2 * STD**2 + float(level.sigma) ** 2)


def flowed(x: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
    """Where the probability-flow ODE takes x."""
    return float(end.alpha) * MEAN + spread(end) / spread(start) * (x - float(start.alpha) * MEAN)


def expected(x: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
    """The mean of the reverse SDE that starts at x: E[x_end | x_start], the start being the end
    with noise added.
    """
    slope = float(start.alpha / end.alpha) * spread(end) ** 2 / spread(start) ** 2
    return float(end.alpha) * MEAN + slope * (x - float(start.alpha) * MEAN)


def levels(steps: int, start: float = -2.0, end: float = 1.5, bend: float = 0.3) -> Grid:
    """Levels smoothly uneven in lam that end above sigma = 0."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    u = u + bend * torch.sin(math.pi * u) / math.pi
    return Grid.of(PROCESS, PROCESS.at_lam(start + (end - start) * u), "lam", clean=False)


def result(
    peer: str, grid: Grid, x: torch.Tensor, *,
    noise: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    scaled: bool = False, model: Model = denoise, step: dict[str, Any] | None = None, **config: Any,
) -> torch.Tensor:  # fmt: skip
    """A scheduler's result on the levels of `grid`; `scaled` where its samples are x / alpha."""
    cls, call = getattr(diffusers, peer), [0]
    at = [At(*(float(v) for v in grid[k])) for k in range(len(grid))]

    def draw() -> torch.Tensor:
        return noise(call[0], x) if noise else torch.zeros_like(x)

    with inside(sys.modules[cls.__module__], True, draw):
        scheduler = cls(**config)
        scheduler.set_timesteps(grid.steps)
        scheduler.sigmas = double(grid.sigma / grid.alpha)
        scheduler.set_begin_index(0)
        x = x / at[0].alpha if scaled else x
        for k in range(grid.steps):
            call[0] = k
            t = scheduler.timesteps[k]
            seen = scheduler.scale_model_input(x, t)
            eps = (seen - at[k].alpha * model(seen, at[k])) / at[k].sigma
            x = scheduler.step(eps, t, x, **(step or {}))[0]
    return x * at[-1].alpha if scaled else x


def moments(peer: str, grid: Grid, **options: Any) -> tuple[float, float]:
    """Mean and variance of a scheduler's result, from the marginal at the first level."""
    first, n = grid[0], grid.steps
    x = torch.full((2 + n, 1, 1, 1), float(first.alpha) * MEAN, dtype=torch.float64)
    x[1] += spread(first)

    def noise(k: int, like: torch.Tensor) -> torch.Tensor:
        unit = torch.zeros_like(like)
        unit[2 + k] = 1.0
        return unit

    end = result(peer, grid, x, noise=noise, **options).flatten()
    return float(end[0]), float(((end[1:] - end[0]) ** 2).sum())


# -- the errors of both sides ----------------------------------------------------------------------
def quiet(row: int, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like)


def mine(name: str, grid: Grid, **options: object) -> float:
    """timonel's worst error against the probability-flow ODE."""
    end = drive(solvers.make(name, grid, **options), denoise, POINTS, noise=quiet)
    return float((end - flowed(POINTS, grid[0], grid[grid.steps])).abs().max())


def theirs(peer: str, grid: Grid, **config: object) -> float:
    """A scheduler's worst error against the probability-flow ODE."""
    return float(
        (result(peer, grid, POINTS, **config) - flowed(POINTS, grid[0], grid[grid.steps]))
        .abs()
        .max()
    )


def my_variance(name: str, grid: Grid, **options: object) -> float:
    """The error of the variance of timonel's result, exactly."""

    def affine(level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        a = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
        return a.reshape(1), (MEAN * (1 - a * level.alpha)).reshape(1)

    table = solvers.make(name, grid, **options)
    first = table.level(0)
    end = propagate(table, affine, (first.alpha * MEAN).reshape(1), double([spread(first)]))[-1]
    return abs(float(variance(end)) - spread(grid[grid.steps]) ** 2)


def their_variance(peer: str, grid: Grid, **options: object) -> float:
    """The error of the variance of a scheduler's result, exactly."""
    return abs(moments(peer, grid, **options)[1] - spread(grid[grid.steps]) ** 2)


def every(grid: Grid, n: int) -> Grid:
    """Every n-th level: the outer levels of a singlestep scheduler."""
    return Grid(PROCESS, grid.alpha[::n], grid.sigma[::n], grid.time[::n])
