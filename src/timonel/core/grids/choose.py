"""Which of many levels a grid keeps, by dynamic programming."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(cost: Tensor, steps: int, coefficient: float = 1.0) -> list[int]:
    """The path 0 = i_0 < … < i_steps = M that minimises the sum of coefficient^k·cost[i_k,
    i_(k+1)].

    `cost`: (M + 1, M + 1), read above the diagonal. Dynamic programming over V_n[i], the least cost
    from i to M in n steps: V_1[i] = cost[i, M], V_n[i] = min over j of cost[i, j] +
    coefficient·V_(n-1)[j].
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
