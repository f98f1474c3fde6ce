"""Which sampler? Error against network calls, measured, and the page that says so.

    python benchmarks/which_sampler.py [PART ...]        exact, model, spread, paths; all of them by
    default

Measures the parts, keeps the numbers in which_sampler.json, and writes docs/which-sampler.md and
its picture.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import default_sampler
import timonel as tm
from measure import markdown
from timonel import zoo
from timonel.core import solvers
from timonel.core.analysis import spreads
from timonel.core.process import At
from timonel.errors import TimonelError

DOCS = Path(__file__).resolve().parents[1] / "docs"
NUMBERS = Path(__file__).with_name("which_sampler.json")
LIMIT_CALLS = 120
GRIDS = ("karras", "trailing", "lam", "ays")
EXACT_CALLS, MODEL_CALLS, SPREAD_CALLS = (
    (5, 8, 12, 20, 30, 50),
    (5, 8, 12, 20, 30),
    (6, 10, 20, 40, 80),
)
DISTILLED = ("lcm", "tcd")  # for models distilled for them
GENERIC = (
    "runge_kutta",
    "exponential_rk",
    "ddim",
    "edm",
)  # the same tables under other names by default
PROMPTS, SCALE, SEED = ("red apple", "ghost", "robot", "cat face"), 4.0, 7
Error = Callable[[tm.Sampler], float]
Table = dict[str, list[tuple[float, str]]]


@dataclass(frozen=True)
class Mixture:
    """Data sum w_i N(m_i, s_i²) in 16 dimensions, narrow like pictures: the denoiser is known in
    closed form.
    """

    means: Tensor = field(
        default_factory=lambda: torch.randn(12, 16, generator=_seeded(0), dtype=torch.float64)
    )
    stds: Tensor = field(
        default_factory=lambda: torch.logspace(-1.5, -0.5, 12, dtype=torch.float64)
    )

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
    return [
        n
        for n, s in solvers.SOLVERS.items()
        if s.stochastic == stochastic and n not in (*DISTILLED, *GENERIC) and not s.reads_uncond
    ]


# -- the mixture ---------------------------------------------------------------------------------
@cache
def mixture_limit(solver: str = "exponential_rk", steps: int = 1000) -> tuple[Tensor, Tensor]:
    """Starts, and where the exact denoiser takes them."""
    start = torch.randn(256, 16, generator=_seeded(1), dtype=torch.float64)
    process = tm.VP.from_schedule()
    return start, tm.sample(
        Mixture(), start, tm.Sampler(solver, grid="lam", steps=steps), process=process
    )


def mixture_error(sampler: tm.Sampler) -> float:
    """Median over the samples of the rms distance to the converged ones; the data has standard
    deviation 1.

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
    """Rms distance in latents (standard deviation about 1) to the converged pictures."""
    return rms(latents(sampler), model_limit("res_3s", limit_steps))


# -- the page ------------------------------------------------------------------------------------
def table(
    error: Error, samplers: Iterable[str], budgets: tuple[int, ...], process: tm.Process
) -> Table:
    found = {}
    for name in samplers:
        cells = [best(error, name, calls, process) for calls in budgets]
        print(f"{name:24s}", *(str(cell).rjust(12) for cell in cells), flush=True)
        found[name] = [(cell.error, cell.grid) for cell in cells]
    return found


def ranked(found: Table) -> dict[str, list[Cell]]:
    """Best first, by the geometric mean over the columns."""
    cells = {name: [Cell(*cell) for cell in row] for name, row in found.items()}
    return dict(
        sorted(cells.items(), key=lambda item: sum(math.log(max(c.error, 1e-12)) for c in item[1]))
    )


def lines(found: dict[str, list[Cell]], budgets: tuple[int, ...]) -> str:
    """Best of a column in bold."""
    tops = [min(cells[i].error for cells in found.values()) for i in range(len(budgets))]
    rows = [
        [
            name,
            *(
                f"**{c}**" if c.error <= 1.05 * top else str(c)
                for c, top in zip(cells, tops, strict=True)
            ),
        ]
        for name, cells in found.items()
    ]
    return markdown(["sampler", *(f"{calls} calls" for calls in budgets)], rows)


