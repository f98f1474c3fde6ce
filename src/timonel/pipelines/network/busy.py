"""Who is at work: a network serves one steered call at a time, whatever pipelines share it.

A call claims its pipeline, the networks of its loop and the objects that guide it. A second steered
call that needs any of them is refused before it begins. So is a plain call of the pipeline, and the
network call of a plain call of another one. An autoencoder is shared instead: who decodes waits for
the other's end.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import nn

from ...errors import RunError
from ..caller import pipelines
from ..guidance.gate import Called, networks
from ..session import Session

REMEDY = "wait for its end (handle.result()), stop it, or load a second pipeline"
AUTOENCODERS = ("vae", "movq", "vqvae", "vqgan")
GUIDERS = ("guider", "ocr_guider")
_GUARD = threading.RLock()
_CLAIMS: weakref.WeakKeyDictionary[Any, Claim] = weakref.WeakKeyDictionary()
_TURNS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def needs(pipe: Any) -> list[Any]:
    """What only one call may use at a time: networks, also under what wraps them, and guiders."""
    modules = list(networks(pipe))
    for module in modules:  # grows
        inner = [getattr(module, name, None) for name in ("_orig_mod", "module")]
        inner += list(getattr(module, "nets", ()))
        modules += [m for m in inner if isinstance(m, nn.Module) and m not in modules]
    guiders = (getattr(pipe, name, None) for name in GUIDERS)
    return [*modules, *(guider for guider in guiders if hasattr(guider, "guidance_scale"))]


class Claim:
    """What one call has for itself, from before it begins to its end.

    `thread`: the one that makes the call. `inside`: the pipeline is called. `brief`: it is no call,
    others wait for its end.

    Raises:
        RunError: another call has it.
    """

    def __init__(self, pipe: Any, brief: bool = False) -> None:
        self.pipe, self.name = pipe, type(pipe).__name__
        self.session: Session | None = None
        self.thread: int | None = None
        self.inside = False
        self._own = getattr(pipe, "scheduler", None)
        self._turns: list[Any] = []
        self.held = [pipe, *needs(pipe)]
        self.brief = threading.Event() if brief else None
        while (other := self._take()) is not None:
            other.wait()
        try:
            _attend(pipe)
            self.check()
        except BaseException:
            self.release()
            raise

    def _take(self) -> threading.Event | None:
        """Take everything, or return the end to wait for."""
        with _GUARD:
            others = [(one, _CLAIMS[one]) for one in self.held if one in _CLAIMS]
            for one, claim in others:
                if claim.brief is None or claim.thread == threading.get_ident():
                    raise RunError(_refusal(self.name, one, self.pipe, claim.name))
                return claim.brief
            for one in self.held:
                _CLAIMS[one] = self
        return None

    def check(self) -> None:
        """Raises `RunError` where a call that is not steered uses any of it already."""
        mine = threading.get_ident()
        for thread, frame in list(sys._current_frames().items()):
            for other in pipelines(frame):
                shared = [other] if other is self.pipe else needs(other) if thread != mine else []
                for one in shared:
                    if any(one is held for held in self.held) and not _steered(other):
                        raise RunError(_refusal(self.name, one, self.pipe, type(other).__name__))

    def release(self) -> None:
        """Let others have it, once those who take turns are through."""
        with turns(self.pipe):
            pass
        with _GUARD:
            for one in self.held:
                if _CLAIMS.get(one) is self:
                    del _CLAIMS[one]
            _leave(self.pipe)
        if self.brief is not None:
            self.brief.set()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # -- the call ------------------------------------------------------------------------------
    @contextmanager
    def calling(self) -> Iterator[None]:
        """The pipeline is called, in this thread only, and once at a time."""
        if self.thread != threading.get_ident() or self.inside:
            raise RunError(_refusal(self.name, self.pipe, self.pipe, self.name))
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """This thread makes the call."""
        self.thread = threading.get_ident()
        try:
            self.looping(False)
            yield
        finally:
            self.looping(True)
            self.thread = None

    def admits(self, module: nn.Module) -> bool:
        """Whether a network call is the pipeline's own, and not one of a hook.

        Raises:
            RunError: another thread makes it.
        """
        if self.thread != threading.get_ident():
            name = next((type(pipe).__name__ for pipe in pipelines()), "this call")
            raise RunError(_refusal(name, module, None, self.name))
        run = None if self.session is None else self.session.run
        if run is not None and run.firing:
            return False
        return called_by(self.pipe)

    @property
    def has_turns(self) -> bool:
        """Whether the pipeline's autoencoders are its own now."""
        return bool(self._turns)

    def looping(self, on: bool) -> None:
        """Outside its loop the pipeline encodes and decodes: its autoencoders are its own then."""
        if threading.get_ident() != self.thread:
            return
        if on:
            while self._turns:
                self._turns.pop().release()
        elif not self._turns:
            for lock in _turns_of(self.pipe):
                lock.acquire()
                self._turns.append(lock)


@contextmanager
def gated(gate: Any, claim: Claim) -> Iterator[None]:
    """Let every network call of the pipeline go through `gate` while the context is open.

    Those of others are refused.

    Args:
        gate: has the pipeline as `pipe`, and `call`, see `Gate.call`.
        claim: of the call.

    Raises:
        RunError: a call that is not steered uses a network of the pipeline already.
    """
    modules = networks(gate.pipe)
    with ExitStack() as stack:
        if hasattr(gate.pipe, "_set_pag_attn_processor"):
            stack.callback(_processors(modules))
        for module, main in modules.items():
            stack.callback(_put(gate, module, main, claim))
        claim.check()
        yield


