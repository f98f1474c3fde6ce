"""diffusers' Euler on EDM's process, with what Cosmos' first pipelines read of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.run import Run
from ..errors import ArgumentError
from ..pipelines import request
from ..pipelines.caller import pipeline_of
from ..pipelines.inspect_source import steps_twice
from ..pipelines.sockets.outputs import SchedulerOutput
from .base import Compat


class Looked(SchedulerOutput):
    """What a step would give that the run does not make."""

    _clean: Tensor

    @staticmethod
    def of(run: Run, sample: Tensor, clean: Tensor) -> Looked:
        """Of Euler's next row of `run`, whose batch may be another than that of `sample`."""
        on_x, _, on_clean, *_ = run.table.x[run.row].tolist()
        looked: Looked = Looked(run, on_x * sample + on_clean * clean)
        looked._clean = clean
        return looked

    @property
    def pred_original_sample(self) -> Tensor:
        """The denoised prediction."""
        return self._clean


class EDMEulerScheduler(Compat):
    """`euler` on EDM's process.

    Cosmos' first pipelines call `step` twice a turn: for the clean predictions of both parts of
    their guidance, and once more with what they make of them. The first call leaves the run where
    it is.
    """

    _looked = False  # the last call was one that leaves the run where it is

    @property
    def _step_index(self) -> int | None:
        """The next step in diffusers' count, which pipelines reset after a look ahead."""
        here = self.step_index
        return (here or 0) + 1 if self._looked else here

    @_step_index.setter
    def _step_index(self, place: int | None) -> None:
        if not self._looked or place != (self.step_index or 0):
            self._move_to(place)
        self._looked = False

    def _step(  # type: ignore[override]
        self, model_output: Tensor, timestep: Any, sample: Tensor, **others: Any
    ) -> Any:
        """Advance by one network call, as the other classes do.

        `pred_original_sample`: the clean prediction in place of the network's output.
        """
        clean = others.pop("pred_original_sample", None)
        looks = clean is None and steps_twice(pipeline_of(self))
        if clean is None and not looks:
            return super()._step(model_output, timestep, sample, **others)
        request.step(
            model_output if clean is None else clean,
            sample,
            others.get("generator"),
            others.get("eta"),
        )
        if clean is not None and clean.shape != sample.shape:
            want, got = tuple(sample.shape), tuple(clean.shape)
            raise ArgumentError(
                f"pred_original_sample must have the shape of the sample {want}, got {got}"
            )
        if self.session.idle:
            self._looked = looks
            return (
                Looked.of(self.run, sample, sample)
                if looks
                else super()._step(clean, timestep, sample, **others)
            )
        run = self._at(timestep, sample)
        if looks:
            self._looked = True
            return Looked.of(run, sample, run.program.denoised(run.row, sample, model_output))
        on_x, on_output = run.program.rows[run.row].denoised
        return super()._step((clean - on_x * sample) / on_output, timestep, sample, **others)
