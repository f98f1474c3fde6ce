"""The recipe of a call of the helm, put into its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch

from ... import words
from ...core.data import GuidanceData, PromptsData
from ...core.hook import adapt
from ...core.sampler import Sampler
from ...hooks.control import Edit
from .. import request
from ..guidance import scale
from .data import RecipeData, versions
from .tails import TailData, Tails

if TYPE_CHECKING:
    from ...core.run import Run
    from ..session import Session
    from ..sockets.scheduler import Scheduler
    from ..steered import Steered

# arguments of a pipeline that are no part of a recipe, or a field of it
LEFT_OUT = {
    "generator", "output_type", "return_dict", "callback", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs", "num_inference_steps", "output", *request.PER_PROMPT,
}  # fmt: skip
KEPT = ("variant", "revision", "pipeline_class", "config")  # of how a model is loaded
LIVE = "a prompt that was changed on the way"
CALLBACKS = ("callback_on_step_end", "callback")


def sign(helm: Steered, session: Session, options: Mapping[str, Any], output: Any) -> None:
    """Put its recipe into every picture of a call.

    Args:
        helm: that made the call.
        session: of the call.
        options: the arguments that the pipeline was called with.
        output: what the pipeline returned.
    """
    images = _images(output)
    if not images:
        return
    from .images import sign as into
    from .infotext import texts

    common = _common(helm, session, options)
    for i, image in enumerate(images):
        seed = _seed(session.request.seeds, options, i)
        if seed is not None and hasattr(image, "info"):
            own = {**_prompts(options, i, len(images)), "seed": seed, **_variation(session, i)}
            own |= _scheduled(session, i, len(images))
            recipe = RecipeData(**{**common, **own})
            into(image, texts(recipe, image.size))


def _images(output: Any) -> list[Any]:
    images = getattr(output, "images", None)
    if type(output) is dict:  # of a modular pipeline, several outputs by name
        images = output.get("images")
    elif isinstance(output, list):  # and one of them
        images = output
    elif images is None and isinstance(output, tuple) and output:
        images = output[0]
    return list(images) if isinstance(images, list) else []


def _common(helm: Steered, session: Session, options: Mapping[str, Any]) -> dict[str, Any]:
    """What all pictures of a call share."""
    run, guidance = session.newest, session.request.guidance
    assert run is not None
    if run.past:  # that which the run was begun with
        guidance = run.past[0][1].guidance
    arguments, missing = _arguments(helm, options, session.request.scale)
    scheduler = session.scheduler
    listed = "sigmas" in arguments or "timesteps" in arguments
    sampler, batch = _settled(scheduler), run.latents.shape[0]
    fields = {
        **_model(helm),
        **RecipeData.choice(sampler),
        "listed": (sampler.fitted is None and sampler.grid is None) or None,
        "steps": (None if listed else scheduler.sampler.steps) or _begun_steps(session, run),
        "guidance": None if guidance is None else GuidanceData.of(guidance),
        "tails": [TailData.of(tail) for tail in run.journey] or None,
        "width": arguments.pop("width", None),
        "height": arguments.pop("height", None),
        "missing": missing,
        "besides": _besides(session, options),
        "batch": batch if batch > 1 else None,
        "stopped_after": run.step if run.status == "stopped" else None,
        "versions": versions(),
    }
    return {**{k: v for k, v in fields.items() if v not in (None, [])}, "arguments": arguments}


def _begun_steps(session: Session, run: Run) -> int:
    """The steps of the list that a run was begun with."""
    return session.begun.steps if run.journey and session.begun is not None else run.steps


def _besides(session: Session, options: Mapping[str, Any]) -> list[str]:
    """What else had a part in a call and is in no recipe."""
    hooks = [hook for hook in map(adapt, session.request.hooks) if _acts(hook)]
    besides = [f"hook {hook.name!r}" for hook in hooks]
    besides += [name for name in CALLBACKS if options.get(name) is not None]
    besides += [LIVE] if _schedules(session) is None else []
    besides += ["resume="] if session.request.resume is not None else []
    besides += ["weak="] if session.request.weak is not None else []
    return besides + ([] if session.request.seeds else ["generator="])


def _settled(scheduler: Scheduler) -> Sampler:
    """The sampler with the grid that was taken; without one where the pipeline lists the levels."""
    sampler, taken = scheduler.sampler, scheduler.settled
    if sampler.fitted is not None or scheduler.session.request.named:
        return sampler
    if taken.sigmas is not None or taken.times is not None:
        return replace(sampler, grid=None, grid_options={})
    return replace(sampler, grid=taken.grid, grid_options=taken.grid_options)


def _model(helm: Steered) -> dict[str, Any]:
    """The model by name, or of a pipeline object its class and where it says it comes from."""
    pipe, loading = helm.pipe, {k: v for k, v in helm.loading.items() if v is not None}
    if helm.name is None:
        origin = getattr(pipe, "name_or_path", None)
        origin = origin or getattr(pipe, "config", {}).get("_name_or_path")
        origin = origin or getattr(pipe, "_pretrained_model_name_or_path", None)
        return {"model": str(origin or "unknown"), "pipeline": type(pipe).__name__}
    dtype = loading.get("dtype", loading.get("torch_dtype"))
    if isinstance(dtype, dict):
        dtype = {part: words.dtype(value) for part, value in dtype.items()}
    elif dtype is not None:
        dtype = words.dtype(dtype)
    return {
        "model": helm.name,
        "device": str(loading["device"]) if "device" in loading else None,
        "loading": {k: _word(loading[k]) for k in KEPT if k in loading} or None,
        "dtype": dtype,
    }


def _word(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def _is_prompt(name: str) -> bool:
    return name.startswith(("prompt", "negative_prompt")) and not name.endswith(
        ("_embeds", "_mask")
    )


def _arguments(
    helm: Steered, options: Mapping[str, Any], own: float | None
) -> tuple[dict[str, Any], list[str]]:
    """The pipeline's own arguments as data, and the names of those that a file cannot hold."""
    scaled = None if own is None else scale.argument(helm.pipe, helm.parameters, options)
    arguments, missing = dict[str, Any](), list[str]()
    for key, value in options.items():
        if value is None or key in LEFT_OUT or key == scaled or _is_prompt(key):
            continue
        try:
            arguments[key] = _data(value)
        except TypeError:
            missing.append(key)
    return arguments, missing


