"""A run that makes its rows as it goes: `dpm_adaptive`.

The table begins with the rows of one trial step. Where the trial is kept, the rows of the next one
are appended before the hooks are called; where it is not, its rows are taken off again, the run
stands where the trial began, and a shorter one takes their place. So at any time the table is the
steps that were kept and the trial under way; `steps` counts these.

After a rewind the steps are decided again, from the controller as it was there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, Inexact, RunError
from . import border
from .checkpoints import Point
from .guidance import CompiledGuidance, Guidance, assigned, cfg
from .hook import Hook
from .noise import Noise
from .process import Level
from .program import NOTHING, DenoisedFn, Program, State
from .run import Run
from .solvers.adaptive import Pace, Plan
from .table import Table


@dataclass(frozen=True)
class Kept:
    """What the next trial begins with, where some steps are completed.

    Args:
        level: of the sample.
        pace: the controller.
        before: (batch, …), y of the lower order there; None: the start itself.
    """

    level: Level
    pace: Pace
    before: Tensor | None = None


class AdaptiveRun(Run):
    """One journey whose steps are as long as a tolerance allows; see `Run`.

    Args:
        plan: ends, tolerance and budget.
        prediction: what the network's raw output means.
        noise: the noise source, needed for eta > 0.
        guidance: `cfg(…)` or a scale; an interval by step or sigma, for no ratio of the steps is
            known before the end.
        hooks: called after each step that is kept.
        denoised_fn: changes the denoised prediction before it is used.
        keep: how many step ends stay in memory so that `rewind` is instant.

    Raises:
        ArgumentError: eta > 0 without noise, or guidance that counts steps.
    """

    def __init__(
        self,
        plan: Plan,
        prediction: str = "sample",
        *,
        noise: Noise | None = None,
        guidance: Guidance | float | None = None,
        hooks: Sequence[Hook | Callable[[Run], None]] = (),
        denoised_fn: DenoisedFn | None = None,
        keep: int = 0,
    ) -> None:
        self.plan, self.rejected = plan, 0
        self._paces = {0: Kept(plan.ends[0], plan.pace)}
        self._trial = plan.trial(plan.ends[0], plan.h_init)
        self._began: Point | None = None  # where the trial under way began
        self._changed = False  # somebody changed the sample inside the trial
        super().__init__(
            self._trial.table, prediction, noise=noise, hooks=hooks, denoised_fn=denoised_fn,
            keep=keep,
        )  # fmt: skip
        if guidance is not None:
            guide = assigned(guidance) or cfg()
            _check(guide)
            self._guided = CompiledGuidance.of(guide, self.table, prediction)

    @property
    def calls(self) -> int:
        """Network calls so far, those of trials that were not kept included."""
        return self.advances

    def __repr__(self) -> str:
        done = f"{self.step} steps kept, {self.rejected} not, {self.calls} network calls"
        return f"<AdaptiveRun: {self.status}, {done} of at most {self.plan.budget}>"

    # -- going -------------------------------------------------------------------------------------
    def advance(self, raw: Tensor, noise: Noise | None = None) -> None:
        """Apply the next row; where it ends a trial, keep the trial or go back to its start.

        Args:
            raw: (batch, …), the network's output at `latents`.
            noise: the source of this row alone, in the place of the run's.

        Raises:
            RunError: the run is complete, or cannot be advanced in its state.
            ArgumentError: `raw` is no tensor like the sample.
        """
        first = self._first_row
        if self.row == first:
            self._began, self._changed = self._point, False
        if self.row != first + self._trial.rows - 1 or self._status not in ("running", "stopped"):
            super().advance(raw, noise)
            return
        border.output(raw, self._here.x)
        step, (kept, pace, low) = self.step, self._judged(raw)
        if kept:
            with self._change:
                self._follow(step + 1, Kept(self._trial.to, pace, low))
            super().advance(raw, noise)
        else:
            self._take_off(step, pace)
        self._check_budget()

    @property
    def _first_row(self) -> int:
        """Where the trial under way begins."""
        return self.table.nfe - self._trial.table.nfe

    def _judged(self, raw: Tensor) -> tuple[bool, Pace, Tensor]:
        """Whether the trial is kept, the controller after it, and y of its lower order."""
        state, trial, here = self._here, self._trial, self._paces[self.step]
        new, _ = self.program.execute(state, raw, _silent)
        assert state.base is not None
        low, high = state.base / trial.low, new.x / trial.high
        assert self._began is not None
        before = here.before
        if before is None:
            before = self._began.state.x / float(self.plan.frame.m(trial.start))
        kept, pace = self.plan.judged(here.pace, self.plan.error(low, high, before))
        if self._changed:  # the two results are not of one sample
            return True, here.pace, low
        return kept, pace, low

    def _follow(self, step: int, here: Kept) -> None:
        """Remember where a step ends, and append the next trial; none from the last level."""
        kept = {0, step, *self._checkpoints.points}
        self._paces = {at: one for at, one in self._paces.items() if at in kept}
        self._paces[step] = here
        if self._trial.arrives:
            return
        self._trial = self.plan.trial(here.level, here.pace.h)
        self._extend(self.table.nfe)

    def _take_off(self, step: int, pace: Pace) -> None:
        """Stand where the trial began, with a shorter one to come."""
        assert self._began is not None
        with self._change:
            first = self._first_row
            self._paces[step] = replace(self._paces[step], pace=pace)
            self._trial = self.plan.trial(self._trial.start, pace.h)
            self._extend(first)
            self._at, self._flight, self._aside = self._began, None, NOTHING
            self.advances, self.rejected = self.advances + 1, self.rejected + 1
            self._moved = False
            self._change.notify_all()

    def _extend(self, rows: int) -> None:
        """The trial's rows behind the first `rows` of the table."""
        trial, table = self._trial.table, self.table
        whole = joined(table, rows, trial) if rows else trial
        program = Program.bind(trial, self.prediction, self.denoised_fn)
        self.program = replace(
            program,
            rows=self.program.rows[:rows] + program.rows,
            levels=self.program.levels[:rows] + program.levels,
        )
        self.table = whole
        self._guided = self._compiled(self._guided)
        self._coming = None if self._coming is None else self._compiled(self._coming)

    def _compiled(self, guided: CompiledGuidance) -> CompiledGuidance:
        return CompiledGuidance.of(guided.guidance, self.table, self.prediction, guided.since)

    def _check_budget(self) -> None:
        """Stop where one more trial would be beyond the budget."""
        left, done = self.plan.budget - self.advances, self.row == self.table.nfe
        ends = self.row > self._first_row  # the call to the clean level is left, which is counted
        if done or ends or left >= self.plan.least or self._status != "running":
            return
        at = self.table.level(self.row)
        self.stop(
            f"the budget of {self.plan.budget} network calls is spent at sigma/alpha"
            f" {float(at.ratio):.3g}, after {self.step} steps: give a larger budget, or rtol above"
            f" {self.plan.rtol:g}"
        )
        warnings.warn(f"dpm_adaptive: {self.reason}", Inexact, stacklevel=2)

    # -- going back and aside ----------------------------------------------------------------------
    def _go_on_with(self, state: State) -> None:
        super()._go_on_with(state)
        self._changed = True

    def _go_back(self, step: int) -> None:
        super()._go_back(step)
        if self.row == self._first_row + self._trial.rows:
            return  # where the call to the clean level is to come
        here = self.table.step_at(self.row)
        self._paces = {at: kept for at, kept in self._paces.items() if at <= here}
        self._trial = self.plan.trial(self._paces[here].level, self._paces[here].pace.h)
        self._extend(self.row)

    def _guide(self, guidance: Guidance | None) -> None:
        if guidance is not None:
            _check(guidance)
        super()._guide(guidance)

    def branch(self, *, hooks: Sequence[Hook | Callable[[Run], None]] = ()) -> Run:
        """A second run at the same point; see `Run.branch`."""
        with self._change:
            self.check("branch")
            here = self._between()
            twin = AdaptiveRun(
                self.plan, self.prediction, noise=self.noise, hooks=hooks,
                denoised_fn=self.denoised_fn,
            )  # fmt: skip
            for name in ("table", "program", "rejected", "advances", "_trial", "_began"):
                setattr(twin, name, getattr(self, name))
            twin._paces = dict(self._paces)
            twin._copy_tails(self)
            twin._checkpoints = self._checkpoints.copy()
            twin._stand_at(here.clone())
            return twin

    def tail(self, *args: Any, **settings: Any) -> Any:
        """Refused: a tail begins where a step of a known table ends.

        Args:
            *args: of `Run.tail`.
            **settings: of `Run.tail`.

        Raises:
            RunError: always.
        """
        raise RunError(
            "a run of 'dpm_adaptive' takes no tail, for its rows are not decided: stop it, and"
            " begin another run at its latents, tm.begin(run.latents, tm.Sampler(…, sigmas=[…]))"
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Refused: a file holds a table, and this run has yet to make its own.

        Args:
            path: of the file.

        Raises:
            RunError: always.
        """
        raise RunError(
            "a run of 'dpm_adaptive' is not saved, for its rows are not decided: keep a copy with"
            " run.branch(), or pickle it; a run of 'dpm_solver' is saved"
        )


def joined(table: Table, rows: int, after: Table) -> Table:
    """The first rows of a table, which end a step, and those of another one behind them."""
    steps = table.step_at(rows)
    parts: dict[str, Any] = {
        key: torch.cat([getattr(table, key)[:rows], getattr(after, key)])
        for key in ("alpha", "sigma", "time", "x", "base")
    }
    if table.seen is not None and after.seen is not None:
        parts["seen"] = torch.cat([table.seen[:rows], after.seen])
    step = (*table.step[:rows], *(steps + k for k in after.step))
    return replace(table, **parts, step=step)


def _silent(row: int, like: Tensor) -> Tensor:
    """No noise."""
    return torch.zeros_like(like)


def _check(guidance: Guidance) -> None:
    """Raises `ArgumentError` for guidance that needs to know how many steps there are."""
    counted = isinstance(guidance.scale, tuple)
    part = guidance.unit == "ratio" and (guidance.start > 0 or guidance.stop < 1)
    if counted or part:
        what = "a scale for every step" if counted else "an interval in ratios of the steps"
        raise ArgumentError(
            f"'dpm_adaptive' does not know how many steps it will make, so {what} says nothing;"
            " give one scale, and an interval by level, e.g. cfg(4.0, until=1.2, unit='sigma')"
        )
