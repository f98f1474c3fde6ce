"""Guidance as a table: a scale for every row, and the weights that forecast an output.

`guided = uncond + scale·(cond - uncond)` on the raw output (Ho & Salimans 2022, arXiv 2207.12598);
scale = 1 is no guidance. Outside the interval the unconditional output is not computed at all.

Inside the interval it may be forecast. What guidance adds is d = cond - uncond of the denoised
predictions, which changes slowly, so `cfg(4.0, forecast=2)` computes both outputs at every second
guided call only, the first two always, and repeats the newest d between (`order=2`: reads it off
the line in lam through the newest two). Such a call costs one network evaluation instead of two.
With `denoised = c_x·x + c_raw·raw` the difference of the raw outputs is d/c_raw, so no sample has
to be remembered. The idea is LinearAG's (Castillo et al. 2023, arXiv 2312.12487), whose weights are
fitted to a model; these follow from the levels.

Guidance compiles to a table as a sampler does: `guidance.compile(table, prediction)` has for every
row a scale and the weights of a forecast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...errors import ArgumentError, RunError, finite, instance, whole
from ..forecast import weights
from ..kernel import combine as weighted_sum
from ..process import Level
from ..table import Table
from .outputs import Combined, Method, Outputs, Place, guide
from .plan import ends, fits, inside, interval, scale_of
from .terms import Term, added

# a scale of 1 whose unconditional output is computed all the same, for the solver reads it
BOTH = math.nextafter(1.0, 2.0)
SAME_LEVEL = 1e-9  # distance in lam of two calls at one level


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance. Make one with `cfg`.

    Args:
        scale: one number, or one per step; None keeps the pipeline's own scale.
        start: guided from here on (start <= position < stop; for sigma: stop < sigma <= start).
        stop: guided up to here.
        unit: of `start` and `stop`, see `cfg`.
        rescale: share, 0 to 1, of the guided output that is rescaled to the standard deviation of
            the conditional one (arXiv 2305.08891, eq. 15-16).
        forecast: both outputs are computed at every so-many-th guided call; 1 is always.
        order: how many of the newest differences a forecast reads, 1 or 2.
        method: how the outputs are combined, see `methods`; None is classifier-free guidance.
        terms: what is added of further evaluations, see `terms`.

    Raises:
        ArgumentError: a value outside its range, or an empty interval.
    """

    scale: float | tuple[float, ...] | None = None
    start: float = 0.0
    stop: float = math.inf
    unit: str = "ratio"
    rescale: float = 0.0
    forecast: int = 1
    order: int = 1
    method: Method | None = None
    terms: tuple[Term, ...] = ()

    def __post_init__(self) -> None:
        start, stop = ends(self.start, self.stop, self.unit)
        checked = {
            "scale": None if self.scale is None else scale_of("guidance scale", self.scale),
            "start": start, "stop": stop,
            "rescale": finite("rescale", self.rescale, 0, 1),
            "forecast": whole("forecast", self.forecast),
            "order": whole("order", self.order, 1, 2),
        }  # fmt: skip
        for key, value in checked.items():
            object.__setattr__(self, key, value)
        instance("terms", self.terms, tuple, "what tm.pag(…) and others have in .terms")
        for term in self.terms:
            instance("a term", term, Term, "what tm.pag(…) and others have in .terms")
        if self.method is not None:
            instance("method", self.method, Method, "a guidance method, as tm.apg(…) has one")
            if self.rescale and not self.method.rescales:
                raise ArgumentError(
                    f"nobody defines rescale={self.rescale:g} with {self.method.name}: leave it out"
                )

    def __add__(self, other: Guidance) -> Guidance:
        """Guidance with the terms of another too: `cfg(5) + pag(3)`.

        Raises:
            ArgumentError: both say more than terms.
        """
        if not isinstance(other, Guidance):
            return NotImplemented
        base, added = (other, self) if self.bare else (self, other)
        if not added.bare:
            raise ArgumentError(
                "guidance adds up of one of cfg(…), apg(…), … and terms: pag, seg, skip_layers,"
                f" autoguidance; got {self} and {other}"
            )
        return replace(base, terms=self.terms + other.terms)

    @property
    def bare(self) -> bool:
        """Whether it is nothing but terms, and leaves the scale to the pipeline."""
        return bool(self.terms) and replace(self, terms=()) == Guidance()

    def compile(self, table: Table, prediction: str, since: int = 0) -> CompiledGuidance:
        """What the guidance says for every row of a table.

        Args:
            table: of the run, K rows.
            prediction: what the network's raw output means.
            since: the row from which the run is guided so; no row before it is forecast.

        Returns:
            Scales and weights of the network's outputs, by row.

        Raises:
            ArgumentError: the scales are not one per step of the table.
        """
        scales = self.scales(table)
        return CompiledGuidance(
            self, scales, self._weights(table, prediction, scales, since), since,
            self._places(table, prediction), added(self.terms, table),
        )  # fmt: skip

    def _places(self, table: Table, prediction: str) -> tuple[Place, ...]:
        """Where every row stands, for the method; empty where there is none."""
        if self.method is None:
            return ()
        self.method.check(prediction)
        if self.method.reads_uncond and not table.reads_uncond:
            raise ArgumentError(
                f"{self.method.name} needs a solver that reads the unconditional prediction, and"
                f" {table.solver!r} does not: take one such as 'euler_cfg_pp'"
            )
        c_x, c_raw = (c.tolist() for c in table.clean(prediction))
        return tuple(
            Place(c_x[row], c_raw[row], step, table.steps, prediction)
            for row, step in enumerate(table.step)
        )

    def scales(self, table: Table) -> tuple[float | None, ...]:
        """One scale per row: 1.0 computes the conditional output only, None keeps the pipeline's.

        Raises:
            ArgumentError: the scales are not one per step of the table.
        """
        fits("guidance scales", self.scale, table)
        return tuple(self._scale_of(table, step) for step in table.step)

    def _scale_of(self, table: Table, step: int) -> float | None:
        if not inside(table, step, self.start, self.stop, self.unit):
            return 1.0
        scale = self.scale[step] if isinstance(self.scale, tuple) else self.scale
        return BOTH if scale == 1.0 and table.reads_uncond else scale

    def _weights(
        self, table: Table, prediction: str, scales: Sequence[float | None], since: int
    ) -> tuple[tuple[float, ...], ...]:
        """For every row the weights of its forecast, of raw outputs; empty where it has none."""
        if self.forecast == 1:
            return ((),) * table.nfe
        _, c_raw = table.clean(prediction)
        nodes = self._nodes(table, scales, since)
        return tuple(
            tuple((weights(table, n, row) * c_raw[n] / c_raw[row]).tolist()) if n else ()
            for row, n in enumerate(nodes)
        )

    def _nodes(self, table: Table, scales: Sequence[float | None], since: int) -> list[list[int]]:
        """For every row the rows that its difference is forecast from, newest first."""
        lam = Level(table.alpha[:-1], table.sigma[:-1], table.time[:-1]).lam
        nodes: list[list[int]] = [[] for _ in scales]
        computed, age = list[int](), 0  # the newest two guided calls with both outputs
        for row, scale in enumerate(scales):
            if scale == 1.0 or row < since:
                continue
            if computed and bool(lam[row] < lam[computed[0]] - SAME_LEVEL):
                computed = []  # noise was added: differences of cleaner levels say little here
            if len(computed) < 2 or age == self.forecast - 1:
                computed, age = [row, *computed[:1]], 0
            else:
                distinct = bool(lam[computed[0]] - lam[computed[1]] > SAME_LEVEL)
                nodes[row], age = computed[: self.order if distinct else 1], age + 1
        return nodes


