"""diffusers' schedulers by name, on timonel's samplers."""

# ruff: noqa: RUF012 (the class attributes are declared in `Compat`, as ClassVar)

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .. import solvers
from ..errors import ArgumentError
from ..grids import Grid
from ..pipelines.levels import between
from ..process import double
from ..sampler import Sampler
from ..solvers.unipc import unipc
from ..table import Table
from .base import Compat
from .chain import DDIMScheduler as DDIMScheduler
from .chain import DDPMScheduler as DDPMScheduler
from .defaults import (
    BETAS,
    CHURN,
    DYNAMIC,
    EDM,
    FLOW,
    LEADING,
    NARROW,
    SHAPES,
    SPACING,
    THRESHOLD,
)  # fmt: skip
from .distilled import LCMScheduler as LCMScheduler
from .distilled import TCDScheduler as TCDScheduler
from .levels import Asked
from .rows import FEW, falling, lowered, pairs, second_order

logger = logging.getLogger("timonel")
Flags = Mapping[str, Any]
Named = tuple[str, dict[str, Any]]


# -- one slope -------------------------------------------------------------------------------------------
class EulerDiscreteScheduler(Compat):
    """`euler`."""

    unit = False
    one_list = True
    takes = (*CHURN, "generator", "return_dict")
    defaults = {
        **BETAS, "prediction_type": "epsilon", "interpolation_type": "linear", **SHAPES, "sigma_min": None,
        "sigma_max": None, "timestep_spacing": "linspace", "timestep_type": "discrete", "steps_offset": 0,
        "rescale_betas_zero_snr": False, "final_sigmas_type": "zero",
    }  # fmt: skip
    solver = "euler"


class EulerAncestralDiscreteScheduler(Compat):
    """`euler_ancestral`."""

    unit = False
    takes = ("generator", "return_dict")
    defaults = {**BETAS, "prediction_type": "epsilon", **SPACING, "rescale_betas_zero_snr": False}
    solver = "euler_ancestral"


class EDMEulerScheduler(Compat):
    """`euler` on EDM's process."""

    family, kinds, unit = "edm", ("edm",), False
    takes = (*CHURN, "generator", "return_dict", "pred_original_sample")
    defaults = {**EDM, "final_sigmas_type": "zero"}
    solver = "euler"


