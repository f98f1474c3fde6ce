"""The config of a scheduler read for one of diffusers' classes, and what its flags mean there.

A config comes from any scheduler of diffusers or timonel. As diffusers does, flags that were
defaults of its class are left to the new class; what the model was trained for is not.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

from ...core import names, solvers
from ...core import process as processes
from ...core.process import EDM, VE, VP, Crash, Flow, Process, Trig
from ...core.process.config import (
    ANGLED,
    CONSISTENT,
    COSINE,
    CRASH,
    H3,
    INVERSE,
    SHIFTED,
    class_of,
    prediction_of,
    read,
)
from ...core.sampler import Sampler
from ...errors import ArgumentError, TimonelError, UnknownName
from .. import request
from .flags import CHOICES, ONLY
from .rows import CLASSES, LEARNED, Row
from .rule import shape

Config = Mapping[str, Any]
NOTHING: Config = MappingProxyType({})
TRAINING = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr", "snr_shift_scale",
)  # fmt: skip
#: keys that say what a model was trained for, which classes that have no such flag pass on
MODEL = (
    *TRAINING, "prediction_type", "process", "sigma_min", "sigma_max", "sigma_data", "clock",
    "timestep_type", "shift",
)  # fmt: skip
#: keys of timonel.Scheduler's sampler, which another class is not for
SAMPLER = ("sampler", "sampler_options", "sampler_noise")
#: the clocks of EDM classes that are not 0.25·log(sigma)
OWN_CLOCKS = {ANGLED: "angle", CONSISTENT: "250 log"}
#: timonel's names of predictions in diffusers' words
WORDS = {"v": "v_prediction", "edm_v": "v_prediction", "flow": "flow_prediction"}
logger = logging.getLogger("timonel")


class Keys(NamedTuple):
    """The keys of a scheduler of a class.

    Args:
        name: of the class.
        flags: all its arguments.
        rest: other keys, which the class passes on.
        explicit: the keys that the caller has set, each of which has to act.
        unwritten: the keys whose values nobody chose.
    """

    name: str
    flags: dict[str, Any]
    rest: dict[str, Any]
    explicit: dict[str, Any]
    unwritten: list[str]

    @property
    def config(self) -> dict[str, Any]:
        """The whole config."""
        return {**self.rest, **self.flags, "_class_name": self.name}


class Meaning(NamedTuple):
    """What a config means for a class: the model, and the sampler on it."""

    process: Process
    prediction: str
    sampler: Sampler


def known(name: str) -> dict[str, Any]:
    """Every key that a scheduler of a class takes."""
    return {**CLASSES[name].defaults, **dict.fromkeys(MODEL)}


def keys_of(name: str, explicit: Config, carried: Config = NOTHING) -> Keys:
    """The keys of a scheduler from those that the caller has set and those that a config carries.

    A word of another class means this class's default, as in diffusers.

    Raises:
        ArgumentError: a value of another kind, or outside of its range.
        UnknownName: a word that no class has.
    """
    row = CLASSES[name]
    explicit = request.typed(row.defaults, explicit)
    typed = {k: v for k, v in carried.items() if k in row.defaults or k in MODEL}
    whole = {**carried, **request.typed(row.defaults, typed), **explicit}
    flags = {**copy.deepcopy(dict(row.defaults)), **_flags(row, whole)}
    rest = {key: value for key, value in whole.items() if key not in row.defaults}
    unwritten = [key for key in row.defaults if key not in whole]
    unwritten += [key for key in rest.pop("_use_default_values", ()) if key in rest]
    for key, choices in CHOICES.items():
        value = flags.get(key, explicit.get(key))
        if key in flags and value in _replaced(row, key, key in explicit):
            if key in explicit:
                logger.warning(
                    "%s=%r is a word of another class: %s takes %r for it, as diffusers' does",
                    key, explicit.pop(key), name, row.defaults[key],
                )  # fmt: skip
            flags[key] = row.defaults[key]
        elif value not in (None, *choices, row.defaults.get(key)):
            raise UnknownName(key, value, [c for c in choices if isinstance(c, str)])
    return Keys(name, flags, rest, explicit, unwritten)


def _flags(row: Row, config: Config) -> dict[str, Any]:
    """The arguments of a class among the keys of a config."""
    return {key: value for key, value in config.items() if key in row.defaults}


def _replaced(row: Row, key: str, explicit: bool) -> tuple[str, ...]:
    """The words of other classes that mean the default, of a caller's flag or a config's."""
    words = row.words.get(key)
    return () if words is None else words.taken if explicit else words.others(key)


def meaning(keys: Keys) -> Meaning:
    """The model that the keys describe, and the sampler that the class is with these flags.

    Raises:
        ArgumentError: a model that the class is not for, or a flag that is not done.
    """
    row = CLASSES[keys.name]
    process, prediction = read(keys.config)
    check_fit(keys.name, process)
    shape(keys.flags)
    for key, value in keys.flags.items():
        _check(keys.name, row, key, value)
    solver, options = row.named(keys.flags)
    return Meaning(process, prediction, Sampler(solver, options=options, noise=row.source))


def check_fit(name: str, process: Process) -> None:
    """Raises `ArgumentError` for a process that the class is not for."""
    if CLASSES[name].fits(process):
        return
    use = {
        "vp": "EulerDiscreteScheduler or DPMSolverMultistepScheduler",
        "flow": "FlowMatchEulerDiscreteScheduler",
        "edm": "EulerDiscreteScheduler or EDMEulerScheduler",
    }
    raise ArgumentError(
        f"{name} is not for a {process.kind} model, which this config describes; use"
        f" {use.get(process.kind, 'timonel.Scheduler')}"
    )


def _check(name: str, row: Row, key: str, value: Any) -> None:
    """Refuse a flag that would not be done."""
    words, (values, remedy) = row.words.get(key), ONLY.get(key, ((value,), ""))
    if words is not None:
        values, remedy = words.does, words.remedy
    if value in values:
        return
    if remedy:
        raise ArgumentError(f"{name} cannot do {key}={value!r}: {remedy}")
    if value is not None:
        near = get_close_matches(str(value), values, 1, 0)[0]
        logger.warning(
            "%s=%r is no word of %s: it takes %r for it; %r?",
            key, value, name, row.defaults[key], near,
        )  # fmt: skip


def level_flags(name: str, process: Process, config: Config) -> dict[str, Any]:
    """The flags by which a class makes its levels; ends may come from another class's config."""
    ends = ("sigma_min", "sigma_max", *(("final_sigmas_type",) if isinstance(process, VE) else ()))
    flags = {key: config[key] for key in CLASSES[name].defaults}
    return {**{key: config.get(key) for key in ends}, **flags}


