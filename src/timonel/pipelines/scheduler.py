"""The scheduler socket: a diffusers scheduler whose `step` advances a run.

    pipe.scheduler = timonel.Scheduler.from_config(pipe.scheduler.config, sampler="dpmpp_2m_sde/karras")

It works alone, on any pipeline, and survives `save_pretrained`. The helm also hangs guidance, hooks
and seeds on it. Samples are in unit-variance coordinates, so the network's input needs no scaling.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from .. import grids, solvers
from .. import prediction as predictions
from .. import process as processes
from ..errors import ArgumentError, RunError, UnknownName
from ..grids import Grid
from ..guidance import Guidance
from ..noise import DEFAULT, Noise, source
from ..process import Flow, Process
from ..run import Run
from ..sampler import Sampler
from ..table import Table
from .timesteps import Hand, Timesteps, adopted

GRID_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
    "use_lu_lambdas": "lam",
}
# keys of diffusers' configs that change the levels in a way no grid here does
REFUSED = ("invert_sigmas",)


@dataclass
class Orders:
    """What the helm asks of one call, beyond the sampler."""

    guidance: Guidance | None = None
    hooks: Sequence[Any] = ()
    seeds: tuple[int, ...] | None = None
    noise: Noise | None = None
    keep: int = 0
    context: Any = None
    guided: Callable[[Tensor], Tensor] | None = None  # the last word on what the pipeline combined, see gate.py
    recall: bool = False  # the pipeline is called again after a rewind, because its loop counts its steps
    resume: Run | None = None  # continue this run instead of beginning one


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any timonel sampler as a diffusers scheduler.

    `sampler`: "solver" or "solver/grid"; `sampler_options`: options of the solver; `sampler_noise`: the source of
    its noise, "independent" or "brownian", see `noise.py`. Without a grid in the name, the config's own is
    taken: Karras or exponential sigmas if they are on, else `timestep_spacing`, else the process' usual one.
    The other arguments are those of diffusers' schedulers; see `from_config`.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        process: str | None = None,
        timestep_spacing: str | None = None,
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        timestep_type: str = "discrete",
        shift: float | None = None,
        flow_shift: float | None = None,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        sampler: str = "dpmpp_2m",
        sampler_options: dict[str, Any] | None = None,
        sampler_noise: str = DEFAULT,
    ) -> None:
        config = {**self.config, "_class_name": ""}
        chosen = Sampler(sampler, options=dict(sampler_options or {}), noise=sampler_noise)
        self._set(processes.from_config(config), predictions.from_config(config), chosen)

    def _set(self, process: Process, prediction: str, sampler: Sampler) -> None:
        """Everything a scheduler has besides its configuration."""
        self.process: Process = process
        self.prediction = prediction
        self.sampler = sampler
        self.orders = Orders()
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._grid: Grid | None = None
        self._run: Run | None = None
        self._asked: tuple[Any, ...] | None = None  # what set_timesteps was last called with
        self.hand = Hand()
        self._all: tuple[Timesteps, Sampler, Grid, tuple[int, ...]] | None = None  # what set_timesteps made
        self._covered = (0, 0)  # which rows of it the run covers
        self._seeded: Noise | None = None  # where the helm gave none
        self.timesteps: Tensor = torch.arange(process.train_steps - 1, -1, -1)
        self.sigmas: Tensor = torch.zeros(1)

    # -- making ------------------------------------------------------------------------------
    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        *,
        sampler: Sampler | str | None = None,
        **changes: Any,
    ) -> Any:
        """A scheduler for the model that `config` (of any diffusers scheduler) describes.

        `changes` override keys of the config; a key that this scheduler does not have is refused
        with `UnknownName` (diffusers drops it without a word). `return_unused_kwargs` is for diffusers' own
        loading, which asks for a pair.
        """
        names = set(cls._get_init_keys(cls)) - {"self"}
        for key in changes:
            if key not in names and key not in (*REFUSED, "final_sigmas_type"):
                raise UnknownName("scheduler option", key, names)
        given = {**dict(config or {}), **changes}
        for key in REFUSED:
            if given.get(key):
                raise ArgumentError(f"{key}={given[key]!r} is not supported; pass {key}=None and name a grid instead")
        if given.get("final_sigmas_type") == "sigma_min":
            raise ArgumentError(
                "final_sigmas_type='sigma_min' leaves noise in the picture; pass final_sigmas_type=None"
            )
        if given.get("sigma_schedule") == "exponential":
            given["use_exponential_sigmas"] = True
        model: dict[str, Any] = {
            "process": processes.from_config(given).kind,
            "prediction_type": predictions.from_config(given),
        }
        if model["process"] == "edm":
            edm = processes.from_config(given)
            assert isinstance(edm, processes.EDM)
            model |= {"sigma_data": edm.sigma_data, "sigma_min": edm.sigma_min, "sigma_max": edm.sigma_max}
        if sampler is not None:
            chosen = Sampler.of(sampler)
            if chosen.grid_options or chosen.cuts or chosen.sigmas is not None or chosen.times is not None:
                raise ArgumentError("a scheduler's config keeps solver, grid name, options and noise of a sampler only")
            told = {"sampler_options": dict(chosen.options), "sampler_noise": chosen.source}
            model |= {"sampler": chosen.label, **{k: v for k, v in told.items() if k not in changes}}
        kept = {key: value for key, value in given.items() if key in names and value is not None}
        made = cls(**{**kept, **model})
        return (made, {}) if return_unused_kwargs else made

    def __deepcopy__(self, memo: dict[int, Any]) -> Scheduler:
        """A scheduler with the same configuration, sampler and seeds, and no run: pipelines copy one for the sound."""
        kept = {k: v for k, v in self.config.items() if not k.startswith("_")}
        made: Scheduler = type(self)(**copy.deepcopy(kept, memo))
        made.sampler, made.orders = self.sampler, Orders(seeds=self.orders.seeds, noise=self.orders.noise)
        made.hand.leader, self.hand.led = self, True
        return made

    # -- what pipelines read -------------------------------------------------------------------
    @property
    def run(self) -> Run:
        """The run of the current call."""
        if self._run is None:
            raise RunError("there is no run yet; call set_timesteps(steps), as pipelines do, first")
        return self._run

    @property
    def current(self) -> Run | None:
        """The run of the current call, or None."""
        return self._run

    @property
    def step_index(self) -> int | None:
        return None if self._run is None else self._run.row

    begin_index = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Pipelines announce where they begin; the grid was already cut when they sliced `timesteps`."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Choose the levels and make the run. Give a number of steps, `timesteps` or `sigmas`.

        `mu`: log of the flow shift (the shift itself with `time_shift_type="linear"`), from pipelines that compute
        it from the picture's size.
        """
        if self.hand.replay and self._all is not None:
            self.timesteps = Timesteps.of(self._all[0].plain().to(device), self)
            return
        asked = (num_inference_steps, _plain(timesteps), _plain(sigmas), mu, self.sampler, id(self.orders))
        if asked == self._asked and self._run is not None and not self._run.started:
            self.timesteps = Timesteps.of(self.timesteps.as_subclass(Tensor).to(device), self)
            return
        process = self.process
        if mu is not None:
            if not isinstance(process, Flow):
                raise ArgumentError(f"mu={mu} shifts flow models; this is a {process.kind} process")
            process = process.with_mu(math.log(mu) if self.config.time_shift_type == "linear" else mu)
        if timesteps is not None and sigmas is not None:
            raise ArgumentError("give timesteps or sigmas, not both")
        if sigmas is not None and process.kind == "flow" and _is_default_flow(sigmas):
            num_inference_steps, sigmas = len(sigmas), None
        sampler = self._with_grid()
        if timesteps is not None or sigmas is not None:
            sampler = replace(sampler, grid=None, steps=None, times=timesteps, sigmas=sigmas)
        elif num_inference_steps is not None:
            sampler = replace(sampler, steps=int(num_inference_steps))
        self._device = device
        self._make(sampler, sampler.levels(process))
        sampler.drawing(self.run.table)
        assert isinstance(self.timesteps, Timesteps)
        assert self._grid is not None
        self._all, self._covered = (self.timesteps, sampler, self._grid, self.run.table.step), (0, len(self.timesteps))
        self._asked = asked

    def _with_grid(self) -> Sampler:
        """The sampler with the grid of its name, its levels, or the config."""
        sampler, config = self.sampler, self.config
        if sampler.grid or sampler.sigmas is not None or sampler.times is not None:
            return sampler
        if solvers.find(sampler.name).grid:
            return sampler
        flagged = [grid for flag, grid in GRID_FLAGS.items() if config[flag]]
        if config.shift_terminal and self.process.kind == "flow":
            if flagged:
                raise ArgumentError(
                    f"shift_terminal stretches the flow grid, not {flagged[0]!r}; leave one of them out"
                )
            return replace(sampler, grid="flow", grid_options={"terminal": config.shift_terminal})
        if len(flagged) > 1:
            raise ArgumentError(f"only one of {', '.join(GRID_FLAGS)} can be on")
        return replace(sampler, grid=flagged[0] if flagged else config.timestep_spacing)

    def _make(self, sampler: Sampler, grid: Grid) -> Timesteps:
        """Compile the table on `grid` and hang a fresh run on it."""
        table = self._compile(sampler, grid)
        self._sampler, self._grid, self._asked = sampler, grid, None
        orders = self.orders
        noise = orders.noise
        if noise is None and table.stochastic:
            noise = self._late_noise if orders.seeds is None else source(sampler.source, orders.seeds, table)
        self._run = Run(
            table, self.prediction, noise=noise, guidance=orders.guidance, hooks=orders.hooks,
            shape=self._shape(), keep=orders.keep, context=orders.context,
        )  # fmt: skip
        self._seeded = None
        self.hand.let_go()
        times = table.time[:-1]
        whole = self.process.kind == "vp" and bool((times == times.round()).all())
        self.timesteps = Timesteps.of(times.to(torch.int64 if whole else torch.float32).to(self._device), self)
        ratio = table.sigma if self.process.kind == "flow" else table.sigma / table.alpha
        self.sigmas = ratio.to(torch.float32)
        self.order = _rows_per_step(table)
        self.num_inference_steps = table.steps
        assert isinstance(self.timesteps, Timesteps)
        return self.timesteps

    def _compile(self, sampler: Sampler, grid: Grid) -> Table:
        return solvers.make(sampler.name, grid, **sampler.options)

    def cover(self, start: int, stop: int) -> None:
        """Let the run cover rows start … stop of the list that `set_timesteps` made, as pipelines slice it."""
        if self._all is None:
            raise RunError("call set_timesteps first")
        _, sampler, grid, steps = self._all
        if (start, stop) != self._covered:
            last = steps[-1] + 1 if stop >= len(steps) else steps[stop]
            self._make(sampler, grids.cut(grid, start=steps[start], stop=last))
            self._covered = (start, stop)
        if self.orders.resume is not None:
            self._run, self.orders.resume = adopted(self.orders.resume, self.run), None
            self.hand.replay = True

    def _shape(self) -> Callable[[Tensor], Tensor] | None:
        config = self.config
        if config.thresholding:
            ratio, top = float(config.dynamic_thresholding_ratio), float(config.sample_max_value)
            return lambda clean: predictions.threshold(clean, ratio, top)
        if config.clip_sample:
            limit = float(config.clip_sample_range)
            return lambda clean: clean.clamp(-limit, limit)
        return None

    # -- what pipelines call -------------------------------------------------------------------
    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: unit-variance coordinates need no scaling."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Advance the run by one row. `generator` seeds the sampler's noise where the helm gave no seeds."""
        if eta:
            raise ArgumentError(f"eta={eta} belongs to the sampler: from_config(…, sampler_options={{'eta': {eta}}})")
        run = self.run
        self.hand.follow(run)
        if not self.hand.rests():
            raw = model_output if self.orders.guided is None else self.orders.guided(model_output)
            self._seed(generator, len(sample))
            if not run.started:
                run.start(sample)
            elif not self.hand.holds(sample):
                run.latents = sample
            run.advance(raw)
        new = run.result if run.stopping else run.latents
        self.hand.give(new)
        return SchedulerOutput(prev_sample=new) if return_dict else (new,)

    def _seed(self, generator: Any, batch: int) -> None:
        """Seeds for a stochastic sampler that was given none: from the generators, else from torch's own."""
        if self.run.noise != self._late_noise or self._seeded is not None:
            return
        if isinstance(generator, (list, tuple)):
            seeds = [g.initial_seed() for g in generator]
        elif generator is not None:
            seeds = [generator.initial_seed() + i for i in range(batch)]
        else:
            seeds = torch.randint(2**62, (batch,)).tolist()
        self._seeded = source(self._sampler.source, seeds, self.run.table)

    def _late_noise(self, row: int, like: Tensor) -> Tensor:
        assert self._seeded is not None
        return self._seeded(row, like)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha·x0 + sigma·noise` at the levels of `timesteps` (one per sample, or one for all).

        `x0` itself once the run is stopped: what pipelines blend with the result is to be as clean as the result.
        """
        if self._run is not None and self._run.started and self._run.stopping:
            return original_samples
        level = self.process.at_time(timesteps.detach().to("cpu", torch.float64).reshape(-1))
        shape = (-1,) + (1,) * (original_samples.ndim - 1)
        alpha, sigma = (v.to(original_samples).reshape(shape) for v in (level.alpha, level.sigma))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, torch.as_tensor(timestep))

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _plain(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(v) for v in values)


def _is_default_flow(sigmas: Any) -> bool:
    """Whether a list is linspace(1, 1/N, N), which flow pipelines pass when the user gave none."""
    given = torch.as_tensor(sigmas, dtype=torch.float64).flatten()
    return len(given) > 0 and torch.allclose(given, torch.linspace(1, 1 / len(given), len(given), dtype=torch.float64))


def _rows_per_step(table: Table) -> int:
    """Network calls of a step, by which pipelines multiply where they slice; the first and the last may differ."""
    k = max(table.steps - 2, 0)
    return table.first_row(k + 1) - table.first_row(k)


Scheduler.__module__ = "timonel"  # so that a saved pipeline names the package, not this file
