"""A table bound to a prediction: for every row, which tensors are combined with which Python floats.

The conversion of the raw output to the table's basis is linear, so it is folded into the row: a
row reads x, the raw output, the base and the remembered predictions. A prediction is made a tensor
of its own only where a later row reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .prediction import coefficients
from .process import Level
from .table import Table

Terms = tuple[tuple[float, str], ...]  # coefficient and register; "raw" is the network's output


@dataclass(frozen=True)
class Row:
    """One row, ready to run. `convert` makes h0 and `denoised` the clean prediction, from x and raw."""

    convert: tuple[float, float]
    denoised: tuple[float, float]
    keeps_h0: bool
    x: Terms
    base: Terms
    carry: float | None  # what an edit of x must add to base, per unit; None where base forgets


@dataclass(frozen=True)
class Program:
    """All rows of a table for one prediction kind. `shaped`: predictions are changed before the row is applied."""

    rows: tuple[Row, ...]

    @classmethod
    def bind(cls, table: Table, prediction: str, *, shaped: bool = False) -> Program:
        """Raises `PredictionError` where the prediction cannot be read at a level of the table."""
        names = table.registers
        x, base, uses_base = table.x.tolist(), table.base.tolist(), table.uses_base
        levels = Level(table.alpha[:-1], table.sigma[:-1], table.time[:-1])
        to_clean = zip(*(c.tolist() for c in coefficients(prediction, levels)), strict=True)
        rows = []
        for k, (c_x, c_raw) in enumerate(to_clean):
            convert = (c_x, c_raw)
            if table.basis == "noise":
                alpha, sigma = float(table.alpha[k]), float(table.sigma[k])
                convert = ((1 - alpha * c_x) / sigma, -alpha * c_raw / sigma)
            later = [x[j][names.index(f"h{j - k}")] for j in range(k + 1, min(table.nfe, k + table.history))]
            later += [base[j][names.index(f"h{j - k}")] for j in range(k + 1, min(table.nfe, k + table.history))]
            keeps = shaped or any(later)
            a_x, a_b = base[k][0], base[k][1]
            rows.append(
                Row(
                    convert,
                    (c_x, c_raw),
                    keeps,
                    _terms(names, x[k], convert, keeps),
                    _terms(names, base[k], convert, keeps) if uses_base else (),
                    (1 - a_x) / a_b if uses_base and a_b and a_x != 1 else None,
                )
            )
        return cls(tuple(rows))


def _terms(names: tuple[str, ...], row: list[float], convert: tuple[float, float], keeps: bool) -> Terms:
    """Non-zero terms of a row; h0 is replaced by x and raw unless it is a tensor of its own."""
    sums = dict(zip(names, row, strict=True))
    if not keeps:
        c = sums.pop("h0")
        sums["x"] += c * convert[0]
        sums["raw"] = c * convert[1]
    return tuple((c, name) for name, c in sums.items() if c != 0) or ((0.0, "x"),)
