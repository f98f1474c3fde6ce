"""One level, and what every noise process can say of its levels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError, GridError, shown

MOST_LEVELS = 1_000_000  # more training levels than this are a mistake
SNAP = 1e-6  # relative slack when a listed sigma is the end of the process up to rounding


class Level(NamedTuple):
    """A noise level, or a vector of them: `x = alpha·x0 + sigma·eps` at network time `time`.

    Args:
        alpha: factor of the data, float64, in [0, 1].
        sigma: factor of the noise, float64, at least 0.
        time: what the network takes as its time there, float64.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor

    @property
    def lam(self) -> Tensor:
        """log(alpha / sigma), half the log-SNR; -inf at pure noise, +inf when clean."""
        return torch.log(self.alpha) - torch.log(self.sigma)

    @property
    def ratio(self) -> Tensor:
        """sigma / alpha, the noise of the sample rescaled to unit signal; inf at pure noise."""
        return self.sigma / self.alpha

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma broadcastable to x (batch, …), one each or one for all, in its dtype."""
        shape = (-1, *(1,) * (x.ndim - 1))
        return self.alpha.to(x).reshape(shape), self.sigma.to(x).reshape(shape)


@dataclass(frozen=True)
class At:
    """The level of a sample, as a denoiser or a hook sees it.

    Args:
        alpha: of the clean sample in `x = alpha·x0 + sigma·eps`, 0 or more.
        sigma: of the noise, 0 or more.
        time: what a network of the process gets, such as 999.0.
    """

    alpha: float
    sigma: float
    time: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, inf at pure noise."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


def double(values: Any) -> Tensor:
    """`values` as a float64 tensor on the CPU, keeping a gradient if it has one."""
    try:
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ArgumentError(f"numbers are needed, got {shown(values)}") from None


class Process(ABC):
    """The noise levels of a model as a function of time, sigma, lam or training index.

    Levels are float64 and differentiable. `train_steps` is the number T of training levels;
    `steps_offset` the index where the grid `leading` ends. Subclasses: `VP`, `EDM`, `Flow`.
    """

    kind: ClassVar[str]
    train_steps: int
    steps_offset: int = 0
    lists_end: ClassVar[bool] = False  # diffusers' lists of its times have the clean level too

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """Smallest schedule sigma the network was trained at."""

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """Largest schedule sigma; inf where sigma / alpha reaches pure noise."""

    @abstractmethod
    def at_time(self, time: Tensor) -> Level:
        """Levels at network times, fractional ones too. Raises `GridError` outside the range."""

    @abstractmethod
    def at_sigma(self, sigma: Tensor) -> Level:
        """Levels at schedule sigmas; 0 is the clean level. Raises `GridError` outside the range."""

    def at_lam(self, lam: Tensor) -> Level:
        """Levels at `lam = log(alpha / sigma)`."""
        return self.at_sigma(torch.exp(-double(lam)))

    @abstractmethod
    def at_index(self, index: Tensor) -> Level:
        """Levels at training indices 0 (cleanest) … T - 1 (noisiest), fractional ones too."""

    def seen(self, level: Level) -> Tensor | None:
        """The factor from the sample to the network's input at `level`; None: 1."""
        return None

    def clean(self) -> Level:
        """The level sigma = 0, where a run ends; the network is never called there."""
        return self.at_sigma(double([0.0]))

    def _check_sigma(self, sigma: Tensor) -> Tensor:
        """Snap rounding at the upper end, refuse what lies outside [0, sigma_max]."""
        top = self.sigma_max
        if not bool(torch.isfinite(sigma).all()) or bool((sigma < 0).any()):
            raise GridError(f"sigmas must be finite and not negative, got {short(sigma)}")
        if bool((sigma > top * (1 + SNAP)).any()):
            raise GridError(
                f"sigma {sigma.max().item():.6g} is above this process' largest sigma {top:.6g}; "
                f"start the list at {top:.6g} or below"
            )
        if not math.isfinite(top):
            return sigma
        return torch.where(sigma > top, sigma - sigma.detach() + top, sigma)


def within(time: Tensor, top: float, rule: str) -> Tensor:
    """`time`. Raises `GridError` unless all of it is finite and in [0, top]."""
    if not bool((torch.isfinite(time) & (time >= 0) & (time <= top)).all()):
        raise GridError(f"{rule}, got {short(time)}")
    return time


def short(values: Tensor) -> str:
    """The first eight numbers, for a message."""
    shown = [f"{v:.6g}" for v in values.detach().flatten().tolist()[:8]]
    return "[" + ", ".join(shown) + (", …]" if values.numel() > 8 else "]")


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear y(x) through rising knots `xs`; differentiable in x."""
    if len(xs) == 1:
        return ys[0] + 0 * x
    right = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (y1 - y0) * ((x - x0) / (x1 - x0))
