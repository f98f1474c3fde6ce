"""Running a plan: what shares a model and its settings shares the network calls.

For every setting the pipeline's network is captured once with the conditions of all its samples;
then the converged references run, then the cells, in one batch each. Where a pipeline cannot be
captured, its runs go through the helm one by one; what is measured is the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import noise as noises
from ..core import solvers
from ..core.data import GuidanceData
from ..core.fitted.fingerprint import fingerprint
from ..core.grids import usual
from ..core.guidance import Guidance
from ..core.process import Process
from ..core.run import Run
from ..core.table import Table
from ..engine.batch import Batch, Job
from ..engine.drive import run_on
from ..engine.network import evaluations
from ..engine.reference import Reference, distance
from ..errors import TimonelError
from ..make.generate import SMALL
from ..make.recipe import Recipe
from ..pipelines.capture import Captured, NotCaptured, capture
from ..pipelines.decode.not_finite import Decoded
from ..pipelines.fitted_check import guided
from ..pipelines.helm import Helm
from ..pipelines.modular import without_bar
from ..pipelines.network.busy import beside
from . import measure
from .plan import Cell, Plan
from .progress import Progress, State
from .store import Outcome, Store
from .work import Work, works

if TYPE_CHECKING:
    from ..core.fitted.sampler_file import Fitted

BATCH = 16  # network evaluations a call
DECODED = 8  # runs whose pictures are decoded and kept together
# of a reference: steps are doubled until the latents change by less
SOLVER, FIRST, LAST, TRUSTED = "unipc", 64, 256, 2e-3


def settled(recipe: Recipe, helm: Helm) -> Recipe:
    """A recipe with the grid that its sampler leaves to the model, as in a call of the helm."""
    if recipe.grid is not None or recipe.sigmas is not None or recipe.table is not None:
        return recipe
    sampler = helm.choose(recipe.chosen()).sampler
    options = dict(sampler.grid_options)
    return recipe.model_copy(update={"grid": sampler.grid, "grid_options": options})


def reference(recipe: Recipe, process: Process, steps: int) -> Recipe:
    """The fine run that a recipe's is measured against: the same sample, guided all the way."""
    return _fine(recipe, usual(process), steps)


def _fine(recipe: Recipe, grid: str, steps: int) -> Recipe:
    always = recipe.guidance
    if always is not None:
        scale = None if isinstance(always.scale, list) else always.scale
        always = GuidanceData(scale=scale, method=always.method)
    return recipe.model_copy(update={
        "sampler": SOLVER, "grid": grid, "steps": steps, "options": {}, "grid_options": {},
        "table": None, "sigmas": None, "noise": noises.DEFAULT, "guidance": always,
        "stopped_after": None,
    })  # fmt: skip


def converges(recipe: Recipe) -> bool:
    """Whether more steps come nearer to one picture; with CFG++ they push further at its scale."""
    return recipe.table is not None or not solvers.find(recipe.chosen().name).reads_uncond


def shared(recipe: Recipe) -> str:
    """What recipes that are measured against the same reference have in common."""
    return _fine(recipe, "", 1).model_dump_json()


