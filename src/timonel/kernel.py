"""The fused linear combination that executes every table row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Term = tuple[float, Tensor]
HALF = (torch.float16, torch.bfloat16)


def combine(terms: Sequence[Term], dtype: torch.dtype) -> Tensor:
    """sum of c·t over `terms` (at least one, equal shapes) as a new tensor of `dtype`.

    One pass per term and no allocation beyond the result. Coefficients are Python floats, so
    nothing is read back from the device. Half precision accumulates in float32 and rounds once.
    """
    work = torch.float32 if dtype in HALF else dtype
    c, first = terms[0]
    done = 1
    if first.dtype != work:
        total = first.to(work).mul_(c)
    elif c == 1.0 and len(terms) > 1:
        d, second = terms[1]
        total = torch.add(first, second, alpha=d)
        done = 2
    else:
        total = torch.mul(first, c)
    for c, tensor in terms[done:]:
        total.add_(tensor, alpha=c)
    return total if work is dtype else total.to(dtype)
