"""Parts of a grid: the steps of diffusers' pipelines, two stages that are the whole, refusals."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from support.models import Mixture, drive
from timonel.core import grids, solvers
from timonel.core.grids import cut
from timonel.core.process import EDM, VP, Flow, double
from timonel.errors import ArgumentError, GridError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROCESSES = {
    "vp": VP.from_schedule(),
    "zero-snr": VP.from_schedule(rescale_zero_snr=True),
    "edm": EDM(0.002, 80.0),
    "flow": Flow(3.0),
}
PLACES = pytest.mark.parametrize("place", PROCESSES)
LIFTS = {
    "none": lambda g: g,
    "ancestral": lambda g: grids.ancestral(g, 0.7),
    "churn": lambda g: grids.churn(g, 5.0),
    "restart": lambda g: grids.restart(g, 2, 0.3, 2.0, 3),
}


def scheduler(spacing: str, steps: int) -> diffusers.EulerDiscreteScheduler:
    made = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing=spacing, steps_offset=1)
    made.set_timesteps(steps)
    return made


def whole(spacing: str, steps: int) -> grids.Grid:
    return grids.make(spacing, VP.from_schedule(steps_offset=1), steps)


def visits(first: grids.Grid, second: grids.Grid, grid: grids.Grid) -> None:
    """Two parts glued at their common level are exactly the whole grid, ends included."""
    assert first.steps + second.steps == grid.steps
    for name in ("alpha", "sigma", "time"):
        one, two, all_ = (getattr(g, name) for g in (first, second, grid))
        assert torch.equal(one[-1], two[0])
        assert torch.equal(torch.cat([one, two[1:]]), all_)
    assert (first.ends is None) == (second.ends is None) == (grid.ends is None)
    if grid.ends is not None:
        for one, two, all_ in zip(first.ends, second.ends, grid.ends, strict=True):
            assert torch.equal(torch.cat([one, two]), all_)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@settings(max_examples=40)
@given(steps=st.integers(1, 60), strength=st.floats(0.01, 1))
def test_strength_keeps_the_steps_of_the_img2img_pipelines(spacing, steps, strength):
    assume(int(steps * strength) > 0)
    theirs = scheduler(spacing, steps)
    for pipeline in (
        diffusers.StableDiffusionImg2ImgPipeline,
        diffusers.StableDiffusionXLImg2ImgPipeline,
    ):
        times, count = pipeline.get_timesteps(
            SimpleNamespace(scheduler=theirs), steps, strength, "cpu"
        )
        part = cut(whole(spacing, steps), strength=strength)
        assert part.steps == count
        assert float(part.sigma[-1]) == 0
        if not (spacing == "linspace" and steps == 1):  # diffusers' only step is then time 0
            assert torch.allclose(part.time[:-1], times.double(), atol=1e-3)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@settings(max_examples=60)
@given(steps=st.integers(2, 60), fraction=st.floats(0.05, 0.95))
def test_denoising_start_and_end_keep_the_steps_of_the_sdxl_pipelines(spacing, steps, fraction):
    """The base ends before the first time below round(T - fraction·T); the refiner starts there."""
    theirs, grid = scheduler(spacing, steps), whole(spacing, steps)
    refiner = SimpleNamespace(scheduler=theirs)
    times, count = diffusers.StableDiffusionXLImg2ImgPipeline.get_timesteps(
        refiner, steps, 0.3, "cpu", fraction
    )
    base = [t for t in theirs.timesteps if t >= round(1000 - fraction * 1000)]
    assume(base and count)
    first, second = cut(grid, denoising_end=fraction), cut(grid, denoising_start=fraction)
    assert torch.equal(first.time[:-1], torch.stack(base).double())
    assert torch.equal(second.time[:-1], times.double())
    visits(first, second, grid)


@PLACES
@settings(max_examples=40)
@given(
    name=st.sampled_from(["trailing", "flow", "simple", "beta", "kl_optimal", "linspace"]),
    steps=st.integers(2, 50),
    fraction=st.floats(0.02, 0.98),
    lift=st.sampled_from(["none", "ancestral"]),
)
def test_two_stages_visit_exactly_the_whole_grid(place, name, steps, fraction, lift):
    grid = LIFTS[lift](grids.make(name, PROCESSES[place], steps))
    edge = PROCESSES[place].at_index(double([float(round(1000 - fraction * 1000))]))
    above = int((grid.lam[:-1] <= edge.lam).sum())
    assume(0 < above < steps)  # else one of the stages has nothing to do, which is refused
    first, second = cut(grid, denoising_end=fraction), cut(grid, denoising_start=fraction)
    visits(first, second, grid)
    assert cut(grid, start=first.steps).steps == second.steps
    assert float(first.sigma[-1]) > 0


@pytest.mark.parametrize("lift", LIFTS)
@PLACES
def test_every_grid_cut_at_every_step_is_two_parts_of_the_whole(place, lift):
    grid = LIFTS[lift](grids.make("trailing", PROCESSES[place], 9))
    for k in range(1, grid.steps):
        visits(cut(grid, stop=k), cut(grid, start=k), grid)
    middle = cut(grid, start=2, stop=5)
    assert torch.equal(middle.sigma, grid.sigma[2:6])
    assert torch.equal(cut(grid).sigma, grid.sigma)


@PLACES
def test_a_fraction_cuts_at_the_same_training_index_on_every_process(place):
    """Grids spaced in training index take the same number of steps whatever the process."""
    process = PROCESSES[place]
    for fraction in (0.2, 0.45, 0.8):
        edge = process.at_index(
            torch.tensor([float(round(1000 - fraction * 1000))], dtype=torch.float64)
        )
        for name in ("trailing", "beta", "sgm_uniform"):
            grid = grids.make(name, process, 20)
            above = int((grid.lam[:-1] <= edge.lam + 1e-12).sum())
            assert cut(grid, denoising_end=fraction).steps == above
    assert cut(grids.make("trailing", process, 10), denoising_end=0.8).steps == 8
    grid = grids.make("trailing", process, 10)
    assert torch.equal(cut(grid, denoising_end=1.0).sigma, grid.sigma)
    assert torch.equal(cut(grid, denoising_start=0.0).sigma, grid.sigma)


@pytest.mark.parametrize("solver", ["euler", "ddim", "heun"])
def test_a_one_step_solver_run_in_two_stages_gives_the_result_of_one_run(solver):
    model, x = (
        Mixture(),
        torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    )
    grid = grids.make("trailing", PROCESSES["vp"], 12)
    first, second = cut(grid, denoising_end=0.7), cut(grid, denoising_start=0.7)
    halfway = drive(solvers.make(solver, first), model, x)
    together = drive(solvers.make(solver, second), model, halfway)
    assert torch.allclose(together, drive(solvers.make(solver, grid), model, x), atol=1e-12)
    assert not torch.allclose(halfway, together, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"start": 0.5}, ArgumentError, r"start.*0\.5"),
        ({"start": -1}, ArgumentError, "start.*-1"),
        ({"start": 10}, ArgumentError, "start.*9.*10"),
        ({"start": True}, ArgumentError, "start.*True"),
        ({"stop": 0}, ArgumentError, "stop.*0"),
        ({"stop": 11}, ArgumentError, "stop.*10.*11"),
        ({"start": 5, "stop": 5}, GridError, "nothing is left.*step 5.*step 5.*begin earlier"),
        ({"start": 6, "stop": 5}, GridError, "nothing is left"),
        ({"strength": 1.2}, ArgumentError, r"strength.*1\.2"),
        ({"strength": -0.1}, ArgumentError, r"strength.*-0\.1"),
        ({"strength": 0.0}, GridError, r"strength=0 of 10.*at least 0\.1"),
        ({"strength": 0.05}, GridError, r"strength=0\.05 of 10.*at least 0\.1"),
        ({"strength": float("nan")}, ArgumentError, "strength.*nan"),
        ({"strength": "half"}, ArgumentError, "strength.*half"),
        ({"denoising_start": 1.0}, GridError, "nothing is left"),
        ({"denoising_end": 0.0}, GridError, "nothing is left"),
        ({"denoising_end": 1.5}, ArgumentError, r"denoising_end.*1\.5"),
        ({"denoising_start": 0.8, "denoising_end": 0.4}, GridError, "nothing is left"),
        ({"start": 1, "strength": 0.5}, ArgumentError, "give one of start and strength.*beginning"),
        (
            {"strength": 0.5, "denoising_start": 0.5},
            ArgumentError,
            "give one of strength and denoising_start",
        ),
        (
            {"stop": 3, "denoising_end": 0.5},
            ArgumentError,
            "give one of stop and denoising_end.*end",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_value_and_a_remedy(options, error, said):
    with pytest.raises(error, match=said):
        cut(whole("trailing", 10), **options)
