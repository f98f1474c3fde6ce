"""The error tree.

    TimonelError                everything timonel raises on purpose
    ├── ArgumentError           a value at the border that cannot be used   (also ValueError)
    │   ├── UnknownName         a name nobody has; lists the nearest        (also ValueError)
    │   ├── GridError           levels that cannot be visited
    │   │   └── Idle            a setting that has nothing to do on so few levels; passed over where
    it could on more │   └── PredictionError     a prediction that cannot be read at a level
    ├── RunError                a run asked for something its state forbids
    ├── HookError               a hook raised; names the hook and the step
    ├── GuardStop               the run produced NaN, infinity or exploded
    └── ModelError              a model folder or pipeline that cannot be used

    FittedElsewhere             a warning: a sampler that was fitted to something else
    UnknownPrompt               a warning: a prompt that a shipped model has never met
    Inexact                     a warning: a run goes on near to what it would have been, not
    exactly SchedulerReplaced           a warning: the pipeline's own scheduler is no sampler of
    timonel PreviewMissing              a warning: a picture of a run that could not be made,
    written or shown

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

LONG = 160  # characters of a value in a message
ENTRIES = 1_000_000  # of a list at the border, which may come from something that never ends


class TimonelError(Exception):
    """Base of everything timonel raises on purpose."""


class ArgumentError(TimonelError, ValueError):
    """A value at the border that cannot be used."""


class UnknownName(ArgumentError):
    """A name nobody has."""

    def __init__(
        self, what: str, name: object, known: Iterable[str], also: Iterable[str] = ()
    ) -> None:
        """`also`: other names that are understood, but too many to list."""
        names = sorted(known)
        folded = {n.lower(): n for n in (*also, *names)}
        near = [
            folded[n]
            for n in difflib.get_close_matches(str(name).lower()[:LONG], folded, n=3, cutoff=0.5)
        ]
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        listed = ", ".join(names) if len(names) <= 40 else ", ".join(names[:40]) + ", …"
        super().__init__(f"unknown {what} {shown(name)}: {hint}known: {listed}")
        self.nearest = near


class GridError(ArgumentError):
    """Levels that cannot be visited."""


class Idle(GridError):
    """A setting that has nothing to do on these levels; where it could on more of them it is passed
    over, said once.

    `instead`: the options to run with, None for one that is left out.
    """

    def __init__(self, message: str, instead: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.instead = dict(instead)


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
    """A fitted sampler is used with another model or guidance than it was fitted to; it works, but
    may be worse.
    """


class UnknownPrompt(UserWarning):
    """A shipped model is asked for what it has never met; it paints something all the same."""


class Inexact(UserWarning):
    """A run goes on without what a cache of its network remembered; it ends near to where it would
    have.
    """


class SchedulerReplaced(UserWarning):
    """No sampler was named and the pipeline's own scheduler is none of timonel's, so another one
    runs.
    """


class PreviewMissing(UserWarning):
    """A picture of a run could not be made, written or shown; the run goes on."""


def number_of_steps(count: int) -> str:
    """The number of steps in words, for messages."""
    return "1 step" if count == 1 else f"{count} steps"


@functools.cache
def say_once(message: str) -> None:
    """Log a warning as `timonel`, the first time that it is said in this process."""
    logging.getLogger("timonel").warning(message)


def finite(what: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A number at the border as a Python float.

    Args:
        what: the name of the argument, for the error.
        value: a number of Python, numpy or torch, a 0-d array or tensor among them.
        low, high: the least and the largest value that can be used.

    Raises:
        ArgumentError: it is no number (True and "1" are none), not finite, or not in [low, high].
    """
    number = _scalar(value)
    try:
        made = math.nan if isinstance(number, (bool, str, bytes, bytearray)) else float(number)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        made = math.nan
    if math.isfinite(made) and low <= made <= high:
        return made
    if (not math.isfinite(made) and not isinstance(number, (int, float))) or isinstance(
        number, bool
    ):
        raise ArgumentError(f"{what} must be a number, got {shown(value)}")
    raise ArgumentError(
        f"{what} must be a finite number in [{low:g}, {high:g}], got {shown(value)}"
    )


