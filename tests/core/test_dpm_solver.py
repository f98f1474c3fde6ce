"""DPM-Solver on slopes and singlestep solvers of N calls: diffusers' numbers, orders, refusals."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import diffusers as d
import pytest
import torch
from diffusers.schedulers import scheduling_dpmsolver_multistep, scheduling_dpmsolver_singlestep
from torch import Tensor

import timonel as tm
from support.models import PROCESSES, Gaussian, drive, ends, lam_grid, slope
from timonel import compat, exact
from timonel.core import grids, solvers
from timonel.errors import ArgumentError, UnknownName

MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
NOISE = torch.randn(32, 2, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
START = torch.randn(2, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def network(x: Tensor, time: Any) -> Tensor:
    return torch.tanh(0.7 * x * (1 + 0.001 * float(time))) + 0.1 * torch.sin(3 * x)


def journey(
    scheduler: Any, steps: int, begin: int, before_step: Callable[[Any, int], None]
) -> list[Tensor]:
    """The sample after every step."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(begin)
    x, made = START, []
    for k, t in enumerate(scheduler.timesteps[begin:]):
        before_step(scheduler, k)
        x = scheduler.step(network(x, t), t, x, return_dict=False)[0]
        made.append(x)
    return made


def theirs(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: dict[str, Any], steps: int, begin: int
) -> list[Tensor]:
    """diffusers' class with coefficients in float64, and with `NOISE`."""
    drawn = iter(NOISE)
    for module in (scheduling_dpmsolver_multistep, scheduling_dpmsolver_singlestep):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, dtype, **k: next(drawn).to(dtype))

    def widen(scheduler: Any, _: int) -> None:
        scheduler.sigmas = scheduler.sigmas.double()

    return journey(getattr(d, name)(**flags), steps, begin, widen)


def ours(name: str, flags: dict[str, Any], steps: int, begin: int) -> list[Tensor]:
    def same_noise(scheduler: Any, k: int) -> None:
        if "sde" in flags["algorithm_type"]:
            scheduler.run.noise = lambda row, like: NOISE[k].to(like.dtype)

    return journey(getattr(compat, name)(**flags), steps, begin, same_noise)


