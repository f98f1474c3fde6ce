"""Hooks: callables that get the run after every completed step.

A `Hook` may also act at the start and at the end. Every hook may read anything of the run, change
`run.latents`, and stop, pause or rewind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ..errors import ArgumentError, function

Run: TypeAlias = Any  # `run.Run`, which stands above this file


class Hook:
    """Base class of hooks; override what you need."""

    shows_progress = False  # the pipeline's bar is hidden where a hook shows one

    @property
    def name(self) -> str:
        """What error messages call this hook."""
        return type(self).__name__

    def on_start(self, run: Run) -> None:
        """Called once, when the run has its initial sample."""

    def on_resume(self, run: Run) -> None:
        """Called once instead of `on_start` where a call goes on with an earlier run."""

    def on_step(self, run: Run) -> None:
        """Called after every completed step; `run.step` is the number of completed steps."""

    def on_end(self, run: Run) -> None:
        """Called once, when the run is done or stopped."""


class Function(Hook):
    """A plain callable as a hook."""

    def __init__(self, call: Callable[[Run], None]) -> None:
        self.call = call

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.call, "__name__", type(self.call).__name__)

    def on_step(self, run: Run) -> None:
        """Call the function."""
        self.call(run)


def adapt(hook: Hook | Callable[[Run], None]) -> Hook:
    """A `Hook` from a hook or a callable.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(hook, type):
        raise ArgumentError(
            f"hook {hook.__name__} is a class; give an instance, {hook.__name__}(…)"
        )
    if isinstance(hook, Hook):
        return hook
    if not callable(hook):
        raise ArgumentError(f"a hook is a callable that takes the run, got {hook!r}")
    return Function(function("a hook", hook, "lambda run: print(run.step)", 1))
