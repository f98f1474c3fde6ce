"""diffusers' schedulers of CogVideoX by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import solvers
from ..core.grids import Grid
from ..core.process import double
from ..core.run import Run
from ..errors import ArgumentError, RunError
from ..pipelines.classes.rule import joined
from ..pipelines.sockets.times import equal, number
from .base import Compat


class CogVideoXDDIMScheduler(Compat):
    """`ddim`; its `eta` acts or is refused, where diffusers' class never reads it."""


class CogVideoXDPMScheduler(Compat):
    """`dpmpp_2m_sde`, whose `step` gets the prediction before its own, and the time of that.

    They are what the run remembers. Who gives others, or none, makes each step one by itself from
    then on, until `set_timesteps`.
    """

    _before: tuple[Tensor | None, Any] = (None, None)  # prediction and time of the coming step
    _alone = False

    def _step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        old_pred_original_sample: Tensor | None = None,
        timestep_back: Any = None,
        **others: Any,
    ) -> Any:
        """Advance by one network call, from two predictions where there are two."""
        if (old_pred_original_sample is None) != (timestep_back is None):
            raise ArgumentError(
                "old_pred_original_sample and timestep_back belong together: the prediction of the"
                " step before and its time, or None and None"
            )
        self._before = old_pred_original_sample, timestep_back
        return super()._step(model_output, timestep, sample, **others)

    def _list(self, *args: Any) -> None:
        self._alone = False
        super()._list(*args)

    def _follows_on(self) -> bool:
        """Whether the run remembers what the coming step was given."""
        if self.session.gate is not None or self.session.idle:
            return True
        run, (old, back) = self.run, self._before
        begins = not run.row or run.row >= run.table.nfe
        if self._alone or begins or old is None:
            return not self._alone and begins and old is None
        if not equal(run.table.time[run.row - 1].item(), number(back)):
            return False
        kept = run.history[0]  # None where the row reads none
        return kept is None or kept is old or (kept.shape == old.shape and torch.equal(kept, old))

    def _at(self, timestep: Any, sample: Tensor) -> Run:
        if self._follows_on():
            return super()._at(timestep, sample)
        self._alone = True
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
        levels = joined(before, (first.alpha, first.sigma, first.time))
        table = solvers.make("dpmpp_2m_sde", Grid(grid.process, *levels, grid.name)).part(1, 2)
        self._begin(table, self.session.rows)
        self._astray = True
        self.run.start(sample, [old])
        return self.run

    def _times_drawn(self) -> int:
        """Twice where it has two predictions, for a step of order 1 is made first."""
        return 2 if bool(self.run.table.x[self.run.row, 3:-1].any()) else 1
