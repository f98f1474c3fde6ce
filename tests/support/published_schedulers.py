"""Scheduler configs of released models: diffusers' class with the arguments that its conversion
scripts, its tests and
the scheduler folders of the models give. Facts, each with the model or the script it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OFF: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False}
ONE: dict[str, Any] = {**SD, **OFF, "steps_offset": 1}
WAN: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
COG: dict[str, Any] = {
    **SD, "clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}  # fmt: skip
COS: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2"}
IF: dict[str, Any] = {
    **COS,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "variance_type": "learned_range",
}
LTX: dict[str, Any] = {
    "base_image_seq_len": 1024, "base_shift": 0.95, "max_image_seq_len": 4096, "max_shift": 2.05,
}  # fmt: skip
EDM: dict[str, Any] = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
UNCLIP: dict[str, Any] = {"variance_type": "fixed_small_log", "num_train_timesteps": 1000}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    # images, variance preserving
    "DiT": ("DDIM", {"beta_schedule": "linear", "clip_sample": False}),
    "LDM": ("DDIM", {**SD, "clip_sample": False, "beta_end": 0.0195, "beta_start": 0.0015}),
    "GLIGEN, AudioLDM": ("DDIM", ONE),
    "Zero123": ("DDIM", ONE),
    "AltDiffusion": ("DDIM", {**SD, **OFF}),
    "Kandinsky 2": ("DDIM", {**OFF, "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}),
    "AnimateDiff": ("DDIM", {"beta_schedule": "linear", "clip_sample": False, "steps_offset": 1}),
    "Marigold": ("DDIM", {**ONE, "prediction_type": "v_prediction"}),
    "Marigold LCM": ("LCM", {**ONE, "prediction_type": "v_prediction"}),
    "SD x4 upscaler": ("DDIM",
    {**OFF, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}),
    "I2VGen-XL": ("DDIM",
    {**COS, "clip_sample": False, "prediction_type": "v_prediction", "steps_offset": 1,
                           "rescale_betas_zero_snr": True, "timestep_spacing": "leading"}),
    "stable unCLIP": ("DDIM",
    {**SD, "prediction_type": "v_prediction", "steps_offset": 1, "set_alpha_to_one": False}),
    "stable unCLIP, noise": ("DDPM", COS),
    "stable unCLIP, prior": ("DDPM",
    {**COS, "variance_type": "fixed_small_log", "prediction_type": "sample",
                                      "clip_sample": True, "clip_sample_range": 5.0}),
    "Kandinsky 3": ("DDPM", {**COS, "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}),
    "DDPM": ("DDPM", {}),
    "HunyuanDiT": ("DDPM",
    {**SD, "beta_end": 0.03, "prediction_type": "v_prediction", "clip_sample": False,
                            "steps_offset": 1}),
    "DeepFloyd IF": ("DDPM", {**IF, "sample_max_value": 1.5}),
    "DeepFloyd IF, II": ("DDPM", {**IF, "sample_max_value": 1.0}),
    "spectrogram diffusion": ("DDPM", {**COS, "variance_type": "fixed_large"}),
    "BLIP-Diffusion": ("PNDM", {**SD, "set_alpha_to_one": False, "skip_prk_steps": True}),
    "Versatile Diffusion": ("PNDM", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    "Versatile Diffusion, LMS": ("LMSDiscrete", SD),
    "instruct-pix2pix": ("EulerAncestralDiscrete", SD),
    "SDXL": ("EulerDiscrete", {**SD, "steps_offset": 1, "timestep_spacing": "leading"}),
    "SDXL-Lightning, one step": ("EulerDiscrete",
    {**SD, "prediction_type": "sample", "timestep_spacing": "trailing"}),
    "Kolors": ("EulerDiscrete",
    {**SD, "beta_end": 0.014, "num_train_timesteps": 1100, "steps_offset": 1,
                                 "timestep_spacing": "leading"}),
    "latent upscaler": ("EulerDiscrete",
    {"beta_schedule": "scaled_linear", "prediction_type": "sample"}),
    "Shap-E": ("HeunDiscrete",
    {"beta_schedule": "exp", "num_train_timesteps": 1024, "prediction_type": "sample",
                                "use_karras_sigmas": True, "clip_sample": True,
                                "clip_sample_range": 1.0}),
    "PixArt": ("DPMSolverMultistep", {}),
    "UniDiffuser": ("DPMSolverMultistep", {**SD, "solver_order": 3}),
    "LEdits++": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "Kolors, DPM": ("DPMSolverMultistep", {**SD, "use_karras_sigmas": True, "steps_offset": 1}),
    "LCM": ("LCM", SD),
    "TCD": ("TCD", SD),
    "Karlo, prior": ("UnCLIP", {**UNCLIP, "prediction_type": "sample", "clip_sample_range": 5.0}),
    "Karlo, decoder": ("UnCLIP", {**UNCLIP, "variance_type": "learned_range"}),
    "Stable Cascade": ("DDPMWuerstchen", {}),
    "CogVideoX-2b": ("CogVideoXDDIM", {**COG, "snr_shift_scale": 3.0}),
    "CogVideoX-5b": ("CogVideoXDPM", {**COG, "snr_shift_scale": 1.0}),
    "CogView3-Plus": ("CogVideoXDDIM", {**COG, "snr_shift_scale": 4.0}),
    "CogVideoX, nothing said": ("CogVideoXDDIM", {}),
    # EDM
    "Cosmos 1": ("EDMEuler", {**EDM, "sigma_schedule": "karras", "final_sigmas_type": "sigma_min"}),
    "Playground 2.5": ("EDMDPMSolverMultistep", {**EDM, "solver_order": 2}),
    "Stable Audio": ("CosineDPMSolverMultistep",
    {"sigma_min": 0.3, "sigma_max": 500, "sigma_data": 1.0,
                                                  "sigma_schedule": "exponential",
                                                  "solver_order": 2}),
    "consistency training": ("CMStochasticIterative",
    {"num_train_timesteps": 40, "sigma_max": 80.0}),
    "consistency distillation": ("CMStochasticIterative", {"num_train_timesteps": 201}),
    "SVD": ("EulerDiscrete",
    {**SD, "prediction_type": "v_prediction", "sigma_max": 700.0, "sigma_min": 0.002,
                              "timestep_spacing": "leading", "steps_offset": 1,
                              "timestep_type": "continuous",
                              "use_karras_sigmas": True}),
    "Dance Diffusion": ("IPNDM", {"num_train_timesteps": 1000}),
    "Sana-Sprint": ("SCM", {}),
    # flows
    "Anima": ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    "Lumina": ("FlowMatchEulerDiscrete", {}),
    "HunyuanVideo": ("FlowMatchEulerDiscrete", {"shift": 7.0}),
    "AuraFlow": ("FlowMatchEulerDiscrete", {"shift": 1.73}),
    "CogView4": ("FlowMatchEulerDiscrete",
    {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256,
                                            "use_dynamic_shifting": True,
                                            "time_shift_type": "linear"}),
    "Krea 2": ("FlowMatchEulerDiscrete",
    {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
                                          "max_image_seq_len": 6400, "use_dynamic_shifting": True}),
    "LTX-2": ("FlowMatchEulerDiscrete",
    {**LTX, "use_dynamic_shifting": True, "shift_terminal": 0.1}),
    "LTX-2, distilled": ("FlowMatchEulerDiscrete",
    {**LTX, "use_dynamic_shifting": False, "shift_terminal": None}),
    "Cosmos, karras": ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}),
    "ACE-Step": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1, "shift": 1.0}),
    "Stable Audio 3": ("FlowMatchEulerDiscrete",
    {"num_train_timesteps": 1, "stochastic_sampling": True}),
    "AnyFlow": ("FlowMapEulerDiscrete", {"num_train_timesteps": 1000, "shift": 5.0}),
    "LTX-2, ancestral": ("LTXEulerAncestralRF", {"eta": 0.5}),
    "Wan 2.1": ("UniPCMultistep", {**WAN, "flow_shift": 3.0}),
    "SkyReels-V2": ("UniPCMultistep", {**WAN, "flow_shift": 8.0}),
    "Cosmos 3": ("UniPCMultistep", {"num_train_timesteps": 100, "use_flow_sigmas": True}),
    "Cosmos Predict 2.5": ("UniPCMultistep",
    {**WAN, "use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.01}),
    "Sana": ("DPMSolverMultistep", {**WAN, "flow_shift": 3.0}),
}  # fmt: skip
#: what a call of the pipeline gives beside a number of steps, where that is more
MU = 0.9  # of a picture's size
LISTED = (
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    "LTXEulerAncestralRF",
)  # pipelines list u = 1 - i/N


def folders() -> dict[str, dict[str, Any]]:
    """The scheduler configs of the folders in published.json, as they are written there."""
    found = json.loads((Path(__file__).parent / "published.json").read_text("utf-8"))
    return {name: one["scheduler"] for name, one in found.items()}
