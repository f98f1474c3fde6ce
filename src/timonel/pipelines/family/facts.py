"""What a pipeline's configuration says, read without its weights."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ... import zoo
from ...core.process import Process, from_config
from ...core.process.config import prediction_of
from ...errors import ModelError
from .. import trust
from ..source import getsource

NETWORKS = ("transformer", "unet", "prior")
# of a hub repository, only the configurations are fetched: a few kilobytes
PATTERNS = ["model_index.json", "scheduler/*.json", *(f"{name}/config.json" for name in NETWORKS)]
LISTS = ("timesteps", "sigmas")  # that a pipeline's call may take
HUB = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Facts:
    """The configurations of one model.

    Args:
        model: its name.
        pipeline: the class of its pipeline; "" where nothing says it.
        scheduler: the config of its scheduler.
        network: the config of its network.
        index: the rest of model_index.json.
    """

    model: str
    pipeline: str
    scheduler: Mapping[str, Any]
    network: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def process(self) -> Process:
        """The noise process that the scheduler's config describes."""
        return from_config(self.scheduler)

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        return prediction_of(self.scheduler)

    @property
    def scheduler_class(self) -> str:
        """The scheduler's class that the configuration names."""
        return str(self.scheduler.get("_class_name") or "")

    @property
    def modular(self) -> bool:
        """Whether it is a ModularPipeline of diffusers, whose guider counts calls."""
        return self.pipeline.endswith("ModularPipeline")

    @property
    def pipeline_class(self) -> type | None:
        """The pipeline's class, or None where diffusers has none of that name."""
        import diffusers

        cls = getattr(diffusers, self.pipeline, None)
        return cls if isinstance(cls, type) else None


@dataclass(frozen=True)
class Loop:
    """What a pipeline does with its scheduler, read from its source.

    Args:
        module: where its `retrieve_timesteps` is.
        begins: it calls set_begin_index, so that the scheduler need not look its first time up.
        generator: `step` gets its generator.
        sigmas: it makes a list itself.
        mu: it computes a shift.
        init: it reads init_noise_sigma.
        scales: it calls scale_model_input.
        lists: which lists its call takes from the user.
        steps: the default number of steps.
        guidance: the default guidance scale.
    """

    module: ModuleType | None = None
    begins: bool = False
    generator: bool = True
    sigmas: bool = False
    mu: bool = False
    init: bool = True
    scales: bool = True
    lists: tuple[str, ...] = LISTS
    steps: int | None = None
    guidance: float | None = None


def read(model: Any) -> Facts:
    """The facts of a model.

    Args:
        model: a shipped one, a folder in diffusers' format, a hub name, a pipeline or a scheduler.

    Raises:
        ModelError: there is no configuration to read.
    """
    if not isinstance(model, (str, Path)):
        return _of_pipeline(model)
    name = str(model)
    root = place = zoo.folder(name) if name in zoo.MODELS else Path(name)
    if not root.is_dir():
        root = place = _from_hub(name)
    if name in zoo.MODELS:
        root = zoo.whole(name)  # a derived model's other files are its base's
    indexes = (root / file for file in (trust.INDEX, trust.MODULAR))
    index = next((trust.read(name, file) for file in indexes if file.is_file()), {})
    path = place / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise ModelError(
            f"{name!r} has no scheduler/scheduler_config.json, so there is no noise process to"
            f" read; give a shipped model ({', '.join(zoo.MODELS)}), or the folder of a whole"
            " pipeline in diffusers' format"
        )
    folder = next((n for n in NETWORKS if (root / n / "config.json").is_file()), None)
    network = {} if folder is None else trust.read(name, root / folder / "config.json")
    return Facts(name, str(index.pop("_class_name", "")), trust.read(name, path), network, index)


