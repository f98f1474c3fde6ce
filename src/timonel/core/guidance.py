"""How conditional and unconditional outputs are combined, and when.

`guided = uncond + scale·(cond - uncond)` on the raw output (Ho & Salimans 2022, arXiv 2207.12598);
scale = 1 is no guidance. Outside the interval the unconditional half is not computed at all.

Inside it the half may be forecast: what guidance adds is d = cond - uncond of the denoised
predictions, which changes slowly, so `cfg(4.0, forecast=2)` computes both halves at every second
guided network call only, the first two always, and repeats the newest d between (`order=2`: reads
it off the line in lam through the newest two). Such a call costs one network evaluation instead of
two. With `denoised = c_x·x + c_raw·raw` the difference of the raw outputs is d/c_raw, so no sample
has to be remembered. The idea is LinearAG's (Castillo et al. 2023, arXiv 2312.12487), which fits
its weights to a model; these follow from the levels.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ArgumentError, RunError, among, finite, is_number, plain, several, shown, whole
from .driver import Driver
from .forecast import weights
from .kernel import combine as summed
from .process import Level
from .table import Table

if TYPE_CHECKING:
    from .program import State

UNITS = ("ratio", "step", "sigma")
SAME = 1e-9  # distance in lam of two calls at one level


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance. Make one with `cfg`.

    `scale`: one number, or one per step; None keeps the pipeline's own scale.
    `start, stop`: guided while start <= position < stop (for sigma: stop < sigma <= start), in
    `unit`. `rescale`: share phi of the guided output rescaled to the std of the conditional one
    (arXiv 2305.08891, eq. 15-16).
    `forecast`: both halves are computed at every so-many-th guided call, and their difference is
    forecast from the newest `order` between; 1 computes them always.
    """

    scale: float | tuple[float, ...] | None = None
    start: float = 0.0
    stop: float = math.inf
    unit: str = "ratio"
    rescale: float = 0.0
    forecast: int = 1
    order: int = 1

    def __post_init__(self) -> None:
        """Keep Python's numbers. Raises `ArgumentError` for what is none, and for an interval that
        is none.
        """
        among("guidance unit", self.unit, UNITS)
        start, stop = (_place(what, getattr(self, what), self.unit) for what in ("start", "stop"))
        if (start <= stop) if self.unit == "sigma" else (start >= stop):
            way = "from high to low" if self.unit == "sigma" else "from low to high"
            raise ArgumentError(
                f"a guidance interval runs {way} and is not empty, got between=({start:g},"
                f" {stop:g})"
            )
        made = {
            "scale": _scale(self.scale), "start": start, "stop": stop,
            "rescale": finite("rescale", self.rescale, 0, 1),
            "forecast": whole("forecast", self.forecast),
            "order": whole("order", self.order, 1, 2),
        }  # fmt: skip
        for key, value in made.items():
            object.__setattr__(self, key, value)

    def scales(self, table: Table) -> tuple[float | None, ...]:
        """One scale per row: 1.0 where the unconditional half is skipped, None for the pipeline's
        own.
        """
        if isinstance(self.scale, tuple) and len(self.scale) != table.steps:
            raise ArgumentError(
                f"{len(self.scale)} guidance scales for {table.steps} steps; give one per step"
            )
        return tuple(self._at(table, row) for row in range(table.nfe))

    def _at(self, table: Table, row: int) -> float | None:
        step = table.step[row]
        if not self._inside(table, table.first_row(step)):
            return 1.0
        return self.scale[step] if isinstance(self.scale, tuple) else self.scale

    def forecasts(
        self, table: Table, prediction: str, begin: int = 0
    ) -> tuple[tuple[float, ...], ...]:
        """For every row the weights of the remembered differences, newest first, that forecast its
        own.

        A difference is cond - uncond of the raw outputs. No weights where both halves are computed,
        or only one. `begin`: the row from which the run is guided so; none of the rows before it is
        forecast.
        """
        levels = Level(table.alpha[:-1], table.sigma[:-1], table.time[:-1])
        _, c_raw = table.clean(prediction)
        made, since, found = list[int](), 0, list[tuple[float, ...]]()
        for row, guided_by in enumerate(self.scales(table)):
            nodes: list[int] = []
            if guided_by != 1.0 and self.forecast > 1 and row >= begin:
                if made and bool(levels.lam[row] < levels.lam[made[0]] - SAME):
                    made = []  # noise was added: what was computed further down says little here
                if len(made) < 2 or since == self.forecast - 1:
                    made, since = [row, *made[:1]], 0
                else:
                    apart = bool(levels.lam[made[0]] - levels.lam[made[1]] > SAME)
                    nodes, since = made[: self.order if apart else 1], since + 1
            share = (
                weights(table, nodes, row) * c_raw[nodes] / c_raw[row]
                if nodes
                else levels.alpha[:0]
            )
            found.append(tuple(share.tolist()))
        return tuple(found)

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
    forecast: int = 1,
    order: int | None = None,
) -> Guidance:
    """Classifier-free guidance with a scale and an interval.

    `until=0.4`: guided for the first 40 % of the steps. `between=(a, b)`: guided from a to b.
    `unit` says what the numbers are: "ratio" of the steps in [0, 1], "step" index (0-based, end
    excluded), or "sigma" = sigma/alpha, given as (high, low).
    `forecast=n`: the unconditional half is computed at every n-th guided network call, the first
    two included, and forecast between, from the newest `order` differences (1 or 2; 1 unless it is
    given).

    Raises `ArgumentError` on a value outside its unit's range.

    >>> cfg(5.0, until=0.4).stop
    0.4
    """
    among("guidance unit", unit, UNITS)
    if until is not None and between is not None:
        raise ArgumentError("give either until= or between=, not both")
    ends = None if between is None else several("between", between, "between=(0.2, 0.6)")
    if ends is not None and len(ends) != 2:
        raise ArgumentError(
            f"between must be two numbers, e.g. between=(0.2, 0.6), got {shown(between)}"
        )
    top = math.inf if unit == "sigma" else 0.0
    end = 0.0 if unit == "sigma" else math.inf
    start, stop = ends if ends is not None else (top, end if until is None else until)
    if order is not None and whole("forecast", forecast) == 1:
        raise ArgumentError(
            f"order={order} says how the unconditional half is forecast; give forecast too, e.g."
            " forecast=2"
        )
    return Guidance(scale, start, stop, unit, rescale, forecast, 1 if order is None else order)  # type: ignore[arg-type]


