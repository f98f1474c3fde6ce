"""Errors of samplers on samples that no fit has used, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import grids
from ..core.fitted.provenance import Measured
from ..core.sampler import Sampler
from ..engine.reference import distance, typical
from ..errors import TimonelError
from .model import Model
from .targets import Targets

# {}: the usual grid
USUAL = ("euler", "dpmpp_2m/{}", "dpmpp_3m/{}", "unipc", "ipndm", "dpmpp_2m/ays")
GOAL, GOALS = "dpmpp_2m/{}", (12, 25)  # what 5 and 8 fitted steps are meant to equal, and its steps


def geometric(error: Tensor) -> tuple[float, float]:
    """The geometric mean of errors (n,), and its standard error."""
    log, mean = error.clamp(min=1e-12).log(), typical(error)
    return mean, mean * float(log.std()) / math.sqrt(len(log)) if len(log) > 1 else math.nan


@torch.no_grad()
def usual(model: Model, targets: Targets, samples: Sequence[int], steps: int) -> list[Measured]:
    """The held-out error of usual samplers, and of the goals; what cannot run is left out.

    Args:
        model: What they run on.
        targets: The converged samples.
        samples: The numbers of those that are held out.
        steps: Of the usual samplers.
    """
    grid = grids.usual(model.process)
    wanted = [(name.format(grid), steps) for name in USUAL]
    wanted += [(GOAL.format(grid), n) for n in GOALS]
    errors = []
    for name, n in wanted:
        try:
            table = Sampler(name, steps=n).compile(model.process)
        except TimonelError:
            continue
        mean, doubt = geometric(distance(model.run(table, samples), targets.of(samples)))
        if math.isfinite(mean):
            label = Sampler(name).label
            errors.append(Measured(sampler=label, steps=n, error=mean, standard_error=doubt))
    return errors


def better(error: Tensor, than: Tensor) -> bool:
    """Whether errors are lower, by more than two standard errors of the mean log ratio.

    Args:
        error: Of the samples (n,).
        than: Of the same samples.
    """
    ratio = (error.clamp(min=1e-12) / than.clamp(min=1e-12)).log()
    return bool(ratio.mean() + 2 * ratio.std() / math.sqrt(len(ratio)) < 0)