ALGORITHMS = [
    *itertools.product([MULTI, SINGLE], ["dpmsolver", "dpmsolver++"], [1, 2, 3]),
    *itertools.product([MULTI, SINGLE], ["sde-dpmsolver++"], [1, 2]),
    (SINGLE, "sde-dpmsolver++", 3),
    (MULTI, "sde-dpmsolver", 1), (MULTI, "sde-dpmsolver", 2),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # diffusers: deprecated, and order 3 of so many steps
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize(("name", "algorithm", "order"), ALGORITHMS)
def test_every_algorithm_and_order_of_diffusers_makes_its_steps(
    monkeypatch, name, algorithm, order, kind
):
    if (algorithm, order, kind) == ("sde-dpmsolver++", 3, "heun"):
        pytest.skip("diffusers has a wrong sign there")
    flags = {
        "algorithm_type": algorithm,
        "solver_order": order,
        "solver_type": kind,
        "final_sigmas_type": "sigma_min",
    }
    cases: list[tuple[dict[str, Any], int, int]] = [(flags, steps, 0) for steps in (5, 6, 7, 20)]
    if "++" in algorithm:
        cases += [({**flags, "final_sigmas_type": "zero"}, 9, 0), ({**flags, **FLOW}, 8, 0)]
    if "sde" not in algorithm:
        cases += [
            ({**flags, "use_karras_sigmas": True}, 9, 0),
            (flags, 9, 1),
            (flags, 9, 2),
        ]  # image to image
    for case, steps, begin in cases:
        peer, own = theirs(monkeypatch, name, case, steps, begin), ours(name, case, steps, begin)
        for k, (a, b) in enumerate(
            zip(peer, own, strict=False)
        ):  # a last call that moves nothing is left out here
            assert torch.allclose(a, b, rtol=0, atol=1e-4 * float(a.abs().max())), (case, steps, k)


def test_a_third_order_with_the_noise_of_slopes_is_refused_for_diffusers_has_none():
    with pytest.raises(ArgumentError, match="solver_order=2"):
        compat.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver", solver_order=3)


# -- the solvers -----------------------------------------------------------------------------------
def _outer(grid: grids.Grid, n: int) -> grids.Grid:
    return grids.Grid(grid.process, grid.alpha[::n], grid.sigma[::n], grid.time[::n])


@pytest.mark.parametrize(("calls", "steps", "options", "n"), [
    ("dpmpp_singlestep", "dpmpp_2s", {}, 2),
    ("dpmpp_singlestep", "res_2s", {"variant": "heun"}, 2),
    ("dpm_singlestep", "dpm_solver", {}, 2),
])  # fmt: skip
def test_calls_in_the_middle_of_a_step_make_the_solver_that_counts_steps(calls, steps, options, n):
    grid = lam_grid(PROCESSES["vp"], 12)
    outer = {"order": n} if steps == "dpm_solver" else {}
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = drive(solvers.make(calls, grid, order=n, **options), Gaussian(), x)
    two = drive(solvers.make(steps, _outer(grid, n), **outer), Gaussian(), x)
    assert torch.allclose(one, two, rtol=0, atol=1e-12)


def test_the_line_through_slopes_integrated_exactly_is_deis():
    grid = lam_grid(PROCESSES["vp"], 9)
    for order in (1, 2, 3):
        one = solvers.make("dpm_multistep", grid, order=order, variant="heun")
        two = solvers.make("deis", grid, order=order, variant="logrho")
        assert torch.allclose(one.x, two.x, rtol=0, atol=1e-12)


def test_dpm_solver_with_noise_converges_in_the_variance():
    """On Gaussian data, exactly: the variance at the end converges with order 1, as declared."""
    steps, found = [48, 96, 192], []
    for n in steps:
        grid = lam_grid(PROCESSES["vp"], n)
        table, model = solvers.make("dpm_multistep", grid, eta=1.0), Gaussian(0.0, 0.5)
        first, last = ends(grid)
        scale = torch.eye(
            1 + table.nfe, dtype=torch.float64
        )  # the start and every draw, as a basis of samples
        unit = scale.clone()
        scale[0] *= model.spread(first)
        made = drive(
            table,
            model,
            scale[:1].T,
            noise=lambda row, like, unit=unit: unit[row + 1].reshape(like.shape),
        )
        found.append(abs(float(made.square().sum().sqrt() - model.spread(last))))
    assert table.order == 1
    assert slope(steps, found) > 0.8


@pytest.mark.parametrize("name", ["dpm_singlestep", "dpmpp_singlestep"])
def test_a_schedule_that_leaves_out_a_call_of_a_group_is_refused(name):
    grid = grids.make("karras", PROCESSES["vp"], 5)
    for schedule in ("12311", "11211", "1"):
        if schedule != "11211" and len(schedule) == 5:
            assert solvers.make(name, grid, order=schedule).nfe == 5
    with pytest.raises(ArgumentError, match="rise from 1 by 1"):
        solvers.make(name, grid, order="13211")
    with pytest.raises(ArgumentError, match="end with 1, for example 12121"):
        solvers.make(name, grid, order="12123")
    with pytest.raises(ArgumentError, match="5 digits of 1 to 3"):
        solvers.make(name, grid, order="12")
    with pytest.raises(UnknownName, match="midpoint"):
        solvers.make(name, grid, variant="midpont")


def test_noise_on_slopes_is_refused_where_slopes_are_velocities():
    with pytest.raises(ArgumentError, match="dpmpp_2m_sde"):
        tm.Sampler("dpm_multistep", steps=5, options={"eta": 1.0}).compile(tm.Flow(3.0))


def test_steps_without_a_corrector_are_those_of_the_whole_journey():
    """The corrector of step 6 is left out in step 7, of all 10 steps as of the last 6."""
    parts = [
        tm.Sampler("unipc", steps=10, start=start, options={"uncorrected": alone}).compile(
            PROCESSES["vp"]
        )
        for start, alone in ((None, [6]), (4, [6]), (None, []), (4, [2]))
    ]
    whole, part, corrected, other = ([*table.x[-3].tolist()] for table in parts)
    assert part == whole != corrected == other
    with pytest.raises(ArgumentError, match=r"uncorrected must be a list, e.g. \[0\], got 3"):
        tm.Sampler("unipc", steps=10, options={"uncorrected": 3}).compile(PROCESSES["vp"])


def test_an_order_schedule_is_that_of_the_whole_journey():
    """A part of it has the orders of these steps, so img2img runs with an order schedule too."""
    whole = tm.Sampler("unipc/karras", steps=8, options={"order": "11112222"})
    part = tm.Sampler("unipc/karras", steps=8, options={"order": "11112222"}, start=2)
    rows, last = whole.compile(PROCESSES["vp"]), part.compile(PROCESSES["vp"])
    assert last.nfe == 6
    assert torch.equal(last.sigma, rows.sigma[2:])
    assert torch.equal(last.x[-3:], rows.x[-3:])


# -- a long last step ------------------------------------------------------------------------------
DATA = exact.Mixture.random(0)


@functools.cache
def _truth(process: str) -> tuple[Tensor, Tensor]:
    start = grids.make("normal", PROCESSES[process], 6)[0]
    noise = torch.randn(
        16, *DATA.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return start.sigma * noise, exact.solve(
        DATA, start.sigma * noise, PROCESSES[process], tolerance=1e-3
    )


def _error(name: str, process: str, steps: int, **options: Any) -> float:
    table = solvers.make(name, grids.make("normal", PROCESSES[process], steps), **options)
    x, truth = _truth(process)
    return float((drive(table, DATA, x) - truth).square().mean().sqrt())


@pytest.mark.parametrize(("name", "options"), [
    ("unipc", {}), ("unipc", {"order": 3}), ("unipc", {"order": 3, "variant": "bh1"}),
    ("res_multistep", {}), ("res_multistep", {"order": 3}),
    ("dpm_multistep", {"order": 3}), ("deis", {}),
])  # fmt: skip
@pytest.mark.parametrize("process", ["vp", "flow"])
def test_a_long_last_step_is_not_extrapolated_over(process, name, options):
    """`normal` ends at the model's cleanest level, so that its last step but one is very long."""
    for steps in (6, 8, 12):
        assert _error(name, process, steps, **options) < 1.1 * _error("euler", process, steps), (
            steps
        )


def test_dpm_fast_leaves_out_the_cleanest_level_where_its_grid_has_it():
    """A step of three calls less would span the rest: .38 in 7 calls for .07 (docs/names.md)."""
    table = tm.Sampler("dpm_fast", steps=3, options={"remainder": 2}).compile(PROCESSES["vp"])
    assert table.nfe == 7
    assert float(table.sigma[-2] / table.alpha[-2]) > 0.1