def parsed(
    scale: float | None, until: float | str | None, rescale: float = 0.0, forecast: int = 1
) -> Guidance | None:
    """Guidance as it is typed: a scale, and an end such as 0.4 (of the steps), "step:4" or
    "sigma:1.2".

    None where nothing is asked. Raises `ArgumentError`.
    """
    if until is None:
        asked = scale is not None or rescale or forecast != 1
        return cfg(scale, rescale=rescale, forecast=forecast) if asked else None
    unit, colon, number = str(until).rpartition(":")
    try:
        end = float(number)
    except ValueError:
        end = math.nan
    if not unit and not colon and end > 1 and end != math.inf:
        step = f"step:{end:g} for a step, or " if end.is_integer() else ""
        raise ArgumentError(
            f"the end of guidance {until!r} is not a ratio of the steps in [0, 1]: write"
            f" {step}sigma:{end:g}"
        )
    if math.isnan(end) or (unit or "ratio") not in UNITS or (colon and not unit):
        raise ArgumentError(
            f"the end of guidance is 0.4 (of the steps), step:4 or sigma:1.2, got {until!r}"
        )
    return cfg(scale, until=end, unit=unit or "ratio", rescale=rescale, forecast=forecast)


def _scale(scale: Any) -> float | tuple[float, ...] | None:
    """One scale, or one per step, as Python's numbers."""
    if scale is None:
        return None
    made = plain(scale)
    if not isinstance(made, (list, tuple, range)):
        return finite("guidance scale", scale, 0)
    if not made:
        raise ArgumentError("guidance scale is an empty list; give one number, or one per step")
    return tuple(finite("guidance scale", one, 0) for one in made)


def _place(what: str, value: Any, unit: str) -> float:
    """An end of the interval as a Python number."""
    if is_number(value) and value == math.inf:
        return math.inf
    number = finite(f"guidance {what}", value, 0)
    if unit == "ratio" and number > 1:
        raise ArgumentError(
            f"guidance {what} {number:g} is not a ratio of the steps in [0, 1]; "
            "for a step index say unit='step', for a noise level unit='sigma'"
        )
    if unit == "step" and number != int(number):
        raise ArgumentError(f"guidance {what} {number:g} is not a step index")
    return number


