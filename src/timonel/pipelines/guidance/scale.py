"""Which argument of a pipeline is its guidance scale, and what a call's guidance writes there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...core.guidance import Guidance, cfg
from ...errors import ArgumentError
from .. import modular
from ..caller import is_modular
from .gate import networks

SCALES = ("max_guidance_scale", "guidance_scale", "decoder_guidance_scale", "prior_guidance_scale")
# of distilled models that guide too, but only with a negative prompt
TRUE = "true_cfg_scale"
NEGATIVE = ("negative_prompt", "negative_prompt_embeds")


def distilled(pipe: Any) -> bool:
    """Whether the guidance scale is an input of the network, so that there is one part only.

    Source: guidance distillation, arXiv 2210.03142.
    """
    configs = [getattr(module, "config", None) for module, main in networks(pipe).items() if main]
    # of UNets alone: other networks have other inputs of this name
    unet = hasattr(pipe, "get_guidance_scale_embedding") or is_modular(pipe)
    keys = ("guidance_embeds", "time_cond_proj_dim") if unet else ("guidance_embeds",)
    return any(getattr(config, key, None) for config in configs for key in keys)


def argument(pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """The name of the argument that scales guidance.

    Args:
        pipe: the pipeline.
        parameters: of the pipeline's `__call__`, by name.
        options: the arguments of this call.

    Returns:
        The name; None where the scale is an input of the network, or there is no such argument.

    Raises:
        ArgumentError: the pipeline guides only with a negative prompt, and the call has none.
    """
    if TRUE in parameters and not hasattr(type(pipe), "do_classifier_free_guidance"):
        if any(options.get(name) is not None for name in NEGATIVE):
            return TRUE
        if not distilled(pipe):
            raise ArgumentError(
                f"{type(pipe).__name__} guides only with a negative prompt: give"
                " negative_prompt=' '"
            )
    return None if distilled(pipe) else _in_call(parameters)


def guiders(pipe: Any, parameters: Mapping[str, Any]) -> list[Any]:
    """The guider objects of a pipeline whose call has no scale."""
    if any(name in parameters for name in (*SCALES, TRUE)):
        return []
    return [one for one in modular.guiders(pipe).values() if hasattr(one, "guidance_scale")]


def usual(pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """The scale that the pipeline guides with in a call, from its arguments or by default.

    Args: as of `argument`.

    Returns:
        The scale; None where the pipeline computes no guidance of its own.
    """
    try:
        name = argument(pipe, parameters, options)
    except ArgumentError:
        return None
    if name is None:
        return next((float(guider.guidance_scale) for guider in guiders(pipe, parameters)), None)
    return _number(name, parameters, options)


def distilled_scale(
    pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any]
) -> float | None:
    """The scale that a distilled network gets as its input; None where it is not distilled."""
    name = _in_call(parameters)
    return _number(name, parameters, options) if name and distilled(pipe) else None


@contextmanager
def guiders_at(pipe: Any, parameters: Mapping[str, Any], value: float | None) -> Iterator[None]:
    """The guiders with the scale `value` while the context is open; None leaves them."""
    objects = [] if value is None else guiders(pipe, parameters)
    before = [guider.guidance_scale for guider in objects]
    for guider in objects:
        guider.guidance_scale = value
    try:
        yield
    finally:
        for guider, scale in zip(objects, before, strict=True):
            guider.guidance_scale = scale


def resolve_guidance(
    pipe: Any,
    parameters: Mapping[str, Any],
    options: dict[str, Any],
    guidance: Guidance | float | None,
    both: bool = False,
) -> tuple[Guidance | None, float | None]:
    """The guidance of a call, whose scale is written into the pipeline's own argument.

    Args:
        pipe: the pipeline.
        parameters: of the pipeline's `__call__`, by name.
        options: the arguments of this call; the scale is added to them.
        guidance: what the caller asks for; a number is a constant scale.
        both: whether the sampler reads the unconditional output at any scale.

    Returns:
        The guidance that the gate applies, None where it has nothing to do; and the scale that the
        pipeline itself computes with, where it is set here.

    Raises:
        ArgumentError: the pipeline cannot guide so, or the scale is passed twice.
    """
    if guidance is None:
        return None, None
    guidance = guidance if isinstance(guidance, Guidance) else cfg(guidance)
    name = argument(pipe, parameters, options)
    if name is None and distilled(pipe):
        scaled = _to_network(pipe, parameters, options, guidance)
        return (Guidance(terms=guidance.terms) if guidance.terms else None), scaled
    if guidance.scale is None:
        return guidance, None
    scales = guidance.scale if isinstance(guidance.scale, tuple) else (guidance.scale,)
    above = computed(guidance, both)
    if name is not None:
        _write(options, name, above)
        if len(set(scales)) > 1 and options.get(f"{name}_2") is not None:
            raise ArgumentError(f"give one scale per step or {name}_2=, not both")
    elif not guiders(pipe, parameters):
        raise ArgumentError(
            f"{type(pipe).__name__} takes no guidance_scale; leave the scale out of guidance="
        )
    return guidance, above


def computed(guidance: Guidance, both: bool) -> float | None:
    """The scale for the pipeline: above 1 it computes both parts, which the gate then changes.

    Args:
        guidance: of a call.
        both: whether the sampler reads the unconditional output at any scale.

    Returns:
        The scale; None where it stays the pipeline's own.
    """
    if guidance.scale is None:
        return None
    scales = guidance.scale if isinstance(guidance.scale, tuple) else (guidance.scale,)
    both = both or (guidance.method is not None and guidance.method.reads_uncond)
    off = set(scales) == {1.0} and not both
    return next((s for s in scales if s > 1), 1.0 if off else 2.0)


def _to_network(
    pipe: Any, parameters: Mapping[str, Any], options: dict[str, Any], guidance: Guidance
) -> float | None:
    """Write the one scale of a distilled network; refuse everything else of guidance.

    Returns:
        The scale where the pipeline reads it from its guider; else None.
    """
    name, guided = _in_call(parameters), guiders(pipe, parameters)
    always = (guidance.start, guidance.stop, guidance.unit) == (0.0, math.inf, "ratio")
    if guidance.bare:
        return None  # terms, beside the pipeline's own number
    constant = isinstance(guidance.scale, (int, float)) and always and guidance.method is None
    if not constant or guidance.rescale or guidance.forecast > 1 or not (name or guided):
        true = f", or give negative_prompt= for its {TRUE}" if TRUE in parameters else ""
        raise ArgumentError(
            f"the model of this {type(pipe).__name__} is guidance-distilled: the scale is an input"
            " of its network, which has no unconditional part, so there is nothing to switch"
            f" off, vary, rescale, forecast or combine otherwise; give guidance= one number{true}"
        )
    if name is None:
        return float(guidance.scale)  # type: ignore[arg-type]
    _write(options, name, guidance.scale)
    return None


def _write(options: dict[str, Any], name: str, value: Any) -> None:
    if options.get(name) is not None:
        raise ArgumentError(f"give the scale in guidance= or as {name}=, not both")
    options[name] = value


def _in_call(parameters: Mapping[str, Any]) -> str | None:
    return next((name for name in SCALES if name in parameters), None)


def _number(name: str, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    value = options.get(name)
    value = parameters[name].default if value is None else value
    return float(value) if isinstance(value, (int, float)) else None
