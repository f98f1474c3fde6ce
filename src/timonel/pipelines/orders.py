"""What the helm asks of a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.driver import Driver
from ..core.guidance import Guidance
from ..core.noise import Noise
from ..core.run import Run


@dataclass
class Orders:
    """What the helm asks of one call, beyond the sampler."""

    guidance: Guidance | None = None
    hooks: Sequence[Any] = ()
    seeds: tuple[int, ...] | None = None
    noise: Noise | None = None
    keep: int = 0
    context: Any = None
    guided: Callable[[Tensor], Tensor] | None = (
        None  # the last word on what the pipeline combined, see gate.py
    )
    recall: bool = (
        False  # the pipeline is called again after a rewind, because its loop counts its steps
    )
    driver: Driver | None = None  # the pipeline's loop, where the helm steers it
    resume: Run | None = None  # continue this run instead of beginning one
    resumed: bool = False  # a run was continued
    named: bool | None = (
        None  # the sampler's grid was asked for, and goes before a list that the pipeline makes
    )
    listed: bool = (
        False  # the list of levels that comes is the caller's, not one that the pipeline makes
    )
