"""The scheduler socket: a diffusers scheduler whose `step` advances a run.

    pipe.scheduler = timonel.Scheduler.from_config(pipe.scheduler.config, sampler="dpmpp_2m_sde/karras")

It works alone, on any pipeline, and survives `save_pretrained`. The helm also hangs guidance, hooks
and seeds on it. Samples are in unit-variance coordinates, so the network's input needs no scaling.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from .. import prediction as predictions
from .. import process as processes
from .. import solvers
from ..errors import ArgumentError, RunError, UnknownName, flag, options, whole
from ..grids import Grid
from ..noise import DEFAULT, Noise, Seeded, source
from ..process import Process
from ..run import Run
from ..sampler import Sampler
from ..table import Table
from . import choice, kept, levels, model, request
from .attributes import Attributes, Stepped, held
from .orders import Orders as Orders
from .timesteps import Hand, Timesteps, adopted


class Scheduler(Attributes, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any timonel sampler as a diffusers scheduler.

    `sampler`: "solver" or "solver/grid"; `sampler_options`: options of the solver; `sampler_noise`: the source of
    its noise, "independent" or "brownian", see `noise.py`. Where none is named, `from_config` takes the one that the
    config's class and flags say, see `choice.py`. Without a grid in the name, the config's own is taken: Karras or
    exponential sigmas if they are on, else `timestep_spacing`, else the process' usual one.
    A `sampler` that is a file fitted to a model goes into the config as `sampler_table`, so that the file may be gone.
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
        invert_sigmas: bool = False,
        final_sigmas_type: str = "zero",
        variance_type: str | None = None,
        original_inference_steps: int = 50,
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
        sampler_table: dict[str, Any] | None = None,
    ) -> None:
        public = {key: value for key, value in self.config.items() if not key.startswith("_")}
        self.register_to_config(**request.typed(_defaults(type(self)), public))
        config = {**self.config, "_class_name": ""}
        model.check(self.config)
        chosen = kept.sampler(self.config)
        if chosen.fitted is not None:
            self.register_to_config(**kept.told(chosen))
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
        self._before: Run | None = None  # the one before, of loops that choose the levels again after their end
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

        `sampler`: a name or a sampler; None is the one that the class and flags of `config` stand for, else the
        default. `changes` override keys of the config; a key that this scheduler does not have is refused
        with `UnknownName` (diffusers drops it without a word). `return_unused_kwargs` is for diffusers' own
        loading, which asks for a pair.
        """
        names = set(cls._get_init_keys(cls)) - {"self"}
        for key in changes:
            if key not in names:
                raise UnknownName("scheduler option", key, names)
        changes = request.typed(_defaults(cls), changes)
        given = {**(options("config", {} if config is None else config)), "variance_type": None, **changes}
        said = model.keys(given)
        if sampler is None and given.get("sampler") is None:
            sampler = choice.of_config(given)
        if sampler is not None:
            chosen = Sampler.of(sampler)
            if chosen.grid_options or chosen.cuts or chosen.sigmas is not None or chosen.times is not None:
                raise ArgumentError("a scheduler's config keeps solver, grid name, options and noise of a sampler only")
            said |= {k: v for k, v in kept.told(chosen).items() if k == "sampler" or k not in changes}
        own = {key: value for key, value in given.items() if key in names and value is not None}
        made = cls(**{**own, **said})
        return (made, {}) if return_unused_kwargs else made

    def __deepcopy__(self, memo: dict[int, Any]) -> Scheduler:
        """A scheduler with the same configuration, sampler and seeds, and no run: pipelines copy one for the sound."""
        own = {k: v for k, v in self.config.items() if not k.startswith("_")}
        made: Scheduler = type(self)(**copy.deepcopy(own, memo))
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
    def newest(self) -> Run | None:
        """The newest run that made a step, or else the current one."""
        return (
            self._before if self._before is not None and self._run is not None and not self._run.started else self._run
        )

    @property
    def settled(self) -> Sampler:
        """The sampler of the present levels, with the grid that the name or the config decided."""
        return self._sampler

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        max_timesteps: float | None = None,
        intermediate_timesteps: float | None = None,
        strength: float | None = None,
    ) -> None:
        """Choose the levels and make the run. Give a number of steps, `timesteps` or `sigmas`.

        `mu`: log of the flow shift (the shift itself with `time_shift_type="linear"`), from pipelines that compute
        it from the picture's size. `original_inference_steps`: of the grid "lcm". `max_timesteps` and
        `intermediate_timesteps`: angles of a trigonometric flow, used where the sampler names no grid.
        `strength`: all steps in the last part of the levels, from loops that do not slice their list.
        """
        if self.hand.replay and self._all is not None:
            self.timesteps = Timesteps.of(self._all[0].plain().to(device), self)
            return
        asked = levels.Asked(
            request.steps(num_inference_steps), request.numbers("timesteps", timesteps),
            request.numbers("sigmas", sigmas), request.number("mu", mu),
            None if original_inference_steps is None else whole("original_inference_steps", original_inference_steps),
            (request.number("max_timesteps", max_timesteps),
             request.number("intermediate_timesteps", intermediate_timesteps)),
            request.number("strength", strength),
        )  # fmt: skip
        request_of = (asked, self.sampler, id(self.orders))
        if request_of == self._asked and self._run is not None and not self._run.started:
            self.timesteps = Timesteps.of(self.timesteps.as_subclass(Tensor).to(device), self)
            return
        self._device = device
        listed = self._make(*levels.of(self.sampler, self.process, self.config, asked, self.orders.named))
        self._sampler.drawing(self.run.table)
        assert self._grid is not None
        table = self.run.table
        self._all, self._covered = (listed, self._sampler, self._grid, table.step), (0, table.nfe)
        self._asked = request_of

    def _make(self, sampler: Sampler, grid: Grid) -> Timesteps:
        """Compile the table on `grid` and hang a fresh run on it."""
        table = self._compile(sampler, grid)
        self._sampler, self._grid, self._asked = sampler, grid, None
        orders = self.orders
        noise = orders.noise
        self._before = self.newest
        if noise is None and table.stochastic:
            noise = self._late_noise if orders.seeds is None else source(sampler.source, orders.seeds, table)
        self._run = Run(
            table, self.prediction, noise=noise, guidance=orders.guidance, hooks=orders.hooks,
            shape=self._shape(), keep=orders.keep, context=orders.context,
        )  # fmt: skip
        self._seeded = None
        self.hand.let_go()
        times = table.time if self.process.lists_end else table.time[:-1]
        integral = self.process.kind == "vp" and bool((times == times.round()).all())
        self.timesteps = Timesteps.of(times.to(torch.int64 if integral else torch.float32).to(self._device), self)
        ratio = table.sigma if self.process.kind == "flow" else table.sigma / table.alpha
        self.sigmas = ratio.to(torch.float32)
        self.order = levels.rows_per_step(table)
        self.num_inference_steps = table.steps
        assert isinstance(self.timesteps, Timesteps)
        return self.timesteps

    def _compile(self, sampler: Sampler, grid: Grid) -> Table:
        if sampler.fitted is not None:
            return sampler.fitted.on(grid.process)
        return solvers.make(sampler.name, grid, **sampler.options)

    def cover(self, start: int, stop: int) -> None:
        """Let the run cover rows start … stop of the list that `set_timesteps` made, as pipelines slice it."""
        if self._all is None:
            raise RunError("call set_timesteps first")
        _, sampler, grid, steps = self._all
        stop = min(stop, len(steps))
        if (start, stop) != self._covered:
            levels.whole(sampler, steps, start, stop)
            self._make(sampler, levels.part(grid, self._compile(sampler, grid), start, stop))
            self._covered = (start, stop)
        if self.orders.resume is not None:
            self._run, self.orders.resume = adopted(self.orders.resume, self.run), None
            self.hand.replay = True

    def _shape(self) -> Callable[[Tensor], Tensor] | None:
        return model.shape(self.config)

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
        variance_noise: Tensor | None = None,
        prev_timestep: Any = None,
        use_clipped_model_output: bool | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> Stepped:
        """Advance the run by one row. `generator` seeds the sampler's noise where the helm gave no seeds.

        `variance_noise`: the noise of this row, from pipelines that found it by inversion; refused where the row draws
        none. `prev_timestep`: what the table knows anyhow. `per_token_timesteps`: (batch, tokens), each below the
        row's time where a token is held cleaner; the output is then the negative velocity, as diffusers has it.
        """
        request.step(model_output, sample, generator, eta, per_token_timesteps)
        if eta and variance_noise is None:
            raise ArgumentError(f"eta={eta} belongs to the sampler: from_config(…, sampler_options={{'eta': {eta}}})")
        if use_clipped_model_output is not None and flag("use_clipped_model_output", use_clipped_model_output):
            raise ArgumentError("use_clipped_model_output=True is not supported; leave it out")
        lead = self.hand.leader
        if lead is not None and self._run is None:  # a copy that was given no levels goes on where it was made
            return lead.step(
                model_output, timestep, sample, eta, generator, return_dict, variance_noise, prev_timestep,
                use_clipped_model_output, per_token_timesteps,
            )  # fmt: skip
        run = self.run
        self.hand.follow(run)
        if not self.hand.rests():
            raw = model_output if self.orders.guided is None else self.orders.guided(model_output)
            if per_token_timesteps is not None:
                raw = held(raw, per_token_timesteps, run.level.time)
            elif raw.ndim > 1 and raw.shape[1] == 2 * sample.shape[1] and raw.shape[0] == len(sample):
                raw = raw[:, : sample.shape[1]]  # the rest is a learned variance
            self._seed(generator, len(sample))
            self._spread(sample)
            if not run.started:
                run.start(sample)
            elif not self.hand.holds(sample):
                run.latents = sample
            self._advance(raw, variance_noise)
        new = run.result if run.stopping else run.latents
        self.hand.give(new)
        return Stepped(run, new)

    def _advance(self, raw: Tensor, noise: Tensor | None) -> None:
        """One row, with `noise` instead of the run's own where it is given."""
        run = self.run
        if noise is None:
            run.advance(raw)
            return
        if not (run.table.x[run.row, -1] or run.table.base[run.row, -1]):
            raise ArgumentError(
                f"this pipeline gives the noise that its inversion found, and {run.table.solver!r} takes none: use a "
                "stochastic sampler, e.g. Sampler('ddim', options={'eta': 1})"
            )
        own = run.noise
        run.noise = lambda row, like: noise.to(like)
        try:
            run.advance(raw)
        finally:
            run.noise = own

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

    def _spread(self, sample: Tensor) -> None:
        """Where frames or halves are a batch, a sample is several of it and its seed serves all of them."""
        run = self.run
        if run.started:
            return
        if isinstance(self._seeded, Seeded):
            self._seeded = self._seeded.spread(sample)
        if isinstance(run.noise, Seeded):
            run.noise = run.noise.spread(sample)

    def _late_noise(self, row: int, like: Tensor) -> Tensor:
        assert self._seeded is not None
        return self._seeded(row, like)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha·x0 + sigma·noise` at the levels of `timesteps` (one per sample, or one for all).

        `x0` itself once the run is stopped: what pipelines blend with the result is to be as clean as the result.
        """
        if self._run is not None and self._run.started and self._run.stopping:
            return original_samples
        process = self.process if self._grid is None else self._grid.process
        times = request.noised(original_samples, noise, timesteps)
        table = None if self._all is None or self._sampler.fitted is None else self.run.table
        level = process.at_time(times) if table is None else levels.at(table, process, times)
        shape = (-1,) + (1,) * (original_samples.ndim - 1)
        alpha, sigma = (v.to(original_samples).reshape(shape) for v in (level.alpha, level.sigma))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _defaults(cls: type[Scheduler]) -> dict[str, Any]:
    """What the options are where they are not given."""
    return {name: parameter.default for name, parameter in inspect.signature(cls.__init__).parameters.items()}


Scheduler.__module__ = "timonel"  # so that a saved pipeline names the package, not this file