def _put(gate: Any, module: nn.Module, main: bool, claim: Claim) -> Callable[[], None]:
    """Put the gate around a module's forward, outside other hooks and compiled code.

    Returns what takes it out.
    """
    name = "_compiled_call_impl" if module._compiled_call_impl is not None else "forward"
    inner, own, open_ = getattr(module, name), module.__dict__, [True]

    @functools.wraps(inner)
    def through(*args: Any, **kwargs: Any) -> Any:
        # closed it may still be reached, where somebody wrapped it during the call
        if not open_ or not claim.admits(module):
            return inner(*args, **kwargs)
        return gate.call(Called(module, main, inner, args, kwargs))

    missing = object()
    before = own.get(name, missing)
    own[name] = through

    def take_out() -> None:
        open_.clear()
        if own.get(name) is not through:
            return  # somebody replaced it during the call, as offloading does at its end
        if before is missing:
            del own[name]
        else:
            own[name] = before

    return take_out


def _processors(modules: dict[nn.Module, bool]) -> Callable[[], None]:
    """What restores attention processors, which perturbed attention leaves after an error."""
    processors: list[tuple[Any, dict[str, Any]]] = [
        (module, dict(module.attn_processors))  # type: ignore[arg-type]
        for module, main in modules.items()
        if main and hasattr(module, "attn_processors")
    ]

    def restore() -> None:
        for module, before in processors:
            if module.attn_processors != before:
                module.set_attn_processor(before)

    return restore


def turn(autoencoder: Any) -> Any:
    """The lock of who encodes or decodes with it, for that may change its dtype meanwhile."""
    with _GUARD:
        return _TURNS.setdefault(autoencoder, threading.RLock())


@contextmanager
def turns(pipe: Any) -> Iterator[None]:
    """The turn with every autoencoder of a pipeline."""
    with ExitStack() as stack:
        for lock in _turns_of(pipe):
            stack.enter_context(lock)
        yield


class _Open:
    """A gate that lets the networks of `pipe` do what they do."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def call(self, called: Called) -> Any:
        return called.compute()


@contextmanager
def beside(pipe: Any) -> Iterator[None]:
    """Decode outside of any call: plain calls are refused meanwhile, and steered ones wait.

    A steered one has refused the others already, and takes its turn.

    Raises:
        RunError: a plain call, which takes no turns, is at work.
    """
    with ExitStack() as stack:
        try:
            claim = stack.enter_context(Claim(pipe, brief=True))
        except RunError:
            if not _taken(pipe):
                raise
        else:
            stack.enter_context(claim.working())
            stack.enter_context(gated(_Open(pipe), claim))
        yield


def _taken(pipe: Any) -> bool:
    """Whether a steered call has the pipeline, or what it shares."""
    with _GUARD:
        return any(one in _CLAIMS and _CLAIMS[one].brief is None for one in (pipe, *needs(pipe)))


def _turns_of(pipe: Any) -> list[Any]:
    """The locks of a pipeline's autoencoders, in one order for all threads."""
    modules = {
        id(m): m for m in (getattr(pipe, name, None) for name in AUTOENCODERS) if m is not None
    }
    return [turn(module) for _, module in sorted(modules.items())]


def called_by(pipe: Any) -> bool:
    """Whether the innermost pipeline at work is `pipe`; True where none is."""
    return next(pipelines(), pipe) is pipe


def live(run: Any) -> bool:
    """Whether a call drives `run` now."""
    with _GUARD:
        claims = list(_CLAIMS.values())
    return any(claim.session is not None and claim.session.run is run for claim in claims)


def _refusal(name: str, busy: Any, pipe: Any, other: str) -> str:
    if busy is pipe:
        return f"this {name} is at work in another call: {REMEDY}"
    whose = f"of this {name}" if name != "this call" else "that is called here"
    return (
        f"the {type(busy).__name__} {whose} is at work in another call, of {other}, that shares it:"
        f" {REMEDY}"
    )


def _steered(pipe: Any) -> bool:
    with _GUARD:
        claim = _CLAIMS.get(pipe)
    return claim is not None and claim.inside


def _attend(pipe: Any) -> None:
    """Let the pipeline's calls ask whether it is at work, until `_leave`, by another class."""
    cls: Any = type(pipe)
    if "_attends" in vars(cls):
        return
    attended: Any = _attended(cls)
    with suppress(TypeError):  # a class of another layout cannot be replaced
        object.__setattr__(pipe, "__class__", attended)


def _leave(pipe: Any) -> None:
    before = vars(type(pipe)).get("_attends")
    if before is not None:
        object.__setattr__(pipe, "__class__", before)


@functools.lru_cache(maxsize=32)
def _attended(cls: Any) -> Any:
    """A class like `cls`, whose objects refuse other calls while they are at work."""

    @functools.wraps(cls.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        claim = _CLAIMS.get(self)
        if claim is None:
            return cls.__call__(self, *args, **kwargs)
        with claim.calling():
            return cls.__call__(self, *args, **kwargs)

    members = {
        "__call__": call,
        "_attends": cls,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    components = getattr(cls, "components", None)
    if isinstance(components, property) and components.fget is not None:
        read = components.fget

        def of_before(self: Any) -> Any:
            """The components with the scheduler of before the call, for others that share them."""
            claim, parts = _CLAIMS.get(self), read(self)
            return parts if claim is None else {**parts, "scheduler": claim._own}

        members["components"] = property(of_before)
    return type(cls.__name__, (cls,), {**members, "__doc__": cls.__doc__})
