"""Fitted samplers against the usual ones, on noise and prompts that no fit has seen.

    python benchmarks/tune.py [--quick] [--samples N] [--iterations N] [PROBLEM ...]

Exact mixtures are fitted here; of the shipped models the tables that they come with are judged. Error: root mean
square distance of the latents to the converged sample of the same noise, guided all the way; geometric mean over the
samples ± its standard error. Every solver is on the best of the declared grids for just these samples (of the two that
are best on a quarter of them), so the usual ones are chosen in hindsight and the fitted one is not. Prints a table for
each problem and writes it into its place in docs/tune.md; `--quick` takes the exact models only, few steps and
samples, and writes nothing.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import timonel as tm
from measure import markdown
from timonel import solvers, zoo
from timonel.animate import Motion
from timonel.errors import ModelError, TimonelError
from timonel.exact import Mixture, solve
from timonel.files import replacing
from timonel.grids import usual
from timonel.pipelines.capture import capture
from timonel.tuning import Pipeline, Plain, fit_model
from timonel.tuning.judge import geometric
from timonel.tuning.model import Model
from timonel.tuning.start import Paths
from timonel.tuning.student import distance
from timonel.tuning.teacher import Targets, converge

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tune.md"
SOLVERS = {"Euler": "euler", "DPM++ 2M": "dpmpp_2m", "DPM++ 3M": "dpmpp_3m", "UniPC": "unipc", "iPNDM": "ipndm"}
GRIDS = ("karras", "trailing", "lam", "beta", "gaussian")
FLOW_GRIDS = ("trailing", "flow", "lam", "beta", "gaussian")
CURVE = (6, 8, 10, 12, 15, 20, 25, 30, 40)  # steps of DPM++ 2M Karras that a fitted sampler is placed between
GOALS = ((5, 12), (8, 25))  # so many fitted steps are meant to reach the error of so many of its
CARRIED = (5, 8)  # steps for which it is looked how a fit carries over
LEAST, FEW, FINALISTS = 8, 4, 2  # samples; of those every variant is tried on; variants that are tried on all
FITTED, DIMENSION, SCALE = 96, 16, 4.0  # samples and dimension of the mixtures that are fitted, and their guidance
PATHS, BATCH, SEED = 16, 32, 2_000_000  # samples that GITS sees; evaluations a call; first seed of the shipped models
EXACT = ("mixture", "guided-mixture", "flow-mixture")
SHIPPED = ("emoji", "emoji-flow", "emoji-video")
SIBLINGS = ("emoji-zsnr", "emoji-lcm")


@dataclass(frozen=True)
class Size:
    """How much is measured. `samples`: of the shipped models; the mixtures are judged by four times as many."""

    steps: tuple[int, ...] = (3, 4, 5, 6, 8, 10)
    samples: int = 16
    iterations: int = 24


@dataclass(frozen=True)
class Cell:
    """Errors (n,) of the results `made` of one sampler, which `mark` tells from others, and those of its pictures."""

    errors: Tensor
    mark: str
    made: Tensor
    pixels: Tensor | None = None

    @property
    def error(self) -> float:
        """Their geometric mean."""
        return geometric(self.errors)[0]

    def __str__(self) -> str:
        mean, doubt = geometric(self.errors)
        seen = "" if self.pixels is None else f" ({geometric(self.pixels)[0]:.2g})"
        return f"{mean:.2g} ±{doubt / mean:.0%}{seen} {self.mark}".rstrip() if math.isfinite(mean) else "–"


@dataclass(eq=False)
class Problem:
    """A model with samples that no fit has seen, their converged results, and samplers fitted to it, by steps."""

    name: str
    model: Model
    targets: Targets
    fitted: dict[int, tm.Sampler]
    about: str
    decode: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def paths(self) -> Paths:
        """What GITS needs; it may see the samples that it is judged by."""
        return Paths(self.model, self.targets.samples[:PATHS])

    @cached_property
    def truth(self) -> Tensor | None:
        """The converged pictures."""
        return None if self.decode is None else self.decode(self.targets.result)

    def run(self, table: tm.Table) -> Tensor:
        """The results of a sampler."""
        return self.model.run(table, self.targets.samples)

    def cell(self, made: Tensor, mark: str = "") -> Cell:
        """What results come to, in latents; fewer than all are those of the first samples."""
        return Cell(distance(made, self.targets.result[: len(made)]), mark, made)

    def shown(self, cell: Cell) -> Cell:
        """`cell` with the errors of its pictures."""
        if self.decode is None or self.truth is None:
            return cell
        return replace(cell, pixels=distance(self.decode(cell.made), self.truth))

    def best(self, tables: Iterable[tuple[str, tm.Table]]) -> Cell | None:
        """The best on all samples of those samplers that are the best on a quarter of them."""
        every = self.targets.samples
        few = max(FEW, len(every) // 4)
        tried = [(self.cell(self.model.run(table, every[:few]), mark), table) for mark, table in tables]
        tried = sorted((one for one in tried if math.isfinite(one[0].error)), key=lambda one: one[0].error)
        cells = [
            self.cell(torch.cat([cell.made, self.model.run(table, every[few:])]), cell.mark)
            for cell, table in tried[:FINALISTS]
        ]
        return self.shown(min(cells, key=lambda cell: cell.error)) if cells else None

    # -- samplers ------------------------------------------------------------------------------
    def named(self, solver: str, grids: Sequence[str], steps: int) -> Iterator[tuple[str, tm.Table]]:
        """A solver on every grid that this process has, by the first letter of the grid."""
        for grid in grids:
            try:
                yield grid[0], tm.Sampler(solver, grid, steps).compile(self.model.process)
            except TimonelError:
                continue

    def rows(self, steps: int) -> Iterator[tuple[str, Iterable[tuple[str, tm.Table]]]]:
        """The rows of the table: what is to be beaten, each with the variants that it may choose from."""
        grids = FLOW_GRIDS if self.model.process.kind == "flow" else GRIDS
        goal = usual(self.model.process)
        for title, solver in SOLVERS.items():
            yield title, self.named(solver, grids, steps)
        yield f"DPM++ 2M {goal}", self.named("dpmpp_2m", (goal,), steps)
        yield "AYS", ((s, t) for s in SOLVERS.values() for _, t in self.named(s, ("ays",), steps))
        levels = self.paths.levels(steps)
        yield "GITS", ((s, solvers.make(s, levels)) for s in SOLVERS.values())

    def others(self, steps: int) -> dict[str, Cell]:
        """The rows' best, by title."""
        found = {title: self.best(tables) for title, tables in self.rows(steps)}
        return {title: cell for title, cell in found.items() if cell is not None}

    def tuned(self, steps: int) -> Cell | None:
        """What was fitted for so many steps. Raises `ArgumentError` where this process is another."""
        sampler = self.fitted.get(steps)
        if sampler is None:
            return None
        return self.shown(self.cell(self.run(sampler.compile(self.model.process))))

    def goal(self, steps: int) -> Cell:
        """DPM++ 2M on the usual grid."""
        return self.cell(self.run(tm.Sampler("dpmpp_2m", usual(self.model.process), steps).compile(self.model.process)))


