"""The parts of a guided network call: unconditional, conditional, and what else a pipeline computes
with them.

Most pipelines give their network [unconditional, conditional] as one batch. Where others stand is a
fact of the pipeline's class; `weights` measures the same from what the pipeline makes of the parts,
which checks the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError

# pipelines (or beginnings of their names) whose first part is the conditional one
CONDITIONAL_FIRST = ("DiT", "Lumina", "OmniGen", "StableCascade", "ZImage")
CONDITIONAL_FIRST_OF_THREE = ("StableDiffusionInstructPix2Pix", "StableDiffusionXLInstructPix2Pix")
SAMPLE_NAMES = ("sample", "hidden_states", "x", "latent_model_input", "noisy_latents")
NOT_BATCHED = (
    "rotary",
    "rope",
    "freqs",
    "txt_ids",
    "img_ids",
)  # places in the picture, whatever their length
REPEATED = (
    "encoder_hidden_states",
    "residual",
    "image_embeds",
)  # where frames are a batch: a sample has several
SECOND_DIM = ("encoder_hidden_states_llama3",)  # (layers, batch, …)
SLACK = 0.1  # how far, relative, a combination may be from linear and still be measured


class Shape(NamedTuple):
    """An output's number of parts, of samples in all of them, and whether it lists its samples."""

    parts: int
    size: int
    listed: bool


def perturbed(pipe: Any) -> bool:
    """Whether the last part is computed with perturbed attention, apart from guidance by the
    prompt.
    """
    return _flag(pipe, "do_perturbed_attention_guidance") is True


def guides(pipe: Any) -> bool | None:
    """Whether the pipeline says that it guides; None where it says nothing."""
    return _flag(pipe, "do_classifier_free_guidance")


def _flag(pipe: Any, name: str) -> bool | None:
    try:
        value = getattr(pipe, name, None)
        return None if value is None else bool(value)
    except (
        AttributeError,
        TypeError,
        RuntimeError,
        ValueError,
    ):  # a property before what it reads was set
        return None


def conditional(pipe: Any, parts: int) -> int:
    """Which part of a batch of `parts` is the conditional one."""
    if perturbed(pipe):
        return parts - 2
    names = [cls.__name__ for cls in type(pipe).__mro__]
    first = CONDITIONAL_FIRST + (CONDITIONAL_FIRST_OF_THREE if parts == 3 else ())
    return 0 if any(name.startswith(first) for name in names) else parts - 1


