"""The configuration of a scheduler: how it is read, and how changes in place act or are refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ...core.process import Process
from ...core.process.config import read
from ...core.sampler import Sampler
from ...errors import ArgumentError, UnknownName, options, plain
from .. import request
from ..classes.config import changed, of_config
from ..session import Session
from . import acting, kept, model


def unlike(one: object, other: object) -> bool:
    """Whether two values differ; NaN is like itself, and arrays differ in their numbers."""
    return one is not other and [plain(one)] != [plain(other)]


class Configured(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """What of a scheduler is about its configuration."""

    keeps_sampler: ClassVar[bool] = True  # whether the config names the sampler
    process: Process
    prediction: str
    sampler: Sampler
    session: Session
    _read: dict[str, Any]  # the configuration that the scheduler follows

    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        *,
        sampler: Sampler | str | None = None,
        **changes: Any,
    ) -> Any:
        """A scheduler for the model that a config describes.

        Args:
            config: of any diffusers scheduler. Its keys are never refused, for real ones carry
                those of other classes.
            return_unused_kwargs: return a pair, as diffusers' loading asks for.
            sampler: a name or a sampler; None is the one that the class and flags of `config` stand
                for, else the default.
            changes: keys that override those of the config.

        Raises:
            UnknownName: a key that this scheduler does not have, which diffusers drops.
            ArgumentError: a key that changes nothing.
        """
        defaults = cls._defaults()
        _check_names(changes, defaults)
        changes = request.typed(defaults, changes)
        carried = options("config", {} if config is None else config)
        model.forward(carried.get("_class_name"))
        if sampler is None and carried.get("sampler") is None:
            sampler = of_config({**carried, "variance_type": None, **changes})
        chosen = None if sampler is None else Sampler.of(sampler)
        if chosen is not None and not chosen.named_alone:
            raise ArgumentError(
                "a scheduler's config keeps solver, grid name, options and noise of a sampler only"
            )
        live = config if hasattr(config, "__dict__") else carried
        named = {} if chosen is None else kept.keys(chosen)

        def written(changes: Mapping[str, Any]) -> dict[str, Any]:
            whole, said = changed(live, changes), model.read(live, changes)
            said |= {k: v for k, v in named.items() if k == "sampler" or k not in changes}
            return {k: v for k, v in whole.items() if k in defaults and v is not None} | said

        scheduler = cls._of(written(changes))
        acting.check(lambda changes: {**defaults, **written(changes)}, changes, defaults)
        return (scheduler, {}) if return_unused_kwargs else scheduler

    @classmethod
    def _of(cls, config: Mapping[str, Any]) -> Any:
        """A scheduler with a configuration that was checked before."""
        scheduler = cls.__new__(cls)
        scheduler._explicit = {}
        scheduler.__init__(**config)  # type: ignore[misc]
        return scheduler

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Every key of a configuration, with its default."""
        parameters = inspect.signature(cls.__init__).parameters
        return {name: one.default for name, one in parameters.items() if name != "self"}

    # -- its configuration, which may be changed in place -----------------------------------------
    def register_to_config(self, **kwargs: Any) -> None:
        """Change keys of the configuration.

        Raises:
            UnknownName, ArgumentError: a key that would do nothing.
        """
        changes = {key: value for key, value in kwargs.items() if not key.startswith("_")}
        if "_read" in vars(self):
            kwargs = kwargs | self._change(changes, changes)
        super().register_to_config(**kwargs)
        if "_read" in vars(self):
            self._read = self._plain()

    def _plain(self) -> dict[str, Any]:
        return {key: value for key, value in self.config.items() if not key.startswith("_")}

    def _reread(self) -> None:
        """Follow changes in the configuration itself, as pipelines and scripts make them."""
        config = self.config
        live = {key: value for key, value in vars(config).items() if not key.startswith("_")}
        changes = {
            key: value
            for key, value in (*self._plain().items(), *live.items())
            if key not in self._read or unlike(value, self._read[key])
        }
        if changes:
            explicit = {key: value for key, value in changes.items() if key not in acting.WRITTEN}
            super().register_to_config(**self._change(changes, explicit))
            self._read = self._plain()

    def _change(self, changes: Mapping[str, Any], explicit: Mapping[str, Any]) -> dict[str, Any]:
        """Take changed keys, of which the `explicit` ones have to act; return them as kept."""
        defaults = self._defaults()
        # what pipelines and scripts write into any scheduler means nothing to most of them
        _check_names(explicit, {**defaults, **dict.fromkeys(acting.WRITTEN)}, defaults)

        def typed(keys: Mapping[str, Any]) -> dict[str, Any]:
            return request.typed(defaults, {k: v for k, v in keys.items() if k in defaults})

        def resolve(changes: Mapping[str, Any]) -> dict[str, Any]:
            return {**defaults, **changed(self._read, changes)}

        explicit = typed(explicit)
        changes = model.registered(self.process, {**changes, **typed(changes)})
        config = resolve(changes)
        model.check(config)
        acting.check(lambda keys: resolve({**changes, **keys}), explicit, defaults)
        self.process, self.prediction = read({**config, "_class_name": ""})
        if any(key in acting.SAMPLER for key in changes):
            self.sampler = kept.sampler(config)
        self.session.requested = None
        return changes


def _check_names(
    keys: Mapping[str, Any], known: Mapping[str, Any], shown: Mapping[str, Any] | None = None
) -> None:
    """Raises `UnknownName` for a key that is not `known`, with the names that are `shown`."""
    for key in keys:
        if key not in known:
            raise UnknownName("scheduler option", key, shown or known)
