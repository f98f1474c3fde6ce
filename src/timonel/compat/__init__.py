"""diffusers' scheduler and callback names on timonel: change one import line.

    from timonel.compat import DPMSolverMultistepScheduler as Scheduler
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)

Same arguments, same levels and, where timonel computes the same thing, the same latents. What
diffusers ignores without a word works here, or is said by the logger, or is refused with what to
write instead; see `pipelines/classes/flags.py`. The noise of stochastic samplers is drawn as
diffusers draws it, from the generator of `step`, and a run that is rewound, branched or saved has
it again without that generator (`draws.py`). Samples are diffusers' too, x0 + sigma·noise of the
Euler family and EDM, unit variance elsewhere (`coordinates.py`), and a scheduler without
`set_timesteps` visits all training levels. What differs from diffusers on purpose:

- a class is a subclass of diffusers' class of its name, and shares nothing with it but the name:
  see `kin.py`;
- a key of another class that asks for nothing, as `clip_sample=False`, passes; what would change
  something does not;
- the public members of diffusers' classes are there, but for parts of its steps; `members.py` lists
  those and why;
- `set_shift` also writes the shift into the config, so a helm or a saved pipeline has it;
- DDIM and PNDM on trailing and linspace times step to the next entry of their own list;
- every class takes `timesteps` and `sigmas`; on Stable Video Diffusion every class tells
  0.25·log(sigma);
- exponential and beta sigmas tell the nearest whole time, where diffusers' DPM family rounds down;
- `final_sigmas_type="sigma_min"` on a list that ends there makes one call less, unless that call
  corrects;
- a level that rounding to training times repeats is visited once, and `num_inference_steps` says
  how many are left;
- one step of `leading` begins at the noisiest level, where diffusers' gives the noise back;
- PNDM converts v-predictions before it combines them; DEIS and SA-Solver on flows end at sigma = 0.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_CALLBACKS = (
    "IPAdapterScaleCutoffCallback", "MultiPipelineCallbacks", "PipelineCallback",
    "SD3CFGCutoffCallback", "SDCFGCutoffCallback", "SDXLCFGCutoffCallback",
    "SDXLControlnetCFGCutoffCallback",
)  # fmt: skip
_SCHEDULERS = (
    "CMStochasticIterativeScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler",
    "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "DDPMWuerstchenScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "HeunDiscreteScheduler",
    "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "MiniMaxH3Scheduler", "PNDMScheduler", "SASolverScheduler",
    "SCMScheduler", "TCDScheduler", "UnCLIPScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
# diffusers asks the module of a saved scheduler for SchedulerMixin, to know how to load it
_DIFFUSERS = ("AysSchedules", "SchedulerMixin")
_WHERE = {**dict.fromkeys(_CALLBACKS, "callbacks"), **dict.fromkeys(_SCHEDULERS, "schedulers")}
__all__ = ["AysSchedules", *sorted(_WHERE)]

if TYPE_CHECKING:
    from .callbacks import IPAdapterScaleCutoffCallback as IPAdapterScaleCutoffCallback
    from .callbacks import MultiPipelineCallbacks as MultiPipelineCallbacks
    from .callbacks import PipelineCallback as PipelineCallback
    from .callbacks import SD3CFGCutoffCallback as SD3CFGCutoffCallback
    from .callbacks import SDCFGCutoffCallback as SDCFGCutoffCallback
    from .callbacks import SDXLCFGCutoffCallback as SDXLCFGCutoffCallback
    from .callbacks import SDXLControlnetCFGCutoffCallback as SDXLControlnetCFGCutoffCallback
    from .schedulers import CMStochasticIterativeScheduler as CMStochasticIterativeScheduler
    from .schedulers import CogVideoXDDIMScheduler as CogVideoXDDIMScheduler
    from .schedulers import CogVideoXDPMScheduler as CogVideoXDPMScheduler
    from .schedulers import CosineDPMSolverMultistepScheduler as CosineDPMSolverMultistepScheduler
    from .schedulers import DDIMInverseScheduler as DDIMInverseScheduler
    from .schedulers import DDIMParallelScheduler as DDIMParallelScheduler
    from .schedulers import DDIMScheduler as DDIMScheduler
    from .schedulers import DDPMParallelScheduler as DDPMParallelScheduler
    from .schedulers import DDPMScheduler as DDPMScheduler
    from .schedulers import DDPMWuerstchenScheduler as DDPMWuerstchenScheduler
    from .schedulers import DEISMultistepScheduler as DEISMultistepScheduler
    from .schedulers import DPMSolverMultistepInverseScheduler as DPMSolverMultistepInverseScheduler
    from .schedulers import DPMSolverMultistepScheduler as DPMSolverMultistepScheduler
    from .schedulers import DPMSolverSDEScheduler as DPMSolverSDEScheduler
    from .schedulers import DPMSolverSinglestepScheduler as DPMSolverSinglestepScheduler
    from .schedulers import EDMDPMSolverMultistepScheduler as EDMDPMSolverMultistepScheduler
    from .schedulers import EDMEulerScheduler as EDMEulerScheduler
    from .schedulers import EulerAncestralDiscreteScheduler as EulerAncestralDiscreteScheduler
    from .schedulers import EulerDiscreteScheduler as EulerDiscreteScheduler
    from .schedulers import FlowMapEulerDiscreteScheduler as FlowMapEulerDiscreteScheduler
    from .schedulers import FlowMatchEulerDiscreteScheduler as FlowMatchEulerDiscreteScheduler
    from .schedulers import FlowMatchHeunDiscreteScheduler as FlowMatchHeunDiscreteScheduler
    from .schedulers import FlowMatchLCMScheduler as FlowMatchLCMScheduler
    from .schedulers import HeunDiscreteScheduler as HeunDiscreteScheduler
    from .schedulers import IPNDMScheduler as IPNDMScheduler
    from .schedulers import KDPM2AncestralDiscreteScheduler as KDPM2AncestralDiscreteScheduler
    from .schedulers import KDPM2DiscreteScheduler as KDPM2DiscreteScheduler
    from .schedulers import LCMScheduler as LCMScheduler
    from .schedulers import LMSDiscreteScheduler as LMSDiscreteScheduler
    from .schedulers import MiniMaxH3Scheduler as MiniMaxH3Scheduler
    from .schedulers import PNDMScheduler as PNDMScheduler
    from .schedulers import SASolverScheduler as SASolverScheduler
    from .schedulers import SCMScheduler as SCMScheduler
    from .schedulers import TCDScheduler as TCDScheduler
    from .schedulers import UnCLIPScheduler as UnCLIPScheduler
    from .schedulers import UniPCMultistepScheduler as UniPCMultistepScheduler


def __getattr__(name: str) -> Any:
    if name in _DIFFUSERS:
        value = getattr(importlib.import_module("diffusers.schedulers.scheduling_utils"), name)
    elif name in _WHERE:
        value = getattr(importlib.import_module(f"timonel.compat.{_WHERE[name]}"), name)
    else:
        raise AttributeError(f"module 'timonel.compat' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
