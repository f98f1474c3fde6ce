"""The sums of a row, fixed, so that what a path prepares for them is prepared once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Terms = tuple[tuple[float, int], ...]  # coefficients, and the indices of their tensors


@dataclass(frozen=True, eq=False)
class Plan:
    """out[m] = sum of coefficient·tensor over `sums[m]`.

    Args:
        inputs: number of input tensors.
        sums: at least one term each. Indices count the inputs, then the outputs: a sum may read
            outputs before it, after rounding.
        prepared: what paths keep of a plan.
    """

    inputs: int
    sums: tuple[Terms, ...]
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> Any:
        return Plan, (self.inputs, self.sums)  # what is prepared belongs to a process
