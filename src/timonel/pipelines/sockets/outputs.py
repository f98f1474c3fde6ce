"""What pipelines read of a scheduler beside its protocol, and what its step gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.process import VP, Flow, Process, double
from ...core.process.level import Level
from ...core.run import Run
from ...errors import ArgumentError, RunError, finite, shown, whole
from .. import request

if TYPE_CHECKING:
    from ..session import Session


class Members:
    """What scripts read of any scheduler of diffusers beside its protocol."""

    process: Process
    config: Any
    timesteps: Tensor
    num_inference_steps: int | None
    session: Session
    register_to_config: Any
    begin_anew: Any
    _begin_index: int | None = None
    custom_timesteps = False  # whether set_timesteps was last called with a list of times

    if TYPE_CHECKING:

        def add_noise(
            self, original_samples: Tensor, noise: Tensor, timesteps: Tensor
        ) -> Tensor: ...

    # -- where a call is ---------------------------------------------------------------------------
    @property
    def step_index(self) -> int | None:
        """The place in `timesteps` of the next step; None before the first one."""
        run = self.session.run
        return None if run is None or not run.started else self.session.row

    @property
    def _step_index(self) -> int | None:
        """`step_index`; None may be assigned between two loops, and the next step begins a run."""
        return self.step_index

    @_step_index.setter
    def _step_index(self, place: int | None) -> None:
        self._move_to(place)

    def _move_to(self, place: int | None) -> None:
        """Begin anew where `place` is None. Raises `RunError` for another place than the run's."""
        run = self.session.run
        if place is None and run is not None and run.started:
            self.begin_anew()
        elif place != self.step_index:
            raise RunError(
                f"the place of the next step is {self.step_index}, and _step_index={place!r} cannot"
                " move it: the time of a step says where it is; assign None to begin anew, or call"
                " run.rewind(step)"
            )

    @property
    def begin_index(self) -> int | None:
        """The place in `timesteps` that `set_begin_index` has named; None without it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Keep where pipelines say they begin; the grid was cut when they sliced `timesteps`."""
        self._begin_index = whole("begin_index", begin_index, 0)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The place of a time in a list.

        Args:
            timestep: one of the times.
            schedule_timesteps: the list, (N,); None: `timesteps`.

        Returns:
            Its index; the second where the list has it twice, as diffusers counts.

        Raises:
            ArgumentError: the list does not have it.
        """
        times = self.timesteps if schedule_timesteps is None else schedule_timesteps
        if not isinstance(times, Tensor) or times.ndim != 1:
            raise ArgumentError(
                f"schedule_timesteps must be a tensor of times (N,), got {shown(times)}"
            )
        listed = times.as_subclass(Tensor).detach().cpu().to(torch.float64)
        time = finite("timestep", timestep)
        places = (listed == time).nonzero().flatten().tolist()
        if not places:
            near = float(listed[(listed - time).abs().argmin()]) if len(listed) else None
            raise ArgumentError(
                f"timestep {time:g} is not in the list of {len(listed)} times; the nearest is"
                f" {near:g}"
            )
        return int(places[1] if len(places) > 1 else places[0])

    def previous_timestep(self, timestep: Any) -> Any:
        """The time of the next, cleaner entry of `timesteps`, a tensor; -1 after the last.

        Without a list it is t - 1.
        """
        if self.num_inference_steps is None:
            return timestep - 1
        listed = self.timesteps.as_subclass(Tensor)
        after = self.index_for_timestep(timestep) + 1
        return listed[after] if after < len(listed) else torch.tensor(-1)

    # -- levels ------------------------------------------------------------------------------------
    def _trained(self) -> Level:
        """The training levels, cleanest first, (T,)."""
        return self.process.at_index(torch.arange(self.process.train_steps, dtype=torch.float64))

    @property
    def alpha_t(self) -> Tensor:
        """alpha of every training level, (T,)."""
        return self._trained().alpha.float()

    @property
    def sigma_t(self) -> Tensor:
        """sigma of every training level, (T,)."""
        return self._trained().sigma.float()

    @property
    def lambda_t(self) -> Tensor:
        """log(alpha / sigma) of every training level, (T,)."""
        return self._trained().lam.float()

    @property
    def sigma_min(self) -> float:
        """The smallest sigma / alpha of the training levels, of a flow the smallest t."""
        return self.process.sigma_min

    @property
    def sigma_max(self) -> float:
        """The largest sigma / alpha of the training levels, of a flow the largest t."""
        return self.process.sigma_max

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: unit-variance coordinates need no scaling."""
        return sample

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a model of v-prediction or of a flow is trained to predict.

        Args:
            sample: clean samples, (batch, …).
            noise: unit noise of their shape.
            timesteps: a time for each, or one for all.

        Returns:
            `alpha·noise - sigma·sample` (arXiv 2202.00512, app. D), of a flow `noise - sample`.
        """
        times = request.noised(sample, noise, timesteps)
        if self.process.kind == "flow":
            return noise - sample
        alpha, sigma = self.process.at_time(times).factors(sample)
        return alpha * noise - sigma * sample

    # -- flows -------------------------------------------------------------------------------------
    def _flow(self, name: str) -> Flow:
        if not isinstance(self.process, Flow):
            raise ArgumentError(
                f"{name} is of flow models; this scheduler is of a {self.process.kind} process"
            )
        return self.process

    @property
    def shift(self) -> float:
        """The shift of a flow's levels. Missing, as Python means it, elsewhere."""
        if not isinstance(self.process, Flow):
            raise AttributeError(f"a {self.process.kind} process has no shift")
        return self.process.shift

    def set_shift(self, shift: float) -> None:
        """Shift the levels of the next `set_timesteps` by `shift`; the config says so too.

        Raises `ArgumentError` for a model that is no flow.
        """
        old, value = self._flow("set_shift"), finite("shift", shift, 1e-9)
        self.process = old.with_mu(math.log(value))
        self.process.shift = value
        key = (
            "flow_shift"
            if "flow_shift" in self.config and self.config.get("shift") is None
            else "shift"
        )
        self.register_to_config(**{key: value})

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """t shifted by exp(mu): `exp(mu) / (exp(mu) + (1/t - 1)^sigma)`.

        Args:
            mu: log of the shift; the shift itself with `time_shift_type="linear"`.
            sigma: the power.
            t: numbers or tensors in (0, 1].

        Source:
            arXiv 2403.03206, eq. 23.
        """
        self._flow("time_shift")
        number, power = finite("mu", mu, -50, 50), finite("sigma", sigma, 1e-9)
        s = number if self.config.get("time_shift_type") == "linear" else math.exp(number)
        return s / (s + (1 / t - 1) ** power)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """t stretched so that the last is the config's `shift_terminal`.

        `1 - (1 - t)·(1 - terminal) / (1 - t[-1])`.

        Args:
            t: a tensor, falling.

        Raises:
            ArgumentError: the config says no end, or the model is no flow.
        """
        self._flow("stretch_shift_to_terminal")
        terminal = self.config.get("shift_terminal")
        if not terminal:
            raise ArgumentError(
                f"shift_terminal={terminal!r} of the config says no end; give it, e.g."
                " shift_terminal=0.1"
            )
        return 1 - (1 - t) * (1 - finite("shift_terminal", terminal, 1e-9, 1)) / (1 - t[-1])


