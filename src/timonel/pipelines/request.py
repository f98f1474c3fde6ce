"""What a call is given, as Python's numbers and timonel's objects, or refused before any compute."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core import border
from ..core.grids import few_enough
from ..core.guidance import Guidance, cfg
from ..core.process import keys
from ..core.run import Run
from ..errors import (
    ArgumentError,
    TimonelError,
    finite,
    flag,
    function,
    instance,
    is_number,
    plain,
    several,
    shown,
    whole,
)

PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
COUNTS = ("num_inference_steps", *PER_PROMPT, "batch_size", "num_frames", "height", "width")
PROMPTS = (
    "prompt",
    "prompt_2",
    "prompt_3",
    "negative_prompt",
    "negative_prompt_2",
    "negative_prompt_3",
)
MOST_PIXELS = 65536  # of a side; a larger picture fits no memory
#: options of a scheduler whose default is None and that take a word
WORDS = ("process", "timestep_spacing", "variance_type")
#: errors that arguments cause; a full memory, a missing file or an interrupt is none of them
CAUSED = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
#: words of torch's errors that are the machine's
MACHINE = ("cuda", "cudnn", "cublas", "hip", "mps", "memory", "internal", "device-side")


def ours(given: Mapping[str, Any]) -> dict[str, Any]:
    """The helm's own arguments. Raises `ArgumentError` for what is none."""
    made = dict(given)
    if made["steps"] is not None:
        made["steps"] = few_enough("steps", made["steps"])
    if made["guidance"] is not None and not isinstance(made["guidance"], Guidance):
        made["guidance"] = cfg(made["guidance"])
    made["hooks"] = border.listed(made["hooks"])
    made["keep"] = 0 if made["keep"] is None else whole("keep", made["keep"], 0)
    if made["resume"] is not None:
        instance("resume", made["resume"], Run, "a run, e.g. helm.run or Run.load(path)")
    return made


