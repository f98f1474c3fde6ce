"""What a diffusers scheduler's config says of a model, in the keys of `Scheduler`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ...core import prediction as predictions
from ...core import process as processes
from ...core.process.config import ANGLED, COSINE, INVERSE, PROCESSES, SHIFTED, name_of
from ...core.process.edm import CLOCKS
from ...errors import ArgumentError, UnknownName

CHOICES: dict[str, tuple[str | None, ...]] = {
    "final_sigmas_type": ("zero", "sigma_min"),
    "timestep_spacing": (None, "leading", "linspace", "trailing"),
    "timestep_type": ("discrete", "continuous"),
    "time_shift_type": ("exponential", "linear"),
    "process": (None, *PROCESSES),
    "clock": (None, *CLOCKS),
}


def check(config: Mapping[str, Any]) -> None:
    """Raises `UnknownName` or `ArgumentError` for a word that nothing has, or a variance of another
    sampler.
    """
    for key, choices in CHOICES.items():
        if config[key] not in choices:
            raise UnknownName(
                key, config[key], [choice for choice in choices if choice is not None]
            )
    if config["variance_type"] is not None:
        raise ArgumentError(
            f"variance_type={config['variance_type']!r} belongs to the sampler: a table has its own"
            " variances"
        )


def forward(name: str | None) -> None:
    """Raises `ArgumentError` for a class that goes from a picture to noise: a run of its model
    would come back.
    """
    if name in INVERSE:
        raise ArgumentError(
            f"{name} goes from a picture to noise, and timonel from noise to a picture: keep"
            " diffusers' class for the inversion; for the way back take the config of"
            f" diffusers.{INVERSE[name]}.from_config(…)"
        )


def keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The process with its range, and the prediction."""
    process = processes.from_config(config)
    made: dict[str, Any] = {
        "process": name_of(process),
        "prediction_type": predictions.from_config(config),
    }
    if isinstance(process, processes.EDM):
        made |= {
            "sigma_data": process.sigma_data,
            "sigma_min": process.sigma_min,
            "sigma_max": process.sigma_max,
        }
        made |= {"clock": process.clock} if process.clock != "log" else {}
        made |= _distilled(config) if process.clock == "250 log" else {}
    elif isinstance(process, processes.Trig):
        made["sigma_data"] = (
            1.0  # the unit of pipelines that scale their samples by what the config says
        )
    elif isinstance(process, processes.VP) and config.get("_class_name") in COSINE:
        made["beta_schedule"] = "squaredcos_cap_v2"
        made |= (
            {"timestep_spacing": "linspace"} if config["_class_name"] == "UnCLIPScheduler" else {}
        )
    shift = config.get("snr_shift_scale")
    if config.get("_class_name") in SHIFTED or (
        not config.get("_class_name") and shift is not None
    ):
        made |= {
            "snr_shift_scale": 3.0 if shift is None else shift,
            "clip_sample": False,
        }  # which it never reads
    cosine = config.get("_class_name") == ANGLED and config.get("sigma_schedule") is None
    if cosine or config.get("sigma_schedule") == "exponential":
        made["use_exponential_sigmas"] = True
    return made


def _distilled(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a consistency model's config says of its levels and of its denoised prediction (arXiv
    2303.01469).
    """
    told = {"clip_sample": bool(config["clip_denoised"])} if "clip_denoised" in config else {}
    return {"original_inference_steps": int(config.get("num_train_timesteps") or 40), **told}


def given(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with changes. Raises `ArgumentError` for two changes that contradict each other.

    What diffusers reads of a config are its attributes, which scripts and pipelines set in place.
    """
    live = {
        key: vars(config).get(key, value) if hasattr(config, "__dict__") else value
        for key, value in config.items()
    }
    shifts = {changes[key] for key in ("shift", "flow_shift") if changes.get(key) is not None}
    if len(shifts) > 1:
        raise ArgumentError(
            f"shift={changes['shift']!r} and flow_shift={changes['flow_shift']!r} differ; give one"
        )
    if changes.get("flow_shift") is not None:
        live["shift"] = None  # what is read first
    return {**live, "variance_type": None, **changes}


def stays_flow(config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` where a changed sigma_max would make levels that explode of a flow's."""
    if changes.get("sigma_max") is None or "process" in changes:
        return
    before, after = (processes.from_config(given(config, more)) for more in ({}, changes))
    if before.kind == "flow" and after.kind != "flow":
        raise ArgumentError(
            f"sigma_max={changes['sigma_max']!r} is above 1, where a flow begins: pass process='ve'"
            " as well for a model whose samples explode, or leave it out"
        )


def read(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`keys` of a config with changes. Raises `ArgumentError` for one that would make another
    process of a flow.
    """
    whole = given(config, changes)
    made = keys(whole)
    stays_flow(config, changes)
    if made["process"] == "flow" and changes.get("prediction_type") is not None:
        made["prediction_type"] = predictions.check(changes["prediction_type"])
    return made


def registered(process: processes.Process, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that a pipeline registers, with what they mean for a flow: Cosmos 2 makes Karras' levels
    of one.
    """
    explodes = {"sigma_max", "sigma_data"} <= set(changes) and float(changes["sigma_max"]) > 1
    if process.kind == "flow" and explodes:
        return {**changes, "process": "ve", "prediction_type": "epsilon"}
    return dict(changes)


def shape(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What a config does to the denoised prediction before it is used: dynamic thresholding,
    clipping, nothing.
    """
    if config["thresholding"]:
        ratio, top = float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])
        return partial(predictions.threshold, ratio=ratio, top=top)
    if config["clip_sample"]:
        limit = float(config["clip_sample_range"])
        return partial(predictions.clip, limit=limit)
    return None