def _prompts(options: Mapping[str, Any], i: int, count: int) -> dict[str, Any]:
    """The prompts of picture `i` of `count`: lists one by one, each for as many in a row."""
    fields, more = dict[str, Any](), dict[str, Any]()
    for key, value in options.items():
        if not _is_prompt(key):
            continue
        if isinstance(value, (list, tuple)) and value:
            value = value[i * len(value) // count]
        if isinstance(value, str):
            (fields if key in ("prompt", "negative_prompt") else more)[key] = value
    return {**fields, "more_prompts": more or None}


def _schedules(session: Session) -> tuple[Any, Any] | None:
    """The schedules of the prompts as they held; None where no schedule says it."""
    prompted, plan = session.gate.prompts if session.gate else None, session.request.prompts
    if prompted is not None and prompted.live and session.run is not None:
        journey: tuple[Any, Any] | None = prompted.journey_of(session.run.table)
        steps = _begun_steps(session, session.run)
        late = any(one is not None and one.entries[-1].stop >= steps for one in journey or ())
        return None if late else journey  # behind the steps that the call begins with
    return (None, None) if plan is None else (plan.positive, plan.negative)


def _scheduled(session: Session, i: int, count: int) -> dict[str, Any]:
    """The prompts of picture `i` of `count` at its later steps."""
    schedules = zip(("prompts", "negative_prompts"), _schedules(session) or (), strict=False)
    return {
        key: PromptsData.of(schedule.of(i, count))
        for key, schedule in schedules
        if schedule is not None
    }


def _seed(seeds: Sequence[int] | None, options: Mapping[str, Any], i: int) -> int | None:
    """The seed of picture `i`."""
    if seeds:
        return seeds[i] if i < len(seeds) else None
    generator = options.get("generator")
    if isinstance(generator, (list, tuple)):
        generator = generator[i] if i < len(generator) else None
    return generator.initial_seed() % 2**63 if isinstance(generator, torch.Generator) else None


def _variation(session: Session, i: int) -> dict[str, Any]:
    """The other seed of picture `i`, and how much of it."""
    variation = session.request.variation
    if variation is None or i >= len(variation[0]):
        return {}
    return {"variation": (variation[0][i], variation[1])}


def _acts(hook: Any) -> bool:
    """Whether a hook may change the run; those of timonel look on, but for edits."""
    if isinstance(hook, Tails):  # the recipe has what it orders
        return False
    return isinstance(hook, Edit) or not type(hook).__module__.startswith("timonel.hooks.")


def _data(value: Any) -> Any:
    """A value as JSON has it. Raises `TypeError` where it cannot be written."""
    if isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_data(one) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _data(one) for key, one in value.items()}
    raise TypeError
