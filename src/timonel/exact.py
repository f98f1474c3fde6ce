"""Denoisers that are known exactly: no weights, no training, and a truth for every sampler.

    mixture = Mixture.random(seed=0, components=8, dimension=32, classes=2)
    truth = solve(mixture, noise, process)              # what infinitely many steps reach
    result = tm.sample(mixture, noise, "dpmpp_2m/karras", process=process, steps=10)
    error = result - truth

Every one is a callable `(x, level) -> denoised` for `x = alpha·x0 + sigma·noise` (batch, …), on any
process. It reads alpha and sigma of the level, floats or tensors (batch,); it computes in float64
and returns the dtype of x.

| data                 | denoised sample E[x0 given x]                                             |
|----------------------|---------------------------------------------------------------------------|
| `Gaussian` N(m, s²)  | m + alpha·s² / (alpha²·s² + sigma²) · (x - alpha·m)                       |
| `Mixture` of N(m, C) | mean of m + alpha·C·(alpha²·C + sigma²)⁻¹·(x - alpha·m) by posterior      |
|                      | weights, C = F·Fᵀ + s²                                                    |
| `Pictures` y₁ … yₙ   | mean of the y by softmax(-|x - alpha·y|² / 2·sigma²)                      |

`perturbed` adds a smooth error of known size, `rounded` the error of integer times and of half
precision.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .core.guidance import combine
from .core.process import At, Level, Process, double
from .engine.reference import reference, solve
from .errors import ArgumentError, UnknownName, finite, whole

__all__ = [
    "Denoiser", "Exact", "Gaussian", "Mixture", "Pictures", "perturbed", "reference", "rounded",
    "solve",
]  # fmt: skip

Denoiser = Callable[[Tensor, "At | Level"], Tensor]
FEATURES = 64  # waves in the error that `perturbed` adds


def _amounts(x: Tensor, level: At | Level) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of a level as (1, 1) or (batch, 1), in float64."""
    pair = []
    for name, value in (("alpha", level.alpha), ("sigma", level.sigma)):
        one = torch.as_tensor(value, dtype=torch.float64, device=x.device)
        if one.ndim > 1 or (one.ndim == 1 and len(one) not in (1, len(x))):
            raise ArgumentError(
                f"{name} must be one number or one per sample, got {tuple(one.shape)} for {len(x)}"
            )
        pair.append(one.reshape(-1, 1))
    return pair[0], pair[1]


