"""The commands that tell what there is: samplers, grids, models, what a sampler does, what a model is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Out, Settings, sampler_of, steps_of

if TYPE_CHECKING:
    from ..sampler import Sampler
    from ..table import Table


def samplers() -> None:
    """List the samplers: order, network calls for N steps, noise, options, reference."""
    from ..solvers import SOLVERS

    rows = [
        (name, str(s.order or "-"), s.calls, "yes" if s.stochastic else "no", ", ".join(s.options) or "-", s.reference)
        for name, s in SOLVERS.items()
    ]
    _table(("sampler", "order", "calls", "noise", "options", "reference"), rows)


def grids() -> None:
    """List the grids: the space each is defined in, options, reference."""
    from ..grids import GRIDS

    _table(
        ("grid", "space", "options", "reference"),
        [(name, g.space, ", ".join(g.options) or "-", g.reference) for name, g in GRIDS.items()],
    )


def models(
    concepts: Annotated[bool, typer.Option("--concepts", help="Also list what each model knows.")] = False,
) -> None:
    """List the models that ship with timonel."""
    from .. import zoo

    for name, what in zoo.MODELS.items():
        card = zoo.card(name)
        print(f"{name}: {what}, {len(card.concepts)} concepts in the styles {', '.join(card.styles)}")
        if concepts:
            print(", ".join(card.concepts))


def explain(
    sampler: Annotated[str, typer.Argument(help="A sampler, such as dpmpp_2m/karras, or a fitted one's .json file.")],
    vs: Annotated[str | None, typer.Option(help="Another sampler to draw beside it.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps. Default: 10, or those of a fitted sampler.")] = None,
    settings: Settings = None,
    model: Annotated[
        str | None, typer.Option(help="A shipped model or a folder, whose noise process it is for. Default: emoji.")
    ] = None,
    out: Out = Path("out"),
) -> None:
    """Print a sampler's table and plot its levels, weights, noise and stability on a model's noise process."""
    from ..explain import plot

    asked = [(sampler, settings or []), *([(vs, [])] if vs else [])]
    chosen = [sampler_of(name, steps_of(name, steps, 10), given) for name, given in asked]
    tables = _tables(chosen, model)
    for one, table in zip(chosen, tables, strict=True):
        print(f"{table}\n")
        if one.fitted is not None:
            print(f"{one.fitted}\n")
    names = "-vs-".join(_name(one, table) for one, table in zip(chosen, tables, strict=True))
    print(f"plot  {plot(tables, out / f'explain-{names}-{tables[0].steps}.png')}")


def _tables(samplers: Sequence[Sampler], model: str | None) -> list[Table]:
    """The samplers on a model's process; a fitted one alone is shown as it is, for its model may not be here."""
    from .. import zoo

    if model is None and len(samplers) == 1 and samplers[0].fitted is not None:
        return [samplers[0].fitted.table]
    process = zoo.process_of(model or "emoji")
    return [one.compile(process) for one in samplers]


def _name(sampler: Sampler, table: Table) -> str:
    return f"{table.solver}-{table.grid}" if sampler.fitted is None else sampler.name


def doctor(
    model: Annotated[str, typer.Argument(help="A shipped model, a folder in diffusers' format or a hub name.")],
    sampler: Annotated[
        str | None, typer.Option(help="A sampler, or a class of diffusers, to try on it. Default: its own.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps. Default: those of the recommendation.")] = None,
    flags: Annotated[
        list[str] | None, typer.Option("--flag", metavar="KEY=VALUE", help="What one gives to from_config besides.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a model is, what suits it, what diffusers would do wrong with a sampler, and what is recommended.

    Example: timonel doctor folder/of/svd --sampler dpmpp_2m_sde/karras --flag timestep_spacing=trailing
    """
    from ..diagnosis.command import run

    run(model, sampler, steps, flags or [], as_json)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print aligned columns."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
