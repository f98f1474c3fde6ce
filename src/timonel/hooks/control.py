"""Hooks that act on a run: stop it on a condition, change its latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.hook import Hook
from ..errors import ArgumentError, function, instance, is_number, several, whole

if TYPE_CHECKING:
    from ..core.run import Run


class StopWhen(Hook):
    """See `stop_when`."""

    name = "stop_when"

    def __init__(self, condition: Callable[[Run], bool], reason: str = "") -> None:
        function("the condition of stop_when", condition, "lambda run: run.step == 4", 1)
        self.condition, self.reason = condition, instance("reason", reason, str, "a sentence")

    def on_step(self, run: Run) -> None:
        if self.condition(run):
            run.stop(self.reason)


def stop_when(condition: Callable[[Run], bool], reason: str = "") -> Hook:
    """Stop the run before its next step once a condition is true.

    The result of a stopped run is its newest denoised prediction.

    Args:
        condition: a function of the run, called after every completed step.
        reason: kept as `run.reason`.

    Returns:
        The hook.

    Raises:
        ArgumentError: unless `condition` is a function of one argument.

    >>> stop_when(lambda run: run.step == 10).name
    'stop_when'
    """
    return StopWhen(condition, reason)


class Edit(Hook):
    """See `edit`."""

    name = "edit"

    def __init__(
        self, change: Callable[[Tensor], Tensor | None], at: int | Sequence[int] | None = None
    ) -> None:
        function("the change of edit", change, "lambda latents: latents * 1.1", 1)
        named = None if at is None else (at,) if is_number(at) else several("at", at, "at=[1, 2]")
        if named is not None and not named:
            raise ArgumentError(
                "edit(at=[]) never applies; name steps from 1 up, or leave at out for every step"
            )
        self.change = change
        self.at = None if named is None else tuple(whole("edit step", step, 1) for step in named)

    def on_start(self, run: Run) -> None:
        late = [step for step in self.at or () if step > run.steps]
        if late:
            raise ArgumentError(
                f"edit(at={late[0]}): the run has {run.steps} steps; name steps from 1 to"
                f" {run.steps}"
            )

    def on_step(self, run: Run) -> None:
        if self.at is not None and run.step not in self.at:
            return
        x = run.latents
        shape = x.shape
        value = self.change(x)
        if value is None:
            value = x
        elif not isinstance(value, Tensor):
            raise ArgumentError(
                f"edit's function must return a tensor or None (changed in place), got {value!r}"
            )
        if value.shape != shape:
            raise ArgumentError(
                f"edit must keep the latents' shape {tuple(shape)}, got {tuple(value.shape)}"
            )
        run.latents = value.to(x)  # an edit in place is assigned too, for the hooks that follow


def edit(change: Callable[[Tensor], Tensor | None], at: int | Sequence[int] | None = None) -> Hook:
    """Change the latents after some steps.

    Solvers that correct a finished step (UniPC) keep the edit. An edit after the last step changes
    the result.

    Args:
        change: gets `run.latents` (batch, …) at the level where the step ended, of unit variance;
            changes them in place or returns new ones of the same shape.
        at: a step from 1, or several; None: every step.

    Returns:
        The hook.

    Raises:
        ArgumentError: for a step outside 1 … steps (when the run starts) and a changed shape.

    >>> edit(lambda x: x.mul_(0.9), at=[1, 2]).name
    'edit'
    """
    return Edit(change, at)
