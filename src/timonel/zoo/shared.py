"""Components of a shipped pipeline that are those of its base, so each is on the disk once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict


class Shared(BaseModel):
    """A component of the base by name, and the values of its config that are others here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: str
    config: dict[str, Any] = {}


def taken(
    base: Path, components: Mapping[str, Shared], dtype: torch.dtype | Mapping[str, torch.dtype]
) -> dict[str, Any]:
    """Components from the folder of a pipeline; errors are those of diffusers and transformers.

    Args:
        base: the folder.
        components: what to load, by the name here.
        dtype: of all, or by name with "default" for the rest.

    Returns:
        The components by name; two of the same part and dtype are one object.
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
    module = reader.from_pretrained(folder, use_safetensors=True, **config)
    return torch.nn.Module.to(module, dtype)  # that of diffusers warns of other precisions


def _of(dtype: torch.dtype | Mapping[str, torch.dtype], name: str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    return dtype.get(name, dtype.get("default", torch.float32))
