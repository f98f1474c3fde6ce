"""The configuration of a scheduler: how it is made of one, and how changes in place act or are
refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ...core import prediction as predictions
from ...core import process as processes
from ...core.process import Process
from ...core.sampler import Sampler
from ...errors import ArgumentError, UnknownName, options, plain
from .. import choice, request
from ..session import Session
from . import acting, kept, model


def unlike(one: object, other: object) -> bool:
    """Whether two values differ. NaN, which differs from itself, is like itself; arrays differ in
    their numbers.
    """
    return one is not other and [plain(one)] != [plain(other)]


class Configured(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """What of a scheduler is about its configuration."""

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
        """A scheduler for the model that `config` (of any diffusers scheduler) describes.

        `sampler`: a name or a sampler; None is the one that the class and flags of `config` stand
        for, else the default. `changes` override keys of the config; a key that this scheduler does
        not have is refused with `UnknownName` (diffusers drops it without a word), and one that
        changes nothing with `ArgumentError`. Keys that the config carries are never refused, for
        real ones carry those of other classes. `return_unused_kwargs` is for diffusers' own
        loading, which asks for a pair.
        """
        defaults = cls._defaults()
        for key in changes:
            if key not in defaults:
                raise UnknownName("scheduler option", key, defaults)
        changes = request.typed(defaults, changes)
        carried = options("config", {} if config is None else config)
        model.forward(carried.get("_class_name"))
        if sampler is None and carried.get("sampler") is None:
            sampler = choice.of_config({**carried, "variance_type": None, **changes})
        chosen = None if sampler is None else Sampler.of(sampler)
        if chosen is not None and not chosen.named_alone:
            raise ArgumentError(
                "a scheduler's config keeps solver, grid name, options and noise of a sampler only"
            )
        own = config if hasattr(config, "__dict__") else carried

        def written(changes: Mapping[str, Any]) -> dict[str, Any]:
            whole, said = model.given(own, changes), model.read(own, changes)
            if chosen is not None:
                said |= {
                    k: v for k, v in kept.told(chosen).items() if k == "sampler" or k not in changes
                }
            return {
                key: value for key, value in whole.items() if key in defaults and value is not None
            } | said

        made = cls._of(written(changes))
        acting.check(lambda changes: {**defaults, **written(changes)}, changes, defaults)
        return (made, {}) if return_unused_kwargs else made

    @classmethod
    def _of(cls, config: Mapping[str, Any]) -> Any:
        """A scheduler with a configuration that was checked before."""
        made = cls.__new__(cls)
        made._asked_for = {}
        made.__init__(**config)  # type: ignore[misc]
        return made

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Every key of a configuration, with its default."""
        given = inspect.signature(cls.__init__).parameters
        return {name: parameter.default for name, parameter in given.items() if name != "self"}

    # -- its configuration, which may be changed in place -----------------------------------------
    def register_to_config(self, **kwargs: Any) -> None:
        """Change keys of the configuration. Raises `UnknownName` or `ArgumentError` for one that
        would do nothing.
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
        """Follow changes that were made in the configuration itself, as pipelines and scripts make
        them.
        """
        before, config = self._read, self.config
        live = {key: value for key, value in vars(config).items() if not key.startswith("_")}
        changes = {key: value for part in (self._plain(), live) for key, value in part.items()
                   if key not in before or unlike(value, before[key])}  # fmt: skip
        if changes:
            asked = {key: value for key, value in changes.items() if key not in acting.WRITTEN}
            super().register_to_config(**self._change(changes, asked))
            self._read = self._plain()

    def _change(self, changes: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Take changed keys, of which those that are `asked` for have to act; returns them as they
        are kept.
        """
        defaults = self._defaults()
        for key in (
            asked
        ):  # what pipelines and scripts write into any scheduler means nothing to most of them
            if key not in defaults and key not in acting.WRITTEN:
                raise UnknownName("scheduler option", key, defaults)

        def known(given: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in given.items() if key in defaults}

        asked = request.typed(defaults, known(asked))
        changes = model.registered(
            self.process, {**changes, **request.typed(defaults, known(changes))}
        )

        def resolve(changes: Mapping[str, Any]) -> dict[str, Any]:
            return {**defaults, **model.given(self._read, changes)}

        config = resolve(changes)
        model.check(config)
        acting.check(lambda asked: resolve({**changes, **asked}), asked, defaults)
        plain = {**config, "_class_name": ""}
        self.process, self.prediction = processes.from_config(plain), predictions.from_config(plain)
        if any(key in acting.SAMPLER for key in changes):
            self.sampler = kept.sampler(config)
        self.session.asked = None
        return changes
