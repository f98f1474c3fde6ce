"""An SDE window: noise in some steps only, and the probability-flow ODE in the others.

Reinforcement learning on samplers computes log-probabilities, and their gradients, in the window
alone; the other steps keep the ODE's quality and cost no gradient.

Source: MixGRPO, Li et al. 2025, arXiv 2507.21802.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import ArgumentError, Idle, is_number, plain, shown
from ..table import Table

EXAMPLE = "the first step and the one after the last, counted from 0, e.g. sde=(2, 6) or '2:6'"


def bounds(window: Any) -> tuple[int, int]:
    """The first step of a window, and the step after its last.

    Args:
        window: (first, stop), or "first:stop".

    Raises:
        ArgumentError: it is none, or it is empty.
    """
    if isinstance(window, str) and (match := re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", window)):
        window = (int(match[1]), int(match[2]))
    pair = list(window) if isinstance(window, (list, tuple)) else []
    steps = [plain(one) if is_number(one) else one for one in pair]
    if len(steps) != 2 or any(type(step) is not int or step < 0 for step in steps):
        raise ArgumentError(f"sde must be {EXAMPLE}, got {shown(window)}")
    if steps[0] >= steps[1]:
        raise ArgumentError(f"sde={tuple(steps)} is empty: give {EXAMPLE}")
    return steps[0], steps[1]


def check(solver: str, options: tuple[str, ...], churned: bool) -> None:
    """Refuse a window for a solver that cannot have one.

    Args:
        solver: its name.
        options: that it takes.
        churned: whether churn is among those of the call.

    Raises:
        ArgumentError: its steps have no deterministic twin.
    """
    instead = {
        **dict.fromkeys(
            ("sa_solver", "sa_solver_pece"), "it has a window of its own, start= and stop="
        ),
        "ddpm": "take 'ddim' with options={'eta': 1, 'sde': (2, 6)}, which is the same",
        "edm": "s_tmin= and s_tmax= say where its churn acts",
    }
    if churned:
        raise ArgumentError("s_churn has a window of its own, s_tmin= and s_tmax=: leave sde out")
    if "eta" not in options or "stop" in options:
        why = instead.get(solver, "take one that has eta, e.g. 'euler_ancestral'")
        raise ArgumentError(f"{solver!r} has no steps with and without noise for sde=: {why}")


def spliced(table: Table, twin: Table, window: tuple[int, int], *, rest: bool = False) -> Table:
    """A table with the noise of one, in a window, and the steps of its twin elsewhere.

    Both keep predictions in one basis, of the same levels, so a multistep row reads across the
    border what it would have read anyway.

    Args:
        table: that draws noise.
        twin: the same solver with eta = 0.
        window: the first step that draws, and the one after the last.
        rest: whether these are the last steps of a run, in whose first ones noise was drawn.

    Returns:
        The table.

    Raises:
        Idle: the window leaves the run, or no step of it draws noise.
    """
    first, stop = window
    if stop > table.steps:
        some: dict[str, Any] = {"sde": (first, table.steps)}
        raise Idle(
            f"sde={window} ends after the run's last step: steps are counted from 0, and the last"
            " to draw noise is the one before the last",
            some if first < table.steps else {"sde": None, "eta": 0.0},
        )
    rows = [_rows(table if first <= k < stop else twin, k) for k in range(table.steps)]
    arrays: dict[str, Any] = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    seen, u = (arrays.pop(key, None) for key in ("seen", "u"))
    for key in ("alpha", "sigma", "time"):
        arrays[key] = torch.cat([arrays[key], getattr(table, key)[-1:]])
    steps = tuple(k for k, row in enumerate(rows) for _ in row["x"])
    both = replace(table, **arrays, seen=seen, u=u, step=steps, order=min(table.order, twin.order))
    if not both.stochastic and not rest:
        raise Idle(
            f"no step of sde={window} draws noise with {table.solver!r}: choose eta above 0, and a"
            " step before the last",
            {"sde": None, "eta": 0.0},
        )
    return both


def _rows(table: Table, step: int) -> dict[str, Tensor]:
    """The rows of a step."""
    rows = slice(table.first_row(step), table.first_row(step + 1))
    names = ("alpha", "sigma", "time", "x", "base", "seen", "u")
    arrays = {key: getattr(table, key) for key in names}
    return {key: value[rows] for key, value in arrays.items() if value is not None}
