"""`timonel compare`: the command line of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..shell import command
from .say import Json, error, reporting, say

if TYPE_CHECKING:
    from ..comparison import Comparison
    from ..comparison.plan import Plan
    from ..comparison.progress import State

Many = list[str] | None
WORDS = "timonel.words"  # of the command as it was typed


class Greedy(TyperCommand):
    """A command whose lists may stand in a row: `--sampler euler unipc` gives two samplers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat an option's name before each of its values."""
        ctx.meta[WORDS] = list(args)
        lists = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        words, name = list[str](), None
        for word in args:
            if word.startswith("-") and word != "-":
                name, fresh = (word if word in lists else None), True
                words.append(word)
                continue
            if name is not None and not fresh:
                words.append(name)
            fresh = False
            words.append(word)
        return super().parse_args(ctx, words)


def add(app: typer.Typer) -> None:
    """Give `app` the command."""
    app.command(cls=Greedy, name="compare")(compare)


def compare(
    ctx: typer.Context,
    subjects: Annotated[
        Many, typer.Argument(help="Prompts, or pictures for an image-to-video model.")
    ] = None,
    model: Annotated[Many, typer.Option(help="Shipped models, folders or hub names.")] = None,
    sampler: Annotated[
        Many, typer.Option(help="Samplers: solver, solver/grid, or a grid alone.")
    ] = None,
    grid: Annotated[Many, typer.Option(help="Grids, for every sampler.")] = None,
    steps: Annotated[Many, typer.Option(help="Numbers of steps.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, from 0.")] = None,
    seed: Annotated[Many, typer.Option(help="These seeds.")] = None,
    guidance: Annotated[
        Many,
        typer.Option(
            help="Guidance scales, or methods such as apg:5,eta=0.5; none is the model's own."
        ),
    ] = None,
    guidance_until: Annotated[
        Many, typer.Option(help="Ends of guidance: none, 0.4, step:4 or sigma:1.2.")
    ] = None,
    negative: Annotated[Many, typer.Option(help="Negative prompts.")] = None,
    width: Annotated[Many, typer.Option(help="Widths in pixels.")] = None,
    height: Annotated[Many, typer.Option(help="Heights in pixels.")] = None,
    noise: Annotated[Many, typer.Option(help="independent, brownian.")] = None,
    dtype: Annotated[Many, typer.Option(help="fp32, fp16, bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, …")] = None,
    plan: Annotated[Path | None, typer.Option(help="A TOML, YAML or JSON file of axes.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="tutorial: the claims of the tutorials, measured.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Network evaluations a call. Default: 16.")
    ] = None,
    references: Annotated[
        bool,
        typer.Option(
            help="Also the converged run of every sample, which distances are measured to."
        ),
    ] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Allow more than 1,000 runs.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say how many runs and calls, and about how long; compute nothing else.",
        ),
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Also write the numbers as a .parquet file.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path(
        "report"
    ),
    as_json: Json = False,
) -> None:
    """Compare samplers, schedules and guidance: pictures and numbers on one page.

    A comparison that was stopped, with Ctrl-C too, goes on where it was when the same command is
    given again.

    Example: timonel compare "red apple" --sampler euler dpmpp_2m/karras ays --steps 6 10 20 --seeds
    4
    """
    from ..comparison import planned

    axes = {
        "model": model,
        "sampler": sampler,
        "grid": _nones(grid),
        "steps": _whole("steps", steps),
        "seed": _whole("seed", seed),
        "guidance": _numbers(guidance),
        "guidance_until": _nones(guidance_until),
        "negative_prompt": negative,
        "width": _whole("width", width),
        "height": _whole("height", height),
        "noise": noise,
        "dtype": dtype,
        "device": device,
        "seeds": seeds,
    }
    chosen_axes = {name: value for name, value in axes.items() if value is not None}
    ready = _preset(preset, subjects, chosen_axes)
    chosen, judge = ready or (planned(subjects or [], plan, chosen_axes, yes=yes or dry_run), None)
    if export is not None:
        from ..comparison.rows import exportable

        exportable(export)
    again = command(["timonel", "compare", *ctx.meta[WORDS]])
    with reporting(as_json) as report:
        if dry_run:
            from ..comparison.estimate import estimate

            cost = estimate(chosen, out, batch, references)
            report |= _public(asdict(cost))
            say(cost)
            return
        result = _compare(
            chosen, judge, again, batch=batch, references=references, yes=yes, out=out
        )
        if export is not None:
            result.export(export)
        report |= {
            "page": result.page,
            "settings": sorted(result.groups, key=_order),
            "failed": _failed(result),
        }
        _say(result)
    raise typer.Exit(1 if len(result.failed) == len(chosen) else 0)


