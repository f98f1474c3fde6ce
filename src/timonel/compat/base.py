"""A scheduler that understands the configuration of the diffusers class it is named after."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from ..core.grids import Grid
from ..core.program import Directed
from ..core.sampler import Sampler
from ..core.table import Table
from ..errors import ArgumentError, UnknownName, finite, options, whole
from ..pipelines import request as checked
from ..pipelines.classes import config as classes
from ..pipelines.classes import levels
from ..pipelines.classes.flags import asks_nothing
from ..pipelines.classes.rows import CLASSES as ROWS
from ..pipelines.classes.rows import Row
from ..pipelines.classes.rule import LevelRequest, Levels
from ..pipelines.classes.tables import Part
from ..pipelines.sockets import model
from ..pipelines.sockets.configured import unlike
from ..pipelines.sockets.times import number
from . import idle
from .coordinates import BLIND
from .draws import Draws
from .kin import Named, hidden
from .members import DIRECT, HIDDEN, INTERNAL, Members, initial
from .times import Times

Config = Mapping[str, Any]
#: what `step` passes on to the run: the noise of an inversion, and the levels of tokens
STEP_PASSED = ("variance_noise", "per_token_timesteps")
#: what diffusers' steps take besides, at the values that change nothing, as None does
STEP_DEFAULTS: dict[str, Any] = {
    "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0, "order": 4,
    "pred_original_sample": None,
}  # fmt: skip
#: the classes by name
CLASSES: dict[str, type[Compat]] = {}
logger = logging.getLogger("timonel")


class Compat(Members, Times, Draws, metaclass=Named):
    """What the classes have in common. What each of them does is its `row`.

    The configuration is in diffusers' words, so pipelines, diffusers' own schedulers and a saved
    folder read it. A flag works, or it is refused with `ArgumentError` and what to write instead,
    or it changes nothing in diffusers' class either, which the logger says; see `classes.flags`.
    """

    keeps_sampler = False
    turns = False
    row: ClassVar[Row]
    defaults: ClassVar[Mapping[str, Any]] = {}
    kinds: ClassVar[tuple[str, ...]] = ()
    _name: ClassVar[str] = ""  # of the row
    _visited: Levels | None = None
    _consistent = False  # use_clipped_model_output of the newest step

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.__name__ not in ROWS or cls.__name__ in CLASSES:
            return
        CLASSES[cls.__name__] = cls
        cls._name, cls.row = cls.__name__, ROWS[cls.__name__]
        cls.defaults, cls.kinds = cls.row.defaults, cls.row.kinds
        cls.step = _placed(cls.row)  # type: ignore[method-assign]
        cls.__init__ = _constructor(cls)  # type: ignore[method-assign]
        cls.__module__ = "timonel.compat"  # so that a saved pipeline names the package

    # -- making ------------------------------------------------------------------------------------
    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        *,
        sampler: Any = None,
        **changes: Any,
    ) -> Any:
        """A scheduler of this class for the model that a config describes.

        Args:
            config: of any diffusers or timonel scheduler. What the model was trained for is taken
                from it even where it is not written as a flag of this class.
            return_unused_kwargs: return a pair, as diffusers' loading asks for.
            sampler: refused; the class is the sampler.
            changes: the class's arguments.

        Raises:
            UnknownName: an argument that the class does not have, which diffusers drops.
            ArgumentError: a model that the class is not for, or a flag that is not done.
        """
        if sampler is not None:
            raise ArgumentError(
                f"{cls.__name__} is a sampler; for sampler={sampler!r} use timonel.Scheduler"
            )
        explicit = checked.typed(cls.defaults, cls._acting(changes))
        neutral = {key: value for key, value in changes.items() if key not in explicit}
        source = options("config", {} if config is None else config)
        scheduler = cls.__new__(cls)
        scheduler._create(explicit, classes.carried(cls._name, source, explicit, neutral))
        return (scheduler, {}) if return_unused_kwargs else scheduler

    @classmethod
    def _acting(cls, changes: Config) -> dict[str, Any]:
        """`changes` without keys of other classes that ask for nothing, e.g. `clip_sample=False`.

        Raises `UnknownName` for any other key that the class does not have.
        """
        known = classes.known(cls._name)
        for key, value in changes.items():
            if key not in known and not asks_nothing(key, value):
                raise UnknownName(f"argument of {cls.__name__}", key, known)
        return {key: value for key, value in changes.items() if key in known}

    def _create(
        self, explicit: Config, carried: Config = classes.NOTHING, trial: bool = False
    ) -> None:
        """Be a scheduler with keys that the caller has set, and others that a config carries.

        All that the caller has set has to change something, except in a `trial`.
        """
        keys = classes.keys_of(self._name, explicit, carried)
        unwritten = {"_use_default_values": keys.unwritten} if keys.unwritten else {}
        written = {**keys.config, "_class_name": type(self).__name__, **unwritten}
        ConfigMixin.register_to_config(self, **written)
        process, prediction, sampler = classes.meaning(keys)
        if not trial:
            idle.check(self, keys, process, describes=not carried)
        self._set(process, prediction, sampler)
        self._visited = None
        self.order = self.row.calls
        self._timesteps, self.sigmas, top = initial(process, self.row.levels.family)
        self.init_noise_sigma = self._start(top, keys.flags)
        self._read = self._plain()

    def _change(self, changes: Config, explicit: Config) -> dict[str, Any]:
        """Take keys that were changed in place, of which the `explicit` ones have to act."""
        before = self._read
        explicit = {k: v for k, v in explicit.items() if k not in before or unlike(before[k], v)}
        meant = model.registered(self.process, changes)
        if len(meant) > len(changes):  # Cosmos 2 makes another process of a flow
            changes, explicit = meant, {}
        known = classes.known(self._name)
        unknown = [key for key in explicit if key not in known and key not in before]
        for key in unknown:
            if get_close_matches(key, known):
                raise UnknownName(f"argument of {type(self).__name__}", key, known)
            logger.warning(
                "%r is no argument of %s: it is kept and changes nothing", key, type(self).__name__
            )
        explicit = {key: value for key, value in explicit.items() if key not in unknown}
        config = {**before, **changes}
        twin = type(self).__new__(type(self))
        twin._create(explicit, {key: value for key, value in config.items() if key not in explicit})
        self.process, self.prediction, self.sampler = twin.process, twin.prediction, twin.sampler
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
    def compatibles(self) -> list[type[Compat]]:
        """The classes of `timonel.compat` that fit this model."""
        return [cls for cls in CLASSES.values() if cls.row.fits(self.process)]

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """The abar where the list ends: 1, or without `set_alpha_to_one` that of time 0."""
        bar = self.alphas_cumprod[0]
        return torch.ones_like(bar) if self.config.get("set_alpha_to_one", True) else bar

    # -- levels ------------------------------------------------------------------------------------
    @property
    def _flags(self) -> dict[str, Any]:
        """The class's flags as they are now; pipelines change some in place."""
        return classes.level_flags(self._name, self.process, self.config)

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """Visit the levels that diffusers' class visits: of a number, or of one list.

        Args:
            num_inference_steps: how many steps.
            device: where `timesteps` lie.
            timesteps: the network's times, falling.
            sigmas: the levels, falling: sigma / alpha, of a flow t before its shift.
            mu: log of the flow shift (the shift itself with `time_shift_type="linear"`).
            num_train_timesteps: the config's, as some of diffusers' classes take it.

        Raises:
            ArgumentError, GridError: before any compute.
        """
        if num_train_timesteps is not None and whole(
            "num_train_timesteps", num_train_timesteps
        ) != len(self):
            raise ArgumentError(
                f"num_train_timesteps={num_train_timesteps!r} is not the {self.process.train_steps}"
                " of this model's config; leave it out, or make the scheduler with another config"
            )
        self._visit(LevelRequest(num_inference_steps, timesteps, sigmas, mu), device)

    def _visit(self, request: LevelRequest, device: Any, trial: bool = False) -> None:
        """Make the run on the requested levels; say where they are fewer, but in a `trial`."""
        self._reread()
        lists = request.times is not None or request.sigmas is not None
        if self.row.one_list and request.steps is not None and lists:
            raise ArgumentError(
                f"num_inference_steps={request.steps} and a list of levels; {type(self).__name__}"
                " takes one of them"
            )
        request = request._replace(
            steps=checked.steps(request.steps),
            times=checked.numbers("timesteps", request.times),
            sigmas=checked.numbers("sigmas", request.sigmas),
            mu=checked.number("mu", request.mu),
            strength=finite("strength", request.strength, 0, 1),
        )
        self._make(request, device, self._flags)
        if self._levels.repeated and not trial:
            logger.warning(
                "%d steps over %d training levels repeat %d of them, where a call moves nothing or"
                " gives NaN; each is visited once, in %d steps",
                request.steps, self.process.train_steps, self._levels.repeated,
                self._levels.grid.steps,
            )  # fmt: skip

    def _make(self, request: LevelRequest, device: Any, flags: Config) -> None:
        request = request._replace(first_shift=self._first_shift)
        visited = self._moved(levels.make(self.row.levels, self.process, flags, request))
        self.custom_timesteps = request.times is not None
        self._visited = visited
        if self._blind(float(visited.grid[0].alpha)):
            raise ArgumentError(BLIND)
        self._list(self.sampler, visited.grid, device)
        self.order = self.row.calls
        self.num_inference_steps = visited.grid.steps
        self.init_noise_sigma = self._start(visited.grid[0], flags)

    @property
    def _levels(self) -> Levels:
        """The whole list of the present call, which image-to-image pipelines use a part of."""
        if self._visited is None:
            self._list_trained()
        assert self._visited is not None
        return self._visited

    def _compile(self, sampler: Sampler, grid: Grid, before: int = 0, alone: bool = False) -> Table:
        return self.row.table(Part(self._flags, self._levels, sampler, grid, before, alone))

    # -- steps -------------------------------------------------------------------------------------
    def step(self, *args: Any, **others: Any) -> Any:
        """Advance by one network call; by position it takes what diffusers' class does."""
        # pipelines of other classes place output, time and sample only
        bare = len(args) == 3 and "sample" not in others
        names = (*(Row.placed if bare else self.row.placed), *self.row.takes)
        if len(args) > len(names):
            raise TypeError(
                f"step takes up to {len(names)} arguments by position: {', '.join(names)}"
            )
        placed = dict(zip(names, args, strict=False))
        twice = next((name for name in placed if name in others), None)
        if twice is not None:
            raise TypeError(f"step got {twice!r} twice, by position and by name")
        return self._step(**placed, **others)

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
        """Advance by one network call.

        Args:
            model_output: the network's raw output, (batch, …).
            timestep: the time that the network was called with.
            sample: the sample, in the coordinates of the class.
            eta: of DDIM and TCD, which may be chosen at the first step.
            generator: the generator of the noise, or a list of them, one for each sample.
            return_dict: nothing; the result is a tuple with names.
            use_clipped_model_output: of DDIM, whether the noise follows a clipped prediction.
            others: arguments of diffusers' steps at values that change nothing.

        Raises:
            ArgumentError: another argument of diffusers' steps: noise belongs to `generator`, churn
                to `timonel.Scheduler` with `sampler_options`.
        """
        passed = self._passed_on(others)
        checked.step(model_output, sample, generator, eta)
        self._check_step(timestep, generator, passed)
        if self._beside(timestep):
            return self._twin(timestep)._step(
                model_output, timestep, sample, eta, generator, return_dict,
                use_clipped_model_output, **passed,
            )  # fmt: skip
        if self.row.eta is not None:
            self._use_eta(self.row.eta if eta is None else float(eta))
            eta = None
        self._clip_consistently(bool(use_clipped_model_output))
        self._warn_unscaled()
        return super().step(model_output, timestep, sample, eta=eta, generator=generator, **passed)

    def _passed_on(self, others: dict[str, Any]) -> dict[str, Any]:
        """What of a step's other arguments the run takes. Raises `ArgumentError` for the rest."""
        for key, value in others.items():
            if key in STEP_PASSED or (value is None and key in STEP_DEFAULTS):
                continue
            if key not in STEP_DEFAULTS or value != STEP_DEFAULTS[key]:
                raise ArgumentError(
                    f"{type(self).__name__}.step cannot do {key}={value!r}; options of a sampler"
                    " are given to timonel.Scheduler.from_config(…, sampler=timonel.Sampler(name,"
                    " options={…}))"
                )
        return {key: others[key] for key in STEP_PASSED if key in others}

    def _check_step(self, timestep: Any, generator: Any, passed: Config) -> None:
        """Raises `ArgumentError` for two noises, and for epsilon at pure noise."""
        two = generator is not None and passed.get("variance_noise") is not None
        if self.row.eta is not None and two:
            raise ArgumentError(
                "step got a generator and variance_noise: give one of them, for there is one noise"
            )
        unlisted = self.num_inference_steps is None and self._blind(self._noisiest())
        if unlisted and number(timestep) > len(self) - 2:
            raise ArgumentError(BLIND)

    def _clip_consistently(self, consistent: bool) -> None:
        """Follow `use_clipped_model_output`. Raises `ArgumentError` for a class without it."""
        shape, self._consistent = self.run.denoised_fn, consistent
        if isinstance(shape, Directed):
            shape.consistent = consistent
        elif consistent and self.row.eta is None:
            raise ArgumentError(
                f"use_clipped_model_output=True is for DDIMScheduler; {type(self).__name__} always"
                " steps so"
            )

    def _shape(self) -> Any:
        shape = model.shape(self._flags) if self.row.clips else None
        if shape is None or self.row.eta is None:
            return shape
        # DDIM clips the clean part of a step only, unless use_clipped_model_output says otherwise
        return Directed(shape, self._consistent)


