"""The samples to come near: from the same noise, with so many steps that more change nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.grids import usual
from ..core.sampler import Sampler
from ..engine.reference import Reference, distance, typical
from ..errors import ArgumentError
from .model import Model
from .parameters import Arrays
from .rollout import path

SOLVER = "dpmpp_3m"  # order 3, one call a step, in the denoised basis
FIRST, LAST = 32, 512  # steps, doubled
# what doubling may change of the size of a sample; the finer run is 4 to 8 times better than that
TRUSTED = 0.02
LOST = 10.0  # times that, and a sample is left out: its picture still depends on the steps
KEPT = 0.75  # of the samples at least
Log = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Targets:
    """Converged samples.

    Args:
        samples: Their numbers (n,).
        result: The samples (n, …).
        change: RMS distance (n,) to the run of half the steps.
        steps: That it took.
        seconds: What a fit has spent when it has them.
        calls: Network evaluations that it has spent.
    """

    samples: tuple[int, ...]
    result: Tensor
    change: Tensor
    steps: int
    seconds: float = 0.0
    calls: int = 0

    def of(self, samples: Sequence[int]) -> Tensor:
        """The targets of some samples."""
        return self.result[[self.samples.index(s) for s in samples]]

    def among(self, samples: Sequence[int]) -> tuple[int, ...]:
        """Those of some samples that have converged."""
        return tuple(s for s in samples if s in self.samples)

    @property
    def floor(self) -> float:
        """Error of the targets themselves: doubling halves it for flow models, elsewhere more."""
        return typical(self.change) / 2


def fine(model: Model, steps: int) -> Sampler:
    """The sampler of the targets.

    Flow models settle at both ends last, where the grid `beta` is dense.

    Args:
        model: What they are results of.
        steps: How many.
    """
    return Sampler(SOLVER, "beta" if model.process.kind == "flow" else usual(model.process), steps)


def finest(model: Model, arrays: Arrays, samples: Sequence[int]) -> Tensor:
    """The result (n, …) of a long run, guided all the way."""
    if not model.stepwise:
        return model.run(arrays.table("fit", "fit"), samples, always=True)
    for x in path(model, arrays, samples, model.scale):
        result = x
    return result


@torch.no_grad()
def converge(model: Model, samples: Sequence[int], log: Log, seconds: float = math.inf) -> Targets:
    """The converged results of `samples`, guided all the way.

    Args:
        model: What they are results of.
        samples: Their numbers (n,).
        log: Gets a line for every run.
        seconds: Until the longest run must have ended.

    Raises:
        ArgumentError: Where more than a quarter of them still depend on the steps at the finest
            run, or at the finest that `seconds` permit.
    """
    ends = time.monotonic() + seconds
    reference, took = Reference(SOLVER, FIRST, LAST, TRUSTED), 0.0

    def result(steps: int) -> Tensor:
        nonlocal took
        log(f"targets: {len(samples)} samples in {steps} steps")
        began = time.monotonic()
        x = finest(model, Arrays.of(fine(model, steps).compile(model.process)), samples)
        took = time.monotonic() - began
        if not bool(torch.isfinite(x).all()):
            raise ArgumentError(
                f"the model gives numbers that are not finite in {steps} steps of {SOLVER}"
            )
        return x

    for refined in reference.refine(result):
        if refined.coarse is None:
            continue
        steps, change = refined.steps, distance(refined.result, refined.coarse)
        size = float(refined.result.double().square().mean().sqrt())
        if reference.trusts(typical(change), size):
            good = change <= LOST * TRUSTED * size
            if float(good.double().mean()) >= KEPT:
                kept = tuple(s for s, g in zip(samples, good.tolist(), strict=True) if g)
                return Targets(kept, refined.result[good], change[good], steps)
        why = f"doubling still changes them by {typical(change):.3g} of {size:.3g}"
        if steps < LAST and time.monotonic() + 2 * took > ends:
            raise ArgumentError(
                f"the samples have not converged in {steps} steps, {why}, and {2 * steps} steps"
                f" take another {2 * took:.0f} s: give more minutes, fewer seeds or a lower"
                " guidance scale"
            )
    raise ArgumentError(
        f"the samples have not converged in {steps} steps: {why}. Use a lower guidance scale, or a"
        " model that is smoother in time"
    )
