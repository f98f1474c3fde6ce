"""GITS: the grid for a model by dynamic programming on a few of its trajectories.

Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling", arXiv 2405.11326,
section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.grids.choose import choose
from ..core.grids.grid import Grid, few_enough
from ..core.grids.index import trailing
from ..core.grids.sigma import karras, usual
from ..core.process import Process
from ..core.run import Run
from ..core.solvers import make
from ..errors import ArgumentError, GridError, finite
from .drive import drive
from .network import Denoiser, Denoisers

MOST_FINE = 2000  # the cost has (fine + 1)² numbers


def _trajectory(denoise: Denoiser, x: Tensor, fine: Grid, prediction: str) -> tuple[Tensor, Tensor]:
    """An Euler run on `fine`: x at its M + 1 levels and the denoised predictions at the first M."""
    run = Run(make("euler", fine), prediction)
    run.start(x)
    samples, denoised = [run.latents.clone()], []
    for _ in drive(run, Denoisers(denoise)):
        samples.append(run.latents.clone())
        denoised.append(run.denoised.clone())
    return torch.stack(samples), torch.stack(denoised)


def deviations(fine: Grid, samples: Tensor, denoised: Tensor) -> Tensor:
    """How far Euler steps land from a trajectory: cost[i, j] of one from level i to level j > i.

    Args:
        fine: M + 1 levels.
        samples: Of the trajectory at them (M + 1, batch, …).
        denoised: Its predictions at the first M (M, batch, …).

    Returns:
        The norm of the difference in x / alpha, averaged over the batch (M + 1, M + 1).
    """
    wide = torch.promote_types(samples.dtype, torch.float32)
    cost = torch.zeros(len(fine), len(fine), dtype=torch.float64)
    alpha, sigma = fine.alpha, fine.sigma
    for i in range(fine.steps):
        kept = sigma[i + 1 :] / sigma[i]
        weights = (
            kept / alpha[i + 1 :],
            (alpha[i + 1 :] - alpha[i] * kept) / alpha[i + 1 :],
            1 / alpha[i + 1 :],
        )
        shape = (-1,) + (1,) * (samples.ndim - 1)
        a, b, c = (w.to(device=samples.device, dtype=wide).reshape(shape) for w in weights)
        miss = a * samples[i].to(wide) + b * denoised[i].to(wide) - c * samples[i + 1 :].to(wide)
        cost[i, i + 1 :] = torch.linalg.vector_norm(miss.flatten(2), dim=2).mean(1).double().cpu()
    return cost


def gits(
    denoise: Denoiser,
    x: Tensor,
    process: Process,
    steps: int,
    *,
    prediction: str = "sample",
    fine: int | Grid = 60,
    coefficient: float = 1.15,
) -> Grid:
    """The levels on which Euler steps stay closest to a fine Euler run of your model.

    cost[i, j] is the distance, in x / alpha, between one Euler step from the fine run's sample at
    level i and its sample at level j. The grid is the path of N steps through the fine levels with
    the least sum of coefficient^k·cost.

    Args:
        denoise: `denoise(x, level)`, as `timonel.sample` takes it.
        x: Noise (batch, …) where the run starts; with 16 samples or more the grid holds for others.
        process: What noise the denoiser knows.
        steps: N.
        prediction: What the denoiser returns.
        fine: A grid of the same process, or a number of steps of Karras' grid with rho 7
            (`trailing` where the process starts at pure noise). It costs as many network calls.
        coefficient: In [0.01, 100]; above 1 the later steps are more exact, below 1 the earlier
            ones. The paper scans 0.8 to 1.2.

    Returns:
        A grid of N steps, whose levels are some of the fine ones.

    Raises:
        ArgumentError: For values out of range.
        GridError: For more steps than `fine` has, or samples that are not finite.

    Source: arXiv 2405.11326, section 4.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or not len(x) or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ArgumentError(
            f"x must be a batch of noise, a floating-point tensor (batch, …), got {got}"
        )
    weight = finite("coefficient", coefficient, 0.01, 100)
    count = few_enough("steps", steps)
    total = fine.steps if isinstance(fine, Grid) else few_enough("fine", fine, 1, MOST_FINE)
    if count > total:
        raise GridError(
            f"{count} steps cannot be chosen from {total} fine ones; use fewer steps or a larger"
            " fine="
        )
    levels = fine
    if not isinstance(levels, Grid):
        levels = (karras if usual(process) == "karras" else trailing)(process, total)
    if levels.process is not process or levels.ends is not None:
        raise ArgumentError(
            "fine= must be a grid of the same process, without churn, ancestral steps or restarts"
        )
    path = choose(gits_cost(denoise, x, levels, prediction=prediction), count, weight)
    return Grid(process, levels.alpha[path], levels.sigma[path], levels.time[path], "gits")


def gits_cost(denoise: Denoiser, x: Tensor, fine: Grid, *, prediction: str = "sample") -> Tensor:
    """The cost (M + 1, M + 1) that `gits` minimises, for any number of steps.

    Args:
        denoise: See `gits`.
        x: See `gits`.
        fine: M + 1 levels.
        prediction: See `gits`.

    Returns:
        Distances in float64, row i for the step from level i.

    Raises:
        GridError: For samples that are not finite.
    """
    cost = deviations(fine, *_trajectory(denoise, x, fine, prediction))
    if not bool(torch.isfinite(cost).all()):
        raise GridError(
            "the model gave samples that are not finite; check denoise, prediction= and the start x"
        )
    return cost
