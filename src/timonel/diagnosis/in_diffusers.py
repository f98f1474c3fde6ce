"""What one writes in diffusers for a sampler: which class, which flags, which list."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

from ..core.sampler import Sampler
from ..errors import UnknownName
from ..pipelines.family.facts import Facts, Loop

SDE = {"algorithm_type": "sde-dpmsolver++"}
SLOPES = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
#: solver -> class and flags
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": False}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm_multistep": (MULTISTEP, SLOPES),
    "dpm_solver": (SINGLESTEP, {**SLOPES, "solver_order": 3}),
    "dpm_singlestep": (SINGLESTEP, SLOPES),
    "dpmpp_2s": (SINGLESTEP, {}),
    "dpmpp_3s": (SINGLESTEP, {"solver_order": 3}),
    "dpmpp_singlestep": (SINGLESTEP, {}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "dpmpp_2m": (MULTISTEP, {}),
    "dpmpp_2m_sde": (MULTISTEP, SDE),
    "dpmpp_3m": (MULTISTEP, {"solver_order": 3}),
    "dpmpp_3m_sde": (MULTISTEP, {**SDE, "solver_order": 3}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
#: solver -> class for flow models, where it is another
FLOW = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "lcm": "FlowMatchLCMScheduler",
}
#: the same for EDM models
EDM = {"euler": "EDMEulerScheduler", "dpmpp_2m": "EDMDPMSolverMultistepScheduler"}
FLAGS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta_sigma": {"use_beta_sigmas": True},
    "lam": {"use_lu_lambdas": True},
    **{name: {"timestep_spacing": name} for name in ("leading", "linspace", "trailing")},
    "normal": {"timestep_spacing": "linspace"},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "lcm": {},
    "flow": {},
}
#: grid -> which argument of a pipeline's call, and which list of AysSchedules
LISTS = {
    "ays_sd15": ("timesteps", "StableDiffusionTimesteps"),
    "ays_sdxl": ("timesteps", "StableDiffusionXLTimesteps"),
    "ays_svd": ("sigmas", "StableDiffusionVideoSigmas"),
}


def arguments(cls: type) -> Mapping[str, inspect.Parameter]:
    """What a scheduler's class can be made with."""
    return inspect.signature(cls).parameters


@dataclass(frozen=True)
class Peer:
    """A scheduler of diffusers as one writes it.

    Args:
        cls: the class; None where diffusers has no such sampler.
        flags: what its `from_config` gets.
        lists: what a pipeline's call gets in place of a number of steps.
        listed: the list of AysSchedules that this is.
        lacks: why there is no class.
    """

    cls: type | None
    flags: Mapping[str, Any] = field(default_factory=dict)
    lists: Mapping[str, Any] = field(default_factory=dict)
    listed: str = ""
    lacks: str = ""

    @property
    def declared(self) -> set[str]:
        """The arguments that the class has."""
        assert self.cls is not None
        return set(arguments(self.cls))

    def build(self, config: Mapping[str, Any], leave: str = "") -> Any:
        """The scheduler, with the flag `leave` left out."""
        assert self.cls is not None
        flags = {k: v for k, v in self.flags.items() if k != leave}
        return self.cls.from_config(dict(config), **flags)  # type: ignore[attr-defined]

    @property
    def code(self) -> str:
        """The line of Python."""
        assert self.cls is not None
        flags = "".join(f", {k}={v!r}" for k, v in self.flags.items())
        line = f"{self.cls.__name__}.from_config(pipe.scheduler.config{flags})"
        if not self.listed:
            return line
        return f"{line} and pipe(…, {next(iter(self.lists))}=AysSchedules[{self.listed!r}])"


def shipped(facts: Facts) -> Peer:
    """The scheduler that the model comes with."""
    cls = getattr(diffusers, facts.scheduler_class, None)
    if isinstance(cls, type):
        return Peer(cls)
    missing = (
        f"diffusers has no class {facts.scheduler_class!r}"
        if facts.scheduler_class
        else "no scheduler class is named"
    )
    return Peer(None, lacks=missing)


def written(facts: Facts, loop: Loop, name: str, flags: Mapping[str, Any]) -> Peer:
    """What one writes for a sampler.

    Args:
        facts: of the model.
        loop: of its pipeline.
        name: a sampler, or a class of diffusers.
        flags: of `from_config` besides.

    Raises:
        UnknownName: a class that diffusers does not have.
    """
    if name.endswith("Scheduler"):
        return Peer(_class(name), dict(flags))
    sampler, kind = Sampler(name), facts.process.kind
    if sampler.name not in CLASSES:
        return Peer(None, lacks=f"diffusers has no scheduler for {sampler.name!r}")
    name, options = _named(facts, sampler)
    cls, grid = getattr(diffusers, name), sampler.grid
    if grid == "ays":
        grid = {"vp": "ays_sdxl", "edm": "ays_svd"}.get(kind, grid)
    if grid in LISTS:
        return _listed(facts, loop, cls, {**options, **flags}, *LISTS[grid])
    if grid is not None and grid not in FLAGS:
        return Peer(None, lacks=f"diffusers has no grid {grid!r}")
    spaced = dict(FLAGS.get(grid or "", {}))
    if kind == "flow" and "timestep_spacing" not in arguments(cls):
        spaced.pop("timestep_spacing", None)  # nobody writes it for a scheduler of flows
    return Peer(cls, {**options, **_to_flow(cls, kind), **spaced, **flags})


def _class(name: str) -> type:
    cls = getattr(diffusers, name, None)
    if isinstance(cls, type):
        return cls
    known = {name for name, _ in CLASSES.values()} | set(FLOW.values())
    raise UnknownName("scheduler of diffusers", name, known)


def _named(facts: Facts, sampler: Sampler) -> tuple[str, dict[str, Any]]:
    """The class for a sampler on this model's process, and its flags."""
    name, options = CLASSES[sampler.name]
    if facts.process.kind == "flow":
        return FLOW.get(sampler.name, name), options
    return EDM.get(sampler.name, name) if facts.scheduler_class.startswith("EDM") else name, options


def _listed(
    facts: Facts, loop: Loop, cls: type, flags: Mapping[str, Any], argument: str, name: str
) -> Peer:
    """A class on a list of AysSchedules, which the pipeline's call has to take."""
    from diffusers.schedulers import AysSchedules

    if argument in loop.lists:
        return Peer(cls, flags, {argument: list(AysSchedules[name])}, name)
    lacks = f"{facts.pipeline} takes no {argument}=, so AysSchedules cannot be given to it"
    return Peer(None, lacks=lacks)


def _to_flow(cls: type, kind: str) -> dict[str, Any]:
    """The flags that a class with both kinds of process needs to take a model for a flow."""
    if kind != "flow" or "use_flow_sigmas" not in arguments(cls):
        return {}
    return {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
