"""Processes: conversions both ways, agreement with diffusers, and the configs of real checkpoints."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timonel.core import prediction
from timonel.core.process import EDM, VP, Flow, double, from_config
from timonel.errors import ArgumentError, GridError, UnknownName

ZERO = VP.from_schedule(rescale_zero_snr=True)
EVERY = {
    "vp": VP.from_schedule(),
    "vp-linear": VP.from_schedule("linear", 1e-4, 0.02),
    "vp-cos": VP.from_schedule("squaredcos_cap_v2"),
    "vp-zero": ZERO,
    "edm": EDM(0.002, 700.0),
    "edm-half": EDM(0.002, 80.0, sigma_data=0.5),
    "flow": Flow(),
    "flow-3": Flow(3.0),
}
PLACES = pytest.mark.parametrize("process", EVERY.values(), ids=EVERY)
SHARES = st.lists(st.floats(0.002, 0.998), min_size=1, max_size=6)


@PLACES
@given(shares=SHARES)
def test_sigma_lam_and_time_convert_both_ways(process, shares):
    """At fractional training indices of the whole range."""
    level = process.at_index(double(shares) * (process.train_steps - 1))
    by_time, by_lam = process.at_time(level.time), process.at_lam(level.lam)
    part = level.sigma if process.kind == "flow" else level.ratio
    by_sigma = process.at_sigma(part)
    for other in (by_time, by_lam, by_sigma):
        assert torch.allclose(other.time, level.time, rtol=1e-9, atol=1e-6)
        assert torch.allclose(other.alpha, level.alpha, rtol=1e-8, atol=1e-12)
        assert torch.allclose(other.sigma, level.sigma, rtol=1e-8, atol=1e-12)


@PLACES
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_noise_rises_with_the_training_index(process, a, b):
    if abs(a - b) < 1e-6:
        return
    low, high = sorted((a, b))
    level = process.at_index(double([low, high]) * (process.train_steps - 1))
    angle = torch.atan2(level.sigma, level.alpha)
    assert angle[1] > angle[0]
    assert level.time[1] > level.time[0]


@PLACES
def test_the_clean_level_is_clean(process):
    level = process.clean()
    assert float(level.sigma) == 0
    assert float(level.alpha) == pytest.approx(
        1.0
    )  # the sample itself, EDM's with another sigma_data too
    assert torch.isfinite(level.time).all()


@pytest.mark.parametrize("name", [n for n in EVERY if n.startswith("vp")])
def test_vp_has_unit_variance(name):
    level = EVERY[name].at_time(torch.linspace(0, 999, 3001, dtype=torch.float64))
    assert torch.allclose(
        level.alpha**2 + level.sigma**2, torch.ones(3001, dtype=torch.float64), atol=1e-12
    )


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_vp_agrees_with_diffusers_alphas_cumprod(schedule, zero):
    """diffusers computes them in float32."""
    config = {
        "beta_schedule": schedule,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "rescale_betas_zero_snr": zero,
    }
    theirs = diffusers.DDIMScheduler(**config).alphas_cumprod.double()
    ours = from_config(config).at_time(torch.arange(1000)).alpha ** 2
    # squaredcos ends at 1e-9 or less, where only the absolute error means something
    assert torch.allclose(ours, theirs, rtol=2e-4, atol=1e-6)
    assert (float(ours[-1]) == 0) == zero


def test_trained_betas_are_used():
    betas = np.linspace(1e-4, 0.03, 50)
    process = from_config({"trained_betas": betas.tolist(), "num_train_timesteps": 50})
    theirs = diffusers.DDIMScheduler(
        trained_betas=betas, num_train_timesteps=50
    ).alphas_cumprod.double()
    assert process.train_steps == 50
    assert torch.allclose(process.at_time(torch.arange(50)).alpha ** 2, theirs, rtol=1e-5)


def test_zero_snr_reaches_pure_noise_and_stays_smooth():
    assert ZERO.sigma_max == float("inf")
    level = ZERO.at_time(double([998.0, 998.5, 999.0]))
    assert float(level.alpha[2]) == 0
    assert float(level.alpha[0]) > float(level.alpha[1]) > 0


@PLACES
def test_conversions_are_differentiable(process):
    top = 0.9 if process.kind == "flow" else 5.0
    sigma = double([0.3, 0.2]).mul(top).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: tuple(process.at_sigma(s)), (sigma,))
    assert torch.autograd.gradcheck(
        lambda v: tuple(process.at_lam(v)), (double([0.3, 1.0]).requires_grad_(),)
    )


# -- configs of real checkpoints ---------------------------------------------------------------
SD15 = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SDXL = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "interpolation_type": "linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    "use_karras_sigmas": False,
}  # fmt: skip
SVD = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "interpolation_type": "linear", "num_train_timesteps": 1000,
    "prediction_type": "v_prediction", "sigma_max": 700.0, "sigma_min": 0.002, "steps_offset": 1,
    "timestep_spacing": "leading", "timestep_type": "continuous", "trained_betas": None,
    "use_karras_sigmas": True,
}  # fmt: skip
SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLUX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
    "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0,
    "use_dynamic_shifting": True,
}  # fmt: skip
PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000, "rho": 7.0, "sigma_data": 0.5, "sigma_max": 80.0,
    "sigma_min": 0.002,
    "sigma_schedule": "karras", "solver_order": 2,
}  # fmt: skip
WAN = {
    "_class_name": "UniPCMultistepScheduler", "beta_schedule": "linear", "beta_start": 0.0001,
    "beta_end": 0.02,
    "flow_shift": 3.0, "num_train_timesteps": 1000, "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2", "use_flow_sigmas": True, "timestep_spacing": "linspace",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "kind", "raw"),
    [
        (SD15, "vp", "epsilon"), (SDXL, "vp", "epsilon"), (SVD, "edm", "v"), (SD3, "flow", "flow"),
        (FLUX, "flow", "flow"), (PLAYGROUND, "edm", "edm"), (WAN, "flow", "flow"),
    ],
)  # fmt: skip
def test_real_configs_are_read(config, kind, raw):
    assert from_config(config).kind == kind
    assert prediction.from_config(config) == raw


def test_sd15_and_sdxl_have_the_scaled_linear_levels_and_the_offset():
    for config in (SD15, SDXL):
        process = from_config(config)
        assert process.steps_offset == 1
        assert process.sigma_max == pytest.approx(14.6146, abs=1e-3)
        assert process.sigma_min == pytest.approx(0.0292, abs=1e-4)


def test_svd_is_told_a_quarter_of_log_sigma_as_in_diffusers():
    process = from_config(SVD)
    theirs = diffusers.EulerDiscreteScheduler.from_config(SVD)
    theirs.set_timesteps(10)
    sigmas = theirs.sigmas[:-1].double()
    assert (process.sigma_min, process.sigma_max) == (0.002, 700.0)
    assert torch.allclose(process.at_sigma(sigmas).time, theirs.timesteps.double(), atol=1e-5)
    assert torch.allclose(process.at_sigma(sigmas).time, 0.25 * torch.log(sigmas), atol=1e-12)


def test_flux_shift_follows_the_image_size_as_in_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    from timonel.core import grids

    for tokens in (256, 1024, 4096, 6000):
        mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
        theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(FLUX)
        theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 12, 12).tolist(), mu=mu)
        # the dynamic shift replaces the static one, which the config also carries
        grid = grids.index.trailing(from_config(FLUX).with_image_tokens(tokens), 12)
        assert torch.allclose(grid.sigma, theirs.sigmas.double(), atol=1e-6)
        assert torch.allclose(grid.time[:-1], theirs.timesteps.double(), atol=1e-3)


def test_sd3_and_wan_have_the_static_shift():
    for config in (SD3, WAN):
        assert from_config(config).shift == 3.0
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(SD3)
    ours = from_config(SD3).at_index(torch.arange(999, -1, -1))
    assert torch.allclose(ours.sigma, theirs.sigmas.double(), atol=1e-6)


def test_playground_has_its_own_sigma_data():
    process = from_config(PLAYGROUND)
    assert (process.sigma_min, process.sigma_max, process.sigma_data) == (0.002, 80.0, 0.5)
    theirs = diffusers.EDMDPMSolverMultistepScheduler.from_config(PLAYGROUND)
    theirs.set_timesteps(8)
    level = process.at_sigma(theirs.sigmas[:-1].double())
    assert torch.allclose(level.time, theirs.timesteps.double(), atol=1e-5)
    # what the network is shown: x / sqrt(sigma² + sigma_data²), x being x0 + sigma·eps
    shown = theirs.precondition_inputs(torch.ones(8), theirs.sigmas[:-1]).double()
    assert torch.allclose(level.alpha, shown, rtol=1e-6)


# -- errors ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: VP([]), ArgumentError, "at least 1"),
        (lambda: VP([1.0]), ArgumentError, "beta of 1"),
        (lambda: VP([0.1, 1.5]), ArgumentError, "1.5"),
        (lambda: VP([0.0, 0.5]), ArgumentError, r"\(0, 1\]"),
        (lambda: VP([float("nan"), 0.5]), ArgumentError, "nan"),
        (lambda: VP.from_schedule("scaled-linear"), UnknownName, "did you mean 'scaled_linear'"),
        (lambda: VP.from_schedule(beta_end=2.0), ArgumentError, "beta_end.*2.0"),
        (lambda: VP.from_schedule(train_steps=0), ArgumentError, "train_steps.*got 0"),
        (lambda: VP.from_schedule(steps_offset=-1), ArgumentError, "steps_offset.*-1"),
        (lambda: EDM(0.0, 80.0), ArgumentError, "sigma_min.*0.0"),
        (lambda: EDM(2.0, 1.0), ArgumentError, "sigma_max.*1.0"),
        (lambda: EDM(sigma_data=-1), ArgumentError, "sigma_data.*-1"),
        (lambda: Flow(0), ArgumentError, "shift.*0"),
        (lambda: Flow(float("inf")), ArgumentError, "shift.*inf"),
        (lambda: Flow().with_image_tokens(0), ArgumentError, "tokens.*0"),
        (lambda: EVERY["vp"].at_time(double([1000.0])), GridError, "999.*1000"),
        (lambda: EVERY["vp"].at_time(double([float("nan")])), GridError, "nan"),
        (lambda: EVERY["vp"].at_sigma(double([20.0])), GridError, "20.*14.61.*start"),
        (lambda: EVERY["vp"].at_sigma(double([-1.0])), GridError, "-1"),
        (lambda: EVERY["vp"].at_lam(double([-5.0])), GridError, "-5"),
        (lambda: EVERY["flow"].at_sigma(double([1.1])), GridError, "1.1"),
        (lambda: EVERY["edm"].at_sigma(double([800.0])), GridError, "800.*700"),
        (lambda: from_config({"beta_schedule": "sigmoidal"}), UnknownName, "sigmoidal"),
        (lambda: prediction.from_config({"prediction_type": "epsillon"}), UnknownName,
        "did you mean 'epsilon'"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_process_is_refused_with_the_value(call, error, said):
    with pytest.raises(error, match=said):
        call()
