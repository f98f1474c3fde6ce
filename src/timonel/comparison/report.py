"""What the page shows: the cells, the means of each setting, and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import shell
from ..core.guidance import words as guided_words
from ..core.sampler import FILE
from ..make.recipe import Recipe
from ..version import VERSION
from . import measure
from .pictures import embedded, link, small
from .plan import SAMPLE_AXES, Cell, Plan
from .store import Outcome, Store, plain

COUNTS = ("nfe", "evaluations", "evaluations_saved", "seconds")
# settings that differ in these alone are compared with each other
CHOICE = (
    "sampler", "grid", "options", "grid_options", "noise", "guidance_until", "rescale", "steps",
)  # fmt: skip
STOCHASTIC = {
    "en": (
        "Samplers that draw noise make another picture of the same seed, and are right to: they"
        " have no distance to one picture. What can be compared is the distribution over seeds"
        " (energy distance; 0 is the same)."
    ),
    "es": (
        "Los muestreadores que añaden ruido hacen otra imagen con la misma semilla, y está bien que"
        " así sea: no se mide su distancia a una imagen. Lo que se compara es la distribución sobre"
        " las semillas (distancia de energía; 0 es la misma)."
    ),
}
SHARED = {
    "en": (
        "Seconds are a run's share of calls that served several runs at once, and its own steps; a"
        " picture alone takes longer."
    ),
    "es": (
        "Los segundos son la parte de cada muestra en llamadas que atendieron varias a la vez, más"
        " sus propios pasos; una imagen sola tarda más."
    ),
}
DOUBTFUL = {
    "en": (
        "Some references still changed by {change} (latent RMSE) when their steps were doubled;"
        " smaller distances than that say nothing."
    ),
    "es": (
        "Algunas referencias aún cambiaron {change} (RMSE latente) al duplicar sus pasos;"
        " distancias menores no dicen nada."
    ),
}
ARGUMENTS = {
    "motion_bucket_id": "--motion",
    "fps": "--fps",
    "noise_aug_strength": "--noise",
    "num_frames": "--frames",
}
Cells = Sequence[tuple[Cell, Outcome | None]]


def content(
    plan: Plan, store: Store, notes: Sequence[Mapping[str, str]] = (), claims: Sequence[Any] = ()
) -> Any:
    """Everything that the page shows, as plain data.

    Args:
        plan: what is compared.
        store: what was computed of it.
        notes: more sentences, each in English ("en") and Spanish ("es").
        claims: see `claims.measured`.
    """
    cells = [(cell, _known(cell, store)) for cell in plan]
    groups, schedules = _groups(cells, store), _schedules(cells)
    group_index = {name: i for i, name in enumerate(groups)}
    schedule_index = {name: i for i, name in enumerate(schedules)}
    return {
        "title": ", ".join(_titles(plan)),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": VERSION,
        "complete": all(outcome is not None for _, outcome in cells),
        "axes": [{"name": name, "values": list(map(shown, plan.axes[name]))} for name in plan.axes],
        "cells": [
            {**_cell(cell, outcome, store, plan, schedule_index), "group": group_index[key(cell)]}
            for cell, outcome in cells
        ],
        "groups": [*groups.values()],
        "schedules": [*schedules.values()],
        "references": _references(cells, store),
        "claims": list(claims),
        "notes": [*notes, *_notes(cells, store)],
    }


def _known(cell: Cell, store: Store) -> Outcome | None:
    """The outcome of a cell; None where it has none, or its files are gone."""
    outcome = store.outcomes.get(cell.id)
    if outcome is not None and outcome.status == "done" and not store.whole(outcome):
        return None
    return outcome


def shown(value: Any) -> Any:
    """A place on an axis as it is shown: numbers stay, nothing is "none"."""
    if value is None:
        return "none"
    return value if isinstance(value, (str, int, float)) else str(value)


def key(cell: Cell) -> tuple[tuple[str, str], ...]:
    """What the cells of a group have in common."""
    return tuple((name, str(shown(value))) for name, value in cell.setting.items())


def _titles(plan: Plan) -> list[str]:
    subjects = plan.axes.get("prompt") or plan.axes.get("image") or ()
    names = [Path(str(s)).name if "image" in plan.axes else str(s) for s in subjects]
    return names if len(names) <= 3 else [*names[:3], "…"]


def _command(cell: Cell, plan: Plan) -> str | None:
    """What makes a picture again: a command line, or of a loaded model a line of Python."""
    if cell.recipe.model not in plan.helms:
        return command(cell.recipe)
    if cell.recipe.image:
        return None
    return f"timonel.Recipe.read('pictures/{cell.id}.png').make(helm)"


def command(recipe: Recipe, out: str = "out") -> str:
    """The command line that makes a recipe's picture again, in the folder `out`."""
    video = recipe.image is not None
    sampler = recipe.sampler
    if recipe.table is not None:
        sampler += FILE
    elif recipe.grid:
        sampler += f"/{recipe.grid}"
    words = ["--model", recipe.model, "--sampler", sampler, "--steps", str(recipe.steps)]
    words += ["--seed", str(recipe.seed)]
    words += _options({ARGUMENTS[k]: v for k, v in recipe.arguments.items() if k in ARGUMENTS})
    for name, value in {**recipe.options, **recipe.grid_options}.items():
        words += ["--set", f"{name}={value}"]
    if recipe.noise != "independent" and not video:
        words += ["--noise", recipe.noise]
    words += _options(
        {f"--{k}": getattr(recipe, k) for k in ("width", "height", "dtype", "device")}
    )
    words += _options({"--negative": recipe.negative_prompt})
    words += _guided(recipe)
    words += ["-o", f"{out}/clip.mp4" if video else out]
    subject = str(recipe.image if video else recipe.prompt)
    return shell.command(
        shell.placed(["timonel", "animate" if video else "generate"], subject, words)
    )