def loop(facts: Facts) -> Loop:
    """What the pipeline's code does; that of Stable Diffusion where there is no such class."""
    cls = facts.pipeline_class
    if cls is None:
        return Loop()
    call, module = inspect.unwrap(cls.__call__), inspect.getmodule(cls)
    assert module is not None
    if facts.modular:
        return _of_blocks(module)
    try:
        text, whole = getsource(call), getsource(module)
    except (OSError, TypeError):
        return Loop()  # a stand-in of diffusers for a pipeline whose libraries are not installed
    parameters = inspect.signature(call).parameters
    values = {name: parameter.default for name, parameter in parameters.items()}
    scales = (values.get(f"{name}_scale") for name in ("guidance", "true_cfg", "max_guidance"))
    guidance = next((float(scale) for scale in scales if isinstance(scale, (int, float))), None)
    steps = values.get("num_inference_steps")
    steps = steps if isinstance(steps, int) else None
    lists = tuple(name for name in LISTS if name in parameters)
    return _of_text(module, text, whole, lists, steps, guidance)


def _of_blocks(module: ModuleType) -> Loop:
    """What the blocks of a modular pipeline do, whose inputs are the call's arguments."""
    try:
        before, denoise = (
            importlib.import_module(f"{module.__package__}.{name}")
            for name in ("before_denoise", "denoise")
        )
        text = getsource(before) + getsource(denoise)
    except (ImportError, OSError, TypeError):
        return Loop()
    lists = tuple(name for name in LISTS if f'InputParam("{name}"' in text)
    return _of_text(before, text, text, lists)


def _of_text(
    module: ModuleType, text: str, whole: str, lists: tuple[str, ...],
    steps: int | None = None, guidance: float | None = None,
) -> Loop:  # fmt: skip
    """What the text of a call does, in the `whole` text of its module."""
    hands_on = re.search(r"prepare_extra_(step_)?kwargs|\.step\([^)]*generator", text) is not None
    return Loop(
        module,
        begins="set_begin_index" in text,
        generator=hands_on,
        sigmas=re.search(r"sigmas = .*linspace", text) is not None,
        mu="calculate_shift(" in text,
        init="init_noise_sigma" in whole,
        scales="scale_model_input" in whole,
        lists=lists,
        steps=steps,
        guidance=guidance,
    )


def _of_pipeline(pipe: Any) -> Facts:
    """The facts of a loaded pipeline as it is now, of the one under a helm, or of a scheduler."""
    pipe = getattr(pipe, "pipe", pipe)
    if callable(getattr(pipe, "set_timesteps", None)) and getattr(pipe, "config", None) is not None:
        return Facts(type(pipe).__name__, "", _of_scheduler(pipe))
    scheduler = getattr(pipe, "scheduler", None)
    if getattr(scheduler, "config", None) is None:
        raise ModelError(
            "a model is the name of a shipped one, a folder, a hub name, a diffusers scheduler or"
            f" a diffusers pipeline with a scheduler; got {type(pipe).__name__}"
        )
    networks = (getattr(pipe, name, None) for name in NETWORKS)
    network = next((network for network in networks if network is not None), None)
    config = dict(getattr(pipe, "config", None) or {})
    index = {key: value for key, value in config.items() if not key.startswith("_")}
    name = type(pipe).__name__
    config = dict(getattr(network, "config", None) or {})
    return Facts(name, name, _of_scheduler(scheduler), config, index)


def _of_scheduler(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration with its class, which one made in code does not write."""
    known = ("diffusers.", "timonel")
    name = next((c.__name__ for c in type(scheduler).__mro__ if c.__module__.startswith(known)), "")
    return {**scheduler.config, "_class_name": name}


def _from_hub(name: str) -> Path:
    """The folder of a hub repository's configurations. Raises `ModelError` where there is none."""
    known = (
        f"name a shipped model ({', '.join(zoo.MODELS)}), a folder in diffusers' format, or a hub"
        " repository"
    )
    if HUB.fullmatch(name) is None:
        raise ModelError(f"no model {name!r}: {known}")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"no folder {name!r} here, and the hub did not give it: {reason}; {known}"
        ) from error
