"""diffusers' schedulers by name; what each of them does is a row of `pipelines.classes`."""

from __future__ import annotations

from typing import Any

import torch

from ..core import tree
from ..core.noise import source
from ..core.run import Run
from ..pipelines.classes.tables import groups
from ..pipelines.sockets.scheduler import Scheduler
from .adams import IPNDMScheduler as IPNDMScheduler
from .adams import PNDMScheduler as PNDMScheduler
from .base import CLASSES as CLASSES
from .base import Compat
from .chain import DDIMScheduler as DDIMScheduler
from .chain import DDPMScheduler as DDPMScheduler
from .distilled import LCMScheduler as LCMScheduler
from .distilled import TCDScheduler as TCDScheduler
from .edm import EDMEulerScheduler as EDMEulerScheduler


class EulerDiscreteScheduler(Compat):
    """`euler`."""


class EulerAncestralDiscreteScheduler(Compat):
    """`euler_ancestral`."""


class FlowMatchEulerDiscreteScheduler(Compat):
    """`euler` on a flow, or where samples explode.

    With `stochastic_sampling` it is `lcm`: denoise and add noise. With `invert_sigmas` its times
    run backwards and the network predicts x0 - noise, as Mochi's does.
    """


class HeunDiscreteScheduler(Compat):
    """`heun`."""


class FlowMatchHeunDiscreteScheduler(Compat):
    """`heun` on a flow."""


class KDPM2DiscreteScheduler(Compat):
    """`dpm2`."""


class KDPM2AncestralDiscreteScheduler(Compat):
    """`dpm2_ancestral`."""


class DPMSolverSDEScheduler(Compat):
    """`dpmpp_sde` on the Brownian path of torchsde; `noise_sampler_seed` seeds it."""

    def _seed(self, generator: Any, batch: int) -> None:
        """The path of `noise_sampler_seed`, or of a number that torch's own generator draws.

        Where torchsde is not installed, timonel's own Brownian noise.
        """
        run, session, seed = self.run, self.session, self.config["noise_sampler_seed"]
        seeded = run.noise is not None and run.noise != self._unseeded
        if session.request.seeds is not None or session.noise is not None or seeded:
            return
        if self._explodes and tree.installed():
            sigma = self._listed.table.sigma.float()
            drawn = int(torch.randint(0, tree.MOST, [])) if seed is None else seed
            low, high = float(sigma[sigma > 0].min()), float(sigma.max())
            run.draw_from(tree.TreeNoise(drawn, low, high, run.table))
        elif seed is None:
            Scheduler._seed(self, generator, batch)
        elif run.table.stochastic:
            seeds = [seed + i for i in range(batch)]
            run.draw_from(source(self.settled.source, seeds, run.table))


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
