"""The sums of a row, fixed, so that what a path prepares for them is prepared once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Terms = tuple[tuple[float, int], ...]  # coefficients, and the indices of their tensors


@dataclass(frozen=True, eq=False)
class WeightedSums:
    """out[m] = sum of coefficient·tensor over `terms[m]`.

    Args:
        inputs: number of input tensors.
        terms: of each sum, at least one. Indices count the inputs, then the outputs: a sum may read
            outputs before it, after rounding.
        prepared: what paths keep between calls.
    """

    inputs: int
    terms: tuple[Terms, ...]
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> Any:
        return WeightedSums, (self.inputs, self.terms)  # what is prepared belongs to a process
