"""Fresh noise that depends on a sample's own seed and the row, and on nothing else.

A noise source is a callable `(row, like) -> unit normal tensor shaped and placed like `like``. It
is drawn per sample on the CPU in float32 from a generator keyed by (seed, row), so a sample gets
the same noise alone, in any batch, on any device, and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ArgumentError

Noise = Callable[[int, Tensor], Tensor]
START = -1  # the row whose noise is the initial sample
_MASK = (1 << 64) - 1


def key(seed: int, row: int) -> int:
    """A 63-bit generator seed from (seed, row): two rounds of splitmix64, so neighbours share nothing."""
    state = (seed & _MASK) ^ 0x9E3779B97F4A7C15
    for word in (row + 1, seed >> 64):
        state = (state + 0x9E3779B97F4A7C15 * (2 * (word & _MASK) + 1)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True)
class SeededNoise:
    """Independent noise, one seed per sample."""

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds or any(isinstance(s, bool) or not isinstance(s, int) for s in self.seeds):
            raise ArgumentError(f"seeds must be whole numbers, one per sample, got {self.seeds!r}")

    def __call__(self, row: int, like: Tensor) -> Tensor:
        if len(like) != len(self.seeds):
            raise ArgumentError(
                f"{len(self.seeds)} seeds for a batch of {len(like)}: give one seed per sample, "
                f"e.g. seeds=range({len(like)})"
            )
        drawn = torch.empty(like.shape, dtype=torch.float32)
        generator = torch.Generator()
        for sample, seed in zip(drawn, self.seeds, strict=True):
            sample.normal_(generator=generator.manual_seed(key(seed, row)))
        return drawn.to(device=like.device, dtype=like.dtype)


def initial(seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The initial unit noise for `seeds`, of shape (len(seeds), *shape)."""
    return SeededNoise(tuple(seeds))(START, torch.empty(len(seeds), *shape, dtype=dtype))
