"""A table bound to a prediction: for every row, which tensors are combined with which numbers.

The conversion of the raw output to the table's basis is linear, so it is folded into the row: a
row reads x, the raw output, the base and the remembered predictions. A prediction becomes a tensor
only where a later row reads it. Executing a row is a pure function of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import RunError
from .kernel import Terms, WeightedSums, combine, linear
from .noise import Noise
from .process import At
from .table import Table

DenoisedFn = Callable[[Tensor], Tensor]  # changes the denoised prediction, as clipping does
# places of a row's registers: h1 is followed by older predictions, these by eps
X, RAW, BASE, H0, H1 = range(5)


class Directed:
    """A `denoised_fn` that changes the clean part of a step only, and not the direction of its end.

    From the unchanged prediction d and the changed one c a row makes `alpha'·c + b·(x - alpha·d) /
    sigma`, as DDIM's formula says; a plain function makes `alpha'·c + b·(x - alpha·c) / sigma`.

    Args:
        denoised_fn: the change.
        consistent: do the latter; may be changed between rows.
    """

    def __init__(self, denoised_fn: DenoisedFn, consistent: bool = False) -> None:
        self.denoised_fn, self.consistent = denoised_fn, consistent

    def __call__(self, clean: Tensor) -> Tensor:
        return self.denoised_fn(clean)


class State(NamedTuple):
    """Everything that changes in a run between two rows.

    Args:
        row: the next row.
        x: the sample (batch, …).
        base: where the current step began; None where the solver needs none.
        history: predictions, newest first; None where no later row reads one.
        differences: cond - uncond of raw outputs, newest first, where guidance is forecast.
        momentum: what the guidance method has to know of the rows before.
        unconditional: unconditional predictions, newest first, where the solver reads them.
    """

    row: int
    x: Tensor
    base: Tensor | None
    history: tuple[Tensor | None, ...]
    differences: tuple[Tensor, ...] = ()
    momentum: Tensor | None = None
    unconditional: tuple[Tensor | None, ...] = ()

    def clone(self) -> State:
        """A copy of the state and its tensors."""

        def copied(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
            return tuple(None if t is None else t.clone() for t in tensors)

        base, momentum = copied((self.base, self.momentum))
        return State(
            self.row, self.x.clone(), base, copied(self.history), copied(self.differences),
            momentum, copied(self.unconditional),
        )  # fmt: skip


class Aside(NamedTuple):
    """What the guidance of a row leaves beside its raw output.

    Args:
        difference: cond - uncond of the raw outputs, for forecasts.
        uncond: the unconditional raw output, for solvers that read it.
        momentum: what the guidance method has to know at the next row.
    """

    difference: Tensor | None = None
    uncond: Tensor | None = None
    momentum: Tensor | None = None


NOTHING = Aside()


@dataclass(frozen=True)
class Row:
    """One row, ready to run.

    Args:
        denoised: (c_x, c_raw) of the denoised prediction from x and the raw output.
        rebase: from x and the (changed) denoised prediction, the prediction in the table's basis.
        keeps_h0: whether the prediction becomes a tensor.
        makes_base: whether the next base is one of `sums`.
        base: the register that is the next base as it is; None where there is none, or a new one.
        reads: the registers that are inputs of `sums`, whose outputs are the prediction (where it
            is kept and no `denoised_fn` changed it), the next base (where `makes_base`) and the
            next x.
        sums: what the row computes.
        carry: what an edit of x adds to the base, per unit; None where the row reads no base.
        directed: weights of c and d in the prediction that a `Directed` means.
        convert: from x and a raw output to a prediction in the table's basis.
        keeps_u0: whether the unconditional prediction becomes a tensor.
    """

    denoised: tuple[float, float]
    rebase: tuple[float, float]
    keeps_h0: bool
    makes_base: bool
    base: int | None
    reads: tuple[int, ...]
    sums: WeightedSums
    carry: float | None
    directed: tuple[float, float] | None = None
    convert: tuple[float, float] = (0.0, 1.0)
    keeps_u0: bool = False


@dataclass(frozen=True)
class Program:
    """All rows of a table for one prediction.

    Args:
        rows: (K,) rows.
        levels: (K + 1,) levels of the rows and of the result.
        basis: of the table.
        prediction: what the network's raw output means.
        denoised_fn: changes denoised predictions before a row is applied.
        uses_base: whether a row reads the base.
    """

    rows: tuple[Row, ...]
    levels: tuple[At, ...]
    basis: str
    prediction: str
    denoised_fn: DenoisedFn | None = None
    uses_base: bool = False

    @classmethod
    def bind(cls, table: Table, prediction: str, denoised_fn: DenoisedFn | None = None) -> Program:
        """The program of a table.

        Raises:
            PredictionError: the prediction cannot be read at a level of the table.
        """
        binder = _Binder(table, prediction, denoised_fn)
        rows = tuple(binder.row(k) for k in range(table.nfe))
        levels = (v.tolist() for v in (table.alpha, table.sigma, table.time))
        at = tuple(At(*level) for level in zip(*levels, strict=True))
        return cls(rows, at, table.basis, prediction, denoised_fn, table.uses_base)

    def denoised(self, row: int, x: Tensor, raw: Tensor) -> Tensor:
        """The denoised prediction of a row, as the solver uses it.

        Args:
            row: 0 to K - 1.
            x: (batch, …), the sample that the network was called with.
            raw: (batch, …), its output.
        """
        c_x, c_raw = self.rows[row].denoised
        clean = combine([(c_raw, raw), (c_x, x)], x.dtype)
        return clean if self.denoised_fn is None else self.denoised_fn(clean)

    def execute(
        self, state: State, raw: Tensor, noise: Noise | None, uncond: Tensor | None = None
    ) -> tuple[State, Tensor | None]:
        """Apply the state's row.

        Args:
            state: before the row; it is not changed.
            raw: (batch, …), the network's output at its x.
            noise: the source, for rows that draw.
            uncond: (batch, …), its unconditional output; None where the row is not guided.

        Returns:
            The next state, and the denoised prediction where it became a tensor.

        Raises:
            RunError: the row reads a prediction that no row before it kept.
        """
        row, x = self.rows[state.row], state.x
        h0 = clean = None
        if self.denoised_fn is not None:
            h0, clean = self._changed(row, state, raw)
        eps = H1 + len(state.history)
        registers: list[Tensor | None] = [x, raw, state.base, h0, *state.history, None]
        uncond = raw if uncond is None else uncond
        u0 = self._unconditional(row, state, uncond)
        registers += [uncond, u0, *state.unconditional]
        if noise is not None and eps in row.reads:
            registers[eps] = noise(state.row, x)
        out = linear(row.sums, _inputs(state.row, row.reads, registers, eps), x.dtype)
        if row.keeps_h0 and self.denoised_fn is None:
            h0 = registers[H0] = out[0]
            clean = h0 if self.basis == "denoised" else None
        base = out[-2] if row.makes_base else None if row.base is None else registers[row.base]
        history = (h0, *state.history[:-1]) if state.history else ()
        kept = (u0, *state.unconditional[:-1]) if state.unconditional else ()
        return state._replace(
            row=state.row + 1, x=out[-1], base=base, history=history, unconditional=kept
        ), clean

    def _unconditional(self, row: Row, state: State, raw: Tensor) -> Tensor | None:
        """u0 in the table's basis, changed as h0 is; None where it becomes no tensor."""
        if not row.keeps_u0:
            return None
        if self.denoised_fn is not None:
            return self._changed(row, state, raw)[0]
        c_x, c_raw = row.convert
        return combine([(c_raw, raw), (c_x, state.x)], state.x.dtype)

    def _changed(self, row: Row, state: State, raw: Tensor) -> tuple[Tensor, Tensor]:
        """h0 in the table's basis and the denoised prediction, which `denoised_fn` has changed."""
        clean = used = self.denoised(state.row, state.x, raw)
        change, dtype = self.denoised_fn, state.x.dtype
        if isinstance(change, Directed) and not change.consistent and row.directed is not None:
            (c_x, c_raw), (kept, free) = row.denoised, row.directed
            used = combine([(kept, clean), (free * c_x, state.x), (free * c_raw, raw)], dtype)
        if self.basis == "denoised":
            return used, clean
        return combine([(row.rebase[0], state.x), (row.rebase[1], used)], dtype), clean

    def edited(self, state: State, before: Tensor) -> State:
        """`state` with the edit of its x, which was `before`, carried into its base.

        Solvers that correct x from the base (UniPC) would undo the edit else.
        """
        carry = self.rows[state.row].carry
        if carry is None or state.base is None:
            return state
        terms = [(1.0, state.base), (carry, state.x), (-carry, before)]
        return state._replace(base=combine(terms, state.x.dtype))


class _Binder:
    """Makes the rows of a program."""

    def __init__(self, table: Table, prediction: str, denoised_fn: DenoisedFn | None) -> None:
        self.table, self.denoised_fn = table, denoised_fn
        self.x, self.base = table.x.tolist(), table.base.tolist()
        self.alpha, self.sigma = table.alpha.tolist(), table.sigma.tolist()
        c_x, c_raw = table.clean(prediction)
        self.denoised = list(zip(c_x.tolist(), c_raw.tolist(), strict=True))
        self.uses_base = table.uses_base
        self.u = [] if table.u is None else table.u.tolist()

    def row(self, k: int) -> Row:
        (c_x, c_raw), rebase = self.denoised[k], self._rebase(k)
        convert = (rebase[0] + rebase[1] * c_x, rebase[1] * c_raw)
        keeps, sums_h0 = self._keeps(k), False
        sums: list[Terms] = []
        if keeps and self.denoised_fn is None:
            sums, sums_h0 = [((convert[1], RAW), (convert[0], X))], True
        base, moved = self._next_base(k, convert, keeps)
        next_x = _sum(_terms(self.x[k], convert, keeps), self._of_uncond(k, convert))
        reads, numbered = _numbered([*sums, *([base] if base else []), next_x], sums_h0)
        carry = self._carry(k, moved == BASE) if self.uses_base else None
        directed = self._directed(k, rebase) if isinstance(self.denoised_fn, Directed) else None
        return Row(
            (c_x, c_raw), rebase, keeps, bool(base), moved, reads, numbered, carry, directed,
            convert, self._keeps_uncond(k),
        )  # fmt: skip

    def _of_uncond(self, k: int, convert: tuple[float, float]) -> Terms:
        """The terms of unconditional predictions; u0 is read off x and the output where it may be.

        Their registers follow eps: the unconditional output, u0, u1, …
        """
        if not self.u:
            return ()
        place, (newest, *older) = H1 + self.table.history, self.u[k]
        if self._keeps_uncond(k):
            first: Terms = ((newest, place + 1),)
        else:
            first = ((newest * convert[0], X), (newest * convert[1], place))
        rest = tuple((c, place + 2 + i) for i, c in enumerate(older))
        return tuple((c, at) for c, at in (*first, *rest) if c)

    def _keeps_uncond(self, k: int) -> bool:
        """Whether the unconditional prediction has to be a tensor, as in `_keeps`."""
        ages = range(1, len(self.u[0])) if self.u else ()
        later = any(k + age < len(self.u) and self.u[k + age][age] for age in ages)
        return later or bool(self.u and self.denoised_fn is not None)

    def _rebase(self, k: int) -> tuple[float, float]:
        """From x and the denoised prediction to the table's basis."""
        alpha, sigma, basis = self.alpha[k], self.sigma[k], self.table.basis
        if basis == "denoised":
            return 0.0, 1.0
        return 1 / sigma, -(alpha if basis == "noise" else alpha + sigma) / sigma

    def _keeps(self, k: int) -> bool:
        """Whether the prediction has to be a tensor: it is changed, or a later row reads it."""
        later = range(k + 1, min(self.table.nfe, k + self.table.history))
        return self.denoised_fn is not None or any(
            rows[j][2 + j - k] for rows in (self.x, self.base) for j in later
        )

    def _next_base(
        self, k: int, convert: tuple[float, float], keeps: bool
    ) -> tuple[Terms, int | None]:
        """The sum that is the next base, or the register that only moves there.

        The network's own tensor is copied.
        """
        if not self.uses_base:
            return (), None
        terms = _terms(self.base[k], convert, keeps)
        if len(terms) == 1 and terms[0][0] == 1.0 and terms[0][1] != RAW:
            return (), terms[0][1]
        return terms, None

    def _carry(self, k: int, stays: bool) -> float | None:
        """What a unit of an edit of x before row k adds to the base; None where it reads no base.

        A base that `stays` is where the step began: x and it are multiples of the sample there, and
        sums of predictions. One that evolves as x does, SA-Solver's, is at the level of x.
        """
        x, base, first = self.x, self.base, self.table.first_row(self.table.step[k])
        if not base[k][1] or base[k][0] == 1:
            return None
        if not stays and base[k][:2] == x[k][:2]:
            return 1.0
        if not stays or k == first:
            share: float = (1 - base[k][0]) / base[k][1]
            return share
        size, kept = 1.0, 0.0
        for j in range(first, k):
            size, kept = x[j][0] * size + x[j][1] * kept, base[j][0] * size + base[j][1] * kept
        return kept / size if size else None

    def _directed(self, k: int, rebase: tuple[float, float]) -> tuple[float, float] | None:
        """Weights of the changed and the unchanged prediction in the one that the row applies.

        None where the step ends at its own level.
        Such a table's rows are `x' = a·x + b·prediction`, with b = alpha' - a·alpha.
        """
        x, _, h0, *_ = self.x[k]
        a, b = x + h0 * rebase[0], h0 * rebase[1]
        kept, free = self.alpha[k + 1], -a * self.alpha[k]
        return (kept / b, free / b) if b else None


def _inputs(
    row: int, reads: Sequence[int], registers: Sequence[Tensor | None], eps: int
) -> list[Tensor]:
    """The registers that a row reads; what is unconditional follows the noise at `eps`."""
    inputs = []
    for place in reads:
        tensor = registers[place]
        if tensor is None:
            name = _name(place, eps)
            raise RunError(f"row {row} reads {name}, which no row before it writes")
        inputs.append(tensor)
    return inputs


def _terms(row: list[float], convert: tuple[float, float], keeps: bool) -> Terms:
    """Non-zero terms of a table's row; h0 is replaced by x and raw unless it is a tensor."""
    x, base, h0, *rest = row
    sums = [x, 0.0, base, h0, *rest]
    if not keeps:
        sums[X], sums[RAW], sums[H0] = x + h0 * convert[0], h0 * convert[1], 0.0
    return tuple((c, place) for place, c in enumerate(sums) if c != 0) or ((0.0, X),)


def _sum(a: Terms, b: Terms) -> Terms:
    """The terms of two sums, one per register."""
    if not b:
        return a
    total: dict[int, float] = {}
    for c, place in (*a, *b):
        total[place] = total.get(place, 0.0) + c
    return tuple((c, place) for place, c in total.items())


def _numbered(sums: Sequence[Terms], sums_h0: bool) -> tuple[tuple[int, ...], WeightedSums]:
    """The registers to read, and the sums with places among those; h0 may be the first sum."""
    used = {place for terms in sums for c, place in terms if c != 0}
    reads = sorted(used - {H0} if sums_h0 else used) or [X]
    at = {place: i for i, place in enumerate([*reads, *([H0] if sums_h0 else [])])}
    kept = (tuple((c, at[place]) for c, place in terms if c != 0) or ((0.0, 0),) for terms in sums)
    return tuple(reads), WeightedSums(len(reads), tuple(kept))


def _name(place: int, eps: int) -> str:
    """The name of a register, for messages."""
    names = {X: "x", RAW: "raw", BASE: "base", eps: "eps"}
    return names.get(place, f"h{place - H0}" if place < eps else f"u{place - eps - 2}")
