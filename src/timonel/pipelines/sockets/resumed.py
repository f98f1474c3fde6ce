"""Whether a run that was begun in another call goes on in the place of a fresh one."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.run import Run
from ...core.table import Table
from ...errors import ArgumentError, RunError

ROUNDING = 1e-9  # between two versions or machines that compute one table
FIELDS = ("x", "base", "alpha", "sigma", "time")


def adopt(run: Run, fresh: Run) -> None:
    """Let `run` go on in the place of `fresh`, with guidance and hooks of that one.

    Raises:
        ArgumentError: their tables or predictions differ, or the pipeline cannot guide so. Then
            `run` is as it was.
    """
    old, new = run.table, fresh.table
    if not _alike(old, new):
        raise ArgumentError(differs(old, new))
    if run.prediction != fresh.prediction:
        raise ArgumentError(
            f"the run to resume has predictions of kind {run.prediction!r}, this model"
            f" {fresh.prediction!r}: resume it with the model it was begun with"
        )
    run.adopt(fresh)


def differs(old: Table, new: Table) -> str:
    """The message for a run of table `old` that cannot go on in a call of table `new`."""
    same = (old.solver, old.grid, old.nfe) == (new.solver, new.grid, new.nfe)
    return (
        f"the run to resume is {old.solver!r} on {old.grid!r} with {old.steps} steps, this call"
        f" is {new.solver!r} on {new.grid!r} with {new.steps}: give the same sampler and steps,"
        f" or leave both out{_difference(old, new) if same else ''}"
    )


def begins(old: Table, new: Table) -> bool:
    """Whether the first rows of a run's table are rows of a list's, but for rounding.

    Args:
        old: of the run, which may be a part of the list and may have a tail.
        new: of the whole list.
    """
    rows, first = old.leg_end(0) if old.legs else old.nfe, old.first
    if first + rows > new.nfe or (old.seen is None) != (new.seen is None):
        return False
    here, there = slice(0, rows), slice(first, first + rows)
    return all(
        _near(getattr(old, field)[here], getattr(new, field)[there])
        for field in ("alpha", "sigma", "time")
    )


def _alike(old: Table, new: Table) -> bool:
    """Whether two tables are one but for the rounding of another version or machine."""
    if old.x.shape != new.x.shape or (old.seen is None) != (new.seen is None):
        return False
    return all(_near(getattr(old, field), getattr(new, field)) for field in FIELDS)


def _near(old: Tensor, new: Tensor) -> bool:
    return torch.allclose(old, new, rtol=ROUNDING, atol=ROUNDING)


def is_part(old: Table, new: Table) -> bool:
    """Whether `old` is of some rows of `new` only, by their times."""
    start = old.first - new.first
    rows = new.time[start : start + old.nfe] if start >= 0 else new.time[:0]
    return len(rows) == old.nfe < new.nfe and torch.allclose(old.time[:-1], rows, rtol=ROUNDING)


def _difference(old: Table, new: Table) -> str:
    """In what two tables of one name differ."""
    if (old.seen is None) != (new.seen is None):
        return (
            "; one of them keeps its samples as x0 + sigma·noise, as classes of timonel.compat do"
        )
    if not _near(old.time, new.time):
        row = int((old.time - new.time).abs().argmax())
        return (
            f"; their levels differ, call {row} is at time {old.time[row]:.6g} there and"
            f" {new.time[row]:.6g} here"
        )
    return (
        "; their coefficients differ: the options of the sampler are others, or its formula is, in"
        " another version"
    )


def check_handover(run: Run, sample: Tensor) -> None:
    """Check that a loop that only turns can be handed the run's sample in the place of its own.

    Raises:
        RunError: the run has not begun.
        ArgumentError: the two samples have other shapes.
    """
    if not run.started:
        raise RunError(
            "this pipeline steps the sound of its video with a copy of its scheduler, and that"
            " copy's run was not kept: begin a new call, without resume="
        )
    if sample.shape != run.latents.shape:
        raise ArgumentError(
            f"the run to resume has samples {tuple(run.latents.shape)}, this call"
            f" {tuple(sample.shape)}: give the size and the number of pictures that it was begun"
            " with"
        )
