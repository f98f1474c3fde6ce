"""Which rows, levels and places a part of a scheduler's list means, as pipelines slice it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...core import solvers
from ...core.grids import Grid
from ...core.process import Level, Process
from ...core.sampler import Sampler
from ...core.table import Table
from ...errors import ArgumentError

SAME = 1e-5  # relative distance of two levels that float32 lists do not tell apart


def whole(sampler: Sampler, rows: Sequence[int], start: int, stop: int) -> None:
    """Check that a sampler that is made for a whole journey runs all of its rows.

    Args:
        sampler: that was chosen.
        rows: the step of every row.
        start: the first row to run.
        stop: the row after the last.

    Raises:
        ArgumentError: it is to run a part.
    """
    if "skip" in sampler.options:
        raise ArgumentError(
            f"skip={sampler.options['skip']!r} leaves out steps of a whole journey, and this call"
            f" is to run rows {start} to {stop} of {len(rows)} alone: leave skip out (strength"
            " below 1, denoising_start, denoising_end)"
        )
    if sampler.fitted is not None:
        raise ArgumentError(
            refused(sampler, f"this call is to run rows {start} to {stop} of its {len(rows)} alone")
        )


def refused(sampler: Sampler, asks: str) -> str:
    """The message of a fitted sampler that is to run a part of its levels.

    Args:
        sampler: the fitted one.
        asks: what asks for a part.

    Returns:
        The message, with what to do.
    """
    return (
        f"sampler {sampler.name!r} was fitted for a whole journey of {sampler.steps} steps, and"
        f" {asks}: choose a named sampler where a picture is only partly made anew (strength below"
        " 1, denoising_start, denoising_end)"
    )


def at(table: Table, process: Process, times: torch.Tensor) -> Level:
    """The levels of times.

    Args:
        table: a fitted one may give the network other times than the process: then these count.
        process: of the model.
        times: (n,).

    Returns:
        A level for each.
    """
    from ...core.fitted.provenance import levels

    listed, slack = table.time[:-1], SAME * table.time.abs().max()  # of a float32 list
    near, row = (listed[None] - times[:, None]).abs().min(1)
    moved = bool(((listed - levels(process, table).time[:-1]).abs() > slack).any())
    if moved and bool((near <= slack).all()):
        return Level(table.alpha[row], table.sigma[row], listed[row])
    return process.at_time(times)


def alone(table: Table, session: Any) -> Table:
    """The table of a scheduler, which alone gets what the pipeline has combined.

    Raises:
        ArgumentError: it reads the unconditional output, and no helm's gate is there to give it.
    """
    if table.reads_uncond and session.request.context is None:
        raise ArgumentError(
            f"{table.solver!r} reads the unconditional output, and a scheduler gets what the"
            " pipeline has combined: call the pipeline through tm.Helm(pipe), or take"
            f" {table.solver.removesuffix('_cfg_pp')!r}"
        )
    return table


class Order(int):
    """`Scheduler.order`: the network calls of a step; times a step, the place where that begins.

    Pipelines take their list from `timesteps[t_start * scheduler.order:]`. Where steps have unlike
    numbers of calls, only the table knows which entry that is. The number is 2 only where every
    second entry begins a step, for SDXL's refiner moves its beginning by one entry then.
    """

    first_rows: tuple[int, ...]
    rows: int

    @classmethod
    def of(cls, table: Table, grid: Grid) -> Order:
        """The order of a table.

        Args:
            table: on `grid`.
            grid: of the whole list.

        Returns:
            The usual number of calls a step, 1 where the steps are unlike.
        """
        counts = Counter(table.step)
        usual = counts[max(table.steps - 2, 0)]
        alike = all(counts[k] == usual for k in range(table.steps - 1))
        order = cls(usual if alike else 1)
        order.first_rows, order.rows = solvers.first_rows(table, grid), table.nfe
        return order

    def __mul__(self, step: object) -> Any:
        if isinstance(step, bool) or not isinstance(step, int):
            return NotImplemented
        known = len(self.first_rows)
        if 0 <= step < known:
            return self.first_rows[step]
        return self.rows + (step - known) * int(self) if step > 0 else step * int(self)

    __rmul__ = __mul__

    def __reduce__(self) -> Any:
        return _order, (int(self), self.first_rows, self.rows)


def _order(number: int, first_rows: tuple[int, ...], rows: int) -> Order:
    order = Order(number)
    order.first_rows, order.rows = first_rows, rows
    return order


def place(listed: torch.Tensor, times: torch.Tensor) -> int | None:
    """Where `times` stand in the list as a part of it.

    Args:
        listed: times of the list (n,).
        times: of a slice (m,).

    Returns:
        The place of the first; None where they are no part of the list.
    """
    if times.ndim != 1 or not 0 < len(times) <= len(listed):
        return None
    every, part = listed.double(), times.to("cpu", torch.float64)
    return next(
        (
            k
            for k in range(len(every) - len(part) + 1)
            if torch.equal(every[k : k + len(part)], part)
        ),
        None,
    )


def between(grid: Grid, table: Table, start: int, stop: int) -> Grid:
    """The levels of some rows.

    Args:
        grid: of the whole list.
        table: on `grid`.
        start: the first row, which may lie inside a step.
        stop: the row after the last.

    Returns:
        Their levels and the one where the last row ends.
    """
    top, low = table.level(start), table.level(stop)
    inside = (grid.lam > top.lam + 1e-9) & (grid.lam < low.lam - 1e-9)
    alpha, sigma, time = (
        torch.cat([a.reshape(1), values[inside], b.reshape(1)])
        for a, values, b in zip(top, (grid.alpha, grid.sigma, grid.time), low, strict=True)
    )
    return replace(grid, alpha=alpha, sigma=sigma, time=time)
