"""The folder of a modular pipeline of diffusers, read without running code that comes with it.

diffusers' loader follows the index to wherever it says that a part lies, and only warns where one
cannot be read. Here every part is read from the folder itself, or the model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import trust
from .trust import MODULAR, refused

BLOCKS = "_blocks_class_name"


def is_one(path: Path) -> bool:
    """Whether a folder holds a modular pipeline, and no classic one beside it."""
    return (path / MODULAR).is_file() and not (path / trust.INDEX).is_file()


def read(name: str, path: Path, dtype: Any, options: Mapping[str, Any]) -> Any:
    """The pipeline of a folder with all parts that its index names.

    Args:
        name: of the model, for messages.
        path: the folder.
        dtype: of its networks, or one for each part by name.
        options: `variant`.

    Raises:
        ModelError: it cannot be read, or reading it would run code.
    """
    import diffusers

    parts = trust.modular_folder(name, path)
    index = trust.read(name, path / MODULAR, trust.MOST_INDEX)
    cls: Any = getattr(diffusers, str(index["_class_name"]), None)
    known = isinstance(cls, type) and issubclass(cls, diffusers.ModularPipeline)
    if not known:
        raise refused(name, f"diffusers has no modular pipeline {index['_class_name']!r}")
    if index.get(BLOCKS) is not None and not hasattr(diffusers, str(index[BLOCKS])):
        raise refused(
            name,
            f"its blocks {index[BLOCKS]!r} are code that comes with the model, which is never run"
            " here; build the pipeline yourself and give the object",
        )
    pipe = cls.from_pretrained(str(path), trust_remote_code=False, local_files_only=True)
    for part in parts:
        spec, more = pipe.get_component_spec(part), dict[str, Any]()
        if spec.type_hint is None:
            raise refused(name, f"its {MODULAR} does not say of which class {part} is")
        if issubclass(spec.type_hint, torch.nn.Module):
            more = {"use_safetensors": True, "dtype": _dtype(dtype, part)}
        loaded = spec.load(
            pretrained_model_name_or_path=str(path), subfolder=part, local_files_only=True,
            **more, **options,
        )  # fmt: skip
        pipe.update_components(**{part: loaded})
    return pipe


def _dtype(dtype: Any, part: str) -> Any:
    if not isinstance(dtype, Mapping):
        return dtype
    return dtype.get(part, dtype.get("default", torch.float32))