# -- from one config to the next -------------------------------------------------------------------
def carried(
    name: str, config: Config, changes: Config = NOTHING, neutral: Config = NOTHING
) -> dict[str, Any]:
    """The keys that a scheduler of class `name` takes from a config: flags, and keys to pass on.

    Args:
        name: of the class.
        config: of any diffusers or timonel scheduler.
        changes: what the caller sets besides.
        neutral: keys of other classes that ask for nothing, kept for the class after this one.

    Raises:
        ArgumentError: a config of a model that the class is not for.
    """
    defaults = CLASSES[name].defaults
    process, keys = _read(name, config, changes)
    check_fit(name, process)
    set_here = {*changes, *neutral}
    unwritten = [k for k in config.get("_use_default_values") or () if k not in set_here]
    chosen = {k: config[k] for k in set(defaults) & set(config) - {*unwritten, *changes}}
    empty = {k: None for k in defaults if k in chosen and chosen[k] is defaults[k] is None}
    absent = object()  # unlike any value
    flags = {
        key: value
        for key, value in {**empty, **keys}.items()
        if value != defaults.get(key, absent) or value == chosen.get(key, absent)
    }
    version = {k: v for k, v in config.items() if k == "_diffusers_version"}
    return {**flags, **neutral, "_use_default_values": unwritten, **version}


