"""The pipeline classes that are built: how, and how they are called."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from .standins import Text, Words

PROMPT = "a red apple"
LEFT_OUT = object()  # a call argument that is not given although the signature has it
# given to every call whose signature has them
USUAL: dict[str, Any] = {
    "prompt": PROMPT, "height": 16, "width": 16, "output_type": "latent", "max_sequence_length": 8,
    "use_resolution_binning": False, "clean_caption": False, "complex_human_instruction": None,
}  # fmt: skip
OPTIONAL = (
    "safety_checker",
    "feature_extractor",
    "image_encoder",
    "watermarker",
    "image_processor",
    "processor",
)
SWITCHES = {"requires_safety_checker": False, "add_watermarker": False}


@dataclass(frozen=True)
class Case:
    """One pipeline class.

    `components`: its networks and schedulers; text encoders are filled in. `call`: arguments beyond
    the usual. `guidance`: "batched" (both halves in one call of the network), "sequential" (one
    call each), "embedded" (a number the network is told) or "none". `networks`: attributes of what
    is called in the loop. `two`: arguments for two samples, or why there are none. `after`: what
    has to be done with the pipeline before it can be called.
    """

    name: str
    family: str
    components: Callable[[], dict[str, Any]]
    call: Callable[[], dict[str, Any]] = dict
    guidance: str = "batched"
    kind: str = "image"
    networks: tuple[str, ...] = ()
    two: dict[str, Any] | str = field(default_factory=dict)
    module: str | None = None
    label: str = ""
    after: Callable[[Any], None] | None = None

    @property
    def cls(self) -> Any:
        if self.module:
            return getattr(importlib.import_module(self.module), self.name)
        import diffusers

        return getattr(diffusers, self.name)

    @property
    def key(self) -> str:
        return self.name + self.label

    def build(self, seed: int = 0) -> Any:
        """The pipeline, with random weights from `seed`, on the CPU in float32."""
        torch.manual_seed(seed)
        given = self.components()
        # a package that mends broken characters of prompts; these prompts have none
        vars(sys.modules[self.cls.__module__]).setdefault("ftfy", SimpleNamespace(fix_text=str))
        for name, parameter in inspect.signature(self.cls.__init__).parameters.items():
            if name in given or name in ("self", "kwargs", "args"):
                continue
            if name in SWITCHES:
                given[name] = SWITCHES[name]
            elif name in OPTIONAL:
                given[name] = None
            elif "tokenizer" in name:
                given[name] = Words()
            elif "text_encoder" in name and parameter.default is inspect.Parameter.empty:
                given[name] = Text()
        pipe = self.cls(**given)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                fill(module.eval().requires_grad_(False))
        pipe.set_progress_bar_config(disable=True)
        if self.after:
            self.after(pipe)
        return pipe

    def parameters(self) -> Mapping[str, Any]:
        """The arguments of the pipeline's call by name."""
        return inspect.signature(self.cls.__call__).parameters

    def shown(self, form: str) -> dict[str, Any]:
        """Arguments with which a call returns pictures."""
        return {"output_type": form}

    def inputs(self) -> dict[str, Any]:
        """Arguments of a call with one sample; steps, seeds and guidance are not among them."""
        parameters = self.parameters()
        made = {key: value for key, value in USUAL.items() if key in parameters} | self.call()
        return {key: value for key, value in made.items() if value is not LEFT_OUT}


def fill(module: torch.nn.Module) -> None:
    """Random numbers where a network begins with zeros, for one that returns zero shows nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.02)


CASES: dict[str, Case] = {}


def add(
    name: str, family: str, components: Callable[[], dict[str, Any]], call: Any = dict, **facts: Any
) -> None:
    """Register a pipeline class."""
    register(Case(name, family, components, call, **facts))


def register(case: Case) -> None:
    assert case.key not in CASES, case.key
    CASES[case.key] = case


FAMILIES = (
    "sd",
    "sd_more",
    "sdxl",
    "sd3",
    "flux",
    "dit",
    "dit_new",
    "video",
    "video_new",
    "video_more",
    "cascade",
    "pixels",
    "audio",
    "newest",
    "modular",
)


def load() -> dict[str, Case]:
    """Every registered class."""
    for family in FAMILIES:
        importlib.import_module(f"{__package__}.{family}")
    return CASES
