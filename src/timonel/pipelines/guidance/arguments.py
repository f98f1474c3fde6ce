"""A network's arguments as trees of tensors, of which some have the batch: rows of them, joined,
compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import parts


def select(value: Any, size: int, rows: Tensor, name: str = "") -> Any:
    """`value` with the given `rows` of a batch of `size` in everything that is batched."""
    if isinstance(value, Tensor):
        dim = parts.batched(value, size, name)
        if dim is None:
            return value
        each = value.shape[dim] // size
        index = (rows[:, None] * each + torch.arange(each, device=rows.device)).flatten()
        return value.index_select(dim, index.to(value.device))
    if isinstance(value, dict):
        return type(value)({k: select(v, size, rows, str(k)) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return type(value)([select(v, size, rows, name) for v in value])
    return value


def join(values: list[Any], size: int, name: str) -> Any:
    """The same argument of several calls as that of one. Raises `ValueError` where they do not fit."""
    first = values[0]
    if isinstance(first, Tensor) and all(isinstance(v, Tensor) for v in values):
        dim = parts.batched(first, size, name)
        if dim is not None and len({v.shape for v in values}) == 1:
            return torch.cat(values, dim)
    elif isinstance(first, dict):
        return type(first)({k: join([v[k] for v in values], size, str(k)) for k in first})
    elif isinstance(first, (list, tuple)):
        return type(first)([join(list(v), size, name) for v in zip(*values, strict=True)])
    if all(alike(first, v) for v in values[1:]):
        return first
    raise ValueError(f"unlike {name!r}")


def alike(a: Any, b: Any) -> bool:
    """Whether two arguments say the same."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return (
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.shape == b.shape
            and torch.equal(a, b)
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a is b)
