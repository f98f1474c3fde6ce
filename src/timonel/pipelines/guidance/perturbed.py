"""A network made worse for one evaluation: layers skipped, self-attention perturbed.

Terms of guidance compare the conditional output with one of a worse network, which is the same
network with something changed in some of its layers:

- skip_layers, autoguidance: transformer blocks hand on what they get. Which of their arguments that
  is their source says, or where it returns now this, now that, diffusers' table of blocks
  (`diffusers.hooks`, `TransformerBlockRegistry`).
- pag: self-attention returns its values, as if every token looked only at itself.
- seg: the queries of self-attention are blurred over the picture.

What is changed is put on for that evaluation and taken off whatever happens.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...core.guidance import Term
from ...errors import ArgumentError, ModelError, UnknownName

Size: TypeAlias = "tuple[int, int] | None"

# lists of blocks that a number counts in, where a network has several: the first that it has
STACKS = (
    "transformer_blocks", "blocks", "layers", "joint_transformer_blocks", "double_blocks",
    "double_stream_blocks", "visual_transformer_blocks",
)  # fmt: skip
# other lists of blocks, which have names
LISTS = (
    *STACKS, "single_transformer_blocks", "single_stream_blocks", "temporal_transformer_blocks",
    "transformer_layers", "noise_refiner", "context_refiner", "text_transformer_blocks",
)  # fmt: skip
# networks of pictures (batch, channels, height, width) whose queries are those of the picture alone
SMOOTHED = (
    "DiTTransformer2DModel", "HunyuanDiT2DModel", "LuminaNextDiT2DModel",
    "PixArtTransformer2DModel", "SD3Transformer2DModel", "UNet2DConditionModel",
)  # fmt: skip
# computed by torch's function, whose arguments can be seen
SEEN = ("scaled_dot_product_attention", "dispatch_attention_fn")
# processors of plain attention that compute it in their own way
OTHER_WAYS = ("AttnProcessor", "SlicedAttnProcessor", "XFormersAttnProcessor")


def check(module: nn.Module, term: Term) -> None:
    """Check that a network can be made worse so.

    Raises:
        ArgumentError, UnknownName: it has no such layers.
        ModelError: its layers cannot be changed so.
    """
    if term.kind == "autoguidance" and term.layers is None:
        return  # another network
    name = type(module).__name__
    if _cached(module):
        raise ModelError(
            f"{term.kind} needs an evaluation of its own, and {name} has a cache of diffusers',"
            f" which would hand out what it remembers: call disable_cache(), or do without it"
        )
    if term.kind == "seg" and name not in SMOOTHED:
        raise ModelError(
            f"seg blurs the queries of a picture's tokens, which are not alone in {name}: it works"
            f" on {', '.join(SMOOTHED)}"
        )
    compiled = next(
        (m for layer in parts(module, term).values() for part in layer.values()
         for m in part.modules() if m._compiled_call_impl is not None), None,
    )  # fmt: skip
    if compiled is not None:
        raise ModelError(
            f"{term.kind} changes layers of {name}, and {type(compiled).__name__} is compiled:"
            " compile the whole network, network.compile(), whose own forward is used for it"
        )


def _cached(module: nn.Module) -> bool:
    """Whether a cache of diffusers' remembers what the network's blocks returned."""
    registries = (part.__dict__.get("_diffusers_hook") for part in module.modules())
    return any(
        getattr(hook, "_is_stateful", False)
        for registry in registries
        if registry is not None
        for hook in registry.hooks.values()
    )


@contextmanager
def perturbed(module: nn.Module, term: Term, size: Size = None) -> Iterator[None]:
    """The network with its layers changed, while the context is open.

    Args:
        module: the network.
        term: what is changed in which layers.
        size: height and width of the sample, for `seg`.

    Raises:
        ModelError: a layer computes in another way than it seemed to.
    """
    change = {"pag": _valued, "seg": _blurred}.get(term.kind, _skipped)
    chosen = parts(module, term)
    values = {layer: _Values() for layer in chosen}
    with ExitStack() as stack:
        for layer, named in chosen.items():
            for name, part in named.items():
                stack.enter_context(change(Change(name, part, term, size, values[layer])))
        yield
    still = [layer for layer, mode in values.items() if term.kind == "pag" and not mode.count]
    if still:
        raise ModelError(
            f"pag cannot change {still[0]!r} of {type(module).__name__}: in this call its"
            " self-attention is not computed by torch's scaled_dot_product_attention, of one"
            " sequence alone"
        )


def parts(module: nn.Module, term: Term) -> dict[str, dict[str, nn.Module]]:
    """For each layer of a term the submodules that it changes, by name.

    Raises:
        ArgumentError, UnknownName, ModelError: see `check`.
    """
    named = dict(module.named_modules())
    if term.kind in ("pag", "seg"):
        fitting = {name for name, part in named.items() if _is_self_attention(part)}
    else:
        fitting = {name for name in named if _is_block(named, name)}
    chosen: dict[str, dict[str, nn.Module]] = {}
    for layer in _layers(module, term):
        prefix = _name(module, layer, named)
        inside = [n for n in named if n in fitting and (n == prefix or n.startswith(f"{prefix}."))]
        if not inside:
            raise ModelError(_nothing(module, term, prefix, named[prefix]))
        # a block within another is skipped with it
        outer = (n for n in inside if not any(n.startswith(f"{other}.") for other in inside))
        chosen[prefix] = {name: named[name] for name in outer}
    return chosen


def _nothing(module: nn.Module, term: Term, prefix: str, layer: nn.Module) -> str:
    what = (
        "no self-attention that torch's scaled_dot_product_attention computes"
        if term.kind in ("pag", "seg")
        else "no transformer block that returns the streams it gets"
    )
    return (
        f"{term.kind} cannot change {prefix!r} of {type(module).__name__}: its"
        f" {type(layer).__name__} has {what}"
    )


# -- which layers --------------------------------------------------------------------------------
def _layers(module: nn.Module, term: Term) -> Sequence[int | str]:
    """The layers that a term names, or where it names none a UNet's middle."""
    if term.layers is not None:
        return term.layers
    if isinstance(getattr(module, "mid_block", None), nn.Module):
        return ("mid_block",)
    stack, blocks = _stack(module)
    raise ArgumentError(
        f"{term.kind} on {type(module).__name__} needs layers=, of the {len(blocks)} {stack}, e.g."
        f" layers=[{len(blocks) // 2}]"
    )


