"""The doctor: what a model is, what suits it, what diffusers would do wrong, what is recommended.

    print(tm.doctor("stabilityai/stable-video-diffusion-img2vid-xt", "dpmpp_2m/karras").report())

Everything is read from the configuration, no weights are loaded. The recommendations are a table
with sources (`pipelines.family.presets`); what diffusers does wrong shows by running its scheduler
(`dry_run`). From a model to a report: `pipelines.family` -> `advice`, `findings` -> `report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import zoo
from ..core.grids import few_enough
from ..core.process import EDM, Flow, double
from ..core.process.edm import CLOCKS
from ..core.sampler import DEFAULT, STEPS, Sampler
from ..errors import ArgumentError, options
from ..pipelines.family.facts import Facts, Loop, loop, read
from ..pipelines.family.families import FAMILIES, Family, recognise
from ..pipelines.family.presets import PRESETS, Preset
from . import advice
from .advice import Advice
from .findings import Combination, examine

PREDICTIONS = {
    "sample": "the clean sample",
    "flow": "the flow",
    "edm": "EDM's F",
    "reverse_flow": "the flow backwards",
    "edm_v": "v at EDM's data scale",
}


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says of a model.

    Args:
        model: its name.
        pipeline: the class of its pipeline.
        scheduler: the class of its scheduler.
        family: a key of `FAMILIES`, or None.
        title: of the family, as its authors call it.
        known_by: the facts by which its family is recognised.
        doubt: what the configuration does not say.
        process: the noise process, in a line.
        prediction: what the network predicts.
        time: what the network gets for a time, in a line.
        samplers: those that suit, the best first.
        grids: those that suit, the best first.
        refused: the grids that the model cannot visit, with the reason.
        presets: recommendations for the family.
        alike: those for families that are configured like it.
        combination: the sampler that was examined.
    """

    model: str
    pipeline: str
    scheduler: str
    family: str | None
    title: str
    known_by: str
    doubt: str
    process: str
    prediction: str
    time: str
    samplers: tuple[Advice, ...]
    grids: tuple[Advice, ...]
    refused: Mapping[str, str]
    presets: tuple[Preset, ...]
    alike: Mapping[str, tuple[Preset, ...]]
    combination: Combination

    def report(self) -> str:
        """The diagnosis as plain text."""
        from .report import text

        return text(self)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain data, for JSON; a number that is not finite is None."""
        data: dict[str, Any] = _plain(asdict(self))
        return data | {"sound": self.combination.sound}


def doctor(
    model: Any,
    sampler: str | None = None,
    steps: int | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Examine a model, and a sampler on it.

    Args:
        model: a shipped model, a folder in diffusers' format, a hub name (its configuration is
            fetched, nothing else), a pipeline object or a scheduler.
        sampler: as one types it, or a diffusers class such as "DDIMScheduler"; None examines the
            model's own scheduler.
        steps: default the recommendation's for that sampler.
        flags: what one passes to that class's `from_config` besides, e.g.
            {"timestep_spacing": "trailing"}.

    Returns:
        What is sound, what is not, and what to change.

    Raises:
        ModelError: a model without a configuration.
        UnknownName: a sampler that nobody has.
    """
    if sampler is not None and not isinstance(sampler, str):
        raise ArgumentError(
            f"name the sampler, such as 'dpmpp_2m/karras'; got {type(sampler).__name__}"
        )
    flags = {} if flags is None else options("flags", flags)
    if flags and sampler is None:
        raise ArgumentError(
            f"flags {dict(flags)} belong to a sampler or a diffusers class; name it"
        )
    facts = read(model)
    habits = loop(facts)
    process = facts.process  # what cannot be read is refused here
    family = recognise(facts)
    unknown = Family(zoo.MODELS.get(facts.model, "of no family in the table"), "")
    row = FAMILIES.get(family or "", unknown)
    known = _shipped(facts) or PRESETS.get(family or "")
    presets = _defaults(facts, habits) if known is None else known
    count = _steps(presets, sampler) if steps is None else few_enough("steps", steps)
    return Diagnosis(
        facts.model, facts.pipeline, facts.scheduler_class, family, row.title, row.known_by,
        row.doubt, _process(facts), PREDICTIONS.get(facts.prediction, facts.prediction),
        _time(process),
        advice.samplers(facts, family), advice.grids_for(facts, family), advice.refused(facts),
        presets, {FAMILIES[key].title: PRESETS[key] for key in row.alike},
        examine(facts, habits, sampler, count, flags),
    )  # fmt: skip


def _process(facts: Facts) -> str:
    """The noise process in a line."""
    process = facts.process
    low, high = f"{process.sigma_min:.3g}", f"{process.sigma_max:.3g}"
    if isinstance(process, Flow):
        if facts.scheduler.get("use_dynamic_shifting"):
            return (
                "rectified flow, t from 1 to 0, shifted by the picture's size (tried: 1024 x 1024)"
            )
        return f"rectified flow, t from 1 to 0, shift {process.shift:g}"
    if isinstance(process, EDM):
        return f"EDM, sigma {high} to {low}"
    if process.kind == "trig":
        return "TrigFlow, t from pi/2 to 0"
    if process.kind == "crash":
        return "variance preserving, angles from pi/2 to 0 on the crash schedule"
    if math.isinf(process.sigma_max):
        return f"variance preserving with zero terminal SNR: pure noise down to sigma {low}"
    return f"variance preserving, {process.train_steps} levels, sigma {high} to {low}"


def _time(process: Any) -> str:
    """What the network gets for a time, in a line."""
    if isinstance(process, Flow):
        return (
            f"{process.time_scale:g}·t, fractions too"
            if process.clock == "t"
            else f"{process.time_scale:g}·({process.clock})"
        )
    if process.kind == "trig":
        return "t itself, 0 to pi/2"
    if process.kind == "crash":
        return "the angle as a share of pi/2, 1 to 0"
    if isinstance(process, EDM):
        ends = process.network_time(double([process.sigma_max, process.sigma_min])).tolist()
        return (
            f"{CLOCKS[process.clock]}, "
            + "{:.3g} to {:.3g}; whole training times mean nothing to it".format(*ends)
        )
    return f"the training index, {process.train_steps - 1} to 0"


def _shipped(facts: Facts) -> tuple[Preset, ...] | None:
    """The recommendation of a shipped model's card; None of another model."""
    if facts.model not in zoo.MODELS:
        return None
    card, source = zoo.card(facts.model), f"the card of {facts.model}"
    default = Preset(card.default_sampler, card.default_steps, card.default_guidance, source)
    return (default,)


def _defaults(facts: Facts, habits: Loop) -> tuple[Preset, ...]:
    """What a pipeline that is in no family does by itself."""
    if habits.steps is None:
        return ()
    source = f"diffusers, defaults of {facts.pipeline}"
    usual = "euler" if facts.process.kind != "vp" else DEFAULT
    note = f"the sampler is timonel's choice; its own scheduler is {facts.scheduler_class}"
    return (Preset(usual, habits.steps, habits.guidance, source, note),)


def _steps(presets: tuple[Preset, ...], sampler: str | None) -> int:
    """The steps of the recommendation for this sampler, else of the first, else timonel's."""
    if sampler is not None and not sampler.endswith("Scheduler"):
        named = Sampler(sampler)
        if named.fitted is not None:
            return named.fitted.steps
        for preset in presets:
            if Sampler(preset.sampler).label == named.label:
                return preset.steps
    return presets[0].steps if presets else STEPS


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
