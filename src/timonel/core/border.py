"""Checks of what comes from outside: tensors, networks' outputs, hooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, shown
from .hook import Hook, adapt


def tensor(what: str, value: Any) -> Tensor:
    """`value`, which has to be a floating-point tensor (batch, …).

    Args:
        what: its name in the error.
        value: anything.

    Raises:
        ArgumentError: it is none.
    """
    if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
        return value
    got = shown(value)
    if isinstance(value, Tensor):
        got = f"{value.dtype} {tuple(value.shape)}"
    raise ArgumentError(f"{what} must be a floating-point tensor (batch, …), got {got}")


def output(raw: Any, x: Tensor) -> Tensor:
    """What a network returned, which has to be a tensor like its sample.

    Its dtype may be another one, for networks in half precision are advanced in full; its shape and
    device may not.

    Args:
        raw: what it returned.
        x: (batch, …), the sample.

    Raises:
        ArgumentError: it is no such tensor.
    """
    if not isinstance(raw, Tensor):
        raise ArgumentError(f"the network must return a tensor {tuple(x.shape)}, got {kind(raw)}")
    if raw.shape != x.shape:
        raise ArgumentError(
            f"the network returned shape {tuple(raw.shape)} for a sample of {tuple(x.shape)}"
        )
    if not raw.is_floating_point():
        raise ArgumentError(
            f"the network must return floating-point numbers like its sample's {x.dtype}, got"
            f" {raw.dtype}"
        )
    if raw.device != x.device:
        raise ArgumentError(
            f"the network returned a tensor on {raw.device} for a sample on {x.device}; move one of"
            " them"
        )
    return raw


def kind(raw: Any) -> str:
    """What somebody returned instead of a tensor, and what to return."""
    if raw is None:
        return "None: does the function return its result?"
    if isinstance(raw, (tuple, list)):
        return f"a {type(raw).__name__} of {len(raw)}: return its first entry, net(…)[0]"
    if hasattr(raw, "sample") and not callable(raw.sample):
        return f"a {type(raw).__name__}: return its tensor, net(…).sample"
    if hasattr(raw, "dtype"):
        return f"{type(raw).__name__} of {raw.dtype}: return torch.as_tensor(…)"
    return shown(raw)


def hooks(value: Any) -> list[Hook]:
    """Hooks as a list of `Hook`; None is none.

    Raises:
        ArgumentError: for anything else than a list of callables.
    """
    return [adapt(hook) for hook in listed(value)]


def listed(value: Any) -> list[Any]:
    """Hooks as they are, in a list; None is none.

    Raises:
        ArgumentError: for anything else than a list.
    """
    if value is None:
        return []
    one_thing = isinstance(value, (str, bytes, dict, type)) or hasattr(value, "dtype")
    if one_thing or not isinstance(value, Iterable):
        one = "a hook" if isinstance(value, Hook) or callable(value) else shown(value)
        raise ArgumentError(
            f"hooks must be a list of callables, e.g. hooks=[tm.progress()], got {one}"
        )
    return list(value)
