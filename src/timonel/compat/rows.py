"""Tables whose rows come from several tables on the same grid: the lower orders at the end of
diffusers' runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.table import Table

FEW = 15  # diffusers lowers the order of the last steps of shorter runs


def falling(order: int, steps: int, idle: int) -> list[int]:
    """The most predictions of every step where the order falls to 1 towards the end: min(order, N -
    k).
    """
    return [min(order, steps + idle - k) for k in range(steps)]


def lowered(make: Callable[[int], Table], orders: Sequence[int]) -> Table:
    """Row k from `make(orders[k])`. All tables have one row a step, on one grid, in one basis."""
    made = {order: make(order) for order in sorted(set(orders))}
    top = made[max(made)]
    if len(made) == 1:
        return top
    x, base = (
        [_widened(getattr(made[o], kind)[k], top.history) for k, o in enumerate(orders)]
        for kind in ("x", "base")
    )
    return replace(top, x=torch.stack(x), base=torch.stack(base))


def _widened(row: Tensor, history: int) -> Tensor:
    """A row's coefficients for a table that remembers `history` predictions."""
    return torch.cat([row[:-1], row.new_zeros(history + 3 - len(row)), row[-1:]])


def groups(calls: int, order: int, clean: bool, lowers: bool) -> str:
    """The place of every call of diffusers' singlestep scheduler in its group, e.g. "1212": the
    order of the call.

    `lowers`: the last call is one of its own, as it has to be to the clean level and for a number
    of calls that is no multiple of `order`.
    """
    lowers = lowers or clean or calls % order > 0
    alone = int(lowers and (clean or calls % order == 0))
    paired = calls - alone
    return "".join(str(k % order + 1) for k in range(paired)) + "1" * alone
