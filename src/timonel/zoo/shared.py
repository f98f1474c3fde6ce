"""Parts of a pipeline that a shipped model takes from its base: the files lie on the disk once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict


class Shared(BaseModel):
    """Which part of the base it is, and what of its configuration is another value here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: str
    config: dict[str, Any] = {}


def taken(
    base: Path, components: Mapping[str, Shared], dtype: torch.dtype | Mapping[str, torch.dtype]
) -> dict[str, Any]:
    """The components by name, from the pipeline folder `base`.

    A part that is named twice is one object, as long as it is asked for in one precision. `dtype`:
    of all, or by component, with "default" for the rest. Raises what the readers of diffusers and
    transformers raise.
    """
    index = json.loads((base / "model_index.json").read_text("utf-8"))
    loaded: dict[tuple[str, torch.dtype], Any] = {}
    for name, shared in components.items():
        key = shared.part, _of(dtype, name)
        if key not in loaded:
            loaded[key] = _part(base / shared.part, index[shared.part], shared.config, key[1])
    return {name: loaded[shared.part, _of(dtype, name)] for name, shared in components.items()}


def _part(folder: Path, entry: tuple[str, str], config: dict[str, Any], dtype: torch.dtype) -> Any:
    library, name = entry
    reader = getattr(import_module(library), name)
    if not issubclass(reader, torch.nn.Module):
        return reader.from_pretrained(folder)
    made = reader.from_pretrained(folder, use_safetensors=True, **config)
    return torch.nn.Module.to(
        made, dtype
    )  # diffusers' own `to` warns of layers in other precisions, of which is none


def _of(dtype: torch.dtype | Mapping[str, torch.dtype], name: str) -> torch.dtype:
    return (
        dtype
        if isinstance(dtype, torch.dtype)
        else dtype.get(name, dtype.get("default", torch.float32))
    )
