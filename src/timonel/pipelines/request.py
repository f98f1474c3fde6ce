"""The arguments of a call, as Python's numbers and timonel's objects, or refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import border
from ..core.grids import few_enough
from ..core.guidance import Guidance, cfg
from ..core.noise import MOST, checked
from ..core.process import keys
from ..core.prompts import Prompts, read
from ..core.run import Run
from ..core.sampler import Sampler
from ..errors import (
    ArgumentError,
    TimonelError,
    UnknownName,
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

#: arguments of pipelines with one entry per sample
COUNTED = (
    "prompt", "prompt_embeds", "task_prompt", "class_labels", "image", "image_embeds",
    "image_embeddings",
)  # fmt: skip
#: arguments of pipelines that say a part of the journey, and their ranges
SHARES = {"strength": (0.0, 1.0), "denoising_start": (1e-9, 1 - 1e-9), "denoising_end": (1e-9, 1.0)}
PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
COUNTS = ("num_inference_steps", *PER_PROMPT, "batch_size", "num_frames", "height", "width")
PROMPTS = (
    "prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3",
)  # fmt: skip
MOST_PIXELS = 65536  # of a side; a larger picture fits no memory
#: options of a scheduler whose default is None and that take a word
WORDS = ("process", "timestep_spacing", "variance_type")
#: errors that arguments cause; a full memory, a missing file or an interrupt is none of them
CAUSED = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
#: words of torch's errors that are the machine's
MACHINE = ("cuda", "cudnn", "cublas", "hip", "mps", "memory", "internal", "device-side")


class HelmArguments(NamedTuple):
    """The arguments of a call that are the helm's, not the pipeline's."""

    sampler: Sampler | None
    steps: int | None
    guidance: Guidance | None
    hooks: tuple[Any, ...]
    seeds: Any
    keep: int
    resume: Run | None
    weak: Any = None
    variation: Any = None
    prompts: Prompts | None = None
    negative_prompts: Prompts | None = None


def arguments(
    pipe: Any,
    parameters: Mapping[str, inspect.Parameter],
    args: Sequence[Any],
    options: Mapping[str, Any],
) -> tuple[HelmArguments, dict[str, Any]]:
    """The helm's arguments of a call, and the pipeline's by name.

    Args:
        pipe: the pipeline.
        parameters: of its call.
        args: what the helm was called with by position.
        options: and by name.

    Returns:
        Both.

    Raises:
        ArgumentError: an argument is none, or it was passed twice.
        UnknownName: nobody has one of this name.
    """
    helm = _of_helm({name: options.get(name) for name in HelmArguments._fields})
    named, name = dict(zip(parameters, args, strict=False)), type(pipe).__name__
    if len(args) > len(parameters):
        raise ArgumentError(f"{name} takes {len(parameters)} arguments, got {len(args)}")
    for key, value in options.items():
        if key in HelmArguments._fields:
            continue
        if key not in parameters:
            raise UnknownName(f"argument of {name}", key, [*parameters, *HelmArguments._fields])
        if key in named:
            raise ArgumentError(f"{key} was passed twice, by position and by name")
        named[key] = value
    for key, value in {
        **named,
        "prompts": helm.prompts,
        "negative_prompts": helm.negative_prompts,
    }.items():
        _check_texts(key, value.texts if isinstance(value, Prompts) else value)
    return helm, shares(_one_video_each(_typed_options(named, parameters), parameters))


def _check_texts(name: str, value: Any) -> None:
    """Raises `ArgumentError` for a text that no file can hold, and no tokenizer reads."""
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(text, (list, tuple)):
            _check_texts(name, text)
        elif isinstance(text, str) and any("\ud800" <= one <= "\udfff" for one in text):
            raise ArgumentError(
                f"{name}={shown(text)} has a half of a surrogate pair alone, which is no character:"
                " leave it out"
            )


def _of_helm(values: dict[str, Any]) -> HelmArguments:
    """The helm's arguments. Raises `ArgumentError` for what is none."""
    helm = HelmArguments(**values)
    sampler = None if helm.sampler is None else Sampler.of(helm.sampler)
    steps, guidance = helm.steps, helm.guidance
    if steps is not None:
        steps = few_enough("steps", steps)
    if guidance is not None and not isinstance(guidance, Guidance):
        guidance = cfg(guidance)
    hooks = tuple(border.listed(helm.hooks))
    keep = 0 if values["keep"] is None else whole("keep", helm.keep, 0)
    if helm.resume is not None:
        instance("resume", helm.resume, Run, "a run, e.g. helm.run or Run.load(path)")
    prompts, negative = (
        None if one is None else read(one) for one in (helm.prompts, helm.negative_prompts)
    )
    return helm._replace(
        sampler=sampler, steps=steps, guidance=guidance, hooks=hooks, keep=keep, prompts=prompts,
        negative_prompts=negative,
    )  # fmt: skip


