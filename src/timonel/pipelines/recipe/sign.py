"""The recipe of a call of the helm, put into its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch

from ... import words
from ...core.data import GuidanceData
from ...core.hook import adapt
from ...core.sampler import Sampler
from ...hooks.control import Edit
from .. import request
from ..guidance import scale
from .data import RecipeData, versions

if TYPE_CHECKING:
    from ..helm import Helm
    from ..session import Session
    from ..sockets.scheduler import Scheduler

PLAIN = (
    "generator",
    "output_type",
    "return_dict",
    "callback_on_step_end_tensor_inputs",
    "num_inference_steps",
)
KEPT = ("variant", "revision", "pipeline_class", "config")  # of how a model is loaded


def sign(helm: Helm, session: Session, options: Mapping[str, Any], output: Any) -> None:
    """Put its recipe into every picture of a call.

    Args:
        helm: that was called.
        session: of the call.
        options: the pipeline's arguments.
        output: the pipeline's output.
    """
    images = _images(output)
    if not images:
        return
    from .images import sign as into

    common = _common(helm, session, options)
    for i, image in enumerate(images):
        seed = _seed(helm, options, i)
        if seed is not None and hasattr(image, "info"):
            recipe = RecipeData(**{**common, **_prompts(options, i, len(images)), "seed": seed})
            into(image, recipe.texts(image.size))


def _images(output: Any) -> list[Any]:
    found = getattr(output, "images", None)
    if found is None and isinstance(output, tuple) and output:
        found = output[0]
    return list(found) if isinstance(found, list) else []


def _common(helm: Helm, session: Session, options: Mapping[str, Any]) -> dict[str, Any]:
    """What all pictures of a call share."""
    run, asked, scheduler = helm.run, session.request, session.scheduler
    assert run is not None
    arguments, missing = _arguments(helm, options, asked.scale)
    besides = [f"hook {h.name!r}" for h in map(adapt, asked.hooks) if _acts(h)]
    besides += [
        name for name in ("callback_on_step_end", "callback") if options.get(name) is not None
    ]
    besides += ["resume="] if asked.resume is not None else []
    besides += ["generator="] if not helm.seeds else []
    many = run.latents.shape[0]
    listed = "sigmas" in arguments or "timesteps" in arguments
    steps = None if listed else scheduler.sampler.steps
    sampler = _settled(scheduler)
    own_levels = sampler.fitted is None and sampler.grid is None
    return {
        **_model(helm), **RecipeData.choice(sampler), "listed": own_levels or None,
        "steps": steps or run.steps,
        "guidance": None if asked.guidance is None else GuidanceData.of(asked.guidance),
        "width": arguments.pop("width", None), "height": arguments.pop("height", None),
        "arguments": arguments,
        "missing": missing or None, "besides": besides or None, "batch": many if many > 1 else None,
        "stopped_after": run.step if run.status == "stopped" else None, "versions": versions(),
    }  # fmt: skip


def _settled(scheduler: Scheduler) -> Sampler:
    """The sampler with the grid that was taken; without any where the levels are a list that the
    pipeline makes.
    """
    sampler, made = scheduler.sampler, scheduler.settled
    if sampler.fitted is not None or scheduler.session.request.named:
        return sampler
    listed = made.sigmas is not None or made.times is not None
    options = {} if listed else made.grid_options
    return replace(sampler, grid=None if listed else made.grid, grid_options=options)


def _model(helm: Helm) -> dict[str, Any]:
    """Which model it was, by name or, for a pipeline object, by its class and where it says it
    comes from.
    """
    if helm.name is None:
        origin = getattr(helm.pipe, "name_or_path", None) or getattr(helm.pipe, "config", {}).get(
            "_name_or_path"
        )
        return {"model": str(origin or "unknown"), "pipeline": type(helm.pipe).__name__}
    loading = helm.loading
    dtype = next(
        (loading[key] for key in ("dtype", "torch_dtype") if loading.get(key) is not None), None
    )
    kept = {k: _word(loading[k]) for k in KEPT if loading.get(k) is not None}
    device = loading.get("device")
    return {
        "model": helm.name, "device": None if device is None else str(device),
        "loading": kept or None,
        "dtype": {k: words.dtype(v) for k, v in dtype.items()} if isinstance(dtype, dict)
        else None if dtype is None else words.dtype(dtype),
    }  # fmt: skip


def _word(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def _arguments(
    helm: Helm, options: Mapping[str, Any], own: float | None
) -> tuple[dict[str, Any], list[str]]:
    """The pipeline's own arguments as data, and the names of those that a file cannot hold."""
    scaled = None if own is None else scale.argument(helm.pipe, helm.parameters, options)
    left_out = {
        *PLAIN,
        *request.PER_PROMPT,
        "prompt",
        "negative_prompt",
        "callback_on_step_end",
        "callback",
        scaled,
    }
    held, missing = dict[str, Any](), list[str]()
    for key, value in options.items():
        if key in left_out or value is None:
            continue
        if key.startswith(("prompt", "negative_prompt")) and not key.endswith(("_embeds", "_mask")):
            continue
        known, data = _data(value)
        if known:
            held[key] = data
        else:
            missing.append(key)
    return held, missing


def _prompts(options: Mapping[str, Any], i: int, many: int) -> dict[str, Any]:
    """The prompts of picture `i`: those in lists one by one, each for as many pictures in a row."""
    found, more = dict[str, Any](), dict[str, Any]()
    for key, value in options.items():
        if (
            not key.startswith(("prompt", "negative_prompt"))
            or key.endswith(("_embeds", "_mask"))
            or value is None
        ):
            continue
        if isinstance(value, (list, tuple)) and value:
            value = value[i * len(value) // many]
        if isinstance(value, str):
            (found if key in ("prompt", "negative_prompt") else more)[key] = value
    return {**found, "more_prompts": more or None}


def _seed(helm: Helm, options: Mapping[str, Any], i: int) -> int | None:
    """The seed of picture `i`."""
    if helm.seeds:
        return helm.seeds[i] if i < len(helm.seeds) else None
    given = options.get("generator")
    one = (given[i] if i < len(given) else None) if isinstance(given, (list, tuple)) else given
    return one.initial_seed() % 2**63 if isinstance(one, torch.Generator) else None


def _acts(hook: Any) -> bool:
    """Whether a hook may change the run; those of timonel look on, but for edits."""
    return isinstance(hook, Edit) or not type(hook).__module__.startswith("timonel.hooks.")


def _data(value: Any) -> tuple[bool, Any]:
    """Whether a value can be written as JSON, and what is written."""
    if isinstance(value, (str, bool)):
        return True, value
    if isinstance(value, Integral):
        return True, int(value)
    if isinstance(value, Real):
        return math.isfinite(value), float(value)
    if isinstance(value, (list, tuple)):
        parts = [_data(one) for one in value]
        return all(known for known, _ in parts), [data for _, data in parts]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        items = {key: _data(one) for key, one in value.items()}
        return all(known for known, _ in items.values()), {
            key: data for key, (_, data) in items.items()
        }
    return False, None
