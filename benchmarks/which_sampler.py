"""Which sampler? Error against network calls, measured, and the page that says so.

    python benchmarks/which_sampler.py [PART ...]        exact, model, spread, paths; all of them by default

Measures the parts, keeps the numbers in which_sampler.json, and writes docs/which-sampler.md and its picture.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

import timonel as tm
from measure import markdown
from timonel import solvers, zoo
from timonel.analysis import spreads
from timonel.errors import TimonelError
from timonel.process import At

DOCS = Path(__file__).resolve().parents[1] / "docs"
GRIDS = ("karras", "trailing", "lam", "ays")
EXACT_CALLS, MODEL_CALLS, SPREAD_CALLS = (5, 8, 12, 20, 30, 50), (5, 8, 12, 20, 30), (6, 10, 20, 40, 80)
DISTILLED = ("lcm", "tcd")  # for models distilled for them
GENERIC = ("runge_kutta", "exponential_rk", "ddim", "edm")  # the same tables under other names by default
PROMPTS, SCALE, SEED = ("red apple", "ghost", "robot", "cat face"), 4.0, 7
Error = Callable[[tm.Sampler], float]


@dataclass(frozen=True)
class Mixture:
    """Data sum w_i N(m_i, s_i²) in 16 dimensions, narrow like pictures: the denoiser is known in closed form."""

    means: Tensor = field(default_factory=lambda: torch.randn(12, 16, generator=_seeded(0), dtype=torch.float64))
    stds: Tensor = field(default_factory=lambda: torch.logspace(-1.5, -0.5, 12, dtype=torch.float64))

    def __call__(self, x: Tensor, level: At) -> Tensor:
        apart = x[:, None] - level.alpha * self.means
        variance = level.alpha**2 * self.stds**2 + level.sigma**2
        log = -(apart**2).sum(-1) / (2 * variance) - 8 * torch.log(variance)
        clean = self.means + (level.alpha * self.stds**2 / variance)[:, None] * apart
        return (torch.softmax(log, -1)[..., None] * clean).sum(1)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_calls(name: str, grid: str, calls: int, process: tm.Process) -> tm.Sampler | None:
    """The sampler with as many steps as `calls` network calls allow; None where not one fits."""
    for steps in range(calls, 0, -1):
        sampler = tm.Sampler(name, grid=grid, steps=steps)
        try:
            if sampler.compile(process).nfe <= calls:
                return sampler
        except TimonelError:
            continue
    return None


@dataclass(frozen=True)
class Cell:
    """The best grid for one sampler and number of calls."""

    error: float
    grid: str

    def __str__(self) -> str:
        return f"{self.error:.2g} {self.grid[0]}" if math.isfinite(self.error) else "–"


def best(error: Error, name: str, calls: int, process: tm.Process) -> Cell:
    cells = []
    for grid in GRIDS:
        sampler = with_calls(name, grid, calls, process)
        if sampler is not None:
            cells.append(Cell(error(sampler), grid))
    return min(cells, key=lambda cell: cell.error, default=Cell(math.inf, "–"))


def names(stochastic: bool) -> list[str]:
    return [n for n, s in solvers.SOLVERS.items() if s.stochastic == stochastic and n not in (*DISTILLED, *GENERIC)]


# -- the mixture ---------------------------------------------------------------------------------
@cache
def mixture_limit(solver: str = "exponential_rk", steps: int = 1000) -> tuple[Tensor, Tensor]:
    """Starts, and where the exact denoiser takes them."""
    start = torch.randn(256, 16, generator=_seeded(1), dtype=torch.float64)
    process = tm.VP.from_schedule()
    return start, tm.sample(Mixture(), start, tm.Sampler(solver, grid="lam", steps=steps), process=process)


def mixture_error(sampler: tm.Sampler) -> float:
    """Median over the samples of the rms distance to the converged ones; the data has standard deviation 1.

    Not the mean: it would count the few samples that fall to another component of the mixture.
    """
    start, limit = mixture_limit()
    made = tm.sample(Mixture(), start, sampler, process=tm.VP.from_schedule())
    return float((made - limit).square().mean(1).sqrt().median())


# -- the shipped model ---------------------------------------------------------------------------
@cache
def helm() -> tm.Helm:
    made = tm.Helm("emoji")
    made.pipe.set_progress_bar_config(disable=True)
    return made


def latents(sampler: tm.Sampler) -> Tensor:
    seeds = range(SEED, SEED + len(PROMPTS))
    made: Tensor = helm()(
        list(PROMPTS), sampler=sampler, guidance=SCALE, seeds=list(seeds), output_type="latent"
    ).images
    return made


@cache
def model_limit(solver: str, steps: int, noise: str = "independent") -> Tensor:
    return latents(tm.Sampler(solver, grid="karras", steps=steps, noise=noise))


def rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def model_error(limit_steps: int, sampler: tm.Sampler) -> float:
    """Root mean square distance in latents (standard deviation about 1) to the converged pictures."""
    return rms(latents(sampler), model_limit("res_3s", limit_steps))


# -- the page ------------------------------------------------------------------------------------
def table(
    error: Error, samplers: Iterable[str], budgets: tuple[int, ...], process: tm.Process
) -> dict[str, list[Cell]]:
    found = {}
    for name in samplers:
        found[name] = [best(error, name, calls, process) for calls in budgets]
        print(f"{name:24s}", *(str(cell).rjust(12) for cell in found[name]), flush=True)
    return dict(sorted(found.items(), key=lambda item: sum(math.log(max(c.error, 1e-12)) for c in item[1])))


def lines(found: dict[str, list[Cell]], budgets: tuple[int, ...]) -> str:
    """Best of a column in bold."""
    tops = [min(cells[i].error for cells in found.values()) for i in range(len(budgets))]
    rows = [
        [name, *(f"**{c}**" if c.error <= 1.05 * top else str(c) for c, top in zip(cells, tops, strict=True))]
        for name, cells in found.items()
    ]
    return markdown(["sampler", *(f"{calls} calls" for calls in budgets)], rows)


def answer(found: dict[str, list[Cell]], budgets: tuple[int, ...]) -> str:
    """The three best for every number of calls, in words."""
    said = []
    for i, calls in enumerate(budgets):
        first = sorted(found, key=lambda name: found[name][i].error)[:3]
        said.append(
            f"- {calls} calls: " + ", ".join(f"`{n}/{found[n][i].grid}` {found[n][i].error:.2g}" for n in first)
        )
    return "\n".join(said)


def spread_lines(budgets: tuple[int, ...]) -> str:
    """Worst relative error of the standard deviation on Gaussian data, stochastic samplers on their better grid."""
    process = tm.VP.from_schedule()

    def error(sampler: tm.Sampler) -> float:
        done = sampler.compile(process)
        return max(abs(float(spreads(done, std)[-1]) - 1) for std in (0.1, 0.5, 1.0))

    return lines(table(error, names(stochastic=True), budgets, process), budgets)


def draw(exact: dict[str, list[Cell]], model: dict[str, list[Cell]], model_calls: tuple[int, ...]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    shown = (
        "euler",
        "heun",
        "dpm2",
        "dpmpp_2s",
        "lms",
        "ipndm",
        "deis",
        "dpmpp_2m",
        "dpmpp_3m",
        "unipc",
        "res_3s",
        "rk4",
    )
    parts = ((exact, EXACT_CALLS, "exact mixture"), (model, model_calls, "shipped model, guidance 4"))
    for axis, (found, budgets, title) in zip(axes, parts, strict=True):
        for i, name in enumerate(n for n in shown if n in found):
            errors = [cell.error for cell in found[name]]
            axis.loglog(budgets, errors, "o-" if i < 10 else "s--", ms=3, color=f"C{i % 10}", label=name)
        axis.set(xlabel="network calls", ylabel="error (rms)", title=title)
        axis.set_xticks(budgets, [str(b) for b in budgets])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2)
    figure.savefig(DOCS / "which-sampler.png", dpi=100)


def page(exact: dict[str, list[Cell]], model: dict[str, list[Cell]], spread: str, paths: str, checks: list[str],
         calls: tuple[int, ...]) -> str:  # fmt: skip
    return f"""# Which sampler?

