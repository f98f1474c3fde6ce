"""What the page shows: the cells, what they have in common per setting, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import __version__, shell
from ..core.sampler import FILE
from ..make.recipe import Recipe
from . import measure
from .pictures import data, link, small
from .plan import SAMPLE_AXES, Cell, Plan
from .store import Outcome, Store, plain

COUNTS = ("nfe", "evaluations", "evaluations_saved", "seconds")
CHOICE = (
    "sampler",
    "grid",
    "options",
    "grid_options",
    "noise",
    "guidance_until",
    "rescale",
    "steps",
)  # weighed
STOCHASTIC = {
    "en": "Samplers that draw noise make another picture of the same seed, and are right to: they have no distance to "
          "one picture. What can be compared is the distribution over seeds (energy distance; 0 is the same).",
    "es": "Los muestreadores que añaden ruido hacen otra imagen con la misma semilla, y está bien que así sea: no se "
          "mide su distancia a una imagen. Lo que se compara es la distribución sobre las semillas (distancia de "
          "energía; 0 es la misma).",
}  # fmt: skip
SHARED = {
    "en": "Seconds are a run's share of calls that served several runs at once, and its own steps; a picture alone "
          "takes longer.",
    "es": "Los segundos son la parte de cada muestra en llamadas que atendieron varias a la vez, más sus propios "
          "pasos; una imagen sola tarda más.",
}  # fmt: skip
DOUBTFUL = {
    "en": "Some references still changed by {change} (latent RMSE) when their steps were doubled; smaller "
          "distances than that say nothing.",
    "es": "Algunas referencias aún cambiaron {change} (RMSE latente) al duplicar sus pasos; distancias menores no "
          "dicen nada.",
}  # fmt: skip


def content(
    plan: Plan, store: Store, notes: Sequence[Mapping[str, str]] = (), claims: Sequence[Any] = ()
) -> Any:
    """Everything the page is made of, as plain data."""
    cells = [(cell, _known(cell, store)) for cell in plan]
    groups = _groups(cells, store)
    places = {key: i for i, key in enumerate(groups)}
    schedules = _schedules(cells)
    marks = {name: i for i, name in enumerate(schedules)}
    return {
        "title": ", ".join(_titles(plan)),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__, "complete": all(outcome is not None for _, outcome in cells),
        "axes": [{"name": name,
        "values": [shown(v) for v in plan.axes[name]]} for name in plan.axes],
        "cells": [_cell(cell, outcome, store, places[key(cell)], marks, plan) for cell,
        outcome in cells],
        "groups": [*groups.values()],
        "schedules": [*schedules.values()],
        "references": _references(cells, store),
        "claims": list(claims), "notes": [*notes, *_notes(cells, store)],
    }  # fmt: skip


def _known(cell: Cell, store: Store) -> Outcome | None:
    """What came of a cell; nothing yet where its files are gone."""
    outcome = store.outcomes.get(cell.id)
    return (
        None
        if outcome is None or (outcome.status == "done" and not store.whole(outcome))
        else outcome
    )


def shown(value: Any) -> Any:
    """A place on an axis as it is shown: numbers stay, nothing is "none"."""
    if value is None:
        return "none"
    return value if isinstance(value, (str, int, float)) else str(value)


def key(cell: Cell) -> tuple[tuple[str, str], ...]:
    """What the cells of a group have in common."""
    return tuple((name, str(shown(value))) for name, value in cell.setting.items())


def _titles(plan: Plan) -> list[str]:
    told = plan.axes.get("prompt") or plan.axes.get("image") or ()
    names = [Path(str(t)).name if "image" in plan.axes else str(t) for t in told]
    return names if len(names) <= 3 else [*names[:3], "…"]


def _command(cell: Cell, plan: Plan) -> str | None:
    """What makes a picture again; a loaded model has no name for the command line, and takes a line
    of Python.
    """
    if cell.recipe.model not in plan.helms:
        return command(cell.recipe)
    return (
        None if cell.recipe.image else f"timonel.Recipe.read('pictures/{cell.id}.png').make(helm)"
    )


def command(recipe: Recipe, out: str = "out") -> str:
    """The command line that makes a recipe's picture again."""
    video = recipe.image is not None
    sampler = recipe.sampler + (
        FILE if recipe.table is not None else f"/{recipe.grid}" if recipe.grid else ""
    )
    words = [
        "--model",
        recipe.model,
        "--sampler",
        sampler,
        "--steps",
        str(recipe.steps),
        "--seed",
        str(recipe.seed),
    ]
    names = {
        "motion_bucket_id": "motion",
        "fps": "fps",
        "noise_aug_strength": "noise",
        "num_frames": "frames",
    }
    for name, value in recipe.arguments.items():
        words += [f"--{names[name]}", str(value)] if name in names else []
    for name, value in {**recipe.options, **recipe.grid_options}.items():
        words += ["--set", f"{name}={value}"]
    if recipe.noise != "independent" and not video:
        words += ["--noise", recipe.noise]
    for name in ("width", "height", "dtype", "device"):
        if getattr(recipe, name) is not None:
            words += [f"--{name}", str(getattr(recipe, name))]
    if recipe.negative_prompt is not None:
        words += ["--negative", recipe.negative_prompt]
    words += _guided(recipe)
    words += ["-o", f"{out}/clip.mp4" if video else out]
    subject = str(recipe.image if video else recipe.prompt)
    return shell.command(
        shell.placed(["timonel", "animate" if video else "generate"], subject, words)
    )


