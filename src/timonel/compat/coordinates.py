"""The coordinates of diffusers' samples, and the levels listed before `set_timesteps`.

diffusers' schedulers of sigma keep `x0 + sigma·noise` and scale what the network sees; a pipeline,
or a loop written by hand, may do its own arithmetic on such samples. So the run is kept in these
coordinates too, see `process.Exploding`: every level has alpha = 1. The other classes keep samples
of unit variance, as diffusers' do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..core import prediction as predictions
from ..core.process import Exploding, Level, Process, double
from ..core.process.config import name_of
from ..core.run import Run
from ..pipelines import request as checked
from ..pipelines.classes.rows import Row
from ..pipelines.classes.rule import SHAPES, LevelRequest, Levels
from ..pipelines.sockets.listing import Listing
from ..pipelines.sockets.scheduler import Scheduler
from ..pipelines.sockets.times import number

logger = logging.getLogger("timonel")
BLIND = (
    "an epsilon prediction says nothing at the pure noise of rescale_betas_zero_snr=True, where"
    " this class has alpha = 0; use it with prediction_type='v_prediction', or"
    " timestep_spacing='leading'"
)


class Coordinates(Scheduler):
    """How samples are scaled; `Compat` is one of these."""

    is_scale_input_called = False  # for the next step, as diffusers' classes have it

    if TYPE_CHECKING:

        @property
        def _flags(self) -> dict[str, Any]: ...

        row: ClassVar[Row]

    @property
    def _explodes(self) -> bool:
        """Whether samples are `x0 + sigma·noise`, as all diffusers' classes have them on EDM.

        Levels that explode by themselves are of pipelines that scale what the network sees.
        """
        kind = name_of(self.process)
        return kind == "edm" or (kind == "vp" and not self.row.unit)

    @property
    def _coordinates(self) -> Process:
        """The process in the coordinates of the samples."""
        return Exploding(self.process) if self._explodes else self.process

    def _moved(self, levels: Levels) -> Levels:
        """The levels in the coordinates of the samples."""
        process, grid = self._coordinates, levels.grid
        if not isinstance(process, Exploding):
            return levels
        moved = process.of(Level(grid.alpha, grid.sigma, grid.time))
        return levels._replace(grid=type(grid)(process, *moved, grid.name))

    def _start(self, noisiest: Level, flags: Mapping[str, Any]) -> float | Tensor:
        """The standard deviation of diffusers' initial sample."""
        process = self._coordinates
        if not isinstance(process, Exploding):
            return 1.0
        sigma = process.of(noisiest).sigma.float()
        far = flags.get("timestep_spacing") in ("linspace", "trailing")
        deviation = (sigma if far else (sigma**2 + 1) ** 0.5).reshape(())
        return float(deviation) if self.row.levels.family == "edm" else deviation

    def _blind(self, alpha: float) -> bool:
        """Whether the network names the noise where nothing else is left, of zero-SNR betas."""
        rescaled = self.config.get("rescale_betas_zero_snr") and self.process.kind == "vp"
        return bool(rescaled and self.prediction == "epsilon" and alpha < predictions.LEAST)

    def _noisiest(self) -> float:
        """The alpha of the noisiest training level that the class can visit."""
        clamps = self._explodes or self.row.levels.family in ("sigma", "dpm")
        return 1.0 if clamps else float(self.process.at_time(double(len(self) - 1.0)).alpha)

    # -- training levels ---------------------------------------------------------------------------
    def _list_trained(self) -> None:
        """List all training levels, for steps without `set_timesteps`, as in diffusers.

        Only where they are first asked for: a table of a thousand rows takes longer to make than a
        scheduler.
        """
        flags, total = self._flags, self.process.train_steps
        if self.process.kind == "vp":
            flags = {**flags, **dict.fromkeys(SHAPES, False)}
            # a step at a blind level is refused, see `Compat._check_step`
            top = total - 1 - self._blind(self._noisiest())
            request = LevelRequest(None, tuple(float(t) for t in range(top, -1, -1)))
        else:
            request = LevelRequest(total, mu=0.0 if flags.get("use_dynamic_shifting") else None)
        self._make(request, self._timesteps.device, flags)
        self.num_inference_steps, self.custom_timesteps = None, False

    def _make(self, request: LevelRequest, device: Any, flags: Mapping[str, Any]) -> None:
        raise NotImplementedError

    @property
    def _listed(self) -> Listing:
        if self.session.listing is None:
            self._list_trained()
        return super()._listed

    @property
    def run(self) -> Run:
        """The run of the current call; without `set_timesteps` that of all training levels."""
        if self.session.run is None:
            self._list_trained()
        return super().run

    def _times(self) -> Tensor:
        """The network's times, one a row, noisiest first; a loop over them drives the run."""
        if self.session.listing is None and self.row.calls > 1 and self.process.kind == "vp":
            self._list_trained()  # with the calls in between
        return self._timesteps

    timesteps = Scheduler.timesteps.getter(_times)

    # -- samples -----------------------------------------------------------------------------------
    def _row_of(self, timestep: Any) -> int | None:
        """The row of the network's next call; None where the list has no such time."""
        run = self.current
        listed = self._listed
        if timestep is None:
            return 0 if run is None else min(self.session.row, listed.table.nfe - 1)
        loop = self.loop_of(timestep)
        if loop is not None:
            return loop.row
        rows = self._rows(timestep)
        if not rows:
            return None
        here = self.session.row
        return here if here in rows else rows[0]

    def scale_model_input(
        self, sample: Tensor, timestep: Any = None, *args: Any, **others: Any
    ) -> Tensor:
        """What the network sees of a sample: `sample / sqrt(sigma² + 1)`, or the sample itself.

        Args:
            sample: the sample, (batch, …), or what a pipeline has made of it.
            timestep: the time that the network will be called with.
            *args: nothing, as in diffusers.
            **others: nothing, as in diffusers.
        """
        self.is_scale_input_called = True
        if not self._explodes:
            return sample
        row, process = self._row_of(timestep), self._coordinates
        seen = (
            process.seen(process.at_time(double([number(timestep)])))
            if row is None
            else self._listed.table.seen
        )
        return sample if seen is None else sample * float(seen[row or 0])

    def _bring(self, run: Run, sample: Tensor) -> None:
        """Let a sample that was changed inside a step be what the network saw there, no more.

        diffusers' classes of several calls keep the sample of a step's first call and go on from
        it. A change between two steps is carried on, also where diffusers' corrector would undo
        it (UniPC, SA-Solver).
        """
        if self._inside(run):
            run.see(sample)
        else:
            run.replace(sample)

    def _inside(self, run: Run) -> bool:
        """Whether the next call goes on from the sample of an earlier one."""
        return run.row != run.table.first_row(run.step)

    def _warn_unscaled(self) -> None:
        """Say once a run that the network may have seen a sample unscaled, as diffusers does."""
        run = self.current
        if self._explodes and not self.is_scale_input_called and (run is None or not run.started):
            logger.warning(
                "step was called without scale_model_input before it: %s keeps samples x0 +"
                " sigma·noise, which the network must not see unscaled; call"
                " scheduler.scale_model_input(sample, t) before the network",
                type(self).__name__,
            )

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha·x0 + sigma·noise` at listed levels, else at those of the process.

        Args:
            original_samples: x0, (batch, …).
            noise: of the same shape.
            timesteps: one for each sample, or one for all.
        """
        run = self.current
        if run is not None and run.started and run.stopping:
            return original_samples
        times = checked.noised(original_samples, noise, timesteps)
        level = None
        if self.session.listing is not None:
            self.session.mixed = True
            grid = self.session.listing.grid
            near = (grid.time.to(torch.float32)[None] - times.to(torch.float32)[:, None]).abs()
            if bool((near.min(1).values <= 1e-3).all()):
                at = near.argmin(1)
                level = Level(grid.alpha[at], grid.sigma[at], grid.time[at])
        alpha, sigma = (self._coordinates.at_time(times) if level is None else level).factors(
            original_samples
        )
        return alpha * original_samples + sigma * noise
