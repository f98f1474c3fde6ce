"""What a diffusers scheduler's config says of a model, in the keys of `Scheduler`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .. import prediction as predictions
from .. import process as processes
from ..errors import ArgumentError, UnknownName
from ..process.config import COSINE, name_of

ENDS = ("zero", "sigma_min")


def check(config: Mapping[str, Any]) -> None:
    """Raises `UnknownName` or `ArgumentError` for an end that no grid has, or a variance of another sampler."""
    if config["final_sigmas_type"] not in ENDS:
        raise UnknownName("final_sigmas_type", config["final_sigmas_type"], ENDS)
    if config["variance_type"] is not None:
        raise ArgumentError(
            f"variance_type={config['variance_type']!r} belongs to the sampler: a table has its own variances"
        )


def keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The process with its range, and the prediction."""
    process = processes.from_config(config)
    made: dict[str, Any] = {"process": name_of(process), "prediction_type": predictions.from_config(config)}
    if isinstance(process, processes.EDM):
        made |= {"sigma_data": process.sigma_data, "sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
    elif isinstance(process, processes.Trig):
        made["sigma_data"] = 1.0  # the unit of pipelines that scale their samples by what the config says
    elif isinstance(process, processes.VP) and config.get("_class_name") in COSINE:
        made["beta_schedule"] = "squaredcos_cap_v2"
    if config.get("sigma_schedule") == "exponential":
        made["use_exponential_sigmas"] = True
    return made


def shape(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What a config does to the denoised prediction before it is used: dynamic thresholding, clipping, nothing."""
    if config["thresholding"]:
        ratio, top = float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])
        return partial(predictions.threshold, ratio=ratio, top=top)
    if config["clip_sample"]:
        limit = float(config["clip_sample_range"])
        return partial(predictions.clip, limit=limit)
    return None
