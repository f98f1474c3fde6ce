"""diffusers' schedulers by name, on timonel's samplers."""

# ruff: noqa: RUF012 (the class attributes are declared in `Compat`, as ClassVar)

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..core import solvers, tree
from ..core.grids import Grid
from ..core.noise import source
from ..core.run import Run
from ..core.sampler import Sampler
from ..core.solvers.unipc import unipc
from ..core.table import Table
from ..errors import ArgumentError
from ..pipelines.sockets.scheduler import Scheduler
from .adams import IPNDMScheduler as IPNDMScheduler
from .adams import PNDMScheduler as PNDMScheduler
from .base import Compat
from .chain import DDIMScheduler as DDIMScheduler
from .chain import DDPMScheduler as DDPMScheduler
from .defaults import (
    BETAS,
    CHURN,
    DYNAMIC,
    EDM,
    FLOW,
    NARROW,
    SHAPES,
    SPACING,
    THRESHOLD,
)  # fmt: skip
from .distilled import LCMScheduler as LCMScheduler
from .distilled import TCDScheduler as TCDScheduler
from .edm import EDMEulerScheduler as EDMEulerScheduler
from .levels import Asked
from .rows import FEW, falling, groups, lowered

logger = logging.getLogger("timonel")
Flags = Mapping[str, Any]
Named = tuple[str, dict[str, Any]]


# -- one slope -------------------------------------------------------------------------------------
class EulerDiscreteScheduler(Compat):
    """`euler`."""

    unit = False
    one_list = True
    takes = (*CHURN, "generator", "return_dict")
    defaults = {
        **BETAS, "prediction_type": "epsilon", "interpolation_type": "linear", **SHAPES,
        "sigma_min": None,
        "sigma_max": None, "timestep_spacing": "linspace", "timestep_type": "discrete",
        "steps_offset": 0,
        "rescale_betas_zero_snr": False, "final_sigmas_type": "zero",
    }  # fmt: skip
    solver = "euler"


class EulerAncestralDiscreteScheduler(Compat):
    """`euler_ancestral`."""

    unit = False
    takes = ("generator", "return_dict")
    defaults = {**BETAS, "prediction_type": "epsilon", **SPACING, "rescale_betas_zero_snr": False}
    solver = "euler_ancestral"

    def _draws(self) -> bool:
        return True


