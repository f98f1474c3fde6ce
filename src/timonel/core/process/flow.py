"""Rectified flow."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor

from ...errors import among, finite, whole
from .level import MOST_LEVELS, Level, Process, double

CLOCKS = ("t", "u", "1 - t")


class Flow(Process):
    """Rectified flow (SD3, Flux, Wan): `x = (1 - t)·x0 + t·eps`, t from 1 to 0.

    The shift s moves evenly spaced u to `t = s·u / (1 + (s - 1)·u)`. It changes which levels the
    spaced grids visit, not what the network sees.

    Args:
        shift: s, above 0.
        train_steps: number of training levels, at least 2.
        base_shift: mu for an image of `base_tokens` latent patches, see `with_image_tokens`.
        max_shift: mu for an image of `max_tokens`.
        base_tokens: latent patches of the smallest image.
        max_tokens: latent patches of the largest image.
        clock: what the network takes as time: "t"; "u", t before the shift (CogView4); "1 - t",
            which rises along the run (Mochi).
        time_scale: the factor of that time, above 0. None: `train_steps`. 1 for networks that take
            t itself (OmniGen, ACE-Step).

    Raises:
        ArgumentError, UnknownName: for a value outside its range.

    Source: Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206, eq. 23.
    """

    kind = "flow"
    sigma_max = 1.0

    def __init__(
        self,
        shift: float = 1.0,
        *,
        train_steps: int = 1000,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_tokens: int = 256,
        max_tokens: int = 4096,
        clock: str = "t",
        time_scale: float | None = None,
    ) -> None:
        self.clock = among("clock of a flow", clock, CLOCKS)
        self.shift = finite("shift", shift, 1e-9)
        self.train_steps = whole("train_steps", train_steps, 2, MOST_LEVELS)
        self.time_scale = (
            float(self.train_steps)
            if time_scale is None
            else finite("time_scale", time_scale, 1e-9)
        )
        low = whole("base_tokens", base_tokens)
        self._dynamic = (
            finite("base_shift", base_shift), finite("max_shift", max_shift), low,
            whole("max_tokens", max_tokens, low + 1),
        )  # fmt: skip

    def with_mu(self, mu: float) -> Flow:
        """The same process with shift exp(mu), mu in [-50, 50] (diffusers' `mu`)."""
        return self._changed(shift=finite("shift", math.exp(finite("mu", mu, -50, 50)), 1e-9))

    def with_clock(self, clock: str) -> Flow:
        """The same process with another `clock`."""
        return self._changed(clock=clock)

    def _changed(self, **changes: Any) -> Flow:
        flow = copy(self)
        vars(flow).update(changes)
        return flow

    def with_image_tokens(self, tokens: int) -> Flow:
        """The process for an image of `tokens` latent patches: mu is linear in them, as in Flux."""
        base, top, low, high = self._dynamic
        slope = (top - base) / (high - low)
        return self.with_mu(base + slope * (whole("tokens", tokens) - low))

    @property
    def sigma_min(self) -> float:
        return float(self._shifted(double(1 / self.train_steps)))

    def _shifted(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def _level(self, t: Tensor) -> Level:
        time = t
        if self.clock == "1 - t":
            time = 1 - t
        elif self.clock == "u":
            time = t / (self.shift - (self.shift - 1) * t)
        return Level(1 - t, t, self.time_scale * time)

    def at_time(self, time: Tensor) -> Level:
        t = double(time) / self.time_scale
        if self.clock == "1 - t":
            t = 1 - t
        elif self.clock == "u":
            t = self._shifted(t)
        return self.at_sigma(t)

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(self._check_sigma(double(sigma)))

    def at_lam(self, lam: Tensor) -> Level:
        return self._level(torch.sigmoid(-double(lam)))

    def at_index(self, index: Tensor) -> Level:
        return self._level(self._shifted((double(index) + 1) / self.train_steps))
