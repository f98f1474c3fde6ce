"""Who is at work: a network serves one steered call at a time, whatever pipelines share it.

A call claims its pipeline, the networks of its loop and the objects that guide it. A second steered
call that needs any of them is refused before it begins. So is a plain call of the pipeline, and the
network call of a plain call of another one. An autoencoder is shared instead: who decodes waits for
the other's end, see `turns`. Who looks at a run joins the call that is at work, which ends after
the look, or has a claim until the look's end.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import nn

from ...errors import RunError
from .. import modular
from ..caller import everywhere, pipelines
from ..guidance.gate import Called, networks
from ..session import Session
from .turns import autoencoders, cast, settle, turn, turns, watch

REMEDY = "wait for its end (handle.result()), stop it, or load a second pipeline"
_GUARD = threading.Condition(threading.RLock())
_CLAIMS: weakref.WeakKeyDictionary[Any, Claim] = weakref.WeakKeyDictionary()


def needs(pipe: Any) -> list[Any]:
    """What only one call may use at a time: networks, also under what wraps them, and guiders."""
    modules = list(networks(pipe))
    for module in modules:  # grows
        inner = [getattr(module, name, None) for name in ("_orig_mod", "module")]
        inner += list(getattr(module, "nets", ()))
        modules += [m for m in inner if isinstance(m, nn.Module) and m not in modules]
    return [*modules, *modular.guiders(pipe).values()]


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
        self._own = {"scheduler": getattr(pipe, "scheduler", None), **modular.guiders(pipe)}
        self._turns: list[Any] = []
        self.held = [pipe, *needs(pipe)]
        self.brief = threading.Event() if brief else None
        self._looks, self._state = 0, "new"
        self._unwatch: Callable[[], None] = lambda: None
        while (other := self._take()) is not None:
            other.wait()
        try:
            self._unwatch = watch(pipe, _admit)
            _attend(pipe)
            self.check()
            settle(pipe)
        except BaseException:
            self.release()
            raise
        self._enter("sure")

    def _enter(self, state: str) -> None:
        """Go on to a state: `new`, `sure`, `ending` or `over`.

        A call is sure once nothing else is at work, and only then is it joined.
        """
        with _GUARD:
            self._state = state
            _GUARD.notify_all()

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
        mine, held = threading.get_ident(), [*self.held, *cast(self.pipe)]
        for thread, other in everywhere():
            parts = [*needs(other), *cast(other)] if thread != mine else []
            for one in [other] if other is self.pipe else parts:
                if any(one is ours for ours in held) and not _steered(other):
                    raise RunError(_refusal(self.name, one, self.pipe, type(other).__name__))

    def release(self) -> None:
        """Let others have it, once those who look at it are through."""
        try:
            with _GUARD:
                self._enter("ending")
                _GUARD.wait_for(lambda: not self._looks)
            with turns(self.pipe):
                pass
        finally:
            with _GUARD:
                self._enter("over")
                self._let_go()
        if self.brief is not None:
            self.brief.set()

    def _let_go(self) -> None:
        if self._looks:
            return  # somebody interrupted the wait: the last look does it
        for one in self.held:
            if _CLAIMS.get(one) is self:
                del _CLAIMS[one]
        _leave(self.pipe)
        self._unwatch()
        self._unwatch = lambda: None

    def part(self) -> None:
        """A look at it is through."""
        with _GUARD:
            self._looks -= 1
            if self._state == "over":
                self._let_go()
            _GUARD.notify_all()

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
    def again(self) -> Iterator[None]:
        """The pipeline is called once more, in the midst of its call or before."""
        session, inside = self.session, self.inside
        self.session, self.inside = None, False  # its networks are the call's, in hooks too
        try:
            yield
        finally:
            self.session, self.inside = session, inside

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
            for module in autoencoders(self.pipe):
                lock = turn(module)
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
            stack.callback(processors(modules))
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


def processors(modules: dict[nn.Module, bool]) -> Callable[[], None]:
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


class _Open:
    """A gate that lets the networks of `pipe` do what they do."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def call(self, called: Called) -> Any:
        return called.compute()


@contextmanager
def beside(pipe: Any) -> Iterator[None]:
    """Look at what a pipeline made: with the steered call at work, or with a claim for the time.

    Plain calls, which take no turns, are refused meanwhile.

    Raises:
        RunError: a plain call is at work.
    """
    with ExitStack() as stack:
        while not (joined := _joined(pipe)):
            try:
                claim = stack.enter_context(Claim(pipe, brief=True))
            except RunError:
                if not _at_work(pipe):
                    raise
            else:
                stack.enter_context(claim.working())
                stack.enter_context(gated(_Open(pipe), claim))
                break
        for one in joined:
            stack.callback(one.part)
        yield


def _joined(pipe: Any) -> list[Claim]:
    """The steered calls that have the pipeline, or what it shares.

    They end after the look that joins them.
    """
    with _GUARD:
        while claims := _at_work(pipe):
            if all(claim._state == "sure" for claim in claims):
                for claim in claims:
                    claim._looks += 1
                break
            _GUARD.wait()
        return claims


def _at_work(pipe: Any) -> list[Claim]:
    with _GUARD:
        claims = {id(_CLAIMS[one]): _CLAIMS[one] for one in (pipe, *needs(pipe)) if one in _CLAIMS}
    return [claim for claim in claims.values() if claim.brief is None]


def _admit(autoencoder: Any) -> None:
    """Raises `RunError` for a plain call that comes to an autoencoder with turns."""
    if next(pipelines(), None) is None:
        return
    with _GUARD:
        claims = {id(claim): claim for claim in _CLAIMS.values()}.values()
        if any(claim.thread == threading.get_ident() for claim in claims):
            return  # it is of the steered call itself, or of its hooks
        users = (c.name for c in claims if any(one is autoencoder for one in autoencoders(c.pipe)))
        raise RunError(_refusal("this call", autoencoder, None, next(users, "a pipeline")))


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
            """The components of before the call, for others that share them."""
            claim, parts = _CLAIMS.get(self), read(self)
            return parts if claim is None else {**parts, **claim._own}

        members["components"] = property(of_before)
    return type(cls.__name__, (cls,), {**members, "__doc__": cls.__doc__})
