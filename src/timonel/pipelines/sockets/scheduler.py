"""The scheduler socket: a diffusers scheduler whose `step` advances a run.

    pipe.scheduler = timonel.Scheduler.from_config(config, sampler="dpmpp_2m_sde/karras")

It works alone, on any pipeline, and survives `save_pretrained`. The helm also hangs guidance, hooks
and seeds on it. Samples are in unit-variance coordinates, so the network's input needs no scaling.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ...core import solvers
from ...core.grids import Grid
from ...core.grids.cut import none_left
from ...core.noise import DEFAULT, Seeded, source
from ...core.not_finite import check_result
from ...core.process import Process
from ...core.process.config import read
from ...core.run import Run
from ...core.sampler import Sampler
from ...core.table import Table
from ...errors import ArgumentError, GridError, RunError, whole
from .. import caller, request
from ..caller import pipeline_of
from ..guidance import modular
from ..inspect_source import keeps_unit_variance
from ..piped import calling
from ..session import Request, Session
from . import acting, kept, model, parts, requested_levels, turning
from .configured import Configured
from .generators import drawn
from .listing import Listing
from .outputs import Attributes, SchedulerOutput, per_token_velocity
from .resumed import check_handover
from .timesteps import Rows, Timesteps


class Scheduler(Rows, Attributes, Configured, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any timonel sampler as a diffusers scheduler.

    Without a grid in the sampler's name a sigma flag names it, else `timestep_spacing`, else the
    process. The ends hold on any grid that has them. An argument without effect is refused.

    Args:
        num_train_timesteps: training levels.
        beta_start: first beta.
        beta_end: last beta.
        beta_schedule: how betas lie between, a word of diffusers.
        trained_betas: the betas themselves (num_train_timesteps,).
        prediction_type: "epsilon", "sample", "v", "flow", "reverse_flow", "edm", "edm_v".
        process: "vp", "edm", "ve", "flow", "trig", "cosine" or "crash"; None: the other keys say.
        timestep_spacing: grid of vp and edm: "leading", "linspace" or "trailing".
        steps_offset: index where the grid "leading" ends.
        rescale_betas_zero_snr: betas such that the last level is pure noise.
        use_karras_sigmas: the grid "karras".
        use_exponential_sigmas: the grid "exponential".
        use_beta_sigmas: the grid "beta_sigma".
        use_lu_lambdas: the grid "lam", even in log-SNR.
        sigma_min: lowest sigma / alpha of the grid, of a flow t.
        sigma_max: the highest.
        sigma_data: standard deviation of the data, of an edm network.
        clock: time of an edm network: "log", "angle" or "250 log".
        rho: of Karras' levels.
        snr_shift_scale: alpha² / sigma² is divided by it, as in CogVideoX.
        timestep_type: "discrete", or "continuous" for times 0.25·log(sigma).
        shift: of a flow: t' = shift·t / (1 + (shift - 1)·t).
        flow_shift: another name of `shift`.
        use_dynamic_shifting: whether the picture's size sets the shift, as `mu`.
        time_shift_type: what `mu` is: the log of the shift ("exponential") or it ("linear").
        shift_terminal: t of a flow's last level, to which all are stretched.
        invert_sigmas: whether the network's time is 1 - t.
        final_sigmas_type: end at "zero", or at "sigma_min".
        variance_type: refused; a sampler has its variances.
        original_inference_steps: of the grid "lcm".
        base_shift: `mu` at `base_image_seq_len` tokens.
        max_shift: `mu` at `max_image_seq_len` tokens.
        base_image_seq_len: see `base_shift`.
        max_image_seq_len: see `max_shift`.
        clip_sample: clip the denoised prediction to ±`clip_sample_range`.
        clip_sample_range: above 0.
        thresholding: clip it to a quantile of itself, and scale it.
        dynamic_thresholding_ratio: that quantile, 0 to 1.
        sample_max_value: bound of the quantile.
        sampler: "solver", "solver/grid" or a file; `from_config` has its default from the config.
        sampler_options: of the solver.
        sampler_noise: "independent" or "brownian".
        sampler_table: what a fitted sampler's file holds, so that the file may be gone.
    """

    order = 1
    turns = True  # a run may get a tail

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
        clock: str | None = None,
        rho: float | None = None,
        snr_shift_scale: float | None = None,
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
        self.register_to_config(**request.typed(self._defaults(), public))
        model.check(self.config)
        chosen = kept.sampler(self.config)
        if chosen.fitted is not None:
            self.register_to_config(**kept.keys(chosen))
        explicit = self.__dict__.pop("_explicit", None)
        # made in code: every argument is the caller's own, unless it is a whole config
        if explicit is None:
            unwritten = set(self.config.get("_use_default_values", ()))
            picked = [key for key in self._defaults() if key not in unwritten]
            explicit = (
                {key: self.config[key] for key in picked} if unwritten - set(acting.SAMPLER) else {}
            )
        acting.check(
            lambda changes: {**self._defaults(), **changes, **kept.keys(chosen)},
            explicit,
            self._defaults(),
        )
        config = {**self.config, "_class_name": ""}
        self._set(*read(config), chosen)
        self._read = self._plain()

    def _set(self, process: Process, prediction: str, sampler: Sampler) -> None:
        """Everything a scheduler has besides its configuration."""
        self.process: Process = process
        self.prediction = prediction
        self.sampler = sampler
        self.session = Session(self)
        self.init_noise_sigma: float | Tensor = 1.0
        self.num_inference_steps: int | None = None
        self._timesteps: Tensor = torch.arange(process.train_steps - 1, -1, -1)
        self.sigmas: Tensor = torch.zeros(1)

    def __copy__(self) -> Scheduler:
        """A scheduler at the same point, with a session of its own for the same run."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(vars(self))
        twin.session = self.session.beside(twin)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Scheduler:
        """A scheduler that goes on by itself from the same point, with the same hooks.

        Under a helm one with the same configuration, sampler and seeds, and no run: pipelines copy
        one for the sound, which is to stop and to rewind with the other.
        """
        if self.session.gate is None:
            alone = type(self).__new__(type(self))
            memo[id(self)] = alone
            alone.__dict__.update({k: copy.deepcopy(v, memo) for k, v in vars(self).items()})
            return alone
        config = {k: v for k, v in self.config.items() if not k.startswith("_")}
        twin: Scheduler = type(self)._of(copy.deepcopy(config, memo))
        twin.sampler = self.sampler
        twin.session = Session(twin, Request(seeds=self.session.request.seeds))
        twin.session.noise, twin.session.leader = self.session.noise, self
        self.session.copied = True
        return twin

    # -- what pipelines read -------------------------------------------------------------------
    @property
    def run(self) -> Run:
        """The run of the current call."""
        if self.session.run is None:
            raise RunError("there is no run yet; call set_timesteps(steps), as pipelines do, first")
        return self.session.run

    @property
    def current(self) -> Run | None:
        """The run of the current call, or None."""
        return self.session.run

    @property
    def timesteps(self) -> Tensor:
        """The times of all rows, noisiest first; a loop over them drives the run."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, times: Any) -> None:
        """A slice is a part of the present list; any other is `set_timesteps(timesteps=…)`."""
        if isinstance(times, Timesteps) and self.session.lists(times.whole):
            self._timesteps = times
            return
        if not isinstance(times, Tensor):
            times = torch.tensor(request.numbers("timesteps", times) or (), dtype=torch.float64)
        plain, listing = times.detach().as_subclass(Tensor), self.session.listing
        begin = None if listing is None else parts.place(listing.times, plain)
        if begin is None or listing is None:
            self.set_timesteps(timesteps=plain.tolist(), device=plain.device)
        else:
            self._timesteps = Timesteps.of(plain, self.session, listing.times, begin)

    @property
    def settled(self) -> Sampler:
        """The sampler of the present list, with the grid that the name or the config decided."""
        return self._listed.sampler

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Keep where pipelines say they begin; the grid was cut when they sliced `timesteps`.

        Raises:
            GridError: nothing of the list is left, which pipelines would decode without a step.
        """
        super().set_begin_index(begin_index)
        listing = self.session.listing
        if listing is not None and begin_index >= listing.table.nfe:
            call = getattr(self.session.request.context, "call", None) or {}
            raise GridError(none_left(listing.grid.steps, call.get("strength")))

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

        `timesteps` are visited as they are. `sigmas` too, but those of a flow are read as
        diffusers' schedulers read them: before the shift of the model or of `mu`, then stretched to
        `shift_terminal`, and where a sigma flag is on only their ends count. A `Sampler` with
        `sigmas` or `times` of its own visits just these. Where the sampler names a grid, a list is
        refused, unless it is linspace(1, 1/N, N), which pipelines make for a number of steps.

        Args:
            num_inference_steps: the number of steps.
            device: of `timesteps`.
            timesteps: network times, falling.
            sigmas: sigma / alpha, of a flow t in (0, 1], falling.
            mu: log of the flow shift (the shift itself with `time_shift_type="linear"`), from
                pipelines that compute it from the picture's size.
            original_inference_steps: of the grid "lcm".
            max_timesteps: first angle of a trigonometric flow, where the sampler names no grid.
            intermediate_timesteps: the second angle, of two steps.
            strength: all steps in the last part of the levels, from loops that do not slice their
                list.

        Raises:
            ArgumentError, GridError: these are no levels of the model and the sampler.
        """
        keeps_unit_variance(pipeline_of(self))
        self._reread()
        session = self.session
        if session.phase.again and session.listing is not None:
            times = session.listing.times
            self._timesteps = Timesteps.of(times.to(device), session, times)
            return
        original, whole_steps = original_inference_steps, "original_inference_steps"
        levels = requested_levels.Requested(
            request.steps(num_inference_steps),
            request.numbers("timesteps", timesteps),
            request.numbers("sigmas", sigmas),
            request.number("mu", mu),
            None if original is None else whole(whole_steps, original),
            (
                request.number("max_timesteps", max_timesteps),
                request.number("intermediate_timesteps", intermediate_timesteps),
            ),
            request.number("strength", strength),
        )
        requested = (levels, self.sampler, session.request)
        if requested == session.requested and session.run is not None and not session.run.started:
            self._timesteps, self._begin_index = self._timesteps.to(device), None
            return
        named, listed = session.request.named, session.request.listed
        self._list(
            *requested_levels.of(self.sampler, self.process, self.config, levels, named, listed),
            device,
        )
        self.settled.drawing(self.run.table, self.process)
        self.custom_timesteps, session.requested = levels.times is not None, requested

    def _list(self, sampler: Sampler, grid: Grid, device: Any) -> None:
        """Compile the table on `grid`, list its rows, and make the run of all of them."""
        table = turning.listed(
            self.session, parts.alone(self._compile(sampler, grid), self.session), grid.process
        )
        self.session.list(Listing.of(sampler, grid, table, self.process))
        turning.show(self, device)
        self._begin(table, (0, table.nfe))

    def _begin(self, table: Table, rows: tuple[int, int]) -> None:
        """A fresh run of `table`, which is `rows` of the listing."""
        session, settled = self.session, self.settled
        call, noise = session.request, session.noise
        if noise is None and table.stochastic:
            seeds = call.seeds
            noise = self._unseeded if seeds is None else source(settled.source, seeds, table)
        run = Run(
            table, self.prediction, noise=noise, guidance=call.guidance,
            hooks=[*call.hooks, *modular.counted(self)],
            denoised_fn=self._shape(), keep=call.keep, context=call.context,
            sampler=kept.begun(self.sampler, settled, self._listed.table),
            driver=session.driver or calling(self), lent=True, process=self._listed.grid.process,
        )  # fmt: skip
        session.begin(run, rows)

    @property
    def _listed(self) -> Listing:
        if self.session.listing is None:
            raise RunError(
                "there are no levels yet; call set_timesteps(steps), as pipelines do, first"
            )
        return self.session.listing  # type: ignore[no-any-return]

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        """`before`: how many steps of the journey come before those of `grid`."""
        if sampler.fitted is not None:
            return sampler.fitted.on(grid.process)
        return solvers.make(sampler.name, grid, before=before, **sampler.solver_options)

    def _bring(self, run: Run, sample: Tensor) -> None:
        """The pipeline comes back with a sample that it has changed."""
        run.replace(sample)

    def _turned(self, run: Run, live: bool) -> None:
        turning.turned(self.session, run, live)

    def _shape(self) -> Callable[[Tensor], Tensor] | None:
        return model.shape(self.config)

    # -- what pipelines call -------------------------------------------------------------------
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
    ) -> SchedulerOutput:
        """Advance the run by one row.

        Args:
            model_output: the network's output, (batch, …); twice the channels of `sample` where it
                learned a variance, which is left unread.
            timestep: the time of the row.
            sample: the sample, (batch, …).
            eta: None or 0 without `variance_noise`; another one belongs to the sampler.
            generator: seeds the sampler's noise where the helm gave no seeds.
            return_dict: unread; the output is both.
            variance_noise: the noise of this row, from pipelines that found it by inversion.
            prev_timestep: unread; the table knows it.
            use_clipped_model_output: False.
            per_token_timesteps: (batch, tokens), each below the row's time where a token is kept
                cleaner; the output is then the negative velocity, as diffusers has it.

        Returns:
            The sample at the next level and the denoised prediction.

        Raises:
            ArgumentError: an argument cannot be used, or the row draws no noise.
            RunError: the step is not that of the run's next row.
        """
        request.step(model_output, sample, generator, eta, per_token_timesteps)
        request.of_sampler(eta if variance_noise is None else None, use_clipped_model_output)
        session = self.session
        if session.leader is not None and session.run is None:
            # a copy without levels goes on where it was copied
            output: SchedulerOutput = session.leader.step(
                model_output, timestep, sample, eta, generator, variance_noise=variance_noise,
                per_token_timesteps=per_token_timesteps,
            )  # fmt: skip
            return output
        idle = session.idle
        run = self.run if idle else self._at(timestep, sample)
        if session.leader is not None:
            session.follow(run)
        if idle:
            check_handover(run, sample)
        else:
            changed = run.started and session.changed(sample, run)
            raw, learned = self._raw(run, model_output, sample, per_token_timesteps)
            self._seed(generator, len(sample))
            if not run.started:
                self._begin_with(run, sample)
            elif changed:
                self._bring(run, sample)
            self._advance(raw, variance_noise, learned)
            if run.row >= run.table.nfe:
                check_result(run, run.latents)
        new = run.result if run.stopping else run.latents
        session.give(new)
        return SchedulerOutput(run, new)

    def _raw(
        self, run: Run, output: Tensor, sample: Tensor, tokens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the row is advanced with, and a learned variance."""
        gate = self.session.gate
        raw = output if gate is None else gate.combined(output, sample)
        if tokens is not None:
            return per_token_velocity(raw, tokens, run.level.time), None
        twice = raw.ndim > 1 and raw.shape[1] == 2 * sample.shape[1]
        if twice and raw.shape[0] == len(sample):
            mean, learned = raw.chunk(2, dim=1)
            return mean, learned
        return raw, None

    def _begin_with(self, run: Run, sample: Tensor) -> None:
        """Begin a run; where frames or guided parts are a batch, a sample is several of it."""
        if isinstance(run.noise, Seeded):
            run.draw_from(run.noise.spread(sample))
        run.start(sample)

    def _unseeded(self, row: int, like: Tensor) -> Tensor:
        """Stands for the noise of a run until `_seed`."""
        raise RunError(
            "the sampler's noise gets its seeds with the first step of the scheduler: call step"
            " first"
        )

    def _seed(self, generator: Any, batch: int) -> None:
        """Seed a stochastic sampler without seeds, from the call's generators or torch's own."""
        run = self.run
        if run.noise is not None and run.noise == self._unseeded:
            run.draw_from(
                source(
                    self.settled.source, drawn(generator or caller.generator(), batch), run.table
                )
            )

    def _advance(self, raw: Tensor, noise: Tensor | None, learned: Tensor | None = None) -> None:
        """One row.

        `noise`: of this row, where a pipeline gives it. `learned`: the network's variance, unread.
        """
        run = self.run
        if noise is None:
            run.advance(raw)
            return
        if not (run.table.x[run.row, -1] or run.table.base[run.row, -1]):
            raise ArgumentError(
                f"this pipeline gives the noise that its inversion found, and {run.table.solver!r}"
                " takes none: use a stochastic sampler, e.g. Sampler('ddim', options={'eta': 1})"
            )
        run.advance(raw, lambda row, like: noise.to(like))

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


Scheduler.__module__ = "timonel"  # so that a saved pipeline names the package, not this file
