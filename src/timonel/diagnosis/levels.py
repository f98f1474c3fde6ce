"""Levels of a scheduler of diffusers or of a table, as their share of noise.

The share is sigma / (alpha + sigma).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core.process import Process, double
from ..core.table import Table

MOVED = 0.02  # two shares that differ by less count as one level


def of_scheduler(process: Process, scheduler: Any) -> Tensor:
    """The levels by its sigmas, or where it keeps none by its times and the clean level after."""
    if not complete(scheduler):
        times = scheduler.timesteps.double().cpu()
        level = process.at_time(times.clamp(*times_of(process)))
        return torch.cat([level.sigma / (level.alpha + level.sigma), double([0.0])])
    sigma = listed(scheduler)
    return sigma if process.kind == "flow" else sigma / (1 + sigma)


def complete(scheduler: Any) -> bool:
    """Whether the sigmas are the levels of all calls; some classes have others between them."""
    sigmas = getattr(scheduler, "sigmas", None)
    between = hasattr(scheduler, "sigmas_interpol") or hasattr(scheduler, "mid_point_sigma")
    return sigmas is not None and not between and len(sigmas) == len(scheduler.timesteps) + 1


def listed(scheduler: Any) -> Tensor:
    """The scheduler's sigmas, turned round where they count from the picture to noise."""
    sigmas: Tensor = scheduler.sigmas.double().cpu()
    return 1 - sigmas if scheduler.config.get("invert_sigmas") else sigmas


def of_table(table: Table) -> Tensor:
    """By its rows."""
    return (table.sigma / (table.alpha + table.sigma)).detach()


def times_of(process: Process) -> tuple[float, float]:
    """The lowest and the highest time that the network was trained on."""
    ends = process.at_index(double([0.0, process.train_steps - 1.0])).time
    times = [*ends.tolist(), float(process.clean().time)]
    return min(times), max(times)


def noisiest(process: Process) -> Tensor:
    """Of the noisiest level that the model was trained for."""
    top = process.at_index(double(process.train_steps - 1.0))
    share: Tensor = top.sigma / (top.alpha + top.sigma)
    return share


def moved(a: Tensor, b: Tensor) -> bool:
    """Whether two runs with as many levels visit others; the end is not compared."""
    return len(a) == len(b) and bool(((a - b).abs()[:-1] > MOVED).any())


def below(share: Tensor, top: Tensor) -> float:
    """How far a level is below another, in lam; 0 where their shares are as good as one."""
    if float(top) - float(share) < MOVED / 4:
        return 0.0
    lam = [math.inf if float(s) >= 1 else math.log(float(s) / (1 - float(s))) for s in (share, top)]
    return lam[1] - lam[0]


def sigma(process: Process, share: Tensor) -> str:
    """A level's sigma in the words of the model's scheduler: t of a flow, sigma / alpha else."""
    value = float(share)
    if process.kind != "flow":
        value = value / (1 - value) if value < 1 else math.inf
    return f"{value:.3g}"


def ends(process: Process, share: Tensor) -> str:
    """The first, the middle and the last level before the end."""
    return " … ".join(sigma(process, share[i]) for i in (0, (len(share) - 1) // 2, -2))
