"""A pipeline under control, with what is known of it and what its last call has left."""

from __future__ import annotations

import os
from inspect import Parameter
from typing import Any

from .. import zoo
from ..core.run import Run
from ..errors import ModelError
from . import choice, modular
from .decode.previews import PipelineContext
from .inspect_source import foreign, steps_with_scheduler
from .load import pipeline_of
from .session import Session


class Steered:
    """What a call and its recipe read of a helm; `Helm` is one.

    Args:
        pipe: a pipeline object, or the name of a model.
        loading: how to load it, see `Loading`.

    Raises:
        ModelError: the model cannot be loaded, or has no scheduler loop.
        ArgumentError: an option of loading does not fit.
    """

    def __init__(self, pipe: Any, loading: dict[str, Any]) -> None:
        self.name: str | None = os.fspath(pipe) if isinstance(pipe, (str, os.PathLike)) else None
        self.card: zoo.Card | None = (
            zoo.card(pipe) if isinstance(pipe, str) and pipe in zoo.MODELS else None
        )
        self.pipe = pipeline_of(pipe, **loading)
        self.loading: dict[str, Any] = loading
        modular.whole(self.pipe)
        if not callable(self.pipe) or not hasattr(getattr(self.pipe, "scheduler", None), "config"):
            raise ModelError(
                f"{type(self.pipe).__name__} is not a diffusers pipeline with a scheduler; "
                "give a pipeline object, a folder or a model name"
            )
        if needs := foreign(self.pipe):
            raise ModelError(
                f"{type(self.pipe).__name__} {needs}; timonel cannot steer it, use its own"
                " scheduler"
            )
        if not steps_with_scheduler(self.pipe):
            raise ModelError(
                f"{type(self.pipe).__name__} has no loop of its own that steps its scheduler; "
                "give the pipelines inside it, one by one"
            )
        self.context = PipelineContext(self.pipe, self.card.latent_rgb() if self.card else None)
        self.seeds: tuple[int, ...] = ()
        self.choice: choice.Choice | None = None  # of the last call, see `choose`
        self.session: Session | None = None  # of the present call, or of the last one
        self._came = (self.pipe.scheduler, dict(self.pipe.scheduler.config))  # with the model

    @property
    def run(self) -> Run | None:
        """The run of the present call, or of the last one, however that ended.

        `resume=helm.run` goes on with it.
        """
        return None if self.session is None else self.session.newest

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The pipeline's own parameters by name."""
        return modular.parameters(self.pipe)
