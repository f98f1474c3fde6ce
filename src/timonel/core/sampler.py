"""A sampler by name, plain data until compiled: a solver, a grid and a number of steps."""

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
    from .fitted.sampler_file import Fitted
    from .guidance import Guidance

DEFAULT = "dpmpp_2m"
STEPS = 20
DISCARD = "discard_penultimate"  # the option that acts on the grid
PART = ("start", "stop", "strength", "denoising_start", "denoising_end")
FILE = ".json"  # how the name of a sampler file ends


@dataclass(frozen=True)
class Sampler:
    """A solver on a grid: `Sampler("dpmpp_2m", grid="karras", steps=10)`.

    The name may carry the grid, "dpmpp_2m/karras". Names of other programs work too ("DPM++ 2M
    Karras", "euler a", diffusers' class names); see `names.py`. A name that ends in ".json" is a
    file with a sampler that was fitted to a model, see `fitted.py`: it has its own table, so steps,
    levels, options and parts of it cannot be chosen.

    Args:
        name: of the solver, or of a file.
        grid: its name. Without one that of the solver, else the process' usual one
            (`grids.usual`): karras, and trailing for a flow or where the process begins at pure
            noise.
        steps: grid steps, 1 or more; 20 where nothing says it.
        options: of the solver (eta, order, …). `discard_penultimate`, which ComfyUI's names of
            UniPC and DPM-2 set to "auto", makes one level more of a named grid and leaves out the
            last but one; see `grids.make`.
        grid_options: of the grid (rho, sigma_max, …).
        sigmas: levels by schedule sigma instead of a named grid; they set the steps.
        times: levels by network time, as `sigmas`.
        noise: where the solver's fresh noise comes from, "independent" (unless the name says
            otherwise) or "brownian"; see `noise.py`.
        start: only a part of the levels, as are the next four; see `grids.cut`.
        stop: see `start`.
        strength: see `start`.
        denoising_start: see `start`.
        denoising_end: see `start`.
        fitted: what a sampler file holds.

    Raises:
        UnknownName: a name that is none.
        ArgumentError: a value that is none, or two that exclude each other.
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
            self._read_fitted()
            return
        self._plain()
        self._resolve_names()
        self._check_levels()

    def _set(self, **values: Any) -> None:
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def _resolve_names(self) -> None:
        """What the name stands for: solver, grid, options, noise."""
        alone = names.is_solver(self.name)
        named = names.Named(self.name) if alone else names.sampler(self.name)
        grid = None if self.grid is None else names.grid(self.grid)
        if named.grid is not None and grid not in (None, named.grid):
            raise ArgumentError(
                f"sampler {self.name!r} names a grid and grid={self.grid!r} another; give one"
            )
        source = named.noise or noises.DEFAULT
        self._set(
            name=named.solver, grid=grid or named.grid, options={**named.options, **self.options},
            noise=source if self.noise is None else noises.find(self.noise),
        )  # fmt: skip
        solvers.check(self.name, self.solver_options)
        noises.find(self.source)

    def _check_levels(self) -> None:
        """One of a grid, sigmas and times sets the levels."""
        listed = self.sigmas is not None or self.times is not None
        discards = grids.penultimate(self.options.get(DISCARD, False)) is True
        if discards and (self.sigmas or self.times):
            raise ArgumentError(
                f"{DISCARD}=True leaves out a level of a named grid, not one of sigmas= or times="
            )
        if sum(v is not None for v in (self.grid, self.sigmas, self.times)) > 1:
            raise ArgumentError(
                "give one of grid=, sigmas= and times=; each of them sets the levels"
            )
        if self.grid_options and listed:
            raise ArgumentError(
                f"grid_options {dict(self.grid_options)} belong to a named grid, not to sigmas="
                " or times="
            )

    def _plain(self) -> None:
        """Keep Python's numbers."""
        for key in ("options", "grid_options"):
            self._set(**{key: options(key, getattr(self, key))})
        for key in ("sigmas", "times"):
            if getattr(self, key) is not None:
                listed = several(key, getattr(self, key), f"{key}=[14.6, 2.8, 0.6]")
                self._set(**{key: tuple(finite(key, one) for one in listed)})
        for key, low in (("steps", 1), ("start", 0), ("stop", 1)):
            if getattr(self, key) is not None:
                self._set(**{key: few_enough(key, getattr(self, key), low)})
        for key in ("strength", "denoising_start", "denoising_end"):
            if getattr(self, key) is not None:
                self._set(**{key: finite(key, getattr(self, key), 0, 1)})

    def _read_fitted(self) -> None:
        """Take the fitted sampler, and nothing that its table does not leave open."""
        from .fitted.sampler_file import Fitted

        fitted = Fitted.read(self.name) if self.fitted is None else self.fitted
        instance("fitted", fitted, Fitted, "what Sampler.load reads")
        if self.fitted is not None and self.name not in (DEFAULT, fitted.name):
            raise ArgumentError(
                f"a sampler is {self.name!r} or the fitted {fitted.name!r}, not both"
            )
        for key in ("grid", "options", "grid_options", "sigmas", "times", *PART):
            value = getattr(self, key)
            if value is None or (isinstance(value, Mapping) and not value):
                continue
            why = "is fitted as a whole journey"
            if key not in PART:
                why = "has its own levels and coefficients"
            raise ArgumentError(
                f"sampler {fitted.name!r} {why}, so {key}={value!r} has nothing to set; leave it"
                " out"
            )
        if self.steps is not None and whole("steps", self.steps) != fitted.steps:
            raise ArgumentError(
                f"sampler {fitted.name!r} was fitted for {fitted.steps} steps, not {self.steps}:"
                f" leave steps out, or fit one for them: timonel tune {fitted.provenance.model}"
                f" --steps {self.steps}"
            )
        noise = noises.find(self.noise or noises.DEFAULT)
        self._set(fitted=fitted, name=fitted.name, steps=fitted.steps, noise=noise)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Sampler:
        """The sampler in a file.

        Args:
            path: of a file that `save` or a fit has written.

        Raises:
            ArgumentError: there is none.
        """
        from .fitted.sampler_file import Fitted

        return cls(fitted=Fitted.read(path))

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a fitted sampler to a file whose name works as a sampler's.

        Args:
            path: of the file; it ends in ".json".

        Raises:
            ArgumentError: the sampler is not fitted, or the file cannot be written.
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
        """A `Sampler` from a name or a sampler.

        Args:
            sampler: None is the usual one.
            steps: in the place of those it has; None keeps them.

        Returns:
            The sampler.
        """
        if not isinstance(sampler, Sampler):
            sampler = cls(DEFAULT if sampler is None else sampler)
        return sampler if steps is None else replace(sampler, steps=steps)

    def guided_by(self, guidance: Guidance | None) -> Sampler:
        """The sampler for such guidance: of CFG++ the twin that reads the unconditional prediction.

        Args:
            guidance: of the run.

        Raises:
            ArgumentError: the solver has no such twin.
        """
        method = None if guidance is None else guidance.method
        if method is None or not method.reads_uncond:
            return self
        if self.fitted is not None:
            raise ArgumentError(
                f"a sampler that was fitted to a model reads no unconditional prediction, which"
                f" {method.name} needs: name a solver, e.g. sampler='euler_cfg_pp'"
            )
        name, more = solvers.twin(self.name)
        return (
            self
            if name == self.name
            else replace(self, name=name, options={**more, **self.options})
        )

    @property
    def source(self) -> str:
        """The name of the noise source."""
        return self.noise or noises.DEFAULT

    @property
    def solver_options(self) -> dict[str, Any]:
        """The options without the one that acts on the grid."""
        return {key: value for key, value in self.options.items() if key != DISCARD}

    @property
    def cuts(self) -> dict[str, Any]:
        """Which part of the levels is sampled; empty for all of them."""
        return {key: getattr(self, key) for key in PART if getattr(self, key) is not None}

    @property
    def named_alone(self) -> bool:
        """Whether solver, grid name, options and noise say all: no listed levels, no part."""
        listed = self.sigmas is not None or self.times is not None
        return not (self.grid_options or self.cuts or listed)

    @property
    def label(self) -> str:
        """The name as one would type it, solver/grid."""
        return f"{self.name}/{self.grid}" if self.grid else self.name

    def on(self, process: Process) -> Sampler:
        """The sampler with the grid and steps that follow from a process.

        Args:
            process: of the model.
        """
        instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
        if self.fitted is not None:
            return self
        if self.sigmas is not None or self.times is not None:
            return replace(self, steps=self._levels(process).steps)
        usual = solvers.find(self.name).grid or grids.usual(process)
        return replace(self, grid=self.grid or usual, steps=self.steps or STEPS)

    def levels(self, process: Process) -> Grid:
        """The grid on a process, cut to its part.

        Args:
            process: of the model.

        Raises:
            ArgumentError: the sampler was fitted to another process.
        """
        instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
        if self.fitted is not None:
            return self.fitted.grid(process)
        full = self._levels(process)
        return grids.cut(full, **self.cuts) if self.cuts else full

    def _levels(self, process: Process) -> Grid:
        """All levels."""
        if self.sigmas is None and self.times is None:
            full = self.on(process)
            assert full.grid is not None
            assert full.steps is not None
            discard = self.options.get(DISCARD, False)
            return grids.make(
                full.grid, process, full.steps, discard_penultimate=discard, **full.grid_options
            )
        if self.sigmas is not None:
            grid = grids.custom_sigmas(process, self.sigmas)
        else:
            grid = grids.custom_times(process, self.times or ())
        if self.steps is not None and self.steps != grid.steps:
            raise ArgumentError(
                f"steps={self.steps} but these levels make {grid.steps} steps; leave steps out"
            )
        return grid

    def compile(self, process: Process) -> Table:
        """The table of this sampler on a process.

        Args:
            process: of the model.

        Raises:
            ArgumentError: a noise source that it would not use, or it was fitted to another
                process.
        """
        instance("process", process, Process, "a timonel process such as tm.VP.from_schedule()")
        if self.fitted is not None:
            table = self.fitted.on(process)
        elif self.cuts and "skip" not in self.options:  # skip counts the steps of the part
            table = self._part(process)
        else:
            table = solvers.make(self.name, self.levels(process), **self.solver_options)
        return self.drawing(table, process)

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
        """Check that a table draws the noise that was chosen.

        Where it draws none in so few steps, and does in more, that is logged once.

        Args:
            table: of this sampler.
            process: of the model.

        Returns:
            The table.

        Raises:
            ArgumentError: a noise source was chosen and the sampler draws no noise.
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
