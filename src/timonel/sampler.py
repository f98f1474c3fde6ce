"""A sampler by name: which solver, on which grid, with how many steps. Plain data until compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import grids, solvers
from .errors import ArgumentError, UnknownName, whole
from .grids import Grid
from .process import Process
from .table import Table

DEFAULT = "dpmpp_2m"
STEPS = 20


@dataclass(frozen=True)
class Sampler:
    """`Sampler("dpmpp_2m", grid="karras", steps=10)`; the name may carry the grid: "dpmpp_2m/karras".

    `options` go to the solver (eta, order, …), `grid_options` to the grid (rho, sigma_max, …).
    `sigmas` or `times` give your own levels instead of a named grid and set the steps. Without a
    grid the solver's own is taken, else the process' usual one: karras for EDM, trailing otherwise.

    Raises `UnknownName` and `ArgumentError` at once, before any compute.
    """

    name: str = DEFAULT
    grid: str | None = None
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    grid_options: Mapping[str, Any] = field(default_factory=dict)
    sigmas: Sequence[float] | None = None
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ArgumentError(f"a sampler is a name such as 'dpmpp_2m/karras', got {self.name!r}")
        name, slash, grid = self.name.partition("/")
        if slash:
            if self.grid is not None and self.grid != grid:
                raise ArgumentError(f"sampler {self.name!r} names a grid and grid={self.grid!r} another; give one")
            object.__setattr__(self, "name", name)
            object.__setattr__(self, "grid", grid)
        solvers.find(self.name)
        if self.grid is not None and self.grid not in grids.GRIDS:
            raise UnknownName("grid", self.grid, grids.GRIDS)
        if self.steps is not None:
            whole("steps", self.steps)
        if sum(v is not None for v in (self.grid, self.sigmas, self.times)) > 1:
            raise ArgumentError("give one of grid=, sigmas= and times=; each of them sets the levels")
        if self.grid_options and (self.sigmas is not None or self.times is not None):
            raise ArgumentError(f"grid_options {dict(self.grid_options)} belong to a named grid, not to given levels")

    @classmethod
    def of(cls, sampler: Sampler | str | None, steps: int | None = None) -> Sampler:
        """A `Sampler` from a name or a sampler, with `steps` where given."""
        made = sampler if isinstance(sampler, Sampler) else cls(sampler or DEFAULT)
        return made if steps is None else replace(made, steps=steps)

    @property
    def label(self) -> str:
        """ "solver/grid" as one would type it."""
        return f"{self.name}/{self.grid}" if self.grid else self.name

    def on(self, process: Process) -> Sampler:
        """The sampler with every choice made that depends on the process: grid and steps."""
        if self.sigmas is not None or self.times is not None:
            return replace(self, steps=self.levels(process).steps)
        usual = solvers.find(self.name).grid or ("karras" if process.kind == "edm" else "trailing")
        return replace(self, grid=self.grid or usual, steps=self.steps or STEPS)

    def levels(self, process: Process) -> Grid:
        """The grid on `process`."""
        given = self.sigmas if self.sigmas is not None else self.times
        if given is not None:
            make = grids.custom_sigmas if self.sigmas is not None else grids.custom_times
            made = make(process, given)
            if self.steps is not None and self.steps != made.steps:
                raise ArgumentError(f"steps={self.steps} but the given levels make {made.steps} steps; leave steps out")
            return made
        full = self.on(process)
        assert full.grid is not None
        assert full.steps is not None
        return grids.make(full.grid, process, full.steps, **full.grid_options)

    def compile(self, process: Process) -> Table:
        """The table of this sampler on `process`."""
        return solvers.make(self.name, self.levels(process), **self.options)
