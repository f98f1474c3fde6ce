"""Fitted samplers against the usual ones, on noise and prompts that no fit has seen.

    python benchmarks/tune.py [--quick] [--samples N] [--iterations N] [--pictures N] [PROBLEM ...]

Exact mixtures are fitted here; of the shipped models the tables that they come with are judged.
Error: root mean square distance of the latents to the converged sample of the same noise, guided
all the way; geometric mean over the samples ± its standard error. Every solver is on the best of
the declared grids for just these samples (of the two that are best on a quarter of them), so the
usual ones are chosen in hindsight and the fitted one is not. `pictures` asks a judge what emoji's
show; `limit` fits a table to each of a few samples alone, and `last-row` solves for richer last
rows. Prints a table for each problem and writes it into its place in docs/tune.md; `--quick` takes
the exact models only unless others are named, few steps and samples, and writes nothing.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from measure import markdown
from timonel import zoo
from timonel.core.grids import usual
from timonel.errors import ModelError, TimonelError
from timonel.files import replacing
from tune_last_row import last_row
from tune_limit import limit
from tune_models import SETTINGS, Size, exact, shipped
from tune_pictures import pictures
from tune_problem import Cell, Problem, ratio

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tune.md"
CURVE = (
    6,
    8,
    10,
    12,
    15,
    20,
    25,
    30,
    40,
)  # steps of DPM++ 2M Karras that a fitted sampler is placed between
GOALS = ((5, 12), (8, 25))  # so many fitted steps are meant to reach the error of so many of its
CARRIED = (5, 8)  # steps for which it is looked how a fit carries over
LEAST = 8  # samples
EXACT = ("mixture", "guided-mixture", "flow-mixture")
SHIPPED = ("emoji", "emoji-flow", "emoji-video")


# -- what is shown -------------------------------------------------------------------------------
def equals(error: float, curve: dict[int, float]) -> str:
    """The steps at which a falling curve has this error, on the straight line between two points in
    logarithms.
    """
    points = list(curve.items())
    if not error <= points[0][1]:
        return f"below {points[0][0]}"
    for (n, high), (m, low) in pairwise(points):
        if low <= error <= high:
            return (
                f"{n * (m / n) ** (math.log(high / error) / math.log(high / low)):.1f}"
                if high > low
                else f"{n}"
            )
    return f"above {points[-1][0]}"


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
        row(
            f"steps of {goal} that equal it",
            lambda n: fitted(n, lambda cell: equals(cell.error, known)),
        ),
        row(
            "/ the best below", lambda n: fitted(n, lambda cell: ratio(cell.errors, top[n].errors))
        ),
        *([title, *(str(others[n].get(title, "–")) for n in size.steps)] for title in titles),
    ]
    if problem.steady is not None:
        rows += [
            row("frame consistency, fitted", lambda n: fitted(n, problem.steadiness)),
            row("frame consistency, the best above", lambda n: problem.steadiness(top[n])),
        ]
    table = markdown([f"{problem.name}, steps", *map(str, size.steps)], rows)
    met = [
        f"* {n} fitted steps against {m} of {goal} ({known[m]:.2g}): error ratio "
        f"{ratio(cell.errors, curve[m].errors)}."
        for n, m in GOALS
        if (cell := tuned.get(n)) is not None
    ]
    if problem.steady is not None:
        met.append(
            "* Frame consistency is the mean PSNR between neighbouring frames in dB, in brackets "
            "how much more it is than in the converged clip of the same noise; in these it is "
            f"{float(problem.steady.mean()):.2f}."
        )
    return "\n\n".join([problem.about, table, "\n".join(met)])


def carried(size: Size) -> str:
    """How the tables of emoji do where they were not fitted: for each setting against the best of
    the usual there.
    """
    part = replace(size, steps=CARRIED, samples=max(LEAST, size.samples // 2))
    rows, truth, refused = [], None, list[str]()
    for setting in SETTINGS:
        try:
            problem = shipped("emoji", part, setting, truth if setting.dtype else None)
            problem.decode = None
            cells = [text for n in CARRIED for text in _carried(problem, n)]
        except TimonelError as error:
            if setting is SETTINGS[0]:
                raise
            cells = ["refused", *["–"] * (3 * len(CARRIED) - 1)]
            refused.append(f"* {setting.title}: {error}")
        else:
            truth = truth or problem.targets
        rows.append([setting.title, *cells])
    head = [
        "",
        *(f"{n} steps: {what}" for n in CARRIED for what in ("fitted", "best usual", "ratio")),
    ]
    about = (
        f"{part.samples} prompts and seeds that no fit has seen; bf16 is held against the "
        "converged in float32."
    )
    return "\n\n".join([about, markdown(head, rows), *(["\n".join(refused)] if refused else [])])


def _carried(problem: Problem, steps: int) -> Iterator[str]:
    tuned, others = problem.tuned(steps), problem.others(steps)
    title = min(others, key=lambda one: others[one].error)
    yield from ("–" if tuned is None else str(tuned), f"{others[title]} {title}")
    yield "–" if tuned is None else ratio(tuned.errors, others[title].errors)


def put(name: str, text: str) -> None:
    """Write a section into its place on the page."""
    page = PAGE.read_text("utf-8")
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ModelError(
            f"{PAGE.name} has no place for {name!r}: it needs {begin.strip()} and {end.strip()}"
        )
    with replacing(PAGE) as temporary:
        temporary.write_text(f"{before}{begin}{text}{end}{after}", "utf-8")


def parts(size: Size) -> dict[str, Callable[[], str]]:
    """What can be measured, by name."""
    posed = dict.fromkeys(EXACT, exact) | {name: shipped for name in SHIPPED if name in zoo.MODELS}
    made: dict[str, Callable[[], str]] = {
        name: partial(lambda n, pose: section(pose(n, size), size), name, pose)
        for name, pose in posed.items()
    }
    return made | {
        "limit": partial(limit, "emoji", GOALS), "limit-flow": partial(limit, "emoji-flow", GOALS),
        "last-row": partial(last_row, CARRIED), "pictures": partial(pictures, size),
        "carry-over": partial(carried, size),
    }  # fmt: skip


@torch.no_grad()
def main() -> None:
    names = list(parts(Size()))
    parser = argparse.ArgumentParser(description="fitted samplers against the usual ones")
    parser.add_argument(
        "problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(names)}; default: all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="5 and 8 steps, few samples, nothing written"
    )
    parser.add_argument(
        "--samples",
        type=int,
        help=(
            "of a shipped model, 16; mixtures have four times as many, limit and last-row their "
            "own number"
        ),
    )
    parser.add_argument("--iterations", type=int, help="of the fits of the mixtures, 60")
    parser.add_argument("--pictures", type=int, help="that the judge is shown of each sampler, 96")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    size = Size((5, 8), 8, 3, 8) if asked.quick else Size()
    given = ("samples", "iterations", "pictures")
    size = replace(size, **{k: v for k in given if (v := getattr(asked, k)) is not None})
    chosen = asked.problems or (list(EXACT) if asked.quick else names)
    if wrong := [name for name in chosen if name not in names]:
        parser.error(f"no problem {wrong[0]!r}; there are {', '.join(names)}")
    for option in ("samples", "pictures"):
        if getattr(size, option) < LEAST:
            parser.error(f"--{option} must be {LEAST} or more, got {getattr(size, option)}")
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
