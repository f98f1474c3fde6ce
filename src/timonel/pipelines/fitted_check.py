"""Whether a fitted sampler runs where it was fitted: on the same network, prediction and guidance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import zoo
from ..core.fitted.fingerprint import fingerprint
from ..core.guidance import Guidance, cfg
from ..core.sampler import Sampler
from ..errors import ArgumentError, FittedElsewhere
from .guidance import scale
from .guidance.gate import networks

if TYPE_CHECKING:
    from ..core.fitted.sampler_file import Fitted

PARTS = (
    "timesteps",
    "sigmas",
    "strength",
    "denoising_start",
    "denoising_end",
)  # of a journey, or other levels


def guided(
    pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any], guidance: Guidance | None
) -> Guidance | None:
    """The guidance of a call, with the pipeline's own scale where none was given; None where it has
    none.

    `options`: of the call, with the scale that `scale.order` wrote there. A scale of at most 1 is
    no guidance.
    """
    if guidance is not None and guidance.scale is not None:
        return guidance
    own = _own(pipe, parameters, options)
    if own is None:
        return guidance
    return cfg(own) if guidance is None else replace(guidance, scale=own)


def _own(pipe: Any, parameters: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """The scale that the pipeline will use by itself."""
    for guider in scale.guiders(pipe, parameters):
        return float(guider.guidance_scale)
    try:
        name = scale.argument(pipe, parameters, options)
    except ArgumentError:  # it guides with a negative prompt only, and was given none
        return None
    told = name is None  # to the network itself, which has learned what any scale means
    name = name or next((name for name in scale.SCALES if name in parameters), None)
    if name is None:
        return None
    value = options[name] if options.get(name) is not None else parameters[name].default
    if not isinstance(value, (int, float)):
        return None
    return float(value) if told else max(float(value), 1.0)


def warn(fitted: Fitted, pipe: Any, prediction: str, guidance: Guidance | None) -> None:
    """Warn with `FittedElsewhere` where a sampler was fitted to something else than this call, and
    say to what.
    """
    found = [fingerprint(module) for module, main in networks(pipe).items() if main]
    differences = fitted.differences(found, prediction, guidance)
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
        model, steps, prediction: the shipped model's name, the number of steps, and what its
        network predicts. pipe, parameters, options, guidance: as for `guided`.
    """
    found = (
        None if any(options.get(name) is not None for name in PARTS) else zoo.fitted(model, steps)
    )
    if found is None or found.fitted is None:
        return None
    own = guided(pipe, parameters, options, guidance)
    known = [fingerprint(module) for module, main in networks(pipe).items() if main]
    return None if found.fitted.differences(known, prediction, own) else found