Made by `python benchmarks/which_sampler.py`; nothing here is written by hand. Every number is the error at equal
**network calls**, not steps, on the best of the grids karras, trailing, lam and ays (the letter beside it), with
options at their defaults. Bold: within 5 % of the best of its column.

![error against network calls](which-sampler.png)

## Deterministic, on the shipped model

{len(PROMPTS)} pictures with guidance {SCALE:g}; rms distance in latents (standard deviation about 1) to the
converged pictures of the same noise. {checks[1]}

{answer(model, calls)}

{lines(model, calls)}

## Deterministic, on a model that is known exactly

256 samples of a mixture of 12 narrow Gaussians in 16 dimensions, the noise levels of Stable Diffusion. {checks[0]}

{answer(exact, EXACT_CALLS)}

{lines(exact, EXACT_CALLS)}

## Stochastic: do they keep the distribution?

There is no one right picture here. On Gaussian data everything can be computed: the worst relative error of the
standard deviation of the result, for data of standard deviation 0.1, 0.5 and 1. 0.05 means 5 % too flat or too noisy.

{spread}

## Stochastic: how far from its own limit

The distance on the shipped model to the same sampler with {LIMIT_CALLS} calls on the same Brownian path
(`noise="brownian"`), karras levels: how much of the picture is decided by the number of calls.