def combine(cond: Tensor, uncond: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """`uncond + scale·(cond - uncond)`, and its rescaled form. Shapes (batch, …)."""
    guided = torch.lerp(uncond, cond, scale)
    if not rescale:
        return guided
    dims = tuple(range(1, cond.ndim))
    factor = stretch(cond.std(dim=dims, keepdim=True), guided.std(dim=dims, keepdim=True))
    return guided * (1 - rescale + rescale * factor)


def stretch(cond: Tensor, guided: Tensor) -> Tensor:
    """The std of the conditional output over that of the guided one; 1, its limit, where the guided
    one is flat.
    """
    return torch.where(guided > 0, cond / guided, torch.ones_like(guided))


def settled(value: Any) -> Guidance | None:
    """Guidance as it may be assigned: a `Guidance`, None, or a scale (one number, or one per step).

    Raises `ArgumentError` for anything else.
    """
    if value is None or isinstance(value, Guidance):
        return value
    if isinstance(value, (bool, str)) or callable(value):
        raise ArgumentError(f"guidance is a scale such as 4.0, tm.cfg(…) or None, got {value!r}")
    return cfg(value)


class Guiding(NamedTuple):
    """Guidance, and what it says for every row of a run that is guided so from row `since` on."""

    guidance: Guidance | None
    scales: tuple[float | None, ...]
    forecasts: tuple[tuple[float, ...], ...]
    since: int

    @classmethod
    def of(
        cls, guidance: Guidance | None, table: Table, prediction: str, since: int = 0
    ) -> Guiding:
        """Raises `ArgumentError` where the guidance does not fit the table."""
        if guidance is None:
            return cls(None, (None,) * table.nfe, ((),) * table.nfe, since)
        return cls(
            guidance, guidance.scales(table), guidance.forecasts(table, prediction, since), since
        )


class Guided:
    """The part of a `Run` that tells how its network calls are guided.

    `guidance`: None leaves it to who calls the network. `scales`, `forecasts`: what it says for
    every row; see `Guidance`. The differences that forecasts are made from are a part of the run's
    state.
    """

    table: Table
    prediction: str
    driver: Driver
    _change: threading.Condition
    _guiding: Guiding
    _coming: Guiding | None  # from the next row on
    _flight: int | None
    _difference: Tensor | None

    if TYPE_CHECKING:

        @property
        def row(self) -> int: ...

        def check(self, order: str) -> None: ...

        @property
        def _here(self) -> State: ...

    @property
    def guidance(self) -> Guidance | None:
        """How the run is guided. Assign `cfg(…)`, a scale or None, from any thread: it acts from
        the next row on.

        Raises `TimonelError` at the assignment, and the run goes on as it was, where the rows to
        come cannot be guided so, or where no row is to come; see `states`.
        """
        return (self._coming or self._guiding).guidance

    @guidance.setter
    def guidance(self, value: Guidance | float | Sequence[float] | None) -> None:
        guidance = settled(value)
        with self._change:
            self.check("guidance")
            self._guide(guidance)

    def _guide(self, guidance: Guidance | None) -> None:
        """Guide the rows to come so; see `guidance`."""
        with self._change:
            flies = self._flight not in (
                None,
                threading.get_ident(),
            )  # another thread computes a row
            new = Guiding.of(guidance, self.table, self.prediction, self.row + flies)
            if guidance is not None:
                self.driver.admit(self, guidance)  # type: ignore[arg-type]
            self._coming = new if guidance != self._guiding.guidance else None
            if not flies:
                self._settle()

    @property
    def guided_since(self) -> int:
        """The row from which `guidance` holds."""
        return (self._coming or self._guiding).since

    def _settle(self) -> None:
        """Between two rows: what was assigned while one was computed holds from here on."""
        if self._coming is not None:
            self._guiding, self._coming, self._difference = self._coming, None, None

    @property
    def guiding(self) -> Guidance | None:
        """The guidance of the row that is computed, whatever was assigned meanwhile."""
        return self._guiding.guidance

    @property
    def scales(self) -> tuple[float | None, ...]:
        """Guidance scale of every row: 1.0 skips the unconditional half, None is the pipeline's
        own.
        """
        return self._guiding.scales

    @property
    def forecasts(self) -> tuple[tuple[float, ...], ...]:
        """Of every row the weights that its unconditional half is forecast with."""
        return self._guiding.forecasts

    @property
    def scale(self) -> float | None:
        """Guidance scale of the coming network call: 1.0 skips the unconditional half, None is the
        pipeline's own.
        """
        return self.scales[min(self.row, self.table.nfe - 1)]

    @property
    def forecasting(self) -> bool:
        """Whether the coming network call computes its conditional half only and is guided by a
        forecast.
        """
        return bool(self.forecasts[min(self.row, self.table.nfe - 1)])

    @property
    def forecast(self) -> Tensor | None:
        """cond - uncond of the coming network call as it is foreseen, None where it is not.

        Raises `RunError` where a difference that it is made from was not remembered.
        """
        if not self.forecasting:
            return None
        asked, known = self.forecasts[self.row], self._here.differences
        if len(known) < len(asked):
            raise RunError(
                f"row {self.row} forecasts its unconditional half from {len(asked)} differences and"
                f" {len(known)} are remembered: go on with the guidance the run began with, and"
                " give run.remember(cond - uncond)"
            )
        kept = list(zip(asked, known, strict=False))
        return summed(kept, kept[0][1].dtype)

    @property
    def remembers(self) -> bool:
        """Whether later rows need the difference of the coming call, where both of its halves are
        computed.
        """
        return self.guiding is not None and self.guiding.forecast > 1

    def remember(self, difference: Tensor) -> None:
        """Give cond - uncond of the coming row's raw outputs, before `advance`, where both halves
        were computed.
        """
        self._difference = difference

    def _remembered(self, before: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The differences after a row that began with `before`."""
        told, self._difference = self._difference, None
        if told is None or self.guiding is None or not self.remembers:
            return before
        return (told, *before)[: self.guiding.order]
