"""What a diffusers scheduler config says of the process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ... import words
from ...errors import ArgumentError, TimonelError, among
from . import keys
from .cosine import Cosine
from .crash import Crash
from .edm import EDM, VE
from .flow import Flow
from .level import Process, double
from .trig import Trig
from .vp import VP, shifted_snr, zero_snr

PROCESSES = (
    "vp",
    "edm",
    "ve",
    "flow",
    "trig",
    "cosine",
    "crash",
)  # what the key `process` of a config may say
COSINE = (
    "UnCLIPScheduler",
    "DDPMWuerstchenScheduler",
)  # schedulers without a beta schedule in their config

FLOWS = ("LTXEulerAncestralRFScheduler",)  # of flows, without a key that says so
ANGLED, CONSISTENT, CRASH = (
    "CosineDPMSolverMultistepScheduler",
    "CMStochasticIterativeScheduler",
    "IPNDMScheduler",
)
SHIFTED = (
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
)  # whose default divides alpha² / sigma² by 3
#: classes without a key that says which process they are of
SILENT = {
    "ScoreSdeVeScheduler": "its samples explode, and its network predicts their score",
    "ScoreSdeVpScheduler": "its betas are those of continuous time",
    "KarrasVeScheduler": "its steps are made of several calls of its own",
    "VQDiffusionScheduler": "it chooses discrete tokens",
    "AmusedScheduler": "it chooses discrete tokens",
    "BlockRefinementScheduler": "it chooses discrete tokens",
    "DiscreteDDIMScheduler": "it chooses discrete tokens",
    "EntropyBoundScheduler": "it chooses discrete tokens",
    "RFD4ProteinaScheduler": "its steps are of proteins",
    "ConsistencyDecoderScheduler": "it belongs to a decoder",
}
#: classes that go from a picture to noise, and the class that comes back
INVERSE = {
    "DDIMInverseScheduler": "DDIMScheduler",
    "DPMSolverMultistepInverseScheduler": "DPMSolverMultistepScheduler",
}  # fmt: skip
BETAS = ("beta_start", "beta_schedule", "trained_betas")


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
        raise ArgumentError(
            f"the scheduler config cannot be read: {error}; check {dict(config)}"
        ) from error


def _read(config: Mapping[str, Any]) -> Process:
    """The process of a config whose numbers are numbers."""
    name, get = class_of(config), config.get
    number = partial(_number, config)
    steps = number(1000, "num_train_timesteps")
    kind = among("process", get("process") or _kind(name, config), PROCESSES)
    if get("process") is None and kind == "vp" and name in SILENT and not _betas(config):
        raise ArgumentError(
            f"the config of {name} names no noise process that timonel has: {SILENT[name]}; keep"
            " diffusers' own class"
        )
    if kind == "flow":
        return Flow(
            number(1.0, "shift", "flow_shift"),
            train_steps=1000 if steps == 1 else steps,
            time_scale=float(steps),
            base_shift=number(0.5, "base_shift"),
            max_shift=number(1.15, "max_shift"),
            base_tokens=number(256, "base_image_seq_len"),
            max_tokens=number(4096, "max_image_seq_len"),
            clock="1 - t" if get("invert_sigmas") else "t",
        )
    if kind in ("trig", "cosine"):
        return Trig(train_steps=steps) if kind == "trig" else Cosine(train_steps=steps)
    if kind == "crash":
        return Crash(train_steps=steps)
    if kind in ("edm", "ve"):
        return _edm(name, kind, config, steps)
    offset, shift = (
        number(0, "steps_offset"),
        number(3.0 if name in SHIFTED else 1.0, "snr_shift_scale"),
    )
    trained = get("trained_betas")
    if trained is not None:
        betas = shifted_snr(double(trained), shift)
        return VP(zero_snr(betas) if get("rescale_betas_zero_snr") else betas, steps_offset=offset)
    return VP.from_schedule(
        str(get("beta_schedule") or ("squaredcos_cap_v2" if name in COSINE else "linear")),
        number(0.0001, "beta_start"),
        number(0.02, "beta_end"),
        steps,
        rescale_zero_snr=bool(get("rescale_betas_zero_snr", False)),
        steps_offset=offset,
        snr_shift=shift,
    )


def _edm(name: str, kind: str, config: Mapping[str, Any], steps: int) -> EDM:
    """The EDM process of a config, with the clock of its class."""
    number = partial(_number, config)
    clock = config.get("clock") or {ANGLED: "angle", CONSISTENT: "250 log"}.get(name, "log")
    low, high = (0.3, 500.0) if name == ANGLED else (0.002, 80.0)
    half = name.startswith("EDM") or name == CONSISTENT
    return (VE if kind == "ve" else EDM)(
        number(low, "sigma_min"),
        number(high, "sigma_max"),
        sigma_data=number(0.5 if half else 1.0, "sigma_data"),
        train_steps=steps,
        clock=str(clock),
        rho=number(7.0, "rho") if clock == "250 log" else None,
    )


def _number(config: Mapping[str, Any], default: Any, *names: str) -> Any:
    """The number of the first of these keys that has a value, or the default."""
    key = next((key for key in names if config.get(key) is not None), None)
    return default if key is None else keys.number(key, config[key], default)


def name_of(process: Process) -> str:
    """What the key `process` of a config says for it."""
    return "ve" if isinstance(process, VE) else process.kind


def class_of(config: Mapping[str, Any]) -> str:
    """The scheduler class a config is of, or one of the same process.

    A scheduler that was made in code writes no name, and the names of some say nothing of their
    process: the keys do.
    """
    name = str(config.get("_class_name") or "")
    known = (*COSINE, ANGLED, CONSISTENT)
    if (
        name.startswith(("FlowMatch", "EDM"))
        or name in known
        or config.get("process")
        or _betas(config)
    ):
        return name
    if name in FLOWS or "shift" in config or "base_image_seq_len" in config:
        return "FlowMatchEulerDiscreteScheduler"
    if "sigma_data" in config and words.prediction(config.get("prediction_type")) != "trigflow":
        cosine = (
            "sigma_schedule" in config
            and "solver_order" in config
            and "algorithm_type" not in config
        )
        return (
            CONSISTENT if "clip_denoised" in config else ANGLED if cosine else "EDMEulerScheduler"
        )
    keys = {key for key in config if not key.startswith("_") and key != "variance_type"}
    return CRASH if not name and keys == {"num_train_timesteps", "trained_betas"} else name


def crashes(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a config of class `name` is Dance Diffusion's: its class, and no betas of another
    model.

    `trained_betas` alone are its sigmas, as in diffusers.
    """
    return name == CRASH and all(config.get(key) is None for key in BETAS[:2])


def explodes(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a config of class `name` is Cosmos 2's: Karras' levels in a scheduler for flows."""
    return name.startswith("FlowMatch") and bool(_number(config, 0.0, "sigma_max") > 1)


def _betas(config: Mapping[str, Any]) -> bool:
    """Whether a config says which betas its model was trained with."""
    return any(config.get(key) is not None for key in BETAS)


def _kind(name: str, config: Mapping[str, Any]) -> str:
    """Which process a config without an explicit `process` key means."""
    predicts = words.prediction(config.get("prediction_type"))
    flow = config.get("use_flow_sigmas") or predicts == "flow"
    if predicts == "trigflow":
        return "trig"
    if explodes(name, config):
        return "ve"
    if name.startswith("FlowMatch") or flow or config.get("use_dynamic_shifting"):
        return "flow"
    continuous = config.get("timestep_type") == "continuous" and predicts == "v"
    if name.startswith("EDM") or name in (ANGLED, CONSISTENT) or continuous:
        return "edm"
    return "crash" if crashes(name, config) else "vp"
