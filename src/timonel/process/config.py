"""What a diffusers scheduler config says of the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import words
from ..errors import ArgumentError, TimonelError, UnknownName
from .cosine import Cosine
from .edm import EDM, VE
from .flow import Flow
from .level import Process, double
from .trig import Trig
from .vp import VP, zero_snr

PROCESSES = ("vp", "edm", "ve", "flow", "trig", "cosine")  # what the key `process` of a config may say
COSINE = ("UnCLIPScheduler", "DDPMWuerstchenScheduler")  # schedulers without a beta schedule in their config

FLOWS = ("LTXEulerAncestralRFScheduler",)  # of flows, without a key that says so


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
    except (TypeError, ValueError, IndexError, OverflowError, RuntimeError) as error:
        raise ArgumentError(f"the scheduler config cannot be read: {error}; check {dict(config)}") from error


def _read(config: Mapping[str, Any]) -> Process:
    """The process of a config whose numbers are numbers."""
    name = class_of(config)
    get = config.get
    steps = int(get("num_train_timesteps", 1000))
    kind = get("process") or _kind(name, config)
    if kind not in PROCESSES:
        raise UnknownName("process", kind, PROCESSES)
    if kind == "flow":
        return Flow(
            float(get("shift") or get("flow_shift") or 1.0),
            train_steps=steps,
            base_shift=float(get("base_shift") or 0.5),
            max_shift=float(get("max_shift") or 1.15),
            base_tokens=int(get("base_image_seq_len") or 256),
            max_tokens=int(get("max_image_seq_len") or 4096),
            told="1 - t" if get("invert_sigmas") else "t",
        )
    if kind in ("trig", "cosine"):
        return Trig(train_steps=steps) if kind == "trig" else Cosine(train_steps=steps)
    if kind in ("edm", "ve"):
        return (VE if kind == "ve" else EDM)(
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
        str(get("beta_schedule") or ("squaredcos_cap_v2" if name in COSINE else "linear")),
        float(get("beta_start", 0.0001)),
        float(get("beta_end", 0.02)),
        steps,
        rescale_zero_snr=bool(get("rescale_betas_zero_snr", False)),
        steps_offset=offset,
    )


def name_of(process: Process) -> str:
    """What the key `process` of a config says for it."""
    return "ve" if isinstance(process, VE) else process.kind


def class_of(config: Mapping[str, Any]) -> str:
    """The scheduler class a config is of, or one of the same process.

    A scheduler that was made in code writes no name, and the names of some say nothing of their process: the keys do.
    """
    name = str(config.get("_class_name") or "")
    betas = any(config.get(key) is not None for key in ("beta_start", "beta_schedule", "trained_betas"))
    if name.startswith(("FlowMatch", "EDM")) or name in COSINE or config.get("process") or betas:
        return name
    if name in FLOWS or "shift" in config or "base_image_seq_len" in config:
        return "FlowMatchEulerDiscreteScheduler"
    return "EDMEulerScheduler" if "sigma_data" in config else name


def _kind(name: str, config: Mapping[str, Any]) -> str:
    """Which process a config without an explicit `process` key means."""
    predicts = words.prediction(config.get("prediction_type"))
    flow = config.get("use_flow_sigmas") or predicts == "flow"
    if predicts == "trigflow":
        return "trig"
    if name.startswith("FlowMatch") and float(config.get("sigma_max") or 0) > 1:
        return "ve"  # Cosmos 2: Karras' levels in a scheduler for flows
    if name.startswith("FlowMatch") or flow or config.get("use_dynamic_shifting"):
        return "flow"
    continuous = config.get("timestep_type") == "continuous" and predicts == "v"
    if name.startswith("EDM") or continuous:
        return "edm"
    return "vp"
