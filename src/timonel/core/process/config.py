"""What the config of a diffusers scheduler says of a model: its noise process and its prediction.

One rule set, `_kinds`, decides both from the class name and the keys, so that they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from ... import words
from ...errors import ArgumentError, TimonelError, UnknownName, among
from . import keys
from .cosine import Cosine
from .crash import Crash
from .edm import EDM, VE
from .flow import Flow
from .level import Process, double
from .trig import Trig
from .vp import VP, shifted_snr, zero_snr

Config = Mapping[str, Any]
#: what the keys `process` and `prediction_type` of a config may say
PROCESSES = ("vp", "edm", "ve", "flow", "trig", "cosine", "crash")
PREDICTIONS = ("epsilon", "sample", "v", "flow", "reverse_flow", "edm", "edm_v")
#: the predictions that diffusers has a word for
WORDS_OF_DIFFUSERS = ("epsilon", "sample", "v_prediction", "flow_prediction")

#: classes without a beta schedule in their config
WUERSTCHEN = "DDPMWuerstchenScheduler"
COSINE = ("UnCLIPScheduler", WUERSTCHEN)
#: classes of flows, without a key that says so
H3 = "MiniMaxH3Scheduler"  # whose network gets 1 - t and predicts x0 - noise
FLOW = "FlowMatchEulerDiscreteScheduler"
FLOWS = ("LTXEulerAncestralRFScheduler", "FlowMapEulerDiscreteScheduler", H3)
ANGLED, CRASH = "CosineDPMSolverMultistepScheduler", "IPNDMScheduler"
TRIG = "SCMScheduler"  # whose network's prediction is "trigflow" where none is named
CONSISTENT = "CMStochasticIterativeScheduler"
#: classes whose default divides alpha² / sigma² by 3
SHIFTED = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
#: classes without a key that says which process they are of
SILENT = {
    "ScoreSdeVeScheduler": "its samples explode, and its network predicts their score",
    "ScoreSdeVpScheduler": "its betas are those of continuous time",
    "KarrasVeScheduler": "each of its steps is several network calls",
    "VQDiffusionScheduler": "it chooses discrete tokens",
    "AmusedScheduler": "it chooses discrete tokens",
    "BlockRefinementScheduler": "it chooses discrete tokens",
    "DiscreteDDIMScheduler": "it chooses discrete tokens",
    "EntropyBoundScheduler": "it chooses discrete tokens",
    "RFD4ProteinaScheduler": "its steps are of proteins",
    "ConsistencyDecoderScheduler": "it belongs to a decoder",
    "PiflowScheduler": "its network names a policy of many predictions",
}
#: classes that go from a picture to noise, and the class that comes back
INVERSE = {
    "DDIMInverseScheduler": "DDIMScheduler",
    "DPMSolverMultistepInverseScheduler": "DPMSolverMultistepScheduler",
}
BETAS = ("beta_start", "beta_schedule", "trained_betas")


class Described(NamedTuple):
    """The model that a config describes: its noise process and what its network predicts."""

    process: Process
    prediction: str


def read(config: Config) -> Described:
    """The process and the prediction that a config of a diffusers scheduler describes.

    Reads what real checkpoints carry: betas by name or trained, zero-SNR rescaling, SVD's
    continuous times with its sigma range, the EDM family's sigma_data, SD3's static and Flux's
    dynamic shift. The class name in the config decides only what no key says.

    Args:
        config: the config, with `_class_name` where it is known.

    Raises:
        ArgumentError: a value that cannot be read, or a class of no process that timonel has.
        UnknownName: a prediction that nothing has.
    """
    return Described(from_config(config), prediction_of(config))


def from_config(config: Config) -> Process:
    """The process alone of `read`, whatever the config calls its prediction.

    Raises:
        ArgumentError: a value that cannot be read, or a class of no process that timonel has.
    """
    try:
        return _process(config)
    except TimonelError:
        raise
    except (TypeError, ValueError, IndexError, OverflowError, RuntimeError) as error:
        raise ArgumentError(
            f"the scheduler config cannot be read: {error}; check {dict(config)}"
        ) from error


def prediction_of(config: Config) -> str:
    """The prediction alone of `read`; EDM and flow classes imply their own.

    Raises:
        UnknownName: a word that nothing has.
    """
    implied = _kinds(class_of(config), config)[1]
    if implied is not None:
        return implied
    word = words.prediction(config.get("prediction_type") or "epsilon")
    if config.get("process") is not None:
        return check(word)
    if word not in ("epsilon", "sample", "v"):
        also = (*PREDICTIONS, *words.PREDICTIONS)
        raise UnknownName("prediction_type", config["prediction_type"], WORDS_OF_DIFFUSERS, also)
    return word


def check(kind: str) -> str:
    """The prediction that a word of timonel or diffusers, e.g. "v_prediction", stands for.

    Raises:
        UnknownName: a word that nothing has.
    """
    word = words.prediction(kind)
    if word not in PREDICTIONS:
        raise UnknownName("prediction", kind, PREDICTIONS, words.PREDICTIONS)
    return word


def name_of(process: Process) -> str:
    """What the key `process` of a config says for it."""
    return "ve" if isinstance(process, VE) else process.kind


def class_of(config: Config) -> str:
    """The scheduler class a config is of, or one of the same process.

    A config may have no class name, or one that says nothing of the process: its keys do then.
    """
    name = str(config.get("_class_name") or "")
    if config.get("process"):
        return name
    if name in FLOWS:
        return FLOW
    if _speaks(name) or _betas(config):
        return name
    if not {"shift", "base_image_seq_len"}.isdisjoint(config):
        return FLOW
    if "sigma_data" in config and words.prediction(config.get("prediction_type")) != "trigflow":
        return _class_with_data(config)
    bare = {key for key in config if not key.startswith("_")} - {"variance_type"}
    return CRASH if not name and bare == {"num_train_timesteps", "trained_betas"} else name


def _speaks(name: str) -> bool:
    """Whether the name of a class says what the process is."""
    return name.startswith(("FlowMatch", "EDM")) or name in (*COSINE, ANGLED, CONSISTENT)


def _class_with_data(config: Config) -> str:
    """The class of a config that names the data's standard deviation, by its other keys."""
    if "clip_denoised" in config:
        return CONSISTENT
    angled = {"sigma_schedule", "solver_order"} <= set(config) and "algorithm_type" not in config
    return ANGLED if angled else "EDMEulerScheduler"


