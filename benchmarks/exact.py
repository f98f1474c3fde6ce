"""Every deterministic sampler on data whose exact answer is known: error against network calls.

    python benchmarks/exact.py [--quick] [--out FOLDER]

No weights are needed. Prints one table, and writes exact.md and exact.png to FOLDER (docs by
default); `--quick` takes fewer samples and calls, and writes only where a folder is given.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import timonel as tm
from measure import markdown
from step_cost import k_sampling
from timonel.core import solvers
from timonel.core.noise import Noise
from timonel.core.process import double
from timonel.errors import TimonelError
from timonel.exact import Denoiser, Gaussian, Mixture, Pictures, perturbed, rounded, solve
from timonel.files import replacing
from which_sampler import names

DOCS = Path(__file__).resolve().parents[1] / "docs"
PROCESS = tm.VP.from_schedule()
FIRST, LAST = (PROCESS.at_sigma(double(s)) for s in (PROCESS.sigma_max, PROCESS.sigma_min))
GRIDS = ("karras", "trailing", "lam", "ays")
SCALE, ERROR = 4.0, 0.05  # of guidance; of the model
SHOWN, BEST = (8, 20, 40), 6
GROUPS, STUDENT = 16, 2.131  # for 95 % with 15 degrees of freedom
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLAGS: dict[str, dict[str, Any]] = {
    "karras": {"use_karras_sigmas": True}, "trailing": {"timestep_spacing": "trailing"},
    "lam": {"use_exponential_sigmas": True},
}  # fmt: skip
SCHEDULERS = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", 1), "UniPC": ("UniPCMultistepScheduler", 1),
    "Heun": ("HeunDiscreteScheduler", 2), "Euler": ("EulerDiscreteScheduler", 1),
}  # fmt: skip
K_SAMPLERS = {"DPM++ 2M": ("sample_dpmpp_2m", 1), "Heun": ("sample_heun", 2)}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito 2008


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    samples: int = 64
    calls: tuple[int, ...] = (5, 8, 12, 20, 40)
    grids: tuple[str, ...] = GRIDS
    tolerance: float = 1e-6
    draws: int = 4096


QUICK = Size(8, (8, 20), ("karras",), 1e-4, 128)


@dataclass(frozen=True)
class Problem:
    """A model, starts, and where infinitely many steps take them."""

    title: str
    denoise: Denoiser
    start: Tensor
    truth: Tensor
    floor: float = 1e-12  # what counts as no error


@dataclass(frozen=True)
class Cell:
    """The rms error (geometric mean over the samples), its relative error and the grid."""

    error: float = math.inf
    spread: float = math.nan
    grid: str = ""

    def __str__(self) -> str:
        return (
            f"{self.error:.2g} ±{self.spread:.0%} {self.grid[0]}"
            if math.isfinite(self.error)
            else "–"
        )


Sample = Callable[[Problem, int], "Tensor | None"]
Found = dict[str, list[list[Cell]]]  # by method: a row of cells for every problem


# -- the problems --------------------------------------------------------------------------------
def discs(count: int = 1024, size: int = 8, seed: int = 0) -> Tensor:
    """Pictures (count, 1, size, size) of a soft disc on a plain ground, values about -1 to 1."""
    g = torch.Generator().manual_seed(seed)
    x, y, radius, ground, ink = torch.rand(5, count, 1, 1, generator=g, dtype=torch.float64)
    place = torch.linspace(0, 1, size, dtype=torch.float64)
    away = torch.hypot(place[None, None] - x, place[None, :, None] - y) - 0.1 - 0.3 * radius
    made: Tensor = 2 * ground - 1 + 2 * (ink - ground) * torch.sigmoid(-size * away)
    return made[:, None]


def problems(size: Size) -> list[Problem]:
    def start(*shape: int) -> Tensor:
        return torch.randn(
            size.samples, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )

    solved = partial(solve, process=PROCESS, tolerance=size.tolerance)
    data = Gaussian(torch.linspace(-1, 1, 64), torch.logspace(-3, math.log10(3), 64))
    mixture = Mixture.random(0, components=12, dimension=32, rank=2, classes=3)
    wrong = perturbed(mixture, ERROR, seed=0)
    network = rounded(wrong, process=PROCESS, dtype=torch.bfloat16)
    guided, pictures = mixture.guided(0, SCALE), Pictures(discs())
    wide, x, picture = start(64), start(32), start(1, 8, 8)
    return [
        Problem("Gaussian", data, wide, data(data.solution(wide, FIRST, LAST), LAST)),
        Problem("guided mixture", guided, x, solved(guided, x)),
        Problem("pictures", pictures, picture, solved(pictures, picture), floor=1 / 255),
        Problem("imperfect model", network, x, solved(wrong, x)),
    ]


# -- the samplers --------------------------------------------------------------------------------
@cache
def compiled(name: str, grid: str, calls: int) -> tm.Table | None:
    """The sampler's table with as many steps as `calls` network calls allow; None where not one
    fits.
    """
    found = re.fullmatch(r"(\d*)N(?: ([+-]) (\d+))?", solvers.find(name).calls)
    assert found is not None
    each, extra = int(found[1] or 1), int((found[2] or "") + (found[3] or "0"))
    for steps in range(min(calls, (calls - extra) // each + 1 if extra <= 0 else calls), 0, -1):
        with suppress(TimonelError):
            made = tm.Sampler(name, grid=grid, steps=steps).compile(PROCESS)
            if made.nfe <= calls:
                return made
    return None


def ours(name: str, grid: str, problem: Problem, calls: int) -> Tensor | None:
    made = compiled(name, grid, calls)
    return None if made is None else driven(made, problem.denoise, problem.start)


def driven(made: tm.Table, denoise: Denoiser, x: Tensor, noise: Noise | None = None) -> Tensor:
    """The result of a table on a denoiser."""
    run = tm.Run(made, noise=noise)
    run.start(x)
    for _ in run.rows():
        run.advance(denoise(run.latents, run.level))
    return run.result


def diffusers(name: str, grid: str, problem: Problem, calls: int) -> Tensor | None:
    """As a pipeline calls it: the model predicts epsilon and is told the scheduler's own times."""
    import diffusers as library

    kind, stages = SCHEDULERS[name]
    scheduler = getattr(library, kind)(**BETAS, **FLAGS[grid])
    scheduler.set_timesteps((calls + stages - 1) // stages)
    # schedulers in y = x / alpha begin with sigma·noise; the trajectory to compare begins at noise
    # / alpha
    x = problem.start * (
        1 if scheduler.init_noise_sigma == 1 else math.hypot(1, scheduler.sigmas[0])
    )
    for t in scheduler.timesteps:
        seen, level = scheduler.scale_model_input(x, t).double(), PROCESS.at_time(t)
        noise = (seen - level.alpha * problem.denoise(seen, level)) / level.sigma
        x = scheduler.step(noise, t, x, return_dict=False)[0].double()
    return x


def k_diffusion(name: str, grid: str, problem: Problem, calls: int) -> Tensor | None:
    """On timonel's levels, for its samplers take any."""
    kind, stages = K_SAMPLERS[name]
    levels = tm.Sampler("euler", grid=grid, steps=(calls + stages - 1) // stages).levels(PROCESS)

    def model(y: Tensor, sigma: Tensor) -> Tensor:
        level = PROCESS.at_sigma(sigma[0])
        return problem.denoise(level.alpha * y, level)

    y = problem.start / levels.alpha[0]  # the start that the others have as x = alpha·y
    made: Tensor = getattr(k_sampling(), kind)(model, y, levels.sigma / levels.alpha, disable=True)
    return made


def methods(grids: tuple[str, ...]) -> dict[str, dict[str, Sample]]:
    """Every method by name, on every grid that it has."""
    made: dict[str, dict[str, Sample]] = {
        name: {grid: partial(ours, name, grid) for grid in grids}
        for name in names(stochastic=False)
    }
    for name in SCHEDULERS:
        made[f"{name}, diffusers"] = {
            grid: partial(diffusers, name, grid) for grid in FLAGS if grid in grids
        }
    if k_sampling() is not None:
        made |= {
            f"{n}, k-diffusion": {g: partial(k_diffusion, n, g) for g in grids} for n in K_SAMPLERS
        }
    return made


# -- the errors ----------------------------------------------------------------------------------
def cell(made: Tensor, problem: Problem, grid: str) -> Cell:
    logs = torch.log(
        (made - problem.truth).flatten(1).square().mean(1).sqrt().clamp(min=problem.floor)
    )
    error = float(logs.mean().exp())
    return (
        Cell(error, float(logs.std() / math.sqrt(len(logs))), grid)
        if math.isfinite(error)
        else Cell()
    )


def best(variants: dict[str, Sample], problem: Problem, calls: int) -> Cell:
    """On the best of the grids."""
    made = ((grid, sample(problem, calls)) for grid, sample in variants.items())
    cells = [cell(x, problem, grid) for grid, x in made if x is not None]
    return min(cells, key=lambda c: c.error, default=Cell())


@torch.no_grad()
def measure(size: Size) -> tuple[list[Problem], Found]:
    """Methods best first, by the geometric mean over problems and numbers of calls; ours before its
    twins.
    """

    def score(item: tuple[str, list[list[Cell]]]) -> tuple[float, bool]:
        return round(
            sum(math.log(min(c.error, 10.0)) for row in item[1] for c in row), 1
        ), ", " in item[0]

    posed = problems(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of schedulers, about numpy
        each = methods(size.grids).items()
        found = {
            name: [[best(v, problem, calls) for calls in size.calls] for problem in posed]
            for name, v in each
        }
    return posed, dict(sorted(found.items(), key=score))


# -- stochastic samplers -------------------------------------------------------------------------
def energy(a: Tensor, b: Tensor) -> float:
    """Energy distance 2·E|a - b| - E|a - a'| - E|b - b'| between two sets of n samples, without
    bias.
    """
    n = len(a)
    return float(
        2 * torch.cdist(a, b).mean()
        - (torch.cdist(a, a).sum() + torch.cdist(b, b).sum()) / (n * (n - 1))
    )


def interval(made: Tensor, true: Tensor) -> tuple[float, float]:
    """Energy distance and half its 95 % interval, of independent groups (Student's t)."""
    pairs = zip(made.chunk(GROUPS), true.chunk(GROUPS), strict=True)
    each = torch.tensor([energy(a, b) for a, b in pairs], dtype=torch.float64)
    return float(each.mean()), STUDENT * float(each.std()) / math.sqrt(GROUPS)


@torch.no_grad()
def distances(size: Size) -> dict[str, list[tuple[float, float]]]:
    """How far the distribution of the results is from the data, on karras levels. Best first."""
    mixture, count = Mixture.random(1, components=6, dimension=8, rank=1), size.draws
    true, calls = mixture.draw(count, seed=0), [c for c in SHOWN if c in size.calls]
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def drawn(name: str, n: int) -> tuple[float, float]:
        made, g = compiled(name, "karras", n), torch.Generator().manual_seed(3)
        if made is None:
            return math.nan, math.nan
        fresh = lambda row, like: torch.randn(like.shape, generator=g, dtype=like.dtype)  # noqa: E731
        return interval(driven(made, mixture, x, fresh), true)

    found = {
        name: [drawn(name, n) for n in calls]
        for name in [*names(stochastic=True), "euler", "dpmpp_2m"]
    }
    ranked = dict(
        sorted(found.items(), key=lambda item: sum(v for v, _ in item[1] if not math.isnan(v)))
    )
    return {"(exact samples)": [interval(mixture.draw(count, seed=1), true)] * len(calls), **ranked}


# -- what is shown -------------------------------------------------------------------------------
def table(posed: list[Problem], found: Found, size: Size) -> str:
    """One column for each problem and shown number of calls; what is within 5 % of a column's best
    is bold.
    """
    places = [(i, size.calls.index(c)) for i in range(len(posed)) for c in SHOWN if c in size.calls]
    tops = [min(rows[i][j].error for rows in found.values()) for i, j in places]
    head = ["sampler", *(f"{posed[i].title}, {size.calls[j]}" for i, j in places)]

    def text(c: Cell, top: float) -> str:
        return f"**{c}**" if c.error <= 1.05 * top else str(c)

    lines = [
        [n, *(text(rows[i][j], t) for (i, j), t in zip(places, tops, strict=True))]
        for n, rows in found.items()
    ]
    return markdown(head, lines)


def spread_table(found: dict[str, list[tuple[float, float]]], size: Size) -> str:
    def text(pair: tuple[float, float]) -> str:
        return "–" if math.isnan(pair[0]) else f"{pair[0]:.4f} ± {pair[1]:.4f}"

    head = ["sampler", *(f"{c} calls" for c in SHOWN if c in size.calls)]
    return markdown(head, [[name, *map(text, row)] for name, row in found.items()])


def same(a: list[list[Cell]], b: list[list[Cell]]) -> bool:
    """Whether two methods have one curve: every error within 2 %, or both too large to matter."""
    pairs = [
        (x.error, y.error) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    ]
    return all(x == y or abs(math.log(x / y)) < 0.02 for x, y in pairs if math.isfinite(x + y))


def leaders(found: Found) -> dict[str, list[str]]:
    """The best methods with different curves, and who has the same curve: itself first."""
    chosen: dict[str, list[str]] = {}
    for name, rows in found.items():
        twin = next((n for n in chosen if same(found[n], rows)), None)
        if twin is not None:
            chosen[twin].append(name)
        elif len(chosen) < BEST:
            chosen[name] = [name]
    return chosen


def draw(posed: list[Problem], found: Found, size: Size, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = leaders(found)
    twins = {name for same in labels.values() for name in same[1:]}
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    for i, (axis, problem) in enumerate(zip(axes.flat, posed, strict=True)):
        for name, rows in found.items():
            if name in twins:
                continue
            if name in labels:
                k = list(labels).index(name)
                style: dict[str, Any] = {
                    "color": COLOURS[k],
                    "marker": "osD^vP"[k],
                    "lw": 2,
                    "ms": 5,
                    "zorder": 4,
                }
                low, high = ([c.error * math.exp(s * c.spread) for c in rows[i]] for s in (-1, 1))
                axis.fill_between(size.calls, low, high, color=COLOURS[k], alpha=0.15, lw=0)
            elif name == "euler":
                style = {"color": "black", "ls": "--", "lw": 1.5, "zorder": 3}
            else:
                style = {"color": "0.8", "lw": 1, "zorder": 1}
            label = " = ".join(labels.get(name, ["euler" if name == "euler" else "_"]))
            axis.loglog(size.calls, [c.error for c in rows[i]], label=label, **style)
        finite = sorted(
            c.error for rows in found.values() for c in rows[i] if math.isfinite(c.error)
        )
        axis.set(title=problem.title, xlabel="network calls", ylabel="rms error, geometric mean")
        axis.set_ylim(finite[0] / 1.3, min(finite[-1] * 1.3, 2.0))
        axis.set_xticks(size.calls, [str(c) for c in size.calls])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    handles, texts = axes.flat[0].get_legend_handles_labels()
    texts.append(f"the other {len(found) - len(twins) - len(texts)}")
    figure.legend(
        [*handles, plt.Line2D([], [], color="0.8")], texts, loc="outside lower center", ncols=3
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def page(posed: list[Problem], found: Found, spread: str, size: Size) -> str:
    rms = [float(p.truth.square().mean().sqrt()) for p in posed]
    data = posed[0].denoise
    assert isinstance(data, Gaussian)
    last = cell(data.solution(posed[0].start, FIRST), posed[0], "").error
    return f"""# Samplers on models that are known exactly

Made by `python benchmarks/exact.py` (no weights, no GPU); nothing here is written by hand. \
The models are those of
`timonel.exact`, so every error is to a known answer and not to a picture that is thought to be \
converged.

![error against network calls](exact.png)

Error: root mean square over a sample, geometric mean over {size.samples} samples ± its standard \
error, in the units
of the data (rms of the answers: {", ".join(f"{v:.2f}" for v in rms)}). \
Each sampler is on the best of the grids
{", ".join(size.grids)} (the letter beside the number; diffusers' schedulers have no ays). \
The number in a column's
head is network calls, and a guided call counts as one. \
Bold: within 5 % of the best of the column. The noise levels
are Stable Diffusion's; the answer ends as samplers do, with the denoised sample at the lowest \
trained level.
diffusers' rows are its schedulers as a pipeline calls them, the times that they round included.

- **Gaussian**: 64 dimensions, standard deviations 0.001 to 3; the answer in closed form. \
(The clean end of the
  probability-flow ODE itself is another {last:.2g} away, which is what the last step costs \
everybody.)
- **guided mixture**: 12 Gaussians in 32 dimensions with 3 classes, \
guidance {SCALE:g} toward one of them.
- **pictures**: the ideal denoiser of {len(discs()):,} drawings of 8 x 8 from -1 to 1. \
Trajectories end in one of them:
  the right one or another. An error below half a level of 8 bits counts as that, \
{posed[2].floor:.4f}.
- **imperfect model**: the mixture with a smooth model error of {ERROR:g}; \
the model rounds its time to 1000 steps and
  its output to bf16. The answer is without the rounding, which is the part of the error that no \
sampler removes.

{table(posed, found, size)}

## Stochastic samplers

There is no single answer: the energy distance between {size.draws} results and as many samples \
of a mixture (6
Gaussians, 8 dimensions), karras levels, with intervals from {GROUPS} groups (nominally 95 %; \
those that miss the truth
lie below it more often). Its mean is 0 for samples of the mixture itself, the first row. \
euler and dpmpp_2m draw no
noise and are there to compare; `lcm` and `tcd`, for models distilled for them, are left out.

{spread}
"""


def run(size: Size, folder: Path | None) -> str:
    """The tables; with a folder, exact.md and exact.png there too."""
    posed, found = measure(size)
    spread = spread_table(distances(size), size)
    if folder is not None:
        draw(posed, found, size, folder / "exact.png")
        with replacing(folder / "exact.md") as temporary:
            temporary.write_text(page(posed, found, spread, size))
    return f"{table(posed, found, size)}\n\n{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description="measure samplers on exactly known models")
    parser.add_argument(
        "--quick", action="store_true", help="few samples, one grid: rough numbers in seconds"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where exact.md and exact.png go"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = asked.out or (None if asked.quick else DOCS)
    print(run(QUICK if asked.quick else Size(), folder))


if __name__ == "__main__":
    main()