class FlowMatchEulerDiscreteScheduler(Compat):
    """`euler` on a flow, or where samples explode; `lcm`, denoise and add noise, with `stochastic_sampling`.

    With `invert_sigmas` its times run backwards and the network predicts x0 - noise, as Mochi's does.
    """

    family, kinds = "flow", ("flow", "ve")
    takes = (*CHURN, "generator", "per_token_timesteps", "return_dict")
    defaults = {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None,
        **SHAPES, "time_shift_type": "exponential", "stochastic_sampling": False,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        return ("lcm" if flags["stochastic_sampling"] else "euler"), {}


# -- two calls a step --------------------------------------------------------------------------------------
class HeunDiscreteScheduler(Compat):
    """`heun`."""

    calls = 2
    one_list = True
    unit = False
    defaults = {
        **NARROW, "prediction_type": "epsilon", **SHAPES, "clip_sample": False, "clip_sample_range": 1.0, **SPACING,
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
    """`dpmpp_sde` on Brownian noise; `noise_sampler_seed` seeds it."""

    calls = 2
    unit, _source = False, "brownian"
    takes = ("return_dict", "s_noise")
    defaults = {**NARROW, "prediction_type": "epsilon", **SHAPES, "noise_sampler_seed": None, **SPACING}
    solver = "dpmpp_sde"


class DPMSolverSinglestepScheduler(Compat):
    """`dpmpp_2s` with inner calls at every second level of diffusers' list; `euler` and `ddpm` at order 1.

    As in diffusers, N steps are N network calls: half as many steps of order 2.
    """

    family = "dpm"
    one_list = True
    takes = ("generator", "return_dict")
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD, "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": False, **SHAPES, **FLOW, "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf, "variance_type": None, **DYNAMIC,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        order, algorithm = flags["solver_order"], flags["algorithm_type"]
        if order == 2 and algorithm != "dpmsolver++":
            raise ArgumentError(
                f"algorithm_type={algorithm!r} of order 2 is not offered: pass 'dpmsolver++', or use "
                "DPMSolverSDEScheduler for two calls and noise"
            )
        return ("dpmpp_2s" if order == 2 else "ddpm" if algorithm.startswith("sde") else "euler"), {}

    def _make(self, asked: Asked, device: Any, flags: Flags) -> None:
        """A last call that ends a pair corrects, where its level is the end itself."""
        n = asked.steps or len(asked.sigmas if asked.times is None else asked.times)
        pairs_up = flags["solver_order"] == 2 and not flags["lower_order_final"] and n % 2 == 0
        super()._make(asked, device, {**flags, "corrects": pairs_up and flags["final_sigmas_type"] == "sigma_min"})

    def _grouped(self, grid: Grid) -> Grid:
        flags, n = self._flags, grid.steps + self._levels.idle
        if flags["solver_order"] == 1:
            return grid
        even = n % 2 == 0
        ends_lower = flags["lower_order_final"] or flags["final_sigmas_type"] == "zero" or not even
        single = (2 if even else 1) if ends_lower else 0
        return pairs(grid, min(grid.steps, max(0, single - self._levels.idle)))

    calls_are_steps = True

    def loop_begin(self, row: int) -> int:
        return row

    def _steps(self, start: int, stop: int) -> tuple[int, int]:
        """As they are: in diffusers' list every call is a step."""
        return start, min(stop, self._listed.table.nfe)

    def cover(self, start: int, stop: int) -> None:
        """A part that begins or ends at an inner call has a step of order 1 there, as in diffusers."""
        sampler, grid, table, _ = self._listed
        start, stop = self._steps(start, stop)
        part = between(grid, table, start, stop)
        self._begin(replace(self._compile(sampler, part), first=start), (start, stop))

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        if sampler.name != "dpmpp_2s":
            return super()._compile(sampler, grid, before)
        return second_order(grid, self._levels.grid, self._flags["solver_type"])


# -- several predictions -----------------------------------------------------------------------------------
class LMSDiscreteScheduler(Compat):
    """`lms` of order 4."""

    unit = False
    takes = ("order", "return_dict")
    defaults = {**BETAS, **SHAPES, "prediction_type": "epsilon", **SPACING}

    def _solver(self, flags: Flags) -> Named:
        return "lms", {"order": 4, "euler_at_final": False}

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        return solvers.make("lms", grid, before=before) if grid.steps == 1 else super()._compile(sampler, grid, before)


class PNDMScheduler(Compat):
    """`plms` with `skip_prk_steps`, else `pndm`."""

    family = "index"
    defaults = {**BETAS, "skip_prk_steps": False, "set_alpha_to_one": False, "prediction_type": "epsilon", **LEADING}

    def _solver(self, flags: Flags) -> Named:
        return ("plms" if flags["skip_prk_steps"] else "pndm"), {}

    def step_prk(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        """`step`: a row of the table is the Runge-Kutta or the multistep call that its time asks for."""
        return self.step(model_output, timestep, sample, return_dict=return_dict)

    step_plms = step_prk

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        if grid.steps == self._levels.grid.steps:
            return super()._compile(sampler, grid, before)
        if sampler.name == "pndm":
            raise ArgumentError("a part of the list cannot begin with Runge-Kutta steps; pass skip_prk_steps=True")
        return solvers.make("ipndm", grid, euler_at_final=False)  # one call a step, as the rest of the list has it


class IPNDMScheduler(Compat):
    """`ipndm` for the model of the config it is made from; without a beta schedule that is Dance Diffusion.

    `trained_betas` of Dance Diffusion are the sigmas that every call visits, and where it ends, whatever the number.
    diffusers' own drops its first prediction at pure noise, this one does not.
    """

    kinds = (*Compat.kinds, "crash")
    family, fixed = "index", {"timestep_spacing": "trailing"}
    defaults = {"num_train_timesteps": 1000, "trained_betas": None}

    def _solver(self, flags: Flags) -> Named:
        return "ipndm", {"euler_at_final": False}

    @property
    def betas(self) -> Tensor:
        """The sigmas of the list and of its end, (N + 1,), for Dance Diffusion; else the betas, (T,)."""
        if self.process.kind != "crash":
            return super().betas
        listed = self.config["trained_betas"]
        return self._levels.grid.sigma.float() if listed is None else double(listed).flatten().float()

    @property
    def alphas(self) -> Tensor:
        """sqrt(1 - sigma²) of `betas` for Dance Diffusion; else 1 - beta."""
        return super().alphas if self.process.kind != "crash" else (1 - self.betas**2).sqrt()

    def _make(self, asked: Asked, device: Any, flags: Flags) -> None:
        super()._make(asked, device, flags)
        visited, listed = self._levels.grid.steps, self.process.kind == "crash" and flags["trained_betas"] is not None
        if listed and asked.steps not in (None, visited, len(self)):
            logger.warning("trained_betas are the levels: %s steps, not %s", visited, asked.steps)


class Multistep(Compat):
    """`dpmpp_2m` and its kin: "dpmsolver++" of order 1 to 3, "sde-dpmsolver++", "dpmsolver" of order 1.

    Order 3 has diffusers' second derivative (`curvature` 1/2); with noise it is k-diffusion's, for diffusers' has a
    wrong sign.
    """

    def _solver(self, flags: Flags) -> Named:
        order, algorithm = flags["solver_order"], flags["algorithm_type"]
        if algorithm == "dpmsolver" and order > 1:
            raise ArgumentError("algorithm_type='dpmsolver' is offered with solver_order=1; pass 'dpmsolver++'")
        return self._named(order)

    def _named(self, order: int) -> Named:
        config = self.config
        noisy = config["algorithm_type"].startswith("sde")
        name = {1: "ddpm" if noisy else "euler", 2: "dpmpp_2m", 3: "dpmpp_3m"}[order]
        options = {"variant": config["solver_type"]} if order > 1 else {}
        if order == 3:
            options |= {"curvature": 0.5, "final_order": 3}  # `_compile` says where it falls
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

    family = "dpm"
    one_list = True
    takes = ("generator", "variance_noise", "return_dict")
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD, "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False, **SHAPES,
        "use_lu_lambdas": False, **FLOW, "final_sigmas_type": "zero", "lambda_min_clipped": -math.inf,
        "variance_type": None, **SPACING, "rescale_betas_zero_snr": False, **DYNAMIC,
    }  # fmt: skip


class EDMDPMSolverMultistepScheduler(Multistep):
    """`DPMSolverMultistepScheduler` on EDM's process."""

    family, kinds, unit = "edm", ("edm",), False
    takes = ("generator", "return_dict")
    defaults = {
        **EDM, "solver_order": 2, **THRESHOLD, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False, "final_sigmas_type": "zero",
    }  # fmt: skip


class DEISMultistepScheduler(Compat):
    """`deis`, which ends at the lowest training level as diffusers' does."""

    family, fixed = "dpm", {"ends_at_time_zero": True}
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD, "algorithm_type": "deis",
        "solver_type": "logrho", "lower_order_final": True, **SHAPES, **FLOW, **SPACING, **DYNAMIC,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        return "deis", {"order": flags["solver_order"], "variant": "logrho"}

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        flags, after, order = self._flags, self._levels.idle, self._flags["solver_order"]
        few = flags["lower_order_final"] and self._levels.grid.steps + self._levels.idle < FEW
        orders = falling(order, grid.steps, after) if few else [order] * grid.steps
        orders = [1] if grid.steps == 1 else orders
        return lowered(lambda o: solvers.make("deis", grid, order=o, variant="logrho"), orders)


class UniPCMultistepScheduler(Compat):
    """`unipc`."""

    family, fixed = "dpm", {"snaps": True, "corrects": True}
    defaults = {
        **BETAS, "solver_order": 2, "prediction_type": "epsilon", **THRESHOLD, "predict_x0": True,
        "solver_type": "bh2", "lower_order_final": True, "disable_corrector": [], "solver_p": None, **SHAPES, **FLOW,
        **SPACING, "final_sigmas_type": "zero", "rescale_betas_zero_snr": False, **DYNAMIC, "sigma_min": None,
        "sigma_max": None, "shift_terminal": None,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        return "unipc", {"order": flags["solver_order"], "variant": flags["solver_type"]}

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        flags, after, order = self._flags, self._levels.idle, self._flags["solver_order"]
        falls = flags["lower_order_final"] or min(order, grid.steps) == 1
        if not falls and bool(grid.sigma[-1] == 0):
            raise ArgumentError(
                "lower_order_final=False asks for a high order to sigma = 0, where diffusers' result is not a number; "
                "pass lower_order_final=True, or final_sigmas_type='sigma_min'"
            )
        orders = falling(order, grid.steps, after) if falls else [order] * grid.steps
        digits, alone = "".join(map(str, orders)), tuple(flags["disable_corrector"] or ())
        return unipc(grid, order=digits, variant=flags["solver_type"], uncorrected=alone)


class SASolverScheduler(Compat):
    """`sa_solver`, with noise between training times 200 and 800, the weights of the paper's code and its end."""

    family, fixed = "dpm", {"ends_at_time_zero": True, "corrects": True}
    takes = ("generator", "return_dict")
    defaults = {
        **BETAS, "predictor_order": 2, "corrector_order": 2, "prediction_type": "epsilon", "tau_func": None,
        **THRESHOLD, "algorithm_type": "data_prediction", "lower_order_final": True, **SHAPES, **FLOW,
        "lambda_min_clipped": -math.inf, "variance_type": None, **SPACING,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        orders = {key: flags[key] for key in ("predictor_order", "corrector_order")}
        return "sa_solver", {**orders, "variant": "simple"}

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        flags, after = self._flags, self._levels.idle
        ahead, back = flags["predictor_order"], flags["corrector_order"]
        total = self.process.train_steps if self.process.kind == "vp" else 1000
        noise: dict[str, Any] = {"start": 200 / total, "stop": min(800 / total, 1.0)} if total >= 200 else {"eta": 0.0}

        def make(left: int) -> Table:
            orders = {"predictor_order": min(ahead, left), "corrector_order": min(back, left + 1)}
            return solvers.make("sa_solver", grid, **orders, **noise, variant="simple")

        most = max(ahead, back)
        orders = falling(most, grid.steps, after) if flags["lower_order_final"] else [most] * grid.steps
        return lowered(make, orders)


CLASSES: dict[str, type[Compat]] = {
    name: value for name, value in list(vars().items())
    if isinstance(value, type) and issubclass(value, Compat) and getattr(value, "defaults", None)
}  # fmt: skip
