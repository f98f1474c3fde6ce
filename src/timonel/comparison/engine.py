"""Running a plan: what shares a model and its settings shares the network calls.

For every setting the pipeline's network is captured once with the conditions of all its samples;
then the converged references run, then the cells, in one fleet each. Where a pipeline cannot be
captured, its runs go through the helm one by one; what is measured is the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import noise as noises
from ..core.data import GuidanceData
from ..core.grids import usual
from ..core.guidance import Guidance
from ..core.process import Process
from ..core.run import Run
from ..core.table import Table
from ..engine.batch import Job, drive
from ..errors import TimonelError
from ..make.generate import SMALL
from ..make.recipe import Recipe
from ..pipelines.capture import Captured, NotCaptured, capture
from ..pipelines.decode.not_finite import Decoded
from ..pipelines.fitted_check import guided
from ..pipelines.helm import Helm
from ..pipelines.network.busy import beside
from . import measure
from .plan import Cell, Plan
from .progress import Progress, State
from .store import Outcome, Store

if TYPE_CHECKING:
    from ..core.fitted.fitted import Fitted

BATCH = 16  # network evaluations a call
SAMPLES = 64  # conditions captured at once
DECODED = 8  # runs whose pictures are decoded and kept together
SOLVER, FIRST, LAST, TRUSTED = (
    "unipc",
    64,
    256,
    2e-3,
)  # of a reference: doubled until it changes by less


@dataclass
class Work:
    """What one setting has to do: its cells, and the samples that they are about."""

    cells: list[Cell]
    samples: list[Recipe] = field(
        default_factory=list
    )  # one recipe for each prompt, picture and seed

    def sample(self, recipe: Recipe) -> int:
        """Which of the samples a recipe is about."""
        return next(i for i, other in enumerate(self.samples) if subject(other) == subject(recipe))

    @property
    def scale(self) -> float | None:
        """The guidance scale to capture with: the largest that is asked for, None for the
        pipeline's own.
        """
        scales = [
            g.scale
            for cell in self.cells
            if (g := cell.recipe.guidance) is not None and g.scale is not None
        ]
        flat = [s for scale in scales for s in (scale if isinstance(scale, list) else [scale])]
        return max(flat) if flat else None


def subject(recipe: Recipe) -> tuple[Any, ...]:
    """What makes another sample of the same setting."""
    return recipe.prompt, recipe.image, recipe.negative_prompt, recipe.seed


def works(plan: Plan) -> Iterator[Work]:
    """The cells of a plan by what they can share: model, size, precision and the pipeline's own
    arguments.
    """
    found: dict[str, list[Cell]] = {}
    for cell in plan:
        r = cell.recipe
        key = json.dumps(
            [r.model, r.dtype, r.device, r.width, r.height, r.arguments],
            sort_keys=True,
            default=str,
        )
        found.setdefault(key, []).append(cell)
    for cells in found.values():
        places: dict[tuple[Any, ...], int] = {}
        for cell in cells:
            places.setdefault(subject(cell.recipe), len(places))
        parts: list[Work] = [Work([]) for _ in range(0, len(places), SAMPLES)]
        for cell in cells:
            part, place = divmod(places[subject(cell.recipe)], SAMPLES)
            parts[part].cells.append(cell)
            if place == len(parts[part].samples):
                parts[part].samples.append(cell.recipe)
        yield from parts


def settled(recipe: Recipe, helm: Helm) -> Recipe:
    """The recipe with the grid that its sampler leaves to the model, as a call of the helm has it."""
    if recipe.grid is not None or recipe.sigmas is not None or recipe.table is not None:
        return recipe
    found = helm.choose(recipe.chosen()).sampler
    return recipe.model_copy(update={"grid": found.grid, "grid_options": dict(found.grid_options)})


def reference(recipe: Recipe, process: Process, steps: int) -> Recipe:
    """The fine run that a recipe's is measured against: same model, sample and scale, guided all
    the way.
    """
    return _fine(recipe, usual(process), steps)


def _fine(recipe: Recipe, grid: str, steps: int) -> Recipe:
    g = recipe.guidance
    always = (
        None
        if g is None
        else GuidanceData(scale=g.scale if not isinstance(g.scale, list) else None)
    )
    return recipe.model_copy(update={
        "sampler": SOLVER, "grid": grid, "steps": steps, "options": {}, "grid_options": {},
        "table": None,
        "sigmas": None, "noise": noises.DEFAULT, "guidance": always, "stopped_after": None,
    })  # fmt: skip


def shared(recipe: Recipe) -> str:
    """What recipes that are measured against the same reference have in common."""
    return _fine(recipe, "", 1).model_dump_json()


class Engine:
    """Runs a plan into a store. `notes`: what was noticed, as plain sentences by language."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        batch: int = BATCH,
        references: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.plan, self.store, self.batch, self.referring = plan, store, batch, references
        self.progress: Progress = progress or (lambda state: None)
        self.perceptual = measure.Perceptual()
        self.references: dict[str, str] = {}  # cell to reference
        self.notes: list[dict[str, str]] = []
        self._helm: tuple[tuple[Any, ...], Helm] | None = None
        self._began, self._state = time.monotonic(), State("watching")
        self._settled, self._samples, self._ended = (
            set[str](),
            0,
            0,
        )  # references that are done, of how many; runs

    def run(self) -> None:
        """Everything that is not in the store yet, or whose files are gone."""
        self.store.refresh()
        known = [self.store.outcomes.get(cell.id) for cell in self.plan]
        gone = sum(o is not None and o.status == "done" and not self.store.whole(o) for o in known)
        self._ended = sum(self.store.done(cell.id) is not None for cell in self.plan)
        self._samples = len(
            {shared(cell.recipe) for cell in self.plan if self.referring and self._unmeasured(cell)}
        )
        self._state = replace(self._state, gone=gone)
        with _quiet(self.plan.helms.values()):
            for work in works(self.plan):
                self._work(work)

    def helm(self, recipe: Recipe) -> Helm:
        """The model of a recipe; of those that are loaded here, one is kept."""
        if recipe.model in self.plan.helms:
            return self.plan.helms[recipe.model]
        key = (recipe.model, recipe.dtype, recipe.device)
        if self._helm is None or self._helm[0] != key:
            self._helm = None  # the memory of the one before
            helm = Helm(recipe.model, dtype=recipe.dtype, device=recipe.device)
            helm.pipe.set_progress_bar_config(disable=True)
            self._helm = key, helm
        return self._helm[1]

    def tell(self, phase: str, outcome: Outcome | None = None, **changes: Any) -> None:
        """Say where the comparison is."""
        done, total = (
            (self._ended, len(self.plan))
            if phase == "runs"
            else (len(self._settled), self._samples)
        )
        self._state = replace(
            self._state, phase=phase, outcome=outcome, done=done, total=total,
            seconds=time.monotonic() - self._began,
            **changes,
        )  # fmt: skip
        self.progress(self._state)

    # -- one setting ---------------------------------------------------------------------------
    def _unmeasured(self, cell: Cell) -> bool:
        """Whether a cell has not run, or has no reference to be measured against."""
        outcome = self.store.done(cell.id)
        return outcome is None or self.store.done(outcome.reference) is None

    def _work(self, work: Work) -> None:
        self.store.refresh()  # another process may have done some of it
        todo = [cell for cell in work.cells if self.store.done(cell.id) is None]
        unmeasured = (
            [cell for cell in work.cells if self._unmeasured(cell)] if self.referring else []
        )
        if not todo and not unmeasured:
            return
        helm = self.helm(work.samples[0])
        self.tell("watching", model=work.samples[0].model)
        captured = self.capture(helm, work)
        if unmeasured:
            process = captured.process if captured is not None else _process(helm)
            self._refer(unmeasured, work, helm, captured, process)
        self._go([(cell.recipe, cell.id, "cell") for cell in todo], work, helm, captured)
        self._measure([cell for cell in unmeasured if cell not in todo])

    def capture(self, helm: Helm, work: Work) -> Captured | None:
        """The pipeline's network with the conditions of all samples, or None where it stays in its
        loop.
        """
        first = work.samples[0]
        given = first.inputs()
        for name in ("prompt", "image", "negative_prompt"):
            if getattr(first, name) is not None:
                given[name] = [sample.inputs()[name] for sample in work.samples]
        try:
            return capture(helm, seeds=[s.seed for s in work.samples], guidance=work.scale, **given)
        except NotCaptured as reason:
            self.notes.append({
                "en": f"The runs of {first.model} were made one by one: {reason}.",
                "es": f"Las muestras de {first.model} se hicieron una a una: {reason}.",
            })  # fmt: skip
            return None

    def _refer(
        self, cells: list[Cell], work: Work, helm: Helm, captured: Captured | None, process: Process
    ) -> None:
        """The converged reference of every cell: doubled until it no longer changes."""
        open_ = {cell.id: cell.recipe for cell in cells}
        steps = FIRST
        self._go_references(open_, work, helm, captured, process, steps)
        while open_ and steps < LAST:
            steps *= 2
            self._go_references(open_, work, helm, captured, process, steps)
            for name, recipe in list(open_.items()):
                fine, coarse = (
                    reference_id(reference(recipe, process, n)) for n in (steps, steps // 2)
                )
                outcome = self.store.done(fine)
                if outcome is None or self.store.done(coarse) is None:
                    open_.pop(name)  # it failed, and says why
                    continue
                if outcome.change is None:
                    outcome.change = measure.rmse(
                        self.store.read_latents(fine), self.store.read_latents(coarse)
                    )
                    self.store.keep([outcome])
                self.references[name] = fine
                if outcome.change <= TRUSTED:
                    open_.pop(name)
            self._settled |= {shared(c.recipe) for c in cells if c.id not in open_ or steps >= LAST}
            self.tell("references")

    def _go_references(
        self,
        cells: dict[str, Recipe],
        work: Work,
        helm: Helm,
        captured: Captured | None,
        process: Process,
        steps: int,
    ) -> None:
        wanted = {
            reference_id(r): r
            for r in (reference(recipe, process, steps) for recipe in cells.values())
        }
        missing = [
            (r, name, "reference") for name, r in wanted.items() if self.store.done(name) is None
        ]
        self.tell("references", steps=steps, row=0, rows=0)
        self._go(missing, work, helm, captured)

    def _measure(self, cells: list[Cell]) -> None:
        """Measure cells that had run before, against references that were made now."""
        for cell in cells:
            outcome, reference = self.store.done(cell.id), self.references.get(cell.id, "")
            if outcome is not None and reference and outcome.reference != reference:
                outcome.reference = reference
                latents, pixels = self.store.read_latents(cell.id), self.store.read_pixels(outcome)
                outcome.measures = self._measures(outcome, latents, pixels)
                self.store.keep([outcome])

    # -- many runs -----------------------------------------------------------------------------
    def _go(
        self,
        wanted: Sequence[tuple[Recipe, str, str]],
        work: Work,
        helm: Helm,
        captured: Captured | None,
    ) -> None:
        """Run recipes to the end and keep what comes of them, of those that have ended too where it
        is interrupted.
        """
        if captured is None:
            rows = sum(recipe.steps for recipe, _, _ in wanted)
            self._rows(0, rows, wanted[0][2] if wanted else "")
            row = 0
            for recipe, name, kind in wanted:
                self._alone(helm, recipe, name, kind, rows)
                row += recipe.steps
                self._state = replace(
                    self._state, row=row
                )  # a pipeline that begins on the way makes fewer
            return
        jobs, outcomes, ready = [], dict[str, Outcome](), list[Job]()
        for recipe, name, kind in wanted:
            outcomes[name] = Outcome(name, kind, "done", recipe)
            try:
                outcomes[name].recipe = recipe = settled(recipe, helm)
                run = self.prepare(recipe, captured)
            except TimonelError as error:
                self._fail(outcomes[name], str(error))
                continue
            jobs.append(Job(run, work.sample(recipe), name, told=kind == "cell"))
        rows = sum(job.run.table.nfe for job in jobs)

        def flush() -> None:
            if ready:
                self._keep([(outcomes[job.name], job) for job in ready], helm, captured)
                ready.clear()

        def finished(job: Job) -> None:
            if job.reason:
                self._fail(outcomes[job.name], job.reason)
                return
            ready.append(job)
            if len(ready) >= DECODED:
                flush()

        self._rows(0, rows, wanted[0][2] if wanted else "")
        try:
            drive(jobs, captured, self.batch, finished, lambda many: self._rows(many, rows))
            flush()
        except KeyboardInterrupt:
            flush()
            raise

    def _rows(self, many: int, rows: int, kind: str = "") -> None:
        """Say that `many` more of `rows` network calls are done; at the beginning, of which `kind`."""
        if kind:
            self._state = replace(
                self._state, phase="runs" if kind == "cell" else "references", row=0
            )
            if kind == "cell":
                self._state = replace(self._state, steps=None)
        if rows:
            self.tell(self._state.phase, row=min(rows, self._state.row + many), rows=rows)

    def prepare(self, recipe: Recipe, captured: Captured) -> Run:
        """A recipe's run on the captured network."""
        chosen = recipe.chosen()
        table = chosen.compile(captured.process)
        noise = noises.source(chosen.source, [recipe.seed], table) if table.stochastic else None
        guidance = None if recipe.guidance is None else recipe.guidance.guidance()
        if chosen.fitted is not None:
            self._elsewhere(chosen.fitted, captured, recipe, guidance)
        return Run(table, captured.prediction, noise=noise, guidance=guidance, shape=captured.shape)

    def _elsewhere(
        self, fitted: Fitted, captured: Captured, recipe: Recipe, guidance: Guidance | None
    ) -> None:
        """Note in what a fitted sampler runs where it was not fitted."""
        from ..core.fitted.fitted import fingerprint

        helm, given = captured.helm, {"negative_prompt": recipe.negative_prompt, **recipe.arguments}
        whole = guided(helm.pipe, helm.parameters, given, guidance)
        found = "; ".join(
            fitted.differences([fingerprint(captured.module)], captured.prediction, whole)
        )
        told = {
            "en": f"Sampler {fitted.name} runs where it was not fitted: {found}.",
            "es": f"El muestreador {fitted.name} corre donde no se ajustó: {found}.",
        }
        if found and told not in self.notes:
            self.notes.append(told)

    def _alone(self, helm: Helm, recipe: Recipe, name: str, kind: str, rows: int) -> None:
        """One recipe through the helm, where its network cannot be captured."""
        outcome, story = Outcome(name, kind, "done", recipe), list[Tensor]()

        def seen(run: Run) -> None:
            story.append(run.denoised.clone())
            self._rows(1, rows)

        try:
            began = time.perf_counter()
            recipe.call(helm, hooks=[seen])
            seconds = time.perf_counter() - began
        except Exception as error:
            self._fail(outcome, f"{type(error).__name__}: {error}")
            return
        run = helm.run
        assert run is not None
        if run.status != "done":
            self._fail(outcome, f"it {run.status} after row {run.row} of {run.table.nfe}")
            return
        guided = zip(run.scales, run.forecasts, strict=True)
        halves = sum(
            1 if run.guidance is None or scale == 1.0 or foretold else 2
            for scale, foretold in guided
        )
        job = Job(run, 0, name, kind == "cell", seconds, halves, story)
        self._keep([(outcome, job)], helm, None)

    def _fail(self, outcome: Outcome, reason: str) -> None:
        outcome.status, outcome.reason = "failed", reason
        self.store.keep([outcome])
        self._said(outcome)

    def _said(self, outcome: Outcome) -> None:
        """Say that a run ended."""
        self._ended += outcome.kind == "cell"
        self.tell(self._state.phase, outcome)

    @torch.no_grad()
    def _keep(
        self, ended: list[tuple[Outcome, Job]], helm: Helm, captured: Captured | None
    ) -> None:
        """Decode, measure and write runs that ended."""
        pictures = _decoded(helm, torch.cat([job.run.result for _, job in ended]))
        for (outcome, job), pixels in zip(ended, pictures, strict=True):
            run = job.run
            if pixels is None:
                self._fail(
                    outcome,
                    "the autoencoder made NaN or infinity of its latents: run it in float32",
                )
                continue
            outcome.nfe, outcome.seconds, outcome.stochastic = (
                run.table.nfe,
                job.seconds,
                run.table.stochastic,
            )
            outcome.halves, outcome.reference = job.halves, self.references.get(outcome.id, "")
            outcome.levels, outcome.times = _levels(run.table)
            full = run.table.nfe * (captured.parts if captured is not None else 2)
            spares = run.guidance is not None and (
                run.guidance.stop < 1 or run.guidance.forecast > 1
            )
            outcome.halves_saved = full - job.halves if spares else 0
            story = self._story(helm, job.story, pixels) if job.told else None
            if outcome.kind == "cell":
                outcome.measures = self._measures(outcome, run.result, pixels)
            self.store.save(outcome, run.result, pixels, story)
            self.store.keep([outcome])
            self._said(outcome)

    def _story(self, helm: Helm, story: list[Tensor], pixels: Tensor) -> Tensor:
        """Previews of the steps: real pictures where they are small, else by the linear map; of a
        video its middle.
        """
        latents = torch.cat(story)
        small = max(pixels.shape[-2:]) <= SMALL and pixels.ndim == 3
        with beside(helm.pipe):
            linear = helm.context.latent_rgb
            shown = helm.context.decode(latents) if small or linear is None else linear(latents)
        return shown[:, shown.shape[1] // 2] if shown.ndim == 5 else shown

    def _measures(self, outcome: Outcome, latents: Tensor, pixels: Tensor) -> dict[str, float]:
        """Distances to the reference; of a stochastic sampler only what is about the sample alone."""
        found: dict[str, float | None] = {}
        if pixels.ndim == 4:
            found["consistency"] = measure.consistency(pixels)
        fine = self.store.done(outcome.reference)
        if fine is not None and not outcome.stochastic:
            theirs = self.store.read_pixels(fine)
            ours = (pixels.clamp(0, 1) * 255).round() / 255  # as it is written
            found |= {
                "latent_rmse": measure.rmse(latents, self.store.read_latents(fine.id)),
                "rmse": measure.rmse(ours, theirs), "psnr": measure.psnr(ours, theirs),
                "ssim": measure.ssim(ours, theirs), "lpips": self.perceptual(ours, theirs),
            }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}


def _decoded(helm: Helm, latents: Tensor) -> list[Tensor | None]:
    """The pictures of latents, None for those that are not finite."""
    with beside(helm.pipe), Decoded(helm.pipe) as seen:
        pictures: Tensor = helm.context.decode(latents)
    if bool(seen.fine().all()):
        return list(pictures)
    if len(latents) == 1:
        return [None]
    return [picture for one in torch.split(latents, 1) for picture in _decoded(helm, one)]


@contextmanager
def _quiet(helms: Iterable[Helm]) -> Iterator[None]:
    """Loaded pipelines without their progress bars; afterwards with what they had."""
    pipes = [helm.pipe for helm in helms if hasattr(helm.pipe, "set_progress_bar_config")]
    before = [vars(pipe).get("_progress_bar_config") for pipe in pipes]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        for pipe, bar in zip(pipes, before, strict=True):
            if bar is None:
                del pipe._progress_bar_config
            else:
                pipe._progress_bar_config = bar


def _levels(table: Table) -> tuple[list[float], list[float]]:
    """sigma / alpha and time of every step's beginning, and of the end."""
    rows = [table.first_row(k) for k in range(table.steps)] + [table.nfe]
    return (table.sigma / table.alpha)[rows].tolist(), table.time[rows].tolist()


def reference_id(recipe: Recipe) -> str:
    """The name of a reference in the store."""
    return "r" + Cell({}, recipe).id


def _process(helm: Helm) -> Any:
    from ..core.process import from_config

    return from_config(helm.pipe.scheduler.config)
