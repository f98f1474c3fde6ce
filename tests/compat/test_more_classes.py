"""The drop-ins of diffusers' classes for video, distilled and pixel models: step by step the same.

Both sides get the same config, generator and network; every sample on the way is compared.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import pytest
import torch

import timonel.compat as compat
from timonel.errors import ArgumentError, GridError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COG = {
    **SD, "clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}  # fmt: skip
UP = {"clip_sample": False, "steps_offset": 1}
SHAPE = (2, 4, 6, 6)
LISTS_END = ("SCM", "DDPMWuerstchen")
#: of a path between sigmas that float32 has rounded
LOOSE = {"CosineDPMSolverMultistep": 5e-3}
#: class, config of a released model or of a test, what `set_timesteps` gets
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIMParallel", {**SD, "clip_sample": False}, {"num_inference_steps": 7}),
    ("DDPMParallel", {**SD, "clip_sample": False}, {"num_inference_steps": 7}),
    ("CogVideoXDDIM", {**COG, "snr_shift_scale": 3.0}, {"num_inference_steps": 8}),
    ("CogVideoXDDIM", {**COG, "snr_shift_scale": 4.0}, {"num_inference_steps": 10}),
    ("CogVideoXDDIM", {}, {"num_inference_steps": 5}),
    ("CogVideoXDPM", {**COG, "snr_shift_scale": 1.0}, {"num_inference_steps": 8}),
    ("CogVideoXDPM", {"set_alpha_to_one": False, "steps_offset": 1}, {"num_inference_steps": 5}),
    ("CogVideoXDPM", {"timestep_spacing": "trailing"}, {"num_inference_steps": 1}),
    ("FlowMatchLCM", {"shift": 3.0}, {"num_inference_steps": 4}),
    ("FlowMatchLCM", {"shift": 3.0, "use_karras_sigmas": True}, {"num_inference_steps": 5}),
    ("FlowMatchLCM", {"use_dynamic_shifting": True}, {"num_inference_steps": 4, "mu": 0.8}),
    ("FlowMatchLCM", {"shift": 2.0}, {"sigmas": [1.0, 0.7, 0.2]}),
    ("SCM", {}, {"num_inference_steps": 2}),
    ("SCM", {"sigma_data": 1.0}, {"num_inference_steps": 4, "intermediate_timesteps": None}),
    ("SCM", {}, {
        "num_inference_steps": 3, "timesteps": [1.57, 1.1, 0.5, 0.0], "max_timesteps": None,
        "intermediate_timesteps": None,
    }),
    ("UnCLIP", {"prediction_type": "sample", "clip_sample_range": 5.0}, {"num_inference_steps": 7}),
    ("UnCLIP", {"variance_type": "learned_range"}, {"num_inference_steps": 7}),
    ("CosineDPMSolverMultistep", {}, {"num_inference_steps": 8}),
    ("CosineDPMSolverMultistep", {"solver_type": "heun", "sigma_schedule": "karras"},
     {"num_inference_steps": 16}),
    ("CMStochasticIterative", {}, {"num_inference_steps": 2}),
    ("CMStochasticIterative", {}, {"num_inference_steps": 1}),
    ("CMStochasticIterative", {"num_train_timesteps": 201, "clip_denoised": False},
     {"timesteps": [106, 40, 0]}),
    ("CMStochasticIterative", {"s_noise": 0.9, "sigma_data": 1.0}, {"num_inference_steps": 40}),
    ("DDIMInverse", {**SD, "clip_sample": False, "steps_offset": 1}, {"num_inference_steps": 7}),
    ("DDIMInverse", {**SD, "clip_sample": True, "clip_sample_range": 1.5},
     {"num_inference_steps": 10}),
    ("DDIMInverse", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
                     "prediction_type": "v_prediction"}, {"num_inference_steps": 10}),
    ("DDIMInverse", {**SD, "clip_sample": False, "timestep_spacing": "trailing"},
     {"num_inference_steps": 8}),
    ("DPMSolverMultistepInverse", SD, {"num_inference_steps": 8}),
    ("DPMSolverMultistepInverse", {**SD, "timestep_spacing": "leading", "steps_offset": 1,
                                   "solver_order": 3}, {"num_inference_steps": 16}),
    ("DPMSolverMultistepInverse", {**SD, "algorithm_type": "dpmsolver", "solver_type": "heun"},
     {"num_inference_steps": 9}),
    ("DPMSolverMultistepInverse", {**SD, "use_karras_sigmas": True}, {"num_inference_steps": 9}),
    ("DPMSolverMultistepInverse", {**SD, "timestep_spacing": "trailing"},
     {"num_inference_steps": 7}),
    ("FlowMapEulerDiscrete", {"shift": 5.0}, {"num_inference_steps": 4}),
    ("FlowMapEulerDiscrete", {}, {"timesteps": [1000.0, 600.0, 250.0]}),
    ("MiniMaxH3", {}, {"num_inference_steps": 6}),
    ("MiniMaxH3", {"shift": 3.0}, {"sigmas": [1.0, 0.7, 0.2, 0.0]}),
    ("DDPMWuerstchen", {}, {"num_inference_steps": 8}),
    ("DDPMWuerstchen", {}, {"timesteps": [1.0, 0.6, 0.3, 0.0]}),
]  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab][<>]=t[01]:UserWarning"),  # of torchsde
]


def network(seen: torch.Tensor, time: float, channels: int = 1) -> torch.Tensor:
    return torch.cat([torch.tanh(1.3 * seen + time / 700) + 0.2 * seen] * channels, 1)


def in_double(scheduler: Any) -> None:
    """Compute diffusers' cosine betas in float64: float32 has no digits of abar 2e-9."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    scheduler.betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)