def carried_over(name: str, config: Config) -> Keys:
    """The keys of a scheduler of class `name` that is made from a config of that class alone."""
    return keys_of(name, NOTHING, carried(name, {**config, "_class_name": name}))


def _read(name: str, config: Config, changes: Config) -> tuple[Process, dict[str, Any]]:
    """The model's process, and the keys of a config in the words of class `name`."""
    written = {k: v for k, v in config.items() if v is not None and k not in SAMPLER}
    unwritten = set(written.pop("_use_default_values", ())) - set(TRAINING)
    full = {**written, **changes}
    if not class_of(full) and {"process", *TRAINING[1:5]}.isdisjoint(full):
        full["_class_name"] = name  # a config of nothing but this class's own flags
    _name_alone(name, full)
    stays_flow({**written, "_class_name": full.get("_class_name")}, changes)
    process, prediction = read(full)
    dropped = {*unwritten, *_said(process)}
    keys = {k: v for k, v in written.items() if not k.startswith("_") and k not in dropped}
    keys |= _in_words_of(name, process, prediction)
    keys |= _left_to_class(name, process, full)
    keys = {key: value for key, value in keys.items() if key not in changes}
    if "prediction_type" not in {**config, **changes}:
        _drop_implied(name, keys, changes, prediction)
    if name.startswith(("EDM", "FlowMa")) or name == H3:
        # without a class name, betas would say that the model is none of these
        passed_on = set(TRAINING) - set(CLASSES[name].defaults)
        keys = {key: value for key, value in keys.items() if key not in passed_on}
    return process, keys


def _drop_implied(name: str, keys: dict[str, Any], changes: Config, prediction: str) -> None:
    """Leave a prediction out that the class means anyhow, and that nobody wrote."""
    defaults = CLASSES[name].defaults
    others = {key: value for key, value in changes.items() if key not in defaults}
    default = defaults.get("prediction_type")
    bare = {**defaults, **keys, **others, "_class_name": name, "prediction_type": default}
    if prediction_of(bare) == prediction and "prediction_type" not in defaults:
        keys.pop("prediction_type", None)


def _said(process: Process) -> tuple[str, ...]:
    """The keys that `_in_words_of` says anew."""
    if isinstance(process, Flow):
        return "process", "prediction_type", "shift", "flow_shift", "use_flow_sigmas"
    edm = ("sigma_min", "sigma_max", "sigma_data", "timestep_type")
    return "process", "prediction_type", *(edm if isinstance(process, EDM) else ())


def _in_words_of(name: str, process: Process, prediction: str) -> dict[str, Any]:
    """What the model was trained for, in the words of class `name`."""
    word = WORDS.get(prediction, prediction)
    if isinstance(process, EDM):
        return _edm_in_words_of(name, process, prediction)
    if isinstance(process, Trig) and name == "SCMScheduler":
        return {"prediction_type": "trigflow"}
    if not isinstance(process, Flow):
        crashed = {"process": "crash"} if isinstance(process, Crash) and name != CRASH else {}
        return {**crashed, "prediction_type": word}
    defaults, shift = CLASSES[name].defaults, process.shift
    if name == H3:
        return {"shift": shift}
    if "shift" in defaults:
        return {"shift": shift}
    if "flow_shift" in defaults:
        return {"flow_shift": shift, "use_flow_sigmas": True, "prediction_type": word}
    return {"shift": shift, "prediction_type": word}


def _name_alone(name: str, full: dict[str, Any]) -> None:
    """Give a config of nothing but a shift, any flow's, the class that is made from it."""
    if name == H3 and {key for key in full if not key.startswith("_")} <= {"shift"}:
        full.setdefault("_class_name", H3)


def _left_to_class(name: str, process: Process, config: Config) -> dict[str, Any]:
    """The keys that a config leaves to its class, where class `name` has other defaults.

    A config with `process` or without a class name leaves them to nobody.
    """
    if not isinstance(process, VP):
        other = config.get("_class_name") == H3 and name != H3
        return {"invert_sigmas": True, "num_train_timesteps": 1} if other else {}
    old = class_of(config)
    keys: dict[str, Any] = {}
    if old in COSINE and config.get("beta_schedule") is None:
        keys["beta_schedule"] = "squaredcos_cap_v2"
    if name in SHIFTED or old in SHIFTED:
        shift = config.get("snr_shift_scale")
        keys["snr_shift_scale"] = (3.0 if old in SHIFTED else 1.0) if shift is None else shift
    return keys