@dataclass(frozen=True)
class CompiledGuidance:
    """Guidance on one table: what it says for every row. A `Run` holds one.

    Args:
        guidance: None leaves it to who calls the network.
        scales: (K,) 1.0 where only the conditional output is computed, None for the pipeline's own.
        weights: (K,) of the remembered differences cond - uncond of raw outputs, newest first,
            whose sum forecasts the row's; empty where both outputs are computed, or one.
        since: the row from which it holds.
        places: (K,) where its rows stand; empty without a method.
        added: (K,) the terms of each row, with what they are multiplied by.
    """

    guidance: Guidance | None
    scales: tuple[float | None, ...]
    weights: tuple[tuple[float, ...], ...]
    since: int = 0
    places: tuple[Place, ...] = ()
    added: tuple[tuple[tuple[Term, float], ...], ...] = ()

    @classmethod
    def of(
        cls, guidance: Guidance | None, table: Table, prediction: str, since: int = 0
    ) -> CompiledGuidance:
        """`guidance.compile(…)`; None is a table that says nothing."""
        if guidance is None:
            return cls(None, (None,) * table.nfe, ((),) * table.nfe, since)
        return guidance.compile(table, prediction, since)

    @property
    def rescale(self) -> float:
        """Share of the guided output that is rescaled; 0 where there is no guidance."""
        return 0.0 if self.guidance is None else self.guidance.rescale

    @property
    def method(self) -> Method | None:
        """How outputs are combined; None by the scale alone."""
        return None if self.guidance is None else self.guidance.method

    def terms(self, row: int) -> tuple[tuple[Term, float], ...]:
        """The terms of a row, with what they are multiplied by."""
        return self.added[row] if row < len(self.added) else ()

    def place(self, row: int) -> Place | None:
        """Where a row stands; None without a method."""
        return self.places[row] if self.places else None

    def combine(
        self, row: int, outputs: Outputs, momentum: Tensor | None = None, scale: float | None = None
    ) -> Combined:
        """The guided raw output of a row, for loops that call the network themselves.

        Args:
            row: 0 to K - 1.
            outputs: of the row, which get its place here.
            momentum: `run.momentum`.
            scale: where the row's is None, the pipeline's own.

        Returns:
            The raw output, and the momentum, for `run.remember(momentum=…)`.

        Raises:
            ArgumentError: neither the row nor the caller has a scale.
        """
        chosen = scale if self.scales[row] is None else self.scales[row]
        if chosen is None:
            raise ArgumentError("guidance needs a scale here: cfg(4.0, …)")
        placed = outputs._replace(place=self.place(row))
        return guide(placed, chosen, rescale=self.rescale, method=self.method, momentum=momentum)

    @property
    def order(self) -> int:
        """How many differences a run has to remember; 0 where none is forecast."""
        return 0 if self.guidance is None or self.guidance.forecast == 1 else self.guidance.order

    def forecast(self, row: int, differences: Sequence[Tensor]) -> Tensor | None:
        """Forecast cond - uncond of a row's raw outputs; None where the row has no forecast.

        Args:
            row: 0 to K - 1.
            differences: of the guided rows before with both outputs, newest first.

        Raises:
            RunError: a difference that it needs was not remembered.
        """
        needed = self.weights[row]
        if not needed:
            return None
        if len(differences) < len(needed):
            raise RunError(
                f"row {row} forecasts its unconditional output from {len(needed)} differences and"
                f" {len(differences)} are remembered: go on with the guidance the run began with,"
                " and give run.remember(cond - uncond)"
            )
        return weighted_sum(list(zip(needed, differences, strict=False)), differences[0].dtype)


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

    >>> cfg(5.0, until=0.4).stop
    0.4

    Args:
        scale: one number, or one per step; None keeps the pipeline's own scale.
        until: the end of the interval; 0.4 guides the first 40 % of the steps.
        between: its start and end, in place of `until`.
        unit: of these: "ratio" of the steps in [0, 1], "step" index (0-based, end excluded), or
            "sigma" = sigma/alpha, as (high, low).
        rescale: share, 0 to 1, of the output rescaled to the standard deviation of the conditional.
        forecast: the unconditional output is computed at every so-many-th guided network call, the
            first two included, and forecast between.
        order: from how many of the newest differences, 1 or 2; None is 1.

    Returns:
        The guidance, as calls take it.

    Raises:
        ArgumentError: a value outside its unit's range.
    """
    start, stop = interval(until, between, unit)
    newest = forecast_order(forecast, order)
    return Guidance(scale, start, stop, unit, rescale, forecast, newest)  # type: ignore[arg-type]


def forecast_order(forecast: int, order: int | None) -> int:
    """How many differences a forecast reads, 1 by default.

    Raises:
        ArgumentError: an order without a forecast.
    """
    if order is not None and whole("forecast", forecast) == 1:
        raise ArgumentError(
            f"order={order} says how the unconditional output is forecast; give forecast too, e.g."
            " forecast=2"
        )
    return 1 if order is None else order


def assigned(value: Any) -> Guidance | None:
    """Guidance from what may be assigned to `run.guidance`: a `Guidance`, a scale or None.

    Raises:
        ArgumentError: for anything else.
    """
    if value is None or isinstance(value, Guidance):
        return value
    if isinstance(value, (bool, str)) or callable(value):
        raise ArgumentError(f"guidance is a scale such as 4.0, tm.cfg(…) or None, got {value!r}")
    return cfg(value)
