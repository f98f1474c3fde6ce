"""The path that works everywhere: plain torch operations, differentiable, one per term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .weighted_sums import WeightedSums

HALF = (torch.float16, torch.bfloat16)
CACHE = 1 << 25  # bytes of a row beyond which it is done in chunks: 32 MiB, a last-level cache
CHUNK = 1 << 18  # elements of a chunk; smaller ones cost more calls than they save memory traffic


def combine(
    terms: Sequence[tuple[float, Tensor]], dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """sum of c·t over `terms`: a rounded product, then fused multiply-adds in their order.

    One pass per term, no allocation beyond the result, and nothing is read back from the device.
    Half precision accumulates in float32 and rounds once.

    Args:
        terms: at least one pair (c, t), the tensors of equal shape.
        dtype: of the result.
        out: written to; None: a new tensor, differentiable in the tensors.

    Returns:
        The sum, or `out`.
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


def large(sums: WeightedSums, like: Tensor) -> bool:
    """Whether the tensors of a row, each as large as `like`, are on the CPU and exceed a cache."""
    return like.is_cpu and like.nbytes * (sums.inputs + len(sums.terms)) > CACHE


def linear(sums: WeightedSums, inputs: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the sums into `out`, chunk by chunk. All tensors are contiguous."""
    parts = [torch.split(t.view(-1), CHUNK) for t in (*inputs, *out)]
    for chunk in zip(*parts, strict=True):
        compute(sums, chunk[: sums.inputs], out[0].dtype, chunk[sums.inputs :])


def compute(
    sums: WeightedSums,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The sums as new tensors, or into `out`."""
    tensors = [*inputs]
    for m, terms in enumerate(sums.terms):
        into = None if out is None else out[m]
        tensors.append(combine([(c, tensors[i]) for c, i in terms], dtype, into))
    return tensors[sums.inputs :]
