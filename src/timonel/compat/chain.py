"""diffusers' schedulers of DDPM's chain by name: DDIM, DDPM, their parallel kin, and unCLIP's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.prediction import coefficients
from ..core.process import Level
from ..errors import ArgumentError
from ..pipelines.classes.rows import LEARNED
from ..pipelines.sockets import model
from ..pipelines.sockets.times import number
from .base import Compat


class Chained(Compat):
    """What the classes have in common, whose steps are functions of a time and a sample."""

    def _before(self, time: Any) -> Any:
        """The training time a stride below, T // N."""
        return time - self.process.train_steps // (
            self.num_inference_steps or self.process.train_steps
        )

    def _without_noise(
        self, raw: Tensor, times: Tensor, sample: Tensor, share: float, consistent: bool
    ) -> Tensor:
        """The steps of several samples at training times of their own, without their noise.

        `share`: the part of DDPM's noise that is left out. Source: arXiv 2010.02502, eq. 12.
        """
        bars, before = self.alphas_cumprod.to(sample.device), self._before(times)
        bar, low = bars[times], torch.where(before >= 0, bars[before.clamp(min=0)], self.one)
        kept = (1 - low) * (1 - share**2 * (1 - bar / low) / (1 - bar))
        level = Level(bar.sqrt(), (1 - bar).sqrt(), times)
        numbers = *level[:2], *coefficients(self.prediction, level), low.sqrt(), kept.sqrt()
        wide = (-1, *[1] * (sample.ndim - 1))
        alpha, sigma, c_x, c_raw, clean_to, noise_to = (n.view(wide) for n in numbers)
        clean = c_x * sample + c_raw * raw[:, : sample.shape[1]]
        shape = model.shape(self._flags)
        used = clean if shape is None else shape(clean)
        return (
            clean_to * used + noise_to * (sample - alpha * (used if consistent else clean)) / sigma
        )


class DDIM(Chained):
    """DDIM's two classes."""

    def _draws(self) -> bool:
        return bool(self.settled.options["eta"] > 0)

    def _get_variance(self, timestep: Any, prev_timestep: Any = None) -> Tensor:
        """The variance of the noise between two training times at eta = 1, for editing pipelines.

        `prev_timestep` below 0 is the end of the list, None the next time. Source: arXiv
        2010.02502, eq. 16.
        """
        prev_timestep = self._before(timestep) if prev_timestep is None else prev_timestep
        bars = self.alphas_cumprod
        bar = bars[timestep]
        before = bars[prev_timestep] if prev_timestep >= 0 else self.final_alpha_cumprod
        return (1 - before) / (1 - bar) * (1 - bar / before)


class DDIMScheduler(DDIM):
    """`ddim`. `eta` may come with the first step, as pipelines give it.

    `clip_sample` and `thresholding` act on the clean part of a step, and the noise stays the
    network's; with `use_clipped_model_output=True` in `step` the noise follows the clipped
    prediction.
    """


class DDIMParallelScheduler(DDIM):
    """`ddim`, and steps of many samples at once for ParaDiGMS (arXiv 2305.16317)."""

    _is_ode_scheduler = True

    def batch_step_no_noise(
        self,
        model_output: Tensor,
        timesteps: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> Tensor:
        """The next samples of several, each from a training time of its own; the run stays.

        Args:
            model_output: the network's raw outputs, (batch, …).
            timesteps: the times that it was called with, (batch,), whole numbers.
            sample: the samples, (batch, …).
            eta: the part of DDPM's noise that the caller adds, in [0, 1].
            use_clipped_model_output: whether the noise follows a clipped prediction.

        Returns:
            The samples a stride T // N below, without fresh noise.
        """
        return self._without_noise(model_output, timesteps, sample, eta, use_clipped_model_output)


@dataclass(frozen=True)
class Sized:
    """A run's noise, each number of it in a size of its own."""

    noise: Callable[[int, Tensor], Tensor] | None
    size: Tensor

    def __call__(self, row: int, like: Tensor) -> Tensor:
        """The noise of a row, in the shape and dtype of `like`."""
        assert self.noise is not None
        return self.size * self.noise(row, like)


class DDPM(Chained):
    """The classes of DDPM's posterior, with a variance of the network's where it has one."""

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
        top, low = run.table.level(run.row), run.table.level(run.row + 1)
        if float(low.sigma) == 0:
            return super()._apply(raw, noise, None)
        if learned is None:
            raise ArgumentError(
                f"variance_type={kind!r} is for a network that predicts its variance beside its"
                f" noise, here {2 * raw.shape[1]} channels; this output has {raw.shape[1]}: pass"
                " variance_type='fixed_small'"
            )
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


class DDPMScheduler(DDPM):
    """`ddpm`, whose last step ends at the clean prediction, without noise.

    The noise has the variance of the posterior ("fixed_small"), of the forward step ("fixed_large")
    or the network's ("learned"). Source: arXiv 2006.11239, section 3.2; 2102.09672, eq. 15.
    """


class DDPMParallelScheduler(DDPM):
    """`ddpm`, and steps of many samples at once for ParaDiGMS (arXiv 2305.16317)."""

    _is_ode_scheduler = False

    def batch_step_no_noise(
        self, model_output: Tensor, timesteps: Tensor, sample: Tensor
    ) -> Tensor:
        """The means of the next samples of several, each from a time of its own; the run stays.

        Args:
            model_output: the network's raw outputs, (batch, …).
            timesteps: the times that it was called with, (batch,), whole numbers.
            sample: the samples, (batch, …).

        Returns:
            The samples a stride T // N below, without fresh noise.
        """
        return self._without_noise(model_output, timesteps, sample, 1.0, True)


class UnCLIPScheduler(DDPM):
    """`ddpm` on the cosine schedule, from a time to the time that `step` is given.

    Without `prev_timestep` it is the training time before, as in diffusers; pipelines give the next
    of the list.
    """

    def _step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        prev_timestep: Any = None,
        **others: Any,
    ) -> Any:
        """Advance by one network call, to training time `prev_timestep`; below 0 is the end."""
        time = number(timestep)
        target = time - 1 if prev_timestep is None else number(prev_timestep)
        one = self._aimed(time, target)
        if one is self:
            return super()._step(model_output, timestep, sample, **others)
        return DDPM._step(one, model_output, timestep, sample, **others)
