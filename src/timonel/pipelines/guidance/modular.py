"""Guiders of diffusers' `ModularPipeline`, which take the calls of a loop for its steps.

The loop gives its guider the number of the call and the number of steps (diffusers 0.42.1,
`modular_pipelines/*/denoise.py`; `guiders/*.py`, `_is_cfg_enabled`). A sampler with two calls a
step has more calls than steps, so the guider would switch guidance off half-way. It also keeps that
state, and a second call of the pipeline, whose guider then asks for no unconditional prompt, fails.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeAlias

from ...core.hook import Hook
from ...core.run import Run
from ..caller import is_modular, pipeline_of

Scheduler: TypeAlias = Any  # `sockets.scheduler.Scheduler`, which stands above this file


class Counted(Hook):
    """A guider that counts the steps of a run until the run ends; then it is as before.

    Args:
        guider: whose `set_state` is replaced.
        pipeline: that it belongs to.
        scheduler: of the pipeline.
    """

    def __init__(self, guider: Any, pipeline: Any, scheduler: Scheduler) -> None:
        self.guider, self.inner = guider, guider.set_state
        self.before = (guider._step, guider._num_inference_steps, guider._timestep)
        self.pipeline, self.scheduler = weakref.ref(pipeline), weakref.ref(scheduler)
        guider.set_state = self._set

    def _set(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """`set_state` with the run's step and steps, unless another scheduler steps."""
        scheduler, pipeline = self.scheduler(), self.pipeline()
        run = None if scheduler is None else scheduler.current
        if run is not None and getattr(pipeline, "scheduler", None) is scheduler:
            step, num_inference_steps = run.step, run.steps
        self.inner(step=step, num_inference_steps=num_inference_steps, timestep=timestep)

    def on_end(self, run: Run) -> None:
        """As `release`."""
        self.release()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()  # a copy of the run elsewhere has no guider

    def release(self) -> None:
        """Leave the guider as it was before the run."""
        if self.guider.__dict__.get("set_state") == self._set:
            del self.guider.set_state
            self.guider._step, self.guider._num_inference_steps, self.guider._timestep = self.before


def counted(scheduler: Scheduler) -> list[Hook]:
    """Let the guiders of the modular pipeline that calls `scheduler` now count its steps.

    Returns:
        Hooks that leave the guiders as they were when the run ends; none for other pipelines.
    """
    pipeline = pipeline_of(scheduler)
    gate = scheduler.session.gate
    if not is_modular(pipeline) or (gate is not None and gate.parts_in):
        return []  # a helm puts other guiders in, which follow its run
    from diffusers.guiders import BaseGuidance

    guiders = [part for part in pipeline.components.values() if isinstance(part, BaseGuidance)]
    for guider in guiders:
        last = getattr(guider.__dict__.get("set_state"), "__self__", None)
        if isinstance(last, Counted):  # of a run that did not come to its end
            last.release()
    return [Counted(guider, pipeline, scheduler) for guider in guiders]