class FlowMatchEulerDiscreteScheduler(Compat):
    """`euler` on a flow, or where samples explode; `lcm`, denoise and add noise, with
    `stochastic_sampling`.

    With `invert_sigmas` its times run backwards and the network predicts x0 - noise, as Mochi's
    does.
    """

    family, kinds = "flow", ("flow", "ve")
    takes = (*CHURN, "generator", "per_token_timesteps", "return_dict")
    draws_in = torch.float32
    defaults = {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False,
        "shift_terminal": None,
        **SHAPES, "time_shift_type": "exponential", "stochastic_sampling": False,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        return ("lcm" if flags["stochastic_sampling"] else "euler"), {}

    def _draws(self) -> bool:
        return bool(self.config["stochastic_sampling"])


# -- two calls a step ------------------------------------------------------------------------------
class HeunDiscreteScheduler(Compat):
    """`heun`."""

    calls = 2
    one_list = True
    unit = False
    defaults = {
        **NARROW, "prediction_type": "epsilon", **SHAPES, "clip_sample": False,
        "clip_sample_range": 1.0, **SPACING,
    }  # fmt: skip
    solver = "heun"


class FlowMatchHeunDiscreteScheduler(Compat):
    """`heun` on a flow."""

    calls = 2
    family, kinds = "flow", ("flow",)
    takes = (*CHURN, "generator", "return_dict")
    defaults = {"num_train_timesteps": 1000, "shift": 1.0}
    solver = "heun"


class DPM2(Compat):
    """What both classes have in common."""

    calls = 2
    unit, fixed = False, {"rounds": True}


class KDPM2DiscreteScheduler(DPM2):
    """`dpm2`."""

    defaults = {**NARROW, **SHAPES, "prediction_type": "epsilon", **SPACING}
    solver = "dpm2"


class KDPM2AncestralDiscreteScheduler(DPM2):
    """`dpm2_ancestral`."""

    takes = ("generator", "return_dict")
    defaults = dict(KDPM2DiscreteScheduler.defaults)
    solver = "dpm2_ancestral"


class DPMSolverSDEScheduler(Compat):
    """`dpmpp_sde` on the Brownian path of torchsde; `noise_sampler_seed` seeds it."""

    calls = 2
    unit, _source = False, "brownian"
    takes = ("return_dict", "s_noise")
    defaults = {
        **NARROW,
        "prediction_type": "epsilon",
        **SHAPES,
        "noise_sampler_seed": None,
        **SPACING,
    }
    solver = "dpmpp_sde"

    def _seed(self, generator: Any, batch: int) -> None:
        """The path of `noise_sampler_seed`, or of a number that torch's own generator draws, as in
        diffusers.

        Where torchsde is not installed, timonel's own Brownian noise.
        """
        run, session, chosen = self.run, self.session, self.config["noise_sampler_seed"]
        if (
            session.request.seeds is not None
            or session.noise is not None
            or not (run.noise is None or run.noise == self._unseeded)
        ):
            return
        if self._explodes and tree.installed():
            sigma = self._listed.table.sigma.float()
            drawn = int(torch.randint(0, tree.MOST, [])) if chosen is None else chosen
            low, high = float(sigma[sigma > 0].min()), float(sigma.max())
            run.draw_from(tree.TreeNoise(drawn, low, high, run.table))
        elif chosen is None:
            Scheduler._seed(self, generator, batch)
        elif run.table.stochastic:
            each = [chosen + i for i in range(batch)]
            run.draw_from(source(self.settled.source, each, run.table))


class DPMSolverSinglestepScheduler(Compat):
    """`dpmpp_singlestep`, or `dpm_singlestep` for "dpmsolver": groups of up to `solver_order`
    calls, N steps N calls.

    At order 1 it is `euler`, or `ddpm` with noise.
    """

    family, draws_in, one_list = "dpm", "both", True
    takes = ("generator", "return_dict")
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": False, **SHAPES, **FLOW,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf, "variance_type": None, **DYNAMIC,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        order, algorithm = flags["solver_order"], flags["algorithm_type"]
        noisy = algorithm.startswith("sde")
        if order == 1:
            return ("ddpm" if noisy else "euler"), {}
        options = {
            "order": order,
            "variant": flags["solver_type"],
            **({"eta": 1.0} if noisy else {}),
        }
        return ("dpm_singlestep" if algorithm == "dpmsolver" else "dpmpp_singlestep"), options

    def _places(self, flags: Flags, calls: int) -> str:
        """The place of every call in its group; see `rows.groups`."""
        clean = flags["final_sigmas_type"] == "zero"
        return groups(calls, flags["solver_order"], clean, flags["lower_order_final"])

    def _draws(self) -> bool:
        return bool(self.config["algorithm_type"].startswith("sde"))

    def _make(self, asked: Asked, device: Any, flags: Flags) -> None:
        """A last call that ends a group corrects, where its level is the end itself."""
        super()._make(
            asked,
            device,
            {**flags, "corrects": lambda calls: not self._places(flags, calls).endswith("1")},
        )

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        """A part that begins inside a group begins with order 1, as in diffusers."""
        if "order" not in sampler.options:
            return super()._compile(sampler, grid, before)
        places = self._places(self._flags, self._levels.grid.steps + self._levels.idle)[
            : self._levels.grid.steps
        ]
        return solvers.make(
            sampler.name, grid, before=before, **{**sampler.options, "order": places}
        )

    def _compile_journey(self, grid: Grid) -> Table:
        """A journey off the list has groups of its own."""
        sampler = self._listed.sampler
        if "order" not in sampler.options:
            return super()._compile_journey(grid)
        places = self._places(self._flags, grid.steps)
        return solvers.make(sampler.name, grid, **{**sampler.options, "order": places})

    def _inside(self, run: Run) -> bool:
        """Whether the next call is inside a group, whose first sample is where the group goes on
        from.
        """
        places = self._places(self._flags, self._levels.grid.steps + self._levels.idle)
        return run.row > 0 and places[self.session.row] != "1"


# -- several predictions ---------------------------------------------------------------------------
class LMSDiscreteScheduler(Compat):
    """`lms` of order 4."""

    unit = False
    takes = ("order", "return_dict")
    defaults = {**BETAS, **SHAPES, "prediction_type": "epsilon", **SPACING}

    def _solver(self, flags: Flags) -> Named:
        return "lms", {"order": 4, "euler_at_final": False}

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        return (
            solvers.make("lms", grid, before=before)
            if grid.steps == 1
            else super()._compile(sampler, grid, before)
        )


class Multistep(Compat):
    """`dpmpp_2m` and its kin; `dpm_multistep` for "dpmsolver" and, with noise, "sde-dpmsolver".

    Order 3 has diffusers' second derivative (`curvature` 1/2); "sde-dpmsolver++" has k-diffusion's
    third order, for diffusers' has a wrong sign.
    """

    def _solver(self, flags: Flags) -> Named:
        order, algorithm = flags["solver_order"], flags["algorithm_type"]
        if algorithm == "sde-dpmsolver" and order > 2:
            raise ArgumentError(
                "algorithm_type='sde-dpmsolver' has no formula of order 3, in diffusers neither;"
                " pass solver_order=2, or algorithm_type='sde-dpmsolver++'"
            )
        return self._named(order)

    def _draws(self) -> bool:
        return bool(self.config["algorithm_type"].startswith("sde"))

    def _named(self, order: int) -> Named:
        config = self.config
        noisy, slopes = (
            config["algorithm_type"].startswith("sde"),
            config["algorithm_type"].endswith("dpmsolver"),
        )
        options: dict[str, Any] = {"variant": config["solver_type"]} if order > 1 else {}
        if order == 3:
            options["curvature"] = 0.5
        if slopes and (
            noisy or config["solver_order"] > 1
        ):  # of order 1 without noise it is Euler's either way
            return "dpm_multistep", {"order": order, **options, **({"eta": 1.0} if noisy else {})}
        name = {1: "ddpm" if noisy else "euler", 2: "dpmpp_2m", 3: "dpmpp_3m"}[order]
        if order == 3:
            options["final_order"] = 3  # `_compile` says where it falls
        return name + ("_sde" if noisy and order > 1 else ""), options

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        flags, after, order = self._flags, self._levels.idle, self._flags["solver_order"]
        few = flags["lower_order_final"] and self._levels.grid.steps + self._levels.idle < FEW
        last = 1 if few or flags["euler_at_final"] else order
        caps = {1: last, 2: min(order, 2) if few else order}
        orders = [caps.get(grid.steps + after - k, order) for k in range(grid.steps)]
        if grid.steps == 1:
            orders = [1]

        def make(order: int) -> Table:
            name, options = self._named(order)
            return solvers.make(name, grid, **options)

        return lowered(make, orders)


class DPMSolverMultistepScheduler(Multistep):
    """`dpmpp_2m` and its kin; see `Multistep`."""

    family, draws_in, one_list = "dpm", torch.float32, True
    takes = ("generator", "variance_noise", "return_dict")
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False, **SHAPES,
        "use_lu_lambdas": False, **FLOW, "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None, **SPACING, "rescale_betas_zero_snr": False, **DYNAMIC,
    }  # fmt: skip


