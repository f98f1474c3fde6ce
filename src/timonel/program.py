"""A table bound to a prediction: for every row, which tensors are combined with which Python floats.

The conversion of the raw output to the table's basis is linear, so it is folded into the row: a
row reads x, the raw output, the base and the remembered predictions. A prediction is made a tensor
of its own only where a later row reads it. Executing a row is a pure function of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .errors import RunError
from .kernel import combine
from .noise import Noise
from .prediction import coefficients
from .process import Level
from .table import Table

Shape = Callable[[Tensor], Tensor]  # a change of the denoised prediction, such as clipping
Terms = tuple[tuple[float, str], ...]  # coefficient and register; "raw" is the network's output


class State(NamedTuple):
    """Everything that changes in a run: the next row, its x, the base, and predictions newest first."""

    row: int
    x: Tensor
    base: Tensor | None
    history: tuple[Tensor | None, ...]

    def clone(self) -> State:
        """The same state with tensors of its own."""
        copies = tuple(h if h is None else h.clone() for h in self.history)
        return State(self.row, self.x.clone(), None if self.base is None else self.base.clone(), copies)


@dataclass(frozen=True)
class Row:
    """One row, ready to run.

    From x and raw, `denoised` makes the clean prediction and `convert` the same in the table's basis;
    from x and the (changed) clean prediction, `rebase` makes it in the table's basis.
    """

    denoised: tuple[float, float]
    convert: tuple[float, float]
    rebase: tuple[float, float]
    keeps_h0: bool
    x: Terms
    base: Terms
    carry: float | None  # what an edit of x must add to base, per unit; None where base forgets


@dataclass(frozen=True)
class Program:
    """All rows of a table for one prediction kind. `shape` changes predictions before a row is applied."""

    rows: tuple[Row, ...]
    basis: str
    shape: Shape | None = None

    @classmethod
    def bind(cls, table: Table, prediction: str, shape: Shape | None = None) -> Program:
        """Raises `PredictionError` where the prediction cannot be read at a level of the table."""
        x, base, uses_base = table.x.tolist(), table.base.tolist(), table.uses_base
        alphas, sigmas = table.alpha.tolist(), table.sigma.tolist()
        levels = Level(table.alpha[:-1], table.sigma[:-1], table.time[:-1])
        to_clean = zip(*(c.tolist() for c in coefficients(prediction, levels)), strict=True)
        rows = []
        for k, (c_x, c_raw) in enumerate(to_clean):
            rebase = _from_clean(table.basis, alphas[k], sigmas[k])
            convert = (rebase[0] + rebase[1] * c_x, rebase[1] * c_raw)
            later = range(k + 1, min(table.nfe, k + table.history))  # rows that can still read this prediction
            keeps = shape is not None or any(m[j][2 + j - k] for m in (x, base) for j in later)
            next_x = _terms(table.registers, x[k], convert, keeps)
            next_base = _terms(table.registers, base[k], convert, keeps) if uses_base else ()
            a_x, a_b = base[k][0], base[k][1]
            carry = (1 - a_x) / a_b if uses_base and a_b and a_x != 1 else None
            rows.append(Row((c_x, c_raw), convert, rebase, keeps, next_x, next_base, carry))
        return cls(tuple(rows), table.basis, shape)

    def denoised(self, row: int, x: Tensor, raw: Tensor) -> Tensor:
        """The clean prediction of a row, as the solver uses it."""
        c_x, c_raw = self.rows[row].denoised
        clean = combine([(c_raw, raw), (c_x, x)], x.dtype)
        return clean if self.shape is None else self.shape(clean)

    def execute(self, state: State, raw: Tensor, noise: Noise | None) -> tuple[State, Tensor | None]:
        """The next state, and the clean prediction where it had to be made a tensor."""
        row, dtype = self.rows[state.row], state.x.dtype
        h0, clean = self._prediction(row, state, raw)
        registers: dict[str, Tensor | None] = {"x": state.x, "raw": raw, "base": state.base, "h0": h0}
        registers.update({f"h{i + 1}": h for i, h in enumerate(state.history)})

        def total(terms: Terms) -> Tensor:
            chosen = []
            for c, name in terms:
                tensor = registers.get(name)
                if tensor is None and noise is not None and name == "eps":
                    tensor = registers[name] = noise(state.row, state.x)
                if tensor is None:
                    raise RunError(f"row {state.row} reads {name}, which no row before it made")
                chosen.append((c, tensor))
            return combine(chosen, dtype)

        x, base = total(row.x), None
        if row.base:  # a base that only moves is not copied
            c, name = row.base[0]
            moved = registers[name] if len(row.base) == 1 and c == 1.0 else None
            base = total(row.base) if moved is None else moved
        return State(state.row + 1, x, base, (h0, *state.history)[: len(state.history)]), clean

    def _prediction(self, row: Row, state: State, raw: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """h0 in the table's basis and the clean prediction, each where it is made a tensor."""
        if not row.keeps_h0:
            return None, None
        if self.shape is None:
            h0 = combine([(row.convert[1], raw), (row.convert[0], state.x)], state.x.dtype)
            return h0, h0 if self.basis == "denoised" else None
        clean = self.denoised(state.row, state.x, raw)
        if self.basis == "denoised":
            return clean, clean
        return combine([(row.rebase[0], state.x), (row.rebase[1], clean)], state.x.dtype), clean


def _from_clean(basis: str, alpha: float, sigma: float) -> tuple[float, float]:
    """From x and the clean prediction to the table's basis."""
    if basis == "denoised":
        return 0.0, 1.0
    return 1 / sigma, -(alpha if basis == "noise" else alpha + sigma) / sigma


def _terms(names: tuple[str, ...], row: list[float], convert: tuple[float, float], keeps: bool) -> Terms:
    """Non-zero terms of a row; h0 is replaced by x and raw unless it is a tensor of its own."""
    sums = dict(zip(names, row, strict=True))
    if not keeps:
        c = sums.pop("h0")
        sums["x"] += c * convert[0]
        sums["raw"] = c * convert[1]
    return tuple((c, name) for name, c in sums.items() if c != 0) or ((0.0, "x"),)
