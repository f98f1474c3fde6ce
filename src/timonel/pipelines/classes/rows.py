"""The classes of diffusers' schedulers, a row each: arguments, sampler, levels, table, noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ...core.process import Process
from ...core.process.config import name_of
from ...core.table import Table
from . import tables
from .flags import Words
from .rule import Flags, LevelRule, Levels, always
from .tables import LARGE, SMALL, Named, Part

Defaults = dict[str, Any]
#: the processes that most classes are made for
LATENT = ("vp", "edm", "flow")
#: variances that a network predicts beside its noise; DDPM's class alone reads them
LEARNED = ("learned", "learned_range")


@dataclass(frozen=True)
class Row:
    """What a class of diffusers does.

    Args:
        defaults: the constructor's arguments, in diffusers' order.
        solver: timonel's solver, or solver and options by the flags.
        levels: which levels it visits.
        kinds: the processes it can be made for; "consistency" is EDM's with its clock, "minimax" a
            flow whose network gets 1 - t.
        words: of flags that take one of several words.
        unread: flags that diffusers' class never reads, and why.
        table: the table of a part of its list.
        orders: the order of every step of so many levels, where a sampler of timonel has it too.
        draws: whether diffusers' class draws noise in every call, by the flags; None: where the
            row adds some.
        source: where its noise comes from, if not independent.
        draws_in: dtype of the noise: the output's, the sample's, what these promote to ("both"), or
            what the output's and float32 do ("single").
        calls: network calls of a step in its list, as pipelines count them when they cut it.
        placed: what `step` takes by position up to the sample.
        takes: what `step` takes by position after the sample.
        one_list: whether `set_timesteps` refuses a number beside a list.
        unit: whether samples have unit variance; else they are x0 + sigma·noise.
        eta: the default of `step`'s eta, where it has one.
        clips: whether `step` reads clip_sample and thresholding.
        by_time: whether `step` reads its time and its sample, and nothing else.
        strides: whether it steps from t to t - T // N, whatever the list says.
    """

    defaults: Mapping[str, Any]
    solver: str | Callable[[Flags], Named]
    levels: LevelRule = LevelRule()  # noqa: RUF009 (frozen)
    kinds: tuple[str, ...] = LATENT
    words: Mapping[str, Words] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    table: Callable[[Part], Table] = tables.usual
    orders: Callable[[Flags, Levels, int], str] | None = None
    draws: Callable[[Flags], bool] | None = None
    source: str | None = None
    draws_in: torch.dtype | Literal["output", "sample", "both", "single"] = "output"
    calls: int = 1
    placed: tuple[str, ...] = ("model_output", "timestep", "sample")
    takes: tuple[str, ...] = ("return_dict",)
    one_list: bool = False
    unit: bool = True
    eta: float | None = None
    clips: bool = True
    by_time: bool = False
    strides: bool = False

    def named(self, flags: Flags) -> Named:
        """The solver of timonel and its options for these flags."""
        return (self.solver, {}) if isinstance(self.solver, str) else self.solver(flags)

    def fits(self, process: Process) -> bool:
        """Whether the class can be made for a process."""
        names = {process.kind, name_of(process)}
        clock, scale = getattr(process, "clock", ""), getattr(process, "time_scale", 0.0)
        names |= {"consistency"} if clock == "250 log" else set()
        names |= {"minimax"} if (clock, scale) == ("1 - t", 1.0) else set()
        return not names.isdisjoint(self.kinds)


# -- arguments that several classes share ----------------------------------------------------------
BETAS: Defaults = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None,
}  # fmt: skip
NARROW: Defaults = {**BETAS, "beta_start": 0.00085, "beta_end": 0.012}
SHAPES = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
SPACING: Defaults = {"timestep_spacing": "linspace", "steps_offset": 0}
LEADING: Defaults = {"timestep_spacing": "leading", "steps_offset": 0}
QUANTILE: Defaults = {"thresholding": False, "dynamic_thresholding_ratio": 0.995}
THRESHOLD: Defaults = {**QUANTILE, "sample_max_value": 1.0}
FLOW: Defaults = {"use_flow_sigmas": False, "flow_shift": 1.0}
DYNAMIC: Defaults = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
CLIPPED: Defaults = {"lambda_min_clipped": -math.inf, "variance_type": None}
EDM: Defaults = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "rho": 7.0,
}  # fmt: skip
PREDICTS: Defaults = {"prediction_type": "epsilon"}
ORDER: Defaults = {"solver_order": 2, **PREDICTS, **THRESHOLD}
RESCALES: Defaults = {"rescale_betas_zero_snr": False}
MULTISTEP: Defaults = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
DISTILLED: Defaults = {
    **NARROW, "beta_schedule": "scaled_linear", "original_inference_steps": 50,
    "clip_sample": False, "clip_sample_range": 1.0, "set_alpha_to_one": True, "steps_offset": 0,
    **PREDICTS, **THRESHOLD, "timestep_spacing": "leading", "timestep_scaling": 10.0, **RESCALES,
}  # fmt: skip
COGVIDEOX: Defaults = {
    **NARROW, "beta_schedule": "scaled_linear", "clip_sample": True, "set_alpha_to_one": True,
    "steps_offset": 0, **PREDICTS, "clip_sample_range": 1.0, "sample_max_value": 1.0,
    "timestep_spacing": "leading", **RESCALES, "snr_shift_scale": 3.0,
}  # fmt: skip
SHIFT: Defaults = {"num_train_timesteps": 1000, "shift": 1.0}
SIZED: Defaults = {
    **SHIFT, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
    "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False,
    "shift_terminal": None, **SHAPES, "time_shift_type": "exponential",
}  # fmt: skip
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")  # of steps, by position
DRAWS = ("generator", "return_dict")

# -- words -----------------------------------------------------------------------------------------
ANY_DPM = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def _dpm(does: tuple[str, ...]) -> dict[str, Words]:
    """The words of a class of DPM-Solver."""
    lacks = tuple(word for word in ANY_DPM if word not in does)
    remedy = "pass 'dpmsolver++' or 'sde-dpmsolver++'"
    types = Words(("midpoint", "heun"), "pass 'midpoint' or 'heun'", taken=("logrho", "bh1", "bh2"))
    return {"algorithm_type": Words(does, remedy, lacks, ("deis",)), "solver_type": types}


_DEIS = {
    "algorithm_type": Words(
        ("deis",), "pass algorithm_type='deis', or use DPMSolverMultistepScheduler",
        taken=("dpmsolver", "dpmsolver++"),
    ),
    "solver_type": Words(
        ("logrho",), "pass solver_type='logrho'", taken=("midpoint", "heun", "bh1", "bh2")
    ),
}  # fmt: skip
_UNIPC = {
    "solver_type": Words(
        ("bh1", "bh2"), "pass solver_type='bh1' or 'bh2'", taken=("midpoint", "heun", "logrho")
    )
}
_SA_SOLVER = {
    "algorithm_type": Words(
        ("data_prediction",), "pass algorithm_type='data_prediction'", ("noise_prediction",)
    )
}
_ODE = ("eta", "use_clipped_model_output", "generator", "variance_noise", "return_dict")
_LEVELS_UNREAD = dict.fromkeys(
    ("timestep_spacing", "steps_offset"),
    "its levels are those of the distillation, original_inference_steps of them",
)
_UNCLIPPED = dict.fromkeys(
    ("clip_sample", "clip_sample_range", *THRESHOLD),
    "diffusers' class never reads it; its predictions are not clipped",
)

_COGVIDEOX_UNREAD = {key: _UNCLIPPED[key] for key in _UNCLIPPED if key in COGVIDEOX}

# -- the rows --------------------------------------------------------------------------------------
CLASSES: dict[str, Row] = {
    "DDIMScheduler": Row(
        {
            **BETAS, "clip_sample": True, "set_alpha_to_one": True, "steps_offset": 0, **PREDICTS,
            **QUANTILE, "clip_sample_range": 1.0, "sample_max_value": 1.0,
            "timestep_spacing": "leading", **RESCALES,
        },
        lambda flags: ("ddim", {"eta": 0.0}),
        LevelRule("index"), eta=0.0, by_time=True, strides=True, takes=_ODE,
    ),
    "DDPMScheduler": Row(
        {
            **BETAS, "variance_type": "fixed_small", "clip_sample": True, **PREDICTS, **QUANTILE,
            "clip_sample_range": 1.0, "sample_max_value": 1.0, **LEADING, **RESCALES,
        },
        "ddpm", LevelRule("index"), table=tables.ddpm,
        words={"variance_type": Words((*SMALL, *LARGE, *LEARNED), "")},
        by_time=True, strides=True, one_list=True, takes=DRAWS,
    ),
    "PNDMScheduler": Row(
        {**BETAS, "skip_prk_steps": False, "set_alpha_to_one": False, **PREDICTS, **LEADING},
        lambda flags: ("plms" if flags["skip_prk_steps"] else "pndm", {}),
        LevelRule("index"), table=tables.pndm, strides=True,
    ),
    "IPNDMScheduler": Row(
        {"num_train_timesteps": 1000, "trained_betas": None},
        lambda flags: ("ipndm", {"euler_at_final": False}),
        LevelRule("index", spacing="trailing"), kinds=("vp", "edm", "flow", "crash"),
    ),
    "LCMScheduler": Row(
        {key: DISTILLED[key] for key in dict.fromkeys([*BETAS, *DISTILLED])},
        "lcm", LevelRule("distilled", end="clean"), table=tables.lcm, unread=_LEVELS_UNREAD,
        takes=DRAWS, draws_in="both", one_list=True,
    ),
    "TCDScheduler": Row(
        {key: DISTILLED[key] for key in dict.fromkeys([*BETAS, *DISTILLED])},
        lambda flags: ("tcd", {"eta": 0.3}),
        LevelRule("distilled", end="lowest", anywhere=True), eta=0.3, clips=False,
        unread={
            **_LEVELS_UNREAD, "timestep_scaling": "its step has no boundary scaling", **_UNCLIPPED
        },
        takes=("eta", *DRAWS), draws_in="both", one_list=True,
    ),
    "EDMEulerScheduler": Row(
        {**EDM, "final_sigmas_type": "zero"}, "euler", LevelRule("edm"), kinds=("edm",), unit=False,
        takes=(*CHURN, *DRAWS, "pred_original_sample"),
    ),
    "EDMDPMSolverMultistepScheduler": Row(
        {
            **EDM, "solver_order": 2, **THRESHOLD, **MULTISTEP, "lower_order_final": True,
            "euler_at_final": False, "final_sigmas_type": "zero",
        },
        tables.multistep_solver, LevelRule("edm"), kinds=("edm",), unit=False,
        table=tables.multistep, words=_dpm(("dpmsolver++", "sde-dpmsolver++")),
        draws=tables.adds_noise, draws_in="both", takes=DRAWS,
    ),
    "EulerDiscreteScheduler": Row(
        {
            **BETAS, **PREDICTS, "interpolation_type": "linear", **SHAPES, "sigma_min": None,
            "sigma_max": None, "timestep_spacing": "linspace", "timestep_type": "discrete",
            "steps_offset": 0, **RESCALES, "final_sigmas_type": "zero",
        },
        "euler", unit=False, one_list=True, takes=(*CHURN, *DRAWS),
    ),
    "EulerAncestralDiscreteScheduler": Row(
        {**BETAS, **PREDICTS, **SPACING, **RESCALES},
        "euler_ancestral", unit=False, draws=lambda flags: True, takes=DRAWS,
    ),
    "FlowMatchEulerDiscreteScheduler": Row(
        {**SIZED, "stochastic_sampling": False},
        lambda flags: ("lcm" if flags["stochastic_sampling"] else "euler", {}),
        LevelRule("flow"), kinds=("flow", "ve"), draws=lambda flags: flags["stochastic_sampling"],
        draws_in=torch.float32,
        takes=(*CHURN, "generator", "per_token_timesteps", "return_dict"),
    ),
    "HeunDiscreteScheduler": Row(
        {
            **NARROW, **PREDICTS, **SHAPES, "clip_sample": False, "clip_sample_range": 1.0,
            **SPACING,
        },
        "heun", calls=2, unit=False, one_list=True,
    ),
    "FlowMatchHeunDiscreteScheduler": Row(
        SHIFT, "heun", LevelRule("flow"), kinds=("flow",), calls=2, takes=(*CHURN, *DRAWS),
    ),
    "KDPM2DiscreteScheduler": Row(
        {**NARROW, **SHAPES, **PREDICTS, **SPACING},
        "dpm2", LevelRule(rounds=True), calls=2, unit=False,
    ),
    "KDPM2AncestralDiscreteScheduler": Row(
        {**NARROW, **SHAPES, **PREDICTS, **SPACING},
        "dpm2_ancestral", LevelRule(rounds=True), calls=2, unit=False, takes=DRAWS,
    ),
    "DPMSolverSDEScheduler": Row(
        {**NARROW, **PREDICTS, **SHAPES, "noise_sampler_seed": None, **SPACING},
        "dpmpp_sde", calls=2, unit=False, source="brownian", takes=("return_dict", "s_noise"),
    ),
    "DPMSolverSinglestepScheduler": Row(
        {
            **BETAS, **ORDER, **MULTISTEP, "lower_order_final": False, **SHAPES, **FLOW,
            "final_sigmas_type": "zero", **CLIPPED, **DYNAMIC,
        },
        tables.singlestep_solver, LevelRule("dpm", corrects=tables.ends_group),
        table=tables.singlestep, words=_dpm(("dpmsolver", "dpmsolver++", "sde-dpmsolver++")),
        draws=tables.adds_noise, draws_in="both", one_list=True, takes=DRAWS,
    ),
    "LMSDiscreteScheduler": Row(
        {**BETAS, **SHAPES, **PREDICTS, **SPACING},
        lambda flags: ("lms", {"order": 4, "euler_at_final": False}),
        table=tables.lms, unit=False, takes=("order", "return_dict"),
    ),
    "DPMSolverMultistepScheduler": Row(
        {
            **BETAS, **ORDER, **MULTISTEP, "lower_order_final": True, "euler_at_final": False,
            **SHAPES, "use_lu_lambdas": False, **FLOW, "final_sigmas_type": "zero", **CLIPPED,
            **SPACING, **RESCALES, **DYNAMIC,
        },
        tables.multistep_solver, LevelRule("dpm"), table=tables.multistep, words=_dpm(ANY_DPM),
        draws=tables.adds_noise, draws_in=torch.float32, one_list=True,
        takes=("generator", "variance_noise", "return_dict"),
    ),
    "DEISMultistepScheduler": Row(
        {
            **BETAS, **ORDER, "algorithm_type": "deis", "solver_type": "logrho",
            "lower_order_final": True, **SHAPES, **FLOW, **SPACING, **DYNAMIC,
        },
        lambda flags: ("deis", {"order": flags["solver_order"], "variant": "logrho"}),
        LevelRule("dpm", end="lowest"), table=tables.deis, orders=tables.deis_orders, words=_DEIS,
    ),
    "UniPCMultistepScheduler": Row(
        {
            **BETAS, **ORDER, "predict_x0": True, "solver_type": "bh2", "lower_order_final": True,
            "disable_corrector": [], "solver_p": None, **SHAPES, **FLOW, **SPACING,
            "final_sigmas_type": "zero", **RESCALES, **DYNAMIC, "sigma_min": None,
            "sigma_max": None, "shift_terminal": None,
        },
        lambda flags: ("unipc", {"order": flags["solver_order"], "variant": flags["solver_type"]}),
        LevelRule("dpm", corrects=always, snaps=True), table=tables.unipc,
        orders=tables.unipc_orders, words=_UNIPC,
    ),
    "SASolverScheduler": Row(
        {
            **BETAS, "predictor_order": 2, "corrector_order": 2, **PREDICTS, "tau_func": None,
            **THRESHOLD, "algorithm_type": "data_prediction", "lower_order_final": True, **SHAPES,
            **FLOW, **CLIPPED, **SPACING,
        },
        tables.sa_solver_named, LevelRule("dpm", end="lowest", corrects=always),
        table=tables.sa_solver, draws=lambda flags: True, words=_SA_SOLVER, takes=DRAWS,
    ),
}  # fmt: skip
CLASSES |= {
    "DDIMParallelScheduler": CLASSES["DDIMScheduler"],
    "DDPMParallelScheduler": CLASSES["DDPMScheduler"],
    "CogVideoXDDIMScheduler": Row(
        COGVIDEOX, lambda flags: ("ddim", {"eta": 0.0}), LevelRule("index"), kinds=("vp",),
        clips=False, unread=_COGVIDEOX_UNREAD, by_time=True, strides=True, takes=_ODE,
    ),
    "CogVideoXDPMScheduler": Row(
        COGVIDEOX, "dpmpp_2m_sde", LevelRule("index"), kinds=("vp",), clips=False,
        unread=_COGVIDEOX_UNREAD, strides=True, table=tables.cogvideox,
        draws=lambda flags: True, draws_in="sample",
        placed=("model_output", "old_pred_original_sample", "timestep", "timestep_back", "sample"),
        takes=_ODE,
    ),
    "UnCLIPScheduler": Row(
        {
            "num_train_timesteps": 1000, "variance_type": "fixed_small_log", "clip_sample": True,
            "clip_sample_range": 1.0, **PREDICTS, "beta_schedule": "squaredcos_cap_v2",
        },
        "ddpm", LevelRule("index", spacing="linspace"), kinds=("vp",), by_time=True,
        words={"variance_type": Words(("fixed_small_log", "learned_range"), "")},
        takes=("prev_timestep", *DRAWS),
    ),
    "FlowMatchLCMScheduler": Row(
        {**SIZED, "scale_factors": None, "upscale_mode": "bicubic"},
        "lcm", LevelRule("flow"), kinds=("flow",), draws=lambda flags: True, draws_in="single",
        takes=DRAWS, unread={"upscale_mode": "latents keep their size in a run"},
    ),
    "SCMScheduler": Row(
        {"num_train_timesteps": 1000, "prediction_type": "trigflow", "sigma_data": 0.5},
        "lcm", LevelRule("angles"), kinds=("trig",), table=tables.scm, draws=lambda flags: True,
        draws_in=torch.float32, takes=DRAWS,
    ),
    "CosineDPMSolverMultistepScheduler": Row(
        {
            "sigma_min": 0.3, "sigma_max": 500, "sigma_data": 1.0, "sigma_schedule": "exponential",
            "num_train_timesteps": 1000, "solver_order": 2, "prediction_type": "v_prediction",
            "rho": 7.0, "solver_type": "midpoint", "lower_order_final": True,
            "euler_at_final": False, "final_sigmas_type": "zero",
        },
        tables.cosine_solver, LevelRule("edm"), kinds=("edm",), unit=False, source="brownian",
        table=tables.cosine, words={"solver_type": _dpm(ANY_DPM)["solver_type"]}, takes=DRAWS,
    ),
    "CMStochasticIterativeScheduler": Row(
        {
            "num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5,
            "s_noise": 1.0, "rho": 7.0, "clip_denoised": True,
        },
        "lcm", LevelRule("consistency"), kinds=("consistency",), unit=False, table=tables.iterative,
        draws=lambda flags: True, takes=DRAWS, one_list=True,
    ),
    "DDIMInverseScheduler": Row(
        {
            **BETAS, "clip_sample": True, "set_alpha_to_one": True, "steps_offset": 0, **PREDICTS,
            "clip_sample_range": 1.0, "timestep_spacing": "leading", **RESCALES,
        },
        lambda flags: ("ddim", {"eta": 0.0}),
        LevelRule("inverse", rises=True), kinds=("vp",), table=tables.inverse, by_time=True,
    ),
    "DPMSolverMultistepInverseScheduler": Row(
        {
            **BETAS, **ORDER, **MULTISTEP, "lower_order_final": True, "euler_at_final": False,
            **SHAPES, **FLOW, **CLIPPED, **SPACING,
        },
        tables.multistep_solver, LevelRule("dpm", rises=True), kinds=("vp",),
        table=tables.risen, words=_dpm(("dpmsolver", "dpmsolver++")),
        takes=("generator", "variance_noise", "return_dict"),
    ),
    "FlowMapEulerDiscreteScheduler": Row(
        SHIFT, "euler", LevelRule("flow", even="begins"), kinds=("flow",), by_time=True,
        takes=("r_timestep", "return_dict"),
    ),
    "MiniMaxH3Scheduler": Row(
        {"shift": 12.0}, "euler", LevelRule("flow", even="ends"), kinds=("minimax",),
    ),
    "DDPMWuerstchenScheduler": Row(
        {"scaler": 1.0, "s": 0.008}, "ddpm", LevelRule("continuous"), kinds=("cosine",),
        table=tables.wuerstchen, draws=lambda flags: True, takes=DRAWS,
    ),
}  # fmt: skip
