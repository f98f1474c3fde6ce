"""Every key of every class at several values: what diffusers' class does, `timonel.compat`'s does,
with its numbers.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import pytest
import torch

import timonel.compat as compat
from support.compat_runs import loop, relative
from timonel.compat.schedulers import CLASSES
from timonel.errors import TimonelError

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore::RuntimeWarning"
    ),  # of diffusers' classes, on the way to a NaN
]
BOOL = (True, False)
VALUES: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (100,), "beta_start": (0.00085,), "beta_end": (0.012,),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "sample", "v_prediction"), "clip_sample": BOOL,
    "clip_sample_range": (2.0,),
    "thresholding": BOOL, "dynamic_thresholding_ratio": (0.9,), "sample_max_value": (1.5,),
    "set_alpha_to_one": BOOL,
    "steps_offset": (0, 1), "timestep_spacing": ("linspace", "leading", "trailing"),
    "rescale_betas_zero_snr": BOOL,
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None),
    "interpolation_type": ("linear", "log_linear"), "use_karras_sigmas": BOOL,
    "use_exponential_sigmas": BOOL,
    "use_beta_sigmas": BOOL, "use_lu_lambdas": BOOL, "sigma_min": (0.05,), "sigma_max": (10.0,),
    "timestep_type": ("discrete", "continuous"), "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 3),
    "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis",
    "data_prediction",
                       "noise_prediction"),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"), "lower_order_final": BOOL,
    "euler_at_final": BOOL,
    "flow_shift": (3.0,), "lambda_min_clipped": (-5.1,),
    "time_shift_type": ("exponential", "linear"),
    "sigma_data": (1.0,), "sigma_schedule": ("karras", "exponential"), "rho": (5.0,),
    "predict_x0": BOOL,
    "disable_corrector": ([], [0], [0, 2]), "solver_p": (None,), "shift_terminal": (0.1,),
    "predictor_order": (1, 2, 3),
    "corrector_order": (1, 2, 3), "tau_func": (None,), "original_inference_steps": (20,),
    "timestep_scaling": (5.0,),
    "skip_prk_steps": BOOL, "shift": (3.0,), "base_shift": (0.7,), "max_shift": (2.0,),
    "base_image_seq_len": (300,),
    "max_image_seq_len": (5000,), "invert_sigmas": (False,), "stochastic_sampling": BOOL,
    "noise_sampler_seed": (3,), "snr_shift_scale": (1.0,), "scale_factors": (None,),
    "upscale_mode": ("nearest",), "clip_denoised": BOOL, "s_noise": (0.9,),
    "scaler": (1.0,), "s": (0.008,),
}  # fmt: skip
#: keys with a walk of their own below, or whose meaning a pipeline decides
ELSEWHERE = {"trained_betas", "use_flow_sigmas", "use_dynamic_shifting"}
LIMIT = 2e-3  # float32 in diffusers: a time that is rounded the other way, 1 in 1000
#: what diffusers' class does and timonel's refuses, with the reason in docs/differences.md
REFUSED = {("SASolver", "algorithm_type", "noise_prediction")}
#: where the results differ, with the reason in docs/differences.md
DIFFERS = {
    ("DDIM", "timestep_spacing", "linspace"), ("PNDM", "timestep_spacing", "linspace"),
    ("DDIMParallel", "timestep_spacing", "linspace"), ("DDIMParallel", "set_alpha_to_one", False),
    ("CogVideoXDDIM", "timestep_spacing", "linspace"),
    ("CogVideoXDPM", "timestep_spacing", "linspace"),
    ("DDIM", "set_alpha_to_one", False), ("PNDM", "prediction_type", "v_prediction"),
}  # fmt: skip


def parameters(name: str) -> dict[str, Any]:
    made = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in made.items() if key not in ("self", "kwargs")}


def painted(
    module: Any, name: str, flags: dict[str, Any], monkeypatch: Any
) -> tuple[torch.Tensor | None, list[float]]:
    """The result of a loop of 5 steps and its times; None where it is refused or not a number."""
    with monkeypatch.context() as patch:
        try:
            x, times = loop(getattr(module, name)(**flags), patch, num_inference_steps=5)
        except TimonelError:
            return None, []
        except Exception:
            if module is compat:
                raise
            return None, []
    return (x if bool(torch.isfinite(x).all()) else None), times


def test_every_key_of_diffusers_classes_has_values_here() -> None:
    keys = {key for name in CLASSES for key in parameters(name)}
    assert keys <= {*VALUES, *ELSEWHERE}


@pytest.mark.parametrize("name", CLASSES)
def test_whatever_diffusers_class_does_with_a_key_is_done(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classes whose noise is not independent, or whose first steps differ, are held against the
    levels alone.
    """
    short, own = name.removesuffix("Scheduler"), parameters(name)
    assert own == dict(CLASSES[name].defaults)
    for key, value in [(k, v) for k in own for v in VALUES.get(k, ()) if v != own[k]]:
        case = (short, key, value if isinstance(value, (str, int, float)) else str(value))
        theirs, times = painted(diffusers, name, {key: value}, monkeypatch)
        ours, listed = painted(compat, name, {key: value}, monkeypatch)
        if theirs is None:
            continue
        assert (ours is None) == (case in REFUSED), case
        if ours is None or case in DIFFERS:
            continue
        assert len(times) - len(listed) in (0, 1), (
            case
        )  # a last call that moves nothing is left out
        assert torch.tensor(times)[: len(listed)].sub(torch.tensor(listed)).abs().max() <= 1, case
        if short not in ("DPMSolverSDE", "IPNDM"):
            assert relative(ours, theirs) < LIMIT, (case, relative(ours, theirs))


