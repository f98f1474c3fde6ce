"""How conditional and unconditional outputs are combined, and when.

`guided = uncond + scale·(cond - uncond)` on the raw output (Ho & Salimans 2022, arXiv 2207.12598);
scale = 1 is no guidance. Outside the interval the unconditional half is not computed at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ArgumentError, UnknownName, finite
from .table import Table

UNITS = ("ratio", "step", "sigma")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance. Make one with `cfg`.

    `scale`: one number, or one per step; None keeps the pipeline's own scale.
    `start, stop`: guided while start <= position < stop (for sigma: stop < sigma <= start), in `unit`.
    `rescale`: share phi of the guided output rescaled to the std of the conditional one
    (arXiv 2305.08891, eq. 15-16).
    """

    scale: float | tuple[float, ...] | None = None
    start: float = 0.0
    stop: float = math.inf
    unit: str = "ratio"
    rescale: float = 0.0

    def scales(self, table: Table) -> tuple[float | None, ...]:
        """One scale per row: 1.0 where the unconditional half is skipped, None for the pipeline's own."""
        if isinstance(self.scale, tuple) and len(self.scale) != table.steps:
            raise ArgumentError(f"{len(self.scale)} guidance scales for {table.steps} steps; give one per step")
        return tuple(self._at(table, row) for row in range(table.nfe))

    def _at(self, table: Table, row: int) -> float | None:
        step = table.step[row]
        if not self._inside(table, table.first_row(step)):
            return 1.0
        return self.scale[step] if isinstance(self.scale, tuple) else self.scale

    def _inside(self, table: Table, row: int) -> bool:
        step = table.step[row]
        if self.unit == "sigma":
            alpha, sigma, _ = table.level(row)
            ratio = float(sigma) / float(alpha) if float(alpha) > 0 else math.inf
            return self.stop < ratio <= self.start
        place = step / table.steps if self.unit == "ratio" else step
        return self.start <= place < self.stop


def cfg(
    scale: float | Sequence[float] | None = None,
    *,
    until: float | None = None,
    between: tuple[float, float] | None = None,
    unit: str = "ratio",
    rescale: float = 0.0,
) -> Guidance:
    """Classifier-free guidance with a scale and an interval.

    `until=0.4`: guided for the first 40 % of the steps. `between=(a, b)`: guided from a to b. `unit`
    says what the numbers are: "ratio" of the steps in [0, 1], "step" index (0-based, end excluded),
    or "sigma" = sigma/alpha, given as (high, low).

    Raises `ArgumentError` on a value outside its unit's range.

    >>> cfg(5.0, until=0.4).stop
    0.4
    """
    if unit not in UNITS:
        raise UnknownName("guidance unit", unit, UNITS)
    if until is not None and between is not None:
        raise ArgumentError("give either until= or between=, not both")
    values: float | tuple[float, ...] | None
    if isinstance(scale, Sequence) and not isinstance(scale, str):
        values = tuple(finite("guidance scale", s, 0) for s in scale)
    else:
        values = None if scale is None else finite("guidance scale", scale, 0)
    if between is not None and (isinstance(between, str) or not isinstance(between, Sequence) or len(between) != 2):
        raise ArgumentError(f"between must be two numbers, e.g. between=(0.2, 0.6), got {between!r}")
    top = math.inf if unit == "sigma" else 0.0
    end = 0.0 if unit == "sigma" else math.inf
    start, stop = between if between is not None else (top, end if until is None else until)
    for what, value in (("start", start), ("stop", stop)):
        _check(what, value, unit)
    if (start <= stop) if unit == "sigma" else (start >= stop):
        order = "from high to low" if unit == "sigma" else "from low to high"
        raise ArgumentError(f"a guidance interval runs {order} and is not empty, got between=({start:g}, {stop:g})")
    return Guidance(values, float(start), float(stop), unit, finite("rescale", rescale, 0, 1))


def parsed(scale: float | None, until: float | str | None, rescale: float = 0.0) -> Guidance | None:
    """Guidance as it is typed: a scale, and an end such as 0.4 (of the steps), "step:4" or "sigma:1.2".

    None where nothing is asked. Raises `ArgumentError`.
    """
    if until is None:
        return None if scale is None and not rescale else cfg(scale, rescale=rescale)
    unit, colon, number = str(until).rpartition(":")
    try:
        end = float(number)
    except ValueError:
        end = math.nan
    if math.isnan(end) or (unit or "ratio") not in UNITS or (colon and not unit):
        raise ArgumentError(f"the end of guidance is 0.4 (of the steps), step:4 or sigma:1.2, got {until!r}")
    return cfg(scale, until=end, unit=unit or "ratio", rescale=rescale)


def _check(what: str, value: float, unit: str) -> None:
    if value == math.inf:
        return
    number = finite(f"guidance {what}", value, 0)
    if unit == "ratio" and number > 1:
        raise ArgumentError(
            f"guidance {what} {value:g} is not a ratio of the steps in [0, 1]; "
            f"for a step index say unit='step', for a noise level unit='sigma'"
        )
    if unit == "step" and number != int(number):
        raise ArgumentError(f"guidance {what} {value:g} is not a step index")


def combine(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """`uncond + scale·(cond - uncond)`, and its rescaled form. Shapes (batch, …)."""
    guided = torch.lerp(uncond, cond, scale)
    if not rescale:
        return guided
    dims = tuple(range(1, cond.ndim))
    factor = cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return guided * (1 - rescale + rescale * factor)