def _public(data: dict[str, Any]) -> dict[str, Any]:
    """An estimate under the names of the report."""
    return {"evaluations" if key == "halves" else key: value for key, value in data.items()}


def _failed(result: Comparison) -> list[dict[str, Any]]:
    """The runs that failed, with their reasons."""
    names = ("sampler", "steps", "seed")
    return [
        {**{name: getattr(one.recipe, name) for name in names}, "reason": one.reason}
        for one in result.failed
    ]


def _preset(
    name: str | None, subjects: Sequence[str] | None, axes: dict[str, Any]
) -> tuple[Plan, Callable[[Comparison], Comparison]] | None:
    """A preset's own plan, and what judges its claims."""
    from ..errors import ArgumentError, UnknownName

    if name is None:
        return None
    if name != "tutorial":
        raise UnknownName("preset", name, ["tutorial"])
    if subjects or axes:
        raise ArgumentError("a preset has its own plan: leave prompts and axes out")
    from ..comparison.claims import judged, plan

    return plan(), judged


def _compare(
    chosen: Plan,
    judge: Callable[[Comparison], Comparison] | None,
    again: str,
    *,
    batch: int | None,
    references: bool,
    yes: bool,
    out: Path,
) -> Comparison:
    """Run it with a bar; on Ctrl-C say what is kept, and that the command `again` goes on."""
    from ..comparison import compare as make
    from ..comparison import kept
    from .options import quiet

    quiet()
    try:
        with _bar() as progress:
            result = make(
                plan=chosen, out=out, batch=batch, references=references, yes=yes, progress=progress
            )
        return judge(result) if judge else result
    except KeyboardInterrupt as stop:
        from ..comparison.store import Store

        what = getattr(stop, "kept", None) or kept(chosen, Store(out))
        error(f"{what}\nthis goes on:  {again}")
        raise SystemExit(130) from None  # all is said


@contextmanager
def _bar() -> Iterator[Callable[[State], None]]:
    """Shows how far it is: a bar on a terminal, lines elsewhere."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..comparison.progress import Lines
    from ..files import plain

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(patience=0)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=console) as bar:
        task = bar.add_task("comparing")

        def seen(state: State) -> None:
            done, total = state.done, state.total
            if state.phase != "runs":
                done, total = state.row, state.rows
            bar.update(task, description=escape(plain(state)), completed=done, total=total or None)

        yield seen


def _say(result: Comparison) -> None:
    """The table of settings, and where the page is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..files import plain

    table = Table(box=None, pad_edge=False)
    for name in ("setting", "evaluations", "latent RMSE", "PSNR", "energy", "s", ""):
        table.add_column(name, justify="left" if name in ("setting", "") else "right")
    tied = {group["evaluations"] for group in result.groups if group["verdict"] == "tie"}
    for group in sorted(result.groups, key=_order):
        mean, error = group["mean"], group["stderr"]
        cost = _number(group["evaluations"], 0)
        best = f"ties at {cost}" if group["evaluations"] in tied else f"best at {cost}"
        verdict = {"best": best, "tie": f"ties at {cost}"}.get(group["verdict"] or "", "")
        table.add_row(
            Text(plain(group["label"])),
            cost,
            _number(mean.get("latent_rmse"), 4, error.get("latent_rmse")),
            _number(mean.get("psnr"), 1),
            _number(group["energy"], 4, group["energy_stderr"]),
            _number(group["seconds"], 2),
            verdict,
        )
    Console(highlight=False, width=max(100, Console().width)).print(table)
    for outcome in result.failed:
        say(f"failed: {outcome.recipe.sampler}, {outcome.recipe.steps} steps: {outcome.reason}")
    say(f"page  {result.page}")


def _order(group: dict[str, Any]) -> tuple[float, float]:
    """By cost, then by distance; what failed comes last."""
    values = (group["evaluations"], group["mean"].get("latent_rmse"))
    cost, error = (math.inf if value is None else value for value in values)
    return cost, error


def _number(value: float | None, digits: int, error: float | None = None) -> str:
    if value is None:
        return "-"
    known = error is not None and not math.isnan(error)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if known else "")


def _nones(words: Many) -> list[Any] | None:
    return None if words is None else [None if word.lower() == "none" else word for word in words]


def _whole(name: str, words: Many) -> list[int] | None:
    return None if words is None else [_parsed(name, word, int) for word in words]


def _numbers(words: Many) -> list[Any] | None:
    """Words, those that are numbers as such."""
    values = _nones(words)
    return values and [None if word is None else _number_or_word(word) for word in values]


def _number_or_word(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _parsed(name: str, word: str, kind: Any) -> Any:
    from ..errors import ArgumentError

    try:
        return kind(word)
    except ValueError:
        numbers = "whole numbers" if kind is int else "numbers"
        raise ArgumentError(f"--{name} takes {numbers}, got {word!r}") from None
