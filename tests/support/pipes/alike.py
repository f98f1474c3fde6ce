"""A pipeline with the classes of `timonel.compat` in place of its schedulers, of the same names and
configurations.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from timonel.compat.schedulers import CLASSES

#: where another picture is meant, and why
MEANT = {
    "IPNDMScheduler": (
        "diffusers' IPNDMScheduler drops its first prediction, at pure noise, which timonel's "
        "counts; the last 0.01 is that timonel's combines slopes over sigma / (alpha + sigma), "
        "which begins at 1, not at infinity"
    ),
    "CogVideoXDDIMScheduler": (
        "on trailing times in 3 steps diffusers' steps end below the next time of its own list"
    ),
    "UnCLIPScheduler": "diffusers' float32 has no digits of the abar 2e-9 where the cosine begins",
}


def schedulers(pipe: Any) -> dict[str, Any]:
    """The schedulers of a pipeline, by the names of its components."""
    named = {**pipe.components, "scheduler": pipe.scheduler}  # which some pipelines may go without
    return {name: one for name, one in named.items() if isinstance(one, SchedulerMixin)}


def counterparts(pipe: Any) -> dict[str, Any]:
    """What `timonel.compat` has for them, made of their configurations as a file has them; others
    are left out.
    """
    alike = {name: (CLASSES.get(type(one).__name__), one) for name, one in schedulers(pipe).items()}
    return {
        name: cls.from_config(json.loads(one.to_json_string()))
        for name, (cls, one) in alike.items()
        if cls is not None
    }


@contextmanager
def replaced(pipe: Any, others: Mapping[str, Any]) -> Iterator[None]:
    """The pipeline with other schedulers."""
    before = {name: getattr(pipe, name) for name in others}
    for name, one in others.items():
        setattr(pipe, name, one)
    try:
        yield
    finally:
        for name, one in before.items():
            setattr(pipe, name, one)


def ended(pipe: Any, call: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What a call of a pipeline returns, and the sample that each of its schedulers' last step has
    returned.
    """
    last: dict[str, Tensor] = {}

    def watched(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def stepped(*args: Any, **named: Any) -> Any:
            made = step(*args, **named)
            last[name] = made[0].detach().double()
            return made

        return stepped

    with ExitStack() as stack:
        for cls in {type(one) for one in schedulers(pipe).values()}:
            stack.enter_context(patch.object(cls, "step", watched(cls.__name__, cls.step)))
        return call(), [last[name] for name in sorted(last)]