def options(
    given: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The pipeline's arguments, numbers of numpy and 0-d tensors as Python's.

    Raises `ArgumentError` for counts that are none, and where `parameters` take a number or a
    function and get none.
    """
    made = {key: plain(value) if is_number(value) else value for key, value in given.items()}
    x = made.get("latents")
    if x is not None and (not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2):
        raise ArgumentError(
            f"latents must be a floating-point tensor, one sample after another, got {shown(x)}"
        )
    for key in COUNTS:
        if made.get(key) is not None:
            made[key] = whole(
                key, made[key], 1, MOST_PIXELS if key in ("width", "height") else None
            )
    return {key: _argument(key, value, parameters[key]) for key, value in made.items()}


def _argument(key: str, value: Any, parameter: inspect.Parameter) -> Any:
    """One argument of a pipeline, held against what its signature says."""
    if key == "guidance_rescale":
        return finite(key, value, 0, 1)
    if value is None:
        return value
    if parameter.annotation in (float, "float"):
        return finite(key, value)
    if parameter.annotation in (bool, "bool"):
        return bool(value) if isinstance(value, int) else flag(key, value)
    if key == "callback_on_step_end":
        return function(key, value, "lambda pipe, step, timestep, tensors: tensors", 4)
    if key == "output_type":
        return instance(key, value, str, "a word, e.g. 'pil'")
    if key in PROMPTS:
        return instance(key, value, (str, list, tuple, Mapping), "text, or a list of texts")
    return value


def generators(given: Any) -> None:
    """Raises `ArgumentError` unless it is a generator, a list of them, or None."""
    each = given if isinstance(given, (list, tuple)) else [given]
    wrong = [one for one in each if not isinstance(one, (torch.Generator, type(None)))]
    if wrong or not each:
        raise ArgumentError(
            "generator must be a torch.Generator or a list of them, e.g."
            f" torch.Generator().manual_seed(0), got {shown(given)}"
        )


def refused(pipe: Any, error: BaseException) -> ArgumentError | None:
    """The error of a pipeline that raised before its first network call, as ours; None where
    arguments are no cause.
    """
    torchs = type(error) is RuntimeError and not any(
        word in str(error).lower() for word in MACHINE
    )  # shapes
    if isinstance(error, TimonelError) or not (isinstance(error, CAUSED) or torchs):
        return None
    said = " ".join(str(error).split()) or type(error).__name__
    return ArgumentError(f"{type(pipe).__name__} cannot take these arguments: {said}")


def typed(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a scheduler by name, of the kinds that their defaults have, with Python's numbers;
    None stays.

    Raises `ArgumentError` for another kind, and for a number outside of `keys.RANGES`.
    """
    made = {}
    for key, value in given.items():
        default, value = defaults.get(key), plain(value)
        if value is not None and isinstance(default, bool):
            value = flag(
                key, bool(value) if value in (0, 1) else value
            )  # as some configs write them
        elif value is None and isinstance(default, (int, float)):
            raise ArgumentError(f"{key} must be a number, got None; leave it out for {default!r}")
        elif value is not None and key in keys.RANGES:
            value = keys.number(key, value, default)
        elif value is not None and isinstance(default, int):
            value = whole(
                key, int(value) if isinstance(value, float) and value.is_integer() else value, 0
            )
        elif value is not None and isinstance(default, float):
            value = finite(key, value)
        elif value is not None and (isinstance(default, str) or key in WORDS):
            instance(key, value, str, "a word")
        elif value is not None and isinstance(default, (list, tuple)):
            value = [whole(key, entry, 0) for entry in several(key, value, f"{key}=[0]")]
        made[key] = value
    return made


# -- of a scheduler --------------------------------------------------------------------------------
def step(raw: Any, sample: Any, generator: Any = None, eta: Any = None, tokens: Any = None) -> None:
    """Raises `ArgumentError` for what a scheduler's step cannot use."""
    for what, value in (("model_output", raw), ("sample", sample)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim:
            got = border.kind(value) if what == "model_output" else shown(value)
            raise ArgumentError(f"{what} must be a floating-point tensor (batch, …), got {got}")
    if raw.device != sample.device:
        raise ArgumentError(
            f"model_output is on {raw.device} and sample on {sample.device}; move one of them"
        )
    generators(generator)
    if eta is not None:
        finite("eta", eta)
    if tokens is not None and (
        not isinstance(tokens, Tensor) or tokens.shape != raw.shape[: tokens.ndim]
    ):
        raise ArgumentError(
            f"per_token_timesteps must be a tensor (batch, tokens) as in {tuple(raw.shape)}, got"
            f" {shown(tokens)}"
        )


def noised(samples: Any, noise: Any, timesteps: Any) -> Tensor:
    """The times of samples that get noise, (n,) in float64. Raises `ArgumentError` for what cannot
    be used.
    """
    border.tensor("samples", samples)
    border.tensor("noise", noise)
    listed = timesteps.reshape(-1) if isinstance(timesteps, Tensor) else timesteps
    found = numbers("timesteps", [listed] if is_number(listed) else listed)
    if not found:
        raise ArgumentError(
            f"timesteps must be one time for each sample, or one for all, got {shown(timesteps)}"
        )
    try:
        times = (len(found), *[1] * (samples.ndim - 1))
        torch.broadcast_shapes(samples.shape, noise.shape, times)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ArgumentError(
            f"samples {tuple(samples.shape)}, noise {tuple(noise.shape)} and {len(found)} timesteps"
            " do not fit"
        ) from None
    return torch.tensor(found, dtype=torch.float64)


def numbers(what: str, values: Any) -> tuple[float, ...] | None:
    """A list of levels, of any kind, as a tuple; None where there is none."""
    if values is None:
        return None
    return tuple(finite(what, one) for one in several(what, values, f"{what}=[999, 749, 499, 249]"))


def steps(value: Any) -> int | None:
    """A number of steps, None where there is none."""
    return None if value is None else few_enough("num_inference_steps", value)


def number(what: str, value: Any) -> float | None:
    """A number, None where there is none."""
    return None if value is None else finite(what, value)
