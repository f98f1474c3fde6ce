"""What a table does, as numbers: the weights of its predictions, its noise, and how it treats
Gaussian data.

Everything follows from the rows by linear algebra in float64; no network is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .table import Table


@dataclass(frozen=True, eq=False)
class Effects:
    """Where the sample comes from. K rows, N steps; row j of a matrix is the sample when j steps
    are complete.

    `start`: (N + 1,) coefficient of the initial sample. `weights`: (N + 1, K) of the denoised
    predictions. `noise`: (N + 1, K) of the fresh unit noise of every row.
    """

    start: Tensor
    weights: Tensor
    noise: Tensor


def effects(table: Table) -> Effects:
    """Trace every prediction and every noise through the rows.

    With data at one point c, row j of `weights` sums to `alpha_j - start_j·alpha_0`: the mean of
    the level is kept.
    """
    k_rows = table.nfe
    unit = torch.eye(1 + 2 * k_rows, dtype=torch.float64)
    path = _trace(table, unit[0], lambda row, x: unit[1 + row], lambda row: unit[1 + k_rows + row])
    states = torch.stack([path[table.first_row(step)] for step in range(table.steps + 1)])
    return Effects(states[:, 0], states[:, 1 : 1 + k_rows], states[:, 1 + k_rows :])


def spreads(table: Table, std: float) -> Tensor:
    """(N + 1,) standard deviation of the sample over the one its level should have, on Gaussian
    data of `std`.

    The denoiser of N(0, std²) is `alpha·std²/(alpha²·std² + sigma²)·x`, so every sample is a sum of
    independent noises. 1 is exact, below 1 the picture loses contrast, above it gains noise; growth
    means instability.
    """
    k_rows, variance = table.nfe, std**2
    unit = torch.eye(1 + k_rows, dtype=torch.float64)
    exact = torch.sqrt(table.alpha**2 * variance + table.sigma**2)

    def denoised(row: int, x: Tensor) -> Tensor:
        return x * (table.alpha[row] * variance / exact[row] ** 2)

    path = _trace(table, unit[0] * exact[0], denoised, lambda row: unit[1 + row])
    rows = [table.first_row(step) for step in range(table.steps + 1)]
    return torch.stack([path[row].norm() / exact[row] for row in rows])


def _trace(
    table: Table,
    x: Tensor,
    denoised: Callable[[int, Tensor], Tensor],
    noise: Callable[[int], Tensor],
) -> list[Tensor]:
    """The sample of every row, as vectors over whatever `x`, `denoised(row, x)` and `noise(row)`
    are vectors of.
    """
    table = table.detach()
    base, history, path = x, [torch.zeros_like(x)] * (table.history - 1), [x]
    for row in range(table.nfe):
        clean, (alpha, sigma, _) = denoised(row, x), table.level(row)
        scale = alpha + sigma if table.basis == "velocity" else alpha
        h0 = clean if table.basis == "denoised" else (x - scale * clean) / sigma
        registers = torch.stack([x, base, h0, *history, noise(row)])
        x, base = table.x[row] @ registers, table.base[row] @ registers
        history = [h0, *history][: table.history - 1]
        path.append(x)
    return path
