"""Law: on exact models the error falls with the declared order (log-log slope within ±0.3)."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import pytest
import torch

from support.models import (
    PROCESSES,
    VARIANTS,
    Gaussian,
    Mixture,
    drive,
    ends,
    label,
    lam_grid,
    propagate,
    slope,
    variance,
)
from timonel.core import solvers
from timonel.core.process import EDM, Flow

STEPS = (48, 72, 108)
WIDE = {"edm": EDM(0.002, 700.0), "flow": Flow()}
MODELS = {"gaussian": (Gaussian(), 3), "mixture": (Mixture(), 2)}
PROBE = solvers.make  # a table's own `stochastic` decides, so options such as eta = 0 count


def _is_stochastic(variant: tuple[str, dict]) -> bool:
    return PROBE(variant[0], lam_grid(PROCESSES["edm"], 6), **variant[1]).stochastic


DETERMINISTIC = [v for v in VARIANTS if not _is_stochastic(v)]
STOCHASTIC = [v for v in VARIANTS if _is_stochastic(v)]


@functools.cache
def _exact(process: str, model: str, start: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A start sample and where the probability-flow ODE takes it."""
    denoise, dims = MODELS[model]
    x = torch.randn(4, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, denoise.solve(x, *ends(lam_grid(WIDE[process], 1, start)))


def _measured(
    variant: tuple[str, dict], process: str, models: Iterable[str], start: float
) -> tuple[list[float], int]:
    """The slope of the error on each model, and the order that is declared."""
    order = solvers.make(variant[0], lam_grid(WIDE[process], 8, start), **variant[1]).order
    # the first steps are of lower order, and show for longer; above order 4 fewer are near rounding
    fewer = 2 / 3 if start < -5 else 1 / 4  # the sooner, the nearer the start is to the end
    steps = [n * 2 if order == 4 else int(n * fewer) if order > 4 else n for n in STEPS]
    tables = [
        solvers.make(variant[0], lam_grid(WIDE[process], n, start, bend=0.4), **variant[1])
        for n in steps
    ]
    slopes = []
    for model in models:
        x, exact = _exact(process, model, start)
        errors = [
            float((drive(table, MODELS[model][0], x) - exact).abs().max()) for table in tables
        ]
        slopes.append(slope(steps, errors))
    return slopes, order


@pytest.mark.parametrize(
    ("variant", "process"),
    [(v, p) for v in DETERMINISTIC for p in WIDE if p == "edm" or not v[1] or "order" in v[1]],
    ids=label,
)
def test_global_error_falls_with_the_declared_order(variant, process):
    """From near pure noise to lam = 1.5, on a smoothly uneven grid that ends above sigma = 0.

    On no model slower than declared, and on some model not faster: a few methods gain an order on
    Gaussian data.
    """
    slopes, order = _measured(variant, process, MODELS, -6.0)
    found = min(slopes)
    if order == 0:
        pytest.skip("declares none")
    assert found > order - 0.3
    # at order 4 the error is 1e-7 here, where the terms of higher order still lead: only the lower
    # bound is meaningful
    assert order >= 4 or found < order + 0.3


@pytest.mark.parametrize("variant", DETERMINISTIC, ids=label)
def test_a_start_inside_is_limited_by_the_start_up_step_only(variant):
    """The first step of a multistep solver has order 1, which leaves a start inside order 2."""
    (found,), order = _measured(variant, "edm", ["gaussian"], -2.0)
    assert found > min(order, 2) - 0.4


def test_the_declared_order_is_the_tables():
    for name, spec in solvers.SOLVERS.items():
        assert solvers.make(name, lam_grid(PROCESSES["vp"], 8)).order == spec.order


def test_edm_without_churn_is_heun():
    for process in PROCESSES.values():
        grid = lam_grid(process, 9)
        a, b = solvers.make("heun", grid), solvers.make("edm", grid, s_churn=0.0)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.base, b.base)
        assert not b.stochastic


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("variant", STOCHASTIC, ids=label)
def test_weak_error_on_gaussian_data_falls_with_the_declared_order(variant, process):
    """Mean and variance of the result, propagated exactly through the rows (no Monte Carlo)."""
    name, options = variant
    if solvers.SOLVERS[name].order == 0:
        pytest.skip("declares none")
    if name == "edm":
        options = {
            "s_churn": 4.0
        }  # beyond N = 10 the churn per step then falls with N, as its convergence needs
    data, steps, errors = Gaussian(), (32, 64, 128), []
    for n in steps:
        table = solvers.make(name, lam_grid(PROCESSES[process], n, bend=0.3), **options)
        first, last = table.level(0), table.level(table.nfe)
        result = propagate(table, data.affine, first.alpha * data.mean, data.spread(first))[-1]
        assert torch.allclose(result[0], last.alpha * data.mean, atol=1e-12)
        errors.append(float((variance(result) - data.spread(last) ** 2).abs().max()))
    found = slope(list(steps), errors)
    assert found > table.order - 0.3, (found, errors)


@pytest.mark.parametrize(
    "variant", [v for v in STOCHASTIC if solvers.SOLVERS[v[0]].order], ids=label
)
def test_every_level_keeps_the_marginal_variance_of_gaussian_data(variant):
    """Relative error of the variance at every level: halved when the steps double."""
    name, options = variant
    options = {"s_churn": 4.0} if name == "edm" else options
    data, worst = Gaussian(), []
    for n in (40, 80):
        table = solvers.make(name, lam_grid(PROCESSES["edm"], n), **options)
        first = table.level(0)
        path = propagate(table, data.affine, first.alpha * data.mean, data.spread(first))
        # the inner row of a two-stage step is an Euler trial, not a sample of its level
        rows = [
            k for k in range(table.nfe + 1) if k == table.nfe or table.first_row(table.step[k]) == k
        ]
        worst.append(
            max(
                float((variance(path[k]) / data.spread(table.level(k)) ** 2 - 1).abs().max())
                for k in rows
            )
        )
    # a multistep solver that reads predictions from before the fresh noise keeps the variance less
    # well
    assert worst[0] < (0.3 if table.order == 1 and table.history > 1 else 0.1)
    assert worst[1] < 0.6 * worst[0]