def sample_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | list[Tensor]:
    """The network's sample input: a tensor with a batch, or a list of samples."""
    named = [kwargs[name] for name in SAMPLE_NAMES if name in kwargs]
    for value in (*named, *args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            return value
        if isinstance(value, list) and value and all(_pictures(v) for v in value):
            return value
    raise ArgumentError(
        "the network was called without a batched tensor; timonel cannot tell its batch size"
    )


def _pictures(value: Any) -> bool:
    """Whether it is one sample of a list of them, or the pictures that make up one sample."""
    if isinstance(value, list):
        return bool(value) and all(v is None or _pictures(v) for v in value)
    return isinstance(value, Tensor) and value.ndim > 1


def same(a: Tensor | list[Tensor], b: Tensor | list[Tensor]) -> bool:
    """Whether two calls of a network were about the same sample."""
    if isinstance(a, list) or isinstance(b, list):
        pair = isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
        return pair and all(same(x, y) for x, y in zip(a, b, strict=True))
    if a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
        return True
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def batched(value: Tensor, size: int, name: str) -> int | None:
    """The dimension along which a network's argument has the batch, or None."""
    if any(word in name for word in NOT_BATCHED):
        return None
    dim = 1 if name in SECOND_DIM else 0
    length = value.shape[dim] if value.ndim > dim else 0
    each = length // size if any(word in name for word in REPEATED) else 1
    return dim if length and length == each * size else None


def narrow(value: Any, size: int, wanted: slice, listed: bool, name: str = "") -> Any:
    """`value` with only the `wanted` of `size` samples in everything that is batched."""
    if isinstance(value, Tensor):
        dim = batched(value, size, name)
        if dim is None:
            return value
        each = value.shape[dim] // size
        return value[(slice(None),) * dim + (slice(wanted.start * each, wanted.stop * each),)]
    if isinstance(value, dict):
        return _like(value, {k: narrow(v, size, wanted, listed, str(k)) for k, v in value.items()})
    if isinstance(value, list) and listed and len(value) == size:
        return value[wanted]
    if isinstance(value, (list, tuple)):
        return _like(value, [narrow(v, size, wanted, listed, name) for v in value])
    return value


def rearrange(
    value: Any,
    change: Callable[[list[Any]], list[Any]],
    count: int,
    size: int,
    listed: bool,
    frames: bool = False,
) -> Any:
    """An output of `count` parts, `size` samples in all, with its list of parts changed.

    `frames`: what is not the sample may have several of the batch for each sample.
    """
    if isinstance(value, Tensor):
        fits = value.ndim and (len(value) % size == 0 if frames else len(value) == size)
        return torch.cat(change(list(value.chunk(count)))) if fits else value
    if isinstance(value, dict):
        return _like(
            value, {k: rearrange(v, change, count, size, listed, frames) for k, v in value.items()}
        )
    if isinstance(value, list) and listed and len(value) == size:
        each = size // count
        made = change([torch.stack(value[i * each : (i + 1) * each]) for i in range(count)])
        return [sample for part in made for sample in part.unbind()]
    if isinstance(value, (list, tuple)):
        return _like(value, [rearrange(v, change, count, size, listed, frames) for v in value])
    return value


def blend(value: Any, other: Any, share: float) -> Any:
    """`value + share·(other - value)` for every floating-point tensor in two outputs alike."""
    if isinstance(value, Tensor):
        return (
            torch.lerp(value, other, share)
            if value.is_floating_point() and value.shape == other.shape
            else other
        )
    if isinstance(value, dict):
        return _like(value, {k: blend(v, other[k], share) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return _like(value, [blend(a, b, share) for a, b in zip(value, other, strict=True)])
    return other


def tensors(value: Any) -> Tensor | None:
    """The prediction in an output: its first tensor, or its list of samples as one tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
        return torch.stack(value) if len({v.shape for v in value}) == 1 else None
    for item in (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else ()
    ):
        found = tensors(item)
        if found is not None:
            return found
    return None


def _like(value: Any, made: Any) -> Any:
    """`made` in the type of `value`."""
    if isinstance(value, dict):
        return type(value)(**made) if is_dataclass(value) else made
    return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)


def weights(parts: Sequence[Tensor], combined: Tensor) -> list[float] | None:
    """w with `combined = ±sum(w·part)`, sum(w) near 1, by least squares; None where it is not such
    a sum.
    """
    if len({*(p.numel() for p in parts), combined.numel()}) > 1:
        return None
    rows = torch.stack([p.detach().float().flatten() for p in (*parts, combined)])
    products = (rows @ rows.T).double().cpu()
    if not bool(torch.isfinite(products).all()):  # a guard is to say so, not least squares
        return None
    inner, mixed, own = products[:-1, :-1], products[:-1, -1], float(products[-1, -1])
    found = torch.linalg.lstsq(inner, mixed[:, None], driver="gelsd").solution[:, 0]
    left = own - 2 * float(found @ mixed) + float(found @ inner @ found)
    total = float(found.sum())
    if not own > 0 or left > SLACK**2 * own or not 0.5 < abs(total) < 2:
        return None
    return [float(w) / total for w in found]


def is_sum(pair: Sequence[Tensor], combined: Tensor) -> bool:
    """Whether `combined` is a weighted sum of two parts, up to `SLACK`.

    With weights for each sample and its frames.
    """
    if pair[0].ndim == combined.ndim > 1 and pair[0].shape[1] == 2 * combined.shape[1]:
        pair = [part[:, : combined.shape[1]] for part in pair]  # the rest is a learned variance
    if len(combined) == 2 * len(pair[0]):
        combined = combined[: len(pair[0])]  # both parts are stepped, alike
    if pair[0].numel() != combined.numel() or len(pair[0]) != len(combined):
        return False
    keep = 2 if combined.ndim > 2 and pair[0].shape == combined.shape else 1
    c, u, left = (t.detach().float().flatten(keep).flatten(0, keep - 1) for t in (*pair, combined))

    def without(t: Tensor, other: Tensor) -> Tensor:
        tiny = torch.finfo(t.dtype).tiny
        inner = (t * other).sum(1, keepdim=True)
        return t - other * (inner / (other * other).sum(1, keepdim=True).clamp(min=tiny))

    rest = without(without(left, c), without(u, c))
    return bool(rest.norm() <= SLACK * left.norm())
