"""At which rows guidance acts, and how strongly: intervals, and one scale or one per step."""

from __future__ import annotations

import math
from typing import Any

from ...errors import ArgumentError, among, finite, is_number, plain, several, shown
from ..table import Table

UNITS = ("ratio", "step", "sigma")


def interval(
    until: float | None, between: tuple[float, float] | None, unit: str
) -> tuple[float, float]:
    """The ends of an interval, as `cfg` takes it.

    Raises:
        ArgumentError: both are set, or `between` is no pair.
    """
    among("guidance unit", unit, UNITS)
    if until is not None and between is not None:
        raise ArgumentError("give either until= or between=, not both")
    ends = None if between is None else several("between", between, "between=(0.2, 0.6)")
    if ends is not None and len(ends) != 2:
        raise ArgumentError(
            f"between must be two numbers, e.g. between=(0.2, 0.6), got {shown(between)}"
        )
    first, last = (math.inf, 0.0) if unit == "sigma" else (0.0, math.inf)
    return ends if ends is not None else (first, last if until is None else until)


def ends(start: Any, stop: Any, unit: str) -> tuple[float, float]:
    """The ends of an interval as Python's numbers.

    Raises:
        ArgumentError: an end outside its unit's range, or an empty interval.
    """
    among("guidance unit", unit, UNITS)
    start, stop = _position("start", start, unit), _position("stop", stop, unit)
    if (start <= stop) if unit == "sigma" else (start >= stop):
        way = "from high to low" if unit == "sigma" else "from low to high"
        raise ArgumentError(
            f"a guidance interval runs {way} and is not empty, got between=({start:g}, {stop:g})"
        )
    return start, stop


def inside(table: Table, step: int, start: float, stop: float, unit: str) -> bool:
    """Whether a step of a table is in an interval."""
    if unit == "sigma":
        alpha, sigma = (float(v) for v in table.level(table.first_row(step))[:2])
        return stop < (sigma / alpha if alpha > 0 else math.inf) <= start
    return start <= (step / table.steps if unit == "ratio" else step) < stop


def scale_of(what: str, scale: Any) -> float | tuple[float, ...]:
    """One scale, or one per step, as Python's numbers.

    Raises:
        ArgumentError: it is none, or below 0.
    """
    listed = plain(scale)
    if not isinstance(listed, (list, tuple, range)):
        return finite(what, scale, 0)
    if not listed:
        raise ArgumentError(f"{what} is an empty list; give one number, or one per step")
    return tuple(finite(what, one, 0) for one in listed)


def fits(what: str, scale: Any, table: Table) -> None:
    """Raises `ArgumentError` where a list of scales is not one per step of a table."""
    if isinstance(scale, tuple) and len(scale) != table.steps:
        raise ArgumentError(f"{len(scale)} {what} for {table.steps} steps; give one per step")


def _position(end: str, value: Any, unit: str) -> float:
    """An end of the interval as a Python number."""
    if is_number(value) and value == math.inf:
        return math.inf
    number = finite(f"guidance {end}", value, 0)
    if unit == "ratio" and number > 1:
        raise ArgumentError(
            f"guidance {end} {number:g} is not a ratio of the steps in [0, 1]; "
            "for a step index say unit='step', for a noise level unit='sigma'"
        )
    if unit == "step" and number != int(number):
        raise ArgumentError(f"guidance {end} {number:g} is not a step index")
    return number
