"""Guidance as words of the command line, and as plain data of files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ...errors import ArgumentError
from . import methods
from .guidance import Guidance, cfg
from .outputs import known
from .plan import UNITS
from .terms import Term


def spelled(guidance: Guidance) -> dict[str, Any]:
    """Guidance as plain data; without a method or terms there is no key of them."""
    data = {field.name: getattr(guidance, field.name) for field in fields(Guidance)}
    method, terms = data.pop("method"), data.pop("terms")
    data |= {} if method is None else {"method": method.to_dict()}
    return data | ({"terms": [term.to_dict() for term in terms]} if terms else {})


def read(data: Mapping[str, Any]) -> Guidance:
    """The inverse of `spelled`, of lists in the place of tuples too.

    Raises:
        ArgumentError: it is no guidance.
    """
    known("guidance", data, (field.name for field in fields(Guidance)))
    rest = dict(data)
    if isinstance(rest.get("scale"), list):
        rest["scale"] = tuple(rest["scale"])
    if rest.get("method") is not None:
        rest["method"] = methods.from_dict(rest["method"])
    if rest.get("terms") is not None:
        rest["terms"] = tuple(Term.from_dict(term) for term in rest["terms"])
    return Guidance(**rest)


def parsed(
    scale: float | None, until: float | str | None, rescale: float = 0.0, forecast: int = 1
) -> Guidance | None:
    """Guidance from words of the command line.

    Args:
        scale: one number.
        until: the end: 0.4 (of the steps), "step:4" or "sigma:1.2".
        rescale: as in `cfg`.
        forecast: as in `cfg`.

    Returns:
        None where nothing is set.

    Raises:
        ArgumentError: `until` is none of these.
    """
    if until is None:
        if scale is None and not rescale and forecast == 1:
            return None
        return cfg(scale, rescale=rescale, forecast=forecast)
    end, unit = _typed_end(until)
    return cfg(scale, until=end, unit=unit, rescale=rescale, forecast=forecast)


def _typed_end(until: float | str) -> tuple[float, str]:
    """The end of an interval and its unit."""
    unit, colon, number = str(until).rpartition(":")
    try:
        end = float(number)
    except ValueError:
        end = math.nan
    if not colon and 1 < end < math.inf:
        step = f"step:{end:g} for a step, or " if end.is_integer() else ""
        raise ArgumentError(
            f"the end of guidance {until!r} is not a ratio of the steps in [0, 1]: write"
            f" {step}sigma:{end:g}"
        )
    if math.isnan(end) or (colon and unit not in UNITS):
        raise ArgumentError(
            f"the end of guidance is 0.4 (of the steps), step:4 or sigma:1.2, got {until!r}"
        )
    return end, unit or "ratio"
