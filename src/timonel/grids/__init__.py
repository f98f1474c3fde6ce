"""Grids: which levels a run visits. The table of grids is what lists, checks, documents and tests them.

A grid of N steps has N + 1 levels, falling in noise; the network is called at the first N, and the last
is the clean level sigma = 0 unless the grid was cut. Every grid is a function `(process, steps, **options)
-> Grid`; to add one, write it in the file of its space and add one line to `GRIDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ArgumentError, UnknownName
from ..process import Process
from . import index, published, sigma
from .custom import custom_sigmas as custom_sigmas
from .custom import custom_times as custom_times
from .grid import Grid as Grid
from .grid import ratio as ratio
from .lifts import ancestral as ancestral
from .lifts import churn as churn
from .lifts import restart as restart


@dataclass(frozen=True)
class GridSpec:
    """One line of the table of grids."""

    make: Callable[..., Grid]
    space: str
    reference: str
    options: tuple[str, ...] = field(default=())


GRIDS: dict[str, GridSpec] = {
    "leading": GridSpec(index.leading, "training index", "DDIM, arXiv 2010.02502"),
    "linspace": GridSpec(index.linspace, "training index", "iDDPM, arXiv 2102.09672"),
    "trailing": GridSpec(index.trailing, "training index", "arXiv 2305.08891, table 2"),
    "karras": GridSpec(sigma.karras, "schedule sigma", "arXiv 2206.00364, eq. 5", ("rho", "sigma_min", "sigma_max")),
    "exponential": GridSpec(sigma.exponential, "log sigma", "k-diffusion", ("sigma_min", "sigma_max")),
    "ays": GridSpec(published.ays, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_sd15": GridSpec(published.ays_sd15, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_sdxl": GridSpec(published.ays_sdxl, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_svd": GridSpec(published.ays_svd, "log sigma / alpha", "arXiv 2404.14507"),
    "lcm": GridSpec(index.lcm, "training index", "arXiv 2310.04378", ("original_steps",)),
}


def make(name: str, process: Process, steps: int, **options: Any) -> Grid:
    """The grid called `name`. Raises `UnknownName` or `GridError`, always before any compute."""
    if name not in GRIDS:
        raise UnknownName("grid", name, GRIDS)
    spec = GRIDS[name]
    for key in options:
        if key not in spec.options:
            has = f"it takes {', '.join(spec.options)}" if spec.options else "it takes none"
            raise ArgumentError(f"grid {name!r} has no option {key!r}; {has}")
    return spec.make(process, steps, **options)
