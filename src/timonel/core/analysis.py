"""What a table does, as numbers: weights of predictions, noise, and the spread of Gaussian data.

A table that reads unconditional predictions does here what it does to a run that is not guided.
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
    """What the sample is a sum of: K rows, N steps; row j is the sample when j steps are complete.

    Args:
        start: (N + 1,) coefficient of the initial sample.
        weights: (N + 1, K) of the denoised predictions.
        noise: (N + 1, K) of the fresh unit noise of every row.
    """

    start: Tensor
    weights: Tensor
    noise: Tensor


def effects(table: Table) -> Effects:
    """Trace every prediction and every noise through the rows of a table.

    With data at one point c, row j of `weights` sums to `alpha_j - start_j·alpha_0`: the mean of
    the level is kept.
    """
    table, k_rows = table.detach(), table.nfe
    unit = torch.eye(1 + 2 * k_rows, dtype=torch.float64)
    path = trace(table, unit[0], lambda row, x: unit[1 + row], lambda row: unit[1 + k_rows + row])
    states = torch.stack([path[table.first_row(step)] for step in range(table.steps + 1)])
    return Effects(states[:, 0], states[:, 1 : 1 + k_rows], states[:, 1 + k_rows :])


def spreads(table: Table, std: float) -> Tensor:
    """How a table treats Gaussian data.

    The denoiser of N(0, std²) is `alpha·std²/(alpha²·std² + sigma²)·x`, so every sample is a sum of
    independent noises. 1 is exact, below 1 the picture loses contrast, above it gains noise; growth
    means instability.

    Args:
        table: N steps.
        std: standard deviation of the data.

    Returns:
        (N + 1,) standard deviation of the sample over the one its level should have.
    """
    table, k_rows, variance = table.detach(), table.nfe, std**2
    unit = torch.eye(1 + k_rows, dtype=torch.float64)
    exact = torch.sqrt(table.alpha**2 * variance + table.sigma**2)

    def denoised(row: int, x: Tensor) -> Tensor:
        return x * (table.alpha[row] * variance / exact[row] ** 2)

    path = trace(table, unit[0] * exact[0], denoised, lambda row: unit[1 + row])
    rows = [table.first_row(step) for step in range(table.steps + 1)]
    return torch.stack([path[row].norm() / exact[row] for row in rows])


def trace(
    table: Table,
    x: Tensor,
    denoised: Callable[[int, Tensor], Tensor],
    noise: Callable[[int], Tensor],
) -> list[Tensor]:
    """The sample of every row and the result, for any quantities that rows can be applied to.

    Args:
        table: K rows.
        x: (D,) the start, as a vector over whatever is traced.
        denoised: `(row, x) -> (D,)`, the denoised prediction of a row.
        noise: `row -> (D,)`, its unit noise.

    Returns:
        K + 1 vectors.
    """
    table = table.unguided()
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
