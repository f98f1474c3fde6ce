"""A tail: the rows of a table up to a step, then those of another solver.

**The levels.** A tail begins where the run stands. Its levels are those that were to come, a list
of sigmas, or the last part of a named grid: of the grid of N steps whose level with `steps` steps
to come lies nearest to the present one. So a tail with the run's own sampler, grid and steps is the
run's own table.

**The history.** The solver is compiled on [the levels of older predictions, the present level, the
levels to come], and of its rows those from the present level on are joined to the old ones, with
columns such that h1, h2, … are predictions of the old rows. It reads what the run holds: the newest
prediction always, for the sample of its call is known too, and older ones in its own basis. They
have to lie at ever noisier levels, which a second call of a step does not; and where slopes are
kept, fresh noise ends them, for it is no part of what they extrapolate. Of the possible numbers of
older predictions the one is taken of which the solver reads most. What it cannot read it does
without, as at the beginning of a run: `Table.legs` says what was read.

**The base** of a solver that corrects its last step (UniPC, SA-Solver) is read only by a tail of
the same solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, RunError, TimonelError
from . import grids, solvers
from .checkpoints import Point
from .grids import Grid
from .legs import Leg
from .program import Program
from .sampler import Sampler
from .table import Table, registers
from .tail_levels import SNAP, Turn, levels, named, through


def splice(turn: Turn, sampler: Sampler) -> Table:
    """The table of a run that goes on with another sampler.

    Args:
        turn: where it turns.
        sampler: with `steps` still to come. Without steps, grid, sigmas and times the levels are
            those that were to come.

    Returns:
        The old rows, and those of the sampler.

    Raises:
        TimonelError: no step is left, or the sampler cannot go on from there.
    """
    if turn.row >= turn.table.nfe:
        raise RunError(
            f"no step is left of {turn.table.steps}, so there is no other way: go back first, e.g."
            f" run.rewind({max(turn.table.steps - 1, 0)})"
        )
    _check_whole(sampler)
    same = _whole_table(turn, sampler)
    if same is not None:
        return same
    ahead = levels(turn, sampler)
    return _joined(turn, sampler, ahead)


def _check_whole(sampler: Sampler) -> None:
    """Refuse a sampler that is made for a whole journey, or a part of one."""
    if sampler.fitted is not None:
        raise ArgumentError(
            f"sampler {sampler.name!r} is fitted as a whole journey, so it is no tail: name another"
            " sampler, e.g. tail('dpmpp_2m')"
        )
    if sampler.cuts:
        key, value = next(iter(sampler.cuts.items()))
        raise ArgumentError(
            f"{key}={value!r} chooses a part of a journey, and a tail begins where the run stands:"
            " leave it out, steps= says how many steps are still to come"
        )


# -- the rows --------------------------------------------------------------------------------------
def _whole_table(turn: Turn, sampler: Sampler) -> Table | None:
    """The whole table of a sampler that has made the rows so far; None where it has not.

    What a solver does at a step may depend on its place in the whole journey.
    """
    last, table = turn.last, turn.table
    if last is None or not continues(turn, sampler) or sampler.sigmas or sampler.times:
        return None
    if sampler.grid is None:
        return table
    left = sampler.steps or turn.left
    for total in ("its own", "nearest"):
        try:
            own = last.on(turn.process).steps
            steps = own if total == "its own" else named(turn, sampler)[0].steps
            whole = replace(sampler, steps=steps, **last.cuts).compile(turn.process)
        except TimonelError:
            continue
        if whole.steps - turn.step == left and _begins(whole, table, turn.row):
            return whole
    return None


def continues(turn: Turn, sampler: Sampler) -> bool:
    """Whether it is the solver of the rows before, with the same options."""
    last = turn.last
    return last is not None and last.fitted is None and (
        (last.name, dict(last.options)) == (sampler.name, dict(sampler.options))
    )  # fmt: skip


def _begins(whole: Table, table: Table, row: int) -> bool:
    """Whether a table begins with the rows of another one up to `row`."""
    if whole.nfe <= row or whole.x.shape[1] != table.x.shape[1] or table.legs:
        return False
    if whole.step[: row + 1] != table.step[: row + 1] or whole.basis != table.basis:
        return False
    if (whole.seen is None) != (table.seen is None) or whole.first != table.first:
        return False
    rows = all(torch.equal(getattr(whole, k)[:row], getattr(table, k)[:row]) for k in ("x", "base"))
    return rows and all(
        torch.equal(getattr(whole, key)[: row + 1], getattr(table, key)[: row + 1])
        for key in ("alpha", "sigma", "time")
    )


@dataclass(frozen=True)
class _Candidate:
    """A solver compiled behind some older predictions.

    Args:
        table: of the composite grid.
        begin: its first row at the present level.
        older: the rows of the run's table whose levels come before, oldest first.
        reads: those of them that it reads, newest first.
    """

    table: Table
    begin: int
    older: tuple[int, ...]
    reads: tuple[int, ...]


def _joined(turn: Turn, sampler: Sampler, ahead: Grid) -> Table:
    """The old rows, and the sampler's on the levels to come."""
    best: _Candidate | None = None
    for older in _histories(turn, sampler, ahead):
        candidate = _candidate(turn, sampler, ahead, older)
        if candidate is not None and (best is None or len(candidate.reads) > len(best.reads)):
            best = candidate
    if best is None:
        raise ArgumentError(
            f"{sampler.name!r} cannot begin at sigma/alpha {grids.ratio(turn.present):.6g}"
        )
    return _concatenated(turn, best)