class Engine:
    """Runs a plan into a store.

    Args:
        plan: The cells.
        store: Where they go.
        batch: Network evaluations a call, at most.
        references: Whether cells are measured against converged references.
        progress: Called with every `State`.
    """

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
        self.notes: list[dict[str, str]] = []  # what was noticed, sentences by language
        self._helm: tuple[tuple[Any, ...], Helm] | None = None
        self._began, self._state = time.monotonic(), State("watching")
        # references that are done, of how many; runs that have ended
        self._settled, self._samples, self._ended = set[str](), 0, 0

    def run(self) -> None:
        """Everything that is not in the store yet, or whose files are gone."""
        self.store.refresh()
        known = [self.store.outcomes.get(cell.id) for cell in self.plan]
        gone = sum(o is not None and o.status == "done" and not self.store.whole(o) for o in known)
        self._ended = sum(self.store.done(cell.id) is not None for cell in self.plan)
        self._samples = len({shared(cell.recipe) for cell in self.plan if self._unmeasured(cell)})
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

    def report(self, phase: str, outcome: Outcome | None = None, **changes: Any) -> None:
        """Report where the comparison is.

        Args:
            phase: See `State`.
            outcome: What has just ended.
            changes: Other fields of `State`.
        """
        done, total = len(self._settled), self._samples
        if phase == "runs":
            done, total = self._ended, len(self.plan)
        self._state = replace(
            self._state, phase=phase, outcome=outcome, done=done, total=total,
            seconds=time.monotonic() - self._began, **changes,
        )  # fmt: skip
        self.progress(self._state)

    # -- one setting ---------------------------------------------------------------------------
    def _unmeasured(self, cell: Cell) -> bool:
        """Whether a cell has not run, or has no reference to be measured against."""
        outcome = self.store.done(cell.id)
        missing = outcome is None or self.store.done(outcome.reference) is None
        return missing and self.referring and converges(cell.recipe)

    def _work(self, work: Work) -> None:
        self.store.refresh()  # another process may have done some of it
        todo = [cell for cell in work.cells if self.store.done(cell.id) is None]
        unmeasured = [cell for cell in work.cells if self._unmeasured(cell)]
        if not todo and not unmeasured:
            return
        helm = self.helm(work.samples[0])
        self.report("watching", model=work.samples[0].model)
        captured = self.capture(helm, work)
        if unmeasured:
            process = captured.process if captured is not None else _process(helm)
            self._refer(unmeasured, work, helm, captured, process)
        cells = [Outcome(cell.id, "cell", "done", cell.recipe) for cell in todo]
        self._go(cells, work, helm, captured)
        self._measure([cell for cell in unmeasured if cell not in todo])

    def capture(self, helm: Helm, work: Work) -> Captured | None:
        """The network with the conditions of all samples; None where it cannot leave its loop."""
        first, seeds = work.samples[0], [sample.seed for sample in work.samples]
        inputs = first.inputs()
        for name in ("prompt", "image", "negative_prompt"):
            if getattr(first, name) is not None:
                inputs[name] = [sample.inputs()[name] for sample in work.samples]
        try:
            return capture(helm, seeds=seeds, guidance=work.scale, **inputs)
        except NotCaptured as reason:
            self.notes.append({
                "en": f"The runs of {first.model} ran one by one: {reason}.",
                "es": f"Las muestras de {first.model} se hicieron una a una: {reason}.",
            })  # fmt: skip
            return None

    def _refer(
        self, cells: list[Cell], work: Work, helm: Helm, captured: Captured | None, process: Process
    ) -> None:
        """The converged reference of every cell: doubled until it no longer changes."""
        open_ = {cell.id: cell.recipe for cell in cells}

        def computed(steps: int) -> dict[str, str]:
            """The references of the cells that are open, run where they are missing."""
            wanted = {name: reference(recipe, process, steps) for name, recipe in open_.items()}
            names = {name: reference_id(recipe) for name, recipe in wanted.items()}
            missing = {
                names[name]: Outcome(names[name], "reference", "done", recipe)
                for name, recipe in wanted.items()
                if self.store.done(names[name]) is None
            }
            self.report("references", steps=steps, row=0, rows=0)
            self._go(list(missing.values()), work, helm, captured)
            return names

        converged = Reference(SOLVER, FIRST, LAST, TRUSTED)
        for refined in converged.refine(computed):
            if refined.coarse is None:
                continue
            for name in list(open_):
                fine = refined.result[name]
                change = self._change(fine, refined.coarse[name])
                if change is not None:
                    self.references[name] = fine
                if change is None or converged.trusts(change):
                    open_.pop(name)  # one that failed says why
            last = 2 * refined.steps > LAST
            self._settled |= {shared(c.recipe) for c in cells if c.id not in open_ or last}
            self.report("references")
            if not open_:
                return

    def _change(self, fine: str, coarse: str) -> float | None:
        """What doubling the steps of a reference changed; None where one of the two failed."""
        outcome = self.store.done(fine)
        if outcome is None or self.store.done(coarse) is None:
            return None
        if outcome.change is None:
            latents, before = (self.store.read_latents(name) for name in (fine, coarse))
            outcome.change = float(distance(latents, before).max())
            self.store.keep([outcome])
        return outcome.change

    def _measure(self, cells: list[Cell]) -> None:
        """Measure cells that had run before, against references that were computed since."""
        for cell in cells:
            outcome, reference = self.store.done(cell.id), self.references.get(cell.id, "")
            if outcome is not None and reference and outcome.reference != reference:
                outcome.reference = reference
                latents, pixels = self.store.read_latents(cell.id), self.store.read_pixels(outcome)
                outcome.measures = self._measures(outcome, latents, pixels)
                self.store.keep([outcome])

    # -- many runs -----------------------------------------------------------------------------
    def _go(
        self, outcomes: Sequence[Outcome], work: Work, helm: Helm, captured: Captured | None
    ) -> None:
        """Run the recipes of outcomes, and keep what comes of them."""
        kind = outcomes[0].kind if outcomes else ""
        if captured is None:
            rows, row = sum(outcome.recipe.steps for outcome in outcomes), 0
            self._rows(0, rows, kind)
            for outcome in outcomes:
                self._alone(helm, outcome, rows)
                row += outcome.recipe.steps  # a pipeline that begins on the way makes fewer
                self._state = replace(self._state, row=row)
            return
        pairs = [(outcome, self._job(outcome, work, helm, captured)) for outcome in outcomes]
        jobs = {job: outcome for outcome, job in pairs if job is not None}
        rows, ready = sum(job.run.table.nfe for job in jobs), list[Job]()

        def keep() -> None:
            self._keep([(jobs[job], job) for job in ready], helm, captured)
            ready.clear()

        self._rows(0, rows, kind)
        try:
            for turn in Batch(captured, self.batch, jobs).turns():
                self._rows(turn.rows, rows)
                for job in turn.ended:
                    if job.reason:
                        self._fail(jobs[job], job.reason)
                        continue
                    ready.append(job)
                    if len(ready) >= DECODED:
                        keep()
            keep()
        except KeyboardInterrupt:
            keep()
            raise

    def _job(self, outcome: Outcome, work: Work, helm: Helm, captured: Captured) -> Job | None:
        """An outcome's run; None where its recipe is refused."""
        try:
            outcome.recipe = settled(outcome.recipe, helm)
            run = self.prepare(outcome.recipe, captured)
        except TimonelError as error:
            self._fail(outcome, str(error))
            return None
        slot = work.slot(outcome.recipe)
        start = captured.start[slot : slot + 1]
        return Job(run, start, (slot,), outcome.id, keeps_steps=outcome.kind == "cell")

    def _rows(self, many: int, rows: int, kind: str = "") -> None:
        """Report that `many` more of `rows` network calls are done; first of which `kind`."""
        if kind:
            cells = kind == "cell"
            steps = None if cells else self._state.steps
            self._state = replace(
                self._state, phase="runs" if cells else "references", row=0, steps=steps
            )
        if rows:
            self.report(self._state.phase, row=min(rows, self._state.row + many), rows=rows)

    def prepare(self, recipe: Recipe, captured: Captured) -> Run:
        """A recipe's run on the captured network.

        Raises:
            TimonelError: Where they do not go together.
        """
        sampler = recipe.chosen()
        table = sampler.compile(captured.process)
        noise = noises.source(sampler.source, [recipe.seed], table) if table.stochastic else None
        guidance = None if recipe.guidance is None else recipe.guidance.guidance()
        if sampler.fitted is not None:
            self._note_fitted(sampler.fitted, captured, recipe, guidance)
        return run_on(captured, table, noise=noise, guidance=guidance)

    def _note_fitted(
        self, fitted: Fitted, captured: Captured, recipe: Recipe, guidance: Guidance | None
    ) -> None:
        """Note in what a fitted sampler runs where it was not fitted."""
        helm = captured.helm
        inputs = {"negative_prompt": recipe.negative_prompt, **recipe.arguments}
        use = guided(helm.pipe, helm.parameters, inputs, guidance)
        others = fitted.differences([fingerprint(captured.module)], captured.prediction, use)
        listed = "; ".join(others)
        note = {
            "en": f"Sampler {fitted.name} runs where it was not fitted: {listed}.",
            "es": f"El muestreador {fitted.name} corre donde no se ajustó: {listed}.",
        }
        if others and note not in self.notes:
            self.notes.append(note)

    def _alone(self, helm: Helm, outcome: Outcome, rows: int) -> None:
        """One recipe through the helm, where its network cannot be captured."""
        denoised = list[Tensor]()

        def step(run: Run) -> None:
            denoised.append(run.denoised.clone())
            self._rows(1, rows)

        try:
            began = time.perf_counter()
            outcome.recipe.call(helm, hooks=[step])
            seconds = time.perf_counter() - began
        except Exception as error:
            self._fail(outcome, f"{type(error).__name__}: {error}")
            return
        run = helm.run
        assert run is not None
        if run.status != "done":
            self._fail(outcome, f"it {run.status} after row {run.row} of {run.table.nfe}")
            return
        spent = run.table.nfe
        if run.guidance is not None:
            spent = evaluations(run.guided, lambda scale: 1 if scale == 1.0 else 2)
        job = Job(
            run, keeps_steps=outcome.kind == "cell", seconds=seconds, evaluations=spent,
            denoised=denoised,
        )  # fmt: skip
        self._keep([(outcome, job)], helm, None)

    def _fail(self, outcome: Outcome, reason: str) -> None:
        outcome.status, outcome.reason = "failed", reason
        self.store.keep([outcome])
        self._report_end(outcome)

    def _report_end(self, outcome: Outcome) -> None:
        """Report that a run has ended."""
        self._ended += outcome.kind == "cell"
        self.report(self._state.phase, outcome)

    @torch.no_grad()
    def _keep(
        self, ended: list[tuple[Outcome, Job]], helm: Helm, captured: Captured | None
    ) -> None:
        """Decode, measure and write runs that ended."""
        if not ended:
            return
        pictures = _decoded(helm, torch.cat([job.run.result for _, job in ended]))
        for (outcome, job), pixels in zip(ended, pictures, strict=True):
            run = job.run
            if pixels is None:
                reason = "the autoencoder decodes its latents to NaN or infinity: run it in float32"
                self._fail(outcome, reason)
                continue
            outcome.nfe, outcome.seconds = run.table.nfe, job.seconds
            outcome.stochastic, outcome.evaluations = run.table.stochastic, job.evaluations
            outcome.reference = self.references.get(outcome.id, "")
            outcome.levels, outcome.times = _levels(run.table)
            full, g = run.table.nfe * (captured.parts if captured is not None else 2), run.guidance
            spares = g is not None and (g.stop < 1 or g.forecast > 1)
            outcome.evaluations_saved = full - job.evaluations if spares else 0
            previews = self._previews(helm, job.denoised, pixels) if job.keeps_steps else None
            if outcome.kind == "cell":
                outcome.measures = self._measures(outcome, run.result, pixels)
            self.store.save(outcome, run.result, pixels, previews)
            self.store.keep([outcome])
            self._report_end(outcome)

    def _previews(self, helm: Helm, denoised: list[Tensor], pixels: Tensor) -> Tensor:
        """Previews of the steps: decoded where they are small, else linear; a video's middle."""
        latents = torch.cat(denoised)
        small = max(pixels.shape[-2:]) <= SMALL and pixels.ndim == 3
        with beside(helm.pipe):
            linear = helm.context.latent_rgb
            shown = helm.context.decode(latents) if small or linear is None else linear(latents)
        return shown[:, shown.shape[1] // 2] if shown.ndim == 5 else shown

    def _measures(self, outcome: Outcome, latents: Tensor, pixels: Tensor) -> dict[str, float]:
        """Distances to the reference; of a stochastic sampler what is about the sample alone."""
        measures: dict[str, float | None] = {}
        if pixels.ndim == 4:
            measures["consistency"] = measure.consistency(pixels)
        fine = self.store.done(outcome.reference)
        if fine is not None and not outcome.stochastic:
            truth = self.store.read_pixels(fine)
            written = (pixels.clamp(0, 1) * 255).round() / 255
            measures |= {
                "latent_rmse": measure.rmse(latents, self.store.read_latents(fine.id)),
                "rmse": measure.rmse(written, truth), "psnr": measure.psnr(written, truth),
                "ssim": measure.ssim(written, truth), "lpips": self.perceptual(written, truth),
            }  # fmt: skip
        return {name: value for name, value in measures.items() if value is not None}


def _decoded(helm: Helm, latents: Tensor) -> list[Tensor | None]:
    """The pictures of latents, None for those that are not finite."""
    with beside(helm.pipe), Decoded(helm.pipe) as decoded:
        pictures: Tensor = helm.context.decode(latents)
    if bool(decoded.fine().all()):
        return list(pictures)
    if len(latents) == 1:
        return [None]
    return [picture for one in torch.split(latents, 1) for picture in _decoded(helm, one)]


@contextmanager
def _quiet(helms: Iterable[Helm]) -> Iterator[None]:
    """Loaded pipelines without their progress bars; afterwards with what they had."""
    with ExitStack() as stack:
        for helm in helms:
            stack.enter_context(without_bar(helm.pipe))
        yield


def _levels(table: Table) -> tuple[list[float], list[float]]:
    """Sigma / alpha and time of every step's beginning, and of the end."""
    rows = [table.first_row(k) for k in range(table.steps)] + [table.nfe]
    return (table.sigma / table.alpha)[rows].tolist(), table.time[rows].tolist()


def reference_id(recipe: Recipe) -> str:
    """The name of a reference in the store."""
    return "r" + Cell({}, recipe).id


def _process(helm: Helm) -> Any:
    from ..core.process import from_config

    return from_config(helm.pipe.scheduler.config)
