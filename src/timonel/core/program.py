"""A table bound to a prediction: for every row, which tensors are combined with which Python
floats.

The conversion of the raw output to the table's basis is linear, so it is folded into the row: a
row reads x, the raw output, the base and the remembered predictions. A prediction is made a tensor
of its own only where a later row reads it. Executing a row is a pure function of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..errors import RunError
from .kernel import Plan, Terms, combine, linear
from .noise import Noise
from .table import Table

Shape = Callable[[Tensor], Tensor]  # a change of the denoised prediction, such as clipping
X, RAW, BASE, H0, H1 = range(
    5
)  # places of a row's registers: h1 is followed by older predictions, these by eps


class Directed:
    """A shape of the clean part alone: the noise of the step's end keeps the direction that the
    network said.

    From the unshaped prediction d and the shaped c a row makes `alpha'·c + b·(x - alpha·d) /
    sigma`, as DDIM's formula says; the shape alone makes `alpha'·c + b·(x - alpha·c) / sigma`.
    `consistent`: do the latter; may be changed between rows.
    """

    def __init__(self, shape: Shape, consistent: bool = False) -> None:
        self.shape, self.consistent = shape, consistent

    def __call__(self, clean: Tensor) -> Tensor:
        return self.shape(clean)


class State(NamedTuple):
    """Everything that changes in a run: the next row, its x, the base, and predictions newest
    first.

    `differences`: conditional minus unconditional raw outputs, newest first, where guidance
    forecasts its half.
    """

    row: int
    x: Tensor
    base: Tensor | None
    history: tuple[Tensor | None, ...]
    differences: tuple[Tensor, ...] = ()

    def clone(self) -> State:
        """The same state with tensors of its own."""
        copies = tuple(h if h is None else h.clone() for h in self.history)
        base = None if self.base is None else self.base.clone()
        return State(
            self.row, self.x.clone(), base, copies, tuple(d.clone() for d in self.differences)
        )


@dataclass(frozen=True)
class Row:
    """One row, ready to run.

    From x and raw, `denoised` makes the clean prediction; from x and the (changed) clean
    prediction, `rebase` makes it in the table's basis. `reads` are the registers that are inputs of
    `plan`, whose outputs are the prediction (where `keeps_h0` and no shape made it), the next base
    (where `makes_base`) and the next x.
    """

    denoised: tuple[float, float]
    rebase: tuple[float, float]
    keeps_h0: bool
    makes_base: bool
    base: (
        int | None
    )  # the register that is the next base as it is; None where there is no base, or it is made
    reads: tuple[int, ...]
    plan: Plan
    carry: float | None  # what an edit of x must add to base, per unit; None where base forgets
    directed: tuple[float, float] | None = (
        None  # weights of c and d in the prediction that a `Directed` shape means
    )


@dataclass(frozen=True)
class Program:
    """All rows of a table for one prediction kind. `shape` changes predictions before a row is
    applied.

    `uses_base`: whether a row reads the base.
    """

    rows: tuple[Row, ...]
    basis: str
    shape: Shape | None = None
    uses_base: bool = False

    @classmethod
    def bind(cls, table: Table, prediction: str, shape: Shape | None = None) -> Program:
        """Raises `PredictionError` where the prediction cannot be read at a level of the table."""
        x, base, uses_base = table.x.tolist(), table.base.tolist(), table.uses_base
        alphas, sigmas = table.alpha.tolist(), table.sigma.tolist()
        to_clean = zip(*(c.tolist() for c in table.clean(prediction)), strict=True)
        rows = []
        for k, (c_x, c_raw) in enumerate(to_clean):
            rebase = _from_clean(table.basis, alphas[k], sigmas[k])
            convert = (rebase[0] + rebase[1] * c_x, rebase[1] * c_raw)
            later = range(
                k + 1, min(table.nfe, k + table.history)
            )  # rows that can still read this prediction
            keeps = shape is not None or any(m[j][2 + j - k] for m in (x, base) for j in later)
            next_base = _terms(base[k], convert, keeps) if uses_base else ()
            moved = (
                None  # a base that only moves is not copied, unless it is the network's own tensor
            )
            if len(next_base) == 1 and next_base[0][0] == 1.0 and next_base[0][1] != RAW:
                moved = next_base[0][1]
            made = next_base if moved is None else ()
            sums: list[Terms] = (
                [((convert[1], RAW), (convert[0], X))] if keeps and shape is None else []
            )
            sums += [s for s in (made, _terms(x[k], convert, keeps)) if s]
            reads, plan = _plan(sums, makes_h0=keeps and shape is None)
            carry = (
                _carry(x, base, table.first_row(table.step[k]), k, moved == BASE)
                if uses_base
                else None
            )
            directed = _directed(table, k, rebase) if isinstance(shape, Directed) else None
            rows.append(
                Row((c_x, c_raw), rebase, keeps, bool(made), moved, reads, plan, carry, directed)
            )
        return cls(tuple(rows), table.basis, shape, uses_base)

    def denoised(self, row: int, x: Tensor, raw: Tensor) -> Tensor:
        """The clean prediction of a row, as the solver uses it."""
        c_x, c_raw = self.rows[row].denoised
        clean = combine([(c_raw, raw), (c_x, x)], x.dtype)
        return clean if self.shape is None else self.shape(clean)

    def execute(
        self, state: State, raw: Tensor, noise: Noise | None
    ) -> tuple[State, Tensor | None]:
        """The next state, and the clean prediction where it had to be made a tensor."""
        row, x = self.rows[state.row], state.x
        h0 = clean = None
        if self.shape is not None:
            h0, clean = self._shaped(row, state, raw)
        eps = H1 + len(state.history)
        registers: list[Tensor | None] = [x, raw, state.base, h0, *state.history, None]
        if noise is not None and eps in row.reads:
            registers[eps] = noise(state.row, x)
        inputs = []
        for place in row.reads:
            tensor = registers[place]
            if tensor is None:
                raise RunError(
                    f"row {state.row} reads {_name(place, eps)}, which no row before it made"
                )
            inputs.append(tensor)
        out = linear(row.plan, inputs, x.dtype)
        if row.keeps_h0 and self.shape is None:
            h0 = registers[H0] = out[0]
            clean = h0 if self.basis == "denoised" else None
        base = out[-2] if row.makes_base else None if row.base is None else registers[row.base]
        history = (h0, *state.history[:-1]) if state.history else ()
        return State(state.row + 1, out[-1], base, history, state.differences), clean

    def _shaped(self, row: Row, state: State, raw: Tensor) -> tuple[Tensor, Tensor]:
        """h0 in the table's basis and the clean prediction, which `shape` has changed."""
        clean = used = self.denoised(state.row, state.x, raw)
        if (
            isinstance(self.shape, Directed)
            and not self.shape.consistent
            and row.directed is not None
        ):
            (c_x, c_raw), (kept, free), dtype = row.denoised, row.directed, state.x.dtype
            used = combine([(kept, clean), (free * c_x, state.x), (free * c_raw, raw)], dtype)
        if self.basis == "denoised":
            return used, clean
        return combine([(row.rebase[0], state.x), (row.rebase[1], used)], state.x.dtype), clean


def _from_clean(basis: str, alpha: float, sigma: float) -> tuple[float, float]:
    """From x and the clean prediction to the table's basis."""
    if basis == "denoised":
        return 0.0, 1.0
    return 1 / sigma, -(alpha if basis == "noise" else alpha + sigma) / sigma


def _carry(
    x: list[list[float]], base: list[list[float]], first: int, k: int, stays: bool
) -> float | None:
    """What a unit of an edit of x before row k adds to the base; None where the row makes the base
    without the last.

    A base that `stays` is where the step began: x and it are multiples of the sample there, and
    sums of predictions. One that evolves as x does, SA-Solver's, is at the level of x.
    """
    if not base[k][1] or base[k][0] == 1:
        return None
    if not stays and base[k][0] == x[k][0] and base[k][1] == x[k][1]:
        return 1.0
    if not stays or k == first:
        return (1 - base[k][0]) / base[k][1]
    size, kept = 1.0, 0.0
    for j in range(first, k):
        size, kept = x[j][0] * size + x[j][1] * kept, base[j][0] * size + base[j][1] * kept
    return kept / size if size else None


def _directed(table: Table, row: int, rebase: tuple[float, float]) -> tuple[float, float] | None:
    """Weights of the shaped and the unshaped prediction in the one that makes the row's sample;
    None at its own end.

    Such a table's rows are `x' = a·x + b·prediction`, with b = alpha' - a·alpha.
    """
    x, _, h0, *_ = table.x[row].tolist()
    a, b = x + h0 * rebase[0], h0 * rebase[1]
    kept, free = float(table.alpha[row + 1]), -a * float(table.alpha[row])
    return (kept / b, free / b) if b else None


def _terms(row: list[float], convert: tuple[float, float], keeps: bool) -> Terms:
    """Non-zero terms of a table's row by register; h0 is replaced by x and raw unless it is a
    tensor of its own.
    """
    x, base, h0, *rest = row
    sums = [x, 0.0, base, h0, *rest]
    if not keeps:
        sums[X], sums[RAW], sums[H0] = x + h0 * convert[0], h0 * convert[1], 0.0
    return tuple((c, place) for place, c in enumerate(sums) if c != 0) or ((0.0, X),)


def _plan(sums: list[Terms], makes_h0: bool) -> tuple[tuple[int, ...], Plan]:
    """The registers to read, and the sums with places among those; h0 is the first sum where it is
    made here.
    """
    reads = sorted(
        {place for terms in sums for c, place in terms if c != 0} - ({H0} if makes_h0 else set())
    ) or [X]
    at = {place: i for i, place in enumerate(reads)} | ({H0: len(reads)} if makes_h0 else {})
    kept = (tuple((c, at[place]) for c, place in terms if c != 0) or ((0.0, 0),) for terms in sums)
    return tuple(reads), Plan(len(reads), tuple(kept))


def _name(place: int, eps: int) -> str:
    """The name of a register, for messages."""
    return (
        ("x", "raw", "base")[place] if place < H0 else "eps" if place == eps else f"h{place - H0}"
    )
