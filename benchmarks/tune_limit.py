"""How near tables of so many calls could come at all: one fitted to each sample alone, by that
sample's own target.

The best table for all samples is no better than the best of each, and nor is a choice among tables
by what a sample shows on its way. The fit may stop in a hollow, so what it finds is an estimate of
that from above.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import timonel as tm
from measure import markdown
from timonel.core.grids import usual
from timonel.engine.reference import distance
from timonel.tuning import gauss_newton, starts
from timonel.tuning.gauss_newton import Task
from timonel.tuning.model import Model
from timonel.tuning.parameters import Form
from timonel.tuning.targets import Targets, converge
from tune_models import network, still, tables, unseen
from tune_problem import told

SAMPLES, ITERATIONS = 8, 24


def limit(name: str, goals: Sequence[tuple[int, int]]) -> str:
    """The table: what is shipped, what each sample could have of its own, and what both are meant
    to equal.
    """
    fitted, helm = tables(name, [n for n, _ in goals]), still(name)
    given, seeds, _ = unseen(helm, fitted, SAMPLES)
    model = network(helm, given, seeds)
    targets = converge(model, range(SAMPLES), lambda message: None)
    some, process = targets.samples, model.process
    title = f"dpmpp_2m/{usual(process)}"

    def error(sampler: tm.Sampler) -> str:
        return told(distance(model.run(sampler.compile(process), some), targets.of(some)))

    rows = [
        ["**fitted**, one table for all", *(error(fitted[n]) for n, _ in goals)],
        [
            "each sample its own table",
            *(told(torch.cat([alone(model, targets, n, s) for s in some])) for n, _ in goals),
        ],
        [
            f"{title} in {' and '.join(str(m) for _, m in goals)}",
            *(error(tm.Sampler(title, steps=m)) for _, m in goals),
        ],
    ]
    about = (
        f"{len(some)} prompts and seeds that no fit has seen. A table of a sample's own was fitted "
        f"to that sample and its target alone, all its coefficients free, in up to {ITERATIONS} "
        "iterations."
    )
    return f"{about}\n\n{markdown([f'{name}, steps', *(str(n) for n, _ in goals)], rows)}"


def alone(model: Model, targets: Targets, steps: int, sample: int) -> Tensor:
    """The error (1,) of the table that was fitted to one sample, and that no other sample could
    use.
    """
    label, grid = starts.best(model, targets, [sample], list(starts.begins(model, steps)))
    form = Form(model.process, label.partition("/")[0], grid, steps)
    task = Task(model, form, targets, (sample,), (sample,), "differences", 1)
    state = gauss_newton.improve(
        task, gauss_newton.begin(task), lambda now: now.iteration >= ITERATIONS, lambda now: None
    )
    return task.error(state.best, (sample,))
