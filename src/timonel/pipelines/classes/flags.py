"""Which values of diffusers' flags are not done, and what to write instead. Everything else works.

| flag | refused | why |
|---|---|---|
| `algorithm_type` | "sde-dpmsolver" of order 3 | diffusers has no formula for it |
| | "noise_prediction" of SA-Solver | no timonel sampler |
| `algorithm_type`, `solver_type` | words that diffusers refuses | they are of other classes |
| `solver_order` | above 3 | there is no such formula |
| `lower_order_final` | False in UniPC to sigma = 0 | diffusers' result is NaN |
| `predict_x0`, `solver_p` | all but the defaults | UniPC predicts x0 |
| `rescale_betas_zero_snr` | True with epsilon, where alpha = 0 | epsilon says nothing there |
| `scale_factors` | a list | a run keeps the size of its sample |
| `tau_func` | a function | no function can be saved in a config |

A flag of the class that changes nothing, in diffusers' class as here, is taken. The logger says so
where the caller writes it, in `from_config` as in the constructor; where it comes with a config it
is kept without a word. So is a word of another class, which means this class's default (`Words`).
A key that the class does not have is refused where it changes nothing; but a constructor may
describe a model by betas.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

#: the words of every class for a flag that takes one of several
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


class Words(NamedTuple):
    """What a class does with the words of a flag.

    Args:
        does: those that work.
        remedy: what to write instead of another one; "" only says the nearest word.
        lacks: words of diffusers' class that are refused here.
        taken: words of other classes that diffusers' constructor takes for the default. A config
            may carry any word of another class.
    """

    does: tuple[str, ...]
    remedy: str
    lacks: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()

    def others(self, key: str) -> tuple[str, ...]:
        """The words of other classes, for which diffusers takes the default of this class."""
        return tuple(w for w in CHOICES.get(key, ()) if w not in (*self.does, *self.lacks))


#: flags of which one value works, and what to write for another
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "solver_p": ((None,), "pass solver_p=None; the order of the predictor is solver_order"),
    "predict_x0": (
        (True,), "pass predict_x0=True, which is the better of the two for guided models"
    ),
    "tau_func": (
        (None,),
        "use timonel.Scheduler with sampler=Sampler('sa_solver', options={'eta': …, 'start': …,"
        " 'stop': …})",
    ),
    "scaler": ((1.0,), "leave it out; no released model has another one"),
    "s": ((0.008,), "leave it out; no released model has another one"),
    "scale_factors": (
        (None,), "a run keeps the size of its sample; enlarge it between two runs of fewer steps"
    ),
    "solver_order": ((1, 2, 3), "pass solver_order=1, 2 or 3"),
}  # fmt: skip
#: flags whose effect is in the noise or in pipelines, or that choose between two ways which agree
#: at order 1; the step to sigma = 0 is Euler's anyhow, as `euler_at_final` asks
UNSEEN = (
    "noise_sampler_seed", "set_alpha_to_one", "euler_at_final", "variance_type", "tau_func",
    "predict_x0", "solver_p", "algorithm_type",
)  # fmt: skip
_SIZES = "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"
#: what would act instead of a flag that another flag or the model keeps from acting
REMEDIES: dict[str, str] = {
    **dict.fromkeys(
        _SIZES,
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
#: keys at the values that ask for what any class does that lacks them
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(
        (
            "clip_sample", "thresholding", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "use_lu_lambdas", "use_dynamic_shifting", "euler_at_final",
            "stochastic_sampling", "invert_sigmas",
        ),
        False,
    ),
    **dict.fromkeys(
        ("variance_type", "noise_sampler_seed", "shift_terminal", "solver_p", "tau_func"), None
    ),
    "steps_offset": 0, "set_alpha_to_one": True, "final_sigmas_type": "zero",
    "interpolation_type": "linear", "lambda_min_clipped": -math.inf, "disable_corrector": [],
    "clip_sample_range": 1.0, "sample_max_value": 1.0, "dynamic_thresholding_ratio": 0.995,
}  # fmt: skip


def asks_nothing(key: str, value: Any) -> bool:
    """Whether a key of another class has the value that changes nothing, e.g. clip_sample=False."""
    if key not in NEUTRAL:
        return False
    neutral = NEUTRAL[key]
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
