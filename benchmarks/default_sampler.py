"""Which sampler should run where nobody names one? The error of the candidates at 8 to 25 steps,
for each process.

    python benchmarks/default_sampler.py [SUBJECT ...]        emoji, emoji-zsnr, emoji-flow, vp,
    cosine, zsnr, flow, edm

Prints a table for each subject and keeps its numbers in default_sampler.json, from which
docs/which-sampler.md is written: a row for each sampler and grid, best first by the geometric mean
over the steps, at one network call a step. The shipped models are guided as their cards say; the
other subjects are a Gaussian mixture whose denoiser is known exactly.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import timonel as tm
from measure import markdown
from timonel import zoo
from timonel.core.process import Process
from timonel.core.sampler import DEFAULT
from timonel.errors import TimonelError
from timonel.exact import Mixture, solve

STEPS = (8, 12, 16, 20, 25)
SAMPLERS = ("euler", "dpmpp_2m", "unipc")
GRIDS = ("leading", "trailing", "karras", "lam", "beta", "ays")
PROMPTS, SEEDS = ("red apple", "ghost"), (7, 8)
SHOWN = 12  # rows of a table, besides these
ALWAYS = ("dpmpp_2m/karras", "dpmpp_2m/trailing", "dpmpp_2m/leading")
NUMBERS = Path(__file__).with_name("default_sampler.json")
HEADER = ["sampler", "mean", *(f"{steps} steps" for steps in STEPS)]
Rows = list[list[str]]
PROCESSES: dict[str, Callable[[], Process]] = {
    "vp": tm.VP.from_schedule,
    "cosine": lambda: tm.VP.from_schedule("squaredcos_cap_v2"),
    "zsnr": lambda: tm.VP.from_schedule(rescale_zero_snr=True),
    "flow": lambda: tm.Flow(3.0),
    "edm": lambda: tm.EDM(0.002, 700.0),
}
Run = Callable[[tm.Sampler], Tensor]


def shipped(name: str) -> tuple[Run, Tensor]:
    """A shipped model, and its converged pictures: the solver of third order with many steps on two
    grids agree.
    """
    helm = tm.Helm(name)
    helm.pipe.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt in PROMPTS for _ in SEEDS]
    seeds = [seed for _ in PROMPTS for seed in SEEDS]

    def run(sampler: tm.Sampler) -> Tensor:
        made: Tensor = helm(prompts, sampler=sampler, seeds=seeds, output_type="latent").images
        return made

    grid = "karras" if name == "emoji" else "trailing"
    far = [run(tm.Sampler(solver, grid=grid, steps=200)) for solver in ("dpmpp_3m", "unipc")]
    print(f"{name}: two references of 200 steps differ by {rms(*far):.1e}")
    return run, far[0]


def exact(process: Process) -> tuple[Run, Tensor]:
    """A mixture of narrow Gaussians, and where infinitely many steps take it."""
    mixture = Mixture.random(seed=0, components=12, dimension=16, classes=1)
    start = torch.randn(128, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return lambda sampler: tm.sample(mixture, start, sampler, process=process), solve(
        mixture, start, process
    )


def rms(a: Tensor, b: Tensor) -> float:
    """The median over the samples, a few of which reach another component, of the rms error."""
    return float((a - b).double().flatten(1).square().mean(1).sqrt().median())


def errors(run: Run, truth: Tensor, name: str, grid: str) -> list[float] | None:
    """The error at every number of steps; None where the process has no such levels."""
    try:
        return [rms(run(tm.Sampler(name, grid=grid, steps=steps)), truth) for steps in STEPS]
    except TimonelError:
        return None


def mean(row: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(max(value, 1e-12)) for value in row) / len(row))


def measured(subject: str) -> Rows:
    """The rows of one subject's table: the sampler, the mean of its errors, and they."""
    run, truth = exact(PROCESSES[subject]()) if subject in PROCESSES else shipped(subject)
    found = {}
    for name in SAMPLERS:
        for grid in GRIDS:
            row = errors(run, truth, name, grid)
            if row is not None and all(math.isfinite(value) for value in row):
                found[f"{name}/{grid}"] = row
    best = sorted(found, key=lambda label: mean(found[label]))
    shown = [label for i, label in enumerate(best) if i < SHOWN or label in ALWAYS]
    return [
        [label, f"{mean(found[label]):.3g}", *(f"{v:.2g}" for v in found[label])] for label in shown
    ]


def page(best: int = 3) -> str:
    """The kept numbers for the docs: of each subject the best, what runs by default, and ALWAYS."""
    rows = []
    for subject, table in json.loads(NUMBERS.read_text("utf-8")).items():
        process = PROCESSES[subject]() if subject in PROCESSES else zoo.process_of(subject)
        named = zoo.card(subject).default_sampler if subject in zoo.MODELS else DEFAULT
        usual = tm.Sampler(named).on(process).label
        shown = [row for i, row in enumerate(table) if i < best or row[0] in (*ALWAYS, usual)]
        rows += [
            [subject, f"**{row[0]}**" if row[0] == usual else row[0], *row[1:]] for row in shown
        ]
    return markdown(["model", *HEADER], rows)


@torch.no_grad()
def main() -> None:
    every = ("emoji", "emoji-zsnr", "emoji-flow", *PROCESSES)
    parser = argparse.ArgumentParser(description="measure the candidates for the default sampler")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(every))
    asked: list[str] = parser.parse_args().subjects
    if unknown := set(asked) - set(every):
        parser.error(f"unknown {', '.join(unknown)}; subjects are {', '.join(every)}")
    for subject in asked or every:
        kept = json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}
        kept[subject] = measured(subject)
        NUMBERS.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        print(f"{subject}\n\n{markdown(HEADER, kept[subject])}\n", flush=True)


if __name__ == "__main__":
    main()
