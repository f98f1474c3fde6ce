"""Every grid against its source: diffusers and k-diffusion, the others by published formulas."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.models import PROCESSES
from support.peers import k_diffusion_sampling
from timonel.core import grids
from timonel.core.grids.beta import quantile
from timonel.core.process import EDM, VP, Flow, double

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROCESS = VP.from_schedule()
TABLE = PROCESS.at_index(torch.arange(1000.0)).ratio.numpy()  # the sigmas ComfyUI and A1111 read
LOW, TOP = TABLE[0], TABLE[-1]
COUNTS = pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 33, 50])
EVERY = {**PROCESSES, "zero-snr": VP.from_schedule(rescale_zero_snr=True), "svd": EDM(0.002, 700.0)}
k_diffusion = k_diffusion_sampling()
needs_k_diffusion = pytest.mark.skipif(k_diffusion is None, reason="k-diffusion is not installed")


def sigmas(grid: grids.Grid) -> np.ndarray:
    return (grid.sigma / grid.alpha).numpy()


def same(grid: grids.Grid, wanted: object, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(sigmas(grid), np.asarray(wanted), rtol=rtol)


# -- diffusers -----------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [2, 3, 10, 25, 100])
def test_beta_sigma_has_the_sigmas_of_diffusers(steps):
    theirs = diffusers.EulerDiscreteScheduler(
        **SD, timestep_spacing="linspace", use_beta_sigmas=True
    )
    theirs.set_timesteps(steps)
    same(grids.make("beta_sigma", PROCESS, steps), theirs.sigmas, 5e-5)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_beta_sigmas=True)
    flow.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    grid = grids.make(
        "beta_sigma", Flow(3.0), steps, sigma_min=float(Flow(3.0)._shifted(double(1 / steps)))
    )
    assert torch.allclose(grid.sigma, flow.sigmas.double(), atol=1e-6)


@pytest.mark.parametrize("steps", [2, 3, 10, 25, 100])
def test_lam_has_the_sigmas_of_diffusers(steps):
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True)
    theirs.set_timesteps(steps)
    grid = grids.make("lam", PROCESS, steps)
    same(grid, theirs.sigmas, 5e-5)
    same(grid, sigmas(grids.make("exponential", PROCESS, steps)))
    gaps = grids.make("lam", Flow(3.0), steps, sigma_max=0.99).lam[:-1].diff()
    assert torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-9)


@pytest.mark.parametrize("steps", [2, 5, 28])
@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("kind", ["static", "exponential", "linear"])
def test_flow_has_the_sigmas_of_diffusers(kind, terminal, steps):
    dynamic = {} if kind == "static" else {"use_dynamic_shifting": True, "time_shift_type": kind}
    static = {"shift": 2.5} if kind == "static" else {}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**dynamic, **static, shift_terminal=terminal)
    theirs.set_timesteps(
        sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=1.7 if dynamic else None
    )
    ours = {"static": {"shift": 2.5}, "exponential": {"mu": 1.7}, "linear": {"shift": 1.7}}[kind]
    grid = grids.make("flow", Flow(), steps, **ours, terminal=terminal)
    assert torch.allclose(grid.sigma, theirs.sigmas.double(), atol=2e-6)
    assert torch.allclose(grid.time[:-1], theirs.timesteps.double(), atol=2e-3)


@COUNTS
def test_flow_without_options_has_the_shift_of_the_process(steps):
    for shift in (0.5, 1.0, 3.0):
        grid, usual = (
            grids.make("flow", Flow(shift), steps),
            grids.make("trailing", Flow(shift), steps),
        )
        assert torch.allclose(grid.sigma, usual.sigma, rtol=1e-12)
        given_ = grids.make("flow", Flow(9.0), steps, shift=shift)
        assert torch.equal(given_.sigma, grid.sigma)


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_tokens_give_the_shift_of_the_flux_pipeline(tokens):
    slope = (1.15 - 0.5) / (4096 - 256)  # mu rises linearly from 0.5 at 256 tokens to 1.15 at 4096
    mu = slope * tokens + 0.5 - slope * 256
    for process in (Flow(), PROCESS):
        by_tokens, by_mu = (
            grids.make("flow", process, 6, **o) for o in ({"tokens": tokens}, {"mu": mu})
        )
        assert torch.allclose(by_tokens.sigma, by_mu.sigma, rtol=1e-12)


@pytest.mark.parametrize("place", EVERY)
@pytest.mark.parametrize("shift", [0.4, 1.0, 3.0])
def test_flow_spaces_the_unshifted_t_evenly_on_every_process(shift, place):
    grid = grids.make("flow", EVERY[place], 13, shift=shift)
    t = grid.sigma / (grid.alpha + grid.sigma)
    u = t / (shift - (shift - 1) * t)
    assert torch.allclose(u, u[0] * torch.linspace(1, 0, 14, dtype=torch.float64), rtol=1e-9)
    noisiest = EVERY[place].at_index(double([999.0]))
    assert torch.allclose(grid.sigma[:1], noisiest.sigma, rtol=1e-9)
    last = grids.make("flow", EVERY[place], 13, shift=shift, terminal=0.05)
    assert float((last.sigma / (last.alpha + last.sigma))[-2]) == pytest.approx(0.05, rel=1e-9)
    assert torch.allclose(last.sigma[:1], noisiest.sigma, rtol=1e-9)


# -- k-diffusion ---------------------------------------------------------------------------------
@needs_k_diffusion
@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_polyexponential_has_the_sigmas_of_k_diffusion(rho, steps):
    process = EDM(0.02, 80.0)
    grid = grids.make("polyexponential", process, steps, rho=rho)
    same(grid, k_diffusion.get_sigmas_polyexponential(steps, 0.02, 80.0, rho), 2e-5)
    if rho == 1:
        same(grid, sigmas(grids.make("exponential", process, steps)))


@needs_k_diffusion
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_vp_has_the_sigmas_of_k_diffusion_between_their_ends(steps):
    ends = [math.sqrt(math.expm1(19.9 * t * t / 2 + 0.1 * t)) for t in (1, 1e-3)]
    grid = grids.make("vp", EDM(0.002, 700.0), steps, sigma_max=ends[0], sigma_min=ends[1])
    same(
        grid, k_diffusion.get_sigmas_vp(steps), 2e-3
    )  # theirs is float32 and subtracts 1 from a number near 1


# -- ComfyUI, in training index ------------------------------------------------------------------
@COUNTS
def test_simple_and_normal_have_the_sigmas_of_comfy(steps):
    same(
        grids.make("simple", PROCESS, steps),
        [*(TABLE[-(1 + int(i * 1000 / steps))] for i in range(steps)), 0],
    )
    normal = grids.make("normal", PROCESS, steps)
    assert torch.allclose(
        normal.time[:-1], torch.linspace(999, 0, steps, dtype=torch.float64), atol=1e-9
    )
    sgm = grids.make("sgm_uniform", PROCESS, steps)
    assert torch.allclose(
        sgm.time[:-1], torch.linspace(999, 0, steps + 1, dtype=torch.float64)[:-1], atol=1e-9
    )


def comfy_ddim_uniform(steps: int) -> list[float]:
    return [*TABLE[1 :: max(1000 // steps, 1)][::-1], 0.0]


def test_ddim_uniform_has_the_sigmas_of_comfy_where_the_steps_divide_the_table():
    extra = [n for n in range(1, 61) if len(comfy_ddim_uniform(n)) != n + 1]
    assert len(extra) == 46  # ComfyUI makes more steps than asked for; ours never does
    for steps in (
        n for n in range(2, 61) if 1000 % n == 0
    ):  # its one step is at index 1 and gives the noise back
        same(grids.make("ddim_uniform", PROCESS, steps), comfy_ddim_uniform(steps))
    for steps in (*extra, 600, 1000):
        gaps = grids.make("ddim_uniform", PROCESS, steps).time[:-1].diff()
        assert torch.allclose(gaps, double(-1000 / steps).expand_as(gaps), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "curve"),
    [
        ("beta", lambda u: scipy.stats.beta.ppf(u, 0.6, 0.6)),
        ("beta57", lambda u: scipy.stats.beta.ppf(u, 0.5, 0.7)),
        ("smoothstep", lambda u: u * u * (3 - 2 * u)),
    ],
)
def test_beta_and_smoothstep_round_to_the_indices_of_the_peers_which_repeat(name, curve):
    repeats = []
    for steps in (*range(1, 120), 250, 1000):
        exact = 999 * curve(1 - np.arange(steps) / steps)
        ours = grids.make(name, PROCESS, steps).time[:-1].numpy()
        np.testing.assert_allclose(ours, exact, atol=1e-7)
        repeats += [steps] * (len(np.unique(np.rint(exact))) < steps)
    assert (
        1000 in repeats
    )  # theirs drops or repeats levels, ours cannot: Grid requires that levels fall


def test_the_two_betas_are_the_two_grids_of_the_peers():
    """The first five sigmas of ten steps on SD 1.5, of ComfyUI (whole indices) and of A1111."""
    comfy = TABLE[np.rint(grids.make("beta", PROCESS, 10).time[:5].numpy()).astype(int)]
    a1111 = sigmas(grids.make("beta_sigma", PROCESS, 10))[:5]
    np.testing.assert_allclose(comfy, [14.6, 11.5, 7.37, 4.37, 2.62], rtol=5e-3)
    np.testing.assert_allclose(a1111, [14.6, 13.9, 12.5, 10.6, 8.44], rtol=5e-3)


@settings(max_examples=60)
@given(a=st.floats(0.1, 20), b=st.floats(0.1, 20))
def test_the_quantiles_of_beta_are_those_of_scipy(a, b):
    p = torch.cat(
        [
            double([0.0, 1e-6]),
            torch.linspace(0.01, 0.99, 25, dtype=torch.float64),
            double([1 - 1e-6, 1.0]),
        ]
    )
    # scipy itself is off by 3e-9 at a = b = 1.09, where half of the mass lies below 0.5
    np.testing.assert_allclose(
        quantile(p, a, b), scipy.stats.beta.ppf(p.numpy(), a, b), rtol=1e-8, atol=1e-13
    )


# -- ComfyUI, A1111, reForge, RES4LYF, in sigma ----------------------------------------------------
def mochi(steps: int, threshold: float = 0.025, line: int | None = None) -> list[float]:
    """The published recurrence: line + parabola through (line, threshold) and (steps, 1)."""
    if steps == 1:
        return [1.0, 0.0]
    line = line or steps // 2
    rest, over = steps - line, line - threshold * steps
    square, linear = over / (line * rest**2), threshold / line - 2 * over / rest**2
    first = [1 - i * threshold / line for i in range(line)]
    return [
        *first,
        *(1 - (square * i * i + linear * i + square * line**2) for i in range(line, steps)),
        0.0,
    ]


@COUNTS
def test_linear_quadratic_has_the_sigmas_of_mochi_and_comfy(steps):
    same(grids.make("linear_quadratic", PROCESS, steps), np.array(mochi(steps)) * TOP)
    flow = grids.make("linear_quadratic", Flow(), steps)
    np.testing.assert_allclose(flow.sigma, mochi(steps), atol=1e-12)
    if steps > 6:
        grid = grids.make("linear_quadratic", PROCESS, steps, threshold_noise=0.1, linear_steps=4)
        same(grid, np.array(mochi(steps, 0.1, 4)) * TOP)


@COUNTS
def test_kl_optimal_and_cosine_have_the_published_sigmas(steps):
    p = np.arange(steps) / max(steps - 1, 1)
    kl = np.tan(p * math.atan(LOW) + (1 - p) * math.atan(TOP))
    same(grids.make("kl_optimal", PROCESS, steps), [*kl, 0])
    cosine = LOW + 0.5 * (TOP - LOW) * (1 - np.cos(np.pi * (1 - np.sqrt(p))))
    same(grids.make("cosine", PROCESS, steps), [*cosine, 0])


def test_kl_optimal_begins_at_pure_noise_where_the_process_does():
    grid = grids.make("kl_optimal", EVERY["zero-snr"], 8)
    assert float(grid.alpha[0]) == 0
    angle = torch.atan2(grid.sigma, grid.alpha)[:-1]
    assert torch.allclose(angle.diff(), angle.diff()[:1].expand(7), atol=1e-9)


@COUNTS
@pytest.mark.parametrize(("mu", "beta"), [(0.0, 0.5), (-1.0, 0.3), (1.5, 2.0), (0.0, 0.05)])
def test_laplace_spaces_the_quantiles_evenly_and_repeats_none(mu, beta, steps):
    """ComfyUI's values lie on the same curve, clamped to the range, so that they repeat."""
    values = sigmas(grids.make("laplace", PROCESS, steps, mu=mu, beta=beta))[:-1]
    assert values[0] == pytest.approx(TOP, rel=1e-9)
    if steps > 1:
        assert values[-1] == pytest.approx(LOW, rel=1e-9)
    share = scipy.stats.laplace.cdf(np.log(values), mu, beta)
    np.testing.assert_allclose(share, np.linspace(share[0], share[-1], steps), atol=1e-12)
    x = 1 - share[1:-1]  # where on ComfyUI's curve
    curve = mu - beta * np.sign(0.5 - x) * np.log(1 - 2 * np.abs(0.5 - x))
    np.testing.assert_allclose(np.exp(curve), values[1:-1], rtol=1e-6)


