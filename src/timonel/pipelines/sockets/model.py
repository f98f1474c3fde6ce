"""What a diffusers scheduler's config says of a model, in the keys of `Scheduler`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ...core import prediction as predictions
from ...core import process as processes
from ...core.process.config import ANGLED, COSINE, H3, INVERSE, PROCESSES, SHIFTED, name_of
from ...core.process.config import read as read_config
from ...core.process.edm import CLOCKS
from ...errors import ArgumentError, UnknownName
from ..classes.config import changed, stays_flow
from ..classes.flags import CHOICES as WORDS

CHOICES: dict[str, tuple[str | None, ...]] = {
    **{key: WORDS[key] for key in ("final_sigmas_type", "timestep_type", "time_shift_type")},
    "timestep_spacing": (None, *WORDS["timestep_spacing"]),
    "process": (None, *PROCESSES),
    "clock": (None, *CLOCKS),
}


def check(config: Mapping[str, Any]) -> None:
    """Refuse a word that nothing has, and a variance of another sampler.

    Raises:
        UnknownName, ArgumentError: what it is.
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
    """Refuse a class that goes from a picture to noise: a run of its model would come back.

    Raises:
        ArgumentError: it is one.
    """
    if name in INVERSE:
        raise ArgumentError(
            f"{name} goes from a picture to noise, and timonel from noise to a picture: keep"
            " diffusers' class for the inversion; for the way back take the config of"
            f" diffusers.{INVERSE[name]}.from_config(…)"
        )


def keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The process with its range, and the prediction."""
    process, prediction = read_config(config)
    name = config.get("_class_name")
    keys: dict[str, Any] = {"process": name_of(process), "prediction_type": prediction}
    keys |= _of_minimax(process, config)
    if isinstance(process, processes.EDM):
        keys |= _of_edm(process, config)
    elif isinstance(process, processes.Trig):
        keys["sigma_data"] = 1.0  # the unit of pipelines that scale samples by what the config says
    elif isinstance(process, processes.VP) and name in COSINE:
        keys["beta_schedule"] = "squaredcos_cap_v2"
        keys |= {"timestep_spacing": "linspace"} if name == "UnCLIPScheduler" else {}
    shift = config.get("snr_shift_scale")
    if name in SHIFTED or (not name and shift is not None):
        keys["snr_shift_scale"] = 3.0 if shift is None else shift
        keys["clip_sample"] = False  # which it never reads
    schedule = config.get("sigma_schedule") or (name == ANGLED and "exponential")
    if schedule == "exponential":
        keys["use_exponential_sigmas"] = True
    return keys


def _of_minimax(process: processes.Process, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the class of MiniMax H3 says of a flow; nothing of another class."""
    own = config.get("_class_name") == H3 and not config.get("process")
    if not own or not isinstance(process, processes.Flow):
        return {}
    return {"invert_sigmas": True, "num_train_timesteps": 1, "shift": process.shift}


def _of_edm(process: processes.EDM, config: Mapping[str, Any]) -> dict[str, Any]:
    """The range of an EDM process, and the clock where it is not the log of sigma."""
    ends = {name: getattr(process, name) for name in ("sigma_data", "sigma_min", "sigma_max")}
    clock = {"clock": process.clock} if process.clock != "log" else {}
    return {**ends, **clock, **(_distilled(config) if process.clock == "250 log" else {})}


def _distilled(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a consistency model's config says of its levels and its denoised prediction.

    Source: arXiv 2303.01469.
    """
    clips = {"clip_sample": bool(config["clip_denoised"])} if "clip_denoised" in config else {}
    return {"original_inference_steps": int(config.get("num_train_timesteps") or 40), **clips}


def read(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The `keys` of a config with changes.

    Raises:
        ArgumentError: a change that would make another process of a flow.
    """
    said = keys(changed(config, changes))
    stays_flow(config, changes)
    if said["process"] == "flow" and changes.get("prediction_type") is not None:
        said["prediction_type"] = predictions.check(changes["prediction_type"])
    return said


def registered(process: processes.Process, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that a pipeline registers; Cosmos 2 makes Karras' levels of a flow by them."""
    explodes = {"sigma_max", "sigma_data"} <= set(changes) and float(changes["sigma_max"]) > 1
    if process.kind == "flow" and explodes:
        return {**changes, "process": "ve", "prediction_type": "epsilon"}
    return dict(changes)


def shape(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor] | None:
    """What a config does to the denoised prediction: dynamic thresholding, clipping, or nothing."""
    if config.get("thresholding"):
        ratio, top = float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])
        return partial(predictions.threshold, ratio=ratio, top=top)
    if config.get("clip_sample"):
        return partial(predictions.clip, limit=float(config["clip_sample_range"]))
    return None
