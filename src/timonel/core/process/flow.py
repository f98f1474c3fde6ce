"""Rectified flow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import among, finite, whole
from .level import MOST_LEVELS, Level, Process, double

TOLD = ("t", "u", "1 - t")


class Flow(Process):
    """Rectified flow: `x = (1 - t)·x0 + t·eps`, time = clock · t (SD3, Flux, Wan).

    `shift` s moves evenly spaced u to t = s·u / (1 + (s - 1)·u) (Esser et al. 2024,
    arXiv 2403.03206, eq. 23); it only changes which levels the spaced grids visit, never what the
    network is told. `with_image_tokens` gives the resolution-dependent shift of Flux.

    `clock`: the network's time at pure noise, if not `train_steps`: 1 of models that are told t
    itself (OmniGen, ACE-Step). `told`: "t"; or "u", the time before the shift (CogView4); or "1 -
    t", time that runs backwards (Mochi).
    """

    kind = "flow"

    def __init__(
        self,
        shift: float = 1.0,
        *,
        train_steps: int = 1000,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_tokens: int = 256,
        max_tokens: int = 4096,
        told: str = "t",
        clock: float | None = None,
    ) -> None:
        self.told = among("time of a flow", told, TOLD)
        self.shift = finite("shift", shift, 1e-9)
        self.train_steps = whole("train_steps", train_steps, 2, MOST_LEVELS)
        self.clock = float(self.train_steps) if clock is None else finite("clock", clock, 1e-9)
        low = whole("base_tokens", base_tokens)
        self._dynamic = (
            finite("base_shift", base_shift), finite("max_shift", max_shift), low,
            whole("max_tokens", max_tokens, low + 1),
        )  # fmt: skip

    def with_mu(self, mu: float) -> Flow:
        """The same process with shift exp(mu): exp(mu) / (exp(mu) + 1/u - 1)."""
        base, top, low, high = self._dynamic
        return Flow(
            math.exp(finite("mu", mu, -50, 50)),
            train_steps=self.train_steps,
            base_shift=base,
            max_shift=top,
            base_tokens=low,
            max_tokens=high,
            told=self.told,
            clock=self.clock,
        )

    def with_time(self, told: str) -> Flow:
        """The same process with another time told to the network."""
        made = self.with_mu(math.log(self.shift))
        made.shift, made.told = self.shift, told
        return made

    def with_image_tokens(self, tokens: int) -> Flow:
        """The shift for an image of `tokens` latent patches: mu is linear in the number of tokens."""
        base, top, low, high = self._dynamic
        slope = (top - base) / (high - low)
        return self.with_mu(base + slope * (whole("tokens", tokens) - low))

    @property
    def sigma_min(self) -> float:
        return float(self._shifted(double(1 / self.train_steps)))

    @property
    def sigma_max(self) -> float:
        return 1.0

    def _shifted(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def _level(self, t: Tensor) -> Level:
        time = (
            1 - t
            if self.told == "1 - t"
            else t / (self.shift - (self.shift - 1) * t)
            if self.told == "u"
            else t
        )
        return Level(1 - t, t, self.clock * time)

    def at_time(self, time: Tensor) -> Level:
        share = double(time) / self.clock
        return self.at_sigma(
            1 - share
            if self.told == "1 - t"
            else self._shifted(share)
            if self.told == "u"
            else share
        )

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(self._check_sigma(double(sigma)))

    def at_lam(self, lam: Tensor) -> Level:
        return self._level(torch.sigmoid(-double(lam)))

    def at_index(self, index: Tensor) -> Level:
        return self._level(self._shifted((double(index) + 1) / self.train_steps))