def answer(found: dict[str, list[Cell]], budgets: tuple[int, ...]) -> str:
    """The three best for every number of calls, in words."""
    said = []
    for i, calls in enumerate(budgets):
        first = sorted(found, key=lambda name: found[name][i].error)[:3]
        said.append(
            f"- {calls} calls: "
            + ", ".join(f"`{n}/{found[n][i].grid}` {found[n][i].error:.2g}" for n in first)
        )
    return "\n".join(said)


def draw(
    exact: dict[str, list[Cell]], model: dict[str, list[Cell]], model_calls: tuple[int, ...]
) -> None:
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
    parts = (
        (exact, EXACT_CALLS, "exact mixture"),
        (model, model_calls, "shipped model, guidance 4"),
    )
    for axis, (found, budgets, title) in zip(axes, parts, strict=True):
        for i, name in enumerate(n for n in shown if n in found):
            errors = [cell.error for cell in found[name]]
            axis.loglog(
                budgets, errors, "o-" if i < 10 else "s--", ms=3, color=f"C{i % 10}", label=name
            )
        axis.set(xlabel="network calls", ylabel="error (rms)", title=title)
        axis.set_xticks(budgets, [str(b) for b in budgets])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncols=2)
    figure.savefig(DOCS / "which-sampler.png", dpi=100)


# -- the parts -----------------------------------------------------------------------------------
def exact() -> dict[str, Any]:
    apart = rms(mixture_limit()[1], mixture_limit("rk4", 1000)[1])
    note = f"Converged: two fourth-order methods with 1,000 steps each differ by {apart:.1e}."
    found = table(mixture_error, names(stochastic=False), EXACT_CALLS, tm.VP.from_schedule())
    return {"note": note, "calls": EXACT_CALLS, "table": found}


def model() -> dict[str, Any]:
    gap = rms(model_limit("res_3s", 100), model_limit("dpmpp_3m", 300))
    note = f"Converged: two third-order methods with 300 calls each differ by {gap:.1e}."
    error = partial(model_error, 100)
    found = table(error, names(stochastic=False), MODEL_CALLS, zoo.process_of("emoji"))
    return {"note": note, "calls": MODEL_CALLS, "table": found}


def spread() -> dict[str, Any]:
    """Worst relative error of the standard deviation on Gaussian data."""

    def error(sampler: tm.Sampler) -> float:
        done = sampler.compile(tm.VP.from_schedule())
        return max(abs(float(spreads(done, std)[-1]) - 1) for std in (0.1, 0.5, 1.0))

    found = table(error, names(stochastic=True), SPREAD_CALLS, tm.VP.from_schedule())
    return {"note": "", "calls": SPREAD_CALLS, "table": found}


def paths() -> dict[str, Any]:
    """Distance to the sampler's own limit on the same Brownian path, karras levels."""
    process, found = zoo.process_of("emoji"), {}
    for name in names(stochastic=True):
        if name == "restart":  # its fresh noise goes up again, which is on no path
            continue
        far = with_calls(name, "karras", LIMIT_CALLS, process)
        assert far is not None
        end, cells = model_limit(name, far.steps or 0, "brownian"), []
        for calls in MODEL_CALLS:
            near = with_calls(name, "karras", calls, process)
            steps = 0 if near is None else near.steps or 0
            cells.append(
                (rms(model_limit(name, steps, "brownian"), end) if steps else math.inf, "karras")
            )
        found[name] = cells
        print(name, *cells, flush=True)
    return {"note": "", "calls": MODEL_CALLS, "table": found}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "exact": exact,
    "model": model,
    "spread": spread,
    "paths": paths,
}


