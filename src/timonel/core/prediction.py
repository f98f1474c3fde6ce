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

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import words
from ..errors import PredictionError, UnknownName
from .process import Level
from .process.config import ANGLED, CONSISTENT, class_of, crashes, explodes

KINDS = ("epsilon", "sample", "v", "flow", "reverse_flow", "edm", "edm_v")
LEAST = 1e-38  # alpha, where the network names the noise
DIFFUSERS = ("epsilon", "sample", "v_prediction", "flow_prediction")


def check(kind: str) -> str:
    """The kind that a word of timonel or diffusers (`v_prediction`) stands for, or raise
    `UnknownName`.
    """
    word = words.prediction(kind)
    if word not in KINDS:
        raise UnknownName("prediction", kind, KINDS, words.PREDICTIONS)
    return word


def coefficients(kind: str, level: Level) -> tuple[Tensor, Tensor]:
    """(c_x, c_raw) with `denoised = c_x·x + c_raw·raw` at `level`.

    Raises `PredictionError` for epsilon at alpha = 0, where the raw output says nothing about the
    picture: the sample is pure noise and the network only names that noise. An alpha below 1e-38,
    whose inverse is no float32, counts as 0.
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
    """The predicted clean sample from the raw output at `level` (0-d tensors), in float64
    coefficients.
    """
    c_x, c_raw = coefficients(kind, level)
    return x * float(c_x) + raw * float(c_raw)


def raw(kind: str, clean: Tensor, x: Tensor, level: Level) -> Tensor:
    """The inverse: the raw output that means `clean`. Refused where the output does not depend on
    it.
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
    """Dynamic thresholding: clip to each sample's `ratio` quantile s of |clean|, in [1, top],
    divided by s.

    Saharia et al. 2022, arXiv 2205.11487, section 2.3. For pixel-space models.
    """
    work = clean.float() if clean.dtype in (torch.float16, torch.bfloat16) else clean
    size = torch.quantile(work.flatten(1).abs(), ratio, dim=1).clamp(1, max(1.0, top))
    limit = size.to(clean.dtype).reshape(-1, *(1,) * (clean.ndim - 1))
    return torch.maximum(torch.minimum(clean, limit), -limit) / limit


def from_config(config: Mapping[str, Any]) -> str:
    """The prediction a diffusers scheduler config describes; EDM and flow classes imply their own."""
    name = class_of(config)
    given = words.prediction(config.get("prediction_type") or "epsilon")
    if config.get("process") is not None:
        return check(given)
    if config.get("invert_sigmas"):
        return "reverse_flow"
    if given == "trigflow" or crashes(name, config):
        return "v"
    if explodes(name, config):
        return "epsilon"  # of levels that explode, see `process.VE`
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or given == "flow":
        return "flow"
    if name == ANGLED and not config.get("prediction_type"):
        given = "v"
    if name.startswith("EDM") or name in (ANGLED, CONSISTENT):
        if given == "epsilon":
            return "edm"
        if given == "v" and (config.get("sigma_data") or (1.0 if name == ANGLED else 0.5)) != 1:
            return "edm_v"
    if given not in ("epsilon", "sample", "v"):
        raise UnknownName(
            "prediction_type", config["prediction_type"], DIFFUSERS, (*KINDS, *words.PREDICTIONS)
        )
    return given
