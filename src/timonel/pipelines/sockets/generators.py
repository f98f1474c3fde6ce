"""Seeds of a sampler's noise, from the generator of a call, which advances as in diffusers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..caller import Generators

LARGEST = 2**62


def drawn(generators: Generators, batch: int) -> list[int]:
    """Seeds of a batch.

    Args:
        generators: several, for one seed each; one, or None for torch's own: for all seeds.
        batch: how many seeds one generator draws.
    """
    if isinstance(generators, (list, tuple)):
        return [seed for generator in generators for seed in _draw(generator, 1)]
    assert not isinstance(generators, Sequence)
    return _draw(generators, batch)


def _draw(generator: torch.Generator | None, count: int) -> list[int]:
    device = "cpu" if generator is None else generator.device
    seeds: list[int] = torch.randint(LARGEST, (count,), generator=generator, device=device).tolist()
    return seeds
