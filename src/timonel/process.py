"""Noise processes and levels: how much signal and how much noise a model sees at which time.

Every level is a pair (alpha, sigma): `x = alpha * x0 + sigma * eps`. Coordinates are the model's
own, with unit variance where the process has it, so latents stay of order one at every level and
the network needs no input scaling.

| process | alpha, sigma                                  | schedule sigma    | time the network is told |
|---------|-----------------------------------------------|-------------------|--------------------------|
| VP      | sqrt(abar), sqrt(1 - abar)                    | sigma / alpha     | 0 … T-1                  |
| EDM     | 1 / sqrt(s² + d²), s / sqrt(s² + d²)          | s = sigma / alpha | 0.25 · log s             |
| Flow    | 1 - t, t                                      | t                 | T · t                    |

"Schedule sigma" is the number people write in sigma lists (`sigmas=[14.6, …]`, flow `[1.0, …]`).
All conversions are float64 and differentiable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .errors import ArgumentError, GridError, TimonelError, UnknownName, finite, whole

MOST_LEVELS = 1_000_000  # a list of betas longer than this is a mistake
SNAP = 1e-6  # relative slack when a listed sigma is the end of the process up to rounding


class Level(NamedTuple):
    """One amount of noise (or a vector of them): `x = alpha·x0 + sigma·eps`, told to the network as `time`."""

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


def double(values: Any) -> Tensor:
    """`values` as a float64 tensor on the CPU, keeping a gradient if it has one."""
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


class Process(ABC):
    """The family of all levels of a model. Subclasses: `VP`, `EDM`, `Flow`."""

    kind: ClassVar[str]
    train_steps: int
    steps_offset: int = 0

    @property
    @abstractmethod
    def sigma_min(self) -> float:
        """Smallest schedule sigma the network was trained at."""

    @property
    @abstractmethod
    def sigma_max(self) -> float:
        """Largest schedule sigma; inf when the process reaches pure noise in sigma / alpha."""

    @abstractmethod
    def at_time(self, time: Tensor) -> Level:
        """Levels at network times (fractional times allowed). Raises `GridError` outside the range."""

    @abstractmethod
    def at_sigma(self, sigma: Tensor) -> Level:
        """Levels at schedule sigmas; 0 is the clean level. Raises `GridError` outside the range."""

    @abstractmethod
    def at_lam(self, lam: Tensor) -> Level:
        """Levels at `lam = log(alpha / sigma)`."""

    @abstractmethod
    def at_index(self, index: Tensor) -> Level:
        """Levels at training indices 0 (cleanest) … train_steps - 1 (noisiest), fractional allowed."""

    def clean(self) -> Level:
        """The level sigma = 0, where the sample is the denoised sample; the network is never called there."""
        return self.at_sigma(double([0.0]))

    def _check_sigma(self, sigma: Tensor) -> Tensor:
        """Snap rounding at the upper end, refuse what lies outside [0, sigma_max]."""
        top = self.sigma_max
        if not bool(torch.isfinite(sigma).all()) or bool((sigma < 0).any()):
            raise GridError(f"sigmas must be finite and not negative, got {_short(sigma)}")
        if bool((sigma > top * (1 + SNAP)).any()):
            raise GridError(
                f"sigma {sigma.max().item():.6g} is above this process' largest sigma {top:.6g}; "
                f"start the list at {top:.6g} or below"
            )
        return torch.where(sigma > top, sigma - sigma.detach() + top, sigma) if math.isfinite(top) else sigma


def _short(values: Tensor) -> str:
    shown = [f"{v:.6g}" for v in values.detach().flatten().tolist()[:8]]
    return "[" + ", ".join(shown) + (", …]" if values.numel() > 8 else "]")


def interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear y(x) through rising knots `xs`; differentiable in x."""
    right = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    return y0 + (y1 - y0) * ((x - x0) / (x1 - x0))


