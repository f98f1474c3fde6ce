"""The list of timesteps of a run with a tail, see `core.tail`.

While a run is driven its table may become another one. The loop over the list goes on with the rows
of that; a pipeline whose loop counts its turns is called again, and gets the new list. A run to
resume has a tail already, or the call orders one: then the list has its rows from the beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ...core import tail
from ...core.process import Process
from ...core.table import Table
from ...errors import ArgumentError, TimonelError
from ..piped import Stepped
from ..session import Phase, Session
from . import parts
from .listing import Listing
from .resumed import begins, differs
from .timesteps import Timesteps

if TYPE_CHECKING:
    from ...core.run import Run

Scheduler: TypeAlias = Any  # `scheduler.Scheduler`, which stands above this file


def show(scheduler: Scheduler, device: Any) -> None:
    """Let a scheduler show the present list.

    Args:
        scheduler: of the list.
        device: of `timesteps`.
    """
    session = scheduler.session
    listing = session.listing
    table = listing.table
    scheduler._timesteps = Timesteps.of(listing.times.to(device), session, listing.times)
    ratio = table.sigma if scheduler.process.kind == "flow" else table.sigma / table.alpha
    scheduler.sigmas = ratio.to(torch.float32)
    scheduler.order = parts.Order.of(table, listing.grid)
    scheduler.num_inference_steps, scheduler._begin_index = table.steps, None


def listed(session: Session, table: Table, process: Process) -> Table:
    """The table of a list: of a run to resume that has a tail, or gets one, with that.

    Args:
        session: of the call.
        table: what the sampler makes of the list.
        process: of its levels.

    Raises:
        TimonelError: the run to resume cannot go on so.
    """
    resume = session.request.resume if session.phase is Phase.RESUME else None
    session.begun = table
    if resume is None:
        return table
    if session.request.tail is not None:
        resume = resume.branch()
        _order_tail(session, resume, process)
    if not resume.table.legs and session.request.tail is None:
        return table
    both = tail.behind(table, resume.table)
    session.added = both.steps - table.steps
    return both


def turned(session: Session, run: Run, live: bool) -> None:
    """Let the list have the rows of a run with a tail.

    Args:
        session: of the call.
        run: of it, whose table has become another one; else to resume.
        live: whether it goes on already.

    Raises:
        TimonelError: a run to resume was not begun with these levels, or cannot go on so.
    """
    if live:
        _follow(session, run)
    else:
        _resume_with_tail(session, run)


def _resume_with_tail(session: Session, run: Run) -> None:
    """Give a run to resume the tail that the call asks for.

    Args:
        session: of the call.
        run: to resume.

    Raises:
        ArgumentError: it was not begun with the levels of this call.
        TimonelError: it cannot go on so; it is as it was.
    """
    table = session.begun
    if table is not None and (run.table.legs or session.request.tail is not None):
        if not begins(run.table, table):
            raise ArgumentError(differs(run.table, table))
        if session.request.tail is not None:
            assert session.listing is not None
            _order_tail(session, run, session.listing.grid.process)


def _order_tail(session: Session, run: Run, process: Process) -> None:
    """Give a run the tail that the call asks for, with the call's process and seeds."""
    known, driver = run.process, run.driver
    run.on(process)
    run.drive_by(session.driver or Stepped(session))
    try:
        run.tail(**session.request.tail or {})
    except TimonelError:
        run.on(known)
        run.drive_by(driver)
        raise


def _follow(session: Session, run: Run) -> None:
    """Let the list have the rows of a run whose table has become another one.

    Args:
        session: of the call.
        run: of it.
    """
    listing, scheduler, first = session.listing, session.scheduler, session.rows[0]
    assert listing is not None
    table = tail.behind(listing.table, run.table, first)
    more = table.steps - listing.table.steps
    session.added += more
    if session.bar is not None and getattr(session.bar, "total", None) is not None:
        session.bar.total += more
        session.bar.refresh()
    session.listing = Listing.of(listing.sampler, listing.grid, table, scheduler.process)
    session.rows, session.table = (first, first + run.table.nfe), run.table
    show(scheduler, scheduler.timesteps.device)