def _histories(turn: Turn, sampler: Sampler, ahead: Grid) -> list[tuple[int, ...]]:
    """The older rows that may be read, oldest first: none, the newest, the newest two and so on."""
    if "skip" in sampler.options:  # counts the steps of its table
        return [()]
    table, row = turn.table, turn.row
    rows: list[int] = []
    cleanest = ahead[0].lam
    for old in range(row - 1, max(row - table.history, -1), -1):
        if old == row - 1 and not turn.newest:
            continue
        if bool(table.level(old).lam < cleanest) and (old == row - 1 or _held(table, old, row)):
            rows.insert(0, old)
            cleanest = table.level(old).lam
    if row and turn.newest and table.history == 1 and bool(table.level(row - 1).lam < cleanest):
        rows = [row - 1]
    return [tuple(rows[len(rows) - count :]) for count in range(len(rows) + 1)]


def _held(table: Table, old: int, row: int) -> bool:
    """Whether a run at `row` holds the prediction of an older row."""
    return row - old < table.history and (table.forms(old) or table.passes(old) is not None)


def _candidate(
    turn: Turn, sampler: Sampler, ahead: Grid, older: tuple[int, ...]
) -> _Candidate | None:
    """The sampler behind some older predictions; None where it reads what is not there."""
    both = [*(turn.table.level(row) for row in older), *(ahead[k] for k in range(len(ahead)))]
    grid = through(both, turn.process, ahead.name, _slopes(turn, older))
    for options in _variants(turn, sampler, len(older)):
        try:
            table = solvers.make(
                sampler.name, grid, before=max(turn.step - len(older), 0), **options
            )
            begin = solvers.first_rows(table, grid)[len(older)] if older else 0
        except TimonelError:
            if older:
                continue
            raise
        candidate = _checked(turn, sampler, _Candidate(table, begin, older, ()))
        if candidate is not None:
            return candidate
    return None


def _slopes(turn: Turn, older: tuple[int, ...]) -> str | None:
    """The coordinates in which the older slopes are kept, where more than the newest is read."""
    bases = {turn.table.passes(row) or turn.table.leg(row).basis for row in older[:-1]}
    return next(iter(bases - {"denoised"}), None) if len(bases) == 1 else None


def _variants(turn: Turn, sampler: Sampler, older: int) -> list[dict[str, Any]]:
    """The options of the sampler behind so many steps, best first."""
    options, spec = sampler.solver_options, solvers.find(sampler.name)
    left = sampler.steps or turn.left
    order = options.get("order")
    if isinstance(order, str) and len(order) == left:  # of the steps to come
        options = {**options, "order": "1" * turn.step + order}
    if "s_churn" in (*options, *spec.options):  # the sample is not raised above where it is
        top = grids.ratio(turn.present) * (1 - SNAP)
        options = {**options, "s_tmax": min(float(options.get("s_tmax", top)), top)}
    if "uncorrected" not in spec.options or not older:
        return [options]
    alone = [*options.get("uncorrected", ()), turn.step - 1]
    return [options, {**options, "uncorrected": alone}]


def _checked(turn: Turn, sampler: Sampler, candidate: _Candidate) -> _Candidate | None:
    """The candidate with the rows that it reads; None where the run cannot give them."""
    table, begin, older = candidate.table, candidate.begin, candidate.older
    if any(bool(a != b) for a, b in zip(table.level(begin), turn.present, strict=True)):
        return None
    starts = {table.first_row(step): row for step, row in enumerate(older)}
    reads: set[int] = set()
    if _reads_base(candidate) and not _keeps_base(turn, sampler, candidate):
        return None
    if _reads_older_uncond(candidate):
        return None
    for row in range(begin, table.nfe):
        x, base = table.x[row], table.base[row]
        for age in range(row - begin + 1, table.history):
            if bool(x[2 + age] != 0) or bool(base[2 + age] != 0):
                if row - age not in starts:
                    return None
                reads.add(starts[row - age])
    old = tuple(sorted(reads, reverse=True))
    return replace(candidate, reads=old) if _readable(turn, sampler, table.basis, old) else None


