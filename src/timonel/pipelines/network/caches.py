"""The states of diffusers' caches between two calls of a network, so that a run can go back.

First-block, TaylorSeer, Mag, Sea, faster and text caches and pyramid attention hang hooks with a
state on the blocks of a transformer, and what the network returns depends on it. A state's tensors
are replaced and never written into, so to remember it is to keep references; it costs the memory
that the replaced tensors would have freed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ...engine.tensor_trees import map_leaves


def holders(modules: Iterable[Any]) -> list[Any]:
    """The objects that hold the states of caches on `modules`, or that are some, each once."""
    states: dict[int, Any] = {}
    for module in modules:
        if hasattr(module, "_state_cache"):  # what a guider remembers
            states[id(module)] = module
        for part in module.modules() if isinstance(module, nn.Module) else ():
            registry = part.__dict__.get("_diffusers_hook")
            for hook in () if registry is None else registry.hooks.values():
                for value in vars(hook).values():
                    if _is_state(value) or hasattr(value, "_state_cache"):
                        states.setdefault(id(value), value)
    return list(states.values())


def take(modules: Iterable[Any]) -> Any:
    """The states of all caches on `modules` as they are now; None where there are none."""
    return [(holder, _copy(_content(holder))) for holder in holders(modules)] or None


def put(modules: Iterable[Any], taken: Any) -> None:
    """Put states back into the caches on `modules`.

    Args:
        modules: networks.
        taken: from `take`; None is the states before the first call.
    """
    known = {id(holder): content for holder, content in taken or ()}
    for holder in holders(modules):
        if id(holder) in known:
            content = _content(holder)
            content.clear()
            content.update(_copy(known[id(holder)]))
        elif hasattr(holder, "reset"):
            holder.reset()


def fits(modules: Iterable[Any], taken: Any) -> bool:
    """Whether `taken` has a state for every cache on `modules`."""
    known = {id(holder) for holder, _ in taken or ()}
    return all(id(holder) in known for holder in holders(modules))


def _content(holder: Any) -> dict[str, Any]:
    """The dict of a holder's states, one for each name of a call, or of its own attributes."""
    content: dict[str, Any] = getattr(holder, "_state_cache", vars(holder))
    return content


def _is_state(value: Any) -> bool:
    cls = type(value)
    known = (("diffusers.hooks", "State"), ("diffusers.guiders", "MomentumBuffer"))
    return any(
        cls.__module__.startswith(module) and cls.__name__.endswith(name) for module, name in known
    )


def _copy(value: Any) -> Any:
    """A copy of containers and states, with the same tensors in them."""
    return map_leaves(_copy_state, value)


def _copy_state(_: str, value: Any) -> Any:
    if not _is_state(value):
        return value
    cls: Any = type(value)
    state = cls.__new__(cls)
    vars(state).update(_copy(vars(value)))
    return state