{paths}
"""


LIMIT_CALLS = 120


def path_lines(budgets: tuple[int, ...], limit: int) -> str:
    process = zoo.process_of("emoji")
    rows = []
    for name in names(stochastic=True):
        if name == "restart":  # its fresh noise goes up again, which is on no path
            continue
        far = with_calls(name, "karras", limit, process)
        assert far is not None
        end = model_limit(name, far.steps or 0, "brownian")
        row = [name]
        for calls in budgets:
            near = with_calls(name, "karras", calls, process)
            row.append("–" if near is None else f"{rms(model_limit(name, near.steps or 0, 'brownian'), end):.2g}")
        rows.append(row)
        print(*row, flush=True)
    return markdown(["sampler", *(f"{calls} calls" for calls in budgets)], rows)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="measure every sampler and write docs/which-sampler.md")
    parser.add_argument("--quick", action="store_true", help="fewer calls, into the same files: to try the script")
    quick: bool = parser.parse_args().quick
    calls, limit = (MODEL_CALLS[:2], 40) if quick else (MODEL_CALLS, 100)
    vp = tm.VP.from_schedule()
    apart = rms(mixture_limit()[1], mixture_limit("rk4", 1000)[1])
    checks = [f"Converged: two fourth-order methods with 1,000 steps each differ by {apart:.1e}."]
    exact = table(mixture_error, names(stochastic=False), EXACT_CALLS, vp)
    gap = rms(model_limit("res_3s", limit), model_limit("dpmpp_3m", 3 * limit))
    checks.append(f"Converged: two third-order methods with {3 * limit} calls each differ by {gap:.1e}.")
    model = table(partial(model_error, limit), names(stochastic=False), calls, zoo.process_of("emoji"))
    spread = spread_lines(SPREAD_CALLS)
    paths = path_lines(calls, LIMIT_CALLS if not quick else 40)
    draw(exact, model, calls)
    (DOCS / "which-sampler.md").write_text(page(exact, model, spread, paths, checks, calls))


if __name__ == "__main__":
    main()
