"""A call that an engine makes: what was requested, where it stands, and its pictures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.guidance import Guidance
from ..core.hook import Hook
from ..core.run import Run
from ..engine.handle import Begun, Handle, Pictures
from ..errors import RunError
from ..pipelines.encoding import Encoded

if TYPE_CHECKING:
    from PIL import Image

ENDS = ("done", "stopped", "failed")


@dataclass(frozen=True)
class Request:
    """What one call asks of an engine.

    Args:
        args: as in a call of the helm.
        options: as in a call of the helm, without guidance and hooks.
        guidance: of the run; None is the model's.
        hooks: of the run.
        priority: those with a higher one go first.
        deadline: seconds from its submission after which it is given up; None: never.
    """

    args: tuple[Any, ...]
    options: Mapping[str, Any]
    guidance: Guidance | None = None
    hooks: Sequence[Any] = ()
    priority: int = 0
    deadline: float | None = None


@dataclass(frozen=True)
class Output:
    """What a call of an engine makes.

    Attributes:
        images: one picture per sample; they carry their recipe.
        frames: of a video its pictures, per sample; empty otherwise.
        evaluations: of the network, conditional and unconditional ones.
        seconds: its share of the network's time.
    """

    images: list[Image.Image]
    frames: list[list[Image.Image]] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0


class Event(NamedTuple):
    """Where a call stands.

    `kind`: waiting, step, and at the end done, stopped or failed. `position`: calls before it in
    the queue. `sigma`: sigma / alpha of the level.
    """

    kind: str
    step: int = 0
    steps: int = 0
    sigma: float = 0.0
    position: int = 0
    reason: str = ""


class Ticket(Handle):
    """The handle of a call that an engine makes. Orders are those of `Handle`.

    Args:
        number: counts the calls of the engine.
        request: what was requested.
        pictures: see `Handle`.
        wake: called when an order may change what the engine has to do.
    """

    def __init__(
        self, number: int, request: Request, pictures: Pictures, wake: Callable[[], None]
    ) -> None:
        super().__init__(pictures)
        self.number, self.request = number, request
        self.submitted = time.monotonic()
        self.cancelled = ""
        self.held = 0  # bytes that its run was admitted with
        self.position = 0
        self.encoded: Encoded | None = None  # once it is admitted
        self.alone = ""  # why it does not share its network calls
        self._wake = wake
        self._at_end: list[Callable[[], None]] = []
        self._watchers: list[Callable[[], None]] = []

    @property
    def overdue(self) -> bool:
        """Whether its deadline has passed."""
        deadline = self.request.deadline
        return deadline is not None and time.monotonic() > self.submitted + deadline

    @property
    def succeeded(self) -> bool:
        """Whether the call has ended with a result."""
        return self._outcome is not None and self._outcome[1] is None

    @property
    def error(self) -> BaseException | None:
        """What the call ended with in the place of a result; None where it did not."""
        return None if self._outcome is None else self._outcome[1]

    def hooks(self) -> list[Any]:
        """The hooks of its run: the requested ones between the handle's and the watchers'."""
        return [Begun(self.begin), *self.request.hooks, _Changed(self.changed)]

    def cancel(self, reason: str = "it was cancelled") -> None:
        """Give the call up at its next step; `result` then raises `RunError`.

        Args:
            reason: a sentence for it.
        """
        with self._change:
            if self.done:
                return
            self.cancelled = reason
            if self._run is not None and self._run.phase in ("running", "paused"):
                self._run.stop(reason)
        self._wake()

    def begin(self, run: Run) -> None:
        """The run exists; it is stopped where the call was cancelled meanwhile."""
        super().begin(run)
        if self.cancelled and run.phase in ("new", "running", "paused"):
            run.stop(self.cancelled)

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """The call has ended; one that was cancelled has no result."""
        if self.cancelled and error is None:
            error = RunError(f"the call has no result: {self.cancelled}")
        super().end(result, error)
        self.changed()
        with self._change:
            calls, self._at_end = self._at_end, []
        for call in calls:
            call()

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call something once the call has ended, in the thread that ends it, or now."""
        with self._change:
            if not self.done:
                self._at_end.append(call)
                return
        call()

    def _order(self, name: str, order: Callable[[Run], Any]) -> Any:
        done = super()._order(name, order)
        self._wake()
        self.changed()
        return done

    # -- events ----------------------------------------------------------------------------------
    def changed(self) -> None:
        """Let those who watch the call look again."""
        with self._change:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher()

    @property
    def now(self) -> Event:
        """Where the call stands."""
        if self._outcome is not None:
            error = self._outcome[1]
            return self._at(self.status, "" if error is None else str(error))
        if self._run is None:
            return Event("waiting", position=self.position)
        return self._at("paused" if self.status == "paused" else "step")

    def _at(self, kind: str, reason: str = "") -> Event:
        run = self._run
        if run is None:
            return Event(kind, reason=reason)
        level = run.level
        sigma = level.sigma / level.alpha if level.alpha else float("inf")
        return Event(kind, run.step, run.steps, sigma, reason=reason or run.reason)

    async def ended(self) -> None:
        """Wait for the end of the call."""
        async for _ in self.events():
            pass

    async def events(self) -> AsyncIterator[Event]:
        """Where the call stands, whenever that changes, until its end.

        Who reads slowly gets the newest and misses some between.

        Yields:
            Each `now` that differs from the one before.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            loop.call_soon_threadsafe(news.set)

        with self._change:
            self._watchers.append(notify)
        try:
            last: Event | None = None
            while last is None or last.kind not in ENDS:
                news.clear()
                event = self.now
                if event != last:
                    yield event
                    last = event
                else:
                    await news.wait()
        finally:
            with self._change:
                self._watchers.remove(notify)


class _Changed(Hook):
    """Reports every step."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def on_start(self, run: Run) -> None:
        """The run has begun."""
        self.changed()

    def on_step(self, run: Run) -> None:
        """A step is complete."""
        self.changed()
