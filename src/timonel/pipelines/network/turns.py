"""An autoencoder has one user at a time, for its user may cast it and cast it back.

Steered calls and looks take turns. A plain call takes none, and casts before it decodes. So while a
steered call or a look has an autoencoder that pipelines cast, plain calls in other threads are
refused where they come to it.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

AUTOENCODERS = ("vae", "movq", "vqvae", "vqgan")
USES = ("to", "encode", "decode")
Admit = Callable[[Any], None]
_GUARD = threading.RLock()
_TURNS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_WATCHES: weakref.WeakKeyDictionary[Any, _Watch] = weakref.WeakKeyDictionary()


def turn(autoencoder: Any) -> Any:
    """The lock of who encodes or decodes with it."""
    with _GUARD:
        return _TURNS.setdefault(autoencoder, threading.RLock())


def autoencoders(pipe: Any) -> list[Any]:
    """Those of a pipeline, in one order for all threads."""
    modules = {
        id(m): m for m in (getattr(pipe, name, None) for name in AUTOENCODERS) if m is not None
    }
    return [module for _, module in sorted(modules.items())]


@contextmanager
def turns(pipe: Any) -> Iterator[None]:
    """The turn with every autoencoder of a pipeline."""
    with ExitStack() as stack:
        for module in autoencoders(pipe):
            stack.enter_context(turn(module))
        yield


def cast(pipe: Any) -> list[Any]:
    """The autoencoders of half precision that pipelines cast to float32 to use them."""
    return [
        m for m in autoencoders(pipe) if getattr(getattr(m, "config", None), "force_upcast", False)
    ]


def watch(pipe: Any, admit: Admit) -> Callable[[], None]:
    """Call `admit(autoencoder)` before somebody without a turn uses one that is cast.

    Args:
        pipe: the pipeline of the autoencoders.
        admit: may raise, which refuses the use.

    Returns:
        A function that ends the watch.
    """
    watched = cast(pipe)
    with _GUARD:
        for module in watched:
            if module not in _WATCHES:
                _WATCHES[module] = _Watch(module, admit)
            _WATCHES[module].users += 1

    def end() -> None:
        with _GUARD:
            for module in watched:
                _WATCHES[module].users -= 1
                if not _WATCHES[module].users:
                    _WATCHES.pop(module).take_out()

    return end


def settle(pipe: Any) -> None:
    """Note which of them are of half precision.

    Called once no plain call is at work that may have cast them already.
    """
    for module in cast(pipe):
        watching = _WATCHES.get(module)
        if watching is not None and watching.half is None:
            with turn(module):
                watching.half = watching.half or getattr(module, "dtype", None) != torch.float32


class _Watch:
    """What stands before an autoencoder's methods while somebody takes turns with it.

    `users`: how many do. `half`: whether it is cast at all; None until that is known.
    """

    def __init__(self, module: Any, admit: Admit) -> None:
        self.users, self.open, self.admit = 0, True, admit
        self.half: bool | None = None
        self.module, self.lock = weakref.ref(module), turn(module)
        attributes = module.__dict__
        self._before = {name: attributes[name] for name in USES if name in attributes}
        self._put = {
            name: _Through(self, name, getattr(module, name))
            for name in USES
            if hasattr(module, name)
        }
        attributes.update(self._put)

    def take_out(self) -> None:
        self.open = False
        attributes = getattr(self.module(), "__dict__", {})
        for name, through in self._put.items():
            if attributes.get(name) is not through:
                continue  # somebody replaced it meanwhile
            if name in self._before:
                attributes[name] = self._before[name]
            else:
                del attributes[name]


class _Through:
    """A method of an autoencoder that is watched."""

    def __init__(self, watching: _Watch, name: str, inner: Callable[..., Any]) -> None:
        self._watching, self._name, self._inner = watching, name, inner
        functools.update_wrapper(self, inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watching = self._watching
        if not watching.open or watching.half is False or watching.lock._is_owned():
            return self._inner(*args, **kwargs)
        watching.admit(watching.module())
        with watching.lock:
            return self._inner(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the autoencoder has its own method."""
        module = self._watching.module()
        return getattr(type(module), self._name).__get__(memo.get(id(module), module))