class Exact(ABC):
    """Data whose denoiser is known. `shape`: of a sample."""

    shape: tuple[int, ...]

    def __call__(self, x: Tensor, level: At | Level) -> Tensor:
        """The denoised samples (batch, …).

        Args:
            x: Noisy samples (batch, …).
            level: Their alpha and sigma, numbers or tensors (batch,).

        Raises:
            ArgumentError: For another shape, or another number of levels.
        """
        flat, alpha, sigma = self._read(x, level)
        return self._denoised(flat, alpha, sigma).reshape(x.shape).to(x.dtype)

    def _read(self, x: Tensor, level: At | Level) -> tuple[Tensor, Tensor, Tensor]:
        if (
            not isinstance(x, Tensor)
            or tuple(x.shape[1:]) != self.shape
            or not x.is_floating_point()
        ):
            raise ArgumentError(
                f"a sample of this data has shape (batch, {', '.join(map(str, self.shape))}), got "
                f"{tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}"
            )
        return x.reshape(len(x), -1).double(), *_amounts(x, level)

    @abstractmethod
    def _denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The formula, on samples (batch, dimension)."""

    @abstractmethod
    def draw(self, count: int, seed: int) -> Tensor:
        """Clean samples of the data (count, …), in float64.

        Args:
            count: How many, 1 or more.
            seed: Of the draw.

        Returns:
            The samples.
        """


class Gaussian(Exact):
    """Data N(mean, std²) with independent dimensions, whose probability-flow ODE is known too.

    Args:
        mean: Of a sample's shape, or one number for all its dimensions.
        std: The same, not negative.

    Raises:
        ArgumentError: For numbers that are not finite, or a negative std.

    Source: Wang & Vastola 2023, arXiv 2303.02490: what trained networks do at high noise.
    """

    def __init__(self, mean: Tensor | float, std: Tensor | float) -> None:
        mean, std = double(mean), double(std)
        self.mean, self.std = mean + torch.zeros_like(std), std + torch.zeros_like(mean)
        if not bool((torch.isfinite(self.mean + self.std) & (self.std >= 0)).all()):
            raise ArgumentError(
                f"mean must be finite and std finite and not negative, got {mean!r} and {std!r}"
            )
        self.shape = tuple(self.mean.shape)

    def _denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        mean = self.mean.to(x.device).reshape(1, -1)
        variance = self.std.to(x.device).reshape(1, -1) ** 2
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    def solution(self, x: Tensor, at: At | Level, end: At | Level | None = None) -> Tensor:
        """Where the probability-flow ODE takes x.

        The standardised sample (x - alpha·mean) / sqrt(alpha²·std² + sigma²) stays the same.

        Args:
            x: Noisy samples (batch, …).
            at: Their level.
            end: The level to go to; None is the clean sample.

        Returns:
            The samples there (batch, …), in the dtype of x.
        """
        flat, alpha, sigma = self._read(x, at)
        to_alpha, to_sigma = _amounts(x, end or At(1.0, 0.0, 0.0))
        mean, std = self.mean.to(x.device).reshape(1, -1), self.std.to(x.device).reshape(1, -1)
        unit = (flat - alpha * mean) / torch.sqrt(alpha**2 * std**2 + sigma**2)
        result = to_alpha * mean + torch.sqrt(to_alpha**2 * std**2 + to_sigma**2) * unit
        return result.reshape(x.shape).to(x.dtype)

    def draw(self, count: int, seed: int) -> Tensor:
        noise = torch.randn(
            whole("count", count), *self.shape, generator=_seeded(seed), dtype=torch.float64
        )
        return self.mean + self.std * noise


class Mixture(Exact):
    """Data from components N(m_k, F_k·F_kᵀ + diag(s_k²)), each of a class.

    The mixture is the unconditional denoiser, `conditional(label)` that of a class and `guided`
    their guidance, so that guidance is exact too.

    Args:
        weights: Of the components (K,), above 0; they are scaled to sum to 1.
        means: m, (K, …).
        stds: s, one number, (K,) or (K, …), above 0.
        factors: F (K, …, rank), the directions in which a component is wider; None is none.
        classes: One whole number per component, all 0 by default.

    Raises:
        ArgumentError: For numbers that are no mixture.
    """

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Tensor,
        stds: Tensor | float,
        factors: Tensor | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        weights, means, stds = double(weights), double(means), double(stds)
        factors = means.new_zeros(*means.shape, 0) if factors is None else double(factors)
        _mixes(weights, means, stds, factors)
        count, self.shape = len(weights), tuple(means.shape[1:])
        self.weights, self.means = weights / weights.sum(), means.reshape(count, -1)
        if stds.ndim:
            stds = stds.reshape(*stds.shape, *(1,) * (means.ndim - stds.ndim))
        self.variances = (stds**2).expand(means.shape).reshape(count, -1).clone()
        self.factors = factors.reshape(count, self.means.shape[1], -1)
        self.classes = (0,) * count if classes is None else tuple(int(c) for c in classes)
        if len(self.classes) != count:
            raise ArgumentError(f"{count} components need as many classes, got {len(self.classes)}")

    @classmethod
    def random(
        cls,
        seed: int,
        components: int = 8,
        dimension: int = 32,
        *,
        rank: int = 2,
        classes: int = 2,
        std: tuple[float, float] = (0.03, 0.3),
    ) -> Mixture:
        """A random mixture, of mean 0 and mean variance 1 per dimension.

        Args:
            seed: Of the draw.
            components: K; component k is of class k mod `classes`.
            dimension: Of a sample (dimension,).
            rank: Directions along which a component is as wide as the data.
            classes: At most as many as components.
            std: Range of the standard deviations, log-uniform, before the scaling.

        Returns:
            The mixture.
        """
        k, d = whole("components", components), whole("dimension", dimension)
        r, c = whole("rank", rank, 0, d), whole("classes", classes, 1, k)
        low, high = finite("std", std[0], 1e-9), finite("std", std[1], std[0])
        g = _seeded(seed)
        weights = 0.5 + torch.rand(k, generator=g, dtype=torch.float64)
        means = torch.randn(k, d, generator=g, dtype=torch.float64)
        stds = low * (high / low) ** torch.rand(k, d, generator=g, dtype=torch.float64)
        factors = torch.randn(k, d, r, generator=g, dtype=torch.float64) / math.sqrt(max(r, 1) * 2)
        share = (weights / weights.sum())[:, None]
        means = means - (share * means).sum(0)
        scale = torch.sqrt((share * (means**2 + stds**2 + (factors**2).sum(-1))).sum() / d)
        return cls(weights, means / scale, stds / scale, factors / scale, [i % c for i in range(k)])

    def conditional(self, label: int) -> Mixture:
        """The components of one class.

        Raises:
            UnknownName: For a class that no component is of.
        """
        if label not in self.classes:
            raise UnknownName("class", label, sorted({str(c) for c in self.classes}))
        of = torch.tensor([c == label for c in self.classes])
        shape = (int(of.sum()), *self.shape)
        return Mixture(
            self.weights[of], self.means[of].reshape(shape),
            self.variances[of].sqrt().reshape(shape),
            self.factors[of].reshape(*shape, -1) if self.factors.shape[-1] else None,
            [label] * shape[0],
        )  # fmt: skip

    def guided(self, label: int, scale: float) -> Denoiser:
        """Classifier-free guidance, uncond + scale·(cond - uncond), as one denoiser.

        Args:
            label: The class it is guided to.
            scale: Guidance scale, 0 or more.

        Returns:
            `denoise(x, level)`.
        """
        cond, scale = self.conditional(label), finite("guidance scale", scale, 0)
        return lambda x, level: combine(cond(x, level), self(x, level), scale)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The components' log(weight·density) (batch, K) and denoised (batch, K, dimension).

        (D + U·Uᵀ)⁻¹ with U = alpha·F is Woodbury's identity: rank x rank matrices are factorised.
        """
        alpha, sigma = alpha[..., None], sigma[..., None]
        weights, mean = self.weights.to(x.device), self.means.to(x.device)
        variance, factors = self.variances.to(x.device), self.factors.to(x.device)
        diagonal = alpha**2 * variance + sigma**2
        offset = x[:, None] - alpha * mean
        inverse = offset / diagonal
        log = -torch.log(diagonal).sum(-1) / 2
        clean = variance * inverse
        if factors.shape[-1]:
            eye = torch.eye(factors.shape[-1], dtype=torch.float64, device=x.device)
            inner = factors.mT @ (factors / diagonal[..., None])
            root = torch.linalg.cholesky(eye + alpha[..., None] ** 2 * inner)
            along = torch.einsum("bkd,kdr->bkr", inverse, factors)
            solved = (torch.cholesky_inverse(root) * along[:, :, None]).sum(-1)
            across = torch.einsum("kdr,bkr->bkd", factors, solved)
            inverse = inverse - alpha**2 * across / diagonal
            clean = variance * inverse + across
            log = log - torch.log(root.diagonal(dim1=-2, dim2=-1)).sum(-1)
        quadratic = (offset * inverse).sum(-1)
        return torch.log(weights) + log - quadratic / 2, mean + alpha * clean

    def _denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        log, clean = self._components(x, alpha, sigma)
        return (torch.softmax(log, -1)[..., None] * clean).sum(1)

    def log_density(self, x: Tensor, level: At | Level) -> Tensor:
        """The log density of noisy samples.

        Args:
            x: Noisy samples (batch, …).
            level: Their alpha and sigma, numbers or tensors (batch,).

        Returns:
            log p(x) (batch,), in float64.
        """
        flat, alpha, sigma = self._read(x, level)
        log = torch.logsumexp(self._components(flat, alpha, sigma)[0], -1)
        return log - flat.shape[1] / 2 * math.log(2 * math.pi)

    def draw(self, count: int, seed: int) -> Tensor:
        g, (_, d, r) = _seeded(seed), self.factors.shape
        of = torch.multinomial(self.weights, whole("count", count), replacement=True, generator=g)
        noise = torch.randn(count, d, generator=g, dtype=torch.float64) * self.variances[of].sqrt()
        along = torch.randn(count, r, 1, generator=g, dtype=torch.float64)
        return (self.means[of] + noise + (self.factors[of] @ along)[..., 0]).reshape(
            count, *self.shape
        )