SNR = [
    (name, schedule, total)
    for name in ("EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "UniPCMultistep")
    for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2")
    for total in (20, 100, 1000)
]


@pytest.mark.parametrize(("name", "schedule", "total"), SNR)
def test_zero_snr_is_clamped_where_diffusers_clamps_it(
    name: str, schedule: str, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last abar is 2^-24, sigma 4096, so an epsilon prediction is defined; the level before may
    lie above.
    """
    repeats = (
        total < 1000 or schedule == "squaredcos_cap_v2"
    )  # times, rounded: an error in diffusers' steps
    karras = not repeats and "use_karras_sigmas" in parameters(f"{name}Scheduler")
    shapes = [{}, {"use_karras_sigmas": True}] if karras else [{}]
    for shape in shapes:
        flags = {
            "rescale_betas_zero_snr": True,
            "beta_schedule": schedule,
            "num_train_timesteps": total,
            **shape,
        }
        made = []
        for module in (diffusers, compat):
            scheduler = getattr(module, f"{name}Scheduler")(**flags)
            scheduler.set_timesteps(8)
            x, times = loop(
                getattr(module, f"{name}Scheduler")(**flags), monkeypatch, num_inference_steps=8
            )
            made.append((scheduler.sigmas.double(), torch.tensor(times), x))
        (sigmas, times_, x), (own, listed, y) = made
        assert own[0] == pytest.approx(4096, rel=1e-6)
        assert torch.allclose(own[:8], sigmas[:8], rtol=2e-3), (own, sigmas)  # float32 of 1 - abar
        assert (listed - times_).abs().max() <= 1
        assert relative(y, x) < 5e-3


def test_all_levels_of_zero_snr_fall_where_the_one_before_pure_noise_lies_above_the_clamp() -> None:
    scheduler = compat.EulerDiscreteScheduler(rescale_betas_zero_snr=True, num_train_timesteps=1100)
    scheduler.set_timesteps(1100)
    theirs = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True, num_train_timesteps=1100)
    theirs.set_timesteps(1100)
    assert bool(theirs.sigmas[1] > theirs.sigmas[0])  # 25615 after 4096
    assert bool((scheduler.sigmas.double().diff() < 0).all())
    assert torch.allclose(
        scheduler.sigmas[2:-1], theirs.sigmas[2:-1], rtol=2e-2
    )  # float32 of 1 - abar


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_a_class_with_alpha_zero_refuses_epsilon_only_where_a_step_is_made_there(name: str) -> None:
    cls, x = getattr(compat, f"{name}Scheduler"), torch.ones(1, 4, 4, 4)
    leading = cls(rescale_betas_zero_snr=True)
    leading.set_timesteps(10)  # 900 to 0
    scheduler = cls(rescale_betas_zero_snr=True)
    theirs = getattr(diffusers, f"{name}Scheduler")(rescale_betas_zero_snr=True)
    theirs.set_timesteps(1000)
    assert (
        relative(scheduler.step(0.1 * x, 0, x).prev_sample, theirs.step(0.1 * x, 0, x).prev_sample)
        < 1e-4
    )
    for timestep in (999, torch.tensor(999)):
        with pytest.raises(TimonelError, match="v_prediction"):
            cls(rescale_betas_zero_snr=True).step(x, timestep, x)
    with pytest.raises(TimonelError, match="v_prediction"):
        cls(rescale_betas_zero_snr=True, timestep_spacing="trailing").set_timesteps(5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_noise_of_ddpm_has_the_variance_of_the_forward_step(
    spacing: str, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """google/ddpm-cifar10-32 is published with fixed_large. diffusers adds such noise to the result
    as well, unless its
    last time is 0; fixed_large_log is NaN there, the root of a logarithm."""
    flags = {"timestep_spacing": spacing, "steps_offset": offset, "clip_sample": False}
    theirs = diffusers.DDPMScheduler(**flags, variance_type="fixed_large")
    ours = [
        compat.DDPMScheduler(**flags, variance_type=kind)
        for kind in ("fixed_large", "fixed_large_log")
    ]
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    module = __import__("sys").modules[type(theirs).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **more: drawn)
    for scheduler in (theirs, *ours):
        scheduler.set_timesteps(10)
    for scheduler in ours:
        scheduler.session.noise = lambda row, like: drawn
        scheduler.set_timesteps(10)
        y = x
        for k, t in enumerate(scheduler.timesteps):
            if k == 9 and int(t) > 0:
                break
            expected = theirs.step(0.3 * y, t, y).prev_sample
            y = scheduler.step(0.3 * y, t, y).prev_sample
            assert relative(y, expected) < 1e-4, t


@pytest.mark.parametrize(
    "kind", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"]
)
def test_the_variance_of_a_step_of_ddpm_is_what_diffusers_class_says(kind: str) -> None:
    ours, theirs = (module.DDPMScheduler(variance_type=kind) for module in (compat, diffusers))
    learned = torch.linspace(-1, 1, 5) if kind == "learned_range" else None
    for t in (1, 487, 999):
        assert torch.allclose(
            ours._get_variance(t, learned), theirs._get_variance(t, learned), rtol=1e-3
        )


def test_an_unknown_variance_is_said_with_the_nearest_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    compat.DDPMScheduler(variance_type="fixed_lrge")
    assert "'fixed_large'?" in caplog.text


@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("alone", [[], [1], [5], [2, 7]])
def test_steps_without_a_corrector_are_counted_from_the_beginning_of_the_list(
    alone: list[int], begin: int
) -> None:
    ends = []
    for library in (diffusers, compat):
        scheduler = library.UniPCMultistepScheduler(disable_corrector=alone)
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(begin)
        x = torch.randn(1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(0.9 * torch.tanh(x), t, x).prev_sample
        ends.append(x)
    assert float((ends[1] - ends[0]).abs().max() / ends[0].abs().max()) < 3e-6


def test_trained_betas_of_dance_diffusion_are_its_sigmas_as_in_diffusers() -> None:
    sigmas = torch.sin(torch.linspace(1, 0, 8) * math.pi / 2).tolist()
    ours, theirs = (module.IPNDMScheduler(trained_betas=sigmas) for module in (compat, diffusers))
    x = torch.randn(1, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert torch.allclose(
        ours.timesteps.double(), theirs.timesteps.double(), atol=2e-4
    )  # float32 near a right angle
    assert torch.allclose(ours.betas, theirs.betas)
    assert torch.allclose(ours.alphas, theirs.alphas, atol=1e-3)
    y = ours.step(
        0.2 * x, ours.timesteps[0], x
    ).prev_sample  # v: the angle turns by the first interval
    turn = (ours.timesteps[0] - ours.timesteps[1]).double() * math.pi / 2
    assert relative(y, torch.cos(turn) * x - torch.sin(turn) * 0.2 * x) < 1e-4