def loop(library: Any, name: str, config: dict[str, Any], levels: dict[str, Any]) -> Any:
    """Times, samples on the way, and the generator's state where it has come to."""
    scheduler = getattr(library, f"{name}Scheduler")(**config)
    if library is diffusers and name == "UnCLIP":
        in_double(scheduler)
    scheduler.set_timesteps(**levels)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x, old, states = x * float(getattr(scheduler, "init_noise_sigma", 1.0)), None, []
    times = scheduler.timesteps[:-1] if name in LISTS_END else scheduler.timesteps
    channels = 2 if config.get("variance_type") == "learned_range" else 1
    for i, t in enumerate(times):
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out, after = network(seen, float(t), channels), times[i + 1] if i + 1 < len(times) else None
        if name == "CogVideoXDPM":
            back = times[i - 1] if i else None
            x, old = scheduler.step(out, old, t, back, x, generator=generator, return_dict=False)
        else:
            drawn = "generator" in inspect.signature(scheduler.step).parameters
            drawn = drawn and name not in ("DDIMParallel", "CogVideoXDDIM")
            more = {"generator": generator} if drawn else {}
            more |= {"prev_timestep": after} if name == "UnCLIP" else {}
            time = t.expand(len(x)) if name == "DDPMWuerstchen" else t
            x = scheduler.step(out, time, x, **more, return_dict=False)[0]
        states.append(x.double())
    return scheduler, times, states, generator.get_state()


@pytest.mark.parametrize(("name", "config", "levels"), CASES)
def test_every_step_is_that_of_diffusers_class(
    name: str, config: dict[str, Any], levels: dict[str, Any]
) -> None:
    (theirs, listed, wanted, state), (ours, times, found, left) = (
        loop(library, name, config, levels) for library in (diffusers, compat)
    )
    if len(listed) == len(times) + 1:  # a last call that moves nothing is left out
        listed, wanted = listed[:-1], wanted[:-1]
    assert torch.allclose(times.double(), listed.double(), rtol=2e-6, atol=1e-6)
    size = float(getattr(theirs, "init_noise_sigma", 1.0))
    assert float(ours.init_noise_sigma) == pytest.approx(size, rel=1e-6)
    assert len(found) == len(wanted)
    for here, there in zip(found, wanted, strict=True):
        assert float((here - there).abs().max() / there.abs().max()) < LOOSE.get(name, 1e-5)
    assert torch.equal(left, state)


