"""ComfyUI's samplers and schedulers on exact data, run in a process of their own from a checkout.

`TIMONEL_COMFYUI` names a folder with ComfyUI's source, e.g. `git clone --depth 1
https://github.com/comfyanonymous/ComfyUI`. Only its files of samplers and schedules are imported;
see `comfyui_child.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from support.places import environment

VARIABLE = "TIMONEL_COMFYUI"
HOW = f"set {VARIABLE} to a checkout of ComfyUI: git clone --depth 1 https://github.com/comfyanonymous/ComfyUI"
DATA = {"seed": 0, "components": 6, "dimension": 6, "rank": 1, "classes": 1}


@dataclass(frozen=True)
class Job:
    """One run of a sampler, or with `sampler` None one list of levels.

    `process`: "vp" (Stable Diffusion's betas) or "flow" (shift 3). `mix`: see `parity.mixed`.
    `scale`: of guidance to class 0 of the data; 1 is none.
    """

    sampler: str | None
    process: str
    scheduler: str
    steps: int
    count: int = 64
    data: dict[str, int] = field(default_factory=lambda: dict(DATA))
    mix: dict[int, tuple[float, float]] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True)
class Ran:
    """What ComfyUI did: its levels and result, or the error it ended with."""

    levels: torch.Tensor | None
    result: torch.Tensor | None
    error: str = ""


@dataclass(frozen=True)
class Answer:
    """All jobs' results, and the names that this ComfyUI has."""

    version: str
    names: tuple[str, ...]
    schedulers: tuple[str, ...]
    ran: tuple[Ran, ...]


def checkout() -> Path | None:
    """The folder with ComfyUI's source, or None where the variable is not set."""
    return Path(os.environ[VARIABLE]).expanduser().resolve() if os.environ.get(VARIABLE) else None


def run(jobs: Sequence[Job]) -> Answer:
    """Run all jobs in one process. Raises `RuntimeError` without a checkout, or with what ComfyUI
    wrote.
    """
    where = checkout()
    if where is None:
        raise RuntimeError(HOW)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]), "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "support.comfyui_child", str(where), name],
            capture_output=True,
            text=True,
            env=environment(),
        )
        if done.returncode:
            raise RuntimeError(f"ComfyUI in {where} failed:\n{done.stderr[-2000:]}")
        with np.load(folder / "results.npz") as found:
            return _read(found, len(jobs))


def _read(found: np.lib.npyio.NpzFile, count: int) -> Answer:
    def tensor(name: str) -> torch.Tensor | None:
        return torch.from_numpy(found[name]) if name in found else None

    ran = tuple(
        Ran(
            tensor(f"levels_{i}"),
            tensor(f"result_{i}"),
            str(found[f"error_{i}"]) if f"error_{i}" in found else "",
        )
        for i in range(count)
    )
    return Answer(
        str(found["version"]),
        tuple(map(str, found["names"])),
        tuple(map(str, found["schedulers"])),
        ran,
    )
