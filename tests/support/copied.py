"""Runs to be copied and pickled, and their rest: imported by the process that goes on with one."""

from __future__ import annotations

from typing import Any

import torch

import timonel as tm

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
VP = tm.VP.from_schedule()


def network(x: torch.Tensor, t: Any) -> torch.Tensor:
    return torch.tanh(1.3 * x + float(t) / 700) + 0.2 * x


def denoise(x: torch.Tensor, level: Any) -> torch.Tensor:
    return network(x, level.time)


def begun(solver: str, steps: int = 0, **more: Any) -> tm.Run:
    seeds = {"seeds": [1, 2]} if solver.endswith("sde") else {}
    run = tm.begin(X, solver, process=VP, steps=6, prediction="epsilon", **seeds, **more)
    for _ in range(steps):
        next(tm.iterate(run, denoise))
    return run


def finished(run: tm.Run) -> torch.Tensor:
    for _ in tm.iterate(run, denoise):
        pass
    return run.result