def _options(values: Mapping[str, Any]) -> list[str]:
    return [word for k, v in values.items() if v is not None for word in (k, str(v))]


def _guided(recipe: Recipe) -> list[str]:
    g = recipe.guidance
    if g is None:
        return []
    typed = guided_words.typed(g.guidance())
    scale = [] if typed is None else ["--guidance", typed]
    unit = "" if g.unit == "ratio" else f"{g.unit}:"
    return scale + ([] if g.stop is None else ["--guidance-until", f"{unit}{g.stop:g}"])


# -- cells -----------------------------------------------------------------------------------------
def _cell(
    cell: Cell, outcome: Outcome | None, store: Store, plan: Plan, schedules: Mapping[Any, int]
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": cell.id,
        "at": {name: shown(value) for name, value in cell.at.items()},
        "status": "waiting",
        "reason": "",
        "schedule": None,
        **dict.fromkeys((*COUNTS, "picture", "frames", "fps", "full", "story")),
        "measures": dict.fromkeys(measure.MEASURES),
        "recipe": cell.recipe.model_dump(mode="json", exclude_none=True, exclude={"table"}),
        "command": _command(cell, plan),
    }
    if outcome is None:
        return data
    data |= {"status": outcome.status, "reason": outcome.reason}
    if outcome.status == "failed":
        return data
    data |= _pictures(outcome, store)
    data |= {name: getattr(outcome, name) for name in COUNTS}
    data["schedule"] = schedules[_schedule(outcome)]
    data["measures"] |= {name: plain(value) for name, value in outcome.measures.items()}
    if outcome.previews:
        size = {"count": outcome.previews, "width": outcome.width, "height": outcome.height}
        data["story"] = {"sprite": embedded(store.story(outcome.id)), **size}
    return data


def _pictures(outcome: Outcome, store: Store) -> dict[str, Any]:
    """The small picture, or the small frames of a video, and where the full one is."""
    shown, moving = small(outcome, store), bool(outcome.frames)
    return {
        "picture": None if moving else shown[0],
        "frames": shown if moving else None,
        "full": link(outcome, store),
        "fps": int(outcome.recipe.arguments.get("fps", 7)) if moving else None,
    }


# -- groups ----------------------------------------------------------------------------------------
def _groups(cells: Cells, store: Store) -> dict[Any, dict[str, Any]]:
    """A row for every setting: means over its samples, and how it compares with its equals."""
    settings = {key(cell): cell.setting for cell, _ in cells}
    members: dict[Any, list[tuple[Cell, Outcome]]] = {name: [] for name in settings}
    for cell, outcome in cells:
        if outcome is not None and outcome.status == "done":
            members[key(cell)].append((cell, outcome))
    groups = {name: _group(settings[name], members[name], store) for name in settings}
    errors = {name: _errors(members[name]) for name in settings}
    _judge(groups, errors)
    return groups


def _judge(groups: dict[Any, dict[str, Any]], errors: dict[Any, dict[Any, float]]) -> None:
    """Write verdicts among settings of equal task and cost, and which are on the Pareto front."""
    measured = [name for name in groups if groups[name]["count"]]
    for names in _alike(measured, lambda n: (_task(n), round(groups[n]["evaluations"], 6))):
        for name, verdict in measure.verdicts({name: errors[name] for name in names}).items():
            groups[name]["verdict"] = verdict
    compared = [name for name in measured if "latent_rmse" in groups[name]["mean"]]
    for names in _alike(compared, _task):
        points = {n: (groups[n]["evaluations"], groups[n]["mean"]["latent_rmse"]) for n in names}
        for name in measure.pareto(points):
            groups[name]["pareto"] = True


def _alike(names: Sequence[Any], by: Callable[[Any], Any]) -> list[list[Any]]:
    """The names in lists of equal `by(name)`, in order."""
    lists: dict[Any, list[Any]] = {}
    for name in names:
        lists.setdefault(by(name), []).append(name)
    return [*lists.values()]