class Pictures(Exact):
    """The data is a list of pictures and nothing else, so that the denoiser only remembers.

    Towards sigma = 0 a sample is drawn to one picture: this is the stiffest of the exact models.

    Args:
        pictures: (n, …).
    """

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = double(pictures)
        some = self.pictures.ndim > 1 and len(self.pictures)
        if not some or not bool(torch.isfinite(self.pictures).all()):
            raise ArgumentError(
                f"pictures must be finite and (n, …), got shape {tuple(self.pictures.shape)}"
            )
        self.shape = tuple(self.pictures.shape[1:])

    def _denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if not bool((sigma > 0).all()):
            raise ArgumentError(
                "the ideal denoiser of pictures needs sigma above 0, where several are possible"
            )
        pictures = self.pictures.to(x.device).flatten(1)
        log = (alpha * (x @ pictures.T) - alpha**2 * (pictures**2).sum(1) / 2) / sigma**2
        return torch.softmax(log, -1) @ pictures

    def draw(self, count: int, seed: int) -> Tensor:
        of = torch.randint(len(self.pictures), (whole("count", count),), generator=_seeded(seed))
        return self.pictures[of]


def perturbed(denoiser: Denoiser, size: float, seed: int) -> Denoiser:
    """A denoiser with a smooth random error that vanishes with the noise, as a network's does.

    The error is a field of random waves in the sample and in the level.

    Args:
        denoiser: `denoise(x, level)`.
        size: Root mean square of the error is size·sigma / sqrt(alpha² + sigma²).
        seed: Of the waves.

    Returns:
        `denoise(x, level)`.
    """
    size = finite("size of the error", size, 0)

    @functools.cache
    def waves(dimension: int) -> tuple[Tensor, ...]:
        g = _seeded(seed)
        shapes = ((dimension, FEATURES), (1, FEATURES), (1, FEATURES), (FEATURES, dimension))
        inner, rate, phase, outer = (
            torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes
        )
        inner, outer = inner / math.sqrt(dimension), outer * math.sqrt(2 / FEATURES)
        return inner, 2 * rate, math.pi * phase, outer

    def denoise(x: Tensor, level: At | Level) -> Tensor:
        alpha, sigma = _amounts(x, level)
        flat = x.reshape(len(x), -1).double() / torch.hypot(alpha, sigma)
        inner, rate, phase, outer = (w.to(x.device) for w in waves(flat.shape[1]))
        angle = torch.atan2(sigma, alpha)
        error = torch.cos(flat @ inner + angle * rate + phase) @ outer
        return denoiser(x, level) + (size * torch.sin(angle) * error).reshape(x.shape).to(x.dtype)

    return denoise


