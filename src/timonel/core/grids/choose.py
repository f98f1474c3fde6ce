"""Which of many levels a grid keeps, by dynamic programming."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(cost: Tensor, steps: int, coefficient: float = 1.0) -> list[int]:
    """The path 0 = i_0 < … < i_steps = M of least sum of coefficient^k·cost[i_k, i_(k+1)].

    Args:
        cost: (M + 1, M + 1), read above the diagonal.
        steps: number of steps, at most M.
        coefficient: weight of each step relative to the one before.

    Returns:
        The steps + 1 indices, rising from 0 to M.

    Source: dynamic programming over V_n[i], the least cost from i to M in n steps:
    V_n[i] = min over j of cost[i, j] + coefficient·V_(n-1)[j].
    """
    size = len(cost)
    allowed = torch.ones(size, size, dtype=torch.bool).triu(1)
    cost = torch.where(allowed, cost.double(), torch.inf)
    value, best = cost[:, -1], []
    for _ in range(steps - 1):
        value, pick = (cost + coefficient * value).min(1)
        best.append(pick)
    path = [0]
    for pick in reversed(best):
        path.append(int(pick[path[-1]]))
    return [*path, size - 1]
