"""Classes of `timonel.compat` are subclasses of diffusers' in name, and share nothing else.

Pipelines ask `isinstance(scheduler, FlowMatchEulerDiscreteScheduler)` to know what to give it. What
diffusers' class defines and timonel's does not is hidden, so that no step of diffusers runs on the
state of another one.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..pipelines.classes.rows import CLASSES

SHARED = {*SchedulerMixin.__mro__, *ConfigMixin.__mro__}  # what any scheduler is made of
#: what every class has for itself
OF_CLASSES = ("__dict__", "__doc__", "__module__", "__weakref__", "__init__", "__slotnames__")


class Hidden:
    """A member of diffusers' class that counts as missing, so that `__getattr__` says why."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__} has no {self.name!r}")


def peer(name: str) -> type | None:
    """The scheduler of diffusers of this name; None where it needs scipy or torchsde."""
    import diffusers

    try:
        cls = getattr(diffusers, name, None)
    except (ImportError, RuntimeError):
        return None
    return cls if isinstance(cls, type) and issubclass(cls, SchedulerMixin) else None


def defined(cls: type) -> set[str]:
    """The names that diffusers' class itself defines."""
    names = {name for part in cls.__mro__ if part not in SHARED for name in vars(part)}
    return names - set(OF_CLASSES)


def hidden(cls: type, name: str) -> bool:
    """Whether diffusers' class, or its objects, have this name for their own steps."""
    return isinstance(inspect.getattr_static(cls, name, None), Hidden)


class Named(type):
    """Makes a class that is named after one of diffusers' schedulers a subclass of that."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], members: dict[str, Any], **more: Any
    ) -> Any:
        """The class, with diffusers' as its last base and its members hidden."""
        theirs = peer(name) if name in CLASSES else None
        if theirs is None:
            return super().__new__(mcs, name, bases, members, **more)
        line = bases[0].__mro__
        for word in defined(theirs) - set(members):
            owner = next((part for part in line if word in vars(part)), None)
            if owner is None:
                members[word] = Hidden()
            elif owner in SHARED:
                members[word] = vars(owner)[word]
        return super().__new__(mcs, name, (*bases, theirs), members, **more)
