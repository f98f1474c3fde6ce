"""diffusers' schedulers that combine predictions of the noise by Adams' and Bashforth's weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.border import tensor
from ..core.grids import Grid
from ..core.process import double
from ..core.run import Run
from ..core.sampler import Sampler
from ..core.solvers.adams import ADAMS_BASHFORTH
from ..core.table import Rows, Table
from ..errors import ArgumentError, RunError, shown
from ..pipelines.classes.rule import LevelRequest
from ..pipelines.sockets.times import number
from .base import Compat

logger = logging.getLogger("timonel")
MOST = len(ADAMS_BASHFORTH)


def continued(grid: Grid, behind: int) -> Table:
    """The first step of `grid`, from its prediction and up to 3 of `behind` earlier ones."""
    now, new = grid[0], grid[1]
    if not bool(now.alpha > 0):
        raise RunError(
            "earlier predictions say nothing at pure noise; begin there with scheduler.ets = []"
        )
    count = min(behind + 1, MOST)
    first = Grid(grid.process, grid.alpha[:2], grid.sigma[:2], grid.time[:2], grid.name)
    rows = Rows("ipndm", first, order=min(count, 2), history=count, basis="noise")
    move = new.alpha * (new.ratio - now.ratio)
    weights = {f"h{i}": move * w for i, w in enumerate(ADAMS_BASHFORTH[count - 1])}
    rows.add(0, now, {"x": new.alpha / now.alpha, **weights})
    return rows.table()


class Remembering(Compat):
    """What both classes have in common: `ets`, the predictions that a step combines.

    The run remembers its own. Who assigns `ets` keeps them instead, and each step is one by itself
    from then on, at whatever time it is made, until `set_timesteps` or `ets = []`.
    """

    _kept: list[Tensor] | None = None

    @property
    def ets(self) -> list[Tensor]:
        """The predictions of the noise that coming steps combine, oldest first, at most 4.

        Raises:
            RunError: the run began at pure noise, and so remembers velocities.
        """
        run = self.current
        if self._kept is not None or run is None or not run.started:
            return self._kept or []
        if run.table.basis != "noise":
            raise RunError(
                "a run that begins at pure noise remembers velocities, not the noise that ets holds"
            )
        table = run.table
        rows = zip(range(run.row - 1, -1, -1), run.history, strict=False)
        firsts = [
            one for row, one in rows if one is not None and row == table.first_row(table.step[row])
        ]
        return firsts[:MOST][::-1]

    @ets.setter
    def ets(self, predictions: Sequence[Tensor]) -> None:
        if not isinstance(predictions, (list, tuple)):
            raise ArgumentError(
                "ets must be a list of predictions, e.g. scheduler.ets = [], got"
                f" {shown(predictions)}"
            )
        for one in predictions:
            tensor("a prediction in ets", one)
        self._kept = list(predictions) or None
        if self.run.started:
            self.begin_anew()

    def _list(self, sampler: Sampler, grid: Grid, device: Any) -> None:
        self._kept = None
        super()._list(sampler, grid, device)

    def _at(self, timestep: Any, sample: Tensor) -> Run:
        if self._kept is None:
            return super()._at(timestep, sample)
        grid = self._journey(number(timestep))
        self._begin(continued(grid, len(self._kept)), self.session.rows)
        self._astray = True
        self.run.start(sample, self._kept[::-1])
        return self.run

    def _advance(self, raw: Tensor, noise: Tensor | None, learned: Tensor | None = None) -> None:
        run = self.run
        if self._kept is not None and run.table.basis == "noise":
            level, clean = run.level, run.program.denoised(run.row, run.latents, raw)
            self._kept = [*self._kept, (run.latents - level.alpha * clean) / level.sigma][-MOST:]
        super()._advance(raw, noise, learned)


class PNDMScheduler(Remembering):
    """`plms` with `skip_prk_steps`, else `pndm`."""

    _means: str | None = None  # the kind of call that a step has to be, "prk" or "plms"

    # -- its two kinds of calls --------------------------------------------------------------------
    @property
    def prk_timesteps(self) -> Any:
        """The times of the Runge-Kutta calls, a numpy array (12,); none with `skip_prk_steps`."""
        return self._times_of("prk")

    @property
    def plms_timesteps(self) -> Any:
        """The times of the multistep calls, a numpy array; None before `set_timesteps`."""
        return self._times_of("plms")

    def _times_of(self, kind: str) -> Any:
        listing = self.session.listing
        if listing is None:
            return None  # as in diffusers
        table = listing.table
        rows = [row for row in range(table.nfe) if _kind(table, row) == kind]
        return listing.times[rows].numpy()

    @property
    def counter(self) -> int:
        """The calls of the network since the list was begun."""
        return 0 if self.current is None else self.current.row

    def step_prk(
        self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True
    ) -> Any:
        """`step`, where it is a Runge-Kutta call.

        Args:
            model_output: as in `step`.
            timestep: as in `step`.
            sample: as in `step`.
            return_dict: as in `step`.

        Returns:
            As `step`.

        Raises:
            ArgumentError: the next one is a multistep call.
        """
        with self._only("prk"):
            return self.step(model_output, timestep, sample, return_dict=return_dict)

    def step_plms(
        self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True
    ) -> Any:
        """`step`, where it is a multistep call.

        Args:
            model_output: as in `step`.
            timestep: as in `step`.
            sample: as in `step`.
            return_dict: as in `step`.

        Returns:
            As `step`.

        Raises:
            ArgumentError: the next one is a Runge-Kutta call.
        """
        with self._only("plms"):
            return self.step(model_output, timestep, sample, return_dict=return_dict)

    @contextmanager
    def _only(self, kind: str) -> Iterator[None]:
        self._means = kind
        try:
            yield
        finally:
            self._means = None

    def _at(self, timestep: Any, sample: Tensor) -> Run:
        kind = self._means or ("plms" if self._kept is not None else None)
        if kind == "plms" and self._kept is not None:
            return super()._at(timestep, sample)
        if self._kept is not None:  # a Runge-Kutta call reads no earlier prediction
            if not (self._astray and self.session.under_way and self._is_next(timestep, [])):
                self._stray(number(timestep))
            run = self.run
        else:
            run = Compat._at(self, timestep, sample)
        if kind is not None and _kind(run.table, run.row) != kind:
            name = {"prk": "Runge-Kutta", "plms": "multistep"}
            raise ArgumentError(
                f"step_{kind} is a {name[kind]} call, and at time {number(timestep):g} the run"
                f" makes a {name[_kind(run.table, run.row)]} call: loop over"
                " scheduler.prk_timesteps first and then over scheduler.plms_timesteps, or call"
                " scheduler.step"
            )
        return run

    # -- parts of the list -------------------------------------------------------------------------
    def _begin(self, table: Table, rows: tuple[int, int]) -> None:
        """Begin a part of the list; inside the first step one of its two calls moves nothing."""
        fewer = rows[1] - rows[0] - table.nfe if self._kept is None else 0
        super()._begin(_led(table, fewer) if table.solver == "ipndm" and fewer > 0 else table, rows)


def _kind(table: Table, row: int) -> str:
    """The kind of a row's call, in PNDM's words."""
    return "prk" if table.solver == "pndm" and table.step.count(table.step_at(row)) > 1 else "plms"


def _led(table: Table, calls: int) -> Table:
    """`table` after `calls` rows at its first level, which keep the sample as it is."""
    still = torch.zeros(calls, table.x.shape[1], dtype=torch.float64)
    base = still.clone()
    still[:, 0], base[:, 1] = 1.0, 1.0
    alpha, sigma, time = (
        torch.cat([v[:1].expand(calls), v]) for v in (table.alpha, table.sigma, table.time)
    )
    x, base = torch.cat([still, table.x]), torch.cat([base, table.base])
    return replace(
        table, alpha=alpha, sigma=sigma, time=time, step=(*[0] * calls, *table.step), x=x, base=base
    )


class IPNDMScheduler(Remembering):
    """`ipndm` for the model of the config; without a beta schedule that is Dance Diffusion.

    `trained_betas` of Dance Diffusion are the sigmas that every call visits, and where it ends,
    whatever the number. diffusers' own drops its first prediction at pure noise, this one does not.
    """

    @property
    def betas(self) -> Tensor:
        """The betas, (T,); for Dance Diffusion the sigmas of the list and of its end, (N + 1,)."""
        if self.process.kind != "crash":
            return super().betas
        listed = self.config["trained_betas"]
        return (
            self._levels.grid.sigma.float() if listed is None else double(listed).flatten().float()
        )

    @property
    def alphas(self) -> Tensor:
        """sqrt(1 - sigma²) of `betas` for Dance Diffusion; else 1 - beta."""
        return super().alphas if self.process.kind != "crash" else (1 - self.betas**2).sqrt()

    def _make(self, request: LevelRequest, device: Any, flags: Mapping[str, Any]) -> None:
        super()._make(request, device, flags)
        visited = self._levels.grid.steps
        listed = self.process.kind == "crash" and flags["trained_betas"] is not None
        if listed and request.steps not in (None, visited, len(self)):
            logger.warning("trained_betas are the levels: %s steps, not %s", visited, request.steps)