def _guided(recipe: Recipe) -> list[str]:
    g = recipe.guidance
    if g is None:
        return []
    scale = [] if g.scale is None or isinstance(g.scale, list) else ["--guidance", f"{g.scale:g}"]
    unit = "" if g.unit == "ratio" else f"{g.unit}:"
    return scale + ([] if g.stop is None else ["--guidance-until", f"{unit}{g.stop:g}"])


# -- cells -----------------------------------------------------------------------------------------
def _cell(
    cell: Cell,
    outcome: Outcome | None,
    store: Store,
    group: int,
    marks: Mapping[Any, int],
    plan: Plan,
) -> dict[str, Any]:
    at = {name: shown(value) for name, value in cell.at.items()}
    told: dict[str, Any] = {
        "id": cell.id, "at": at, "group": group, "schedule": None, "status": "waiting",
        "reason": "", "nfe": None,
        "evaluations": None, "evaluations_saved": None, "seconds": None, "picture": None, "frames": None,
        "fps": None,
        "full": None, "story": None, "measures": dict.fromkeys(measure.MEASURES),
        "recipe": cell.recipe.model_dump(mode="json", exclude_none=True, exclude={"table"}),
        "command": _command(cell, plan),
    }  # fmt: skip
    if outcome is None:
        return told
    told |= {"status": outcome.status, "reason": outcome.reason}
    if outcome.status == "failed":
        return told
    told |= _pictures(outcome, store)
    told |= {name: getattr(outcome, name) for name in COUNTS}
    told["schedule"] = marks[_schedule(outcome)]
    told["measures"] |= {name: plain(value) for name, value in outcome.measures.items()}
    if outcome.previews:
        size = {"count": outcome.previews, "width": outcome.width, "height": outcome.height}
        told["story"] = {"sprite": data(store.story(outcome.id)), **size}
    return told


def _pictures(outcome: Outcome, store: Store) -> dict[str, Any]:
    """The small picture, or the small frames of a video, and where the full one is."""
    shown, moving = small(outcome, store), bool(outcome.frames)
    return {
        "picture": None if moving else shown[0], "frames": shown if moving else None,
        "full": link(outcome, store),
        "fps": int(outcome.recipe.arguments.get("fps", 7)) if moving else None,
    }  # fmt: skip


# -- groups ----------------------------------------------------------------------------------------
def _groups(
    cells: Sequence[tuple[Cell, Outcome | None]], store: Store
) -> dict[Any, dict[str, Any]]:
    """A row for every setting: means over its samples, and how it stands among those it is weighed
    against.
    """
    found: dict[Any, list[tuple[Cell, Outcome]]] = {}
    for cell, outcome in cells:
        found.setdefault(key(cell), [])
        if outcome is not None and outcome.status == "done":
            found[key(cell)].append((cell, outcome))
    settings = {key(cell): cell.setting for cell, _ in cells}
    groups = {name: _group(settings[name], members, store) for name, members in found.items()}
    equal: dict[Any, list[Any]] = {}  # in what is asked, and in what it costs
    for name, group in groups.items():
        if group["count"]:
            equal.setdefault((_asked(name), round(group["evaluations"], 6)), []).append(name)
    for names in equal.values():
        errors = {name: _errors(found[name]) for name in names}
        for name, verdict in measure.verdicts(errors).items():
            groups[name]["verdict"] = verdict
    models: dict[Any, list[Any]] = {}
    for name in groups:
        models.setdefault(_asked(name), []).append(name)
    for names in models.values():
        points = {
            n: (groups[n]["evaluations"], e)
            for n in names
            if (e := groups[n]["mean"].get("latent_rmse")) is not None
        }
        for name in measure.pareto(points):
            groups[name]["pareto"] = True
    return groups