def _stack(module: nn.Module) -> tuple[str, nn.ModuleList]:
    """The blocks that numbers count."""
    for name in STACKS:
        blocks = getattr(module, name, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks):
            return name, blocks
    names = [name for name, _ in module.named_children()]
    raise ArgumentError(
        f"the layers of {type(module).__name__} have names, no numbers, e.g. 'mid_block' or"
        f" 'down_blocks.1'; it has {', '.join(names)}"
    )


def _name(module: nn.Module, layer: int | str, named: dict[str, nn.Module]) -> str:
    """The name of a layer. Raises `ArgumentError`, `UnknownName` where there is none."""
    if isinstance(layer, str):
        if layer not in named or not layer:
            raise UnknownName(f"layer of {type(module).__name__}", layer, [n for n in named if n])
        return layer
    stack, blocks = _stack(module)
    if layer >= len(blocks):
        raise ArgumentError(
            f"layer {layer} is not one of the {len(blocks)} {stack} of {type(module).__name__}, 0"
            f" to {len(blocks) - 1}"
        )
    return f"{stack}.{layer}"


@cache
def _registered() -> dict[Any, Any]:
    """What diffusers knows of the arguments and outputs of its transformer blocks."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    TransformerBlockRegistry._register()
    return dict(TransformerBlockRegistry._registry)


def _is_block(named: dict[str, nn.Module], name: str) -> bool:
    """Whether a submodule is a transformer block, by diffusers' table or the list that it is in."""
    block: Any = type(named[name])
    return (block in _registered() or name.rpartition(".")[0] in LISTS) and bool(_streams(block))


@cache
def _streams(block: Any) -> tuple[str, ...]:
    """The arguments that a block returns changed, in their order; none where it does not say."""
    parameters = list(inspect.signature(block.forward).parameters)
    returned = _returned(block.forward)
    if len(returned) == 1 and set(streams := returned.pop()) <= set(parameters[1:]):
        return streams
    facts = _registered().get(block)
    if facts is None:
        return ()
    places = {facts.return_hidden_states_index: facts.hidden_states_argument_name}
    if facts.return_encoder_hidden_states_index is not None:
        other = facts.encoder_hidden_states_argument_name
        places[facts.return_encoder_hidden_states_index] = other
    streams = tuple(places[i] for i in sorted(places))
    return streams if set(streams) <= set(parameters) else ()


def _returned(function: Any) -> set[tuple[str, ...]]:
    """The names that the `return`s of a function have; an empty one where it is no name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return set()
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    each = [value.elts if isinstance(value, ast.Tuple) else [value] for value in values]
    return {tuple(v.id if isinstance(v, ast.Name) else "" for v in names) for names in each}


def _is_self_attention(part: nn.Module) -> bool:
    from diffusers.hooks._common import _ATTENTION_CLASSES

    if not isinstance(part, _ATTENTION_CLASSES) or getattr(part, "is_cross_attention", False):
        return False
    processor = getattr(part, "processor", None)
    kind: Any = type(processor)
    return processor is not None and (kind.__name__ in OTHER_WAYS or _seen(kind))


@cache
def _seen(processor: Any) -> bool:
    """Whether torch's function computes attention there, as the source says."""
    try:
        source = inspect.getsource(processor)
    except (OSError, TypeError):
        return False
    return any(word in source for word in SEEN)


