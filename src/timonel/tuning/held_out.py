"""Errors of samplers on samples that no fit has used, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import grids
from ..core.fitted.sampler_file import Measured
from ..core.sampler import Sampler
from ..errors import TimonelError
from .model import Model
from .rollout import distance
from .targets import Targets

USUAL = (
    "euler",
    "dpmpp_2m/{}",
    "dpmpp_3m/{}",
    "unipc",
    "ipndm",
    "dpmpp_2m/ays",
)  # {}: the usual grid
GOAL, GOALS = "dpmpp_2m/{}", (12, 25)  # what 5 and 8 fitted steps are meant to equal, and its steps


def geometric(error: Tensor) -> tuple[float, float]:
    """The geometric mean of errors (n,), and its standard error."""
    log = error.clamp(min=1e-12).log()
    mean = float(log.mean().exp())
    return mean, mean * float(log.std()) / math.sqrt(len(log)) if len(log) > 1 else math.nan


@torch.no_grad()
def usual(model: Model, targets: Targets, samples: Sequence[int], steps: int) -> list[Measured]:
    """The held-out error of the samplers people use at so many steps, and of the goals; what cannot
    run is left out.
    """
    grid = grids.usual(model.process)
    wanted = [(name.format(grid), steps) for name in USUAL] + [
        (GOAL.format(grid), n) for n in GOALS
    ]
    found = []
    for name, n in wanted:
        try:
            table = Sampler(name, steps=n).compile(model.process)
        except TimonelError:
            continue
        mean, doubt = geometric(distance(model.run(table, samples), targets.of(samples)))
        if math.isfinite(mean):
            found.append(
                Measured(sampler=Sampler(name).label, steps=n, error=mean, standard_error=doubt)
            )
    return found


def better(error: Tensor, than: Tensor) -> bool:
    """Whether the first errors are lower, sample by sample, by more than two standard errors of the
    mean log ratio.
    """
    ratio = (error.clamp(min=1e-12) / than.clamp(min=1e-12)).log()
    return bool(ratio.mean() + 2 * ratio.std() / math.sqrt(len(ratio)) < 0)
