"""What a scheduler of diffusers or timonel passes on to another through its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core import prediction as predictions
from ..core import process as processes
from ..core.process import EDM, VE, Crash, Flow, Process
from ..core.process.config import CRASH, class_of
from ..pipelines.sockets.model import stays_flow

TRAINING = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
)  # fmt: skip
#: keys that say what a model was trained for, which classes that have no such flag pass on
MODEL = (
    *TRAINING, "prediction_type", "process", "sigma_min", "sigma_max", "sigma_data", "clock",
    "timestep_type", "shift",
)  # fmt: skip
SAMPLER = (
    "sampler",
    "sampler_options",
    "sampler_noise",
)  # of timonel.Scheduler: not what another class is for
WORDS = {  # timonel's names of predictions in diffusers' words
    "v": "v_prediction", "edm_v": "v_prediction", "flow": "flow_prediction",
}  # fmt: skip


def read(
    name: str, defaults: Mapping[str, Any], config: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[Process, dict[str, Any], dict[str, Any]]:
    """The model's process, the flags of class `name` that `config` decides, and the other keys, for
    the next class.

    As diffusers does, flags that were defaults of the class the config comes from are left to this
    class; what the model was trained for is not.
    """
    given = {
        key: value for key, value in config.items() if value is not None and key not in SAMPLER
    }
    unwritten = set(given.pop("_use_default_values", ())) - set(TRAINING)
    full = {**given, **changes}
    if not class_of(full) and not {"process", *TRAINING[1:5]} & set(full):
        full["_class_name"] = name  # a config of nothing but this class's own flags
    stays_flow({**given, "_class_name": full.get("_class_name")}, changes)
    process, prediction = processes.from_config(full), predictions.from_config(full)
    public = {key: value for key, value in given.items() if not key.startswith("_")}
    written = {key: value for key, value in public.items() if key not in unwritten}
    model = _model(name, process, prediction, full)
    kept = {key: value for key, value in written.items() if key not in _said(process)} | model
    kept = {key: value for key, value in kept.items() if key not in changes}
    flags = {key: value for key, value in kept.items() if key in defaults}
    hidden = {key: value for key, value in {**kept, **changes}.items() if key not in defaults}
    if "prediction_type" not in {**config, **changes}:  # what the class means anyhow is not written
        bare = {
            **defaults,
            **flags,
            **hidden,
            "_class_name": name,
            "prediction_type": defaults.get("prediction_type"),
        }
        if predictions.from_config(bare) == prediction:
            hidden.pop("prediction_type", None)
    if name.startswith(
        ("EDM", "FlowMatch")
    ):  # without a class name, betas would say that the model is none of these
        hidden = {key: value for key, value in hidden.items() if key not in TRAINING}
    return process, flags, hidden


def _said(process: Process) -> tuple[str, ...]:
    """Keys that `_model` says anew."""
    said = ("process", "prediction_type")
    if isinstance(process, Flow):
        return (*said, "shift", "flow_shift", "use_flow_sigmas")
    return (
        (*said, "sigma_min", "sigma_max", "sigma_data", "timestep_type")
        if isinstance(process, EDM)
        else said
    )


def _model(name: str, process: Process, prediction: str, full: Mapping[str, Any]) -> dict[str, Any]:
    """What the model was trained for, in the words of class `name`."""
    words = WORDS.get(prediction, prediction)
    if isinstance(process, Flow):
        shift = process.shift
        if name.startswith("FlowMatch"):
            return {"shift": shift}
        wide = name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler",
                        "UniPCMultistepScheduler", "SASolverScheduler")  # fmt: skip
        named: dict[str, Any] = (
            {"flow_shift": shift, "use_flow_sigmas": True} if wide else {"shift": shift}
        )
        return {**named, "prediction_type": words}
    if isinstance(process, EDM):
        ends = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
        if isinstance(process, VE):
            return {
                **ends,
                "sigma_data": process.sigma_data,
                "process": "ve",
                "prediction_type": prediction,
            }
        if name.startswith("EDM") and process.clock == "log":
            told = "epsilon" if prediction == "edm" else words
            return {**ends, "sigma_data": process.sigma_data, "prediction_type": told}
        if prediction == "v" and process.sigma_data == 1 and process.clock == "log":
            return {**ends, "timestep_type": "continuous", "prediction_type": words}
        clock = {"clock": process.clock} if process.clock != "log" else {}
        return {
            **ends,
            "sigma_data": process.sigma_data,
            **clock,
            "process": "edm",
            "prediction_type": prediction,
        }
    crashed = {"process": "crash"} if isinstance(process, Crash) and name != CRASH else {}
    return {**crashed, "prediction_type": words}
