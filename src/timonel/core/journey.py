"""A recorded journey, evaluated again: its log densities under this or another policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ArgumentError, RunError, function
from . import border
from .process import At
from .program import Program, State
from .table import Table


def log_probs(
    program: Program, table: Table, xs: Sequence[Tensor], denoise: Callable[[Tensor, At], Tensor]
) -> Tensor:
    """The log density of every draw of a recorded journey; it is differentiable.

    Args:
        program: of the table.
        table: that draws noise in some rows.
        xs: K + 1 samples (batch, …): what the network saw at every row, and the result.
        denoise: `denoise(x, level)`, the network that is evaluated.

    Returns:
        (rows that draw, batch), summed over all dimensions of a sample.

    Raises:
        ArgumentError: another number of samples, or none.
        RunError: no row draws noise.
    """
    function("denoise", denoise, "lambda x, level: network(x, level.time)", 2)
    if len(xs) != table.nfe + 1:
        raise ArgumentError(
            f"the journey of {table.nfe} rows has {table.nfe + 1} samples, the start of each row"
            f" and the result, got {len(xs)}"
        )
    check_density(table)
    drawing = [row for row, one in enumerate(program.rows) if one.std]
    if not drawing:
        raise RunError(
            f"{table.solver!r} draws no noise here, so a journey has no density: choose a"
            " stochastic sampler, e.g. Sampler('ddim', options={'eta': 1})"
        )
    for x in xs:
        border.tensor("a sample of the journey", x)
    first = _begin(table, drawing[0])
    base = xs[first] if program.uses_base else None
    state = State(first, xs[first], base, (None,) * (table.history - 1))
    each = []
    for row in range(first, drawing[-1] + 1):
        raw = border.output(denoise(state.x, program.levels[row]), state.x)
        if program.rows[row].std:
            each.append(program.log_prob(state, raw, xs[row + 1]))
        state = program.follow(state, raw, xs[row + 1])
    return torch.stack(each)


def check_density(table: Table) -> None:
    """Raise `RunError` for a table whose draws depend on the unconditional output too."""
    if table.reads_uncond:
        raise RunError(
            f"{table.solver!r} reads the unconditional prediction, and no density is computed of"
            f" that: choose {table.solver.removesuffix('_cfg_pp')!r}"
        )


def _begin(table: Table, row: int) -> int:
    """The last row from which on `row` and all later ones can be computed anew."""
    for step in range(table.step[row], 0, -1):
        if not table.remembers(step):
            return table.first_row(step)
    return 0