def whole(what: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """A whole number at the border as a Python int.

    Args:
        what: the name of the argument, for the error.
        value: a whole number of Python, numpy or torch, a 0-d array or tensor among them.
        low, high: the least and the largest value that can be used.

    Raises:
        ArgumentError: it is no whole number (True, 2.0 and "2" are none), or not in [low, high].
    """
    number = _scalar(value)
    try:
        made = None if isinstance(number, bool) else operator.index(number)
    except (TypeError, ValueError, RuntimeError):
        made = None
    if made is None or made < low:
        raise ArgumentError(f"{what} must be a whole number of at least {low}, got {shown(value)}")
    if high is not None and made > high:
        raise ArgumentError(f"{what} must be at most {high}, got {shown(value)}")
    return made


def is_number(value: object) -> bool:
    """Whether `value` is one number of Python, numpy or torch, finite or not; True and text are
    none.
    """
    number = _scalar(value)
    return isinstance(number, (int, float)) and not isinstance(number, bool)


def plain(value: Any) -> Any:
    """`value` with the numbers of numpy and torch in it as Python's: in lists, tuples and
    dictionaries too.

    Arrays and tensors become lists.
    """
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return (value.detach() if hasattr(value, "detach") else value).tolist()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(inner) for inner in value)
    return value


def several(what: str, values: Any, example: str) -> tuple[Any, ...]:
    """The entries of a list at the border, of an array or a 1-D tensor too, with Python's numbers.

    Raises `ArgumentError` for text, a dictionary, one number and whatever else is no list;
    `example` says how it is written.
    """
    made = plain(values)
    if (
        isinstance(made, (str, bytes, Mapping))
        or not isinstance(made, Iterable)
        or isinstance(made, type)
    ):
        raise ArgumentError(f"{what} must be a list, e.g. {example}, got {shown(values)}")
    entries = tuple(plain(one) for one in itertools.islice(made, ENTRIES + 1))
    if len(entries) > ENTRIES:
        raise ArgumentError(
            f"{what} must be a list, e.g. {example}, got more than {ENTRIES:,} entries"
        )
    return entries


def options(what: str, values: Any) -> dict[str, Any]:
    """A dictionary of named options at the border, with Python's numbers. Raises `ArgumentError`
    for anything else.
    """
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise ArgumentError(f"{what} must be a dictionary of options by name, got {shown(values)}")
    return {key: plain(value) for key, value in values.items()}


def flag(what: str, value: Any) -> bool:
    """True or False at the border, numpy's and torch's too, or `ArgumentError`."""
    made = _scalar(value)
    if not isinstance(made, bool):
        raise ArgumentError(f"{what} must be True or False, got {shown(value)}")
    return made


def among(what: str, value: Any, known: Iterable[str]) -> str:
    """`value`, or `UnknownName` with the nearest names unless it is one of `known`."""
    if not isinstance(value, str) or value not in known:
        raise UnknownName(what, value, known)
    return value


def function(what: str, value: Any, example: str, count: int) -> Any:
    """`value`, or `ArgumentError` unless it can be called with `count` arguments; a class is no
    such function.
    """
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
    """`value`, or `ArgumentError` unless it is of `kind`; `example` says how one is made."""
    if not isinstance(value, kind):
        raise ArgumentError(f"{what} must be {example}, got {shown(value)}")
    return value


def path(what: str, value: Any) -> Any:
    """`value`, or `ArgumentError` unless it can be the path of a file."""
    if not isinstance(value, (str, PathLike)) or "\0" in str(value) or not str(value):
        raise ArgumentError(f"{what} must be a path, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """A value for a message: its repr, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONG else f"{text[:LONG]}…"


def _scalar(value: Any) -> Any:
    """A number of numpy or torch as one of Python's, and an array of several as no number; others
    as they are.
    """
    if not hasattr(value, "dtype") or not hasattr(value, "item"):
        return value
    if getattr(value, "ndim", None) != 0:
        return None
    try:
        return (value.detach() if hasattr(value, "detach") else value).item()
    except (ValueError, RuntimeError, NotImplementedError):
        return None