class EDMDPMSolverMultistepScheduler(Multistep):
    """`DPMSolverMultistepScheduler` on EDM's process."""

    family, kinds, unit, draws_in = "edm", ("edm",), False, "both"
    takes = ("generator", "return_dict")
    defaults = {
        **EDM, "solver_order": 2, **THRESHOLD, "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False, "final_sigmas_type": "zero",
    }  # fmt: skip


class DEISMultistepScheduler(Compat):
    """`deis`, which ends at the lowest training level as diffusers' does."""

    family, fixed = "dpm", {"ends_at_time_zero": True}
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD,
        "algorithm_type": "deis",
        "solver_type": "logrho", "lower_order_final": True, **SHAPES, **FLOW, **SPACING, **DYNAMIC,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        return "deis", {"order": flags["solver_order"], "variant": "logrho"}

    @property
    def schedule(self) -> str:
        """The order of every step."""
        return self._orders(self._levels.grid.steps)

    def _orders(self, steps: int) -> str:
        """The order of every step of a journey of so many `steps`, which may be a part of the list
        or off it.
        """
        flags, order, idle = self._flags, self._flags["solver_order"], self._levels.idle
        few = steps == 1 or (flags["lower_order_final"] and self._levels.grid.steps + idle < FEW)
        return "".join(
            map(str, falling(order, steps, idle if steps > 1 else 0) if few else [order] * steps)
        )

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        return solvers.make("deis", grid, order=self._orders(grid.steps), variant="logrho")