# -- the problems --------------------------------------------------------------------------------
def exact(name: str, size: Size) -> Problem:
    """A mixture, fitted to some noise and judged by other noise against its exact answer."""
    mixture = Mixture.random(1, components=8, dimension=DIMENSION, classes=2)
    process = tm.Flow() if name == "flow-mixture" else tm.VP.from_schedule()
    guidance = tm.cfg(SCALE) if name == "guided-mixture" else None

    def posed(count: int, seed: int) -> Plain:
        noise = torch.randn(count, DIMENSION, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if guidance is None:
            return Plain(mixture, noise, process)
        return Plain(mixture.conditional(0), noise, process, unconditional=mixture, guidance=guidance)

    made = fit_model(posed(FITTED, 0), steps=size.steps, iterations=size.iterations, minutes=24 * 60)
    judged = posed(4 * size.samples, 1)
    truth = solve(mixture if guidance is None else mixture.guided(0, SCALE), judged.x, process, tolerance=1e-6)
    targets = Targets(tuple(range(judged.count)), truth, torch.zeros(judged.count, dtype=torch.float64), 0)
    about = (
        f"8 Gaussians in {DIMENSION} dimensions, "
        + ("flow" if process.kind == "flow" else "the noise levels of Stable Diffusion")
        + (f", guidance {SCALE:g} toward one of two classes" if guidance else "")
        + f"; the answer is exact. Fitted here to {FITTED} samples in {made.seconds:.0f} s ({made.evaluations:,} "
        f"evaluations for all numbers of steps together), judged by {judged.count} others."
    )
    return Problem(name, judged, targets, made.samplers, about)


@dataclass(frozen=True)
class Setting:
    """How a shipped model is run. `scale`: of the guidance, None for its own; `inputs`: of the pipeline."""

    title: str
    scale: float | None = None
    until: float | None = None
    dtype: str | None = None
    model: str | None = None
    inputs: tuple[tuple[str, Any], ...] = ()


SETTINGS = (
    Setting("as fitted"), Setting("guidance 2", scale=2.0), Setting("guidance 6", scale=6.0),
    Setting("guidance until 0.4", until=0.4), Setting("bf16", dtype="bf16"),
    Setting("96 x 96 pixels", inputs=(("height", 96), ("width", 96))),
    *(Setting(sibling, model=sibling) for sibling in SIBLINGS if sibling in zoo.MODELS),
)  # fmt: skip


def shipped(name: str, size: Size, setting: Setting = SETTINGS[0], truth: Targets | None = None) -> Problem:
    """A shipped model with prompts and seeds that its tables have not seen; `truth`: the converged, where known.

    Raises `ModelError` where no table is shipped with it.
    """
    own = tm.cfg(zoo.card(name).default_guidance)
    found = {steps: zoo.tuned(name, steps, own) for steps in size.steps}
    fitted = {steps: sampler for steps, sampler in found.items() if sampler is not None}
    if not fitted:
        raise ModelError(f"no fitted tables are shipped with {name}")
    helm = tm.Helm(setting.model or name, dtype=setting.dtype)
    helm.pipe.set_progress_bar_config(disable=True)
    assert helm.card is not None
    given, seeds, about = unseen(helm, fitted, size.samples)
    scale = helm.card.default_guidance if setting.scale is None else setting.scale
    captured = capture(helm, seeds=seeds, guidance=scale, **given, **dict(setting.inputs))
    model = Pipeline(captured, tm.cfg(scale, until=setting.until), BATCH)
    targets = truth or converge(model, range(size.samples), lambda message: None)
    return Problem(name, model, targets, fitted, about, helm.context.decode)


def unseen(helm: tm.Helm, fitted: dict[int, tm.Sampler], count: int) -> tuple[dict[str, Any], list[int], str]:
    """Inputs and seeds that are in no table's provenance, and what they are in words."""
    known = [sampler.fitted.provenance for sampler in fitted.values() if sampler.fitted is not None]
    first = max([SEED, *(seed + 1 for told in known for seed in told.seeds + told.held_out_seeds)])
    seeds = list(range(first, first + count))
    prompts = {prompt for told in known for prompt in told.prompts + told.held_out_prompts}
    card = helm.card
    assert card is not None
    fresh = [concept for concept in card.concepts if concept not in prompts]
    chosen = fresh[:: max(1, len(fresh) // count)][:count]
    chosen = [chosen[i % len(chosen)] for i in range(count)]
    if "prompt" in helm._parameters:
        return {"prompt": chosen}, seeds, f"{count} prompts and seeds that no fit has seen; in brackets that of pixels."
    painter = tm.Helm("emoji")
    painter.pipe.set_progress_bar_config(disable=True)
    scale = zoo.card("emoji").default_guidance
    pictures = painter(chosen, sampler="dpmpp_2m/karras", steps=20, guidance=scale, seeds=seeds).images
    side = {"height": card.resolution, "width": card.resolution}
    about = f"{count} pictures painted for this by emoji, and seeds, that no fit has seen; in brackets that of pixels."
    return {"image": pictures, **Motion().arguments(), **side}, seeds, about


# -- what is shown -------------------------------------------------------------------------------
def equals(error: float, curve: dict[int, float]) -> str:
    """The steps at which a falling curve has this error, on the straight line between two points in logarithms."""
    points = list(curve.items())
    if not error <= points[0][1]:
        return f"below {points[0][0]}"
    for (n, high), (m, low) in pairwise(points):
        if low <= error <= high:
            return f"{n * (m / n) ** (math.log(high / error) / math.log(high / low)):.1f}" if high > low else f"{n}"
    return f"above {points[-1][0]}"


def against(ours: Cell, theirs: Cell) -> str:
    """The mean ratio of paired errors, and two standard errors of its logarithm either way."""
    ratio = (ours.errors.clamp(min=1e-12) / theirs.errors.clamp(min=1e-12)).log()
    middle, doubt = float(ratio.mean()), 2 * float(ratio.std()) / math.sqrt(len(ratio))
    return f"{math.exp(middle):.2f} ({math.exp(middle - doubt):.2f} to {math.exp(middle + doubt):.2f})"


def section(problem: Problem, size: Size) -> str:
    """The table of a problem, and whether the goals are met."""
    goal = f"DPM++ 2M {usual(problem.model.process)}"
    curve = {n: problem.goal(n) for n in CURVE}
    known = {n: cell.error for n, cell in curve.items()}
    tuned = {n: problem.tuned(n) for n in size.steps}
    others = {n: problem.others(n) for n in size.steps}
    top = {n: min(found.values(), key=lambda cell: cell.error) for n, found in others.items()}
    titles = dict.fromkeys(title for found in others.values() for title in found)

    def row(title: str, text: Callable[[int], str]) -> list[str]:
        return [title, *(text(n) for n in size.steps)]

    def fitted(n: int, text: Callable[[Cell], str]) -> str:
        cell = tuned[n]
        return "–" if cell is None else text(cell)

    rows = [
        row("**fitted**", lambda n: fitted(n, lambda cell: f"**{cell}**")),
        row(f"steps of {goal} that equal it", lambda n: fitted(n, lambda cell: equals(cell.error, known))),
        row("/ the best below", lambda n: fitted(n, lambda cell: against(cell, top[n]))),
        *([title, *(str(others[n].get(title, "–")) for n in size.steps)] for title in titles),
    ]
    table = markdown([f"{problem.name}, steps", *map(str, size.steps)], rows)
    met = [
        f"* {n} fitted steps against {m} of {goal} ({known[m]:.2g}): error ratio {against(cell, curve[m])}."
        for n, m in GOALS
        if (cell := tuned.get(n)) is not None
    ]
    return "\n\n".join([problem.about, table, "\n".join(met)])


def carried(size: Size) -> str:
    """How the tables of emoji do where they were not fitted: for each setting against the best of the usual there."""
    part = replace(size, steps=CARRIED, samples=max(LEAST, size.samples // 2))
    rows, truth = [], None
    for setting in SETTINGS:
        try:
            problem = shipped("emoji", part, setting, truth if setting.dtype else None)
            problem.decode = None
            cells = [text for n in CARRIED for text in _carried(problem, n)]
        except TimonelError as error:
            if setting is SETTINGS[0]:
                raise
            cells = [f"refused: {error}", *["–"] * (3 * len(CARRIED) - 1)]
        else:
            truth = truth or problem.targets
        rows.append([setting.title, *cells])
    head = ["", *(f"{n} steps: {what}" for n in CARRIED for what in ("fitted", "best usual", "ratio"))]
    about = f"{part.samples} prompts and seeds that no fit has seen; bf16 is held against the converged in float32."
    return f"{about}\n\n{markdown(head, rows)}"


def _carried(problem: Problem, steps: int) -> Iterator[str]:
    tuned, others = problem.tuned(steps), problem.others(steps)
    title = min(others, key=lambda one: others[one].error)
    yield from ("–" if tuned is None else str(tuned), f"{others[title]} {title}")
    yield "–" if tuned is None else against(tuned, others[title])


def put(name: str, text: str) -> None:
    """Write a section into its place on the page."""
    page = PAGE.read_text("utf-8")
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ModelError(f"{PAGE.name} has no place for {name!r}: it needs {begin.strip()} and {end.strip()}")
    with replacing(PAGE) as temporary:
        temporary.write_text(f"{before}{begin}{text}{end}{after}", "utf-8")


def parts(size: Size) -> dict[str, Callable[[], str]]:
    """What can be measured, by name."""
    posed = dict.fromkeys(EXACT, exact) | {name: shipped for name in SHIPPED if name in zoo.MODELS}
    made: dict[str, Callable[[], str]] = {
        name: partial(lambda n, pose: section(pose(n, size), size), name, pose) for name, pose in posed.items()
    }
    return made | {"carry-over": partial(carried, size)}


@torch.no_grad()
def main() -> None:
    names = list(parts(Size()))
    parser = argparse.ArgumentParser(description="fitted samplers against the usual ones")
    parser.add_argument("problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--quick", action="store_true", help="exact models only, 5 and 8 steps, nothing written")
    parser.add_argument("--samples", type=int, help="samples of a shipped model, 16; mixtures have four times as many")
    parser.add_argument("--iterations", type=int, help="of the fits of the mixtures, 24")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    size = Size((5, 8), 8, 3) if asked.quick else Size()
    size = replace(size, **{k: v for k in ("samples", "iterations") if (v := getattr(asked, k)) is not None})
    chosen = asked.problems or (list(EXACT) if asked.quick else names)
    if wrong := [name for name in chosen if name not in names]:
        parser.error(f"no problem {wrong[0]!r}; there are {', '.join(names)}")
    if size.samples < LEAST:
        parser.error(f"--samples must be {LEAST} or more, got {size.samples}")
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    for name in chosen:
        try:
            text = parts(size)[name]()
        except ModelError as error:
            print(f"{name}: {error}\n", flush=True)
            continue
        print(f"{text}\n", flush=True)
        if not asked.quick:
            put(name, text)


if __name__ == "__main__":
    main()
