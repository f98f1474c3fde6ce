"""Arguments that several of diffusers' schedulers share, with their defaults."""

from __future__ import annotations

from typing import Any

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None,
}  # fmt: skip
NARROW = {**BETAS, "beta_start": 0.00085, "beta_end": 0.012}
SHAPES = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
SPACING = {"timestep_spacing": "linspace", "steps_offset": 0}
LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
EDM = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "rho": 7.0,
}  # fmt: skip
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")  # of steps, by position
DISTILLED: dict[str, Any] = {
    **NARROW, "beta_schedule": "scaled_linear", "original_inference_steps": 50,
    "clip_sample": False,
    "clip_sample_range": 1.0, "set_alpha_to_one": True, "steps_offset": 0,
    "prediction_type": "epsilon", **THRESHOLD,
    "timestep_spacing": "leading", "timestep_scaling": 10.0, "rescale_betas_zero_snr": False,
}  # fmt: skip
DISTILLED = {key: DISTILLED[key] for key in (*BETAS, *[k for k in DISTILLED if k not in BETAS])}
