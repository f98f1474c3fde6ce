"""Functions that change a denoised prediction before a row uses it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

DenoisedFn = Callable[[Tensor], Tensor]  # changes the denoised prediction, as clipping does


class Directed:
    """A `denoised_fn` that changes the clean part of a step only, and not the direction of its end.

    From the unchanged prediction d and the changed one c a row makes `alpha'·c + b·(x - alpha·d) /
    sigma`, as DDIM's formula says; a plain function makes `alpha'·c + b·(x - alpha·c) / sigma`.

    Args:
        denoised_fn: the change.
        consistent: do the latter; may be changed between rows.
    """

    def __init__(self, denoised_fn: DenoisedFn, consistent: bool = False) -> None:
        self.denoised_fn, self.consistent = denoised_fn, consistent

    def __call__(self, clean: Tensor) -> Tensor:
        return self.denoised_fn(clean)
