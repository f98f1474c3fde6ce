"""The one operation of a run: a row's few sums over its tensors.

| path     | where                                | how                                                       |
|----------|--------------------------------------|-----------------------------------------------------------|
| `eager`  | everywhere                           | a torch operation per term; large tensors in chunks       |
| `triton` | CUDA, where Triton is installed      | one launch per row, one pass over memory                  |
| `native` | CPU, when asked for                  | C++ built by this machine's compiler, one pass per row    |

`TIMONEL_KERNEL` or `use` choose: `auto` (Triton on CUDA, eager elsewhere; the default), `native`
(as auto, and C++ on the CPU) or `eager`. All paths do the same to an element: a rounded product,
then fused multiply-adds, in the order of the terms; so the bits depend on neither the path, the
batch nor the chunks. Where a path cannot serve (dtypes, layout, a gradient to keep, no compiler)
the eager one does.
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
from .plan import Plan, Terms

__all__ = ["CHOICES", "Plan", "Terms", "chosen", "combine", "linear", "use"]

CHOICES = ("auto", "native", "eager")
_chosen: list[str] = []


def use(choice: str) -> None:
    """Choose the path for this process: `auto`, `native` or `eager`. Raises `UnknownName`."""
    if choice not in CHOICES:
        raise UnknownName("kernel", choice, CHOICES)
    _chosen[:] = [choice]


def chosen() -> str:
    """The choice in force; the first look reads `TIMONEL_KERNEL`."""
    if not _chosen:
        use(os.environ.get("TIMONEL_KERNEL", "auto"))
    return _chosen[0]


def linear(plan: Plan, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The sums of `plan` over `inputs` (equal shapes, one device) as new tensors of `dtype`; inputs
    are not changed.

    Differentiable in the inputs where gradients are recorded.
    """
    first = inputs[0]
    path = _fused(plan, inputs, dtype) or (eager if eager.large(plan, first) else None)
    if path is None or not _plain(inputs):
        return eager.sums(plan, inputs, dtype)
    out = [torch.empty_like(first, dtype=dtype) for _ in plan.sums]
    path.linear(plan, [t.contiguous() for t in inputs], out)
    return out


def _plain(inputs: Sequence[Tensor]) -> bool:
    """Whether memory may be read and written as it lies: nothing follows the tensors (autograd, a
    functorch
    transform, a subclass), nothing is broadcast, and the outputs will be contiguous."""
    first = inputs[0]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return False
    if (
        torch._C._functorch.maybe_current_level() is not None
        or not first.is_contiguous()
        or not first.numel()
    ):
        return False
    return all(
        type(t) is Tensor and t.shape == first.shape and t.device == first.device for t in inputs
    )


def _fused(plan: Plan, inputs: Sequence[Tensor], dtype: torch.dtype) -> ModuleType | None:
    """The path that makes these sums in one pass over memory, where there is one."""
    choice, first = chosen(), inputs[0]
    path: ModuleType | None = None
    if first.is_cpu and choice == "native":
        path = native
    elif first.is_cuda and choice != "eager":
        path = _triton()
    return path if path is not None and path.serves(plan, inputs, dtype) else None


@functools.cache
def _triton() -> ModuleType | None:
    try:
        return importlib.import_module(".triton_", __name__)
    except ImportError:
        return None
