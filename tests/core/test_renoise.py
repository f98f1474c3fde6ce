"""Churn, ancestral steps and restarts are grids, so every solver has them and keeps every level's
marginal.
"""

from __future__ import annotations

import math

import pytest
import torch

import timonel as tm
from support.models import PROCESSES, Constant, drive, lam_grid
from timonel.core import grids, solvers
from timonel.core.process import Level, double
from timonel.errors import ArgumentError, GridError

PLACES = pytest.mark.parametrize("process", PROCESSES)


@PLACES
def test_churn_raises_every_level_by_gamma(process):
    grid = lam_grid(PROCESSES[process], 10)
    lifted = grids.churn(grid, 4.0)
    for k in range(10):
        assert grids.ratio(lifted[k]) == pytest.approx(grids.ratio(grid[k]) * 1.4)  # gamma = 4/10
        assert float(lifted.end(k).sigma) == float(grid[k + 1].sigma)
    assert grids.churn(grid, 0.0) is grid


def test_churn_acts_between_its_limits_only_and_is_capped():
    grid = lam_grid(PROCESSES["edm"], 10)
    part = grids.churn(grid, 1e9, 0.5, 2.0)
    for k in range(10):
        gamma = grids.ratio(part[k]) / grids.ratio(grid[k]) - 1
        assert gamma == pytest.approx(
            math.sqrt(2) - 1 if 0.5 <= grids.ratio(grid[k]) <= 2.0 else 0.0, abs=1e-12
        )


@PLACES
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_an_ancestral_step_adds_eta_of_the_noise_of_ddpm(process, eta):
    """sigma_up² = eta²·s'²·(s² - s'²)/s² and sigma_down² = s'² - sigma_up², s = sigma/alpha
    (k-diffusion).
    """
    grid = lam_grid(PROCESSES[process], 6)
    down = grids.ancestral(grid, eta)
    table = solvers.make("euler_ancestral", grid, eta=eta)
    for k in range(6):
        s, to = grids.ratio(grid[k]), grids.ratio(grid[k + 1])
        up = eta * math.sqrt(to**2 * (s**2 - to**2) / s**2)
        assert grids.ratio(down.end(k)) == pytest.approx(math.sqrt(to**2 - up**2))
        assert float(table.x[k, -1] / grid.alpha[k + 1]) == pytest.approx(up)
    assert grids.ancestral(grid, 0.0) is grid


@PLACES
def test_a_restart_goes_down_again_from_s_max(process):
    grid = lam_grid(PROCESSES[process], 12)
    made = grids.restart(grid, 2, 0.4, 1.5, 3)
    starts = [grids.ratio(made[k]) for k in range(made.steps)]
    assert made.steps == 12 + 2 * 3
    assert sum(s == pytest.approx(1.5) for s in starts) == 2
    jumps = [k for k in range(1, made.steps) if made.lifted(k)]
    assert len(jumps) == 2
    assert all(starts[k] == pytest.approx(1.5) for k in jumps)
    low = min((grids.ratio(grid[k]) for k in range(1, 12)), key=lambda s: abs(math.log(s / 0.4)))
    assert all(grids.ratio(made.end(k - 1)) == pytest.approx(low) for k in jumps)


@PLACES
@pytest.mark.parametrize(
    "solver", ["euler", "heun", "dpmpp_2m", "lms", "unipc", "rk4", "res_3s", "deis", "dpmpp_2m_sde"]
)
def test_every_solver_keeps_mean_and_noise_across_lifts(solver, process):
    """With data at one point the denoiser is constant: after any churn or restart the mean is
    exact.
    """
    base = lam_grid(PROCESSES[process], 8)
    c = double([0.7, -2.0, 0.1])
    for grid in (
        grids.churn(base, 2.0),
        grids.restart(base, 1, 0.5, 1.5, 4),
        grids.ancestral(base, 0.7),
    ):
        table = solvers.make(solver, grid)
        quiet = solvers.make(solver, grid, s_noise=0.0)
        x = base.sigma[0] * 0 + table.alpha[0] * c.expand(4, 3)
        result = drive(quiet, Constant(c), x)
        assert torch.allclose(result, base.alpha[-1] * c.expand(4, 3), atol=1e-12)
        assert table.stochastic
        assert not quiet.stochastic


def test_s_noise_multiplies_all_noise_and_nothing_else():
    grid = lam_grid(PROCESSES["vp"], 6)
    for name in ("euler_ancestral", "dpmpp_sde", "sa_solver", "seeds_3", "edm"):
        one, two = solvers.make(name, grid), solvers.make(name, grid, s_noise=2.0)
        assert torch.equal(two.x[:, -1], 2 * one.x[:, -1])
        assert torch.equal(two.base[:, -1], 2 * one.base[:, -1])
        assert torch.equal(two.x[:, :-1], one.x[:, :-1])


def test_what_cannot_be_lifted_is_refused():
    grid = lam_grid(PROCESSES["vp"], 6)
    with pytest.raises(ArgumentError, match=r"s_churn.*-1"):
        grids.churn(grid, -1.0)
    with pytest.raises(ArgumentError, match=r"eta.*2"):
        grids.ancestral(grid, 2.0)
    with pytest.raises(GridError, match="use more steps"):
        grids.restart(lam_grid(PROCESSES["vp"], 1), 1, 0.1, 2.0, 3)
    with pytest.raises(GridError, match="as many ends"):
        tm.Grid(
            grid.process,
            grid.alpha,
            grid.sigma,
            grid.time,
            "x",
            Level(grid.alpha, grid.sigma, grid.time),
        )
    with pytest.raises(GridError, match="fall strictly"):
        tm.Grid(
            grid.process, grid.alpha, grid.sigma, grid.time, "x",
            Level(grid.alpha[:-1], grid.sigma[:-1], grid.time[:-1]),
        )  # fmt: skip
    between = grid.process.at_lam((grid.lam[:-1] + grid.lam[1:]) / 2)
    with pytest.raises(GridError, match="above the level"):
        tm.Grid(grid.process, grid.alpha, grid.sigma, grid.time, "x", between)
    with pytest.raises(ArgumentError, match=r"s_max=50 is above"):
        grids.restart(lam_grid(PROCESSES["vp"], 9), 1, 0.1, 50.0, 3)