# -- what is changed -----------------------------------------------------------------------------
class _Values(TorchFunctionMode):
    """Attention of a sequence to itself gives its values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See torch."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            if names["query"].shape == names["value"].shape:
                self.count += 1
                return names["value"]
        return func(*args, **kwargs)


class Change(NamedTuple):
    """A submodule to change: its name, what for, the sample's size, and who counts for `pag`."""

    name: str
    part: nn.Module
    term: Term
    size: Size
    values: _Values


@contextmanager
def _forward(part: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` of a module, while the context is open."""
    missing = object()
    before = part.__dict__.get("forward", missing)
    part.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is missing:
            part.__dict__.pop("forward", None)
        else:
            part.__dict__["forward"] = before


@contextmanager
def _skipped(change: Change) -> Iterator[None]:
    """A block that hands on the streams it gets, in the order in which it returns them."""
    part = change.part
    block: Any = type(part)
    signature, names = inspect.signature(block.forward), _streams(block)

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(part, *args, **kwargs).arguments
        streams = [bound.get(name) for name in names]
        return streams[0] if len(streams) == 1 else tuple(streams)

    with _forward(part, hand_on):
        yield


@contextmanager
def _valued(change: Change) -> Iterator[None]:
    """Self-attention whose map is the identity (arXiv 2403.17377)."""
    part, values = change.part, change.values
    inner, own = part.forward, part.processor

    def identity(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("encoder_hidden_states") is not None and _is_cross(part):
            return inner(*args, **kwargs)
        with values:
            return inner(*args, **kwargs)

    with ExitStack() as stack:
        if type(own).__name__ in OTHER_WAYS:
            from diffusers.models.attention_processor import AttnProcessor2_0

            stack.callback(setattr, part, "processor", own)
            part.processor = AttnProcessor2_0()
        with _forward(part, identity):
            yield


def _is_cross(part: nn.Module) -> bool:
    """Whether a second sequence is looked at alone, where the class does not say so."""
    said = hasattr(part, "is_cross_attention")
    return not said and getattr(part, "add_k_proj", None) is None


@contextmanager
def _blurred(change: Change) -> Iterator[None]:
    """Self-attention with blurred queries (arXiv 2408.00760)."""
    queries = getattr(change.part, "to_q", None)
    if not isinstance(queries, nn.Module) or getattr(change.part, "fused_projections", False):
        raise ModelError(
            f"seg cannot blur the queries of {change.name!r}, which are computed with keys and"
            " values: unfuse them, pipe.unfuse_qkv_projections()"
        )

    def blur(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return blurred(output, change.size, change.term.blur, change.name)

    handle = queries.register_forward_hook(blur)
    try:
        yield
    finally:
        handle.remove()


def blurred(queries: Tensor, size: Size, sigma: float, name: str = "seg") -> Tensor:
    """Queries blurred over the picture that their tokens make.

    Args:
        queries: (batch, tokens, channels).
        size: height and width of the sample, which tokens make at the same or a lower resolution.
        sigma: standard deviation of the Gaussian, in tokens; infinite is the mean.
        name: of the layer, for messages.

    Source: arXiv 2408.00760, and its code (`SusungHong/SEG-SDXL`, `gaussian_blur_2d`) for the width
    of the kernel and the reflected border.
    """
    if math.isinf(sigma):
        return queries.mean(dim=1, keepdim=True).expand_as(queries)
    height, width = _grid(queries.shape[1], size, name)
    picture = queries.transpose(1, 2).reshape(len(queries), -1, height, width)
    vertical, horizontal = (_kernel(n, sigma).to(queries) for n in (height, width))
    channels = picture.shape[1]
    pads = (len(horizontal) // 2,) * 2 + (len(vertical) // 2,) * 2
    picture = F.pad(picture, pads, mode="reflect")
    for kernel in (vertical[:, None], horizontal[None]):
        picture = F.conv2d(picture, kernel.expand(channels, 1, -1, -1), groups=channels)
    return picture.flatten(2).transpose(1, 2)


def _kernel(length: int, sigma: float) -> Tensor:
    """A Gaussian of odd width, at most 6 sigma and what a border of `length` can reflect."""
    count = min(math.ceil(6 * sigma) // 2 * 2 + 1, length - (length % 2 - 1))
    at = torch.arange(count, dtype=torch.float64) - count // 2
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    return weights / weights.sum()


def _grid(tokens: int, size: Size, name: str) -> tuple[int, int]:
    """Rows and columns of the picture that `tokens` make."""
    for factor in range(1, 0 if size is None else max(size) + 1):
        height, width = -(-size[0] // factor), -(-size[1] // factor)  # type: ignore[index]
        if height * width == tokens:
            return height, width
    raise ModelError(f"seg: the {tokens} tokens of {name!r} are no picture of the sample's shape")
