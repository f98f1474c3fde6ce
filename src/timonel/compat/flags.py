"""Which values of diffusers' flags are not done, and what to write instead. Everything else works.

| flag | refused | why |
|---|---|---|
| `algorithm_type` | "sde-dpmsolver" of order 3 | diffusers has no formula for it |
| | "noise_prediction" of SA-Solver | no timonel sampler |
| `algorithm_type`, `solver_type` | words that diffusers' constructor refuses | they are of other classes |
| `solver_order` | above 3 | there is no such formula |
| `lower_order_final` | False in UniPC to sigma = 0 | diffusers' result is NaN |
| `predict_x0`, `solver_p` | all but the defaults | UniPC predicts x0 |
| `rescale_betas_zero_snr` | True with epsilon, where the class steps from alpha = 0 | epsilon says nothing there |
| `tau_func` | a function | no function can be saved in a config |

A flag of the class that changes nothing, in diffusers' class as here, is taken. The logger says so
where the caller writes it, in `from_config` as in the constructor; where it comes with a config it
is kept without a word. So is a word of another class, which means this class's default (`TAKEN`,
`SUBSTITUTES`). A key that the class does not have is refused where it changes nothing; but a
constructor may describe a model by betas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Flag(NamedTuple):
    """Which values are refused, and what to do."""

    asks: Callable[[Any], bool]
    remedy: str


def _but(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value not in values


CHOICES: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential", "linear"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
    "sigma_schedule": ("karras", "exponential"),
    "algorithm_type": (
        "dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis", "data_prediction",
        "noise_prediction",
    ),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
}  # fmt: skip
ANY_DPM = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
#: words of other classes that a config may carry; diffusers takes the default of the class for them
SUBSTITUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "DPMSolverMultistepScheduler": {
        "algorithm_type": ("deis", "data_prediction", "noise_prediction"),
        "solver_type": ("logrho", "bh1", "bh2"),
    },
    "DPMSolverSinglestepScheduler": {
        "algorithm_type": ("deis", "data_prediction", "noise_prediction"),
        "solver_type": ("logrho", "bh1", "bh2"),
    },
    "EDMDPMSolverMultistepScheduler": {
        "algorithm_type": ("deis", "data_prediction", "noise_prediction"),
        "solver_type": ("logrho", "bh1", "bh2"),
    },
    "DEISMultistepScheduler": {
        "algorithm_type": (*ANY_DPM, "data_prediction", "noise_prediction"),
        "solver_type": ("midpoint", "heun", "bh1", "bh2"),
    },
    "UniPCMultistepScheduler": {"solver_type": ("midpoint", "heun", "logrho")},
    "SASolverScheduler": {"algorithm_type": (*ANY_DPM, "deis")},
}  # fmt: skip

#: those that diffusers' constructors take too
TAKEN: dict[str, dict[str, tuple[str, ...]]] = {
    **{
        name: {"algorithm_type": ("deis",), "solver_type": ("logrho", "bh1", "bh2")}
        for name in SUBSTITUTES
        if "DPMSolver" in name
    },
    "DEISMultistepScheduler": {
        "algorithm_type": ("dpmsolver", "dpmsolver++"),
        "solver_type": ("midpoint", "heun", "bh1", "bh2"),
    },
    "UniPCMultistepScheduler": SUBSTITUTES["UniPCMultistepScheduler"],
}
#: variances of DDPM's noise: of the posterior, which a table has anyhow, or of the forward step
SMALL, LARGE = ("fixed_small", "fixed_small_log"), ("fixed_large", "fixed_large_log")
#: variances that a network predicts beside its noise; other classes than DDPM's leave them unread,
#: as diffusers' do
LEARNED = ("learned", "learned_range")
OTHER = "use an algorithm_type of this class"
#: (class, flag) or ("", flag) for all classes
REFUSED: dict[tuple[str, str], Flag] = {
    ("", "solver_p"): Flag(
        _but(None), "pass solver_p=None; the order of the predictor is solver_order"
    ),
    ("", "predict_x0"): Flag(
        _but(True), "pass predict_x0=True, which is the better of the two for guided models"
    ),
    ("", "tau_func"): Flag(
        _but(None),
        "use timonel.Scheduler with sampler=Sampler('sa_solver', options={'eta': …, 'start': …,"
        " 'stop': …})",
    ),
    ("SASolverScheduler", "algorithm_type"): Flag(
        _but("data_prediction"), "pass algorithm_type='data_prediction'"
    ),
    ("DEISMultistepScheduler", "algorithm_type"): Flag(
        _but("deis"), "pass algorithm_type='deis', or use DPMSolverMultistepScheduler"
    ),
    ("DEISMultistepScheduler", "solver_type"): Flag(_but("logrho"), "pass solver_type='logrho'"),
    ("UniPCMultistepScheduler", "solver_type"): Flag(
        _but("bh1", "bh2"), "pass solver_type='bh1' or 'bh2'"
    ),
    ("DPMSolverMultistepScheduler", "solver_type"): Flag(
        _but("midpoint", "heun"), "pass 'midpoint' or 'heun'"
    ),
    ("DPMSolverSinglestepScheduler", "solver_type"): Flag(
        _but("midpoint", "heun"), "pass 'midpoint' or 'heun'"
    ),
    ("EDMDPMSolverMultistepScheduler", "solver_type"): Flag(
        _but("midpoint", "heun"), "pass 'midpoint' or 'heun'"
    ),
    ("DPMSolverMultistepScheduler", "algorithm_type"): Flag(
        _but(*ANY_DPM), "pass 'dpmsolver++' or 'sde-dpmsolver++'"
    ),
    ("DPMSolverSinglestepScheduler", "algorithm_type"): Flag(
        _but("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
        "pass 'dpmsolver++' or 'sde-dpmsolver++'",
    ),
    ("EDMDPMSolverMultistepScheduler", "algorithm_type"): Flag(
        _but("dpmsolver++", "sde-dpmsolver++"), "pass 'dpmsolver++' or 'sde-dpmsolver++'"
    ),
    ("", "solver_order"): Flag(_but(1, 2, 3), "pass solver_order=1, 2 or 3"),
}
DISTILLED = "its levels are those of the distillation, original_inference_steps of them"
#: flags that diffusers' class has and never reads, and why; the logger says it
INERT: dict[tuple[str, str], str] = {
    ("LCMScheduler", "timestep_spacing"): DISTILLED,
    ("LCMScheduler", "steps_offset"): DISTILLED,
    ("TCDScheduler", "timestep_spacing"): DISTILLED,
    ("TCDScheduler", "steps_offset"): DISTILLED,
    ("TCDScheduler", "timestep_scaling"): "its step has no boundary scaling",
    **{
        ("TCDScheduler", key): "diffusers' class never reads it; its predictions are not clipped"
        for key in (
            "clip_sample",
            "clip_sample_range",
            "thresholding",
            "dynamic_thresholding_ratio",
            "sample_max_value",
        )
    },
}
#: flags whose effect is in the noise or in pipelines, or that choose between two ways which agree
#: at order 1
UNSEEN = (
    "noise_sampler_seed",
    "set_alpha_to_one",
    "euler_at_final",  # the step to sigma = 0 is Euler's anyhow, as it asks
    "variance_type",
    "tau_func",
    "predict_x0",
    "solver_p",
    "algorithm_type",
)
#: what would act instead of a flag that another flag or the model keeps from acting
REMEDIES: dict[str, str] = {
    **dict.fromkeys(
        ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
        "it is read where the shift comes from the picture's size; pass use_dynamic_shifting=True"
        " as well",
    ),
    **dict.fromkeys(
        ("shift", "flow_shift"),
        "the shift comes from the picture's size; pass use_dynamic_shifting=False as well",
    ),
    **dict.fromkeys(
        ("beta_start", "beta_end"),
        "this beta_schedule has no ends; pass beta_schedule='linear' as well",
    ),
    "clip_sample_range": "pass clip_sample=True as well",
    "clip_sample": "thresholding=True clips already; pass thresholding=False as well",
    "sample_max_value": "pass thresholding=True as well; it acts above 1",
    "dynamic_thresholding_ratio": (
        "it is of a quantile between 1 and sample_max_value; pass thresholding=True and"
        " sample_max_value=2.0 as well"
    ),
    "steps_offset": "it moves the list of one spacing; pass timestep_spacing='leading' as well",
    "timestep_type": (
        "continuous times are those of v models; pass prediction_type='v_prediction' as well"
    ),
    "rho": "it is of Karras' sigmas; pass sigma_schedule='karras' as well",
    "solver_type": "it is of steps of order 2; pass solver_order=2 as well",
    "lower_order_final": "the order cannot fall from 1; pass solver_order=2 as well",
    "use_flow_sigmas": "the model's process is a flow where prediction_type='flow_prediction'",
}
#: what `step` passes on to the run: the noise of an inversion, and the levels of tokens
STEP_PASSED = ("variance_noise", "per_token_timesteps")
#: what diffusers' steps take besides, at the values that change nothing, as None does
STEP_DEFAULTS: dict[str, Any] = {
    "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0, "order": 4,
    "pred_original_sample": None,
}  # fmt: skip
#: keys at the values that ask for what any class does that lacks them
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(
        (
            "clip_sample", "thresholding", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas", "use_dynamic_shifting", "euler_at_final", "stochastic_sampling",
            "invert_sigmas",
        ),
        False,
    ),
    **dict.fromkeys(("variance_type", "noise_sampler_seed", "shift_terminal", "solver_p",
    "tau_func"), None),
    "steps_offset": 0, "set_alpha_to_one": True, "final_sigmas_type": "zero",
    "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf, "disable_corrector": [], "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "dynamic_thresholding_ratio": 0.995,
}  # fmt: skip