def _edm_in_words_of(name: str, process: EDM, prediction: str) -> dict[str, Any]:
    """What an EDM model was trained for, in the words of class `name`."""
    word = WORDS.get(prediction, prediction)
    keys: dict[str, Any] = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
    data, own = {"sigma_data": process.sigma_data}, OWN_CLOCKS.get(name, "log")
    ticks = process.clock == own
    if isinstance(process, VE):
        return {**keys, **data, "process": "ve", "prediction_type": prediction}
    if ticks and name in (CONSISTENT, ANGLED, *(n for n in CLASSES if n.startswith("EDM"))):
        said = {"prediction_type": "epsilon" if prediction == "edm" else word}
        return {**keys, **data, **({} if name == CONSISTENT else said)}
    if prediction == "v" and process.sigma_data == 1 and ticks and own == "log":
        return {**keys, "timestep_type": "continuous", "prediction_type": word}
    clock = {} if ticks else {"clock": process.clock}
    return {**keys, **data, **clock, "process": "edm", "prediction_type": prediction}


def changed(config: Config, changes: Config) -> dict[str, Any]:
    """A config with changes.

    What diffusers reads of a config are its attributes, which scripts and pipelines set in place.

    Raises:
        ArgumentError: two changes that contradict each other.
    """
    live = vars(config) if hasattr(config, "__dict__") else {}
    keys = {key: live.get(key, value) for key, value in config.items()}
    shifts = {changes[key] for key in ("shift", "flow_shift") if changes.get(key) is not None}
    if len(shifts) > 1:
        raise ArgumentError(
            f"shift={changes['shift']!r} and flow_shift={changes['flow_shift']!r} differ; give one"
        )
    if changes.get("flow_shift") is not None:
        keys["shift"] = None  # what is read first
    return {**keys, "variance_type": None, **changes}


def stays_flow(config: Config, changes: Config) -> None:
    """Raises `ArgumentError` where a changed sigma_max would make exploding levels of a flow's."""
    if changes.get("sigma_max") is None or "process" in changes:
        return
    before, after = (processes.from_config(changed(config, more)) for more in ({}, changes))
    if before.kind == "flow" and after.kind != "flow":
        raise ArgumentError(
            f"sigma_max={changes['sigma_max']!r} is above 1, where a flow begins: pass process='ve'"
            " as well for a model whose samples explode, or leave it out"
        )


# -- a config as a sampler -------------------------------------------------------------------------
def of_class(name: str, config: Config) -> Sampler:
    """A class of diffusers with its flags as a sampler.

    Returns:
        The sampler, without the options that are its solver's defaults. Its grid is None: the
        config says it.

    Raises:
        ArgumentError: it is none of timonel's.
    """
    if name in INVERSE:
        raise ArgumentError(f"{name} goes from a picture to noise; the way back is {INVERSE[name]}")
    if name in ("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler") and (
        config.get("variance_type") in LEARNED
    ):
        raise ArgumentError(
            f"variance_type={config['variance_type']!r} of {name} has no sampler of timonel"
        )
    if name in CLASSES:
        sampler = meaning(carried_over(name, config)).sampler
        usual = inspect.signature(solvers.find(sampler.name).make).parameters
        options = sampler.options.items()
        return replace(
            sampler, options={k: v for k, v in options if k not in usual or usual[k].default != v}
        )
    if names.key(name) in names.ALIASES:
        return Sampler(name)
    raise ArgumentError(f"{name or 'a scheduler without a name'} is no sampler of timonel")


def of_config(config: Config) -> Sampler:
    """The sampler that the class and flags of a config stand for, else the one measured nearest."""
    try:
        return of_class(class_of(config), config)
    except TimonelError:
        return Sampler()
