"""The errors and warnings of timonel, and the checks of arguments that raise them.

    TimonelError                everything timonel raises on purpose
    ├── ArgumentError           an argument that cannot be used (also ValueError)
    │   ├── UnknownName         an unknown name; lists the nearest
    │   ├── GridError           levels that cannot be visited
    │   │   └── Idle            an option that has nothing to do in so few steps
    │   └── PredictionError     a prediction that cannot be read at a level
    ├── RunError                a call that the state of a run forbids
    ├── HookError               a hook raised; names the hook and the step
    ├── GuardStop               a run produced NaN, infinity or exploded
    └── ModelError              a model folder or pipeline that cannot be used

    Warnings: FittedElsewhere, UnknownPrompt, Inexact, SchedulerReplaced, PreviewMissing

Every message says what was wrong, with the value, and the call that fixes it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import logging
import math
import operator
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

MOST_SHOWN = 160  # characters of a value in a message
MOST_ENTRIES = 1_000_000  # of a list, which may come from something that never ends


class TimonelError(Exception):
    """Base of everything timonel raises on purpose."""


class ArgumentError(TimonelError, ValueError):
    """An argument that cannot be used."""


class UnknownName(ArgumentError):
    """An unknown name; the message lists the nearest."""

    def __init__(
        self, what: str, name: object, known: Iterable[str], also: Iterable[str] = ()
    ) -> None:
        """`also`: further names, too many to list."""
        names = sorted(known)
        folded = {n.lower(): n for n in (*also, *names)}
        word = str(name).lower()[:MOST_SHOWN]
        near = [folded[n] for n in difflib.get_close_matches(word, folded, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        listed = ", ".join(names) if len(names) <= 40 else ", ".join(names[:40]) + ", …"
        super().__init__(f"unknown {what} {shown(name)}: {hint}known: {listed}")
        self.nearest = near


class GridError(ArgumentError):
    """Levels that cannot be visited."""


class Idle(GridError):
    """An option that has nothing to do in so few steps.

    Where it could in more it is passed over, which is logged once. `instead`: the options to run
    with, None for one that is left out.
    """

    def __init__(self, message: str, instead: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.instead = dict(instead)


class PredictionError(ArgumentError):
    """A prediction that cannot be read at a level."""


class RunError(TimonelError):
    """A call that the state of a run forbids."""


class HookError(TimonelError):
    """A hook raised; the original exception is the cause."""


class GuardStop(TimonelError):
    """A run produced NaN, infinity or exploded."""


class ModelError(TimonelError):
    """A model folder or pipeline that cannot be used."""


class FittedElsewhere(UserWarning):
    """A fitted sampler runs with another model or guidance than that of its fit."""


class UnknownPrompt(UserWarning):
    """A shipped model has not been trained on any word of the prompt."""


class Inexact(UserWarning):
    """A run goes on without the cache of its network; its result is near, not equal."""


class SchedulerReplaced(UserWarning):
    """The scheduler of the pipeline is no sampler of timonel, so another one runs."""


class PreviewMissing(UserWarning):
    """A preview could not be computed, written or shown; the run goes on."""


def number_of_steps(count: int) -> str:
    """The number of steps in words, for messages."""
    return "1 step" if count == 1 else f"{count} steps"


@functools.cache
def say_once(message: str) -> None:
    """Log a warning as `timonel`, once per process."""
    logging.getLogger("timonel").warning(message)


def finite(what: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A number as a Python float.

    Args:
        what: the name of the argument, for the message.
        value: a number of Python, numpy or torch, 0-d arrays and tensors too.
        low: the least value allowed.
        high: the largest value allowed.

    Raises:
        ArgumentError: for anything else (True and "1" too), and for a number out of range.
    """
    scalar = _scalar(value)
    try:
        number = math.nan if isinstance(scalar, (bool, str, bytes, bytearray)) else float(scalar)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if math.isfinite(number) and low <= number <= high:
        return number
    is_none = not math.isfinite(number) and not isinstance(scalar, (int, float))
    if is_none or isinstance(scalar, bool):
        raise ArgumentError(f"{what} must be a number, got {shown(value)}")
    raise ArgumentError(
        f"{what} must be a finite number in [{low:g}, {high:g}], got {shown(value)}"
    )


