"""A model that is loaded already, a pipeline or a `Helm`, named by what it computes with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipelines.helm import Helm
from ..pipelines.load import DTYPES

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@dataclass(frozen=True)
class Loaded:
    """A loaded model on the axis of models.

    Attributes:
        name: NAME@DIGEST, of its weights and configurations.
        dtype, device: of its weights; None where it does not say.
        helm: that steers it.
    """

    name: str
    dtype: str | None
    device: str | None
    helm: Helm = field(compare=False, repr=False)

    @classmethod
    def of(cls, model: Any) -> Loaded:
        """From a pipeline or a `Helm`.

        Raises:
            ModelError: it is no pipeline that timonel can steer.
        """
        helm = model if isinstance(model, Helm) else Helm(model)
        pipe, words = helm.pipe, {dtype: word for word, dtype in DTYPES.items()}
        dtype, device = getattr(pipe, "dtype", None), getattr(pipe, "_execution_device", None)
        origin = helm.name or getattr(pipe, "name_or_path", None) or type(pipe).__name__
        return cls(
            f"{Path(str(origin)).name}@{digest(pipe)}",
            None if dtype is None else words.get(dtype, str(dtype)[6:]),
            None if device is None else torch.device(device).type, helm,
        )  # fmt: skip


def digest(pipe: Any) -> str:
    """Eight letters that change with any weights, the parts' classes and the scheduler's config."""
    state = hashlib.sha256(type(pipe).__name__.encode())
    for name, part in sorted(getattr(pipe, "components", {}).items()):
        state.update(f"{name}:{type(part).__name__}\n".encode())
        if name == "scheduler":
            state.update(_plain(part.config))
        if isinstance(part, torch.nn.Module):
            for key, value in [*part.named_parameters(), *part.named_buffers()]:
                state.update(f"{key}:{tuple(value.shape)}:{value.dtype}:{_sum(value)}\n".encode())
    return state.hexdigest()[:8]


def _plain(config: Any) -> bytes:
    """A configuration without diffusers' notes on where it comes from."""
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str).encode()


@torch.no_grad()
def _sum(value: Tensor) -> int | str:
    """The sum of a tensor's bits as integers, which no device or order changes."""
    try:
        bits = value.detach().contiguous().view(INTEGERS[value.element_size()])
        return int(bits.sum(dtype=torch.int64))
    # without data (meta), or of a dtype that has no view
    except (RuntimeError, TypeError, NotImplementedError, KeyError):
        return type(value).__name__
