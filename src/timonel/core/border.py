"""What comes from outside as tensors, networks' outputs and hooks, looked at before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, shown
from .hook import Hook, adapt


def tensor(what: str, value: Any) -> Tensor:
    """`value`, or `ArgumentError` unless it is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise ArgumentError(
            f"{what} must be a floating-point tensor (batch, …), got {shown(value)}"
        )
    if value.is_floating_point() and value.ndim:
        return value
    raise ArgumentError(
        f"{what} must be a floating-point tensor (batch, …), got {value.dtype} {tuple(value.shape)}"
    )


def output(raw: Any, x: Tensor) -> Tensor:
    """What a network returned for the sample x, or `ArgumentError` unless it is a tensor like x.

    Its dtype may be another one, for networks in half precision are advanced in full; its shape and
    device may not.
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


def hooks(given: Any) -> list[Hook]:
    """Hooks as a list of `Hook`; None is none. Raises `ArgumentError` for anything else than a list
    of callables.
    """
    return [adapt(hook) for hook in listed(given)]


def listed(given: Any) -> list[Any]:
    """Hooks as they are, in a list; None is none. Raises `ArgumentError` for anything else than a
    list.
    """
    if given is None:
        return []
    if (
        isinstance(given, (str, bytes, dict, type))
        or not isinstance(given, Iterable)
        or hasattr(given, "dtype")
    ):
        one = "a hook" if isinstance(given, (Hook, Callable)) else shown(given)  # type: ignore[arg-type]
        raise ArgumentError(
            f"hooks must be a list of callables, e.g. hooks=[tm.progress()], got {one}"
        )
    return list(given)
