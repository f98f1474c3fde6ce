"""diffusers' schedulers from a picture to noise by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.grids import Grid
from ..core.process import double
from ..core.program import Directed
from ..pipelines.classes.levels import clipped, inverse_steps
from ..pipelines.sockets import model
from .base import Compat


class Inverse(Compat):
    """What both classes have in common: all training times rise before `set_timesteps`."""

    def _create(self, *args: Any, **others: Any) -> None:
        super()._create(*args, **others)
        self._timesteps = self._timesteps.flip(0)


class DDIMInverseScheduler(Inverse):
    """Euler's steps up: each at the time it goes to, with the noise that is predicted there."""

    @property
    def initial_alpha_cumprod(self) -> Tensor:
        """The abar where the list begins: 1, or without `set_alpha_to_one` that of time 0."""
        return self.final_alpha_cumprod

    def _shape(self) -> Any:
        shape = model.shape(self._flags)
        return None if shape is None else Directed(shape)

    def _journey(self, time: float) -> Grid:
        steps = self.num_inference_steps or self.process.train_steps
        return inverse_steps(self.process, self._flags, double([time]), steps).grid


class DPMSolverMultistepInverseScheduler(Inverse):
    """`dpmpp_2m` and its kin on levels that rise."""

    @property
    def noisiest_timestep(self) -> int:
        """The training time where the list ends."""
        return len(self) - 1 - clipped(self.process, self._flags)
