"""The pipeline from its own folder and from the parts that it shares with the emoji model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

# SD3 adds shift_factor, which the emoji model's autoencoder leaves unset; 0 keeps its latents.
COMPONENTS: dict[str, dict[str, Any]] = {
    "vae": {"part": "vae", "config": {"shift_factor": 0.0}},
    "text_encoder": {"part": "text_encoder_2"},
    "text_encoder_2": {"part": "text_encoder_2"},
    "tokenizer": {"part": "tokenizer_2"},
    "tokenizer_2": {"part": "tokenizer_2"},
}


def shared_components(base: Path, components: dict[str, dict[str, Any]], dtype: torch.dtype) -> dict[str, Any]:
    """The named parts of the pipeline folder ``base``; a part that is named twice is one object.

    ``config`` replaces values of a part's configuration.
    """
    index = json.loads((base / "model_index.json").read_text("utf-8"))
    loaded: dict[str, Any] = {}
    for entry in components.values():
        part = entry["part"]
        if part not in loaded:
            library, name = index[part]
            cls = getattr(importlib.import_module(library), name)
            kwargs = {} if part.startswith("tokenizer") else {"dtype": dtype, **entry.get("config", {})}
            loaded[part] = cls.from_pretrained(base / part, **kwargs)
    return {name: loaded[entry["part"]] for name, entry in components.items()}


def load_pipeline(folder: Path, base: Path, dtype: torch.dtype = torch.float32) -> StableDiffusion3Pipeline:
    """The exported model; ``base`` is the folder of the emoji model."""
    components = json.loads((folder / "card.json").read_text("utf-8"))["components"]
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    # diffusers takes "none" from the index only for optional parts, and SD3's T5 is not one
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    shared = shared_components(base, components, dtype)
    return StableDiffusion3Pipeline.from_pretrained(folder, dtype=dtype, **absent, **shared)
