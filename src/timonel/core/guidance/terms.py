"""Terms: what guidance adds of the conditional output and that of a worse network.

    guided = (cfg or a method) + sum of share·(cond - worse)

A term is plain data: which kind of worse network, in which layers, where in the run and how
strongly. `pipelines/guidance/perturbed.py` makes the network worse; `worse.py` has the functions
that people call, with sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ...errors import (
    ArgumentError,
    among,
    finite,
    instance,
    is_number,
    plain,
    shown,
    whole,
)
from ..table import Table
from .outputs import known
from .plan import ends, fits, inside, scale_of

KINDS = ("skip_layers", "pag", "seg", "autoguidance")


@dataclass(frozen=True)
class Term:
    """One further evaluation and its weight. Make one with `pag(…)` or its kin.

    Args:
        kind: one of `KINDS`.
        scale: one number, or one per step.
        layers: numbers of transformer blocks or names of submodules; None: the kind's own choice.
        start: acts from here on (start <= position < stop; for sigma: stop < sigma <= start).
        stop: acts up to here.
        unit: of `start` and `stop`, see `cfg`.
        blur: of `seg`, standard deviation of the Gaussian in tokens; infinite is the mean.

    Raises:
        ArgumentError: a value outside its range, or an empty interval.
    """

    kind: str
    scale: float | tuple[float, ...]
    layers: tuple[int | str, ...] | None = None
    start: float = 0.0
    stop: float = math.inf
    unit: str = "ratio"
    blur: float = math.inf

    def __post_init__(self) -> None:
        among("kind of term", self.kind, KINDS)
        start, stop = ends(self.start, self.stop, self.unit)
        checked = {
            "scale": scale_of(f"scale of {self.kind}", self.scale),
            "layers": None if self.layers is None else _layers(self.kind, self.layers),
            "start": start, "stop": stop, "blur": _blur(self.blur),
        }  # fmt: skip
        for key, value in checked.items():
            object.__setattr__(self, key, value)

    def shares(self, table: Table) -> list[float]:
        """What `cond - worse` is multiplied by at every row of a table.

        Raises:
            ArgumentError: the scales are not one per step.
        """
        fits(f"scales of {self.kind}", self.scale, table)
        shares = []
        for step in table.step:
            scale = self.scale[step] if isinstance(self.scale, tuple) else self.scale
            acts = inside(table, step, self.start, self.stop, self.unit)
            shares.append((scale - (self.kind == "autoguidance")) if acts else 0.0)
        return shares

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with None for infinity. `from_dict` is the inverse."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}
        return {k: None if v == math.inf else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, data: Any) -> Term:
        """The inverse of `to_dict`.

        Raises:
            ArgumentError: it is no term.
        """
        instance("a term of guidance", data, Mapping, "the dictionary of a term, term.to_dict()")
        known("a term of guidance", data, (field.name for field in fields(cls)))
        missing = [name for name in ("kind", "scale") if name not in data]
        if missing:
            raise ArgumentError(f"a term of guidance has no {missing[0]!r}")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        endless = {k: math.inf for k in ("start", "stop", "blur") if values.get(k, 0) is None}
        return cls(**{**values, **endless})


def added(terms: Sequence[Term], table: Table) -> tuple[tuple[tuple[Term, float], ...], ...]:
    """For every row its terms, with what they are multiplied by; empty where there are none.

    Raises:
        ArgumentError: the scales are not one per step.
    """
    if not terms:
        return ()
    shares = [term.shares(table) for term in terms]
    return tuple(
        tuple((term, share) for term, share in zip(terms, row, strict=True) if share)
        for row in zip(*shares, strict=True)
    )


def _layers(kind: str, layers: Any) -> tuple[int | str, ...]:
    """Numbers and names of layers, each once."""
    example = f"{kind}(…, layers=[7, 8]) or layers=['mid_block']"
    listed = plain(layers)
    if isinstance(listed, (int, str)) and not isinstance(listed, bool):
        listed = [listed]
    if not isinstance(listed, (list, tuple, range)) or not listed:
        raise ArgumentError(f"layers are numbers or names, {example}, got {shown(layers)}")
    each = tuple(one if isinstance(one, str) else whole("a layer", one, 0) for one in listed)
    if len(set(each)) < len(each):
        raise ArgumentError(f"layers are named once, got {shown(layers)}")
    return each


def _blur(value: Any) -> float:
    """A standard deviation above 0, or infinity."""
    if is_number(value) and value == math.inf:
        return math.inf
    number = finite("blur", value, 0)
    if not number:
        raise ArgumentError("blur=0 changes no query: give a width in tokens, or none for the mean")
    return number
