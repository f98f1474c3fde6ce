"""Converged results, and what counts as one: doubling a solver's steps no longer changes it.

The change from the result of half the steps is the estimate of the error, for every use; each
has another solver, other steps and another tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..core import grids, solvers
from ..core.grids import Grid
from ..core.process import Level, Process, double
from ..core.run import Run
from ..errors import ArgumentError, RunError, finite
from .drive import finish
from .network import Denoiser, Denoisers

T = TypeVar("T")
FINITE = 1e3  # sigma / alpha beyond which the levels of `reference` are spaced in alpha / sigma
DEPTH = 4  # orders that an extrapolation may gain


@dataclass(frozen=True)
class Refined(Generic[T]):
    """The result in so many steps, and that of half of them; None at the first."""

    steps: int
    result: T
    coarse: T | None


@dataclass(frozen=True)
class Reference:
    """How a converged result is computed.

    Args:
        solver: Name of the solver.
        first: Steps to begin with; they are doubled.
        last: Steps at most.
        tolerance: What doubling may change; see `trusts`.
    """

    solver: str
    first: int
    last: int
    tolerance: float

    def refine(self, compute: Callable[[int], T]) -> Iterator[Refined[T]]:
        """The results of `first`, 2·`first`, … up to `last` steps; whoever has enough leaves.

        Args:
            compute: Gives the result in so many steps.
        """
        steps, coarse = self.first, None
        while steps <= self.last:
            result = compute(steps)
            yield Refined(steps, result, coarse)
            steps, coarse = 2 * steps, result

    def trusts(self, change: float, size: float = 1.0) -> bool:
        """Whether a result that doubling changed by `change` is converged.

        Args:
            change: The estimate of its error.
            size: Of the result, where the tolerance is relative.
        """
        return change <= self.tolerance * size


def distance(result: Tensor, other: Tensor) -> Tensor:
    """Root mean square difference of each sample (n,), in float64."""
    return (result.double() - other.double()).flatten(1).square().mean(1).sqrt()


def typical(error: Tensor) -> float:
    """The geometric mean of errors (n,)."""
    return float(error.clamp(min=1e-12).log().mean().exp())


def extrapolated(compute: Callable[[int], Tensor], order: int) -> Callable[[int], Tensor]:
    """Results extrapolated to infinitely many steps, when `compute` is called with doubled steps.

    Args:
        compute: Gives the result in so many steps.
        order: Order of convergence of its solver.

    Source: Richardson; Hairer, Nørsett & Wanner 1993, Solving ODEs I, section II.9.
    """
    before: list[Tensor] = []

    def extrapolate(steps: int) -> Tensor:
        nonlocal before
        now = [compute(steps)]
        for j, coarse in enumerate(before[:DEPTH]):
            now.append(now[j] + (now[j] - coarse) / (2 ** (order + j) - 1))
        before = now
        return now[-1]

    return extrapolate


def reference(process: Process, steps: int, sigma_min: float | None = None) -> Grid:
    """Levels for a reference: even in log(sigma/alpha), and in alpha/sigma near pure noise.

    Args:
        process: Whose levels; pure noise may be the first.
        steps: How many, 2 or more.
        sigma_min: Sigma of the last level before the clean one; None is the lowest that the
            process was trained at.

    Returns:
        The grid, with its end at the clean level.
    """
    start = process.at_index(double([process.train_steps - 1.0]))
    low = finite("sigma_min", process.sigma_min if sigma_min is None else sigma_min, 1e-12)
    end = process.at_sigma(double([low]))
    first, last = (-torch.log(1 / level.ratio + 1 / FINITE) for level in (start, end))
    place = torch.linspace(0, 1, grids.few_enough("steps", steps, 2), dtype=torch.float64)
    inner = process.at_lam(
        torch.log(torch.exp(-(first + (last - first) * place[1:-1])) - 1 / FINITE)
    )
    levels = Level(*(torch.cat(parts) for parts in zip(start, inner, end, strict=True)))
    return Grid.of(process, levels, "reference")


@torch.no_grad()
def solve(
    denoiser: Denoiser,
    x: Tensor,
    process: Process,
    *,
    tolerance: float = 1e-9,
    solver: str = "exponential_rk",
    steps: int = 32,
    most: int = 2048,
    sigma_min: float | None = None,
) -> Tensor:
    """The converged result, in float64.

    The steps double, and the results are extrapolated to infinitely many, until no number of the
    extrapolated result changes by more than the tolerance.

    Args:
        denoiser: `denoise(x, level)`.
        x: The start (batch, …) at the noisiest level of the process.
        process: What noise the denoiser knows.
        tolerance: Of the largest change by doubling the steps.
        solver: Name of a deterministic solver.
        steps: To begin with.
        most: At most.
        sigma_min: Where it ends, as samplers do, with the denoised sample; None is the lowest sigma
            that the process was trained at, and 1e-6 gives the end of the ODE itself.

    Returns:
        The samples (batch, …).

    Raises:
        RunError: Where it does not converge, as with a denoiser that is rounded or not
            deterministic.

    Source: Richardson extrapolation; Hairer, Nørsett & Wanner 1993, section II.9.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or not x.is_floating_point():
        raise ArgumentError(
            f"the start must be a floating-point tensor (batch, …), got {type(x).__name__}"
        )
    tolerance, count = finite("tolerance", tolerance, 1e-14), grids.few_enough("steps", steps, 2)
    grids.few_enough("most", most, 2 * count)
    spec = solvers.find(solver)
    if spec.stochastic or spec.order < 1:
        raise ArgumentError(
            f"a reference needs a deterministic solver that converges, and {solver!r} is not one"
        )
    order = solvers.make(solver, reference(process, count, sigma_min)).order

    def result(steps: int) -> Tensor:
        run = Run(solvers.make(solver, reference(process, steps, sigma_min)))
        run.start(x.double())
        return finish(run, Denoisers(denoiser))

    converged, change = Reference(solver, count, most, tolerance), math.inf
    for refined in converged.refine(extrapolated(result, order)):
        if refined.coarse is not None:
            change = float((refined.result - refined.coarse).abs().max())
            if converged.trusts(change):
                return refined.result
    count = refined.steps
    raise RunError(
        f"the reference has not converged: from {count // 2} to {count} steps of {solver!r} it"
        f" still changes by {change:.3g}, above the tolerance {tolerance:g}; allow more steps"
        f" (most={2 * most}), a larger tolerance=, or a smoother denoiser"
    )
