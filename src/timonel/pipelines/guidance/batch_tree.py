"""Arguments and outputs of a network as trees of tensors that hold a batch, and its guidance parts.

A guided call computes several parts (unconditional, conditional, …) as one batch. Most pipelines
put the conditional part last; the classes that do not are listed here, and `weights` measures the
same from a pipeline's own combination, which checks the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...engine.tensor_trees import map_leaves
from ...errors import ArgumentError

# pipelines (or beginnings of their names) whose first part is the conditional one
CONDITIONAL_FIRST = ("DiT", "Lumina", "OmniGen", "StableCascade", "ZImage")
CONDITIONAL_FIRST_OF_THREE = ("StableDiffusionInstructPix2Pix", "StableDiffusionXLInstructPix2Pix")
SAMPLE_NAMES = ("sample", "hidden_states", "x", "latent_model_input", "noisy_latents")
# positions in the image, whatever their length
NOT_BATCHED = ("rotary", "rope", "freqs", "txt_ids", "img_ids")
# where frames are a batch, each sample has several of these
REPEATED = ("encoder_hidden_states", "residual", "image_embeds")
SECOND_DIM = ("encoder_hidden_states_llama3",)  # (layers, batch, …)
SLACK = 0.1  # relative distance from a linear combination up to which one is still measured


# -- which part is which -------------------------------------------------------------------------
class Shape(NamedTuple):
    """An output's number of parts, of samples in all of them, and whether it lists its samples."""

    parts: int
    size: int
    listed: bool


def perturbed(pipe: Any) -> bool:
    """Whether the last part is computed with perturbed attention, beside guidance by the prompt."""
    return _flag(pipe, "do_perturbed_attention_guidance") is True


def guides(pipe: Any) -> bool | None:
    """Whether the pipeline says that it guides; None where it says nothing."""
    return _flag(pipe, "do_classifier_free_guidance")


def _flag(pipe: Any, name: str) -> bool | None:
    try:
        value = getattr(pipe, name, None)
        return None if value is None else bool(value)
    # a property that is read before the call has set what it needs
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return None


def conditional(pipe: Any, parts: int) -> int:
    """The index of the conditional part in a batch of `parts` parts."""
    if perturbed(pipe):
        return parts - 2
    names = [cls.__name__ for cls in type(pipe).__mro__]
    first = CONDITIONAL_FIRST + (CONDITIONAL_FIRST_OF_THREE if parts == 3 else ())
    return 0 if any(name.startswith(first) for name in names) else parts - 1


def weights(parts: Sequence[Tensor], combined: Tensor) -> list[float] | None:
    """Weights w with `combined = ±sum(w·part)`, by least squares.

    Returns:
        The weights, divided by their sum; None where `combined` is no such sum, its weights do not
        sum to about 1, or a value is not finite (which a guard reports, not this).
    """
    solution = solved(parts, combined)
    if solution is None or not 0.5 < abs(sum(solution)) < 2:
        return None
    return [w / sum(solution) for w in solution]


def solved(parts: Sequence[Tensor], combined: Tensor, slack: float = SLACK) -> list[float] | None:
    """Weights w with `combined = sum(w·part)`, by least squares.

    Computed of the first part and what the others differ from it, which may be little.

    Args:
        parts: of one number of values.
        combined: what was made of them.
        slack: the largest distance from such a sum, relative.

    Returns:
        The weights; None where `combined` is no such sum, or a value is not finite.
    """
    if len({*(p.numel() for p in parts), combined.numel()}) > 1:
        return None
    first, *others = (p.detach().float().flatten() for p in parts)
    rows = torch.stack([first, *(p - first for p in others), combined.detach().float().flatten()])
    lengths = rows.norm(dim=1, keepdim=True)
    rows = rows / lengths.clamp(min=torch.finfo(rows.dtype).tiny)
    products, long = (rows @ rows.T).double().cpu(), lengths[:, 0].double().cpu()
    if not bool(torch.isfinite(products).all()) or not long[-1] > 0:
        return None
    inner, mixed = products[:-1, :-1], products[:-1, -1]
    solution = torch.linalg.lstsq(inner, mixed[:, None], driver="gelsd").solution[:, 0]
    residual = 1 - 2 * float(solution @ mixed) + float(solution @ inner @ solution)
    if residual > slack**2:
        return None
    total, *apart = (solution * long[-1] / long[:-1].clamp(min=1e-300)).tolist()
    return [total - sum(apart), *apart]


