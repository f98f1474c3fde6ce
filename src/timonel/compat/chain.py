"""diffusers' schedulers of DDPM's chain by name: DDIM and DDPM."""

# ruff: noqa: RUF012 (the class attributes are declared in `Compat`, as ClassVar)

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from ..core.grids import Grid
from ..core.sampler import Sampler
from ..core.table import Table
from ..errors import ArgumentError
from .base import Compat
from .defaults import BETAS, LEADING, THRESHOLD
from .flags import LARGE, LEARNED, SMALL

logger = logging.getLogger("timonel")
Flags = Mapping[str, Any]
Named = tuple[str, dict[str, Any]]


class DDIMScheduler(Compat):
    """`ddim`. `eta` may come with the first step, as pipelines give it.

    `clip_sample` and `thresholding` act on the clean part of a step, and the noise stays the
    network's; with `use_clipped_model_output=True` in `step` the noise follows the clipped
    prediction.
    """

    family, eta, by_time, strides = "index", 0.0, True, True
    takes = ("eta", "use_clipped_model_output", "generator", "variance_noise", "return_dict")
    defaults = {
        **BETAS, "clip_sample": True, "set_alpha_to_one": True, "steps_offset": 0,
        "prediction_type": "epsilon",
        **{k: v for k, v in THRESHOLD.items() if k != "sample_max_value"}, "clip_sample_range": 1.0,
        "sample_max_value": 1.0, "timestep_spacing": "leading", "rescale_betas_zero_snr": False,
    }  # fmt: skip

    def _solver(self, flags: Flags) -> Named:
        return "ddim", {"eta": 0.0}

    def _draws(self) -> bool:
        return bool(self.settled.options["eta"] > 0)

    def _get_variance(self, timestep: Any, prev_timestep: Any) -> Tensor:
        """The variance of the noise between two training times at eta = 1, which editing pipelines
        read.

        arXiv 2010.02502, eq. 16. `prev_timestep` below 0 is the end of the list.
        """
        bars = self.alphas_cumprod
        bar, before = (
            bars[timestep],
            bars[prev_timestep] if prev_timestep >= 0 else self.final_alpha_cumprod,
        )
        return (1 - before) / (1 - bar) * (1 - bar / before)


@dataclass(frozen=True)
class Sized:
    """A run's noise, each number of it in a size of its own."""

    noise: Any
    size: Tensor

    def __call__(self, row: int, like: Tensor) -> Tensor:
        drawn: Tensor = self.size * self.noise(row, like)
        return drawn


class DDPMScheduler(Compat):
    """`ddpm`, with the variance of the posterior ("fixed_small"), of the forward step
    ("fixed_large") or the network's.

    The last step ends at the clean prediction, without noise. arXiv 2006.11239, section 3.2;
    2102.09672, eq. 15.
    """

    family, by_time, strides, one_list = "index", True, True, True
    takes = ("generator", "return_dict")
    defaults = {
        **BETAS, "variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon",
        "thresholding": False, "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0,
        "sample_max_value": 1.0,
        **LEADING, "rescale_betas_zero_snr": False,
    }  # fmt: skip
    solver = "ddpm"

    def _draws(self) -> bool:
        return self.run.level.time > 0

    @classmethod
    def _check(cls, flags: Flags) -> None:
        super()._check(flags)
        known, kind = (*SMALL, *LARGE, *LEARNED), flags["variance_type"]
        if kind not in (*known, None):
            near = get_close_matches(str(kind), known, 1, 0)[0]
            logger.warning(
                "variance_type=%r is no word of DDPM: the noise is that of 'fixed_small'; %r?",
                kind,
                near,
            )

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        """With "fixed_large" every row's noise has sqrt(beta) for its standard deviation, not the
        posterior's.
        """
        table = super()._compile(sampler, grid, before)
        if self.config["variance_type"] not in LARGE:
            return table
        top, low = table.sigma[:-1], table.sigma[1:]
        size = torch.where(low > 0, top / torch.where(low > 0, low, 1.0), 1.0)[:, None]
        return replace(table, x=torch.cat([table.x[:, :-1], table.x[:, -1:] * size], 1))

    def _get_variance(
        self, t: Any, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor | None:
        """The variance of the step from training time `t`, in the words of diffusers' class.

        Args:
            t: the training time.
            predicted_variance: the network's, for "learned" and "learned_range".
            variance_type: None is the config's. "fixed_small_log" gives the standard deviation;
            "learned_range" and
                "fixed_large_log" the logarithm.

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
        """One row, whose noise has the network's variance where the config says so (arXiv
        2102.09672, eq. 15).
        """
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
        most = float(
            top.sigma / low.sigma
        )  # standard deviation of the forward step, in units of the posterior's
        if kind == "learned_range":
            size = most ** ((learned + 1) / 2)
        else:
            size = learned.sqrt() * most / float((1 - (top.alpha / low.alpha) ** 2).sqrt())
        if noise is None:
            run.advance(raw, Sized(run.noise, size))
        else:
            run.advance(raw, lambda row, like: size * noise)
