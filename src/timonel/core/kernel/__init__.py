"""The one operation of a run: a row's few sums over its tensors.

| path     | where                | how                                                    |
|----------|----------------------|--------------------------------------------------------|
| `eager`  | everywhere           | a torch operation per term; large tensors in chunks    |
| `triton` | CUDA, with Triton    | one launch per row, one pass over memory               |
| `native` | CPU, on request      | C++ built by this machine's compiler, one pass per row |

`TIMONEL_KERNEL` or `use` choose: `auto` (Triton on CUDA, eager elsewhere; the default), `native`
(as auto, and C++ on the CPU) or `eager`. All paths do the same to an element: a rounded product,
then fused multiply-adds, in the order of the terms. So the bits depend on neither the path, the
batch nor the chunks. Where a path does not support the tensors (dtype, layout, gradients, no
compiler) the eager one runs.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ...errors import UnknownName
from . import eager, native
from .eager import combine
from .weighted_sums import Terms, WeightedSums

__all__ = ["CHOICES", "Terms", "WeightedSums", "chosen", "combine", "linear", "use"]

CHOICES = ("auto", "native", "eager")
_chosen: list[str] = []


def use(choice: str) -> None:
    """Choose the path for this process: `auto`, `native` or `eager`. Raises `UnknownName`."""
    if choice not in CHOICES:
        raise UnknownName("kernel", choice, CHOICES)
    _chosen[:] = [choice]


def chosen() -> str:
    """The choice in force; the first call reads `TIMONEL_KERNEL`."""
    if not _chosen:
        use(os.environ.get("TIMONEL_KERNEL", "auto"))
    return _chosen[0]


def linear(sums: WeightedSums, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Weighted sums of some tensors, differentiable in them.

    Args:
        sums: the weights, and the places of their tensors in `inputs`.
        inputs: tensors of equal shape on one device; they are not changed.
        dtype: of the results.

    Returns:
        A new tensor per sum.
    """
    first = inputs[0]
    path = _fused(sums, inputs, dtype) or (eager if eager.large(sums, first) else None)
    if path is None or not _plain(inputs):
        return eager.compute(sums, inputs, dtype)
    out = [torch.empty_like(first, dtype=dtype) for _ in sums.terms]
    path.linear(sums, [t.contiguous() for t in inputs], out)
    return out


def _plain(inputs: Sequence[Tensor]) -> bool:
    """Whether memory may be read as it lies: no autograd, functorch, subclass or broadcast."""
    first = inputs[0]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return False
    if torch._C._functorch.maybe_current_level() is not None:
        return False
    if not first.is_contiguous() or not first.numel():
        return False
    return all(
        type(t) is Tensor and t.shape == first.shape and t.device == first.device for t in inputs
    )


def _fused(sums: WeightedSums, inputs: Sequence[Tensor], dtype: torch.dtype) -> ModuleType | None:
    """The path that computes these sums in one pass over memory, where there is one."""
    choice, first = chosen(), inputs[0]
    path: ModuleType | None = None
    if first.is_cpu and choice == "native":
        path = native
    elif first.is_cuda and choice != "eager":
        path = _triton()
    return path if path is not None and path.supports(sums, inputs, dtype) else None


@functools.cache
def _triton() -> ModuleType | None:
    try:
        return importlib.import_module(".triton_", __name__)
    except ImportError:
        return None