def _reads_older_uncond(candidate: _Candidate) -> bool:
    """Whether its rows read unconditional predictions from before them, which no run holds."""
    u = candidate.table.u
    if u is None:
        return False
    return any(
        bool((u[row, row - candidate.begin + 1 :] != 0).any())
        for row in range(candidate.begin, min(candidate.table.nfe, candidate.begin + u.shape[1]))
    )


def _reads_base(candidate: _Candidate) -> bool:
    """Whether its rows read a base from before them."""
    for row in range(candidate.begin, candidate.table.nfe):
        if bool(candidate.table.x[row, 1] != 0):
            return True
        if bool(candidate.table.base[row, 1] == 0):
            return False
    return False


def _keeps_base(turn: Turn, sampler: Sampler, candidate: _Candidate) -> bool:
    """Whether the run holds the base that the solver would have left."""
    known = turn.table.uses_base and candidate.older[-1:] == (turn.row - 1,)
    return known and continues(turn, sampler)


def _readable(turn: Turn, sampler: Sampler, basis: str, rows: tuple[int, ...]) -> bool:
    """Whether the predictions of these rows can be had in a basis, and extrapolated."""
    table = turn.table
    for row in rows:
        if row != turn.row - 1 and (table.passes(row) or table.leg(row).basis) != basis:
            return False
        noise = table.x[row : turn.row, -1] != 0
        if basis != "denoised" and bool(noise.any()) and not continues(turn, sampler):
            return False
    return True


def _concatenated(turn: Turn, candidate: _Candidate) -> Table:
    """One table of both."""
    old, new, row = turn.table, candidate.table, turn.row
    shift = row - candidate.begin  # of a row of the new table
    ages = [[row - one + k for one in candidate.older] for k in range(new.nfe - candidate.begin)]
    width = max(old.history, new.history, 1 + max((a for age in ages for a in age), default=0))
    names = registers(width)
    joined = {key: torch.cat([getattr(old, key)[:row], getattr(new, key)[candidate.begin :]])
              for key in ("alpha", "sigma", "time")}  # fmt: skip
    rows = {
        key: torch.cat([
            _columns(getattr(old, key)[:row], old.registers, names),
            _recolumned(getattr(new, key), candidate, shift, names),
        ])
        for key in ("x", "base")
    }  # fmt: skip
    _rest_bases(rows["base"], row, old.uses_base, bool((new.x[candidate.begin :, 1] != 0).any()))
    first = new.step[candidate.begin]
    step = (*old.step[:row], *(turn.step + k - first for k in new.step[candidate.begin :]))
    step_rows = new.nfe - candidate.begin
    u = None if new.u is None else new.u[candidate.begin :]
    seen = None
    if old.seen is not None and new.seen is not None:
        seen = torch.cat([old.seen[:row], new.seen[candidate.begin :]])
    table = Table(
        new.solver, new.grid, new.basis, new.order, **joined, step=step, **rows,
        first=old.first, seen=seen, legs=_legs(turn, candidate),
        u=_unconditional((old.u, row), (u, step_rows)),
    )  # fmt: skip
    return _narrowed(table, old.history)


def _legs(turn: Turn, candidate: _Candidate) -> tuple[Leg, ...]:
    """The legs of both; one that ends where it begins is left out."""
    old, new, row = turn.table, candidate.table, turn.row
    if not row:
        return ()
    kept = [leg for leg in old.legs if leg.row < row] or [old.leg(0)]
    formed = tuple(k for k in range(max(row - old.history, 0), row) if old.forms(k))
    return (
        *kept,
        Leg(row, turn.step, new.solver, new.grid, new.basis, new.order, candidate.reads, formed),
    )


def _unconditional(*parts: tuple[Tensor | None, int]) -> Tensor | None:
    """The coefficients of unconditional predictions of rows one after the other.

    Args:
        parts: those of each part and its number of rows; None where its solver reads none.
    """
    width = max((u.shape[1] for u, _ in parts if u is not None), default=0)
    if not width:
        return None
    joined = torch.zeros(sum(rows for _, rows in parts), width, dtype=torch.float64)
    first = 0
    for u, rows in parts:
        if u is not None:
            joined[first : first + rows, : u.shape[1]] = u[:rows]
        first += rows
    return joined