def _asked(name: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Of what tells a setting apart, what is asked of it: a verdict is among those that are asked
    the same.
    """
    return tuple(pair for pair in name if pair[0] not in CHOICE)


def _errors(members: Sequence[tuple[Cell, Outcome]]) -> dict[Any, float]:
    """Distance to the reference, sample by sample."""
    told = (
        (tuple(str(cell.at.get(n)) for n in SAMPLE_AXES), o.measures.get("latent_rmse"))
        for cell, o in members
    )
    return {sample: value for sample, value in told if value is not None}


def _group(
    setting: Mapping[str, Any], members: list[tuple[Cell, Outcome]], store: Store
) -> dict[str, Any]:
    means: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    outcomes = [outcome for _, outcome in members]
    for name in measure.MEASURES:
        values = [
            v for o in outcomes if (v := o.measures.get(name)) is not None and math.isfinite(v)
        ]
        if values:
            means[name], errors[name] = measure.mean_and_error(values)
    energy, doubt = _energy(outcomes, store)
    average = {
        name: _mean([getattr(o, name) for o in outcomes])
        for name in ("nfe", "evaluations", "evaluations_saved", "seconds")
    }
    return {
        "at": {name: shown(value) for name, value in setting.items()}, "label": label(setting),
        "stochastic": any(o.stochastic for o in outcomes), "count": len(outcomes), **average,
        "mean": means,
        "stderr": errors, "energy": energy, "energy_stderr": doubt, "verdict": None,
        "pareto": False,
    }  # fmt: skip


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def label(setting: Mapping[str, Any]) -> str:
    """A setting in words."""
    words = [str(setting["sampler"])] if "sampler" in setting else []
    words += [f"on {setting['grid']}"] if setting.get("grid") else []
    words += [f"{setting['steps']} steps"] if "steps" in setting else []
    rest = [
        n
        for n in setting
        if n not in ("model", "sampler", "grid", "steps") and setting[n] is not None
    ]
    return ", ".join(
        [*words, *(f"{name.replace('_', ' ')} {shown(setting[name])}" for name in rest)]
    )


def _energy(outcomes: list[Outcome], store: Store) -> tuple[float | None, float | None]:
    """Energy distance between a setting's samples and their references, prompt by prompt."""
    found: dict[Any, list[Outcome]] = {}
    for outcome in outcomes:
        if store.done(outcome.reference) is not None:
            found.setdefault((outcome.recipe.prompt, outcome.recipe.image), []).append(outcome)
    values = []
    for mine in found.values():
        if len(mine) >= measure.LEAST:
            ours = torch.cat([store.read_latents(o.id) for o in mine])
            theirs = torch.cat([store.read_latents(o.reference) for o in mine])
            values.append(measure.energy(ours, theirs))
    if not values:
        return None, None
    mean = math.fsum(v for v, _ in values) / len(values)
    return mean, math.sqrt(math.fsum(e**2 for _, e in values)) / len(values)


# -- schedules, references, notes ------------------------------------------------------------------
def _schedule(outcome: Outcome) -> tuple[str, ...]:
    """What tells schedules apart: their name, and the levels, which depend on the model too."""
    return _schedule_name(outcome), *(f"{level:.6g}" for level in outcome.levels)


def _schedule_name(outcome: Outcome) -> str:
    grid = outcome.recipe.grid or (
        "own levels" if outcome.recipe.sigmas else outcome.recipe.sampler
    )
    more = "".join(f", {name} {value}" for name, value in outcome.recipe.grid_options.items())
    return f"{grid}, {outcome.recipe.steps} steps{more}"


def _schedules(
    cells: Sequence[tuple[Cell, Outcome | None]],
) -> dict[tuple[str, ...], dict[str, Any]]:
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    names: set[str] = set()
    for _, outcome in cells:
        if outcome is not None and outcome.levels and _schedule(outcome) not in found:
            snr = [-2 * math.log(s) if 0 < s < math.inf else None for s in outcome.levels]
            name = _schedule_name(outcome)
            label = f"{outcome.recipe.model}: {name}" if name in names else name
            names.add(name)
            found[_schedule(outcome)] = {
                "label": label, "sigmas": [plain(s) for s in outcome.levels], "log_snr": snr,
                "times": outcome.times,
            }  # fmt: skip
    return found


def _references(cells: Sequence[tuple[Cell, Outcome | None]], store: Store) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for cell, outcome in cells:
        fine = None if outcome is None else store.done(outcome.reference)
        if fine is None or fine.id in found:
            continue
        at = {name: shown(value) for name, value in cell.at.items() if name not in CHOICE}
        found[fine.id] = {
            "at": at, **_pictures(fine, store),
            "solver": f"{fine.recipe.sampler}/{fine.recipe.grid}",
            "steps": fine.recipe.steps, "change": fine.change,
        }  # fmt: skip
    return [*found.values()]


def _notes(cells: Sequence[tuple[Cell, Outcome | None]], store: Store) -> list[dict[str, str]]:
    from .engine import TRUSTED

    outcomes = [o for _, o in cells if o is not None and o.status == "done"]
    notes = [SHARED] if outcomes else []
    if any(o.stochastic for o in outcomes):
        notes.append(STOCHASTIC)
    changes = [
        fine.change
        for o in outcomes
        if (fine := store.done(o.reference)) and fine.change is not None
    ]
    if changes and max(changes) > TRUSTED:
        told = f"{max(changes):.2g}"
        notes.append(
            {
                "en": DOUBTFUL["en"].format(change=told),
                "es": DOUBTFUL["es"].format(change=told.replace(".", ",")),
            }
        )
    return notes
