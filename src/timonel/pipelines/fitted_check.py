"""Whether a fitted sampler runs on the network, prediction and guidance of its fit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import zoo
from ..core.fitted.fingerprint import fingerprint
from ..core.guidance import Guidance, cfg
from ..core.sampler import Sampler
from ..errors import FittedElsewhere
from .guidance import scale
from .guidance.gate import networks

if TYPE_CHECKING:
    from ..core.fitted.sampler_file import Fitted

# arguments of a part of the levels, or of other levels
OTHER_LEVELS = ("timesteps", "sigmas", "strength", "denoising_start", "denoising_end")


def guided(
    pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any], guidance: Guidance | None
) -> Guidance | None:
    """The guidance of a call, with the pipeline's default scale where the caller gives none.

    Args:
        pipe: the pipeline.
        parameters: of the pipeline's `__call__`, by name.
        options: of the call, with the scale that `scale.resolve_guidance` wrote there.
        guidance: of the call.

    Returns:
        The guidance; None where the pipeline has none. A scale of at most 1 is no guidance.
    """
    if guidance is not None and guidance.scale is not None:
        return guidance
    value = scale.usual(pipe, parameters, options)
    # a distilled network has learned what any scale means, one below 1 too
    value = scale.distilled_scale(pipe, parameters, options) if value is None else max(value, 1.0)
    if value is None:
        return guidance
    return cfg(value) if guidance is None else replace(guidance, scale=value)


def warn(fitted: Fitted, pipe: Any, prediction: str, guidance: Guidance | None) -> None:
    """Warn with `FittedElsewhere` where a call differs from what a sampler was fitted to.

    Args:
        fitted: the sampler's file.
        pipe: the pipeline.
        prediction: what its network predicts, such as "epsilon".
        guidance: of the call, see `guided`.
    """
    differences = fitted.differences(_fingerprints(pipe), prediction, guidance)
    if differences:
        warnings.warn(
            f"sampler {fitted.name!r} runs where it was not fitted: {'; '.join(differences)}. It"
            " may be no better than a named one here; timonel tune fits another",
            FittedElsewhere,
            stacklevel=5,
        )


def shipped(
    model: str,
    steps: int,
    prediction: str,
    pipe: Any,
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
    guidance: Guidance | None,
) -> Sampler | None:
    """The sampler that was fitted to a shipped model for just this call; None where there is none.

    Args:
        model: the shipped model's name.
        steps: of the call.
        prediction: what its network predicts, such as "epsilon".
        pipe: the pipeline.
        parameters: of the pipeline's `__call__`, by name.
        options: of the call, with its scale.
        guidance: of the call.
    """
    if any(options.get(name) is not None for name in OTHER_LEVELS):
        return None
    sampler = zoo.fitted(model, steps)
    if sampler is None or sampler.fitted is None:
        return None
    guidance = guided(pipe, parameters, options, guidance)
    return (
        None if sampler.fitted.differences(_fingerprints(pipe), prediction, guidance) else sampler
    )


def _fingerprints(pipe: Any) -> list[Any]:
    return [fingerprint(module) for module, main in networks(pipe).items() if main]
