"""Which of a pipeline's arguments is its guidance scale, and whether there is guidance to switch
off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...core.guidance import Guidance, cfg
from ...errors import ArgumentError
from .gate import networks

SCALES = ("max_guidance_scale", "guidance_scale", "decoder_guidance_scale", "prior_guidance_scale")
# of models that may also be told a scale, and guide only with a negative prompt
TRUE = "true_cfg_scale"
NEGATIVE = ("negative_prompt", "negative_prompt_embeds")


def distilled(pipe: Any) -> bool:
    """Whether the network is told the guidance scale (arXiv 2210.03142): then there is one part,
    always.
    """
    configs = [getattr(module, "config", None) for module, main in networks(pipe).items() if main]
    embeds = hasattr(
        pipe, "get_guidance_scale_embedding"
    )  # of UNets: elsewhere the same input tells other things
    keys = ("guidance_embeds", "time_cond_proj_dim") if embeds else ("guidance_embeds",)
    return any(getattr(config, key, None) for config in configs for key in keys)


def argument(pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """The argument that scales guidance; None where the network is told its scale, or there is no
    argument.

    Raises `ArgumentError` for a pipeline that guides only with a negative prompt and was given
    none.
    """
    if TRUE in parameters and not hasattr(type(pipe), "do_classifier_free_guidance"):
        if any(options.get(name) is not None for name in NEGATIVE):
            return TRUE
        if not distilled(pipe):
            raise ArgumentError(
                f"{type(pipe).__name__} guides only with a negative prompt: give"
                " negative_prompt=' '"
            )
    return None if distilled(pipe) else next((name for name in SCALES if name in parameters), None)


def guiders(pipe: Any, parameters: Mapping[str, Any]) -> list[Any]:
    """The objects that guide for pipelines whose call has no scale."""
    if any(name in parameters for name in (*SCALES, TRUE)):
        return []
    found = (getattr(pipe, name, None) for name in ("guider", "ocr_guider"))
    return [guider for guider in found if hasattr(guider, "guidance_scale")]


def usual(pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """The scale that the pipeline guides with in a call, whoever chose it; None where it has none
    of its own.
    """
    try:
        name = argument(pipe, parameters, options)
    except ArgumentError:
        return None
    if name is None:
        found = guiders(pipe, parameters)
        return float(found[0].guidance_scale) if found else None
    value = options.get(name)
    value = parameters[name].default if value is None else value
    return float(value) if isinstance(value, (int, float)) else None


@contextmanager
def told(pipe: Any, parameters: Mapping[str, Any], own: float | None) -> Iterator[None]:
    """The guiders with the scale `own` while the context is open."""
    found = [] if own is None else guiders(pipe, parameters)
    before = [guider.guidance_scale for guider in found]
    for guider in found:
        guider.guidance_scale = own
    try:
        yield
    finally:
        for guider, scale in zip(found, before, strict=True):
            guider.guidance_scale = scale


def order(
    pipe: Any,
    parameters: Mapping[str, Any],
    options: dict[str, Any],
    guidance: Guidance | float | None,
) -> tuple[Guidance | None, float | None]:
    """The guidance of a call, and the pipeline's own scale where it was set here; it is written
    into `options`.

    Raises `ArgumentError` where the pipeline cannot guide as asked.
    """
    made = guidance if guidance is None or isinstance(guidance, Guidance) else cfg(guidance)
    if made is None:
        return None, None
    name = argument(pipe, parameters, options)
    if distilled(pipe) and name is None:
        return None, _told(pipe, parameters, options, made)
    if made.scale is None:
        return made, None
    scales = made.scale if isinstance(made.scale, tuple) else (made.scale,)
    # above 1 the pipeline computes both parts; rows with another scale than this one are the gate's
    own = next((s for s in scales if s > 1), 1.0 if set(scales) == {1.0} else 2.0)
    if name is None and guiders(pipe, parameters):
        return made, own
    if name is None:
        raise ArgumentError(
            f"{type(pipe).__name__} takes no guidance_scale; leave the scale out of guidance="
        )
    if options.get(name) is not None:
        raise ArgumentError(f"give the scale in guidance= or as {name}=, not both")
    if len(set(scales)) > 1 and options.get(f"{name}_2") is not None:
        raise ArgumentError(f"give one scale per step or {name}_2=, not both")
    options[name] = own
    return made, own


def _told(
    pipe: Any, parameters: Mapping[str, Any], options: dict[str, Any], made: Guidance
) -> float | None:
    """A distilled network is told one scale; everything else about guidance is refused."""
    name = next((name for name in SCALES if name in parameters), None)
    constant = isinstance(made.scale, (int, float)) and (made.start, made.stop, made.unit) == (
        0.0,
        math.inf,
        "ratio",
    )
    if not constant or made.rescale or made.forecast > 1 or name is None:
        true = f", or give negative_prompt= for its {TRUE}" if TRUE in parameters else ""
        raise ArgumentError(
            f"the model of this {type(pipe).__name__} is guidance-distilled: its network is told"
            " the scale and has no unconditional half, so there is nothing to switch off, vary,"
            f" rescale or forecast; give guidance= one number{true}"
        )
    if options.get(name) is not None:
        raise ArgumentError(f"give the scale in guidance= or as {name}=, not both")
    options[name] = made.scale
    return None