def _task(name: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """What a setting is to do, such as its model and guidance; settings of one task compare."""
    return tuple(pair for pair in name if pair[0] not in CHOICE)


def _errors(members: Sequence[tuple[Cell, Outcome]]) -> dict[Any, float]:
    """Distance to the reference, sample by sample."""
    return {
        tuple(str(cell.at.get(name)) for name in SAMPLE_AXES): outcome.measures["latent_rmse"]
        for cell, outcome in members
        if outcome.measures.get("latent_rmse") is not None
    }


def _group(
    setting: Mapping[str, Any], members: list[tuple[Cell, Outcome]], store: Store
) -> dict[str, Any]:
    means: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    outcomes = [outcome for _, outcome in members]
    for name in measure.MEASURES:
        values = [o.measures.get(name, math.nan) for o in outcomes]
        values = [value for value in values if math.isfinite(value)]
        if values:
            means[name], errors[name] = measure.mean_and_error(values)
    energy, doubt = _energy(outcomes, store)
    return {
        "at": {name: shown(value) for name, value in setting.items()},
        "label": label(setting),
        "stochastic": any(o.stochastic for o in outcomes),
        "count": len(outcomes),
        **{name: _mean([getattr(o, name) for o in outcomes]) for name in COUNTS},
        "mean": means,
        "stderr": errors,
        "energy": energy,
        "energy_stderr": doubt,
        "verdict": None,
        "pareto": False,
    }


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def label(setting: Mapping[str, Any]) -> str:
    """A setting in words, such as "dpmpp_2m/karras, 10 steps"."""
    words = [str(setting["sampler"])] if "sampler" in setting else []
    words += [f"on {setting['grid']}"] if setting.get("grid") else []
    words += [f"{setting['steps']} steps"] if "steps" in setting else []
    said = ("model", "sampler", "grid", "steps")
    rest = {n: v for n, v in setting.items() if n not in said and v is not None}
    return ", ".join([*words, *(f"{n.replace('_', ' ')} {shown(v)}" for n, v in rest.items())])


def _energy(outcomes: list[Outcome], store: Store) -> tuple[float | None, float | None]:
    """Mean energy distance of a setting's samples to their references, and its standard error."""
    measured = [o for o in outcomes if store.done(o.reference) is not None]
    values = []
    for samples in _alike(measured, lambda o: (o.recipe.prompt, o.recipe.image)):
        if len(samples) >= measure.LEAST:
            ours = torch.cat([store.read_latents(o.id) for o in samples])
            theirs = torch.cat([store.read_latents(o.reference) for o in samples])
            values.append(measure.energy(ours, theirs))
    if not values:
        return None, None
    mean = math.fsum(v for v, _ in values) / len(values)
    return mean, math.sqrt(math.fsum(e**2 for _, e in values)) / len(values)


# -- schedules, references, notes ------------------------------------------------------------------
def _schedule(outcome: Outcome) -> tuple[str, ...]:
    """A schedule by its name and its levels, which depend on the model too."""
    return _schedule_name(outcome), *(f"{level:.6g}" for level in outcome.levels)


def _schedule_name(outcome: Outcome) -> str:
    recipe = outcome.recipe
    grid = recipe.grid or ("own levels" if recipe.sigmas else recipe.sampler)
    more = "".join(f", {name} {value}" for name, value in recipe.grid_options.items())
    return f"{grid}, {recipe.steps} steps{more}"


def _schedules(cells: Cells) -> dict[tuple[str, ...], dict[str, Any]]:
    schedules: dict[tuple[str, ...], dict[str, Any]] = {}
    names: set[str] = set()
    for _, outcome in cells:
        if outcome is not None and outcome.levels and _schedule(outcome) not in schedules:
            name = _schedule_name(outcome)
            label = f"{outcome.recipe.model}: {name}" if name in names else name
            names.add(name)
            schedules[_schedule(outcome)] = {
                "label": label,
                "sigmas": [plain(s) for s in outcome.levels],
                "log_snr": [-2 * math.log(s) if 0 < s < math.inf else None for s in outcome.levels],
                "times": outcome.times,
            }
    return schedules


def _references(cells: Cells, store: Store) -> list[dict[str, Any]]:
    references: dict[str, dict[str, Any]] = {}
    for cell, outcome in cells:
        fine = None if outcome is None else store.done(outcome.reference)
        if fine is None or fine.id in references:
            continue
        references[fine.id] = {
            "at": {name: shown(value) for name, value in cell.at.items() if name not in CHOICE},
            **_pictures(fine, store),
            "solver": f"{fine.recipe.sampler}/{fine.recipe.grid}",
            "steps": fine.recipe.steps,
            "change": fine.change,
        }
    return [*references.values()]


def _notes(cells: Cells, store: Store) -> list[dict[str, str]]:
    from .engine import TRUSTED

    outcomes = [o for _, o in cells if o is not None and o.status == "done"]
    notes = [SHARED] if outcomes else []
    if any(o.stochastic for o in outcomes):
        notes.append(STOCHASTIC)
    references = [fine for o in outcomes if (fine := store.done(o.reference))]
    change = max((fine.change or 0.0 for fine in references), default=0.0)
    if change > TRUSTED:
        text = f"{change:.2g}"
        spanish = DOUBTFUL["es"].format(change=text.replace(".", ","))
        notes.append({"en": DOUBTFUL["en"].format(change=text), "es": spanish})
    return notes