class VP(Process):
    """Variance preserving process given by betas.

    `abar_t = prod(1 - beta)`, alpha = sqrt(abar), sigma = sqrt(1 - abar) at integer times 0…T-1
    (Ho et al. 2020, arXiv 2006.11239). Between integer times log(sigma / alpha) is linear in time,
    as in k-diffusion; where the last training level is pure noise (alpha = 0), the angle
    atan2(sigma, alpha) is linear in time on the last interval instead.

    Below the first training level (sigma_min) the time is 0.
    """

    kind = "vp"

    def __init__(self, betas: Tensor | Sequence[float], *, steps_offset: int = 0) -> None:
        betas = double(betas)
        if betas.ndim != 1 or len(betas) < 2:
            raise ArgumentError(f"betas must be a list of at least 2 numbers, got shape {tuple(betas.shape)}")
        if not bool(((betas >= 0) & (betas <= 1)).all()) or float(betas[0]) <= 0:
            raise ArgumentError(f"betas must lie in (0, 1], got {_short(betas)}")
        abar = torch.cumprod(1 - betas, 0)
        self.train_steps = len(betas)
        self.steps_offset = whole("steps_offset", steps_offset, 0, self.train_steps - 1)
        self._alpha, self._sigma = abar.sqrt(), (1 - abar).sqrt()
        self._log = torch.log(self._sigma) - torch.log(self._alpha)  # rising; last may be inf
        self._finite = int(torch.isfinite(self._log).sum())  # training levels with signal left

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
    ) -> VP:
        """Betas by name: linear, scaled_linear (linear in sqrt), squaredcos_cap_v2 (Nichol & Dhariwal 2021).

        `rescale_zero_snr` shifts and scales sqrt(abar) so that the last level is pure noise
        (Lin et al. 2023, arXiv 2305.08891, algorithm 1); such a model must not predict epsilon.
        """
        n = whole("train_steps", train_steps, 2, MOST_LEVELS)
        start, end = finite("beta_start", beta_start, 0, 1), finite("beta_end", beta_end, 0, 1)
        if schedule == "linear":
            betas = torch.linspace(start, end, n, dtype=torch.float64)
        elif schedule == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2
        elif schedule == "squaredcos_cap_v2":
            t = torch.arange(n + 1, dtype=torch.float64) / n
            bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        else:
            raise UnknownName("beta schedule", schedule, ["linear", "scaled_linear", "squaredcos_cap_v2"])
        return cls(zero_snr(betas) if rescale_zero_snr else betas, steps_offset=steps_offset)

    @property
    def sigma_min(self) -> float:
        return float(self._log[0].exp())

    @property
    def sigma_max(self) -> float:
        return float(self._log[-1].exp())

    def _pair(self, log: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma from log(sigma / alpha)."""
        return torch.sigmoid(-2 * log).sqrt(), torch.sigmoid(2 * log).sqrt()

    def _knots(self) -> Tensor:
        return torch.arange(self._finite, dtype=torch.float64)

    def at_time(self, time: Tensor) -> Level:
        time = double(time)
        last = self.train_steps - 1
        if not bool(torch.isfinite(time).all()) or bool(((time < 0) | (time > last)).any()):
            raise GridError(f"times must lie in [0, {last}], got {_short(time)}")
        alpha, sigma = self._pair(interpolate(time, self._knots(), self._log[: self._finite]))
        if self._finite < self.train_steps:
            edge = self._finite - 1
            angle0 = torch.atan2(self._sigma[edge], self._alpha[edge])
            angle = angle0 + (math.pi / 2 - angle0) * (time - edge) / (last - edge)
            beyond = time > edge
            alpha = torch.where(beyond, torch.where(time == last, 0.0, torch.cos(angle)), alpha)
            sigma = torch.where(beyond, torch.sin(angle), sigma)
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
            angle0 = torch.atan2(self._sigma[edge], self._alpha[edge])
            share = (torch.atan2(sigma, alpha) - angle0) / (math.pi / 2 - angle0)
            time = torch.where(log > self._log[edge], edge + share * (self.train_steps - 1 - edge), time)
        elif bool((log > self._log[-1] + SNAP).any()):
            raise GridError(
                f"lam {-log.max().item():.6g} is noisier than this process' noisiest level {float(-self._log[-1]):.6g}"
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


class EDM(Process):
    """Karras et al. 2022 (arXiv 2206.00364): s = sigma / alpha from `sigma_max` to `sigma_min`.

    The network sees `x / sqrt(s² + sigma_data²)` and the time `0.25 · log s`. With the default
    sigma_data = 1 (SVD) this is a variance preserving process with a continuous time.
    """

    kind = "edm"

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        *,
        sigma_data: float = 1.0,
        train_steps: int = 1000,
    ) -> None:
        self._min = finite("sigma_min", sigma_min, 1e-12)
        self._max = finite("sigma_max", sigma_max, self._min)
        self.sigma_data = finite("sigma_data", sigma_data, 1e-12)
        self.train_steps = whole("train_steps", train_steps, 2)

    @property
    def sigma_min(self) -> float:
        return self._min

    @property
    def sigma_max(self) -> float:
        return self._max

    def _level(self, s: Tensor) -> Level:
        norm = torch.sqrt(s**2 + self.sigma_data**2)
        told = torch.where(s > 0, s, self._min)
        return Level(1 / norm, s / norm, 0.25 * torch.log(told))

    def at_time(self, time: Tensor) -> Level:
        return self._level(self._check_sigma(torch.exp(4 * double(time))))

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(self._check_sigma(double(sigma)))

    def at_lam(self, lam: Tensor) -> Level:
        return self.at_sigma(torch.exp(-double(lam)))

    def at_index(self, index: Tensor) -> Level:
        share = double(index) / (self.train_steps - 1)
        low, high = math.log(self._min), math.log(self._max)
        return self.at_sigma(torch.exp(low + share * (high - low)))


class Flow(Process):
    """Rectified flow: `x = (1 - t)·x0 + t·eps`, time = train_steps · t (SD3, Flux, Wan).

    `shift` s moves evenly spaced u to t = s·u / (1 + (s - 1)·u) (Esser et al. 2024,
    arXiv 2403.03206, eq. 23); it only changes which levels the spaced grids visit, never what the
    network is told. `with_image_tokens` gives the resolution-dependent shift of Flux.
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
    ) -> None:
        self.shift = finite("shift", shift, 1e-9)
        self.train_steps = whole("train_steps", train_steps, 2)
        self._dynamic = (float(base_shift), float(max_shift), int(base_tokens), int(max_tokens))

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
        )

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
        return Level(1 - t, t, self.train_steps * t)

    def at_time(self, time: Tensor) -> Level:
        return self.at_sigma(double(time) / self.train_steps)

    def at_sigma(self, sigma: Tensor) -> Level:
        return self._level(self._check_sigma(double(sigma)))

    def at_lam(self, lam: Tensor) -> Level:
        return self._level(torch.sigmoid(-double(lam)))

    def at_index(self, index: Tensor) -> Level:
        return self._level(self._shifted((double(index) + 1) / self.train_steps))