RULE = """## Which one runs where none is named

One rule for `Helm`, the drop-in `Scheduler` and the command line \
(`src/timonel/pipelines/choice.py`). The sampler is
the first of these that there is:

1. what the caller names;
2. what is set on the pipeline, where it maps, whoever has set it, \
you or the author of the checkpoint: a
   `timonel.Scheduler` with its sampler, a class of `timonel.compat`, or a scheduler of diffusers \
with its flags. One
   that is no sampler of timonel is said to be replaced, by the warning `SchedulerReplaced`;
3. the card of a shipped model, or the preset of the family that `timonel doctor` recognises. \
For a whole call with just
   the steps and the guidance that it was fitted for, a shipped fitted sampler goes before the \
card's;
4. what was measured nearest: `dpmpp_2m` on the usual grid, which is karras, \
and trailing for a flow or where the model
   begins at pure noise, or as good as (cosine betas).

A shipped model runs as its card says; \
the scheduler in its folder counts as set once you replace or change it.

The grid: the name's, else the solver's own. \
A sampler that is set on the pipeline keeps the levels of its config. One
that you name without a grid takes those levels too where somebody chose them, \
with a sigma flag or trailing times (few-
step models are distilled on them), else the usual grid. \
In the drop-in scheduler the config is your word, so its
`timestep_spacing` always acts.

The steps: the caller's, else the card's, else 4 for `lcm` and `tcd`, else the default of the \
pipeline's
`num_inference_steps`, else 20.

`timonel generate` and `animate` print the choice and why in their first line. \
In Python, `helm.choice` is that of the
last call, and `helm.choose(sampler, steps, guidance)` says what a call would run:

```python
import timonel as tm

helm = tm.Helm("emoji-lcm")
print(helm.choose())
```

```text
lcm/lcm, 4 steps (sampler of the card of emoji-lcm; steps of the card of emoji-lcm)
```

Measured by `python benchmarks/default_sampler.py`: the median rms distance to the converged \
result, at 8 to 25 network
calls; `mean` is the geometric mean. \
Bold is what runs by default (the card of `emoji-flow` says `dpmpp_2m/beta`). vp,
cosine, zsnr, flow and edm are an exactly known mixture on the levels of Stable Diffusion, \
cosine betas, zero terminal
SNR, a flow of shift 3 and Stable Video Diffusion. \
Of each the best three, the default, karras, trailing and leading.
UniPC is nearer from 12 calls on, DPM++ 2M at 8 and fewer, where the differences are large enough \
to be seen.
ays is searched for other models; \
with zero terminal SNR it begins below pure noise, where such a model cannot paint
black or white. Flows stay on trailing, for their pipelines list those times and their few-step \
models are distilled on
them; Stable Video Diffusion stays on karras, with which it was published.
"""


def page(parts: dict[str, Any]) -> str:
    found = {name: ranked(part["table"]) for name, part in parts.items()}
    calls = {name: tuple(part["calls"]) for name, part in parts.items()}
    return f"""# Which sampler?

Made by `python benchmarks/which_sampler.py`; nothing here is written by hand. \
Every number is the error at equal
**network calls**, not steps, on the best of the grids karras, trailing, \
lam and ays (the letter beside it), with
options at their defaults. Bold: within 5 % of the best of its column. What the samplers are:
[samplers.md](samplers.md).

![error against network calls](which-sampler.png)

{RULE}
{default_sampler.page()}

## Deterministic, on the shipped model

{len(PROMPTS)} pictures with guidance {SCALE:g}; \
rms distance in latents (standard deviation about 1) to the
converged pictures of the same noise. {parts["model"]["note"]}

{answer(found["model"], calls["model"])}

{lines(found["model"], calls["model"])}

## Deterministic, on a model that is known exactly

256 samples of a mixture of 12 narrow Gaussians in 16 dimensions, \
the noise levels of Stable Diffusion; the median
distance to the converged samples. {parts["exact"]["note"]}

{answer(found["exact"], calls["exact"])}

{lines(found["exact"], calls["exact"])}

## Stochastic: do they keep the distribution?

There is no one right picture here. \
On Gaussian data everything can be computed: the worst relative error of the
standard deviation of the result, for data of standard deviation 0.1, 0.5 and 1. \
0.05 means 5 % too flat or too noisy.

{lines(found["spread"], calls["spread"])}

## Stochastic: how far from its own limit

The distance on the shipped model to the same sampler with {LIMIT_CALLS} calls on the same \
Brownian path
(`noise="brownian"`), karras levels: how much of the picture is decided by the number of calls.

{lines(found["paths"], calls["paths"])}
"""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description="measure every sampler and write docs/which-sampler.md"
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    asked: list[str] = parser.parse_args().parts
    if unknown := set(asked) - set(PARTS):
        parser.error(f"unknown {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    kept = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    for name in PARTS:
        if name in asked or not asked:
            kept[name] = PARTS[name]()
            NUMBERS.write_text(json.dumps(kept, indent=1))
    draw(
        ranked(kept["exact"]["table"]),
        ranked(kept["model"]["table"]),
        tuple(kept["model"]["calls"]),
    )
    (DOCS / "which-sampler.md").write_text(page(kept))


if __name__ == "__main__":
    main()
