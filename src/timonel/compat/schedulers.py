"""diffusers' schedulers by name; what each of them does is a row of `pipelines.classes`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import tree
from ..core.noise import source
from ..core.run import Run
from ..pipelines.classes.tables import groups
from ..pipelines.sockets.scheduler import Scheduler
from ..pipelines.sockets.times import number
from .adams import IPNDMScheduler as IPNDMScheduler
from .adams import PNDMScheduler as PNDMScheduler
from .base import CLASSES as CLASSES
from .base import Compat
from .chain import DDIMParallelScheduler as DDIMParallelScheduler
from .chain import DDIMScheduler as DDIMScheduler
from .chain import DDPMParallelScheduler as DDPMParallelScheduler
from .chain import DDPMScheduler as DDPMScheduler
from .chain import UnCLIPScheduler as UnCLIPScheduler
from .cogvideox import CogVideoXDDIMScheduler as CogVideoXDDIMScheduler
from .cogvideox import CogVideoXDPMScheduler as CogVideoXDPMScheduler
from .distilled import CMStochasticIterativeScheduler as CMStochasticIterativeScheduler
from .distilled import FlowMatchLCMScheduler as FlowMatchLCMScheduler
from .distilled import LCMScheduler as LCMScheduler
from .distilled import SCMScheduler as SCMScheduler
from .distilled import TCDScheduler as TCDScheduler
from .edm import EDMEulerScheduler as EDMEulerScheduler
from .inverse import DDIMInverseScheduler as DDIMInverseScheduler
from .inverse import DPMSolverMultistepInverseScheduler as DPMSolverMultistepInverseScheduler


class EulerDiscreteScheduler(Compat):
    """`euler`."""


class EulerAncestralDiscreteScheduler(Compat):
    """`euler_ancestral`."""


class FlowMatchEulerDiscreteScheduler(Compat):
    """`euler` on a flow, or where samples explode.

    With `stochastic_sampling` it is `lcm`: denoise and add noise. With `invert_sigmas` its times
    run backwards and the network predicts x0 - noise, as Mochi's does.
    """


class FlowMapEulerDiscreteScheduler(Compat):
    """`euler` on a flow, from any time to any below it: `r_timestep`, else the next of the list."""

    def apply_shift(self, sigmas: Tensor) -> Tensor:
        """The t = s·u / (1 + (s - 1)·u) of even u, with the config's shift s."""
        s = float(self.config["shift"])
        return s * sigmas / (1 + (s - 1) * sigmas)

    def _step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        r_timestep: Any = None,
        **others: Any,
    ) -> Any:
        """Advance by one network call, to time `r_timestep`."""
        if r_timestep is not None:
            one = self._aimed(number(timestep), number(r_timestep))
            if one is not self:
                return Compat._step(one, model_output, timestep, sample, **others)
        return super()._step(model_output, timestep, sample, **others)


class MiniMaxH3Scheduler(Compat):
    """`euler` on a flow whose network gets 1 - t and predicts x0 - noise; N levels with the end."""


class DDPMWuerstchenScheduler(Compat):
    """`ddpm` on the cosine in continuous time, whose list shows its end."""

    @property
    def s(self) -> Tensor:
        """The offset of the cosine, (1,)."""
        return torch.tensor([float(self.config["s"])])

    @property
    def scaler(self) -> float:
        """The power by which times are warped; 1."""
        return float(self.config["scaler"])


class HeunDiscreteScheduler(Compat):
    """`heun`."""


class FlowMatchHeunDiscreteScheduler(Compat):
    """`heun` on a flow."""


class KDPM2DiscreteScheduler(Compat):
    """`dpm2`."""


class KDPM2AncestralDiscreteScheduler(Compat):
    """`dpm2_ancestral`."""


class Pathed(Compat):
    """The classes whose noise is torchsde's Brownian path; without it timonel's own."""

    def _path(self, generator: Any) -> tuple[Any, float, float]:
        """What the path is drawn from, None for a number of torch's, and between which sigmas."""
        raise NotImplementedError

    def _seed(self, generator: Any, batch: int) -> None:
        run, session = self.run, self.session
        seeded = run.noise is not None and run.noise != self._unseeded
        if session.request.seeds is not None or session.noise is not None or seeded:
            return
        seed, low, high = self._path(generator)
        if self._explodes and tree.installed():
            drawn = int(torch.randint(0, tree.MOST, [])) if seed is None else seed
            run.draw_from(tree.TreeNoise(drawn, low, high, run.table))
        elif seed is None:
            Scheduler._seed(self, generator, batch)
        elif run.table.stochastic:
            seeds = seed if isinstance(seed, list) else [seed + i for i in range(batch)]
            run.draw_from(source(self.settled.source, seeds, run.table))


class DPMSolverSDEScheduler(Pathed):
    """`dpmpp_sde`; `noise_sampler_seed` seeds its path."""

    def _path(self, generator: Any) -> tuple[Any, float, float]:
        sigma = self._listed.table.sigma.float()
        low, high = float(sigma[sigma > 0].min()), float(sigma.max())
        return self.config["noise_sampler_seed"], low, high


class CosineDPMSolverMultistepScheduler(Pathed):
    """`dpmpp_2m_sde` on EDM's process with times atan(sigma)·2/pi, as Stable Audio has it.

    Its path begins with the number that the generator of the first step was seeded with.
    """

    def _path(self, generator: Any) -> tuple[Any, float, float]:
        several = isinstance(generator, (list, tuple))
        seeds = [g.initial_seed() for g in generator] if several else None
        seed = seeds if several or generator is None else generator.initial_seed()
        return seed, float(self.process.sigma_min), float(self.process.sigma_max)


class DPMSolverSinglestepScheduler(Compat):
    """`dpmpp_singlestep`, or `dpm_singlestep` for "dpmsolver".

    Groups of up to `solver_order` calls; N steps are N calls. At order 1 it is `euler`, or `ddpm`
    with noise.
    """

    def _inside(self, run: Run) -> bool:
        """Whether the next call is inside a group, which goes on from the group's first sample."""
        places = groups(self._flags, self._levels.calls)
        return run.row > 0 and places[self.session.row] != "1"


class LMSDiscreteScheduler(Compat):
    """`lms` of order 4."""


class DPMSolverMultistepScheduler(Compat):
    """`dpmpp_2m` and its kin; see `tables.multistep_solver`."""


class EDMDPMSolverMultistepScheduler(Compat):
    """`DPMSolverMultistepScheduler` on EDM's process."""


class DEISMultistepScheduler(Compat):
    """`deis`, which ends at the lowest training level as diffusers' does."""


class UniPCMultistepScheduler(Compat):
    """`unipc`."""


class SASolverScheduler(Compat):
    """`sa_solver`, with noise between training times 200 and 800.

    The weights are those of the paper's code, and so is the end.
    """
