"""The scheduler socket: a diffusers scheduler whose `step` advances a run.

    pipe.scheduler = timonel.Scheduler.from_config(pipe.scheduler.config,
    sampler="dpmpp_2m_sde/karras")

It works alone, on any pipeline, and survives `save_pretrained`. The helm also hangs guidance, hooks
and seeds on it. Samples are in unit-variance coordinates, so the network's input needs no scaling.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ...core import solvers
from ...core.grids import Grid
from ...core.grids.cut import none_left
from ...core.noise import DEFAULT, source
from ...core.not_finite import check_result
from ...core.process import Process
from ...core.process.config import read
from ...core.run import Run
from ...core.sampler import Sampler
from ...core.table import Table
from ...errors import ArgumentError, GridError, RunError, flag, whole
from .. import request
from ..caller import pipeline_of
from ..guidance import modular
from ..inspect_source import keeps_unit_variance
from ..orders import Orders as Orders
from ..piped import calling
from . import acting, kept, model, requested_levels
from .configured import Configured
from .generators import Seeding
from .listing import Listing
from .outputs import Attributes, Stepped, held
from .timesteps import Hand, Loop, Timesteps, adopted, check_handover, is_part, number


class Scheduler(Attributes, Configured, Seeding, SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any timonel sampler as a diffusers scheduler.

    `sampler`: "solver" or "solver/grid"; `sampler_options`: options of the solver; `sampler_noise`:
    the source of its noise, "independent" or "brownian", see `noise.py`. Where none is named,
    `from_config` takes the one that the config's class and flags say, see `choice.py`. Without a
    grid in the name, the config's own is taken: Karras or exponential sigmas if they are on, else
    `timestep_spacing`, which means nothing on a flow, else the process' usual one. What the config
    says of the ends (sigma_min, sigma_max, shift_terminal) holds on any grid that has them. An
    argument that would change nothing is refused, with the one that would. A `sampler` that is a
    file fitted to a model goes into the config as `sampler_table`, so that the file may be gone.
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
        asked = self.__dict__.pop("_asked_for", None)
        if (
            asked is None
        ):  # made in code: every argument is the caller's own, unless it is a whole config
            unwritten = set(self.config.get("_use_default_values", ()))
            picked = [key for key in self._defaults() if key not in unwritten]
            asked = (
                {key: self.config[key] for key in picked} if unwritten - set(acting.SAMPLER) else {}
            )
        acting.check(
            lambda asked: {**self._defaults(), **asked, **kept.keys(chosen)},
            asked,
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
        self.orders = Orders()
        self.init_noise_sigma: float | Tensor = 1.0
        self.num_inference_steps: int | None = None
        self._listing: Listing | None = None  # what set_timesteps made
        self._run: Run | None = None
        self._covered = (0, 0)  # which rows of the listing the run covers
        self._mixed = False  # add_noise was called for the present levels
        self._before: Run | None = (
            None  # the one before, of loops that choose the levels again after their end
        )
        self._asked: tuple[Any, ...] | None = None  # what set_timesteps was last called with
        self.hand = Hand()
        self._timesteps: Tensor = torch.arange(process.train_steps - 1, -1, -1)
        self.sigmas: Tensor = torch.zeros(1)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what belongs to a pipeline's call; a copy has a run of its own at the same
        point.
        """
        orders = replace(
            self.orders, context=None, guided=None, resume=None, recall=False, driver=None, hooks=()
        )
        hand = Hand()
        hand.copied = True
        return {**vars(self), "hand": hand, "orders": orders, "_before": None, "_asked": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Scheduler:
        """A scheduler that goes on by itself from the same point, with the same hooks.

        Under a helm one with the same configuration, sampler and seeds, and no run: pipelines copy
        one for the sound, which is to stop and to rewind with the other.
        """
        if self.orders.guided is None:
            twin = type(self).__new__(type(self))
            memo[id(self)] = twin
            state = self.__getstate__()
            orders = state.pop("orders")
            twin.__dict__.update(
                {name: copy.deepcopy(value, memo) for name, value in state.items()}, orders=orders
            )
            return twin
        own = {k: v for k, v in self.config.items() if not k.startswith("_")}
        made: Scheduler = type(self)._of(copy.deepcopy(own, memo))
        made.sampler, made.orders = (
            self.sampler,
            Orders(seeds=self.orders.seeds, noise=self.orders.noise),
        )
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
        fresh = self._run is not None and not self._run.started
        return self._before if fresh and self._before is not None else self._run

    @property
    def begins(self) -> int:
        """The row of the list where the run begins."""
        return self._covered[0]

    @property
    def timesteps(self) -> Tensor:
        """The network's times, one for each row, noisiest first; the loop over them drives the run."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, times: Any) -> None:
        """A part of the present list, as a slice of it; any other list is that of
        `set_timesteps(timesteps=…)`.
        """
        if isinstance(times, Timesteps) and self.lists(times.whole):
            self._timesteps = times
            return
        if not isinstance(times, Tensor):
            times = torch.tensor(request.numbers("timesteps", times) or (), dtype=torch.float64)
        plain = times.detach().as_subclass(Tensor)
        begin = (
            None if self._listing is None else requested_levels.place(self._listing.times, plain)
        )
        if begin is None or self._listing is None:
            self.set_timesteps(timesteps=plain.tolist(), device=plain.device)
        else:
            self._timesteps = Timesteps.of(plain, self, self._listing.times, begin)

    def lists(self, times: Tensor) -> bool:
        """Whether `times` is the list of the present requested_levels."""
        return self._listing is not None and times is self._listing.times

    @property
    def settled(self) -> Sampler:
        """The sampler of the present requested_levels, with the grid that the name or the config
        decided.
        """
        return self._sampler

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Pipelines announce where they begin; the grid was already cut when they sliced
        `timesteps`.

        Raises `GridError` where nothing of the list is left, which pipelines would decode without a
        step.
        """
        super().set_begin_index(begin_index)
        if self._listing is not None and begin_index >= self._listing.table.nfe:
            call = getattr(self.orders.context, "call", None) or {}
            raise GridError(none_left(self._listing.grid.steps, call.get("strength")))

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

        `mu`: log of the flow shift (the shift itself with `time_shift_type="linear"`), from
        pipelines that compute it from the picture's size. `original_inference_steps`: of the grid
        "lcm". `max_timesteps` and `intermediate_timesteps`: angles of a trigonometric flow, used
        where the sampler names no grid. `strength`: all steps in the last part of the
        requested_levels, from loops that do not slice their list.
        """
        keeps_unit_variance(pipeline_of(self))
        self._reread()
        if self.hand.replay and self._listing is not None:
            self._timesteps = Timesteps.of(
                self._listing.times.to(device), self, self._listing.times
            )
            return
        asked = requested_levels.Asked(
            request.steps(num_inference_steps), request.numbers("timesteps", timesteps),
            request.numbers("sigmas", sigmas), request.number("mu", mu),
            None if original_inference_steps is None else whole("original_inference_steps",
            original_inference_steps),
            (request.number("max_timesteps", max_timesteps),
             request.number("intermediate_timesteps", intermediate_timesteps)),
            request.number("strength", strength),
        )  # fmt: skip
        request_of = (asked, self.sampler, id(self.orders))
        if request_of == self._asked and self._run is not None and not self._run.started:
            self._timesteps, self._begin_index = self._timesteps.to(device), None
            return
        orders = self.orders
        self._list(
            *requested_levels.of(
                self.sampler, self.process, self.config, asked, orders.named, orders.listed
            ),
            device,
        )
        self._sampler.drawing(self.run.table, self.process)
        self.custom_timesteps, self._asked = asked.times is not None, request_of

    def _list(self, sampler: Sampler, grid: Grid, device: Any) -> None:
        """Compile the table on `grid`, list its rows, and make the run of all of them."""
        table = self._compile(sampler, grid)
        self._listing = Listing.of(sampler, grid, table, self.process)
        self._timesteps = Timesteps.of(self._listing.times.to(device), self, self._listing.times)
        ratio = table.sigma if self.process.kind == "flow" else table.sigma / table.alpha
        self.sigmas = ratio.to(torch.float32)
        self.order = requested_levels.Order.of(table, grid)
        self.num_inference_steps = table.steps
        self._asked, self._mixed, self._begin_index = None, False, None
        self.hand.loops = []  # of the levels before
        self._begin(table, (0, table.nfe))

    def _begin(self, table: Table, rows: tuple[int, int]) -> None:
        """A fresh run of `table`, which is `rows` of the listing."""
        orders, noise = self.orders, self.orders.noise
        self._before = self.newest
        if noise is None and table.stochastic:
            noise = (
                self._unseeded
                if orders.seeds is None
                else source(self._sampler.source, orders.seeds, table)
            )
        self._run = Run(
            table, self.prediction, noise=noise, guidance=orders.guidance,
            hooks=[*orders.hooks, *modular.counted(self)],
            denoised_fn=self._shape(), keep=orders.keep, context=orders.context, lent=True,
            sampler=kept.begun(self.sampler, self._sampler, self._listed.table),
            driver=orders.driver or calling(self),
        )  # fmt: skip
        self._covered = rows
        self.hand.let_go()

    @property
    def _sampler(self) -> Sampler:
        return self._listed.sampler

    @property
    def _listed(self) -> Listing:
        if self._listing is None:
            raise RunError(
                "there are no levels yet; call set_timesteps(steps), as pipelines do, first"
            )
        return self._listing

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0) -> Table:
        """`before`: how many steps of the journey come before those of `grid`."""
        if sampler.fitted is not None:
            return sampler.fitted.on(grid.process)
        return solvers.make(sampler.name, grid, before=before, **sampler.solver_options)

    # -- which row -----------------------------------------------------------------------------
    def loop_begin(self, row: int) -> int:
        """The row where a loop over the list from `row` on begins.

        A picture that was mixed with noise is at the level of `row`. Any other sample comes from a
        loop that ended before the step of `row`, as SDXL's base does for its refiner.
        """
        return self._listed.loop_begin(row, self._mixed)

    def _steps(self, start: int, stop: int) -> tuple[int, int]:
        """Rows `start` … `stop` of the list, less a last step that is not completed."""
        table = self._listed.table
        stop = min(stop, table.nfe)  # some lists have the end too
        return self.loop_begin(start), table.first_row(table.step_at(stop))

    def cover(self, start: int, stop: int) -> None:
        """A fresh run of the whole steps in rows `start` … `stop - 1` of the list, as pipelines
        slice it.

        Raises `ArgumentError` where the sampler is made for all of them, `GridError` where no step
        is left.
        """
        rows = self._steps(start, stop)
        self._begin(self._listed.part(rows, start, stop, self._compile), rows)

    def resumes(self, loop: Loop) -> bool:
        """Whether the run that `loop` begins with has rows behind it.

        A run to resume is not that of a list which is only read before a part of it is run; `_join`
        refuses it.
        """
        if self.orders.resume is not None:
            self.cover(loop.start, loop.stop)
            if is_part(self.orders.resume.table, self.run.table):
                return False
            self._run, self.orders.resume = adopted(self.orders.resume, self.run), None
            self.hand.replay = True
        if self.hand.replay:
            loop.run = self.run
        return self.hand.replay

    def coming(self) -> Run | None:
        """The run that the network's coming call is for; a loop that is about to begin gets its
        own.
        """
        if self._run is not None and self.hand.loops and not self.hand.idle:
            self._join(self.hand.loops[0])
        return self._run

    def _join(self, loop: Loop) -> None:
        """Let the run be that of `loop`: a fresh one where it begins, from the row that it has
        shown.
        """
        if loop.stepped or loop.shown is None:
            return
        run = self.run
        if self.orders.resume is not None:
            adopted(self.orders.resume, run)  # which says how the two differ
        if loop.run is run and run.started:  # it goes on with a run that has rows behind it
            return
        if run.started or self._covered != self._steps(loop.row, loop.stop):
            self.cover(loop.row, loop.stop)
        loop.run = self.run

    def _at(self, timestep: Any, sample: Tensor) -> Run:
        """The run, with the row next to which `timestep` belongs. Raises `RunError` where that is
        another row.

        A loop says by what it has shown which row is meant. Else it is the row of that time: a run
        that has not begun begins there, and one that is complete is followed by another, unless its
        own result comes back.
        """
        loop = self.hand.loop_of(timestep)
        if loop is not None:
            self._join(loop)
            loop.stepped = True
            rows = [loop.row]
        else:
            rows = self._rows(timestep)
        over = self.run.status == "done" and loop is None
        if not over and self._is_next(timestep, rows):
            return self.run
        return self._elsewhere(
            timestep, rows, not self.run.started or (over and not self.hand.is_held(sample))
        )

    def _is_next(self, timestep: Any, rows: list[int]) -> bool:
        """Whether the run's next row is one of `rows`, which the step's time may mean."""
        return self.begins + self.run.row in rows

    def _elsewhere(self, timestep: Any, rows: list[int], begins: bool) -> Run:
        """The run of a step at one of `rows` that is not the next of the present run.

        `begins`: whether a run may begin with it. Raises `RunError` where none may, or no step
        begins there.
        """
        table = self._listed.table
        firsts = [row for row in rows if row == table.first_row(table.step[row])]
        if begins and firsts:
            self.cover(firsts[0], table.nfe)
            return self.run
        if begins and self.run.started:
            self.cover(0, table.nfe)
        raise RunError(self._listed.refusal(self.run, self.begins, number(timestep), rows))

    def _rows(self, timestep: Any) -> list[int]:
        """The rows of the list that a step at this time may mean."""
        return self._listed.rows(
            number(timestep), self.begins + self.run.row if self.under_way else None
        )

    def _bring(self, run: Run, sample: Tensor) -> None:
        """The pipeline comes back with a sample that it has changed."""
        run.replace(sample)

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
    ) -> Stepped:
        """Advance the run by one row. `generator` seeds the sampler's noise where the helm gave no
        seeds.

        `variance_noise`: the noise of this row, from pipelines that found it by inversion; refused
        where the row draws none. `prev_timestep`: what the table knows anyhow.
        `per_token_timesteps`: (batch, tokens), each below the row's time where a token is held
        cleaner; the output is then the negative velocity, as diffusers has it.
        """
        request.step(model_output, sample, generator, eta, per_token_timesteps)
        if eta and variance_noise is None:
            raise ArgumentError(
                f"eta={eta} belongs to the sampler: from_config(…, sampler_options={{'eta':"
                f" {eta}}})"
            )
        if use_clipped_model_output is not None and flag(
            "use_clipped_model_output", use_clipped_model_output
        ):
            raise ArgumentError("use_clipped_model_output=True is not supported; leave it out")
        lead = self.hand.leader
        if (
            lead is not None and self._run is None
        ):  # a copy that was given no levels goes on where it was made
            return lead.step(
                model_output, timestep, sample, eta, generator, return_dict, variance_noise,
                prev_timestep,
                use_clipped_model_output, per_token_timesteps,
            )  # fmt: skip
        rests = self.hand.rests()
        run = self.run if rests else self._at(timestep, sample)
        self.hand.follow(run)
        if not rests:
            raw = model_output if self.orders.guided is None else self.orders.guided(model_output)
            learned = None
            if per_token_timesteps is not None:
                raw = held(raw, per_token_timesteps, run.level.time)
            elif (
                raw.ndim > 1 and raw.shape[1] == 2 * sample.shape[1] and raw.shape[0] == len(sample)
            ):
                raw, learned = raw.chunk(2, dim=1)  # the other half is a learned variance
            self._seed(generator, len(sample))
            self._spread(sample)
            if not run.started:
                run.start(sample)
            elif not self.hand.holds(sample) and not self.hand.brings(sample, run):
                self._bring(run, sample)
            self._advance(raw, variance_noise, learned)
            if run.row >= run.table.nfe:
                check_result(run, run.latents)
        else:
            check_handover(run, sample)
        new = run.result if run.stopping else run.latents
        self.hand.give(new)
        return Stepped(run, new)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha·x0 + sigma·noise` at the levels of `timesteps` (one per sample, or one for all).

        `x0` itself once the run is stopped: what pipelines blend with the result is to be as clean
        as the result.
        """
        if self._run is not None and self._run.started and self._run.stopping:
            return original_samples
        times = request.noised(original_samples, noise, timesteps)
        self._mixed = True
        process = self.process if self._listing is None else self._listing.grid.process
        table = None if self._listing is None or self._sampler.fitted is None else self.run.table
        level = (
            process.at_time(times) if table is None else requested_levels.at(table, process, times)
        )
        alpha, sigma = level.factors(original_samples)
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


Scheduler.__module__ = "timonel"  # so that a saved pipeline names the package, not this file
