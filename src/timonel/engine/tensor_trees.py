"""Trees of tensors: the dicts, lists and tuples that networks take and return."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor


def map_leaves(
    function: Callable[..., Any],
    *trees: Any,
    name: str = "",
    is_leaf: Callable[[Any], bool] = lambda tree: False,
) -> Any:
    """A tree like these, with `function(name, *leaves)` in the place of every leaf.

    Args:
        function: Gets the innermost key of a dict above the leaves, and a leaf of each tree.
        trees: Of one form; where their forms differ, those parts of them are leaves.
        name: Of the leaves that are in no dict.
        is_leaf: Says of a container in the first tree that it is a leaf.
    """
    first = trees[0]
    forms = {_form(tree) for tree in trees}
    if len(forms) > 1 or forms == {None} or is_leaf(first):
        return function(name, *trees)
    deeper = functools.partial(map_leaves, function, is_leaf=is_leaf)
    if isinstance(first, dict):
        values = {key: deeper(*(tree[key] for tree in trees), name=str(key)) for key in first}
        return _like(first, values)
    items = [deeper(*row, name=name) for row in zip(*trees, strict=True)]
    return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)


def _form(tree: Any) -> tuple[Any, ...] | None:
    """What trees of one form have in common; None for a leaf."""
    if isinstance(tree, dict):
        return type(tree), frozenset(tree)
    return (type(tree), len(tree)) if isinstance(tree, (list, tuple)) else None


def _like(first: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the type of `first`, such as a model output of diffusers, with other values."""
    if is_dataclass(first):
        return type(first)(**items)
    new = copy.copy(first)
    new.update(items)
    return new


def equal(a: Any, b: Any) -> bool:
    """Whether two trees have one form and equal leaves."""
    results = list[bool]()
    map_leaves(lambda _, *pair: results.append(_equal(*pair)), a, b)
    return all(results)


def _equal(a: Any, b: Any) -> bool:
    """Whether two leaves are equal; trees of different forms are none."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        view = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
        return view or torch.equal(a, b)
    differ = any(isinstance(value, (Tensor, dict, list, tuple)) for value in (a, b))
    return a is b or (not differ and bool(a == b))
