"""Grids: exactly N falling levels, the same levels as diffusers, the published ones, and refusals."""

from __future__ import annotations

import inspect

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.models import PROCESSES
from timonel.core import grids
from timonel.core.grids import Grid
from timonel.core.process import EDM, VP, Flow, double
from timonel.errors import ArgumentError, GridError, TimonelError, UnknownName

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EVERY = pytest.mark.parametrize("name", grids.GRIDS)
ALL = {
    **PROCESSES,
    "zero-snr": VP.from_schedule(rescale_zero_snr=True, steps_offset=1),
    "svd": EDM(0.002, 700.0),
}
PLACES = pytest.mark.parametrize("process", ALL)
# published noise levels that lie outside a process, and grids that need a finite largest sigma /
# alpha
FINITE = (
    "karras",
    "exponential",
    "polyexponential",
    "laplace",
    "cosine",
    "beta_sigma",
    "linear_quadratic",
    "bong_tangent",
)
REFUSED = {
    *((name, "zero-snr") for name in (*FINITE, "lam", "vp")), ("lam", "flow"), ("vp", "flow"),
    *((name, "flow") for name in ("ays", "ays_sd15", "ays_sdxl", "ays_svd")),
    *((name, place) for name in ("oss_flux", "oss_wan") for place in ("vp", "edm", "svd",
    "zero-snr")),
    ("ays_svd", "vp"), ("ays_svd", "edm"), ("ays", "edm"),
}  # fmt: skip
SHARED = {"normal": "linspace"}  # names that mean the levels of another grid


def check(grid, name, steps):
    assert grid.steps == steps == len(grid) - 1
    assert grid.name in (name, SHARED.get(name), "ays_svd", "ays_sdxl")
    assert bool((torch.atan2(grid.sigma, grid.alpha).diff() < 0).all())
    assert float(grid.sigma[-1]) == 0
    assert float(grid.alpha[-1]) > 0
    assert grid.alpha.dtype == torch.float64


@PLACES
@EVERY
@settings(max_examples=12)
@given(steps=st.integers(1, 1000))
def test_a_grid_has_exactly_n_strictly_falling_levels(name, process, steps):
    if name == "lcm":
        steps = (steps - 1) % 50 + 1
    if (name, process) in REFUSED:
        with pytest.raises(GridError, match=r"use grid=|use 'trailing'"):
            grids.make(name, ALL[process], 10)
        return
    grid = grids.make(name, ALL[process], steps)
    check(grid, name, steps)
    assert torch.isfinite(grid.time).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in grids.GRIDS if n not in SHARED])
def test_every_number_of_steps_gives_exactly_as_many_levels(name):
    place = next(p for p in ALL if (name, p) not in REFUSED)
    for steps in range(1, 51 if name == "lcm" else 1001):
        check(grids.make(name, ALL[place], steps), name, steps)


@EVERY
def test_more_steps_than_training_times_are_refused_for_a_discrete_model(name):
    for place in ("vp", "zero-snr"):
        with pytest.raises(GridError, match=r"1001 steps.*use at most 1000"):
            grids.make(name, ALL[place], 1001)


@pytest.mark.parametrize("total", [2, 7, 20])
@pytest.mark.parametrize("name", [n for n in grids.GRIDS if not n.startswith(("ays", "oss"))])
def test_a_model_with_few_training_times_has_every_grid(name, total):
    process = VP.from_schedule(beta_start=0.01, beta_end=0.9, train_steps=total)
    for steps in range(1, total + 1):
        grid = grids.make(
            name, process, steps, **({"original_steps": total} if name == "lcm" else {})
        )
        check(grid, name, steps)


@pytest.mark.parametrize("name", FINITE)
def test_a_given_sigma_max_lets_a_grid_start_below_pure_noise(name):
    grid = grids.make(name, ALL["zero-snr"], 9, sigma_max=80.0)
    check(grid, name, 9)
    assert grid.ratio_at(0) == pytest.approx(80.0, rel=1e-12)