def _betas(config: Config) -> bool:
    """Whether a config says which betas its model was trained with."""
    return any(config.get(key) is not None for key in BETAS)


def _number(config: Config, default: Any, *names: str) -> Any:
    """The number of the first of these keys that has a value, or the default."""
    key = next((key for key in names if config.get(key) is not None), None)
    return default if key is None else keys.number(key, config[key], default)


# -- the rules -------------------------------------------------------------------------------------
def _kinds(name: str, config: Config) -> tuple[str, str | None]:
    """The process of a config of class `name`, unchecked, and the prediction that it implies.

    The prediction is None where the config's `prediction_type` is what it says.
    """
    word = words.prediction(config.get("prediction_type") or "epsilon")
    if config.get("process"):
        return str(config["process"]), None
    if _angles(name, config, word):
        return ("cosine", None) if name == WUERSTCHEN else ("trig", "v")
    if _explodes(name, config):
        return "ve", "epsilon"
    if _flows(name, config, word):
        return "flow", _of_flow(config, word)
    if config.get("use_dynamic_shifting"):
        return "flow", None
    if name.startswith("EDM") or name in (ANGLED, CONSISTENT):
        return "edm", _of_edm(name, config, word)
    if config.get("timestep_type") == "continuous" and word == "v":
        return "edm", None
    return ("crash", "v") if _crashes(name, config) else ("vp", None)


def _angles(name: str, config: Config, word: str) -> bool:
    """Whether a config is of Wuerstchen's cosine in continuous time, or of a TrigFlow."""
    if name == WUERSTCHEN:
        return not _betas(config)
    return word == "trigflow" or (name == TRIG and not config.get("prediction_type"))


def _flows(name: str, config: Config, word: str) -> bool:
    """Whether a config is a flow's, whose network predicts the velocity."""
    named = word in ("flow", "reverse_flow")
    return name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas")) or named


def _of_flow(config: Config, word: str) -> str:
    """The prediction of a flow: the velocity to the noise, or to the clean sample."""
    backwards = word == "reverse_flow" or config.get("invert_sigmas") or _h3(config)
    return "reverse_flow" if backwards else "flow"


