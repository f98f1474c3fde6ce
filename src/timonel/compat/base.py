"""A scheduler that understands the configuration of the diffusers class it is named after."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from ..core import prediction as predictions
from ..core import process as processes
from ..core.process import VE, Process
from ..core.process.config import name_of
from ..core.program import Directed
from ..core.sampler import Sampler
from ..errors import ArgumentError, TimonelError, UnknownName, finite, options, whole
from ..pipelines import request
from ..pipelines.sockets import acting, model
from ..pipelines.sockets.configured import unlike
from ..pipelines.sockets.timesteps import number
from . import levels
from .config import MODEL, TRAINING, read
from .coordinates import BLIND
from .draws import Draws
from .flags import (
    CHOICES,
    INERT,
    NEUTRAL,
    REFUSED,
    REMEDIES,
    STEP_DEFAULTS,
    STEP_PASSED,
    SUBSTITUTES,
    TAKEN,
    UNSEEN,
)
from .kin import Named, hidden
from .members import DIRECT, HIDDEN, INTERNAL, Members, initial
from .rows import FEW
from .times import Times

Config = Mapping[str, Any]
NOTHING: Config = MappingProxyType({})
SHIFTS = (
    "shift",
    "flow_shift",
    "use_dynamic_shifting",
    "time_shift_type",
)  # which UniPC on Karras' levels never reads
logger = logging.getLogger("timonel")


class Compat(Members, Times, Draws, metaclass=Named):
    """What the classes have in common. Each gives its `defaults`: the constructor's arguments, in
    diffusers' order.

    The configuration is in diffusers' words, so pipelines, diffusers' own schedulers and a saved
    folder read it. A flag works, or it is refused with `ArgumentError` and what to write instead,
    or it changes nothing in diffusers' class either, which the logger says; see `flags.py`.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    solver: ClassVar[str] = "euler"
    family: ClassVar[str] = "sigma"  # whose lists of levels: a family of `levels.make`
    fixed: ClassVar[
        Mapping[str, Any]
    ] = {}  # what `levels.make` has to know of the class, beyond its flags
    one_list: ClassVar[bool] = (
        False  # whether diffusers' set_timesteps refuses a number beside a list
    )
    kinds: ClassVar[tuple[str, ...]] = ("vp", "edm", "flow")  # processes the class can be made for
    eta: ClassVar[float | None] = None  # the default of step's eta, where the class has one
    clips: ClassVar[bool] = True  # whether diffusers' step reads clip_sample and thresholding
    calls: ClassVar[int] = 1  # of a step in the list, as pipelines count them when they cut it
    takes: ClassVar[tuple[str, ...]] = (
        "return_dict",
    )  # what step takes by position after the sample, in order

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "defaults" not in vars(cls):
            return
        keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
        cls.step = _placed(cls.takes)  # type: ignore[method-assign]
        named = [
            inspect.Parameter(name, keyword, default=value) for name, value in cls.defaults.items()
        ]
        signature = inspect.Signature([inspect.Parameter("self", keyword), *named])

        def __init__(self: Compat, *args: Any, **kwargs: Any) -> None:
            public = {key: value for key, value in kwargs.items() if not key.startswith("_")}
            public = cls._without_neutral(public)
            cls._known(public, {**cls.defaults, **dict.fromkeys(MODEL)})
            of_model = {key: value for key, value in public.items() if key not in cls.defaults}
            given = signature.bind(
                self, *args, **{k: v for k, v in public.items() if k in cls.defaults}
            ).arguments
            self._create(
                {key: value for key, value in given.items() if key != "self"}, {}, {}, of_model
            )

        __init__.__signature__ = signature  # type: ignore[attr-defined]
        __init__.__doc__ = f"The arguments of diffusers' {cls.__name__}."
        cls.__init__ = __init__  # type: ignore[method-assign]
        cls.__module__ = "timonel.compat"  # so that a saved pipeline names the package

    # -- making ------------------------------------------------------------------------------------
    def _create(
        self,
        explicit: Config,
        carried: Config,
        hidden: Config,
        of_model: Config = NOTHING,
        trial: bool = False,
    ) -> None:
        """`explicit`: flags that were asked for; `carried`: those of the config; `hidden`: its
        other keys.

        `of_model`: other keys that were asked for, which say what the model was trained for. All
        that was asked for has to change something, except in a `trial`.
        """
        explicit, carried = (
            request.typed(self.defaults, explicit),
            request.typed(self.defaults, carried),
        )
        of_model = request.typed(self.defaults, of_model)
        hidden = {
            **hidden,
            **request.typed({}, {key: v for key, v in hidden.items() if key in MODEL}),
        }
        flags = {**copy.deepcopy(dict(self.defaults)), **carried, **explicit}
        unused = [key for key in self.defaults if key not in explicit and key not in carried]
        # a constructor describes its model as a config does, with the betas of a process that has
        # none too
        described = () if carried or hidden else (*TRAINING, "steps_offset")
        rest, hidden = hidden, {**hidden, **of_model}
        for key, choices in CHOICES.items():
            words = SUBSTITUTES if key not in explicit else TAKEN
            if flags.get(key) in words.get(type(self).__name__, {}).get(key, ()):
                if key in explicit:
                    logger.warning(
                        "%s=%r is a word of another class: %s takes %r for it, as diffusers' does",
                        key, explicit[key], type(self).__name__, self.defaults[key],
                    )  # fmt: skip
                    explicit = {name: value for name, value in explicit.items() if name != key}
                flags[key] = self.defaults[key]
                continue
            value = flags.get(key, of_model.get(key))
            if value not in (None, *choices, self.defaults.get(key)):
                raise UnknownName(key, value, [c for c in choices if isinstance(c, str)])
        unused += [
            key
            for key in hidden.get("_use_default_values", ())
            if key in hidden and key not in self.defaults
        ]
        written = {k: v for k, v in hidden.items() if k != "_use_default_values"} | {
            "_class_name": type(self).__name__
        }
        written |= {"_use_default_values": unused} if unused else {}  # as diffusers writes it
        ConfigMixin.register_to_config(self, **flags, **written)
        given = {**hidden, **flags, "_class_name": type(self).__name__}
        process, prediction = processes.from_config(given), predictions.from_config(given)
        if not self._fits(process):
            raise ArgumentError(self._unfit(process))
        self._check(flags)
        name, chosen = self._solver(flags)
        if not trial:
            asked = {key: value for key, value in {**explicit, **of_model}.items()
                     if key not in described or (type(self).__name__, key) in INERT}  # fmt: skip
            self._all_act(
                flags, asked, {**rest, **{k: v for k, v in of_model.items() if k in described}}
            )
        self._set(process, prediction, Sampler(name, options=chosen, noise=self._source))
        self._visited = None
        self.order = self.calls
        self._timesteps, self.sigmas, top = initial(process, self.family)
        self.init_noise_sigma = self._start(top, flags)
        self._read = self._plain()

    def _all_act(self, flags: Config, asked: Config, hidden: Config) -> None:
        """Say what was asked for and changes nothing. Raises `ArgumentError` for a key that the
        class does not have.
        """
        cls = type(self)

        def see(asked: Config) -> tuple[Any, ...] | None:
            of_model = {
                key: v for key, v in asked.items() if key not in cls.defaults and v is not None
            }
            made = cls.__new__(cls)
            made._create(
                {},
                {**flags, **{k: v for k, v in asked.items() if k in flags}},
                hidden,
                of_model,
                trial=True,
            )
            return made._seen()

        rest = {key: value for key, value in asked.items() if key not in UNSEEN}
        idle = acting.idle(see, rest, self.defaults)
        unread = [
            key for key in asked if (cls.__name__, key) in INERT and asked[key] != cls.defaults[key]
        ]
        for key in dict.fromkeys([*idle, *unread]):
            if key not in cls.defaults:
                raise ArgumentError(
                    f"{key}={asked[key]!r} changes nothing in {cls.__name__}:"
                    f" {self._remedy(key, flags)}"
                )
            stronger = _stronger(key, asked)
            why = f"here: {self._remedy(key, flags)}"
            if stronger is not None:
                why = f"beside {stronger}={asked[stronger]!r}; leave one of them out"
            logger.warning("%s=%r changes nothing %s (%s)", key, asked[key], why, cls.__name__)

    def _seen(self) -> tuple[Any, ...] | None:
        """All that the class does for a few and for more steps, in numbers; None where it has no
        levels.
        """
        mu = acting.mu(self.process, self.config)
        rows: list[Any] = []
        try:
            for steps in (6, FEW + 1):
                self._visit(levels.Asked(steps, mu=mu), None, trial=True)
                table = self.run.table
                rows += [
                    tuple(v.flatten().tolist())
                    for v in (table.x, table.base, table.alpha, table.sigma, table.time)
                ]
                rows.append(self.init_noise_sigma)
        except TimonelError:
            return None
        eta = self.sampler.options.get("eta")
        grid = self._levels.grid.name
        return (
            name_of(self.process),
            self.prediction,
            eta,
            grid,
            *rows,
            *acting.shaped(self.config, self._shape()),
        )

    def _remedy(self, key: str, flags: Config) -> str:
        """What would act instead of a key that does not."""
        kind = (
            name_of(self.process)
            if "process" in vars(self)
            else processes.from_config(self._classed()).kind
        )
        if (type(self).__name__, key) in INERT:
            return INERT[type(self).__name__, key]
        if kind not in acting.FOR.get(key, (kind,)):
            return (
                f"it is a key of {' and '.join(acting.FOR[key])} models, and this model's process"
                f" is {kind!r}"
            )
        shape = next((flag for flag in levels.SHAPES if flags.get(flag)), None)
        if key in ("sigma_min", "sigma_max"):
            flag = (
                "e.g. use_karras_sigmas=True"
                if "use_karras_sigmas" in flags
                else "which EulerDiscreteScheduler has"
            )
            return f"it needs a sigma flag, {flag}; or leave it out"
        if shape and key in ("timestep_spacing", "steps_offset", "lambda_min_clipped", *SHIFTS):
            return f"{shape}=True sets the levels; pass {shape}=False as well"
        if key == "lower_order_final" and flags.get("solver_order", 1) > 1:
            way = "pass final_sigmas_type='sigma_min' as well" if kind == "vp" else "leave it out"
            return f"the step to sigma = 0 is of order 1 anyhow; {way}"
        return REMEDIES.get(key, "leave it out")

    def _classed(self) -> dict[str, Any]:
        return {**self.config, "_class_name": type(self).__name__}

    def _change(self, changes: Config, asked: Config) -> dict[str, Any]:
        """Take keys that were changed in place, of which those that are `asked` for have to act."""
        known = {**self.defaults, **dict.fromkeys(MODEL)}
        asked = {
            k: value
            for k, value in asked.items()
            if k not in self._read or unlike(self._read[k], value)
        }
        meant = model.registered(self.process, changes)
        if len(meant) > len(
            changes
        ):  # Cosmos 2 makes another process of a flow, with what only itself reads
            changes, asked = meant, {}
        for key in changes:
            if key in asked and key not in known and key not in self._read:
                if get_close_matches(key, known):
                    raise UnknownName(f"argument of {type(self).__name__}", key, known)
                logger.warning(
                    "%r is no argument of %s: it is kept and changes nothing",
                    key,
                    type(self).__name__,
                )
        asked = {key: value for key, value in asked.items() if key in known or key in self._read}
        explicit = {key: value for key, value in asked.items() if key in self.defaults}
        of_model = {key: value for key, value in asked.items() if key not in self.defaults}
        config = {
            key: value for key, value in {**self._read, **changes}.items() if key not in asked
        }
        made = type(self).__new__(type(self))
        flags = {key: value for key, value in config.items() if key in self.defaults}
        hidden = {key: value for key, value in config.items() if key not in self.defaults}
        made._create(explicit, flags, hidden, of_model)
        self.process, self.prediction, self.sampler = made.process, made.prediction, made.sampler
        return dict(changes)

    def __getattr__(self, name: str) -> Any:
        if name in INTERNAL:
            raise AttributeError(f"{type(self).__name__} has no {name!r}: {INTERNAL[name]}")
        if name in DIRECT and name in self.defaults:
            return self.config[name]
        if hidden(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no {name!r}: {HIDDEN}")
        return super().__getattr__(name)

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """abar where the list ends: 1, or that of training time 0 where the config says
        `set_alpha_to_one=False`.
        """
        bar = self.alphas_cumprod[0]
        return torch.ones_like(bar) if self.config.get("set_alpha_to_one", True) else bar

    _source: ClassVar[str | None] = None  # where its noise comes from, if not independent
    _visited: levels.Levels | None = None
    _consistent = False  # use_clipped_model_output of the newest step

    @classmethod
    def _known(cls, changes: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        for key in changes:
            if key not in known:
                raise UnknownName(f"argument of {cls.__name__}", key, known)

    @classmethod
    def _fits(cls, process: Process) -> bool:
        return not {process.kind, name_of(process)}.isdisjoint(cls.kinds)

    @classmethod
    def _without_neutral(cls, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`changes` without keys of other classes that ask for what is so anyhow, e.g.
        `clip_sample=False`.
        """
        known = {**cls.defaults, **dict.fromkeys(MODEL)}
        return {
            key: value
            for key, value in changes.items()
            if key in known or not _asks_nothing(key, value)
        }

    @classmethod
    def _unfit(cls, process: Process) -> str:
        use = {
            "vp": "EulerDiscreteScheduler or DPMSolverMultistepScheduler",
            "flow": "FlowMatchEulerDiscreteScheduler",
            "edm": "EulerDiscreteScheduler or EDMEulerScheduler",
        }
        instead = use.get(process.kind, "timonel.Scheduler")
        return (
            f"{cls.__name__} is not for a {process.kind} model, which this config describes; use"
            f" {instead}"
        )

    @classmethod
    def _check(cls, flags: Mapping[str, Any]) -> None:
        """Refuse every flag that would not be done."""
        levels.shape(flags)
        for key, value in flags.items():
            refused = REFUSED.get((cls.__name__, key), REFUSED.get(("", key)))
            if refused is not None and refused.asks(value):
                raise ArgumentError(f"{cls.__name__} cannot do {key}={value!r}: {refused.remedy}")

    def _solver(self, flags: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """timonel's solver and options for these flags."""
        return self.solver, {}

    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        *,
        sampler: Any = None,
        **changes: Any,
    ) -> Any:
        """A scheduler of this class for the model that `config` describes: of any diffusers or
        timonel scheduler.

        `changes` are the class's arguments; another name is refused with `UnknownName` (diffusers
        drops it). What the model was trained for is taken from `config` even where it is not
        written as a flag of this class.
        """
        if sampler is not None:
            raise ArgumentError(
                f"{cls.__name__} is a sampler; for sampler={sampler!r} use timonel.Scheduler"
            )
        asked, changes = changes, cls._without_neutral(changes)
        cls._known(changes, {**cls.defaults, **dict.fromkeys(MODEL)})
        changes = request.typed(cls.defaults, changes)
        explicit = {key: value for key, value in changes.items() if key in cls.defaults}
        of_model = {key: value for key, value in changes.items() if key not in cls.defaults}
        process, carried, hidden = read(
            cls.__name__, cls.defaults, options("config", {} if config is None else config), changes
        )
        if not cls._fits(process):
            raise ArgumentError(cls._unfit(process))
        made = cls.__new__(cls)
        neutral = {
            key: value for key, value in asked.items() if key not in changes
        }  # for the class after this one
        hidden = {**{key: value for key, value in hidden.items() if key not in of_model}, **neutral}
        source = dict(config or {})
        unwritten = [key for key in source.get("_use_default_values") or () if key not in asked]
        chosen = [key for key in cls.defaults if key in source and key not in unwritten]
        carried = {
            **{key: None for key in chosen if source[key] is None and cls.defaults[key] is None},
            **{
                k: v
                for k, v in carried.items()
                if v != cls.defaults[k] or (k in chosen and source[k] == v)
            },
        }
        hidden |= {"_use_default_values": unwritten}
        hidden |= {key: value for key, value in source.items() if key == "_diffusers_version"}
        made._create(
            explicit, {k: v for k, v in carried.items() if k not in explicit}, hidden, of_model
        )
        return (made, {}) if return_unused_kwargs else made

    @property
    def compatibles(self) -> list[type[Compat]]:
        """The classes of `timonel.compat` that fit this model."""
        from . import schedulers

        return [c for c in schedulers.CLASSES.values() if c._fits(self.process)]

    # -- levels ------------------------------------------------------------------------------------
    @property
    def _flags(self) -> dict[str, Any]:
        """The class's flags as they are now; pipelines change some in place."""
        of_others = (
            "sigma_min",
            "sigma_max",
            *(("final_sigmas_type",) if isinstance(self.process, VE) else ()),
        )
        ends = {
            key: self.config.get(key) for key in of_others
        }  # other classes' configs may have them
        first = {} if self._first_shift is None else {"first_shift": self._first_shift}
        return {**ends, **{key: self.config[key] for key in self.defaults}, **self.fixed, **first}

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Visit the levels that diffusers' class visits. Give a number of steps, `timesteps` or
        `sigmas`.

        `mu`: log of the flow shift (the shift itself with `time_shift_type="linear"`).
        `num_train_timesteps`: the config's, as some of diffusers' classes take it; another number
        is refused. Raises `ArgumentError` and `GridError` before any compute.
        """
        if num_train_timesteps is not None and whole(
            "num_train_timesteps", num_train_timesteps
        ) != len(self):
            raise ArgumentError(
                f"num_train_timesteps={num_train_timesteps!r} is not the {self.process.train_steps}"
                " of this model's config; leave it out, or make the scheduler with another config"
            )
        self._visit(levels.Asked(num_inference_steps, timesteps, sigmas, mu), device)

    def _visit(self, asked: levels.Asked, device: Any, trial: bool = False) -> None:
        """Make the run on the levels that `asked` means, and say where they are fewer, except in a
        `trial`.
        """
        self._reread()
        flags = self._flags
        if (
            self.one_list
            and asked.steps is not None
            and (asked.times is not None or asked.sigmas is not None)
        ):
            raise ArgumentError(
                f"num_inference_steps={asked.steps} and a list of levels; {type(self).__name__}"
                " takes one of them"
            )
        asked = asked._replace(
            steps=request.steps(asked.steps), times=request.numbers("timesteps", asked.times),
            sigmas=request.numbers("sigmas", asked.sigmas), mu=request.number("mu", asked.mu),
            strength=finite("strength", asked.strength, 0, 1),
        )  # fmt: skip
        self._make(asked, device, flags)
        if self._levels.repeated and not trial:
            logger.warning(
                "%d steps over %d training levels repeat %d of them, where a call moves nothing or gives NaN; each is "
                "visited once, in %d steps", asked.steps, self.process.train_steps,
                self._levels.repeated,
                self._levels.grid.steps,
            )  # fmt: skip

    def _make(self, asked: levels.Asked, device: Any, flags: Mapping[str, Any]) -> None:
        made = self._moved(levels.make(self.family, self.process, flags, asked))
        self.custom_timesteps = asked.times is not None
        self._visited = made
        if self._blind(float(made.grid[0].alpha)):
            raise ArgumentError(BLIND)
        self._list(self.sampler, made.grid, device)
        self.order = self.calls
        self.num_inference_steps = made.grid.steps
        self.init_noise_sigma = self._start(made.grid[0], flags)

    @property
    def _levels(self) -> levels.Levels:
        """The whole list of the present call, which image-to-image pipelines use a part of."""
        if self._visited is None:
            self._list_trained()
        assert self._visited is not None
        return self._visited

    @property
    def settled_times(self) -> Tensor:
        """The network times of the levels where steps begin, (N,), noisiest first."""
        return self._listed.grid.time[:-1]

    # -- steps -------------------------------------------------------------------------------------
    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **others: Any
    ) -> Any:
        """Advance by one network call; by position it takes what diffusers' class of this name
        does, see `_step`.
        """
        if len(args) > len(self.takes):
            raise TypeError(
                f"step takes up to {3 + len(self.takes)} arguments by position:"
                f" {', '.join(self.takes)}"
            )
        placed = dict(zip(self.takes, args, strict=False))
        twice = next((name for name in placed if name in others), None)
        if twice is not None:
            raise TypeError(f"step got {twice!r} twice, by position and by name")
        return self._step(model_output, timestep, sample, **placed, **others)

    def _step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float | None = None,
        generator: Any = None,
        return_dict: bool = True,
        use_clipped_model_output: bool | None = None,
        **others: Any,
    ) -> Any:
        """Advance by one network call. `eta` is for DDIM and TCD, where it may be chosen at the
        first step.

        Raises `ArgumentError` for other arguments of diffusers' steps: noise belongs to
        `generator`, churn to `timonel.Scheduler` with `sampler_options`.
        """
        passed = {key: others.pop(key) for key in STEP_PASSED if key in others}
        for key, value in others.items():
            if key not in STEP_DEFAULTS or value not in (None, STEP_DEFAULTS[key]):
                raise ArgumentError(
                    f"{type(self).__name__}.step cannot do {key}={value!r}; options of a sampler"
                    " are given to timonel.Scheduler.from_config(…, sampler=timonel.Sampler(name,"
                    " options={…}))"
                )
        request.step(model_output, sample, generator, eta)
        if (
            self.eta is not None
            and generator is not None
            and passed.get("variance_noise") is not None
        ):
            raise ArgumentError(
                "step got a generator and variance_noise: give one of them, for there is one noise"
            )
        if (
            self.num_inference_steps is None
            and self._blind(self._noisiest())
            and number(timestep) > len(self) - 2
        ):
            raise ArgumentError(BLIND)
        if self._beside(timestep):
            return self._twin(timestep)._step(
                model_output,
                timestep,
                sample,
                eta,
                generator,
                return_dict,
                use_clipped_model_output,
                **passed,
            )
        if self.eta is not None:
            self._take(self.eta if eta is None else float(eta))
            eta = None
        shape, self._consistent = self.run.denoised_fn, bool(use_clipped_model_output)
        if isinstance(shape, Directed):
            shape.consistent = self._consistent
        elif use_clipped_model_output and self.eta is None:
            raise ArgumentError(
                f"use_clipped_model_output=True is for DDIMScheduler; {type(self).__name__} always"
                " steps so"
            )
        self._warn_unscaled()
        return super().step(model_output, timestep, sample, eta=eta, generator=generator, **passed)

    def _shape(self) -> Any:
        flags = self._flags
        shape = None
        if not self.clips:
            return None
        if flags.get("thresholding"):
            ratio, top = (
                float(flags["dynamic_thresholding_ratio"]),
                float(flags["sample_max_value"]),
            )
            shape = partial(predictions.threshold, ratio=ratio, top=top)
        elif flags.get("clip_sample"):
            shape = partial(predictions.clip, limit=float(flags["clip_sample_range"]))
        # DDIM clips the clean part of a step only, unless use_clipped_model_output says otherwise
        return shape if shape is None or self.eta is None else Directed(shape, self._consistent)


def _stronger(key: str, flags: Config) -> str | None:
    """The one of `flags` that sets the levels where `key` would too; None where there is none."""
    if key == "final_sigmas_type":
        return "interpolation_type" if flags.get("interpolation_type") == "log_linear" else None
    if key not in ("timestep_spacing", "interpolation_type"):
        return None
    return next((flag for flag in levels.SHAPES if flags.get(flag)), None)


def _asks_nothing(key: str, value: Any) -> bool:
    return (
        key in NEUTRAL
        and bool(value == NEUTRAL[key])
        and isinstance(value, bool) == isinstance(NEUTRAL[key], bool)
    )


def _placed(takes: Sequence[str]) -> Any:
    """`Compat.step` with a signature that says what it takes by position, for pipelines ask for it."""

    def step(
        self: Compat, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **others: Any
    ) -> Any:
        return Compat.step(self, model_output, timestep, sample, *args, **others)

    place, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    defaults = {"eta": None, "generator": None, "return_dict": True, **STEP_DEFAULTS}
    known = [name for name in ("eta", "generator", "return_dict") if name not in takes]
    step.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        *(inspect.Parameter(name, place) for name in ("self", "model_output", "timestep",
        "sample")),
        *(inspect.Parameter(name, place, default=defaults.get(name)) for name in takes),
        *(inspect.Parameter(name, named, default=defaults[name]) for name in known),
        inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD),
    ])  # fmt: skip
    step.__doc__ = Compat._step.__doc__
    return step
