"""Corrections without a gradient and without a search: least squares, one row after the other.

The next sample of a row is linear in its coefficients, so the row that comes nearest to the
converged sample at the next level is a least-squares problem in float64, with a ridge toward the
row of the solver. The samples and predictions are those of the fitted sampler itself, so every row
also makes up for what the rows before it missed. It costs one long run and one short one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import solvers
from ..core.grids import Grid
from ..core.process import Level
from . import rollout
from .gauss_newton import Task
from .parameters import Arrays
from .rollout import Rollout
from .targets import FIRST, SOLVER, fine

EQUATIONS = 16_384  # at least, for a few numbers a row
RIDGE = 1e-3  # of the mean diagonal of the normal equations


@torch.no_grad()
def path(task: Task, samples: Sequence[int]) -> list[Tensor]:
    """Nearly converged samples (n, …) at every level of the start after the first, and clean ones.

    Args:
        task: The fit.
        samples: Their numbers (n,).
    """
    model, start = task.model, task.form.start
    long = fine(model, FIRST).levels(model.process)
    lam = torch.cat([long.lam[:-1], start.lam[1:-1]])
    order = torch.argsort(lam)
    aims = [int((order == len(long) - 1 + i).nonzero()) for i in range(start.steps - 1)]
    kept = torch.ones(len(order), dtype=torch.bool)
    beside = {at + side for at in aims for side in (-1, 1)} - set(aims)
    for place in beside & set(range(1, len(order))):
        near = [at for at in (place - 1, place + 1) if at in aims]
        gaps = [abs(float(lam[order[at]] - lam[order[place]])) for at in near]
        kept[place] = min(gaps) >= 1e-3  # else the two levels would be almost one
    parts = ((long.alpha, start.alpha), (long.sigma, start.sigma), (long.time, start.time))
    level = Level(*(torch.cat([a[:-1], b[1:-1]])[order][kept] for a, b in parts))
    arrays = Arrays.of(solvers.make(SOLVER, Grid.of(model.process, level, "path")))
    wanted = {int(kept[:at].sum()) for at in aims}
    path = enumerate(rollout.path(model, arrays, samples, model.scale))
    return [*(x for k, x in path if k in wanted), task.targets.of(samples)]


def enough(task: Task) -> list[int]:
    """As many of the fitted samples as give enough equations."""
    each = task.targets.result[0].numel()
    return list(task.fit[: max(8, -(-EQUATIONS // each))])


@torch.no_grad()
def squares(task: Task, samples: Sequence[int]) -> Tensor:
    """The parameters (P,) whose rows were fitted one by one, on the levels of the start.

    Args:
        task: The fit.
        samples: Their numbers (n,).
    """
    form, aims = task.form, path(task, samples)
    arrays, theta = form.arrays(form.zero()), form.zero()
    place = {name: p for p, name in enumerate(form.names)}
    one = Rollout(task.model, arrays, samples, [task.model.start(samples)])
    for k in range(form.steps):
        x = one.result
        one.answer(task.model.denoised([one.query()])[0])
        plain = float(arrays.keep[k]) * x + sum(
            float(arrays.weights[k, j]) * d for j, d in enumerate(one.denoised)
        )
        first = max(0, k + 1 - form.memory)
        free = [("keep", k, 0), *(("weight", k, j) for j in range(first, k + 1))]
        reads = torch.stack([x, *one.denoised[first:]], -1).double().flatten(0, -2)
        miss = (aims[k].double() - plain.double()).flatten()
        normal = reads.T @ reads
        ridge = RIDGE * normal.diagonal().mean() * torch.eye(len(free), dtype=torch.float64)
        solved = torch.linalg.solve(normal + ridge, reads.T @ miss)
        for name, value in zip(free, solved, strict=True):
            theta[place[name]] = value
        one.x.append((plain.double() + (reads @ solved).reshape(plain.shape)).to(x.dtype))
    return theta
