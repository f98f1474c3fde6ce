"""A variation: the noise of a seed mixed with another's, by the pipeline's own draws.

A pipeline draws its first noise from a generator for each sample. Of a variation every such draw is

    cos(amount·pi/2)·noise of the seed + sin(amount·pi/2)·noise of the other seed

so that it stays unit normal: 0 is the seed's picture, 1 begins where the other's does, and between
them lies the great circle through both. Noise that a stochastic sampler adds stays the seed's.

Source: A1111's "variation strength" (a slerp of seed and subseed), whose angle for noise of many
dimensions is that of a right angle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.noise import MOST, checked
from ..errors import ArgumentError, ModelError, finite, is_number, shown, whole

EXAMPLE = "(seed, amount), e.g. variation=(8, 0.2)"


class Mixed(TorchFunctionMode):
    """Mixes what is drawn from generators with what their twins draw, while it is entered.

    Args:
        generators: one for each sample.
        seeds: of their twins.
        amount: 0 … 1.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], seeds: Sequence[int], amount: float
    ) -> None:
        super().__init__()
        self.seeds, self.amount, self.draws = tuple(seeds), amount, 0
        self._twins = {
            id(one): torch.Generator(one.device).manual_seed(seed)
            for one, seed in zip(generators, self.seeds, strict=True)
        }

    def again(self) -> None:
        """Begin from the twins' seeds, as the pipeline begins from its generators'."""
        for twin, seed in zip(self._twins.values(), self.seeds, strict=True):
            twin.manual_seed(seed)

    def check(self) -> None:
        """Raise `ModelError` where nothing was mixed."""
        if not self.draws:
            raise ModelError(
                "the pipeline drew no noise from its generators, so variation= had nothing to mix"
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Torch's functions as they are, but for unit noise from one of the generators."""
        if not kwargs or func is not torch.randn:
            return func(*args, **(kwargs or {}))
        twin = self._twins.get(id(kwargs.get("generator")))
        if twin is None:
            return func(*args, **kwargs)
        self.draws += 1
        noise: Tensor = func(*args, **kwargs)
        return mixed(noise, func(*args, **{**kwargs, "generator": twin}), self.amount)


def mixed(noise: Tensor, other: Tensor, amount: float) -> Tensor:
    """Two unit noises on their great circle.

    Args:
        noise: where it is at 0.
        other: where it is at 1.
        amount: 0 … 1; the ends are the very tensors.
    """
    if amount in (0, 1):
        return other if amount else noise
    a, b = math.cos(amount * math.pi / 2), math.sin(amount * math.pi / 2)
    wide = torch.promote_types(noise.dtype, torch.float32)
    return (a * noise.to(wide) + b * other.to(wide)).to(noise.dtype)


def of(
    variation: Any, seeds: tuple[int, ...], options: Mapping[str, Any]
) -> tuple[tuple[int, ...], float] | None:
    """The other seeds of a call, one per sample, and the amount.

    Args:
        variation: the argument: (seed, amount) with the first of consecutive seeds, or one for
            each sample; None is none.
        seeds: of the samples.
        options: of the pipeline's call, with its generators.

    Returns:
        Both; None without a variation.

    Raises:
        ArgumentError: it is none, or nothing can be mixed.
    """
    if variation is None:
        return None
    if not isinstance(variation, (tuple, list)) or len(variation) != 2:
        raise ArgumentError(f"variation must be {EXAMPLE}, got {shown(variation)}")
    first, amount = variation[0], finite("the amount of a variation", variation[1], 0, 1)
    if is_number(first):
        begin = whole("the seed of a variation", first, 0, MOST - max(len(seeds) - 1, 0))
        first = range(begin, begin + len(seeds))
    if not seeds or "generator" not in options:
        raise ArgumentError(
            "variation= mixes the noise of seeds=, and this call has none that the pipeline draws"
            " from: give seeds=, and no generator="
        )
    if options.get("latents") is not None:
        raise ArgumentError("latents= are the noise already: leave variation= out")
    others = checked(first)
    if len(others) != len(seeds):
        raise ArgumentError(
            f"variation= has {len(others)} seeds for {len(seeds)} samples: give one per sample, or"
            " one number"
        )
    same = [seed for seed, other in zip(seeds, others, strict=True) if seed == other]
    if same and amount not in (0, 1):
        raise ArgumentError(
            f"variation= mixes seed {same[0]} with itself: give another seed, e.g."
            f" variation=({same[0] + 1}, {amount:g})"
        )
    return others, amount