# -- reading a tree ------------------------------------------------------------------------------
def sample_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | list[Tensor]:
    """The network's sample input: a tensor with a batch, or a list of samples."""
    named = [kwargs[name] for name in SAMPLE_NAMES if name in kwargs]
    for value in (*named, *args, *kwargs.values()):
        if isinstance(value, Tensor) and value.ndim > 1:
            return value
        if isinstance(value, list) and value and all(_is_sample(v) for v in value):
            return value
    raise ArgumentError(
        "the network was called without a batched tensor; timonel cannot tell its batch size"
    )


def _is_sample(value: Any) -> bool:
    """Whether it is one sample of a list of them, or the images that make up one sample."""
    if isinstance(value, list):
        return bool(value) and all(v is None or _is_sample(v) for v in value)
    return isinstance(value, Tensor) and value.ndim > 1


def tensors(value: Any) -> Tensor | None:
    """The prediction in an output: its first tensor, or its list of samples as one tensor."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
        return torch.stack(value) if len({v.shape for v in value}) == 1 else None
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return None
    return next((t for t in map(tensors, value) if t is not None), None)


def batched(value: Tensor, size: int, name: str) -> int | None:
    """The dimension along which a network's argument has the batch, or None."""
    if any(word in name for word in NOT_BATCHED):
        return None
    dim = 1 if name in SECOND_DIM else 0
    length = value.shape[dim] if value.ndim > dim else 0
    each = length // size if any(word in name for word in REPEATED) else 1
    return dim if length and length == each * size else None


# -- changing a tree -----------------------------------------------------------------------------
def narrow(value: Any, size: int, wanted: slice, listed: bool) -> Any:
    """`value` with only the `wanted` of `size` samples in everything that is batched.

    Args:
        value: a tree of tensors by argument: the name of one says how it is batched.
        size: samples in the batch.
        wanted: the samples to keep.
        listed: whether the network takes its samples as a list.
    """

    def leaf(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return value[wanted]
        dim = batched(value, size, name) if isinstance(value, Tensor) else None
        if dim is None:
            return value
        each = value.shape[dim] // size
        return value[(slice(None),) * dim + (slice(wanted.start * each, wanted.stop * each),)]

    return map_leaves(leaf, value, is_leaf=_is_batch(size, listed))


def rearrange(
    value: Any,
    change: Callable[[list[Any]], list[Any]],
    count: int,
    size: int,
    listed: bool,
    frames: bool = False,
) -> Any:
    """An output with its list of parts changed.

    Args:
        value: the output, a tree of tensors.
        change: from a list of `count` parts to another list of parts.
        count: parts in the batch.
        size: samples in the batch, of all parts together.
        listed: whether the network returns its samples as a list.
        frames: whether outputs other than the sample may hold several rows for each sample.
    """

    def leaf(_: str, value: Any) -> Any:
        if isinstance(value, list):
            each = size // count
            stacked = [torch.stack(value[i * each : (i + 1) * each]) for i in range(count)]
            return [sample for part in change(stacked) for sample in part.unbind()]
        if not isinstance(value, Tensor) or not value.ndim or len(value) % size:
            return value
        if len(value) != size and not frames:
            return value
        return torch.cat(change(list(value.chunk(count))))

    return map_leaves(leaf, value, is_leaf=_is_batch(size, listed))


def _is_batch(size: int, listed: bool) -> Callable[[Any], bool]:
    """Says of a container whether it is the network's list of its `size` samples."""
    return lambda value: listed and isinstance(value, list) and len(value) == size


def blend(value: Any, other: Any, share: float) -> Any:
    """`value + share·(other - value)` for every floating-point tensor of two outputs."""

    def leaf(_: str, a: Any, b: Any) -> Any:
        fits = isinstance(a, Tensor) and a.is_floating_point() and a.shape == b.shape
        return torch.lerp(a, b, share) if fits else b

    return map_leaves(leaf, value, other)


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
