"""A table that several solvers share: which rows are whose, and what passes between them.

A table of one solver has no legs. `tail.splice` joins another solver's rows to it, and these may
read predictions of the rows before. A prediction is kept in the basis of its own leg; that of the
last row before a change is passed on in the basis of the next leg.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from torch import Tensor

from ..errors import ArgumentError, instance, whole

Table: TypeAlias = Any  # `table.Table`, which stands above this file
BASES = ("denoised", "noise", "velocity")


@dataclass(frozen=True)
class Leg:
    """The rows that one solver makes in a table that several share.

    Args:
        row: its first row.
        step: its first step.
        solver: its name.
        grid: the name of its levels.
        basis: what its predictions are kept as.
        order: of convergence.
        reads: rows before it whose predictions it reads, newest first; none where it starts anew.
        formed: rows before it whose predictions became tensors in the table that it was joined to.
    """

    row: int
    step: int
    solver: str
    grid: str
    basis: str
    order: int
    reads: tuple[int, ...] = ()
    formed: tuple[int, ...] = ()


class Legs:
    """The part of a `Table` that knows its legs."""

    legs: tuple[Leg, ...]
    solver: str
    grid: str
    basis: str
    order: int
    x: Tensor
    base: Tensor

    def leg(self, row: int) -> Leg:
        """The leg of a row; a table of one solver is one."""
        here = [leg for leg in self.legs if leg.row <= row]
        return here[-1] if here else Leg(0, 0, self.solver, self.grid, self.basis, self.order)

    def leg_end(self, row: int) -> int:
        """The row where the leg of `row` ends."""
        return min((leg.row for leg in self.legs if leg.row > row), default=len(self.x))

    def reads(self, row: int, rows: Iterable[int]) -> bool:
        """Whether one of `rows`, which come later, reads the prediction of `row`."""
        history = self.x.shape[1] - 3
        ages = [(j, j - row) for j in rows if 0 < j - row < history]
        return any(bool(t[j, 2 + age] != 0) for j, age in ages for t in (self.x, self.base))

    def forms(self, row: int) -> bool:
        """Whether the prediction of a row becomes a tensor for the rows of its own leg."""
        if any(row in leg.formed for leg in self.legs):
            return True
        return self.reads(row, range(row + 1, self.leg_end(row)))

    def passes(self, row: int) -> str | None:
        """The basis in which a row's prediction is passed on to a later leg; None: it is not."""
        if not self.legs:
            return None
        end = self.leg_end(row)
        if not self.reads(row, range(end, len(self.x))):
            return None
        return self.leg(end).basis if end == row + 1 else self.leg(row).basis


def check(table: Table) -> None:
    """Refuse legs that do not follow each other.

    Raises:
        ArgumentError: they do not, or a basis is none.
    """
    if not table.legs:
        return
    rows = [leg.row for leg in table.legs]
    if not _follow(table, rows):
        raise ArgumentError(f"the legs of a table follow each other from row 0, got {rows}")


def _follow(table: Table, rows: list[int]) -> bool:
    """Whether legs that begin at `rows` follow each other, in the bases that there are."""
    if rows[0] != 0 or rows != sorted(set(rows)) or rows[-1] >= table.nfe:
        return False
    older = all(row < leg.row for leg in table.legs for row in (*leg.reads, *leg.formed))
    steps = [leg.step for leg in table.legs] == [table.step[row] for row in rows]
    bases = {leg.basis for leg in table.legs} <= set(BASES)
    return older and steps and bases and table.legs[-1].basis == table.basis


def part(table: Table, start: int, stop: int, first: int) -> dict[str, Any]:
    """The fields of a part of a table that its legs decide.

    Args:
        table: the whole.
        start: the part's first row.
        stop: the row after its last.
        first: its first step.
    """
    kept = []
    for leg in table.legs:
        if leg.row < stop and table.leg_end(leg.row) > start:
            rows = {
                key: tuple(row - start for row in getattr(leg, key) if row >= start)
                for key in ("reads", "formed")
            }
            place = {"row": max(leg.row - start, 0), "step": max(leg.step - first, 0)}
            kept.append(replace(leg, **place, **rows))
    last = kept[-1]
    values = {key: getattr(last, key) for key in ("solver", "grid", "basis", "order")}
    return {**values, "legs": tuple(kept) if len(kept) > 1 else ()}


def plain(legs: Iterable[Leg]) -> list[dict[str, Any]]:
    """Legs as plain data."""
    lists = ("reads", "formed")
    return [{**vars(leg), **{key: list(getattr(leg, key)) for key in lists}} for leg in legs]


def read(data: Any) -> tuple[Leg, ...]:
    """Legs from plain data.

    Raises:
        ArgumentError: it is none.
    """
    return tuple(_leg(one) for one in instance("legs", data, list, "a list of legs"))


def _leg(data: Any) -> Leg:
    data = instance("leg", data, Mapping, "a dictionary")
    if set(data) != {field.name for field in fields(Leg)}:
        raise ArgumentError(f"a leg has other keys than {sorted(data)}")
    values: dict[str, Any] = {
        key: whole(key, data[key], 0, 2**31) for key in ("row", "step", "order")
    }
    values |= {
        key: tuple(whole(key, row, 0, 2**31) for row in instance(key, data[key], list, "a list"))
        for key in ("reads", "formed")
    }
    values |= {key: instance(key, data[key], str, "a name") for key in ("solver", "grid", "basis")}
    return Leg(**values)