def from_config(config: Mapping[str, Any]) -> Process:
    """The process a diffusers scheduler config describes.

    Reads what real checkpoints carry: betas by name or trained, zero-SNR rescaling, SVD's
    continuous times with its sigma range, the EDM family's sigma_data, SD3's static and Flux's
    dynamic shift. The class name in the config decides only what no key says.

    Raises `ArgumentError` on a value that cannot be read.
    """
    try:
        return _read(config)
    except TimonelError:
        raise
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise ArgumentError(f"the scheduler config cannot be read: {error}; check {dict(config)}") from error


def _read(config: Mapping[str, Any]) -> Process:
    """The process of a config whose numbers are numbers."""
    name = str(config.get("_class_name", ""))
    get = config.get
    steps = int(get("num_train_timesteps", 1000))
    kind = get("process") or _kind(name, config)
    if kind == "flow":
        return Flow(
            float(get("shift") or get("flow_shift") or 1.0),
            train_steps=steps,
            base_shift=float(get("base_shift") or 0.5),
            max_shift=float(get("max_shift") or 1.15),
            base_tokens=int(get("base_image_seq_len") or 256),
            max_tokens=int(get("max_image_seq_len") or 4096),
        )
    if kind == "edm":
        return EDM(
            float(get("sigma_min") or 0.002),
            float(get("sigma_max") or 80.0),
            sigma_data=float(get("sigma_data") or (0.5 if name.startswith("EDM") else 1.0)),
            train_steps=steps,
        )
    offset = int(get("steps_offset") or 0)
    trained = get("trained_betas")
    if trained is not None:
        betas = double(trained)
        return VP(zero_snr(betas) if get("rescale_betas_zero_snr") else betas, steps_offset=offset)
    return VP.from_schedule(
        str(get("beta_schedule", "linear")),
        float(get("beta_start", 0.0001)),
        float(get("beta_end", 0.02)),
        steps,
        rescale_zero_snr=bool(get("rescale_betas_zero_snr", False)),
        steps_offset=offset,
    )


def _kind(name: str, config: Mapping[str, Any]) -> str:
    """Which process a config without an explicit `process` key means."""
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if name.startswith("FlowMatch") or flow or config.get("use_dynamic_shifting"):
        return "flow"
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    if name.startswith("EDM") or continuous:
        return "edm"
    return "vp"