def _h3(config: Config) -> bool:
    """Whether a config is MiniMax H3's, by its class alone."""
    return config.get("_class_name") == H3 and not config.get("process")


def _explodes(name: str, config: Config) -> bool:
    """Whether a config is Cosmos 2's: Karras' levels in a scheduler for flows."""
    return name.startswith("FlowMatch") and bool(_number(config, 0.0, "sigma_max") > 1)


def _crashes(name: str, config: Config) -> bool:
    """Whether a config is Dance Diffusion's, whose `trained_betas` alone are its sigmas."""
    return name == CRASH and all(config.get(key) is None for key in BETAS[:2])


def _of_edm(name: str, config: Config, word: str) -> str | None:
    """The prediction of an EDM class, whose words are those of its preconditioned network."""
    if name == ANGLED and not config.get("prediction_type"):
        word = "v"
    scaled = (config.get("sigma_data") or (1.0 if name == ANGLED else 0.5)) != 1
    return {"epsilon": "edm", "v": "edm_v" if scaled else "v"}.get(word)


def _process(config: Config) -> Process:
    """The process of a config whose numbers are numbers."""
    name = class_of(config)
    steps = _number(config, 1000, "num_train_timesteps")
    kind = among("process", _kinds(name, config)[0], PROCESSES)
    silent = name in SILENT and not _betas(config)
    if str(config.get("_class_name") or "") == "PiflowScheduler":
        name, kind, silent = "PiflowScheduler", "vp", True
    if config.get("process") is None and kind == "vp" and silent:
        raise ArgumentError(
            f"the config of {name} names no noise process that timonel has: {SILENT[name]}; keep"
            " diffusers' own class"
        )
    return _MAKERS[kind](name, config, steps)


def _flow(name: str, config: Config, steps: int) -> Process:
    number = partial(_number, config)
    steps = 1 if _h3(config) else steps
    return Flow(
        number(12.0 if _h3(config) else 1.0, "shift", "flow_shift"),
        train_steps=1000 if steps == 1 else steps,
        time_scale=float(steps),
        base_shift=number(0.5, "base_shift"),
        max_shift=number(1.15, "max_shift"),
        base_tokens=number(256, "base_image_seq_len"),
        max_tokens=number(4096, "max_image_seq_len"),
        clock="1 - t" if config.get("invert_sigmas") or _h3(config) else "t",
    )


def _edm(kind: type[EDM], name: str, config: Config, steps: int) -> Process:
    """An EDM process, with the clock of its class."""
    number = partial(_number, config)
    clock = config.get("clock") or {ANGLED: "angle", CONSISTENT: "250 log"}.get(name, "log")
    low, high = (0.3, 500.0) if name == ANGLED else (0.002, 80.0)
    half = name.startswith("EDM") or name == CONSISTENT
    return kind(
        number(low, "sigma_min"),
        number(high, "sigma_max"),
        sigma_data=number(0.5 if half else 1.0, "sigma_data"),
        train_steps=steps,
        clock=str(clock),
        rho=number(7.0, "rho") if clock == "250 log" else None,
    )


def _vp(name: str, config: Config, steps: int) -> Process:
    number = partial(_number, config)
    rescale = bool(config.get("rescale_betas_zero_snr", False))
    offset = number(0, "steps_offset")
    shift = number(3.0 if name in SHIFTED else 1.0, "snr_shift_scale")
    trained = config.get("trained_betas")
    if trained is not None:
        betas = shifted_snr(double(trained), shift)
        return VP(zero_snr(betas) if rescale else betas, steps_offset=offset)
    return VP.from_schedule(
        str(config.get("beta_schedule") or ("squaredcos_cap_v2" if name in COSINE else "linear")),
        number(0.0001, "beta_start"),
        number(0.02, "beta_end"),
        steps,
        rescale_zero_snr=rescale,
        steps_offset=offset,
        snr_shift=shift,
    )


_MAKERS: dict[str, Callable[[str, Config, int], Process]] = {
    "vp": _vp,
    "edm": partial(_edm, EDM),
    "ve": partial(_edm, VE),
    "flow": _flow,
    "trig": lambda name, config, steps: Trig(train_steps=steps),
    "cosine": lambda name, config, steps: Cosine(train_steps=steps),
    "crash": lambda name, config, steps: Crash(train_steps=steps),
}
