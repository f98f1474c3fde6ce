"""The path that works everywhere: plain torch operations, differentiable, one per term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .plan import Plan

HALF = (torch.float16, torch.bfloat16)
CACHE = (
    1 << 25
)  # bytes a row may touch before it is worked off in chunks: 32 MiB, a last-level cache
CHUNK = (
    1 << 18
)  # elements of one chunk; smaller ones cost more in calls than they save in memory traffic


def combine(
    terms: Sequence[tuple[float, Tensor]], dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """sum of c·t over `terms` (at least one, equal shapes) as a new tensor of `dtype`, or into
    `out`.

    A rounded product, then fused multiply-adds in the order of the terms: what is done to an
    element depends on its own values alone. One pass per term and no allocation beyond the result.
    Coefficients are Python floats, so nothing is read back from the device. Half precision
    accumulates in float32 and rounds once. Differentiable in the tensors where `out` is not given.
    """
    work = torch.float32 if dtype in HALF else dtype
    into: dict[str, Any] = {} if out is None or work is not dtype else {"out": out}
    c, first = terms[0]
    done = 1
    if first.dtype != work:
        total = first.to(work).mul_(c) if not into else into["out"].copy_(first).mul_(c)
    elif c == 1.0 and len(terms) > 1:
        d, second = terms[1]
        total = torch.add(first, second, alpha=d, **into)
        done = 2
    else:
        total = torch.mul(first, c, **into)
    for c, tensor in terms[done:]:
        total.add_(tensor, alpha=c)
    if out is None:
        return total if work is dtype else total.to(dtype)
    return total if into else out.copy_(total)


def large(plan: Plan, like: Tensor) -> bool:
    """Whether the tensors of a row, each as large as `like`, are on the CPU and too much for a
    cache.
    """
    return like.is_cpu and like.nbytes * (plan.inputs + len(plan.sums)) > CACHE


def linear(plan: Plan, inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the sums of `plan` into `out`, chunk by chunk. All tensors are contiguous."""
    parts = [torch.split(t.view(-1), CHUNK) for t in (*inputs, *out)]
    for chunk in zip(*parts, strict=True):
        sums(plan, chunk[: plan.inputs], out[0].dtype, chunk[plan.inputs :])


def sums(
    plan: Plan, inputs: Sequence[Tensor], dtype: torch.dtype, out: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """The sums of `plan` as new tensors, or into `out`."""
    tensors = [*inputs]
    for m, terms in enumerate(plan.sums):
        tensors.append(
            combine([(c, tensors[i]) for c, i in terms], dtype, None if out is None else out[m])
        )
    return tensors[plan.inputs :]