def whole(what: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """A whole number as a Python int.

    Args:
        what: the name of the argument, for the message.
        value: a whole number of Python, numpy or torch, 0-d arrays and tensors too.
        low: the least value allowed.
        high: the largest value allowed; None: any.

    Raises:
        ArgumentError: for anything else (True, 2.0 and "2" too), and for a number out of range.
    """
    scalar = _scalar(value)
    try:
        number = None if isinstance(scalar, bool) else operator.index(scalar)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or number < low:
        raise ArgumentError(f"{what} must be a whole number of at least {low}, got {shown(value)}")
    if high is not None and number > high:
        raise ArgumentError(f"{what} must be at most {high}, got {shown(value)}")
    return number


def is_number(value: object) -> bool:
    """Whether `value` is one number of Python, numpy or torch, finite or not."""
    scalar = _scalar(value)
    return isinstance(scalar, (int, float)) and not isinstance(scalar, bool)


def plain(value: Any) -> Any:
    """`value` with numpy's and torch's numbers as Python's, in containers too; arrays are lists."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return (value.detach() if hasattr(value, "detach") else value).tolist()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(inner) for inner in value)
    return value


def several(what: str, values: Any, example: str) -> tuple[Any, ...]:
    """The entries of a list, array or 1-D tensor, with Python's numbers.

    Args:
        what: the name of the argument, for the message.
        values: the list.
        example: of such a list, for the message.

    Raises:
        ArgumentError: for text, a dictionary, one number and whatever else is no list.
    """
    listed = plain(values)
    if not isinstance(listed, Iterable) or isinstance(listed, (str, bytes, Mapping, type)):
        raise ArgumentError(f"{what} must be a list, e.g. {example}, got {shown(values)}")
    entries = tuple(plain(one) for one in itertools.islice(listed, MOST_ENTRIES + 1))
    if len(entries) > MOST_ENTRIES:
        raise ArgumentError(
            f"{what} must be a list, e.g. {example}, got more than {MOST_ENTRIES:,} entries"
        )
    return entries


def options(what: str, values: Any) -> dict[str, Any]:
    """Options by name, with Python's numbers; anything else raises `ArgumentError`."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ArgumentError(f"{what} must be a dictionary of options by name, got {shown(values)}")
    return {key: plain(value) for key, value in values.items()}


def flag(what: str, value: Any) -> bool:
    """True or False, numpy's and torch's too; anything else raises `ArgumentError`."""
    scalar = _scalar(value)
    if not isinstance(scalar, bool):
        raise ArgumentError(f"{what} must be True or False, got {shown(value)}")
    return scalar


def among(what: str, value: Any, known: Iterable[str]) -> str:
    """`value` where it is one of `known`; else raises `UnknownName` with the nearest."""
    if not isinstance(value, str) or value not in known:
        raise UnknownName(what, value, known)
    return value


def function(what: str, value: Any, example: str, count: int) -> Any:
    """`value` where it is a function of `count` arguments and no class; else `ArgumentError`."""
    if not callable(value) or isinstance(value, type):
        raise ArgumentError(f"{what} must be a function, e.g. {example}, got {shown(value)}")
    try:
        inspect.signature(value).bind(*range(count))
    except TypeError as error:
        raise ArgumentError(
            f"{what} must be a function of {count}, e.g. {example}: {error}"
        ) from None
    except ValueError:  # a builtin does not say what it takes
        pass
    return value


def instance(what: str, value: Any, kind: type | tuple[type, ...], example: str) -> Any:
    """`value` where it is of `kind`; else `ArgumentError`. `example`: what it must be, in words."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{what} must be {example}, got {shown(value)}")
    return value


def path(what: str, value: Any) -> Any:
    """`value` where it can be the path of a file; else raises `ArgumentError`."""
    if not isinstance(value, (str, PathLike)) or "\0" in str(value) or not str(value):
        raise ArgumentError(f"{what} must be a path, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """A value for a message: its repr, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _scalar(value: Any) -> Any:
    """A number of numpy or torch as one of Python's; None for an array of several."""
    if not hasattr(value, "dtype") or not hasattr(value, "item"):
        return value
    if getattr(value, "ndim", None) != 0:
        return None
    try:
        return (value.detach() if hasattr(value, "detach") else value).item()
    except (ValueError, RuntimeError, NotImplementedError):
        return None