def _constructor(cls: type[Compat]) -> Any:
    """The constructor of a class, with the arguments of its row."""
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(key, keyword, default=value) for key, value in cls.defaults.items()]
    signature = inspect.Signature([inspect.Parameter("self", keyword), *named])

    def __init__(self: Compat, *args: Any, **kwargs: Any) -> None:
        explicit = cls._acting({k: v for k, v in kwargs.items() if not k.startswith("_")})
        flags = {key: value for key, value in explicit.items() if key in cls.defaults}
        arguments = dict(signature.bind(self, *args, **flags).arguments)
        del arguments["self"]
        self._create({**arguments, **explicit})

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__doc__ = f"The arguments of diffusers' {cls.__name__}."
    return __init__


def _placed(row: Row) -> Any:
    """`Compat.step` whose signature says what it takes by position, for pipelines look at it."""

    def step(self: Compat, *args: Any, **others: Any) -> Any:
        return Compat.step(self, *args, **others)

    place, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    defaults = {"eta": None, "generator": None, "return_dict": True, **STEP_DEFAULTS}
    known = [name for name in ("eta", "generator", "return_dict") if name not in row.takes]
    step.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        *(inspect.Parameter(name, place) for name in ("self", *row.placed)),
        *(inspect.Parameter(name, place, default=defaults.get(name)) for name in row.takes),
        *(inspect.Parameter(name, named, default=defaults[name]) for name in known),
        inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD),
    ])  # fmt: skip
    step.__doc__ = Compat._step.__doc__
    return step
