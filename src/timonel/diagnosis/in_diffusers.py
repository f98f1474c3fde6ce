"""What one writes in diffusers for a sampler: which class, which flags, which list."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """A scheduler of diffusers as one writes it. `cls` None: diffusers has no such sampler, for the
    reason `lacks`.
    """

    cls: type | None
    flags: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
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
        listed = (
            f" and pipe(…, {next(iter(self.given))}=AysSchedules[{self.listed!r}])"
            if self.listed
            else ""
        )
        return f"{self.cls.__name__}.from_config(pipe.scheduler.config{flags}){listed}"


def own(facts: Facts) -> Peer:
    """The scheduler that the model comes with."""
    import diffusers

    cls = getattr(diffusers, facts.own, None)
    if isinstance(cls, type):
        return Peer(cls)
    return Peer(
        None,
        lacks=(
            f"diffusers has no class {facts.own!r}" if facts.own else "no scheduler class is named"
        ),
    )


def written(facts: Facts, loop: Loop, asked: str, flags: Mapping[str, Any]) -> Peer:
    """What one writes for the sampler or diffusers class `asked`, with `flags` of from_config
    besides.
    """
    import diffusers

    if asked.endswith("Scheduler"):
        cls = getattr(diffusers, asked, None)
        if not isinstance(cls, type):
            known = {name for name, _ in CLASSES.values()} | set(FLOW.values())
            raise UnknownName("scheduler of diffusers", asked, known)
        return Peer(cls, dict(flags))
    sampler = Sampler(asked)
    kind, grid = facts.process.kind, sampler.grid
    if sampler.name not in CLASSES:
        return Peer(None, lacks=f"diffusers has no scheduler for {sampler.name!r}")
    name, options = CLASSES[sampler.name]
    if kind == "flow":
        name = FLOW.get(sampler.name, name)
    elif facts.own.startswith("EDM") and sampler.name in ("euler", "dpmpp_2m"):
        name = "EDMEulerScheduler" if sampler.name == "euler" else "EDMDPMSolverMultistepScheduler"
    cls = getattr(diffusers, name)
    if grid == "ays":
        grid = {"vp": "ays_sdxl", "edm": "ays_svd"}.get(kind, grid)
    if grid in LISTS:
        argument, listed = LISTS[grid]
        from diffusers.schedulers import AysSchedules

        if argument not in loop.lists:
            return Peer(
                None,
                lacks=(
                    f"{facts.pipeline} takes no {argument}=, so AysSchedules cannot be given to it"
                ),
            )
        return Peer(cls, {**options, **flags}, {argument: list(AysSchedules[listed])}, listed)
    if grid is not None and grid not in FLAGS:
        return Peer(None, lacks=f"diffusers has no grid {grid!r}")
    spaced = dict(FLAGS.get(grid or "", {}))
    if kind == "flow" and "timestep_spacing" not in arguments(cls):
        spaced.pop("timestep_spacing", None)  # nobody writes it for a scheduler of flows
    return Peer(cls, {**options, **_to_flow(cls, kind), **spaced, **flags})


def _to_flow(cls: type, kind: str) -> dict[str, Any]:
    """The flags without which a class with both kinds of process would not take a model for a flow."""
    takes = "use_flow_sigmas" in arguments(cls)
    return (
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        if kind == "flow" and takes
        else {}
    )