def rounded(
    denoiser: Denoiser,
    *,
    process: Process | None = None,
    times: int = 1000,
    dtype: torch.dtype | None = None,
) -> Denoiser:
    """A denoiser with the rounding of a network: of the time it gets, and of its output.

    Args:
        denoiser: `denoise(x, level)`.
        process: Its level becomes the one at the nearest of `times` evenly spaced network times.
        times: How many of them.
        dtype: Such as torch.bfloat16, to which the velocity alpha·noise - sigma·denoised, in
            coordinates of unit variance, is rounded.

    Returns:
        `denoise(x, level)`.

    Raises:
        ArgumentError: Where there is neither a process nor a dtype.
    """
    if process is None and dtype is None:
        raise ArgumentError(
            "nothing to round: give process= for the times, dtype= for the output, or both"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(
            f"dtype must be a floating-point type such as torch.bfloat16, got {dtype!r}"
        )
    last = whole("times", times, 2) - 1
    ends = (
        None if process is None else process.at_index(double([0.0, process.train_steps - 1.0])).time
    )

    def nearest(level: At | Level) -> At | Level:
        if process is None or ends is None:
            return level
        share = (double(level.time) - ends[0]) / (ends[1] - ends[0])
        return process.at_time(
            ends[0] + torch.round(share.clamp(0, 1) * last) / last * (ends[1] - ends[0])
        )

    def denoise(x: Tensor, level: At | Level) -> Tensor:
        clean = denoiser(x, nearest(level))
        if dtype is None:
            return clean
        alpha, sigma = (v.reshape(-1, *(1,) * (x.ndim - 1)) for v in _amounts(x, level))
        norm = torch.hypot(alpha, sigma)
        velocity = (alpha / norm * (x / norm) - clean) / (sigma / norm)
        return (alpha / norm * (x / norm) - sigma / norm * velocity.to(dtype).double()).to(x.dtype)

    return denoise


def _mixes(weights: Tensor, means: Tensor, stds: Tensor, factors: Tensor) -> None:
    """Raises `ArgumentError` for numbers that are no mixture."""
    count = len(weights)
    if means.ndim < 2 or len(means) != count or count < 1:
        raise ArgumentError(f"{count} weights need means ({count}, …), got {tuple(means.shape)}")
    if stds.ndim not in (0, 1, means.ndim) or (stds.ndim and len(stds) != count):
        raise ArgumentError(
            f"stds must be one number, ({count},) or {tuple(means.shape)}, got {tuple(stds.shape)}"
        )
    if factors.shape[:-1] != means.shape:
        raise ArgumentError(f"factors must be {(*means.shape, 'rank')}, got {tuple(factors.shape)}")
    if not all(bool(torch.isfinite(v).all()) for v in (weights, means, stds, factors)):
        raise ArgumentError("weights, means, stds and factors of a mixture must be finite")
    if not bool((weights > 0).all()) or not bool((stds > 0).all()):
        raise ArgumentError(
            "weights and stds of a mixture must be above 0; leave out components without weight"
        )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