@pytest.mark.parametrize("name", ["lam", "vp"])
def test_a_grid_in_lam_works_on_flow_from_a_level_with_signal(name):
    with pytest.raises(GridError, match=r"sigma_max=0\.999"):
        grids.make(name, ALL["flow"], 9)
    grid = grids.make(name, ALL["flow"], 9, sigma_max=0.999)
    check(grid, name, 9)
    assert float(grid.sigma[0]) == pytest.approx(0.999, rel=1e-12)


@EVERY
def test_every_line_of_the_table_of_grids_is_true(name):
    spec = grids.GRIDS[name]
    assert spec.options == tuple(inspect.signature(spec.make).parameters)[2:]
    assert spec.space
    assert spec.reference
    assert (spec.make.__doc__ or "").strip()
    assert name == spec.make.__name__ or name in SHARED or name.startswith(("ays", "oss"))
    if name in SHARED:
        assert spec.make is grids.GRIDS[SHARED[name]].make
        assert f"`{name}`" in spec.make.__doc__


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 25, 50, 500])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_index_grids_visit_the_times_and_sigmas_of_diffusers(spacing, offset, steps):
    """Euler keeps fractional linspace times, like ours. Its leading and trailing ones are whole."""
    theirs = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(steps)
    grid = grids.make(spacing, VP.from_schedule(steps_offset=offset), steps)
    wanted = theirs.timesteps.double()
    if spacing in ("linspace", "leading") and steps == 1:
        wanted = double(
            [999.0]
        )  # diffusers' one step is at time 0 or 1, where there is no noise to remove
        theirs.sigmas[0] = grid.process.sigma_max
    assert torch.allclose(grid.time[:-1], wanted, atol=1e-3)
    if not (spacing == "linspace" and steps == 1):
        # diffusers interpolates sigma linearly between training times, we (as k-diffusion) log
        # sigma
        rtol = 1e-4 if spacing == "linspace" else 2e-5
        assert torch.allclose(grid.sigma / grid.alpha, theirs.sigmas.double(), rtol=rtol)


def test_leading_stays_in_the_training_range_where_diffusers_leaves_it():
    """diffusers' DDIM with 1000 steps and offset 1 visits time 1000, which does not exist:
    IndexError.
    """
    theirs = diffusers.DDIMScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(1000)
    assert int(theirs.timesteps[0]) == 1000
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(IndexError):
        theirs.step(x, theirs.timesteps[0], x)
    grid = grids.index.leading(VP.from_schedule(steps_offset=1), 1000)
    assert grid.time[:-1].tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("steps", [2, 3, 10, 25, 100])
