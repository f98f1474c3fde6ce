"""diffusers' schedulers of distilled models by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.prediction import clip
from ..core.run import Run
from ..errors import ArgumentError
from ..pipelines.classes.rule import LevelRequest
from .base import Compat
from .members import DATA

ANGLE, SECOND = 1.5708, 1.3  # where Sana-Sprint begins, and its second angle of two


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


class FlowMatchLCMScheduler(Compat):
    """`lcm` on a flow: denoise and add noise."""


class SCMScheduler(Compat):
    """`lcm` on a TrigFlow, whose samples and noise are sigma_data times those of unit variance.

    Source: Chen et al. 2025, arXiv 2503.09641.
    """

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        timesteps: Any = None,
        device: Any = None,
        max_timesteps: float | None = ANGLE,
        intermediate_timesteps: float | None = SECOND,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Visit even angles, two chosen ones, or a list.

        Args:
            num_inference_steps: how many steps.
            timesteps: angles from pi / 2 down, with the end, one more than steps.
            device: where `timesteps` lie.
            max_timesteps: the first angle; None or the default beside a list.
            intermediate_timesteps: the second angle of two steps; None: half the first.
            sigmas: tan of the angles instead, falling.
            mu: refused, as by any class that is not for flows.

        Raises:
            ArgumentError, GridError: before any compute.
        """
        second, listed = intermediate_timesteps, timesteps is not None
        if sigmas is not None or listed:
            if max_timesteps not in (None, ANGLE):
                raise ArgumentError(
                    f"max_timesteps={max_timesteps!r} and a list of levels: give one of them"
                )
            ends = len(timesteps) - 1 if listed else num_inference_steps
            if num_inference_steps not in (None, ends):
                raise ArgumentError(
                    f"num_inference_steps={num_inference_steps} and {len(timesteps)} timesteps"
                    " disagree: a list has one angle more, its end"
                )
            self._visit(LevelRequest(None, timesteps, sigmas, mu), device)
            return
        if second not in (None, SECOND) and num_inference_steps != 2:
            raise ArgumentError(
                f"intermediate_timesteps={second!r} is the second angle of two steps, not of"
                f" {num_inference_steps}; leave it out"
            )
        request = LevelRequest(num_inference_steps, None, None, mu)
        if max_timesteps is None or num_inference_steps is None:
            raise ArgumentError("give num_inference_steps and max_timesteps, or timesteps")
        top = min(float(max_timesteps), math.pi / 2)
        if num_inference_steps == 2 and second is not None:
            angles = [top, float(second), 0.0]
        else:
            angles = torch.linspace(top, 0, num_inference_steps + 1, dtype=torch.float64).tolist()
        self._visit(request._replace(steps=None, times=tuple(angles)), device)


class CMStochasticIterativeScheduler(Compat):
    """`lcm` on EDM's levels, with a network that is the identity at sigma_min.

    `timesteps` of `set_timesteps` are places in the training's list, 0 the cleanest. Source: Song
    et al. 2023, arXiv 2303.01469, appendix C.
    """

    def get_scalings(self, sigma: Any) -> tuple[Any, Any]:
        """EDM's weights of the sample and of the network's output, at sigma."""
        data = float(self.config["sigma_data"])
        norm = sigma**2 + data**2
        return data**2 / norm, sigma * data / norm**0.5

    def get_scalings_for_boundary_condition(self, sigma: Any) -> tuple[Any, Any]:
        """The same weights with the sample itself at sigma_min."""
        data, above = float(self.config["sigma_data"]), sigma - float(self.config["sigma_min"])
        return data**2 / (above**2 + data**2), above * data / (sigma**2 + data**2) ** 0.5

    def sigma_to_t(self, sigmas: Any) -> Any:
        """The network's time, 250·log(sigma)."""
        return 250 * torch.as_tensor(sigmas).double().log().numpy()

    def _start(self, noisiest: Any, flags: Any) -> float | Tensor:
        return float(flags["sigma_max"])

    def _draws(self) -> bool:
        return bool(self._listed.table.nfe > 1)

    def _shape(self) -> Callable[[Tensor], Tensor] | None:
        return functools.partial(clip, limit=1.0) if self.config["clip_denoised"] else None

    def _raw(
        self, run: Run, output: Tensor, sample: Tensor, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The output by which EDM's weights make what the weights of the boundary make."""
        raw, learned = super()._raw(run, output, sample, tokens)
        on_x, on_raw = run.program.rows[run.row].denoised
        skip, out = self.get_scalings_for_boundary_condition(float(run.level.ratio))
        return (out / on_raw) * raw + ((skip - on_x) / on_raw) * sample, learned
