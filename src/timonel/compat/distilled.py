"""diffusers' schedulers of distilled models by name."""

# ruff: noqa: RUF012 (the class attributes are declared in `Compat`, as ClassVar)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.grids import Grid
from ..core.sampler import Sampler
from ..core.solvers.consistency import lcm
from ..core.table import Table
from . import levels
from .base import Compat
from .defaults import DISTILLED
from .members import DATA

Flags = Mapping[str, Any]
Named = tuple[str, dict[str, Any]]


class Distilled(Compat):
    """What both classes have in common: a list that is a part of the distillation's.

    `set_alpha_to_one` says what `final_alpha_cumprod` is, and nothing else, as in diffusers.
    """

    family, draws_in, one_list = "distilled", "both", True

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        original_inference_steps: int | None = None,
        timesteps: Any = None,
        strength: float = 1.0,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Visit some of the levels of the distillation, as the latent consistency pipelines choose
        them.

        Args:
            num_inference_steps: how many, 1 to int(original_inference_steps · strength).
            device: where `timesteps` lie.
            original_inference_steps: steps of the distillation, 1 to the training levels; None: the
            config's. timesteps: training times instead of a number, falling.
            strength: the share of the list that is visited, its clean end, (0, 1].
            sigmas: sigma / alpha instead of a number, falling.
            mu: refused, as by any class that is not for flows.

        Raises:
            ArgumentError, GridError: before any compute.
        """
        self._visit(
            levels.Asked(
                num_inference_steps, timesteps, sigmas, mu, original_inference_steps, strength
            ),
            device,
        )


class LCMScheduler(Distilled):
    """`lcm`."""

    fixed = {"set_alpha_to_one": True}
    sigma_data = DATA
    takes = ("generator", "return_dict")
    defaults = DISTILLED
    solver = "lcm"

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        return lcm(grid, scaling=float(self.config["timestep_scaling"]))


class TCDScheduler(Distilled):
    """`tcd`, which ends at training time 0 as diffusers' does. `eta` may come with the first step.

    Pipelines give 0 unless told otherwise, as they do to diffusers' class.
    """

    clips = False
    eta, fixed = 0.3, {"ends_at_time_zero": True, "anywhere": True}
    takes = ("eta", "generator", "return_dict")
    defaults = dict(DISTILLED)

    def _solver(self, flags: Flags) -> Named:
        return "tcd", {"eta": 0.3}
