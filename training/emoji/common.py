"""What every training script shares: batches, augmentation, the clock, EMA and checkpoints."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def to_float(pictures: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in -1..1, channels last in memory."""
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_uint8(pictures: Tensor) -> Tensor:
    """float (N, 3, H, W) in -1..1 -> uint8 (N, H, W, 3)."""
    return pictures.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def shift(pictures: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each picture by up to ``most`` pixels; white comes in."""
    count, _, height, width = pictures.shape
    padded = F.pad(pictures, (most,) * 4, value=1.0)
    offsets = torch.randint(0, 2 * most + 1, (count, 2), generator=generator).tolist()
    moved = [p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)


def jitter(pictures: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Scale the colours per channel around white, so that the background stays white."""
    gain = torch.rand(len(pictures), 3, 1, 1, generator=generator).mul(2).sub(1).mul(amount).add(1)
    return ((pictures - 1) * gain + 1).clamp(-1, 1)


@dataclass
class Clock:
    """Training time in seconds, over restarts; the learning rate follows it."""

    minutes: float
    warmup: float = 30.0
    before: float = 0.0
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.start

    @property
    def done(self) -> bool:
        return self.seconds >= 60 * self.minutes

    def rate(self, flat: float = 0.0) -> float:
        """Warmup, then ``flat`` of the time at 1, then a half cosine down to 0.02."""
        if self.seconds < self.warmup:
            return self.seconds / self.warmup
        part = min(1.0, self.seconds / (60 * self.minutes))
        falling = max(0.0, (part - flat) / (1 - flat))
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * falling))


class Average:
    """Exponential moving average of a module's parameters; its length grows with the steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - decay)


def save_atomic(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint (nested dicts and lists of tensors and numbers) as safetensors,
    atomically.
    """
    tensors: dict[str, Tensor] = {}

    def plain(node: Any) -> Any:
        if isinstance(node, Tensor):
            tensors[str(len(tensors))] = node.detach().contiguous().clone()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(node, dict):
            return {"items": [[key, plain(value)] for key, value in node.items()]}
        return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node

    tree = json.dumps(plain(state))
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"tree": tree})
    os.replace(part, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The inverse of ``save_atomic``; sequences come back as lists."""
    with safe_open(str(path), framework="pt") as file:
        tree = json.loads(file.metadata()["tree"])

        def built(node: Any) -> Any:
            if isinstance(node, dict):
                whole = {key: built(value) for key, value in node.get("items", [])}
                return file.get_tensor(node["tensor"]) if "tensor" in node else whole
            return [built(value) for value in node] if isinstance(node, list) else node

        state: dict[str, Any] = built(tree)
        return state


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside `folder`, whose place it takes when all went well."""
    part, old = (folder.with_name(folder.name + ending) for ending in (".part", ".old"))
    shutil.rmtree(part, ignore_errors=True)
    yield part
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def size(folder: Path) -> float:
    """Of all its files, in MB."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def log(path: Path, line: str) -> None:
    """Print a line with the time of day and append it to the log."""
    text = f"{time.strftime('%H:%M:%S')} {line}"
    print(text, flush=True)
    with path.open("a") as file:
        file.write(text + "\n")
