"""What is to be summed: fixed for a row, so that whatever a path wants to prepare is prepared once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Terms = tuple[tuple[float, int], ...]  # a number, and the place of the tensor it multiplies


@dataclass(frozen=True, eq=False)
class Plan:
    """out[m] = sum of number·tensor over `sums[m]`, which has at least one term.

    Places count the inputs first, then the outputs: a sum may read the outputs before it, as they
    are after rounding. `inputs`: how many inputs there are. `prepared`: a path's own form of the
    numbers.
    """

    inputs: int
    sums: tuple[Terms, ...]
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> Any:
        return Plan, (self.inputs, self.sums)  # what is prepared belongs to a process
