"""Where a run stands, and what it has computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import RunError
from . import journey
from .checkpoints import NetworkCall, Point
from .driver import UNKNOWN
from .guidance import CompiledGuidance
from .process import At
from .program import DenoisedFn, Program, State
from .table import Table


class Position:
    """The part of a `Run` that reads it and changes nothing."""

    def __init__(self, table: Table, program: Program, guided: CompiledGuidance) -> None:
        self.table, self.program = table, program
        self._guided = guided
        self._past: tuple[tuple[int, CompiledGuidance], ...] = ()  # up to a row, before a tail
        self._at: Point | None = None
        self._change = threading.Condition(threading.RLock())

    @property
    def prediction(self) -> str:
        """What the network's raw output means."""
        return self.program.prediction

    @property
    def denoised_fn(self) -> DenoisedFn | None:
        """What changes the denoised prediction before it is used."""
        return self.program.denoised_fn

    @property
    def started(self) -> bool:
        """Whether the run has its initial sample."""
        return self._at is not None

    @property
    def _here(self) -> State:
        return self._point.state

    @property
    def _point(self) -> Point:
        if self._at is None:
            raise RunError("the run has not started; call run.start(noise) first")
        return self._at

    def _go_on_with(self, state: State) -> None:
        self._at = self._point._replace(state=state)

    @property
    def row(self) -> int:
        """The next row, 0 to `table.nfe`."""
        return 0 if self._at is None else self._at.state.row

    @property
    def step(self) -> int:
        """Completed grid steps, 0 to `steps`."""
        return self.table.step_at(self.row)

    @property
    def steps(self) -> int:
        """Grid steps of the table."""
        return self.table.steps

    @property
    def level(self) -> At:
        """The level of the sample."""
        return self.program.levels[self.row]

    @property
    def memory(self) -> Any:
        """What the network remembered where the run came to rest; `UNKNOWN` where it holds that."""
        return UNKNOWN if self._at is None else self._at.memory

    # -- what it has computed ----------------------------------------------------------------------
    @property
    def _call(self) -> NetworkCall | None:
        return None if self._at is None else self._at.call

    @property
    def called_at(self) -> At | None:
        """The level of the newest network call."""
        call = self._call
        return None if call is None else self.program.levels[call.row]

    @property
    def newest(self) -> tuple[Tensor, Tensor] | None:
        """The newest network call: its sample, and the raw output that its row was advanced with.

        None after a rewind, until the network is called again.
        """
        call = self._call
        return None if call is None or call.x is None or call.raw is None else (call.x, call.raw)

    @property
    def history(self) -> tuple[Tensor | None, ...]:
        """Earlier predictions in the table's basis, newest first; None where no row reads one."""
        return self._here.history

    @property
    def denoised(self) -> Tensor:
        """The newest denoised prediction, as the solver used it; after a rewind that of its step.

        Raises:
            RunError: the network has not been called.
        """
        call = self._call
        if call is None or (call.clean is None and call.x is None):
            raise RunError("there is no prediction yet; the network has not been called")
        clean = self._clean_of(call)
        with self._change:  # another thread may have advanced the run meanwhile
            if self._at is not None and self._at.call is call and call.clean is None:
                self._at = self._at._replace(call=call._replace(clean=clean))
        return clean

    @property
    def log_prob(self) -> Tensor | None:
        """The log density of the sample, before the row that led to it drew its noise.

        (batch,) in float64, summed over all dimensions: `program.log_prob` of that row. None where
        the newest row of a stochastic sampler drew nothing. An edit of the sample changes it.

        Raises:
            RunError: the sampler draws no noise at all, or reads unconditional predictions, or no
                row was computed since the start, a rewind or a load.
        """
        if not self.table.stochastic:
            raise RunError(
                f"{self.table.solver!r} draws no noise here, so its samples have no density: choose"
                " a stochastic sampler, e.g. Sampler('ddim', options={'eta': 1})"
            )
        journey.check_density(self.table)
        call = self._call
        if call is None or call.raw is None:
            raise RunError("there is no newest row: advance the run by one, then read log_prob")
        if call.before is None:
            return None
        return self.program.log_prob(call.before, call.raw, self._here.x)

    def log_probs(self, xs: Sequence[Tensor], denoise: Callable[[Tensor, At], Tensor]) -> Tensor:
        """The log densities of a recorded journey under a policy, see `journey.log_probs`.

        Args:
            xs: K + 1 samples (batch, …): what the network saw at every row, and the result.
            denoise: `denoise(x, level)`, the network that is evaluated, with gradients.

        Returns:
            (rows that draw, batch).

        Raises:
            ArgumentError: another number of samples, or none.
            RunError: no row draws noise.
        """
        return journey.log_probs(self.program, self.table, xs, denoise)

    def _clean_of(self, call: NetworkCall) -> Tensor:
        if call.clean is not None:
            return call.clean
        assert call.x is not None
        assert call.raw is not None
        return self.program.denoised(call.row, call.x, call.raw)

    @property
    def result(self) -> Tensor:
        """The sample of a finished run; of an unfinished one the newest denoised prediction."""
        ended = self.row == self.table.nfe or self._call is None
        return self._here.x if ended else self.denoised

    # -- how its network call is guided ------------------------------------------------------------
    @property
    def guided(self) -> CompiledGuidance:
        """The guidance that acts on every row; one assigned during a row acts from the next on.

        Of the rows before a tail that which acted there.
        """
        return self._guided_at(self.row)

    def _guided_at(self, row: int) -> CompiledGuidance:
        """The guidance that acts on a row."""
        return next((guided for until, guided in self._past if row < until), self._guided)

    @property
    def past(self) -> tuple[tuple[int, CompiledGuidance], ...]:
        """The guidance that acted before each tail, with the row up to which it did."""
        return self._past

    @property
    def scale(self) -> float | None:
        """Guidance scale of the coming call: 1.0 is no guidance, None the pipeline's scale."""
        return self.guided.scales[min(self.row, self.table.nfe - 1)]

    @property
    def forecasting(self) -> bool:
        """Whether the coming call computes its conditional output only, guided by a forecast."""
        return bool(self.guided.weights[min(self.row, self.table.nfe - 1)])

    @property
    def forecast(self) -> Tensor | None:
        """The forecast of cond - uncond (batch, …) of the coming call's outputs, where it has one.

        Raises:
            RunError: a difference that it reads was not remembered.
        """
        if not self.forecasting:
            return None
        return self.guided.forecast(self.row, self._here.differences)

    @property
    def remembers(self) -> bool:
        """Whether later rows may need cond - uncond of the coming call."""
        return self.guided.order > 0

    @property
    def momentum(self) -> Tensor | None:
        """What the guidance method has to know of the rows before; see `Method`."""
        return self._here.momentum
