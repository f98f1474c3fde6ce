"""What can be known of a pipeline and of hooks before anything is computed, by reading their source and signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from ..errors import ArgumentError
from ..hooks import Hook

# the only uses of a loop's number that do not matter after a rewind: callbacks and the progress bar
HARMLESS = re.compile(
    r"for i, t in enumerate\(.*|callback\w*\(self, i,|i == len\(timesteps\) - 1|\(i \+ 1\) > num_warmup_steps"
    r"|\(i \+ 1\) % self\.scheduler\.order|step_idx = i //|i % callback_steps"
)
NUMBER = re.compile(r"\b(i|index|step_idx|step_index|step)\b\]|\[(i|index|step_idx|step_index|step)\b|\bi\b")


def counts(pipe: Any) -> bool:
    """Whether a pipeline's loop uses the number of its turn, so that it cannot follow a rewind.

    True also where the source cannot be read: then a rewind calls the pipeline again, which is always right.
    """
    try:
        source = inspect.getsource(inspect.unwrap(type(pipe).__call__))
    except (OSError, TypeError):
        return True
    loop = re.search(r"^\s*for \w+, \w+ in enumerate\(.*timesteps", source, re.MULTILINE)
    return loop is None or NUMBER.search(HARMLESS.sub("", source[loop.start() :])) is not None


def steps_with_scheduler(pipe: Any) -> bool:
    """Whether a pipeline's module calls `scheduler.step`; True where the source cannot be read."""
    for cls in type(pipe).__mro__:
        module = inspect.getmodule(cls)
        if module is None or cls is object:
            continue
        try:
            if re.search(r"scheduler\w*\.step\(", inspect.getsource(module)):
                return True
        except (OSError, TypeError):
            return True
    return False


def takes_the_run(hook: Any) -> None:
    """Raises `ArgumentError` for a hook that cannot be called with the run alone."""
    if isinstance(hook, type) or not (isinstance(hook, Hook) or callable(hook)):
        return  # refused, with its remedy, where hooks are adapted
    calls: list[Callable[..., Any]] = [hook.on_start, hook.on_step, hook.on_end] if isinstance(hook, Hook) else [hook]
    for call in calls:
        try:
            signature = inspect.signature(call)
        except (ValueError, TypeError):
            continue  # written in C: it says nothing of its arguments
        try:
            signature.bind(None)
        except TypeError:
            name = getattr(call, "__qualname__", type(call).__name__)
            raise ArgumentError(f"a hook takes one argument, the run; {name} takes {signature}") from None
