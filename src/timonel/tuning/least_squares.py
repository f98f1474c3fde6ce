"""Corrections without a gradient and without a search: least squares, one row after the other.

The next sample of a row is linear in its coefficients, so the row that comes nearest to the
converged sample at the next level is a least-squares problem in float64, with a ridge toward the
solver's own row. The samples and predictions are those of the fitted sampler itself, so every row
also makes up for what the rows before it missed. It costs one long run and one short one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import solvers
from ..core.grids import Grid
from ..core.process import Level
from .gauss_newton import Task
from .parameters import Arrays
from .rollout import Rollout
from .rollout import path as samples_of
from .targets import FIRST, SOLVER, fine

EQUATIONS = 16_384  # at least, for a few numbers a row
RIDGE = 1e-3  # of the mean diagonal of the normal equations


@torch.no_grad()
def path(task: Task, samples: Sequence[int]) -> list[Tensor]:
    """Nearly converged samples (n, …) at every level of the start after the first, the clean one
    included.
    """
    model, own = task.model, task.form.start
    long = fine(model, FIRST).levels(model.process)
    lam = torch.cat([long.lam[:-1], own.lam[1:-1]])
    order = torch.argsort(lam)
    kept = [int((order == len(long) - 1 + i).nonzero()) for i in range(own.steps - 1)]
    apart = torch.ones(len(order), dtype=torch.bool)
    for at in (
        kept
    ):  # a level of the long run beside one of ours is left out, for the two would be almost one
        for other in (at - 1, at + 1):
            if (
                0 < other < len(order)
                and other not in kept
                and abs(float(lam[order[at]] - lam[order[other]])) < 1e-3
            ):
                apart[other] = False
    parts = ((long.alpha, own.alpha), (long.sigma, own.sigma), (long.time, own.time))
    level = Level(*(torch.cat([a[:-1], b[1:-1]])[order][apart] for a, b in parts))
    arrays = Arrays.of(solvers.make(SOLVER, Grid.of(model.process, level, "path")))
    wanted = {int(apart[:at].sum()) for at in kept}
    seen = [x for k, x in enumerate(samples_of(model, arrays, samples, model.scale)) if k in wanted]
    return [*seen, task.targets.of(samples)]


def enough(task: Task) -> list[int]:
    """As many of the fitted samples as give enough equations."""
    each = task.targets.result[0].numel()
    return list(task.fit[: max(8, -(-EQUATIONS // each))])


@torch.no_grad()
def squares(task: Task, samples: Sequence[int]) -> Tensor:
    """The parameters whose rows were fitted one by one, on the levels of the start."""
    form, aims = task.form, path(task, samples)
    arrays, theta = form.arrays(form.zero()), form.zero()
    place = {name: p for p, name in enumerate(form.names)}
    seen, guiding = Rollout([task.model.start(samples)]), task.model.guiding(arrays)
    for k in range(form.steps):
        (answer,) = task.model.denoise([seen.query(task.model, arrays, samples, guiding)])
        seen.denoised.append(answer.raw)
        seen.differences.append(answer.difference)
        x = seen.result
        plain = float(arrays.keep[k]) * x + sum(
            float(arrays.weights[k, j]) * d for j, d in enumerate(seen.denoised)
        )
        free = [
            ("keep", k, 0),
            *(("weight", k, j) for j in range(max(0, k + 1 - form.memory), k + 1)),
        ]
        reads = (
            torch.stack([x, *seen.denoised[max(0, k + 1 - form.memory) :]], -1)
            .double()
            .flatten(0, -2)
        )
        miss = (aims[k].double() - plain.double()).flatten()
        normal = reads.T @ reads
        ridge = RIDGE * normal.diagonal().mean() * torch.eye(len(free), dtype=torch.float64)
        solved = torch.linalg.solve(normal + ridge, reads.T @ miss)
        for name, value in zip(free, solved, strict=True):
            theta[place[name]] = value
        seen.x.append((plain.double() + (reads @ solved).reshape(plain.shape)).to(x.dtype))
    return theta
