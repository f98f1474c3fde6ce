"""The commands that print facts: samplers, grids, models, a sampler's table, a model's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import complete
from .options import ModelArgument, Overwrite, Settings, sampler_of, steps_of
from .say import Json, columns, document, kept, reporting, say

if TYPE_CHECKING:
    from ..core.sampler import Sampler
    from ..core.table import Table


def samplers(as_json: Json = False) -> None:
    """List the samplers: order, network calls for N steps, noise, options, reference."""
    from ..core.solvers import CONTROLLED, SOLVERS

    facts = [
        {
            "sampler": name,
            "order": s.order or None,
            "calls": s.calls,
            "noise": bool(s.stochastic),
            "options": list(s.options),
            "reference": s.reference,
        }
        for name, s in (SOLVERS | CONTROLLED).items()
    ]
    _listed(facts, as_json)


def grids(as_json: Json = False) -> None:
    """List the grids: the space each is defined in, options, reference."""
    from ..core.grids import GRIDS

    facts = [
        {"grid": name, "space": g.space, "options": list(g.options), "reference": g.reference}
        for name, g in GRIDS.items()
    ]
    _listed(facts, as_json)


def models(
    concepts: Annotated[
        bool, typer.Option("--concepts", help="Also list what each model knows.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the models that ship with timonel."""
    from .. import zoo

    cards = {name: zoo.card(name) for name in zoo.MODELS}
    if as_json:
        facts = [
            {
                "model": name,
                "what": zoo.MODELS[name],
                "steps": card.default_steps,
                "sampler": card.default_sampler,
                "guidance": card.default_guidance,
                "resolution": card.resolution,
                "styles": card.styles,
                "concepts": card.concepts if concepts else len(card.concepts),
            }
            for name, card in cards.items()
        ]
        document(facts)
        return
    for name, card in cards.items():
        say(
            f"{name}: {zoo.MODELS[name]}, {len(card.concepts)} concepts in the styles"
            f" {', '.join(card.styles)}"
        )
        if concepts:
            say(", ".join(card.concepts))


def explain(
    sampler: Annotated[
        str,
        typer.Argument(
            help="A sampler, such as dpmpp_2m/karras, or a fitted one's .json file.",
            autocompletion=complete.samplers,
        ),
    ],
    vs: Annotated[
        str | None,
        typer.Option(help="Another sampler to draw beside it.", autocompletion=complete.samplers),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps. Default: 10, or those of a fitted sampler.")
    ] = None,
    settings: Settings = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A shipped model or a folder, whose noise process it is for. Default: emoji.",
            autocompletion=complete.models,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the plot, or its name: a .png, .svg or .pdf file."
        ),
    ] = Path("out"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Print a sampler's table on a noise process; plot its levels, weights, noise and stability."""
    from ..explain import plot, target
    from ..files import placed, writable

    named = bool(out.suffix) and not out.is_dir()
    if named:
        target(out, overwrite=overwrite)
    else:
        writable(out)
    with reporting(as_json) as report:
        chosen = [sampler_of(sampler, steps_of(sampler, steps, 10), settings or [])]
        chosen += [sampler_of(vs, steps_of(vs, steps, 10), [])] if vs else []
        tables = _tables(chosen, model)
        for one, table in zip(chosen, tables, strict=True):
            say(f"{table}\n")
            if one.fitted is not None:
                say(f"{one.fitted}\n")
        path = out if named else _plot_in(out, chosen, tables, overwrite)
        with placed(path, overwrite=overwrite) as path:
            plot(tables, path)
        kept(path)
        say(f"plot  {path}")
        report |= {"plot": path, "tables": [table.to_dict() for table in tables]}


def _plot_in(
    folder: Path, samplers: Sequence[Sampler], tables: Sequence[Table], overwrite: bool
) -> Path:
    """The plot's path in a folder, by the samplers' names; a free one unless `overwrite`."""
    from ..files import beside, free, short

    names = "-vs-".join(
        f"{table.solver}-{table.grid}" if one.fitted is None else one.name
        for one, table in zip(samplers, tables, strict=True)
    )
    path = folder / f"explain-{short(names)}-{tables[0].steps}.png"
    return path if overwrite else beside(free(path.with_suffix(""), path.suffix), path.suffix)


def _tables(samplers: Sequence[Sampler], model: str | None) -> list[Table]:
    """The samplers on a model's process; a fitted one alone is shown without its model."""
    from .. import zoo

    if model is None and len(samplers) == 1 and samplers[0].fitted is not None:
        return [samplers[0].fitted.table]
    process = zoo.process_of(model or "emoji")
    return [one.compile(process) for one in samplers]


def doctor(
    model: ModelArgument,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="A sampler, or a class of diffusers, to try on it. Default: its own.",
            autocompletion=complete.samplers,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps. Default: those of the recommendation.")
    ] = None,
    flags: Annotated[
        list[str] | None,
        typer.Option("--flag", metavar="KEY=VALUE", help="What one gives to from_config besides."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a model is, what suits it, what goes wrong in diffusers, and what is recommended.

    Example: timonel doctor folder/of/svd --sampler dpmpp_2m_sde/karras --flag
    timestep_spacing=trailing
    """
    from .doctor import run

    run(model, sampler, steps, flags or [], as_json)


def _listed(facts: list[dict[str, Any]], as_json: bool) -> None:
    """Print a list of facts, as aligned columns or as JSON."""
    if as_json:
        document(facts)
        return
    columns(tuple(facts[0]), [tuple(_cell(value) for value in fact.values()) for fact in facts])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return "-" if value is None or not text else text
