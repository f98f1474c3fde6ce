"""Distances to the converged sample and between distributions, with their uncertainty.

All pictures are (…, 3, H, W) in 0..1. A distance over seeds comes with the standard error of its
mean; a difference between two settings is taken seed by seed, and one inside two standard errors is
no difference.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MEASURES = ("latent_rmse", "rmse", "psnr", "ssim", "lpips", "consistency")
LEAST = 4  # seeds that a distance between distributions needs
TIE = 2.0  # standard errors
TINY = 1e-9  # added to errors before their ratio is taken
WINDOW, SPREAD = 11, 1.5  # of the Gaussian window of SSIM, in pixels


def rmse(a: Tensor, b: Tensor) -> float:
    """Root mean square difference."""
    return float((a.double() - b.double()).square().mean().sqrt())


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB for values in 0..1; infinite for equal pictures."""
    off = rmse(a, b)
    return math.inf if off == 0 else -20 * math.log10(off)


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity, at most 1, of pictures or frames (…, 3, H, W).

    K1 = 0.01, K2 = 0.03, a Gaussian window of 11 pixels and deviation 1.5, inside the picture only,
    channel by channel. Pictures smaller than the window are compared in one window.

    Source: Wang et al. 2004, IEEE TIP 13(4), eq. 13.
    """
    a, b = (t.double().flatten(0, -4) if t.ndim > 3 else t.double()[None] for t in (a, b))
    side = min(WINDOW, *a.shape[-2:])
    at = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-(at**2) / (2 * SPREAD**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(a.shape[1], 1, side, side)

    def mean(t: Tensor) -> Tensor:
        return F.conv2d(t, window, groups=t.shape[1])

    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2
    shared = mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    value = (
        (2 * mu_a * mu_b + c1)
        * (2 * shared + c2)
        / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    )
    return float(value.mean())


def consistency(frames: Tensor) -> float:
    """Mean PSNR in dB between neighbouring frames (F, 3, H, W): high where little changes."""
    return psnr(frames[1:], frames[:-1])


def energy(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Energy distance between two sets of samples (n, …) that share their seeds in order.

    2 E|X - Y| - E|X - X'| - E|Y - Y'| over pairs of different seeds, in root mean square per
    element; 0 where the distributions agree.

    Returns:
        The distance, and its standard error by the jackknife over the seeds, which is large where
        seeds are few.

    Source: Székely & Rizzo 2013, J. Stat. Plan. Inference 143, eq. 2.1.
    """
    x, y = (t.double().flatten(1) / math.sqrt(t[0].numel()) for t in (ours, theirs))
    terms = 2 * torch.cdist(x, y) - torch.cdist(x, x) - torch.cdist(y, y)
    terms.fill_diagonal_(0)
    n = len(terms)
    value = float(terms.sum()) / (n * (n - 1))
    if n < 3:
        return value, math.nan
    sums = [terms.sum() - terms[i].sum() - terms[:, i].sum() for i in range(n)]
    left = torch.stack([total / ((n - 1) * (n - 2)) for total in sums])
    return value, float(((n - 1) / n * (left - left.mean()).square().sum()).sqrt())


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def log_ratio(a: float, b: float) -> float:
    """log(a / b) of two errors; 0 for two that vanish."""
    return math.log((a + TINY) / (b + TINY))


def verdicts(errors: Mapping[Any, Mapping[Any, float]]) -> dict[Any, str | None]:
    """Which settings are best, compared sample by sample.

    Args:
        errors: of each setting, the error of every sample (a seed and a prompt).

    Returns:
        "best" for the least geometric mean of the errors, by which one outlier does not decide;
        "tie" where the mean log ratio to it is inside two standard errors; else "worse". None
        where fewer than two samples are shared.
    """
    whole = {k: v for k, v in errors.items() if v}
    means = {k: _log_mean(v.values()) for k, v in whole.items()}
    best = min(means, key=means.__getitem__, default=None)
    verdicts: dict[Any, str | None] = dict.fromkeys(errors)
    for name in whole:
        shared = whole[name].keys() & whole[best].keys()
        if name != best and len(shared) > 1:
            ratios = [log_ratio(whole[name][s], whole[best][s]) for s in whole[name] if s in shared]
            mean, error = mean_and_error(ratios)
            verdicts[name] = "tie" if mean <= TIE * (error or 0.0) else "worse"
    if any(verdicts.values()):
        verdicts[best] = "best"
    return verdicts


def _log_mean(errors: Collection[float]) -> float:
    return math.fsum(log_ratio(error, 1.0) for error in errors) / len(errors)


def pareto(points: Mapping[Any, tuple[float, float]]) -> set[Any]:
    """The names of the points (cost, error) that no other point dominates."""

    def dominated(cost: float, error: float) -> bool:
        return any(c <= cost and e <= error and (c, e) != (cost, error) for c, e in points.values())

    return {name for name, point in points.items() if not dominated(*point)}


class Perceptual:
    """LPIPS, where the package `lpips` and its weights are installed.

    Source: Zhang et al. 2018, arXiv 1801.03924.
    """

    def __init__(self) -> None:
        try:
            import lpips

            self.network: Any = lpips.LPIPS(net="alex", verbose=False).eval()
        except Exception:  # not installed, or its weights are not at hand
            self.network = None

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> float | None:
        """The distance of two pictures, or None without the weights."""
        if self.network is None:
            return None
        pair = [(t if t.ndim == 4 else t[None]).float() * 2 - 1 for t in (a, b)]
        return float(self.network(*pair).mean())
