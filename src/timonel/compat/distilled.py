"""diffusers' schedulers of distilled models by name."""

from __future__ import annotations

from typing import Any

from ..pipelines.classes.rule import LevelRequest
from .base import Compat
from .members import DATA


class Distilled(Compat):
    """What both classes have in common: a list that is a part of the distillation's.

    `set_alpha_to_one` says what `final_alpha_cumprod` is, and nothing else, as in diffusers.
    """

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
        """Visit some of the levels of the distillation, as the latent consistency pipelines do.

        Args:
            num_inference_steps: how many, 1 to int(original_inference_steps · strength).
            device: where `timesteps` lie.
            original_inference_steps: steps of the distillation, 1 to the training levels; None: the
                config's.
            timesteps: training times instead of a number, falling.
            strength: the share of the list that is visited, its clean end, (0, 1].
            sigmas: sigma / alpha instead of a number, falling.
            mu: refused, as by any class that is not for flows.

        Raises:
            ArgumentError, GridError: before any compute.
        """
        original = original_inference_steps
        request = LevelRequest(num_inference_steps, timesteps, sigmas, mu, original, strength)
        self._visit(request, device)


class LCMScheduler(Distilled):
    """`lcm`."""

    sigma_data = DATA


class TCDScheduler(Distilled):
    """`tcd`, which ends at training time 0 as diffusers' does. `eta` may come with the first step.

    Pipelines give 0 unless the caller says otherwise, as they do to diffusers' class.
    """
