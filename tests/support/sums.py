"""Three weighted sums, and inputs for them."""

from __future__ import annotations

import torch

from timonel.core.kernel import WeightedSums

#: four inputs; the second sum reads the first output, the third reads both
SUMS = WeightedSums(
    4, (((0.3, 0), (0.4, 1)), ((0.5, 0), (0.7, 4), (1 / 3, 2)), ((-0.1, 5), (1.0, 3), (0.33, 4)))
)


def tensors(
    count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> list:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]
