"""Guidance as words of the command line, and as plain data of files."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ...errors import ArgumentError, among
from . import methods
from .guidance import Guidance, cfg
from .makers import Where, apg, cfg_pp, cfg_zero, mambo, tcfg, zero_init
from .outputs import known
from .plan import UNITS
from .terms import Term

MAKERS: dict[str, Callable[..., Guidance]] = {
    make.__name__: make for make in (cfg, apg, cfg_pp, cfg_zero, mambo, tcfg, zero_init)
}
WORDS = (*methods.FORMULAS, *UNITS)  # that options take
GRAMMAR = "guidance is a scale such as 5, or a method such as apg:5,eta=0.5 or cfg_zero:4"


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
    scale: float | str | None, until: float | str | None, rescale: float = 0.0, forecast: int = 1
) -> Guidance | None:
    """Guidance from words of the command line.

    >>> parsed("apg:5,eta=0.5", None).method.eta
    0.5

    Args:
        scale: one number, or a method with its scale and options, such as "apg:5,eta=0.5",
            "cfg_zero:4", "tcfg" or "5,rescale=0.7".
        until: the end: 0.4 (of the steps), "step:4" or "sigma:1.2".
        rescale: as in `cfg`.
        forecast: as in `cfg`.

    Returns:
        None where nothing is set.

    Raises:
        ArgumentError: `scale` or `until` is none of these.
    """
    where: dict[str, Any] = {}
    if until is not None:
        where["until"], where["unit"] = _typed_end(until)
    where |= {"rescale": rescale} if rescale else {}
    where |= {"forecast": forecast} if forecast != 1 else {}
    if isinstance(scale, str):
        return _typed(scale, where)
    return cfg(scale, **where) if where or scale is not None else None


def typed(guidance: Guidance) -> str | None:
    """The words that `parsed` reads as its scale; None where it has no single one, or none of note.

    What is not in them: the interval, `rescale` and the forecast.
    """
    scale, method = guidance.scale, guidance.method
    if isinstance(scale, tuple) or (scale is None and method is None):
        return None
    number = "" if scale is None else f"{scale:g}"
    if method is None:
        return number
    usual, fields = type(method)().to_dict(), method.to_dict()
    name = fields.pop("name")
    if fields.get("optimized") is False:
        name, fields = "zero_init", {"steps": fields["zero_init"]}
    options = [f"{key}={value}" for key, value in fields.items() if value != usual.get(key)]
    return ",".join([f"{name}:{number}" if number else name, *options])


def _typed(text: str, where: dict[str, Any]) -> Guidance:
    """Guidance from "apg:5,eta=0.5"."""
    head, *options = (part.strip() for part in text.split(","))
    name, colon, number = head.partition(":")
    if not colon and _value(name) is not None:
        name, number = "cfg", name
    make = MAKERS[among("guidance method", name, MAKERS)]
    known_options = {*inspect.signature(make).parameters, *Where.__annotations__}
    taken = dict(where)
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or _value(value) is None:
            raise ArgumentError(f"{GRAMMAR}, got {option!r} in {text!r}")
        if among(f"option of {name}", key, sorted(known_options - {"scale", "where"})) in taken:
            raise ArgumentError(f"{key} was passed twice, in {text!r} and beside it")
        taken[key] = _value(value)
    if number and not isinstance(_value(number), (int, float)):
        raise ArgumentError(f"{GRAMMAR}, got the scale {number!r} in {text!r}")
    return make(_value(number), **taken) if number else make(**taken)


def _value(text: str) -> float | str | None:
    """A number, or a word of an option; None for what is neither."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text if text in WORDS else None


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