def test_laplace_of_comfy_repeats_levels():
    x = np.linspace(0, 1, 1000)
    curve = -0.5 * np.sign(0.5 - x) * np.log(1 - 2 * np.abs(0.5 - x) + 1e-5)
    assert len(np.unique(np.clip(np.exp(curve), LOW, TOP))) < 1000


def res4lyf(steps: int, pivot: float = 0.6, slope: float = 0.2, middle: float = 0.5) -> list[float]:
    total = steps + 2
    bend, rate = int(total * pivot), slope / (total / 40)

    def piece(count: int, at: int, start: float, end: float) -> list[float]:
        curve = [0.5 + math.atan(-rate * (x - at)) / math.pi for x in range(count)]
        return [end + (start - end) * (c - curve[-1]) / (curve[0] - curve[-1]) for c in curve]

    return piece(bend, bend, 1.0, middle)[:-1] + piece(total - bend, 0, middle, 0.0)


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 20, 33, 50])
def test_bong_tangent_has_the_sigmas_of_res4lyf_scaled_to_the_process(steps):
    same(grids.make("bong_tangent", PROCESS, steps), np.array(res4lyf(steps)) * TOP, 1e-9)
    np.testing.assert_allclose(
        grids.make("bong_tangent", Flow(), steps).sigma, res4lyf(steps), atol=1e-12
    )
    if steps > 6:
        bent = grids.make("bong_tangent", Flow(), steps, pivot=0.4, slope=0.5, middle=0.3)
        np.testing.assert_allclose(bent.sigma, res4lyf(steps, 0.4, 0.5, 0.3), atol=1e-12)


# -- published tables ------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "steps"), [("oss_flux", 10), ("oss_wan", 20)])
def test_optimal_steps_are_the_published_levels_and_log_linear_between(name, steps):
    knots = grids.published.OSS[name]
    grid = grids.make(name, Flow(5.0), steps)
    assert torch.allclose(grid.sigma, double([*knots[:-1], 0.0]), rtol=1e-12)
    other = grids.make(name, Flow(), 7)
    log = np.interp(np.linspace(0, 1, 8), np.linspace(0, 1, len(knots)), np.log(knots))
    np.testing.assert_allclose(other.sigma[:-1], np.exp(log)[:-1], rtol=1e-12)


def test_trailing_has_the_times_of_diffusers_at_every_number_of_steps():
    """diffusers' formula, without the step too many that numpy.arange rounds to at some counts."""
    extra = 0
    for steps in range(1, 1001):
        times = np.round(np.arange(1000, 0, -1000 / steps)) - 1
        extra += len(times) != steps
        if len(times) == steps:
            np.testing.assert_array_equal(
                grids.make("trailing", PROCESS, steps).time[:-1].numpy(), times
            )
    assert extra > 0
