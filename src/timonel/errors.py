"""The error tree.

    TimonelError                everything timonel raises on purpose
    ├── ArgumentError           a value at the border that cannot be used   (also ValueError)
    │   ├── UnknownName         a name nobody has; lists the nearest        (also ValueError)
    │   ├── GridError           levels that cannot be visited
    │   └── PredictionError     a prediction that cannot be read at a level
    ├── RunError                a run asked for something its state forbids
    ├── HookError               a hook raised; names the hook and the step
    ├── GuardStop               the run produced NaN, infinity or exploded
    └── ModelError              a model folder or pipeline that cannot be used

    FittedElsewhere             a warning: a sampler that was fitted to something else
    UnknownPrompt               a warning: a prompt that a shipped model has never met
    Inexact                     a warning: a run goes on near to what it would have been, not exactly
    SchedulerReplaced           a warning: the pipeline's own scheduler is no sampler of timonel

Every message says what was wrong, with the value, and the call that fixes it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class TimonelError(Exception):
    """Base of everything timonel raises on purpose."""


class ArgumentError(TimonelError, ValueError):
    """A value at the border that cannot be used."""


class UnknownName(ArgumentError):
    """A name nobody has."""

    def __init__(self, what: str, name: object, known: Iterable[str], also: Iterable[str] = ()) -> None:
        """`also`: other names that are understood, but too many to list."""
        names = sorted(known)
        folded = {n.lower(): n for n in (*also, *names)}
        near = [folded[n] for n in difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        listed = ", ".join(names) if len(names) <= 40 else ", ".join(names[:40]) + ", …"
        super().__init__(f"unknown {what} {name!r}: {hint}known: {listed}")
        self.nearest = near


class GridError(ArgumentError):
    """Levels that cannot be visited."""


class PredictionError(ArgumentError):
    """A prediction that cannot be read at a level."""


class RunError(TimonelError):
    """A run asked for something its state forbids."""


class HookError(TimonelError):
    """A hook raised; the original exception is the cause."""


class GuardStop(TimonelError):
    """The run produced NaN, infinity or exploded."""


class ModelError(TimonelError):
    """A model folder or pipeline that cannot be used."""


class FittedElsewhere(UserWarning):
    """A fitted sampler is used with another model or guidance than it was fitted to; it works, but may be worse."""


class UnknownPrompt(UserWarning):
    """A shipped model is asked for what it has never met; it paints something all the same."""


class Inexact(UserWarning):
    """A run goes on without what a cache of its network remembered; it ends near to where it would have."""


class SchedulerReplaced(UserWarning):
    """No sampler was named and the pipeline's own scheduler is none of timonel's, so another one runs."""


def finite(what: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a float, or raise `ArgumentError` unless it is finite and in [low, high]."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{what} must be a number, got {value!r}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise ArgumentError(f"{what} must be a finite number in [{low:g}, {high:g}], got {value!r}")
    return number


def whole(what: str, value: int, low: int = 1, high: int | None = None) -> int:
    """Return `value` as an int, or raise `ArgumentError` unless it is whole and in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ArgumentError(f"{what} must be a whole number of at least {low}, got {value!r}")
    if high is not None and value > high:
        raise ArgumentError(f"{what} must be at most {high}, got {value}")
    return value