def _one_video_each(
    options: dict[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Several videos of one picture as several pictures, so that each has a seed of its helm."""
    count, image = options.get("num_videos_per_prompt") or 1, options.get("image")
    if count == 1 or "prompt" in parameters:
        return options
    if isinstance(image, Tensor):
        many: Any = image.repeat_interleave(count, 0)
    else:
        each = image if isinstance(image, list) else [image]
        many = [one for one in each for _ in range(count)]
    return {**options, "image": many, "num_videos_per_prompt": 1}


def shares(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with numbers for the parts of a journey.

    Raises:
        ArgumentError: one is none, or two say where to begin, of which pipelines leave one unread.
    """
    numbers = {
        name: finite(name, options[name], low, high)
        for name, (low, high) in SHARES.items()
        if options.get(name) is not None and not isinstance(options[name], (list, tuple))
    }
    parts = {**options, **numbers}
    start, strength = parts.get("denoising_start"), parts.get("strength")
    if start is not None and strength is not None:
        raise ArgumentError(
            f"denoising_start={start} and strength={strength} both say where to begin; give one"
        )
    return parts


def samples(options: Mapping[str, Any]) -> int | None:
    """How many samples a call makes; None where its arguments do not say it."""
    name = next((key for key in COUNTED if options.get(key) is not None), None)
    if name is None:
        return options.get("batch_size")
    value = options[name]
    many = len(value) if isinstance(value, (list, tuple)) else 1
    if isinstance(value, Tensor):
        many = 1 if name == "image" and value.ndim == 3 else len(value)
    return many * next((int(options[key]) for key in PER_PROMPT if options.get(key)), 1)


def seeds(
    seeds: Sequence[int] | int | None,
    samples: int | None,
    parameters: Mapping[str, inspect.Parameter],
    options: Mapping[str, Any],
    known: tuple[int, ...],
) -> tuple[int, ...]:
    """Seeds of a call, one per sample, for the sampler's noise and for the pipeline's helm.

    Args:
        seeds: one per sample, or the first of consecutive ones.
        samples: how many the call makes, where known.
        parameters: of the pipeline's call.
        options: the pipeline's arguments.
        known: those of the run that the call resumes; empty: none is known.

    Returns:
        The seeds; none where the call brings generators.

    Raises:
        ArgumentError: they are none, or not as many as samples, or generators are there too.
    """
    if options.get("generator") is not None:
        generators(options["generator"])
        if seeds is not None:
            raise ArgumentError(
                "give seeds= or generator=, not both; seeds= also seeds the sampler's noise"
            )
        return ()
    count = samples or 1
    if seeds is None:
        seeds = known or int(torch.randint(2**31, ()))
    if is_number(seeds):
        first = whole("seeds", seeds, 0, MOST - count + 1)
        seeds = range(first, first + count)
    each = checked(seeds)
    if samples is not None and len(each) != samples:
        many = next((name for name in PER_PROMPT if name in parameters), None)
        more = f", or ask for more samples with {many}={len(each)}"
        raise ArgumentError(
            f"{len(each)} seeds for a call of {samples} sample{'s' * (samples > 1)}: give one per"
            f" sample, or one number{more if many and samples == 1 else ''}"
        )
    return each


def generator(seeds: Sequence[int], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The generator of a call, or one per sample, as its argument; none without seeds."""
    if not seeds or "generator" not in parameters:
        return {}
    each = [torch.Generator().manual_seed(seed) for seed in seeds]
    return {"generator": each[0] if len(each) == 1 else each}


def _typed_options(
    options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The pipeline's arguments, numbers of numpy and 0-d tensors as Python's.

    Raises `ArgumentError` for counts that are none, and where `parameters` take a number or a
    function and get none.
    """
    typed = {key: plain(value) if is_number(value) else value for key, value in options.items()}
    x = typed.get("latents")
    if x is not None and (not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2):
        raise ArgumentError(
            f"latents must be a floating-point tensor, one sample after another, got {shown(x)}"
        )
    for key in COUNTS:
        if typed.get(key) is not None:
            most = MOST_PIXELS if key in ("width", "height") else None
            typed[key] = whole(key, typed[key], 1, most)
    return {key: _argument(key, value, parameters[key]) for key, value in typed.items()}


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


def generators(value: Any) -> None:
    """Raises `ArgumentError` unless it is a generator, a list of them, or None."""
    each = value if isinstance(value, (list, tuple)) else [value]
    wrong = [one for one in each if not isinstance(one, (torch.Generator, type(None)))]
    if wrong or not each:
        raise ArgumentError(
            "generator must be a torch.Generator or a list of them, e.g."
            f" torch.Generator().manual_seed(0), got {shown(value)}"
        )


def refused(pipe: Any, error: BaseException) -> ArgumentError | None:
    """The error of a pipeline that raised before its first network call, as an `ArgumentError`.

    Args:
        pipe: the pipeline.
        error: what it raised.

    Returns:
        None where arguments are no cause.
    """
    words = str(error).lower()
    by_shapes = type(error) is RuntimeError and not any(word in words for word in MACHINE)
    if isinstance(error, TimonelError) or not (isinstance(error, CAUSED) or by_shapes):
        return None
    said = " ".join(str(error).split()) or type(error).__name__
    return ArgumentError(f"{type(pipe).__name__} cannot take these arguments: {said}")


def typed(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a scheduler, of the kinds that their defaults have, with Python's numbers.

    Args:
        defaults: of all options.
        values: some of them; None stays, where the default is no number.

    Raises:
        ArgumentError: a value is of another kind, or outside of `keys.RANGES`.
    """
    return {key: _of_kind(key, plain(v), defaults.get(key)) for key, v in values.items()}


def _of_kind(key: str, value: Any, default: Any) -> Any:
    """One option of a scheduler."""
    if isinstance(default, bool) and value is not None:
        return flag(key, bool(value) if value in (0, 1) else value)  # as some configs write them
    if value is None:
        if isinstance(default, (int, float)):
            raise ArgumentError(f"{key} must be a number, got None; leave it out for {default!r}")
        return None
    if key in keys.RANGES:
        return keys.number(key, value, default)
    if isinstance(default, int):
        return whole(key, _as_int(value), 0)
    if isinstance(default, float):
        return finite(key, value)
    if isinstance(default, str) or key in WORDS:
        return instance(key, value, str, "a word")
    if isinstance(default, (list, tuple)):
        return [whole(key, entry, 0) for entry in several(key, value, f"{key}=[0]")]
    return value


def _as_int(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    if eta is not None and not (isinstance(eta, float) and eta == 0):
        finite("eta", eta)
    if tokens is not None and (
        not isinstance(tokens, Tensor) or tokens.shape != raw.shape[: tokens.ndim]
    ):
        raise ArgumentError(
            f"per_token_timesteps must be a tensor (batch, tokens) as in {tuple(raw.shape)}, got"
            f" {shown(tokens)}"
        )


def of_sampler(eta: Any, use_clipped_model_output: Any) -> None:
    """Raises `ArgumentError` for arguments of a step that belong to the sampler, unless off."""
    if eta:
        raise ArgumentError(
            f"eta={eta} belongs to the sampler: from_config(…, sampler_options={{'eta': {eta}}})"
        )
    clipped = use_clipped_model_output
    if clipped is not None and flag("use_clipped_model_output", clipped):
        raise ArgumentError("use_clipped_model_output=True is not supported; leave it out")


def noised(samples: Any, noise: Any, timesteps: Any) -> Tensor:
    """The times of samples that get noise, (n,) in float64.

    Args:
        samples: clean samples, (batch, …).
        noise: of their shape.
        timesteps: one for each, or one for all.

    Raises:
        ArgumentError: they do not fit each other.
    """
    border.tensor("samples", samples)
    border.tensor("noise", noise)
    listed = timesteps.reshape(-1) if isinstance(timesteps, Tensor) else timesteps
    each = numbers("timesteps", [listed] if is_number(listed) else listed)
    if not each:
        raise ArgumentError(
            f"timesteps must be one time for each sample, or one for all, got {shown(timesteps)}"
        )
    try:
        times = (len(each), *[1] * (samples.ndim - 1))
        torch.broadcast_shapes(samples.shape, noise.shape, times)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ArgumentError(
            f"samples {tuple(samples.shape)}, noise {tuple(noise.shape)} and {len(each)} timesteps"
            " do not fit"
        ) from None
    return torch.tensor(each, dtype=torch.float64)


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
