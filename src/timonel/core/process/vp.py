"""The variance preserving process."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ...errors import ArgumentError, GridError, among, finite, flag, whole
from .level import MOST_LEVELS, SNAP, Level, Process, double, interpolate, short, within

MOST_LOG = 700.0  # log(sigma / alpha) beyond which float64 has no alpha
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp")


class VP(Process):
    """Variance preserving process of a discrete schedule of betas (SD, SDXL).

    alpha = sqrt(abar), sigma = sqrt(1 - abar), abar = prod(1 - beta), at integer times 0 … T-1.
    Between them log(sigma / alpha) is linear in time, as in k-diffusion. Where the last level is
    pure noise (zero terminal SNR), the angle atan2(sigma, alpha) is linear on the last interval.
    Below the first training level (sigma_min) the time is 0.

    Args:
        betas: (T,), in (0, 1]; only the last may leave no signal (alpha below 1e-304).
        steps_offset: training index where the grid `leading` ends, 0 … T-1.

    Raises:
        ArgumentError: for betas out of range, or pure noise before the last level.

    Source: Ho et al. 2020, arXiv 2006.11239.
    """

    kind = "vp"

    def __init__(self, betas: Tensor | Sequence[float], *, steps_offset: int = 0) -> None:
        betas = double(betas)
        if betas.ndim != 1 or len(betas) < 1:
            raise ArgumentError(
                f"betas must be a list of at least 1 number, got shape {tuple(betas.shape)}"
            )
        if not bool(((betas >= 0) & (betas <= 1)).all()) or float(betas[0]) <= 0:
            raise ArgumentError(f"betas must lie in (0, 1], got {short(betas)}")
        self.train_steps = len(betas)
        self.steps_offset = whole("steps_offset", steps_offset, 0, self.train_steps - 1)
        # logarithms, for the product of 1 - beta is below 1e-308 long before alpha is
        log_abar = torch.cumsum(torch.log1p(-betas), 0)
        # log(sigma / alpha), rising; the last may be inf
        self._log = (torch.log(-torch.expm1(log_abar)) - log_abar) / 2
        self._finite = int((self._log < MOST_LOG).sum())  # training levels with signal left
        self._check_signal(betas)

    @classmethod
    def from_schedule(
        cls,
        schedule: str = "scaled_linear",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        train_steps: int = 1000,
        *,
        rescale_zero_snr: bool = False,
        steps_offset: int = 0,
        snr_shift: float = 1.0,
    ) -> VP:
        """The process of a schedule by diffusers' name; the defaults are Stable Diffusion's.

        Args:
            schedule: "linear"; "scaled_linear", linear in sqrt(beta); "squaredcos_cap_v2" (Nichol &
                Dhariwal 2021); "exp", abar = e^(-12·t) (Shap-E).
            beta_start: first beta of the linear schedules, in [0, 1].
            beta_end: their last beta, in [0, 1].
            train_steps: number of training levels T.
            rescale_zero_snr: make the last level pure noise (Lin et al. 2023, arXiv 2305.08891,
                algorithm 1); such a model must not predict epsilon.
            steps_offset: training index where the grid `leading` ends.
            snr_shift: divides alpha² / sigma² of every level before that (CogVideoX: 3).

        Returns:
            The process.

        Raises:
            ArgumentError, UnknownName: for a value outside its range.
        """
        n = whole("train_steps", train_steps, 1, MOST_LEVELS)
        among("beta schedule", schedule, SCHEDULES)
        start, end = finite("beta_start", beta_start, 0, 1), finite("beta_end", beta_end, 0, 1)
        if schedule == "linear":
            betas = torch.linspace(start, end, n, dtype=torch.float64)
        elif schedule == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2
        else:
            t = torch.arange(n + 1, dtype=torch.float64) / n
            bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            if schedule == "exp":
                bar = torch.exp(-12 * t)
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        betas = shifted_snr(betas, snr_shift)
        if flag("rescale_zero_snr", rescale_zero_snr):
            betas = zero_snr(betas)
        return cls(betas, steps_offset=steps_offset)

    def _check_signal(self, betas: Tensor) -> None:
        """Refuse more than one level of pure noise, for a run visits levels that fall."""
        first, last = self._finite, self.train_steps - 1
        if first > last or (first == last and first and float(betas[-1]) == 1):
            return
        beta = float(betas[first])
        why = "a beta of 1" if beta == 1 else f"betas up to {float(betas[: first + 1].max()):.6g}"
        raise ArgumentError(
            f"{why} at training level {first} of 0 to {last}: from there on nothing is left of the"
            " picture, and only the last level may be pure noise; give smaller betas"
        )

    @property
    def sigma_min(self) -> float:
        return float(self._log[0].exp())

    @property
    def sigma_max(self) -> float:
        return float(self._log[-1].exp())

    def _pair(self, log: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma from log(sigma / alpha)."""
        return torch.exp(logsigmoid(-2 * log) / 2), torch.exp(logsigmoid(2 * log) / 2)

    def _edge_angle(self) -> Tensor:
        """atan2(alpha, sigma) of the noisiest level with signal, accurate near 0."""
        alpha, sigma = self._pair(self._log[self._finite - 1])
        return torch.atan2(alpha, sigma)

    def _knots(self) -> Tensor:
        return torch.arange(self._finite, dtype=torch.float64)

    def at_time(self, time: Tensor) -> Level:
        last = self.train_steps - 1
        time = within(double(time), last, f"times must lie in [0, {last}]")
        alpha, sigma = self._pair(interpolate(time, self._knots(), self._log[: self._finite]))
        if self._finite < self.train_steps:
            edge = self._finite - 1
            angle = self._edge_angle() * (last - time) / (last - edge)
            beyond = time > edge
            alpha = torch.where(beyond, torch.sin(angle), alpha)
            sigma = torch.where(beyond, torch.cos(angle), sigma)
        return Level(alpha, sigma, time)

    def at_sigma(self, sigma: Tensor) -> Level:
        sigma = self._check_sigma(double(sigma))
        clean = sigma == 0
        level = self.at_lam(-torch.log(torch.where(clean, self.sigma_min, sigma)))
        return Level(
            torch.where(clean, 1.0, level.alpha),
            torch.where(clean, 0.0, level.sigma),
            torch.where(clean, 0.0, level.time),
        )

    def at_lam(self, lam: Tensor) -> Level:
        log = -double(lam)
        alpha, sigma = self._pair(log)
        first, edge = self._log[0], self._finite - 1
        time = interpolate(torch.maximum(log, first), self._log[: self._finite], self._knots())
        if self._finite < self.train_steps:
            share = 1 - torch.atan2(alpha, sigma) / self._edge_angle()
            time = torch.where(
                log > self._log[edge], edge + share * (self.train_steps - 1 - edge), time
            )
        elif bool((log > self._log[-1] + SNAP).any()):
            raise GridError(
                f"lam {-log.max().item():.6g} is noisier than this process' noisiest level"
                f" {float(-self._log[-1]):.6g}"
            )
        return Level(alpha, sigma, time.clamp(max=self.train_steps - 1.0))

    def at_index(self, index: Tensor) -> Level:
        return self.at_time(index)


def zero_snr(betas: Tensor) -> Tensor:
    """Betas rescaled so that the last level is pure noise (arXiv 2305.08891, algorithm 1)."""
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = root**2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def shifted_snr(betas: Tensor, shift: float) -> Tensor:
    """Betas of levels whose alpha² / sigma² is divided by `shift` (CogVideoX, arXiv 2408.06072)."""
    shift = finite("snr_shift", shift, 1e-9)
    if shift == 1:
        return betas
    bar = torch.cumprod(1 - betas, 0)
    bar = bar / (shift + (1 - shift) * bar)
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