class Attributes(Members):
    """The betas of a variance preserving process under diffusers' names, as some loops use them.

    Missing, as Python means it, where the process has none.
    """

    process: Process

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar = alpha² at every training time, (T,)."""
        if not isinstance(self.process, VP):
            raise AttributeError(f"a {self.process.kind} process has no betas")
        times = torch.arange(self.process.train_steps, dtype=torch.float64)
        return (self.process.at_time(times).alpha ** 2).float()

    @property
    def alphas(self) -> Tensor:
        """1 - beta at every training time, (T,)."""
        bar = self.alphas_cumprod.double()
        return (bar / torch.cat([double([1.0]), bar[:-1]])).float()

    @property
    def betas(self) -> Tensor:
        """beta at every training time, (T,)."""
        return 1 - self.alphas

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """abar where a grid ends: at sigma = 0."""
        return torch.ones_like(self.alphas_cumprod[0])


class SchedulerOutput(tuple[Any, ...]):
    """What `Scheduler.step` returns: `(prev_sample, pred_original_sample)`.

    A tuple, and read by attribute and by name too, as diffusers' outputs are. The second is made
    only where it is read.
    """

    NAMES = ("prev_sample", "pred_original_sample")
    _run: Run

    def __new__(cls, run: Run, sample: Tensor) -> SchedulerOutput:
        output = super().__new__(cls, (sample, None))
        output._run = run
        return output

    @property
    def prev_sample(self) -> Tensor:
        """The sample at the next level."""
        sample: Tensor = super().__getitem__(0)
        return sample

    @property
    def pred_original_sample(self) -> Tensor:
        """The denoised prediction.

        The sample itself, edits included, where the run has arrived at sigma = 0.
        """
        run = self._run
        done = run.row == run.table.nfe and bool(run.table.sigma[-1] == 0)
        return self.prev_sample if done or run.called_at is None else run.denoised

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.NAMES:
                raise KeyError(key)
            return getattr(self, key)
        if isinstance(key, slice):
            return self.to_tuple()[key]
        return getattr(self, self.NAMES[key])

    def __iter__(self) -> Iterator[Tensor]:
        return (getattr(self, name) for name in self.NAMES)

    def to_tuple(self) -> tuple[Tensor, Tensor]:
        """Both as a plain tuple."""
        return self.prev_sample, self.pred_original_sample

    def keys(self) -> tuple[str, ...]:
        """The names."""
        return self.NAMES

    def values(self) -> tuple[Tensor, Tensor]:
        """The tensors in the order of `keys`."""
        return self.to_tuple()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of both."""
        return zip(self.NAMES, self.values(), strict=True)

    def __reduce__(self) -> Any:
        return tuple, (self.to_tuple(),)


def per_token_velocity(raw: Tensor, times: Tensor, time: float) -> Tensor:
    """The velocity at the row's level that says of every token what its own does at its level.

    `x - t·v` is the denoised token at its own t: scaled by t / time, the row's formula gives the
    same.

    Args:
        raw: the network's output, minus the velocity, (batch, tokens, channels).
        times: t of each token, (batch, tokens).
        time: t of the row.
    """
    return -raw * (times.to(raw) / time)[..., None]
