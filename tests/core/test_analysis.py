"""What `analysis` says of a table is what the table does."""

from __future__ import annotations

import pytest
import torch

import timonel as tm
from support.models import (
    PROCESSES,
    VARIANTS,
    Gaussian,
    drive,
    label,
    lam_grid,
    propagate,
    variance,
)
from timonel.core import solvers
from timonel.core.analysis import effects, spreads
from timonel.explain import plot

EVERY = pytest.mark.parametrize("variant", VARIANTS, ids=label)


@EVERY
def test_the_traced_weights_rebuild_the_sample(variant):
    """x = start·x_0 + weights·denoised + noise·eps, for a nonlinear network and real noise."""
    table = solvers.make(variant[0], lam_grid(PROCESSES["vp"], 6), **variant[1])
    done, seen, drawn = effects(table), [], {}
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def denoise(x, level):
        seen.append(torch.tanh(1.3 * x + level.alpha))
        return seen[-1]

    def noise(row, like):
        drawn[row] = tm.SeededNoise((4,))(row, like)
        return drawn[row]

    result = drive(table, denoise, x, noise=noise)
    eps = torch.stack([drawn.get(k, torch.zeros_like(x)) for k in range(table.nfe)])
    rebuilt = done.start[-1] * x
    rebuilt = rebuilt + (done.weights[-1][:, None, None] * torch.stack(seen)).sum(0)
    rebuilt = rebuilt + (done.noise[-1][:, None, None] * eps).sum(0)
    assert torch.allclose(rebuilt, result, atol=1e-10)


@EVERY
def test_spreads_are_those_of_exact_propagation(variant):
    table = solvers.make(variant[0], lam_grid(PROCESSES["edm"], 7), **variant[1])
    data = Gaussian([0.0], [0.6])
    first = table.level(0)
    path = propagate(table, data.affine, first.alpha * data.mean, data.spread(first))
    rows = [table.first_row(step) for step in range(table.steps + 1)]
    wanted = [float(variance(path[row]).sqrt() / data.spread(table.level(row))) for row in rows]
    assert spreads(table, 0.6).tolist() == pytest.approx(wanted, rel=1e-9)


def test_a_plot_of_two_samplers_is_written(tmp_path):
    process = tm.VP.from_schedule()
    tables = [tm.Sampler(name, steps=5).compile(process) for name in ("dpmpp_sde", "rk4")]
    assert plot(tables, tmp_path / "two.png").stat().st_size > 10_000
    assert plot(tables[0], tmp_path / "one.svg").read_text().startswith("<?xml")
