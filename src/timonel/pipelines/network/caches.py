"""What diffusers' caches remember between two calls of a network, so that a run can go back with
it.

First-block, TaylorSeer, Mag, Sea, faster and text caches and pyramid attention hang hooks with a
state on the blocks of a transformer, and what the network returns depends on it. A state's tensors
are replaced and never written into, so to remember it is to keep references; it costs the memory
that the replaced tensors would have freed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def holders(modules: Iterable[nn.Module]) -> list[Any]:
    """The objects that hold the states of caches on `modules`, each once; empty where there is no
    cache.
    """
    found: dict[int, Any] = {}
    for module in modules:
        for part in module.modules():
            registry = part.__dict__.get("_diffusers_hook")
            for hook in () if registry is None else registry.hooks.values():
                for value in vars(hook).values():
                    if _is_state(value) or hasattr(value, "_state_cache"):
                        found.setdefault(id(value), value)
    return list(found.values())


def take(modules: Iterable[nn.Module]) -> Any:
    """The states of all caches on `modules` as they are now, None where there are none."""
    taken = [(holder, _copy(_content(holder))) for holder in holders(modules)]
    return taken or None


def put(modules: Iterable[nn.Module], taken: Any) -> None:
    """Give the caches on `modules` the states that `take` took; None is those before the first
    call.
    """
    known = {id(holder): content for holder, content in taken or ()}
    for holder in holders(modules):
        if id(holder) in known:
            content = _content(holder)
            content.clear()
            content.update(_copy(known[id(holder)]))
        elif hasattr(holder, "reset"):
            holder.reset()


def fits(modules: Iterable[nn.Module], taken: Any) -> bool:
    """Whether `taken` has a state for every cache on `modules`."""
    known = {id(holder) for holder, _ in taken or ()}
    return all(id(holder) in known for holder in holders(modules))


def _content(holder: Any) -> dict[str, Any]:
    """Where a holder has its state: one for each name of a call, or its own attributes."""
    content: dict[str, Any] = getattr(holder, "_state_cache", vars(holder))
    return content


def _is_state(value: Any) -> bool:
    return type(value).__module__.startswith("diffusers.hooks") and type(value).__name__.endswith(
        "State"
    )


def _copy(value: Any) -> Any:
    """Containers and states anew, with the same tensors in them."""
    if isinstance(value, dict):
        return {key: _copy(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(*map(_copy, value))
            if hasattr(value, "_fields")
            else type(value)(map(_copy, value))
        )
    if _is_state(value):
        cls: Any = type(value)
        made = cls.__new__(cls)
        vars(made).update(_copy(vars(value)))
        return made
    return value
