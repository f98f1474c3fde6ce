"""diffusers' schedulers of CogVideoX by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import solvers
from ..core.grids import Grid
from ..core.process import Level, double
from ..core.run import Run
from ..errors import ArgumentError, RunError
from ..pipelines.classes.rule import joined
from ..pipelines.sockets.times import equal, number
from .base import Compat

UNSAID = "what the run remembers"
TOGETHER = (
    "old_pred_original_sample and timestep_back belong together: the prediction of the step before"
    " and its time, or None and None"
)


class CogVideoXDDIMScheduler(Compat):
    """`ddim`; its `eta` acts or is refused, where diffusers' class never reads it."""


class CogVideoXDPMScheduler(Compat):
    """`dpmpp_2m_sde`, whose `step` gets the prediction before its own, and the time of that.

    They are what the run remembers. Who gives others, or none, makes each step one by itself from
    then on, until `set_timesteps`.
    """

    #: prediction and time before the coming step; None: what the run remembers
    _before: tuple[Tensor | None, Any] | None = None
    _alone = False

    def _step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        old_pred_original_sample: Tensor | str | None = UNSAID,
        timestep_back: Any = UNSAID,
        **others: Any,
    ) -> Any:
        """Advance by one network call, from two predictions where there are two."""
        if isinstance(old_pred_original_sample, str):
            if timestep_back is not UNSAID:
                raise ArgumentError(TOGETHER)
            self._before = None
            return super()._step(model_output, timestep, sample, **others)
        if (old_pred_original_sample is None) != (timestep_back is None):
            raise ArgumentError(TOGETHER)
        self._before = old_pred_original_sample, timestep_back
        return super()._step(model_output, timestep, sample, **others)

    def _list(self, *args: Any) -> None:
        self._alone = False
        super()._list(*args)

    def _follows_on(self) -> bool:
        """Whether the run remembers what the coming step was given."""
        if self.session.gate is not None or self.session.idle or self._before is None:
            return True
        run, (old, back) = self.run, self._before
        begins = not run.row or run.row >= run.table.nfe
        if self._alone or begins or old is None:
            return not self._alone and begins and old is None
        return equal(run.table.time[run.row - 1].item(), number(back)) and self._remembers(old)

    def _remembers(self, old: Tensor) -> bool:
        """Whether the run's newest prediction is `old`."""
        kept = self.run.history[0]  # None where the row reads none
        return kept is None or kept is old or (kept.shape == old.shape and torch.equal(kept, old))

    def _at(self, timestep: Any, sample: Tensor) -> Run:
        if self._follows_on():
            return super()._at(timestep, sample)
        self._alone = True
        assert self._before is not None
        grid, (old, back) = self._journey(number(timestep)), self._before
        first = Grid(grid.process, grid.alpha[:2], grid.sigma[:2], grid.time[:2], grid.name)
        if old is None or grid.steps == 1:
            self._begin(solvers.make("ddpm", first), self.session.rows)
            self._astray = True
            return self.run
        before = grid.process.at_time(double([number(back)]))
        if not bool(before.lam < grid.lam[0]):
            raise RunError(
                f"timestep_back={number(back):g} is not a noisier level than that of time"
                f" {number(timestep):g}"
            )
        levels = joined(before, Level(first.alpha, first.sigma, first.time))
        table = solvers.make("dpmpp_2m_sde", Grid(grid.process, *levels, grid.name)).part(1, 2)
        self._begin(table, self.session.rows)
        self._astray = True
        self.run.start(sample, [old])
        return self.run

    def _times_drawn(self) -> int:
        """Twice where it has two predictions, for a step of order 1 is made first."""
        last = bool(self.run.table.sigma[self.run.row + 1] <= self._listed.table.sigma[-1])
        first = not self.session.row if self._before is None else self._before[0] is None
        return 1 if first or last else 2