class UniPCMultistepScheduler(Compat):
    """`unipc`."""

    family, fixed = "dpm", {"snaps": True, "corrects": True}
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD, "predict_x0": True,
        "solver_type": "bh2", "lower_order_final": True, "disable_corrector": [], "solver_p": None,
        **SHAPES, **FLOW,
        **SPACING, "final_sigmas_type": "zero", "rescale_betas_zero_snr": False, **DYNAMIC,
        "sigma_min": None,
        "sigma_max": None, "shift_terminal": None,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        return "unipc", {"order": flags["solver_order"], "variant": flags["solver_type"]}

    @property
    def _falls(self) -> bool:
        """Whether the order falls towards the end of the list."""
        return (
            bool(self._flags["lower_order_final"])
            or min(self._flags["solver_order"], self._levels.grid.steps) == 1
        )

    @property
    def schedule(self) -> str:
        """The order of every step."""
        return self._orders(self._levels.grid.steps)

    def _orders(self, steps: int) -> str:
        """The order of every step of a journey of so many `steps`, which may be a part of the list
        or off it.
        """
        order = self._flags["solver_order"]
        return "".join(
            map(str, falling(order, steps, self._levels.idle) if self._falls else [order] * steps)
        )

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        flags, skipped = (
            self._flags,
            self._levels.grid.steps - grid.steps,
        )  # steps of the list before a part of it
        alone = [step - skipped for step in flags["disable_corrector"] or () if step >= skipped]
        if not self._falls and bool(grid.sigma[-1] == 0):
            raise ArgumentError(
                "lower_order_final=False asks for a high order to sigma = 0, where diffusers'"
                " result is not a number; pass lower_order_final=True, or"
                " final_sigmas_type='sigma_min'"
            )
        return unipc(
            grid, order=self._orders(grid.steps), variant=flags["solver_type"], uncorrected=alone
        )


class SASolverScheduler(Compat):
    """`sa_solver`, with noise between training times 200 and 800, the weights of the paper's code
    and its end.
    """

    family, fixed = "dpm", {"ends_at_time_zero": True, "corrects": True}
    takes = ("generator", "return_dict")
    defaults = {
        **BETAS, "predictor_order": 2, "corrector_order": 2, "prediction_type": "epsilon",
        "tau_func": None,
        **THRESHOLD, "algorithm_type": "data_prediction", "lower_order_final": True, **SHAPES,
        **FLOW,
        "lambda_min_clipped": -math.inf, "variance_type": None, **SPACING,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        orders = {key: flags[key] for key in ("predictor_order", "corrector_order")}
        return "sa_solver", {**orders, **self._noisy(flags), "variant": "simple"}

    def _noisy(self, flags: Flags) -> dict[str, Any]:
        """Options for noise between the training times 200 and 800, of however many there are."""
        start, stop = (time / flags["num_train_timesteps"] for time in (200, 800))
        return {"start": start, "stop": min(stop, 1.0)} if start <= 1 else {"eta": 0.0}

    def _draws(self) -> bool:
        return True

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        flags, after = self._flags, self._levels.idle
        ahead, back, noisy = flags["predictor_order"], flags["corrector_order"], self._noisy(flags)

        def make(left: int) -> Table:
            orders = {"predictor_order": min(ahead, left), "corrector_order": min(back, left + 1)}
            return solvers.make("sa_solver", grid, **orders, **noisy, variant="simple")

        most = max(ahead, back)
        orders = (
            falling(most, grid.steps, after) if flags["lower_order_final"] else [most] * grid.steps
        )
        return lowered(make, orders)


CLASSES: dict[str, type[Compat]] = {
    name: value for name, value in list(vars().items())
    if isinstance(value, type) and issubclass(value, Compat) and getattr(value, "defaults", None)
}  # fmt: skip
