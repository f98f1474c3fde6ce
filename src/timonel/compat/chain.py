"""diffusers' schedulers of DDPM's chain by name: DDIM and DDPM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import ArgumentError
from ..pipelines.classes.rows import LEARNED
from .base import Compat


class DDIMScheduler(Compat):
    """`ddim`. `eta` may come with the first step, as pipelines give it.

    `clip_sample` and `thresholding` act on the clean part of a step, and the noise stays the
    network's; with `use_clipped_model_output=True` in `step` the noise follows the clipped
    prediction.
    """

    def _draws(self) -> bool:
        return bool(self.settled.options["eta"] > 0)

    def _get_variance(self, timestep: Any, prev_timestep: Any) -> Tensor:
        """The variance of the noise between two training times at eta = 1, for editing pipelines.

        `prev_timestep` below 0 is the end of the list. Source: arXiv 2010.02502, eq. 16.
        """
        bars = self.alphas_cumprod
        bar = bars[timestep]
        before = bars[prev_timestep] if prev_timestep >= 0 else self.final_alpha_cumprod
        return (1 - before) / (1 - bar) * (1 - bar / before)


@dataclass(frozen=True)
class Sized:
    """A run's noise, each number of it in a size of its own."""

    noise: Callable[[int, Tensor], Tensor] | None
    size: Tensor

    def __call__(self, row: int, like: Tensor) -> Tensor:
        """The noise of a row, in the shape and dtype of `like`."""
        assert self.noise is not None
        return self.size * self.noise(row, like)


class DDPMScheduler(Compat):
    """`ddpm`, whose last step ends at the clean prediction, without noise.

    The noise has the variance of the posterior ("fixed_small"), of the forward step ("fixed_large")
    or the network's ("learned"). Source: arXiv 2006.11239, section 3.2; 2102.09672, eq. 15.
    """

    def _draws(self) -> bool:
        return self.run.level.time > 0

    def _get_variance(
        self, t: Any, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor | None:
        """The variance of the step from training time `t`, in the words of diffusers' class.

        Args:
            t: the training time.
            predicted_variance: the network's, for "learned" and "learned_range".
            variance_type: None is the config's. "fixed_small_log" gives the standard deviation;
                "learned_range" and "fixed_large_log" the logarithm.

        Raises:
            ArgumentError: no network's variance where one is needed.
        """
        kind, bars = variance_type or self.config["variance_type"], self.alphas_cumprod
        if kind in LEARNED and predicted_variance is None:
            raise ArgumentError(f"variance_type={kind!r} needs predicted_variance, the network's")
        before = self.previous_timestep(t)
        bar, last = bars[t], bars[before] if before >= 0 else self.one
        beta = 1 - bar / last
        small = ((1 - last) / (1 - bar) * beta).clamp(min=1e-20)
        if kind == "learned_range":
            share = (predicted_variance + 1) / 2  # type: ignore[operator]
            return share * beta.log() + (1 - share) * small.log()
        fixed = {
            "fixed_small_log": small.sqrt(),
            "fixed_large": beta,
            "fixed_large_log": beta.log(),
        }
        return predicted_variance if kind == "learned" else fixed.get(kind, small)

    def _apply(self, raw: Tensor, noise: Tensor | None, learned: Tensor | None) -> None:
        """One row; its noise may have the network's variance (arXiv 2102.09672, eq. 15)."""
        run, kind = self.run, self.config["variance_type"]
        if kind not in LEARNED:
            return super()._apply(raw, noise, learned)
        if learned is None:
            raise ArgumentError(
                f"variance_type={kind!r} is for a network that predicts its variance beside its"
                f" noise, here {2 * raw.shape[1]} channels; this output has {raw.shape[1]}: pass"
                " variance_type='fixed_small'"
            )
        top, low = run.table.level(run.row), run.table.level(run.row + 1)
        if float(low.sigma) == 0:
            return super()._apply(raw, noise, None)
        # standard deviation of the forward step, in units of the posterior's
        most = float(top.sigma / low.sigma)
        if kind == "learned_range":
            size = most ** ((learned + 1) / 2)
        else:
            size = learned.sqrt() * most / float((1 - (top.alpha / low.alpha) ** 2).sqrt())
        if noise is None:
            run.advance(raw, Sized(run.noise, size))
        else:
            run.advance(raw, lambda row, like: size * noise)
