"""What counts as converged: doubling the steps of a solver no longer changes its result.

The change from the result of half the steps is the estimate of the error, for every use; each
brings its own solver, steps and tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")
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