@pytest.mark.parametrize("kind", ["karras", "exponential"])
def test_karras_and_exponential_have_the_sigmas_of_diffusers(kind, steps):
    theirs = diffusers.EulerDiscreteScheduler(
        **SD, timestep_spacing="linspace", **{f"use_{kind}_sigmas": True}
    )
    theirs.set_timesteps(steps)
    grid = grids.make(kind, VP.from_schedule(), steps)
    assert torch.allclose(grid.sigma / grid.alpha, theirs.sigmas.double(), rtol=5e-5)
    assert torch.allclose(grid.time[:-1], theirs.timesteps.double(), atol=0.05)
    video = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=700.0, sigma_data=1.0, sigma_schedule=kind
    )
    video.set_timesteps(steps)
    grid = grids.make(kind, EDM(0.002, 700.0), steps)
    assert torch.allclose(grid.sigma / grid.alpha, video.sigmas.double(), rtol=5e-5)
    assert torch.allclose(grid.time[:-1], video.timesteps.double(), atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_trailing_has_the_sigmas_of_the_pipelines(shift, steps):
    """What Flux and SD3 pipelines give to the scheduler: sigmas 1, …, 1/N, shifted once."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    grid = grids.index.trailing(Flow(shift), steps)
    assert torch.allclose(grid.sigma, theirs.sigmas.double(), atol=1e-6)
    # sigmas of one's own are visited as given; diffusers shifts them (and with them a shifted list,
    # twice)
    own = grids.custom_sigmas(Flow(shift), [1.0, 0.9, 0.4])
    assert own.sigma.tolist() == [1.0, 0.9, 0.4, 0.0]


def test_lcm_grid_has_the_times_of_diffusers():
    for steps in (1, 2, 4, 8, 50):
        theirs = diffusers.LCMScheduler(**SD)
        theirs.set_timesteps(steps)
        assert (
            grids.index.lcm(VP.from_schedule(), steps).time[:-1].tolist()
            == theirs.timesteps.tolist()
        )


def test_align_your_steps_are_the_published_levels_at_ten_steps():
    from diffusers.schedulers import AysSchedules

    vp, edm = VP.from_schedule(), EDM(0.002, 700.0)
    for name, key in (
        ("ays_sd15", "StableDiffusionTimesteps"),
        ("ays_sdxl", "StableDiffusionXLTimesteps"),
    ):
        grid = grids.make(name, vp, 10)
        assert torch.allclose(grid.time[:-1], double(AysSchedules[key]), atol=1e-6)
    sigmas = AysSchedules["StableDiffusionVideoSigmas"]
    grid = grids.published.ays_svd(edm, 10)
    assert torch.allclose(grid.sigma[:-1] / grid.alpha[:-1], double(sigmas[:10]), rtol=1e-9)
    assert torch.equal(grids.published.ays(vp, 10).time, grids.published.ays_sdxl(vp, 10).time)
    assert torch.equal(grids.published.ays(edm, 10).time, grid.time)


def test_align_your_steps_is_log_linear_for_other_counts():
    edm = EDM(0.002, 700.0)
    both = (grids.published.ays_svd(edm, steps) for steps in (10, 20))
    ten, twenty = (torch.log(g.sigma[:-1] / g.alpha[:-1]) for g in both)
    assert torch.allclose(twenty[::2], ten, atol=1e-9)
    assert torch.allclose(twenty[1:-2:2], (ten[1:] + ten[:-1]) / 2, atol=1e-9)


def test_custom_levels_are_visited_as_given():
    vp = VP.from_schedule()
    for given_ in ([14.0, 3.0, 0.5], [14.0, 3.0, 0.5, 0.0]):
        grid = grids.custom_sigmas(vp, given_)
        assert torch.allclose(grid.sigma / grid.alpha, double([14.0, 3.0, 0.5, 0.0]), rtol=1e-12)
    times = grids.custom_times(vp, [999, 500.5, 10.25])
    assert times.time[:-1].tolist() == [999.0, 500.5, 10.25]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda p: grids.make("karas", p, 5), UnknownName, "did you mean 'karras'"),
        (lambda p: grids.make("karras", p, 5, rhoo=3), ArgumentError, "rhoo.*rho"),
        (lambda p: grids.make("trailing", p, 5, rho=3), ArgumentError, "takes none"),
        (lambda p: grids.make("karras", p, 0), ArgumentError, "steps.*got 0"),
        (lambda p: grids.make("karras", p, 2.5), ArgumentError, "steps.*2.5"),
        (lambda p: grids.make("karras", p, True), ArgumentError, "steps.*True"),
        (lambda p: grids.make("trailing", p, 1001), GridError, "1001.*at most 1000"),
        (lambda p: grids.make("karras", p, 5, rho=0), ArgumentError, "rho.*0"),
        (lambda p: grids.make("karras", p, 5, sigma_max=50.0), GridError, "50.*14.6"),
        (lambda p: grids.make("karras", p, 5, sigma_min=3.0, sigma_max=2.0), GridError, "3.*2"),
        (lambda p: grids.make("ays_svd", p, 5), GridError,
        "700 is above.*14.6.*SVD.*use grid='karras'"),
        (lambda p: grids.make("ays", EDM(0.002, 80.0), 5), GridError,
        "'ays'.*700 is above.*80.*SVD.*sigma_max=700"),
        (lambda p: grids.make("ays", Flow(), 5), GridError, "'ays' has no.*flow.*oss_flux"),
        (lambda p: grids.make("oss_flux", p, 5), GridError, "flow models such as Flux.*use grid="),
        (lambda p: grids.make("beta", p, 5, alpha=0), ArgumentError, "alpha.*0"),
        (lambda p: grids.make("beta_sigma", p, 5, beta=-1.0), ArgumentError, "beta.*-1"),
        (lambda p: grids.make("polyexponential", p, 5, rho=-1.0), ArgumentError, "rho.*-1"),
        (lambda p: grids.make("laplace", p, 5, beta=0.0), ArgumentError, "beta.*0"),
        (lambda p: grids.make("laplace", p, 5, mu=50.0, beta=0.01), GridError, "larger beta"),
        (lambda p: grids.make("vp", p, 5, beta_d=0.0), ArgumentError, "beta_d.*0"),
        (lambda p: grids.make("vp", p, 5, sigma_max=152.0), GridError, "152.*14.6"),
        (lambda p: grids.make("bong_tangent", p, 5, pivot=1.0), ArgumentError, "pivot.*1"),
        (lambda p: grids.make("bong_tangent", p, 5, sigma_max=0.0), ArgumentError, "sigma_max.*0"),
        (lambda p: grids.make("linear_quadratic", p, 5, linear_steps=5), ArgumentError,
        "linear_steps.*4.*5"),
        (lambda p: grids.make("linear_quadratic", p, 9, threshold_noise=0.9), GridError,
        "threshold_noise below 0.6"),
        (lambda p: grids.make("flow", p, 5, shift=3.0, mu=1.0), ArgumentError,
        "give one of.*shift and mu"),
        (lambda p: grids.make("flow", p, 5, shift=0.0), ArgumentError, "shift.*0"),
        (lambda p: grids.make("trailing", p, 5, terminal=0.1), ArgumentError,
        "terminal=0.1.*take grid 'flow'"),
        (lambda p: grids.make("flow", p, 5, terminal=0.95), GridError, "terminal=0.95.*0.93"),
        (lambda p: grids.make("lcm", p, 51), GridError, "51.*original_steps=50"),
        (lambda p: grids.custom_sigmas(p, [1.0, 1.0]), GridError, "fall strictly.*level 1"),
        (lambda p: grids.custom_sigmas(p, [1.0, 2.0]), GridError, "2.*not below"),
        (lambda p: grids.custom_sigmas(p, []), GridError, "at least one"),
        (lambda p: grids.custom_sigmas(p, [0.0]), GridError, "at least one"),
        (lambda p: grids.custom_sigmas(p, [1.0, 0.0, 0.0]), GridError, "only once"),
        (lambda p: grids.custom_sigmas(p, [100.0]), GridError, "100.*start the list"),
        (lambda p: grids.custom_sigmas(p, [float("nan")]), GridError, "nan"),
        (lambda p: grids.custom_times(p, []), GridError, "at least one"),
        (lambda p: grids.custom_times(p, [1200.0]), GridError, "1200"),
        (lambda p: grids.custom_times(p, [5.0, 10.0]), GridError, "fall strictly"),
        (lambda p: grids.custom_sigmas(p, ["a"]), ArgumentError, "a"),
        (lambda p: grids.custom_times(p, None), ArgumentError, "None"),
        (lambda p: Grid(p, double([1.0]), double([0.0]), double([0.0])), GridError, "at least 2"),
        (lambda p: Grid(p, double([1, 1.0]), double([1, float("inf")]), double([0, 0.0])),
        GridError, "not finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_grid_is_refused_with_the_value_and_a_remedy(call, error, said):
    with pytest.raises(error, match=said) as caught:
        call(VP.from_schedule())
    assert isinstance(caught.value, TimonelError)


def test_karras_at_pure_noise_names_the_remedy():
    process = ALL["zero-snr"]
    with pytest.raises(GridError, match="sigma_max=80"):
        grids.sigma.karras(process, 5)
    assert grids.sigma.karras(process, 5, sigma_max=80.0).steps == 5


@pytest.mark.parametrize("kind", sorted(ALL))
@pytest.mark.parametrize("name", grids.GRIDS)
def test_the_only_step_of_a_grid_begins_at_the_noisiest_level_or_is_refused(name, kind):
    """Below it, a sample of pure noise is taken for one with a picture in it, and given back as the
    result.
    """
    process = ALL[kind]
    try:
        grid = grids.make(name, process, 1)
    except GridError as refused:
        assert kind in ("flow", "zero-snr") or name.startswith(("ays", "oss")), refused  # noqa: PT017
        return
    top = process.at_index(double([process.train_steps - 1.0]))
    angle = torch.atan2(grid.sigma[0], grid.alpha[0])
    assert float(angle) > 0.95 * float(
        torch.atan2(top.sigma, top.alpha)
    )  # published lists have tops of their own
