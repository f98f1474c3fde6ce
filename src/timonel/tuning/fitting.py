"""The fits of one model for several numbers of steps, and what is kept of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core.fitted.provenance import ProcessData, Provenance
from ..core.fitted.sampler_file import Fitted
from ..core.grids import Grid, usual
from ..core.sampler import Sampler
from ..core.table import Table
from ..engine.reference import typical
from ..errors import ArgumentError
from ..pipelines.recipe.data import versions
from . import gauss_newton, held_out, least_squares, starts
from .gauss_newton import FitState, Task
from .model import Model
from .parameters import Form
from .store import FitStore
from .targets import Log, Targets

SOME = 16  # samples that choose where to begin
BATCH = 16  # samples an iteration
ROOM = 2**31  # bytes that an iteration, and the paths for GITS, may hold beside the network
LONG = 5  # samples and predictions that a long run holds


def held_bytes(model: Model, count: int, steps: int, method: str, memory: int) -> int:
    """About what a fit holds in memory beside the network and its graph.

    Args:
        model: What is fitted to; a pipeline as a whole holds nothing.
        count: Samples.
        steps: The most.
        method: One of `METHODS`.
        memory: Predictions that a row corrects.
    """
    if not model.stepwise:
        return 0
    each = _bytes(model)
    iteration = at_once(model, steps, method, memory) * _share(each, steps, method, memory)
    paths = min(SOME, starts.fits(each, ROOM)) * starts.PATH * each
    run = max(LONG, 2 * steps + 1) * count * each
    return 2 * count * each + max(run, iteration, paths)


def at_once(model: Model, steps: int, method: str, memory: int) -> int:
    """Samples an iteration, fewer where `BATCH` would hold more than `ROOM`."""
    if not model.stepwise:
        return BATCH
    return max(1, min(BATCH, ROOM // _share(_bytes(model), steps, method, memory)))


def _bytes(model: Model) -> int:
    """Of one sample, at the precision of the predictions."""
    x = model.start([0])
    return x.numel() * max(4, x.element_size())


def _share(each: int, steps: int, method: str, memory: int) -> int:
    """Of one sample in an iteration: its runs, and for differences four times its Jacobian."""
    runs = 4 * steps * each
    if method != "differences":
        return runs
    return runs + 4 * (memory + 3) * steps * each + 16 * (steps + 2) * each


@dataclass(frozen=True)
class FitOutcome:
    """The result of a fit for one number of steps.

    Args:
        steps: The number.
        sampler: None where none was kept.
        reason: Why none was.
        start: Name of the sampler where the fit began.
        held_start: Its held-out error.
        held_tuned: The held-out error of what was fitted.
    """

    steps: int
    sampler: Sampler | None
    reason: str
    start: str
    held_start: float
    held_tuned: float


@dataclass(eq=False)
class Fitting:
    """Everything that the fits for several numbers of steps share.

    Args:
        model: What is fitted to.
        targets: The converged samples.
        method: One of `METHODS`.
        memory: Predictions that a row corrects.
        facts: What the files say they were fitted to.
        log: Gets a line for everything that is begun.
        store: Keeps what there is so far.
        samples: Those that are fitted, and those held out.
        paths: For GITS, when they are computed.
        stopped: Whether somebody pressed Ctrl-C.
    """

    model: Model
    targets: Targets
    method: str
    memory: int
    facts: dict[str, Any]
    log: Log
    store: FitStore | None
    samples: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    paths: starts.Paths | None = None
    stopped: bool = False

    def one(
        self, steps: int, start: Sampler | str | None, seconds: float, iterations: int | None
    ) -> FitOutcome:
        """Fit one number of steps, and judge it.

        Args:
            steps: The number.
            start: Where to begin; None looks for the best.
            seconds: For everything.
            iterations: At most.
        """
        began, calls = time.monotonic(), self.model.evaluations
        ends = began + seconds
        label, grid, known = self._begun(steps, start)
        if known is not None:
            began, calls = began - known.seconds, calls - known.calls

        def spent() -> tuple[float, int]:
            return time.monotonic() - began, self.model.evaluations - calls

        task = self._task(label, grid)
        if known is not None and known.theta.shape != (task.form.size,):
            raise ArgumentError(
                f"what was kept of the fit for {steps} steps does not fit it; remove the folder"
                " .part"
            )
        self._seeds_enough(task.form)
        state = self._fit(task, label, known, ends, iterations, spent)
        judged = self._judged(task, state, label)
        if judged.sampler is None:
            return judged
        seconds, calls = spent()
        sampler = _cost(judged.sampler, seconds + self.targets.seconds, calls + self.targets.calls)
        return replace(judged, sampler=sampler)

    def _begun(self, steps: int, start: Sampler | str | None) -> tuple[str, Grid, FitState | None]:
        """Where the fit begins, or where it was."""
        known = None if self.store is None else self.store.read(steps, self.model.process)
        if known is not None:
            self.log(f"{steps} steps: going on at iteration {known[2].iteration}")
            return known
        if start is not None:
            return *starts.named(self.model.process, start, steps), None
        some = self.samples[0][:SOME]
        if self.model.stepwise and self.paths is None:
            self.log("paths for the levels")
            self.paths = starts.Paths(self.model, some[: starts.fits(_bytes(self.model), ROOM)])
        self.log(f"{steps} steps: looking for where to begin")
        every = list(starts.begins(self.model, steps, self.paths))
        return *starts.best(self.model, self.targets, some, every), None

    def _task(self, label: str, grid: Grid) -> Task:
        """The fit that begins there."""
        form = Form(self.model.process, label.partition("/")[0], grid, self.memory)
        batch = at_once(self.model, grid.steps, self.method, self.memory)
        return Task(self.model, form, self.targets, *self.samples, self.method, batch)

    def _fit(
        self, task: Task, label: str, state: FitState | None, ends: float, iterations: int | None,
        spent: Callable[[], tuple[float, int]],
    ) -> FitState:  # fmt: skip
        steps, began = task.form.steps, time.monotonic()
        if state is None:
            state = gauss_newton.begin(task)
        else:
            task.typical(state.best, task.held)
        # runs as long as this one that follow the fit
        runs = len(held_out.USUAL) + sum(held_out.GOALS) / steps
        runs += 2 * (1 + len(task.fit) / len(task.held))
        ends -= runs * (time.monotonic() - began)
        if self.method == "levels":
            return state
        if not state.iteration and self.model.stepwise:
            theta = least_squares.squares(task, least_squares.enough(task))
            with_rows = gauss_newton.look(task, gauss_newton.moved(state, theta))
            state = with_rows if with_rows.error < state.error or self.method == "rows" else state
        if self.method == "rows":
            return state

        first, began = state.iteration, time.monotonic()

        def until(now: FitState) -> bool:
            spent = time.monotonic() - began
            each = spent / max(1, now.iteration - first)  # 0 before the first
            late = time.monotonic() + each > ends
            return late or (iterations is not None and now.iteration >= iterations)

        def seen(now: FitState) -> None:
            nonlocal state
            state = now
            if self.store is not None:
                seconds, calls = spent()
                cost = replace(now, seconds=seconds, calls=calls)
                self.store.keep(steps, label, task.form.start, cost)
            error = f"{now.error:.4g} of {now.held[0][1]:.4g}"
            self.log(f"{steps} steps, iteration {now.iteration}: held-out error {error}")

        try:
            return gauss_newton.improve(task, state, until, seen)
        except KeyboardInterrupt:
            self.stopped = True
            return state

    def _seeds_enough(self, form: Form) -> None:
        count = sum(len(s) for s in self.samples)
        if count < form.size and self.method not in ("levels",):
            warnings.warn(
                f"{count} seeds for {form.size} corrections of {form.steps} steps: what is fitted"
                f" may not carry over; give seeds={form.size} or more",
                stacklevel=5,
            )

    @torch.no_grad()
    def _judged(self, task: Task, state: FitState, label: str) -> FitOutcome:
        """The sampler, if it is better than its start on held-out samples."""
        zero, steps = task.form.zero(), task.form.steps
        before, first = task, label
        if self.method == "levels":  # the start is what was looked for: measure by the usual one
            name = f"dpmpp_2m/{usual(self.model.process)}"
            first, grid = starts.named(self.model.process, name, steps)
            before = replace(task, form=Form(self.model.process, "dpmpp_2m", grid, self.memory))
        error, than = task.error(state.best, task.held), before.error(zero, task.held)
        held = {"tuned": typical(error), "start": typical(than)}
        if not held_out.better(error, than):
            reason = (
                f"the held-out error {held['tuned']:.4g} is not clearly below that of its start"
                f" {first} ({held['start']:.4g})"
            )
            return FitOutcome(steps, None, reason, first, held["start"], held["tuned"])
        tuned = task.typical(state.best, task.fit)
        fitting = {"tuned": tuned, "start": before.typical(zero, task.fit)}
        table = task.form.arrays(state.best).table("fitted", f"{label}, fitted")
        provenance = self._provenance(table, first, fitting, held)
        name = f"{self.facts['model'].rpartition('/')[2]}-{steps}"
        sampler = Sampler(fitted=Fitted(name, table, provenance))
        return FitOutcome(steps, sampler, "", first, held["start"], held["tuned"])

    def _provenance(
        self, table: Table, start: str, fitting: dict[str, float], held: dict[str, float]
    ) -> Provenance:
        """Where a sampler comes from, without what it cost."""
        facts, (fit, judges) = self.facts, self.samples
        prompts, seeds = facts.get("prompts", ()), facts.get("seeds", ())

        def unique(some: tuple[int, ...]) -> list[str]:
            return list(dict.fromkeys(prompts[s] for s in some if prompts))

        return Provenance(
            model=facts["model"], fingerprint=facts["fingerprint"],
            process=ProcessData.of(self.model.process, table), prediction=self.model.prediction,
            guidance=facts["guidance"], dtype=facts["dtype"],
            prompts=unique(fit), seeds=[seeds[s] for s in fit if seeds],
            held_out_prompts=unique(judges), held_out_seeds=[seeds[s] for s in judges if seeds],
            start=start, method=self.method, fitting=fitting, held_out=held,
            errors=held_out.usual(self.model, self.targets, judges, table.nfe),
            seconds=0.0, calls=0, versions=versions(),
        )  # fmt: skip


def _cost(sampler: Sampler, seconds: float, calls: int) -> Sampler:
    """The sampler with what it cost."""
    fitted = sampler.fitted
    assert fitted is not None
    cost = {"seconds": round(seconds, 1), "calls": calls}
    return Sampler(fitted=replace(fitted, provenance=fitted.provenance.model_copy(update=cost)))
