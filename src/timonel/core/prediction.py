"""What the network's raw output means, and how the denoised sample follows from it.

`denoised = c_x · x + c_raw · raw`, linear in both for every kind, so that it can be folded into a
table row. With v = alpha·eps - sigma·x0 and flow = eps - x0:

| kind         | denoised                                  | reference                   |
|--------------|-------------------------------------------|-----------------------------|
| epsilon      | (x - sigma·raw) / alpha                   | arXiv 2006.11239, eq. 15    |
| sample       | raw                                       |                             |
| v            | (alpha·x - sigma·raw) / (alpha² + sigma²) | arXiv 2202.00512, app. D    |
| flow         | (x - sigma·raw) / (alpha + sigma)         | arXiv 2210.02747            |
| reverse_flow | (x + sigma·raw) / (alpha + sigma)         | raw = x0 - eps, as Mochi's  |
| edm          | d²·alpha·x + d·sigma·raw, d = data std    | arXiv 2206.00364, eq. 7     |
| edm_v        | d²·alpha·x - d·sigma·raw: v where d = 1   | raw = -F of the row above   |
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PredictionError
from .process import Level
from .process.config import PREDICTIONS as KINDS
from .process.config import check
from .process.config import prediction_of as from_config

__all__ = [
    "KINDS", "LEAST", "check", "clip", "coefficients", "denoised", "from_config", "raw",
    "threshold",
]  # fmt: skip
LEAST = 1e-38  # alpha below which an epsilon prediction says nothing of the picture


def coefficients(kind: str, level: Level) -> tuple[Tensor, Tensor]:
    """The (c_x, c_raw) with `denoised = c_x·x + c_raw·raw` at `level`.

    Args:
        kind: the prediction.
        level: one level, or several.

    Raises:
        PredictionError: epsilon at alpha = 0, where the sample is pure noise and the network only
            names that noise. An alpha below 1e-38, whose inverse is no float32, counts as 0.
    """
    alpha, sigma, _ = level
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    kind = check(kind)
    if kind == "sample":
        return zero, one
    if kind == "epsilon":
        if bool((alpha < LEAST).any()):
            raise PredictionError(
                "an epsilon prediction says nothing about the picture at pure noise (alpha ="
                f" {float(alpha.min()):.2g}): use a model that predicts v, flow or sample, or a"
                " grid that starts below it, e.g. grid='leading'"
            )
        return 1 / alpha, -sigma / alpha
    if kind == "v":
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    if kind == "flow":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    if kind == "reverse_flow":
        return 1 / (alpha + sigma), sigma / (alpha + sigma)
    if bool((alpha == 0).any()):
        raise PredictionError(
            f"an {kind} prediction belongs to an EDM process, which never reaches pure noise (alpha"
            " = 0)"
        )
    if bool((sigma > 1).any()):
        raise PredictionError(
            f"an {kind} prediction belongs to samples of unit variance, alpha²·data² + sigma² = 1,"
            f" got sigma {float(sigma.max()):.6g}: divide x, alpha and sigma by its square root"
        )
    data = torch.sqrt(1 - sigma**2) / alpha
    return data**2 * alpha, data * sigma * (-1 if kind == "edm_v" else 1)


def denoised(kind: str, raw: Tensor, x: Tensor, level: Level) -> Tensor:
    """The predicted clean sample from the raw output.

    Args:
        kind: the prediction.
        raw: the network's output, (batch, …).
        x: the sample, of the same shape.
        level: the level of the sample, 0-d tensors; its coefficients are float64.
    """
    c_x, c_raw = coefficients(kind, level)
    return x * float(c_x) + raw * float(c_raw)


def raw(kind: str, clean: Tensor, x: Tensor, level: Level) -> Tensor:
    """The raw output that means `clean`, the inverse of `denoised`.

    Raises:
        PredictionError: the output does not depend on it.
    """
    c_x, c_raw = coefficients(kind, level)
    if float(c_raw) == 0:
        raise PredictionError(
            f"{kind} output is not determined by the denoised sample at sigma = 0"
        )
    return (clean - x * float(c_x)) / float(c_raw)


def clip(clean: Tensor, limit: float) -> Tensor:
    """The clean sample in [-limit, limit]. For pixel-space models."""
    return clean.clamp(-limit, limit)


def threshold(clean: Tensor, ratio: float, top: float) -> Tensor:
    """Dynamic thresholding: clip to the size s of each sample, and divide by s.

    For pixel-space models. Source: arXiv 2205.11487, section 2.3.

    Args:
        clean: the clean sample, (batch, …).
        ratio: s is this quantile of |clean|, 0 to 1.
        top: the largest s; the least is 1.
    """
    work = clean.float() if clean.dtype in (torch.float16, torch.bfloat16) else clean
    size = torch.quantile(work.flatten(1).abs(), ratio, dim=1).clamp(1, max(1.0, top))
    limit = size.to(clean.dtype).reshape(-1, *(1,) * (clean.ndim - 1))
    return torch.maximum(torch.minimum(clean, limit), -limit) / limit
