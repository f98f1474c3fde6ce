"""A scheduler that understands the configuration of the diffusers class it is named after."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from .. import prediction as predictions
from .. import process as processes
from ..errors import ArgumentError, RunError, UnknownName
from ..grids import Grid
from ..noise import source
from ..pipelines.attributes import Stepped
from ..pipelines.scheduler import Listing, Orders, Scheduler
from ..pipelines.timesteps import number
from ..process import Process
from ..sampler import Sampler
from . import levels
from .config import MODEL, read
from .flags import CHOICES, INERT, REFUSED, STEP_DEFAULTS, SUBSTITUTES


class Compat(Scheduler):
    """What the classes have in common. Each gives its `defaults`: the constructor's arguments, in diffusers' order.

    The configuration is in diffusers' words, so pipelines, diffusers' own schedulers and a saved folder read it.
    A flag works, or it is refused with `ArgumentError` and what to write instead; see `flags.py`.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    solver: ClassVar[str] = "euler"
    family: ClassVar[str] = "sigma"  # whose lists of levels: a family of `levels.make`
    fixed: ClassVar[Mapping[str, Any]] = {}  # what `levels.make` has to know of the class, beyond its flags
    kinds: ClassVar[tuple[str, ...]] = ("vp", "edm", "flow")  # processes the class can be made for
    eta: ClassVar[float | None] = None  # the default of step's eta, where the class has one
    calls: ClassVar[int] = 1  # of a step in the list, as pipelines count them when they cut it
    unit: ClassVar[bool] = True  # whether diffusers' start is unit noise; else it is scaled by the largest sigma

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "defaults" not in vars(cls):
            return
        keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
        named = [inspect.Parameter(name, keyword, default=value) for name, value in cls.defaults.items()]
        signature = inspect.Signature([inspect.Parameter("self", keyword), *named])

        def __init__(self: Compat, *args: Any, **kwargs: Any) -> None:
            public = {key: value for key, value in kwargs.items() if not key.startswith("_")}
            cls._known(public, cls.defaults)
            given = signature.bind(self, *args, **public).arguments
            self._create({key: value for key, value in given.items() if key != "self"}, {}, {})

        __init__.__signature__ = signature  # type: ignore[attr-defined]
        __init__.__doc__ = f"The arguments of diffusers' {cls.__name__}."
        cls.__init__ = __init__  # type: ignore[method-assign]
        cls.__module__ = "timonel.compat"  # so that a saved pipeline names the package

    # -- making ----------------------------------------------------------------------------------------
    def _create(self, explicit: Mapping[str, Any], carried: Mapping[str, Any], hidden: Mapping[str, Any]) -> None:
        """`explicit`: flags that were asked for; `carried`: those of the config; `hidden`: its other keys."""
        flags = {**copy.deepcopy(dict(self.defaults)), **carried, **explicit}
        for key, choices in CHOICES.items():
            substitute = SUBSTITUTES.get(type(self).__name__, {}).get(key, ())
            if key in carried and key not in explicit and flags[key] in substitute:
                flags[key] = self.defaults[key]  # what diffusers does with the words of another class
            elif key in flags and flags[key] not in (*choices, self.defaults[key]):
                raise UnknownName(key, flags[key], [c for c in choices if isinstance(c, str)])
        unused = [key for key in self.defaults if key not in explicit and key not in carried]
        written = {**hidden, "_use_default_values": unused, "_class_name": type(self).__name__}
        ConfigMixin.register_to_config(self, **flags, **written)
        given = {**hidden, **flags, "_class_name": type(self).__name__}
        process, prediction = processes.from_config(given), predictions.from_config(given)
        if process.kind not in self.kinds:
            raise ArgumentError(self._unfit(process))
        self._check(flags, explicit, process)
        name, options = self._solver(flags)
        self._set(process, prediction, Sampler(name, options=options, noise=self._source))
        self._visited = None

    _source: ClassVar[str | None] = None  # where its noise comes from, if not independent
    _visited: levels.Levels | None = None

    @classmethod
    def _known(cls, changes: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        for key in changes:
            if key not in known:
                raise UnknownName(f"argument of {cls.__name__}", key, known)

    @classmethod
    def _unfit(cls, process: Process) -> str:
        use = {
            "vp": "EulerDiscreteScheduler or DPMSolverMultistepScheduler",
            "flow": "FlowMatchEulerDiscreteScheduler",
            "edm": "EulerDiscreteScheduler or EDMEulerScheduler",
        }
        return f"{cls.__name__} is not for a {process.kind} model, which this config describes; use {use[process.kind]}"

    @classmethod
    def _check(cls, flags: Mapping[str, Any], explicit: Mapping[str, Any], process: Process) -> None:
        """Refuse every flag that would not be done."""
        for key, value in flags.items():
            refused = REFUSED.get((cls.__name__, key), REFUSED.get(("", key)))
            if refused is not None and refused.asks(value):
                raise ArgumentError(f"{cls.__name__} cannot do {key}={value!r}: {refused.remedy}")
        for key in explicit:
            inert = INERT.get((cls.__name__, key))
            if inert is not None and flags[key] != cls.defaults[key]:
                raise ArgumentError(f"{key}={flags[key]!r} changes nothing in {cls.__name__}: {inert}")
        if explicit.get("timestep_type") == "continuous" and process.kind != "edm":
            raise ArgumentError(
                "timestep_type='continuous' is for models of v-prediction that are told 0.25·log(sigma); pass "
                "prediction_type='v_prediction' as well, or leave it out"
            )
        shaped = levels.shape(flags) is not None or process.kind == "edm"
        for key in ("sigma_min", "sigma_max"):
            if explicit.get(key) is not None and not shaped:
                raise ArgumentError(
                    f"{key}={flags[key]!r} needs a sigma flag, e.g. use_karras_sigmas=True; or leave it out"
                )

    def _solver(self, flags: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """timonel's solver and options for these flags."""
        return self.solver, {}

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, *, sampler: Any = None, **changes: Any
    ) -> Any:
        """A scheduler of this class for the model that `config` describes: of any diffusers or timonel scheduler.

        `changes` are the class's arguments; another name is refused with `UnknownName` (diffusers drops it).
        What the model was trained for is taken from `config` even where it is not written as a flag of this class.
        """
        if sampler is not None:
            raise ArgumentError(f"{cls.__name__} is a sampler; for sampler={sampler!r} use timonel.Scheduler")
        cls._known(changes, {**cls.defaults, **dict.fromkeys(MODEL)})
        explicit = {key: value for key, value in changes.items() if key in cls.defaults}
        process, carried, hidden = read(cls.__name__, cls.defaults, dict(config or {}), changes)
        if process.kind not in cls.kinds:
            raise ArgumentError(cls._unfit(process))
        made = cls.__new__(cls)
        made._create(explicit, {k: v for k, v in carried.items() if k not in explicit}, hidden)
        return (made, {}) if return_unused_kwargs else made

    def __deepcopy__(self, memo: dict[int, Any]) -> Compat:
        """A scheduler with the same configuration and seeds, and no run."""
        made: Compat = type(self).from_config(copy.deepcopy(dict(self.config), memo))
        made.orders = Orders(seeds=self.orders.seeds, noise=self.orders.noise)
        return made

    @property
    def compatibles(self) -> list[type[Compat]]:
        """The classes of `timonel.compat` that fit this model."""
        from . import schedulers

        return [c for c in schedulers.CLASSES.values() if self.process.kind in c.kinds]

    # -- levels ----------------------------------------------------------------------------------------
    @property
    def _flags(self) -> dict[str, Any]:
        """The class's flags as they are now; pipelines change some in place."""
        return {**{key: self.config[key] for key in self.defaults}, **self.fixed}

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Visit the levels that diffusers' class visits. Give a number of steps, `timesteps` or `sigmas`.

        `mu`: log of the flow shift (the shift itself with `time_shift_type="linear"`). Raises `ArgumentError` and
        `GridError` before any compute.
        """
        flags = self._flags
        made = levels.make(self.family, self.process, flags, levels.Asked(num_inference_steps, timesteps, sigmas, mu))
        self._visited = made
        if flags.get("rescale_betas_zero_snr") and self.prediction == "epsilon" and float(made.grid.alpha[0]) < 1e-3:
            raise ArgumentError(
                "an epsilon prediction says nothing at the pure noise of rescale_betas_zero_snr=True; use it with "
                "prediction_type='v_prediction', or timestep_spacing='leading'"
            )
        self._list(self.sampler, self._grouped(made.grid), device)
        self.order = self.calls
        self.init_noise_sigma = self._start(made.grid, flags)

    def _start(self, grid: Grid, flags: Mapping[str, Any]) -> float:
        """The std of diffusers' initial sample, in coordinates of unit variance."""
        if self.unit or self.process.kind == "flow":
            return 1.0
        alpha, ratio = float(grid.alpha[0]), grid.ratio_at(0)
        far = flags.get("timestep_spacing") in ("linspace", "trailing")
        return alpha * (ratio if far else (ratio**2 + 1) ** 0.5)

    def _grouped(self, grid: Grid) -> Grid:
        """The levels where steps begin; others are called in between."""
        return grid

    @property
    def _levels(self) -> levels.Levels:
        """The whole list of the present call, which image-to-image pipelines use a part of."""
        if self._visited is None:
            raise RunError("call set_timesteps first")
        return self._visited

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha·x0 + sigma·noise` at the levels of `timesteps`: those of the list, else those of the process."""
        if self._listing is None:
            return super().add_noise(original_samples, noise, timesteps)
        self._mixed = True
        times, grid = timesteps.detach().to("cpu", torch.float64).reshape(-1), self._listing.grid
        near = (grid.time.to(torch.float32)[None] - times.to(torch.float32)[:, None]).abs()
        if bool((near.min(1).values > 1e-3).any()):
            return super().add_noise(original_samples, noise, timesteps)
        at = near.argmin(1)
        where = (-1,) + (1,) * (original_samples.ndim - 1)
        alpha, sigma = (v[at].to(original_samples).reshape(where) for v in (grid.alpha, grid.sigma))
        return alpha * original_samples + sigma * noise

    # -- steps -----------------------------------------------------------------------------------------
    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample in coordinates of unit variance, which the network was trained on."""
        return self._unit(sample, timestep)

    def _unit(self, sample: Tensor, timestep: Any) -> Tensor:
        """A sample that another scheduler left on the way has unit signal in this family; see `step`."""
        run = self.current
        if self.unit or self._mixed or run is None or (run.started and run.status != "done") or timestep is None:
            return sample
        loop = self.hand.loop_of(timestep)
        row = max(self._rows(number(timestep)), default=0) if loop is None else loop.row
        return sample * float(self._listed.table.alpha[row]) if row else sample

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        generator: Any = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """Advance by one network call. `eta` is for DDIM and TCD, where it may be chosen at the first step.

        Raises `ArgumentError` for other arguments of diffusers' steps: noise belongs to `generator`, churn to
        `timonel.Scheduler` with `sampler_options`.
        """
        for key, value in others.items():
            if key not in STEP_DEFAULTS or value != STEP_DEFAULTS[key]:
                raise ArgumentError(
                    f"{type(self).__name__}.step cannot do {key}={value!r}; options of a sampler are given to "
                    "timonel.Scheduler.from_config(…, sampler=timonel.Sampler(name, options={…}))"
                )
        if self.eta is not None:
            self._take(self.eta if eta is None else float(eta))
            eta = None
        sample = self._unit(sample, timestep)
        new = super().step(model_output, timestep, sample, eta=eta, generator=generator)[0]
        if self.run.row == self.run.table.nfe and (not self.unit or self.process.kind == "edm"):
            new = new / float(self.run.table.alpha[-1])  # diffusers' samples have unit signal there
        return Stepped(self.run, new)

    def _take(self, eta: float) -> None:
        """Compile again for another eta; pipelines give theirs with the first step."""
        now, run = self._sampler.options.get("eta"), self.run
        if now == eta:
            return
        if run.started and run.status != "done":
            raise ArgumentError(f"eta={eta} differs from eta={now} of the first step; keep it during a run")
        sampler, grid, _, times = self._listed
        sampler = replace(sampler, options={**sampler.options, "eta": eta})
        self._listing = Listing(sampler, grid, self._compile(sampler, grid), times)
        self.cover(*self._covered)

    def _seed(self, generator: Any, batch: int) -> None:
        """`noise_sampler_seed` of the config first, as diffusers' class has it."""
        chosen = self.config.get("noise_sampler_seed") if "noise_sampler_seed" in self.defaults else None
        if chosen is None or self.run.noise != self._late_noise or self._seeded is not None:
            return super()._seed(generator, batch)
        self._seeded = source(self._sampler.source, [chosen + i for i in range(batch)], self.run.table)
        return None

    def _shape(self) -> Any:
        flags = self._flags
        if flags.get("thresholding"):
            ratio, top = float(flags["dynamic_thresholding_ratio"]), float(flags["sample_max_value"])
            return lambda clean: predictions.threshold(clean, ratio, top)
        if flags.get("clip_sample"):
            limit = float(flags["clip_sample_range"])
            return lambda clean: clean.clamp(-limit, limit)
        return None
