"""A sampler by name: which solver, on which grid, with how many steps. Plain data until compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import (
    ArgumentError,
    finite,
    instance,
    number_of_steps,
    options,
    say_once,
    several,
    whole,
)
from . import grids, names, solvers
from . import noise as noises
from .grids import Grid, few_enough
from .process import Process
from .table import Table

if TYPE_CHECKING:
    from .fitted.fitted import Fitted

DEFAULT = "dpmpp_2m"
STEPS = 20
DISCARD = "discard_penultimate"  # the option that acts on the grid
PART = ("start", "stop", "strength", "denoising_start", "denoising_end")
FILE = ".json"  # how the name of a sampler file ends


@dataclass(frozen=True)
class Sampler:
    """`Sampler("dpmpp_2m", grid="karras", steps=10)`; the name may carry the grid:
    "dpmpp_2m/karras".

    The names of other programs work too ("DPM++ 2M Karras", "euler a", diffusers' class names); see
    `names.py`.

    `options` go to the solver (eta, order, …), `grid_options` to the grid (rho, sigma_max, …). The
    option `discard_penultimate`, which ComfyUI's names of UniPC and DPM-2 set to "auto", makes one
    level more of a named grid and leaves out the last but one; see `grids.make`.
    `sigmas` or `times` give your own levels instead of a named grid and set the steps. Without a
    grid the solver's own is taken, else the process' usual one, `grids.usual`: karras, and trailing
    for a flow or where the process begins at pure noise.
    `noise`: where the solver's fresh noise comes from, "independent" (unless the name says
    otherwise) or "brownian"; see `noise.py`.
    `start, stop, strength, denoising_start, denoising_end`: only a part of the levels; see
    `grids.cut`.

    A name that ends in ".json" is a file with a sampler that was fitted to a model; see
    `fitted.py`. It has its own table, so steps, levels, options and parts of it cannot be chosen;
    `fitted` is what the file holds.

    Raises `UnknownName` and `ArgumentError` at once, before any compute.
    """

    name: str = DEFAULT
    grid: str | None = None
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    grid_options: Mapping[str, Any] = field(default_factory=dict)
    sigmas: Sequence[float] | None = None
    times: Sequence[float] | None = None
    noise: str | None = None

    start: int | None = None
    stop: int | None = None
    strength: float | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None

    fitted: Fitted | None = None

    def __post_init__(self) -> None:
        if self.fitted is not None or is_file(self.name):
            self._take()
            return
        self._plain()
        alone = names.is_solver(self.name)
        named = names.Named(self.name) if alone else names.sampler(self.name)
        grid = None if self.grid is None else names.grid(self.grid)
        if named.grid is not None and grid not in (None, named.grid):
            raise ArgumentError(
                f"sampler {self.name!r} names a grid and grid={self.grid!r} another; give one"
            )
        object.__setattr__(self, "name", named.solver)
        object.__setattr__(self, "grid", grid or named.grid)
        object.__setattr__(self, "options", {**named.options, **self.options})
        own = named.noise or noises.DEFAULT
        object.__setattr__(self, "noise", own if self.noise is None else noises.find(self.noise))
        solvers.check(self.name, self.solver_options)
        noises.find(self.source)
        if grids.penultimate(self.options.get(DISCARD, False)) is True and (
            self.sigmas or self.times
        ):
            raise ArgumentError(
                f"{DISCARD}=True leaves out a level of a named grid, and your levels are given"
            )
        if sum(v is not None for v in (self.grid, self.sigmas, self.times)) > 1:
            raise ArgumentError(
                "give one of grid=, sigmas= and times=; each of them sets the levels"
            )
        if self.grid_options and (self.sigmas is not None or self.times is not None):
            raise ArgumentError(
                f"grid_options {dict(self.grid_options)} belong to a named grid, not to given"
                " levels"
            )

    def _plain(self) -> None:
        """Keep Python's numbers. Raises `ArgumentError` for what is none."""
        made: dict[str, Any] = {
            key: options(key, getattr(self, key)) for key in ("options", "grid_options")
        }
        made |= {
            key: tuple(finite(key, one) for one in several(key, values, f"{key}=[14.6, 2.8, 0.6]"))
            for key in ("sigmas", "times")
            if (values := getattr(self, key)) is not None
        }
        for key, low in (("steps", 1), ("start", 0), ("stop", 1)):
            if getattr(self, key) is not None:
                made[key] = few_enough(key, getattr(self, key), low)
        for key in ("strength", "denoising_start", "denoising_end"):
            if getattr(self, key) is not None:
                made[key] = finite(key, getattr(self, key), 0, 1)
        for key, value in made.items():
            object.__setattr__(self, key, value)

    def _take(self) -> None:
        """Be the fitted sampler. Raises `ArgumentError` for anything that its table does not leave
        open.
        """
        from .fitted.fitted import Fitted

        fitted = self.fitted
        if fitted is not None:
            instance("fitted", fitted, Fitted, "what Sampler.load reads")
        if fitted is None:
            fitted = Fitted.read(self.name)
        elif self.name not in (DEFAULT, fitted.name):
            raise ArgumentError(
                f"a sampler is {self.name!r} or the fitted {fitted.name!r}, not both"
            )
        for key in ("grid", "options", "grid_options", "sigmas", "times", *PART):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, Mapping) and not value):
                does = (
                    "is fitted as a whole journey, so"
                    if key in PART
                    else "has its own levels and coefficients, so"
                )
                raise ArgumentError(
                    f"sampler {fitted.name!r} {does} {key}={value!r} has nothing to set; leave"
                    " it out"
                )
        if self.steps is not None and whole("steps", self.steps) != fitted.steps:
            raise ArgumentError(
                f"sampler {fitted.name!r} was fitted for {fitted.steps} steps, not {self.steps}:"
                f" leave steps out, or fit one for them: timonel tune {fitted.provenance.model}"
                f" --steps {self.steps}"
            )
        object.__setattr__(self, "fitted", fitted)
        object.__setattr__(self, "name", fitted.name)
        object.__setattr__(self, "steps", fitted.steps)
        object.__setattr__(self, "noise", self.noise or noises.DEFAULT)
        noises.find(self.source)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Sampler:
        """The sampler in a file that `save` or a fit has written. Raises `ArgumentError` where
        there is none.
        """
        from .fitted.fitted import Fitted

        return cls(fitted=Fitted.read(path))

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a fitted sampler to a file whose name works as a sampler's. Raises `ArgumentError`
        for another one.
        """
        if self.fitted is None:
            raise ArgumentError(
                f"sampler {self.label!r} is not fitted to a model: its name is all there is to save"
            )
        if not is_file(str(path)):
            raise ArgumentError(f"a sampler file's name ends in {FILE}, got {str(path)!r}")
        return self.fitted.write(path)

    @classmethod
    def of(cls, sampler: Sampler | str | None, steps: int | None = None) -> Sampler:
        """A `Sampler` from a name or a sampler, with `steps` where given."""
        made = (
            sampler
            if isinstance(sampler, Sampler)
            else cls(DEFAULT if sampler is None else sampler)
        )
        return made if steps is None else replace(made, steps=steps)

    @property
    def source(self) -> str:
        """The noise source, decided when the sampler was made."""
        return self.noise or noises.DEFAULT

    @property
    def solver_options(self) -> dict[str, Any]:
        """The options without the one that acts on the grid."""
        return {key: value for key, value in self.options.items() if key != DISCARD}

    @property
    def cuts(self) -> dict[str, Any]:
        """Which part of the levels was asked for; empty for all of them."""
        return {key: getattr(self, key) for key in PART if getattr(self, key) is not None}

    @property
    def named_alone(self) -> bool:
        """Whether solver, grid name, options and noise say all of it: no levels, ends or parts of
        its own.
        """
        return not (
            self.grid_options or self.cuts or self.sigmas is not None or self.times is not None
        )

    @property
    def label(self) -> str:
        """ "solver/grid" as one would type it."""
        return f"{self.name}/{self.grid}" if self.grid else self.name

    def on(self, process: Process) -> Sampler:
        """The sampler with every choice made that depends on the process: grid and steps."""
        instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
        if self.fitted is not None:
            return self
        if self.sigmas is not None or self.times is not None:
            return replace(self, steps=self._levels(process).steps)
        usual = solvers.find(self.name).grid or grids.usual(process)
        return replace(self, grid=self.grid or usual, steps=self.steps or STEPS)

    def levels(self, process: Process) -> Grid:
        """The grid on `process`, cut where asked. Raises `ArgumentError` where it was fitted to
        another process.
        """
        instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
        if self.fitted is not None:
            return self.fitted.grid(process)
        full = self._levels(process)
        return grids.cut(full, **self.cuts) if self.cuts else full

    def _levels(self, process: Process) -> Grid:
        """All levels."""
        given = self.sigmas if self.sigmas is not None else self.times
        if given is not None:
            make = grids.custom_sigmas if self.sigmas is not None else grids.custom_times
            made = make(process, given)
            if self.steps is not None and self.steps != made.steps:
                raise ArgumentError(
                    f"steps={self.steps} but the given levels make {made.steps} steps; leave"
                    " steps out"
                )
            return made
        full = self.on(process)
        assert full.grid is not None
        assert full.steps is not None
        discard = self.options.get(DISCARD, False)
        return grids.make(
            full.grid, process, full.steps, discard_penultimate=discard, **full.grid_options
        )

    def compile(self, process: Process) -> Table:
        """The table of this sampler on `process`.

        Raises `ArgumentError` for a noise source that it would not use, or where it was fitted to
        another process.
        """
        instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
        if self.fitted is not None:
            return self.drawing(self.fitted.on(process), process)
        if self.cuts and "skip" not in self.options:  # which counts the steps of the part
            return self.drawing(self._part(process), process)
        return self.drawing(
            solvers.make(self.name, self.levels(process), **self.solver_options), process
        )

    def _part(self, process: Process) -> Table:
        """The rows of the whole journey's table that the cuts leave."""

        def make(grid: Grid, before: int = 0) -> Table:
            return solvers.make(self.name, grid, before=before, **self.solver_options)

        whole = self._levels(process)
        table = make(whole)
        rows = (*solvers.first_rows(table, whole), table.nfe)
        first, last = (rows[k] for k in grids.bounds(whole, **self.cuts))
        return solvers.part(table, whole, table.step[first], table.step_at(last), make)

    def drawing(self, table: Table, process: Process) -> Table:
        """`table`; raises `ArgumentError` where a noise source was chosen and the sampler draws no
        noise.

        Where it draws none in so few steps, and does in more, that is logged once.
        """
        if self.source != noises.DEFAULT and not table.stochastic:
            count = number_of_steps(table.steps)
            idle = (
                f"noise={self.noise!r} has nothing to do: {table.solver!r} draws no noise in"
                f" {count}"
            )
            few = self.fitted is None and table.steps < solvers.PROBE
            if not few or not solvers.draws(self.name, process, self.options):
                raise ArgumentError(
                    f"{idle}; leave noise= out, or choose a stochastic sampler (eta above 0)"
                )
            say_once(idle)
        return table


def is_file(name: object) -> bool:
    """Whether the name of a sampler is that of a file."""
    return isinstance(name, str) and name.lower().endswith(FILE)