def _columns(rows: Tensor, names: Sequence[str], wide: Sequence[str]) -> Tensor:
    """The same coefficients among more registers."""
    out = rows.new_zeros(len(rows), len(wide))
    for column, name in enumerate(names):
        out[:, list(wide).index(name)] = rows[:, column]
    return out


def _recolumned(rows: Tensor, candidate: _Candidate, shift: int, wide: Sequence[str]) -> Tensor:
    """The rows from the present level on, whose older predictions are those of the run's rows."""
    table, begin = candidate.table, candidate.begin
    out = _columns(rows[begin:], table.registers, wide)
    starts = {table.first_row(step): row for step, row in enumerate(candidate.older)}
    for k in range(len(out)):
        older = range(k + 1, table.history)  # ages that reach before the present level
        moved = {shift + begin + k - starts[begin + k - age]: rows[begin + k, 2 + age]
                 for age in older if begin + k - age in starts}  # fmt: skip
        out[k, [2 + age for age in older]] = 0.0
        for age, value in moved.items():
            out[k, 2 + age] = value
    return out


def _rest_bases(base: Tensor, row: int, old: bool, new: bool) -> None:
    """Where only one of the two uses the base, the other's rows let it be their sample."""
    if old == new:
        return
    idle = slice(row, None) if old else slice(0, row)
    base[idle] = 0.0
    base[idle, 0] = 1.0


def _narrowed(table: Table, least: int) -> Table:
    """The table without columns of old predictions that nothing reads."""
    used = max(
        (age for age in range(table.history)
         if bool((table.x[:, 2 + age] != 0).any() or (table.base[:, 2 + age] != 0).any())),
        default=0,
    )  # fmt: skip
    width = max(used + 1, least)
    names = registers(width)
    places = [list(table.registers).index(name) for name in names]
    return replace(table, x=table.x[:, places], base=table.base[:, places])


def behind(whole: Table, part: Table, first: int | None = None) -> Table:
    """The first rows of a table, and behind them those of a run of its rows from `first` on.

    Args:
        whole: of all rows.
        part: of the run, which may have a tail.
        first: the row of the whole where the run began; None: as the part says.

    Returns:
        The table of both.
    """
    row = part.first - whole.first if first is None else first
    if not row:
        return replace(part, first=whole.first)
    names = registers(max(whole.history, part.history))
    arrays: dict[str, Any] = {
        key: torch.cat([getattr(whole, key)[:row], getattr(part, key)])
        for key in ("alpha", "sigma", "time")
    }
    arrays |= {
        key: torch.cat([
            _columns(getattr(whole, key)[:row], whole.registers, names),
            _columns(getattr(part, key), part.registers, names),
        ])
        for key in ("x", "base")
    }  # fmt: skip
    step = whole.step[row]
    seen = None
    if whole.seen is not None and part.seen is not None:
        seen = torch.cat([whole.seen[:row], part.seen])
    legs = tuple(
        replace(
            leg, row=leg.row + row if leg.row else 0, step=leg.step + step if leg.row else 0,
            reads=tuple(k + row for k in leg.reads), formed=tuple(k + row for k in leg.formed),
        )
        for leg in part.legs
    )  # fmt: skip
    u = _unconditional((whole.u, row), (part.u, part.nfe))
    return replace(
        part, **arrays, step=(*whole.step[:row], *(step + k for k in part.step)),
        first=whole.first, seen=seen, legs=legs, u=u,
    )  # fmt: skip


# -- the run ---------------------------------------------------------------------------------------
def carried(point: Point, program: Program, table: Table, turned: int) -> Point:
    """A point of a run of the old table, as one of the new table.

    Args:
        point: at or before the row where the new rows begin.
        program: of the new table.
        table: the new table.
        turned: that row.

    Raises:
        RunError: the newest network call is not known.
    """
    state = point.state
    history = _padded(state.history, table.history - 1)
    row = program.rows[state.row - 1] if state.row else None
    if row is not None and row.passed is not None and state.row == turned:
        call = point.call
        if call is None or call.row != state.row - 1 or (row.passed[0] and call.x is None):
            raise RunError("the newest network call is not known any more")
        clean = call.clean
        if clean is None:
            assert call.x is not None
            assert call.raw is not None
            clean = program.denoised(call.row, call.x, call.raw)
        sample = clean if call.x is None else call.x
        history[0] = program.passed(state.row - 1, sample, clean)
    base = state.base
    if base is None and program.uses_base:
        base = state.x
    uncond = _padded(state.unconditional, table.unconditional)
    return point._replace(
        state=state._replace(history=tuple(history), base=base, unconditional=tuple(uncond))
    )


def _padded(kept: Sequence[Tensor | None], width: int) -> list[Tensor | None]:
    """So many predictions, those that are kept first."""
    return [*kept, *[None] * width][:width]