# -- what diffusers' step reads beside the run -----------------------------------------------------
def test_a_step_of_cogvideox_combines_the_prediction_that_it_is_given() -> None:
    """Out of order, with another prediction or none, each step is one by itself."""
    ends = []
    for library in (diffusers, compat):
        scheduler = library.CogVideoXDPMScheduler(**COG)
        scheduler.set_timesteps(8)
        times = scheduler.timesteps
        g = torch.Generator().manual_seed(3)
        x, old = (torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
        seen = []
        for at, back in ((4, 3), (2, 1), (5, None), (6, 4), (7, 6)):
            given = (None, None) if back is None else (old, times[back])
            x, _ = scheduler.step(
                network(x, float(times[at])), given[0], times[at], given[1], x, generator=g,
                return_dict=False,
            )  # fmt: skip
            seen.append(x)
        ends.append((seen, g.get_state()))
    for here, there in zip(ends[1][0], ends[0][0], strict=True):
        assert float((here - there).abs().max() / there.abs().max()) < 1e-5
    assert torch.equal(ends[0][1], ends[1][1])


def test_half_of_what_a_step_of_cogvideox_combines_is_refused() -> None:
    scheduler = compat.CogVideoXDPMScheduler()
    scheduler.set_timesteps(4)
    x, t = torch.ones(SHAPE), scheduler.timesteps
    with pytest.raises(ArgumentError, match="belong together"):
        scheduler.step(x, x, t[1], None, x)


@pytest.mark.parametrize(
    ("name", "key", "to"),
    [("UnCLIP", "prev_timestep", 400), ("FlowMapEulerDiscrete", "r_timestep", 400.0)],
)
def test_a_step_ends_at_the_time_it_names(name: str, key: str, to: float) -> None:
    ends = []
    for library in (diffusers, compat):
        scheduler = getattr(library, f"{name}Scheduler")()
        if library is diffusers and name == "UnCLIP":
            in_double(scheduler)
        scheduler.set_timesteps(5)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        t = scheduler.timesteps[1]
        drawn = {"generator": torch.Generator().manual_seed(1)} if name == "UnCLIP" else {}
        ends.append(scheduler.step(network(x, float(t)), t, x, **{key: to}, **drawn).prev_sample)
    assert torch.allclose(ends[1], ends[0], atol=1e-5)
    with pytest.raises(ArgumentError, match="ends below it"):
        scheduler.step(x, t, x, **{key: float(t) + 1})


@pytest.mark.parametrize("name", ["DDIMParallel", "DDPMParallel"])
@pytest.mark.parametrize("flags", [{"clip_sample": False}, {"prediction_type": "v_prediction"}])
def test_samples_at_times_of_their_own_are_stepped_at_once(
    name: str, flags: dict[str, Any]
) -> None:
    ends = []
    for library in (diffusers, compat):
        scheduler = getattr(library, f"{name}Scheduler")(**SD, **flags)
        scheduler.set_timesteps(10)
        x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(3))
        times = scheduler.timesteps[torch.tensor([0, 4, 9])]
        ends.append(scheduler.batch_step_no_noise(torch.tanh(x), times, x))
        assert library is diffusers or not scheduler.run.started
    assert torch.allclose(ends[1], ends[0], atol=1e-5)


def test_ddims_inverse_and_ddim_come_back_where_the_network_says_the_same_noise() -> None:
    """Of a network that names one noise the way up and down are the same line."""
    up, down = compat.DDIMInverseScheduler(**SD, **UP), compat.DDIMScheduler(**SD, **UP)
    x = start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for scheduler in (up, down):
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            x = scheduler.step(noise, t, x).prev_sample
    assert torch.allclose(x, start, atol=1e-7)


def test_what_cannot_go_up_is_refused() -> None:
    for flags in ({"algorithm_type": "sde-dpmsolver++"}, {"use_flow_sigmas": True}):
        with pytest.raises(ArgumentError):
            compat.DPMSolverMultistepInverseScheduler(**flags)
    scheduler = compat.DDIMInverseScheduler()
    with pytest.raises(ArgumentError, match="not sigmas"):
        scheduler.set_timesteps(sigmas=[3.0, 1.0])
    with pytest.raises(GridError, match="must rise"):
        compat.DPMSolverMultistepInverseScheduler().set_timesteps(timesteps=[800, 200])
