"""The table of solvers: everything that lists, checks, documents or tests samplers reads it.

A solver is a function `(grid, **options) -> Table`. To add one: write it in the file of its family
and add one line to `SOLVERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ArgumentError, UnknownName
from ..grids import Grid
from ..table import Table
from . import consistency, dpmpp, first_order, heun, unipc


@dataclass(frozen=True)
class SolverSpec:
    """One line of the table of solvers."""

    make: Callable[..., Table]
    order: int  # of convergence: strong on the ODE, weak for stochastic solvers; 0 where it does not converge
    calls: str  # network calls for N steps
    stochastic: bool
    reference: str
    options: tuple[str, ...] = field(default=())
    grid: str | None = None  # the grid it needs by default, where it matters

    @property
    def summary(self) -> str:
        """First line of the solver's docstring."""
        return (self.make.__doc__ or "").strip().splitlines()[0]


SOLVERS: dict[str, SolverSpec] = {
    "euler": SolverSpec(first_order.euler, 1, "N", False, "arXiv 2206.00364"),
    "ddim": SolverSpec(first_order.ddim, 1, "N", False, "arXiv 2010.02502, eq. 12", ("eta",)),
    "ddpm": SolverSpec(first_order.ddpm, 1, "N", True, "arXiv 2006.11239, eq. 7"),
    "euler_ancestral": SolverSpec(first_order.euler_ancestral, 1, "N", True, "k-diffusion", ("eta",)),
    "heun": SolverSpec(heun.heun, 2, "2N - 1", False, "arXiv 2206.00364, algorithm 1"),
    "edm": SolverSpec(
        heun.edm, 2, "2N - 1", True, "arXiv 2206.00364, algorithm 2", ("s_churn", "s_tmin", "s_tmax", "s_noise")
    ),
    "dpmpp_2m": SolverSpec(dpmpp.dpmpp_2m, 2, "N", False, "arXiv 2211.01095, algorithm 2"),
    "dpmpp_3m": SolverSpec(dpmpp.dpmpp_3m, 3, "N", False, "arXiv 2211.01095"),
    "dpmpp_2m_sde": SolverSpec(dpmpp.dpmpp_2m_sde, 2, "N", True, "arXiv 2211.01095; k-diffusion", ("eta",)),
    "unipc": SolverSpec(unipc.unipc, 3, "N", False, "arXiv 2302.04867", ("order", "variant")),
    "lcm": SolverSpec(consistency.lcm, 0, "N", True, "arXiv 2310.04378, algorithm 3", (), "lcm"),
    "tcd": SolverSpec(consistency.tcd, 0, "N", True, "arXiv 2402.19159", ("eta",), "lcm"),
}


def find(name: str) -> SolverSpec:
    """The line of the table called `name`. Raises `UnknownName` with the nearest names."""
    if name not in SOLVERS:
        raise UnknownName("sampler", name, SOLVERS)
    return SOLVERS[name]


def make(name: str, grid: Grid, **options: Any) -> Table:
    """Compile solver `name` on `grid`. Unknown options are refused, never ignored."""
    spec = find(name)
    for key in options:
        if key not in spec.options:
            has = f"it takes {', '.join(spec.options)}" if spec.options else "it takes none"
            raise ArgumentError(f"sampler {name!r} has no option {key!r}; {has}")
    return spec.make(grid, **options)
