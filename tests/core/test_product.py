"""Any solver on any grid, process and prediction: a lawful table, or an error that says why.

Every pair of solver and grid is run on every process; the prediction and the number of steps
rotate, so that each meets each of the others many times.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import timonel as tm
from support.models import drive
from support.product import FLOW_ONLY, PLACES, REFUSES
from timonel.core import grids, prediction, solvers
from timonel.core.grids import GRIDS
from timonel.core.prediction import KINDS
from timonel.core.process import Level, double
from timonel.core.solvers import SOLVERS
from timonel.errors import GridError, TimonelError

STEPS = (2, 3, 5, 8, 13)
PURE = ("zero-snr", "flow")  # these begin at pure noise


class Raw:
    """A network that always means the same clean sample, in the words of any prediction."""

    def __init__(self, clean: torch.Tensor, kind: str) -> None:
        self.clean, self.kind = clean, kind

    def __call__(self, x, at):
        level = Level(double(at.alpha), double(at.sigma), double(at.time))
        return prediction.raw(self.kind, self.clean.expand_as(x), x, level)


def rounding(table: tm.Table, kind: str) -> float:
    """How far float64 rounding may carry: predictions and slopes divide by alpha or sigma."""
    alpha, sigma = table.alpha[:-1], table.sigma[:-1]
    high, low = float((sigma / alpha.clamp(min=1e-3)).max()), float((alpha / sigma).max())
    return (2e-12 * max(1.0, high, low) + 2e-13 * high * low) * (
        10 if kind in ("edm", "edm_v") else 1
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_works_with_every_grid_process_and_prediction(solver):
    """A constant clean sample comes out exactly, whatever the prediction, in N steps."""
    g, ran = torch.Generator().manual_seed(1), 0
    clean = torch.randn(1, 6, generator=g, dtype=torch.float64)
    start = torch.randn(2, 6, generator=g, dtype=torch.float64)
    for i, (place, name) in enumerate(itertools.product(PLACES, GRIDS)):
        steps, kind = STEPS[i % len(STEPS)], KINDS[(i // 2 + len(solver)) % len(KINDS)]
        if kind in ("edm", "edm_v") and place not in ("edm", "svd"):
            kind = "v"  # that preconditioning belongs to EDM processes
        if place in PURE and kind == "epsilon":
            kind = "flow"  # says nothing at pure noise, and is refused; see test_laws
        refused = name in REFUSES[place] or (name in FLOW_ONLY and place != "flow")
        try:
            grid = grids.make(name, PLACES[place], steps)
        except TimonelError:
            assert refused, (place, name, steps)
            continue
        assert not refused, (place, name)
        try:
            table = solvers.make(solver, grid)
        except GridError:  # no room for a restart
            assert solver == "restart", (place, name, steps)
            continue
        result = drive(table, Raw(clean, kind), start, prediction=kind)
        error = float((result - clean).abs().max())
        if (
            solver == "lcm" and PLACES[place].kind == "vp"
        ):  # its checkpoints mix in x, more of it at small times
            assert name != "lcm" or error <= 1e-3
        else:
            assert error <= rounding(table, kind), (place, name, steps, kind, error)
        assert table.steps == steps or solver == "restart"
        ran += 1
    assert ran > (60 if solver == "restart" else 90)
