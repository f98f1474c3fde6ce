"""The compiled sampler: one row of numbers per network call.

At row k the sample `x` is at a known level and the network is called once. A row then makes the
next `x` (and, where the solver needs it, the next `base`) as a linear combination of registers:

| register      | meaning                                                                        |
|---------------|--------------------------------------------------------------------------------|
| `x`           | what the network saw at this row                                               |
| `base`        | the sample where the current step began (multi-stage, predictor-corrector)     |
| `h0, h1, …`   | predictions, newest first; `h0` is this row's, in the table's basis            |
| `eps`         | fresh unit noise of this row                                                   |
| `u0, u1, …`   | unconditional predictions, newest first, where the solver reads them (CFG++);  |
|               | those of a row that is not guided are its `h0`                                 |

The basis says what a prediction is kept as: `denoised` D; `noise` (x - alpha·D)/sigma; or
`velocity` noise - D, which is finite at pure noise too. All coefficients are float64 and keep their
gradient with respect to the levels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import reading
from ..errors import ArgumentError, GridError, instance, whole
from . import legs
from .grids import Grid
from .legs import BASES, Leg, Legs
from .prediction import coefficients
from .process import Level, double

FORMAT = 2
ARRAYS = ("alpha", "sigma", "time", "x", "base")
Coefficients = Mapping[str, "Tensor | float"]
ZERO = double(0.0)
UNCONDITIONAL = tuple(f"u{i}" for i in range(9))  # names of the columns of `u`


def registers(history: int) -> tuple[str, ...]:
    """Names of a table's registers, in column order.

    Args:
        history: how many predictions a run remembers, with that of the row.
    """
    return ("x", "base", *(f"h{i}" for i in range(history)), "eps")


@dataclass(frozen=True, eq=False)
class Table(Legs):
    """A sampler compiled for one grid: K rows, R registers, N steps.

    Args:
        solver: its name.
        grid: its name.
        basis: what predictions are kept as, one of `BASES`.
        order: order of convergence the solver declares; 0 where it has none, as for LCM.
        alpha: (K + 1,) of every row and of the result, float64.
        sigma: (K + 1,), as alpha.
        time: (K + 1,) network times.
        step: (K,) the grid step each row belongs to, rising from 0 to N - 1.
        x: (K, R) coefficients of the next x.
        base: (K, R) coefficients of the next base.
        first: of a part, the row of the whole journey where it begins; its rows draw the noise of
            the whole.
        seen: (K,) the factor by which the network sees a row's sample; None where it sees the
            sample itself.
        u: (K, U) coefficients of the next x of the newest U unconditional predictions; None where
            the solver reads none.
        legs: of a table that several solvers share, each one's rows; solver, grid, basis and order
            of the table are then those of the last.

    Raises:
        ArgumentError: the shapes or steps do not fit together.
        GridError: a number is not finite.
    """

    solver: str
    grid: str
    basis: str
    order: int
    alpha: Tensor
    sigma: Tensor
    time: Tensor
    step: tuple[int, ...]
    x: Tensor
    base: Tensor
    first: int = 0
    seen: Tensor | None = None
    u: Tensor | None = None
    legs: tuple[Leg, ...] = ()

    def __post_init__(self) -> None:
        if self.basis not in BASES:
            raise ArgumentError(f"table basis must be one of {BASES}, got {self.basis!r}")
        self._check_shapes(len(self.step))
        if not _finite(self.alpha, self.sigma, self.time, self.x, self.base, self.seen, self.u):
            rows = (row for row in range(self.nfe) if not _finite(self.x[row], self.base[row]))
            row = next(rows, None)
            where = "a level" if row is None else f"row {row}"
            raise GridError(
                f"{self.solver!r} on grid {self.grid!r} gives a coefficient that is not finite in"
                f" {where}"
            )
        if list(self.step) != sorted(self.step) or set(self.step) != set(range(self.steps)):
            raise ArgumentError(
                f"steps of the rows must rise from 0 without a gap, got {self.step}"
            )
        legs.check(self)

    def _check_shapes(self, k: int) -> None:
        if k < 1 or any(len(v) != k + 1 for v in (self.alpha, self.sigma, self.time)):
            raise ArgumentError(f"a table of {k} rows needs {k + 1} levels, got {len(self.alpha)}")
        shape, other = tuple(self.x.shape), tuple(self.base.shape)
        if shape != other or len(shape) != 2 or shape[0] != k or shape[1] < 4:
            raise ArgumentError(f"coefficients must both be ({k}, R>=4), got {shape} and {other}")
        most = len(UNCONDITIONAL)
        if self.u is not None and self.u.shape not in [(k, count + 1) for count in range(most)]:
            raise ArgumentError(
                f"coefficients of unconditional predictions must be ({k}, 1 to {most}), got"
                f" {tuple(self.u.shape)}"
            )
        if self.seen is not None and len(self.seen) != k:
            raise ArgumentError(
                f"a table of {k} rows needs {k} factors of what the network sees, got"
                f" {len(self.seen)}"
            )

    # -- shape -------------------------------------------------------------------------------------
    @property
    def nfe(self) -> int:
        """Number of network calls."""
        return len(self.step)

    @property
    def steps(self) -> int:
        """Number of grid steps."""
        return self.step[-1] + 1

    @property
    def history(self) -> int:
        """How many predictions a run has to remember, this row's included."""
        return self.x.shape[1] - 3

    @property
    def unconditional(self) -> int:
        """How many older unconditional predictions a run has to remember."""
        return 0 if self.u is None else self.u.shape[1] - 1

    @property
    def registers(self) -> tuple[str, ...]:
        """Names of the columns of `x` and `base`."""
        return registers(self.history)

    @property
    def reads_uncond(self) -> bool:
        """Whether rows read unconditional predictions, the columns of `u`."""
        return self.u is not None

    def unguided(self) -> Table:
        """What it does to a run that is not guided: `h0, h1, …` in the place of `u0, u1, …`."""
        if self.u is None:
            return self
        more = self.u.shape[1] - self.history
        fill = self.x.new_zeros(self.nfe, max(more, 0))
        x, base = (torch.cat([v[:, :-1], fill, v[:, -1:]], 1) for v in (self.x, self.base))
        shifted = torch.zeros_like(x)
        shifted[:, 2 : 2 + self.u.shape[1]] = self.u
        return replace(self, x=x + shifted, base=base, u=None)

    @property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return bool((self.x[:, -1] != 0).any() or (self.base[:, -1] != 0).any())

    @property
    def std(self) -> Tensor:
        """(K,) standard deviation of the noise in every row's next x; 0 where it draws none."""
        return self.x[:, -1].abs()

    @property
    def uses_base(self) -> bool:
        """Whether any row's next x depends on `base`."""
        return bool((self.x[:, 1] != 0).any())

    def level(self, row: int) -> Level:
        """The level of a row's network call; `row = nfe` is that of the result."""
        return Level(self.alpha[row], self.sigma[row], self.time[row])

    def clean(self, prediction: str) -> tuple[Tensor, Tensor]:
        """How every row's denoised prediction follows from x and the raw output.

        Args:
            prediction: what the raw output means.

        Returns:
            (c_x, c_raw), each (K,), with `denoised = c_x·x + c_raw·raw`.

        Raises:
            PredictionError: it does not follow at a level of the table.
        """
        alpha, sigma, time = self.alpha[:-1], self.sigma[:-1], self.time[:-1]
        if self.seen is None:
            return coefficients(prediction, Level(alpha, sigma, time))
        c_x, c_raw = coefficients(prediction, Level(alpha * self.seen, sigma * self.seen, time))
        return c_x * self.seen, c_raw

    def first_row(self, step: int) -> int:
        """The first row of a grid step; `step = steps` gives `nfe`."""
        return self.nfe if step == self.steps else self.step.index(step)

    def step_at(self, row: int) -> int:
        """The step that `row` belongs to; `row = nfe` gives `steps`."""
        return self.steps if row == self.nfe else self.step[row]

    @cached_property
    def ends(self) -> tuple[bool, ...]:
        """Whether each row is the last of its step."""
        return tuple(a != b for a, b in zip(self.step, (*self.step[1:], -1), strict=True))

    def ends_step(self, row: int) -> bool:
        """Whether `row` is the last of its step."""
        return self.ends[row]

    def part(self, first: int, last: int) -> Table:
        """Some steps as a table: the same rows, the same numbers.

        Args:
            first: the first step, from 0.
            last: the step after the last.

        Returns:
            Their table.
        """
        start, stop = self.first_row(first), self.first_row(last)
        levels = {key: getattr(self, key)[start : stop + 1] for key in ("alpha", "sigma", "time")}
        rows = {key: getattr(self, key)[start:stop] for key in ("x", "base")}
        steps = tuple(k - first for k in self.step[start:stop])
        seen, u = (None if v is None else v[start:stop] for v in (self.seen, self.u))
        part = replace(
            self, **levels, **rows, step=steps, first=self.first + start, seen=seen, u=u, legs=()
        )
        return replace(part, **legs.part(self, start, stop, first)) if self.legs else part

    def remembers(self, step: int) -> bool:
        """Whether `step` or a later one reads a prediction or a base from before `step`."""
        if self.u is not None:
            return self.unguided().remembers(step)
        if self.history == 1 and not self.uses_base:
            return False
        start, fresh = self.first_row(step), False
        for row in range(start, self.nfe):
            x, base = self.x[row] != 0, self.base[row] != 0
            if bool(x[1]) and not fresh:
                return True
            older = slice(3 + row - start, -1)  # predictions from before `step`
            if bool(x[older].any() or base[older].any()):
                return True
            fresh = fresh or not bool(base[1])
        return False

    # -- data --------------------------------------------------------------------------------------
    def to_dict(self) -> dict[str, Any]:
        """Plain data; floats are written so that they read back to the same bits."""
        data: dict[str, Any] = {"format": FORMAT}
        data |= {key: getattr(self, key) for key in ("solver", "grid", "basis", "order")}
        data |= {"step": list(self.step), "registers": list(self.registers)}
        data |= {key: getattr(self, key).tolist() for key in ARRAYS}
        data |= {"first": self.first} if self.first else {}
        data |= {"legs": legs.plain(self.legs)} if self.legs else {}
        more = (("seen", self.seen), ("u", self.u))
        return data | {key: value.tolist() for key, value in more if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Table:
        """The inverse of `to_dict`.

        Raises:
            ArgumentError: the data is not a table.
        """
        instance("data", data, Mapping, "the dictionary of a table, table.to_dict()")
        if data.get("format") != FORMAT:
            raise ArgumentError(
                f"table format {data.get('format')!r} is not {FORMAT}; it was written by another"
                " version"
            )
        try:
            return cls(**_fields(data))
        except (KeyError, TypeError, IndexError) as error:
            raise ArgumentError(f"this is not a table: {error!r}") from error
        except ArgumentError as error:
            raise ArgumentError(f"this is not a table: {error}") from error

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The inverse of `to_json`.

        Raises:
            ArgumentError: the text is not a table.
        """
        try:
            data = reading.parsed(text)
        except ValueError as error:
            raise ArgumentError(f"this is not a table in JSON: {error}") from error
        if not isinstance(data, dict):
            raise ArgumentError(f"this is not a table in JSON: it holds a {type(data).__name__}")
        return cls.from_dict(data)

    def detach(self) -> Table:
        """The same numbers without a gradient."""
        seen, u = (None if v is None else v.detach() for v in (self.seen, self.u))
        return replace(self, **{key: getattr(self, key).detach() for key in ARRAYS}, seen=seen, u=u)

    # -- text --------------------------------------------------------------------------------------
    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The table as text, a line a row; coefficients that are zero are left out."""
        noise = "stochastic" if self.stochastic else "deterministic"
        yield (
            f"{self.solver} on {self.grid}: {self.steps} steps, {self.nfe} network calls, order"
            f" {self.order}, {noise}, {self.basis} basis"
        )
        for leg in self.legs:
            reads = "" if not leg.reads else f", reads rows {', '.join(map(str, leg.reads))}"
            yield f"from row {leg.row}: {leg.solver} on {leg.grid}, {leg.basis} basis{reads}"
        for r in range(self.nfe):
            alpha, sigma, time = (v.item() for v in self.level(r))
            ratio = sigma / alpha if alpha > 0 else math.inf
            where = f"{r:4d}  step {self.step[r]:<4d} time {time:9.4f}  sigma/alpha {ratio:10.5f}"
            base = f"   base' = {self._sum(self.base[r])}" if self.uses_base else ""
            more = ""
            if self.u is not None and bool((self.u[r] != 0).any()):
                more = f" {self._sum(self.u[r], UNCONDITIONAL)}"
            yield f"{where}  x' = {self._sum(self.x[r])}{more}{base}"

    def _sum(self, row: Tensor, names: Sequence[str] = ()) -> str:
        named = zip(row.tolist(), names or self.registers, strict=False)
        terms = [f"{c:+.5f}·{n}" for c, n in named if c != 0]
        return " ".join(terms) or "0"


def _finite(*arrays: Tensor | None) -> bool:
    numbers = torch.cat([array.detach().flatten() for array in arrays if array is not None])
    return bool(torch.isfinite(numbers).all())


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """A table's fields from plain data, as their types; their shapes are checked by the table."""
    fields: dict[str, Any] = {key: double(data[key]) for key in ARRAYS}
    fields |= {key: instance(key, data[key], str, "a name") for key in ("solver", "grid", "basis")}
    steps = instance("step", data["step"], list, "a list")
    fields["step"] = tuple(whole("step", step, 0, 2**31) for step in steps)
    fields["order"] = whole("order", data["order"], 0, 99)
    fields["first"] = whole("first", data.get("first", 0), 0, 2**31)
    for key in ("seen", "u"):
        fields[key] = None if data.get(key) is None else double(data[key])
    fields["legs"] = legs.read(data.get("legs", []))
    _check_levels(fields, len(steps))
    return fields


def _check_levels(fields: Mapping[str, Any], rows: int) -> None:
    """The network is called at levels with noise, and none is negative."""
    alpha, sigma, seen = fields["alpha"], fields["sigma"], fields["seen"]
    if any(fields[key].shape != (rows + 1,) for key in ("alpha", "sigma", "time")):
        raise ArgumentError(f"a table of {rows} rows needs {rows + 1} levels, got {alpha.numel()}")
    negative = (alpha < 0) | (sigma < 0) | (alpha + sigma == 0)
    if bool(negative.any() or (sigma[:-1] == 0).any()):
        raise ArgumentError(
            "alpha and sigma must not be negative, and the network is called where there is noise"
        )
    if seen is not None and (seen.shape != (rows,) or bool((seen <= 0).any())):
        raise ArgumentError(
            f"what the network sees needs {rows} factors above 0, got shape {tuple(seen.shape)}"
        )


class Rows:
    """Collects the rows that a solver writes, and ends in a table.

    A solver calls `add(step, level, x=…)` once per network call, naming only the registers it uses,
    and `table()` at the end. The last row of a step arrives at `grid.end(step)`; where the grid
    adds noise there, the rows do so here.

    Args:
        solver: its name.
        grid: the levels.
        order: order of convergence.
        history: how many predictions a row reads, with its newest.
        basis: what predictions are kept as.
        unconditional: how many unconditional predictions a row reads, with its newest.
    """

    def __init__(
        self, solver: str, grid: Grid, *, order: int, history: int = 1, basis: str = "denoised",
        unconditional: int = 0,
    ) -> None:  # fmt: skip
        self.solver, self.grid, self.order, self.basis = solver, grid, order, basis
        self.names, self.u_names = registers(history), UNCONDITIONAL[:unconditional]
        self.u: list[Tensor] = []
        self.levels: list[Level] = []
        self.step: list[int] = []
        self.x: list[Tensor] = []
        self.base: list[Tensor] = []

    @property
    def count(self) -> int:
        """How many rows there are so far."""
        return len(self.step)

    def add(
        self, step: int, level: Level, x: Coefficients, base: Coefficients | None = None
    ) -> None:
        """One network call.

        Args:
            step: the grid step that it belongs to.
            level: where the network is called.
            x: coefficients of the next x by register.
            base: of the next base; None keeps it.
        """
        self.step.append(step)
        self.levels.append(level)
        self.x.append(self._row(x))
        self.base.append(self._row({"base": 1.0} if base is None else base))
        if self.u_names:
            self.u.append(self._row(x, self.u_names))

    def _row(self, coefficients: Coefficients, names: Sequence[str] = ()) -> Tensor:
        values = (coefficients.get(name, ZERO) for name in names or self.names)
        return torch.stack(
            [v if isinstance(v, Tensor) and v.ndim == 0 else double(v).reshape(()) for v in values]
        )

    def _renoise(self, k: int) -> None:
        """Add the noise between the end of step k and level k + 1."""
        last = len(self.step) - 1 - self.step[::-1].index(k)
        end, new, row = self.grid.end(k), self.grid[k + 1], self.x[last]
        rise = new.alpha / end.alpha
        fresh = new.sigma**2 - (rise * end.sigma) ** 2
        self.x[last] = torch.cat([rise * row[:-1], torch.sqrt((rise * row[-1:]) ** 2 + fresh)])
        if self.u:
            self.u[last] = rise * self.u[last]

    def table(self) -> Table:
        """The finished table; the result is at the grid's last level."""
        for k in range(self.grid.steps):
            if self.grid.renoised(k + 1):
                self._renoise(k)
        last = self.grid[self.grid.steps]
        alpha, sigma, time = (
            torch.stack([*v, end])
            for v, end in zip(zip(*self.levels, strict=True), last, strict=True)
        )
        return Table(
            self.solver, self.grid.name, self.basis, self.order, alpha, sigma, time,
            tuple(self.step), torch.stack(self.x), torch.stack(self.base),
            seen=self.grid.process.seen(Level(alpha[:-1], sigma[:-1], time[:-1])),
            u=torch.stack(self.u) if self.u else None,
        )  # fmt: skip
