"""Whose call this is: the pipelines that are at work on a thread's stack, innermost first.

Neither a scheduler nor a network knows which pipeline calls it; the frames of the call do.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import torch

_READING = threading.Lock()
Generators = torch.Generator | Sequence[torch.Generator] | None


def frames(frame: FrameType | None = None) -> Iterator[FrameType]:
    """`frame`, by default the caller's, and those that it was called from, innermost first."""
    frame = sys._getframe(1) if frame is None else frame
    while frame is not None:
        yield frame
        frame = frame.f_back


def pipelines(frame: FrameType | None = None) -> Iterator[Any]:
    """The pipelines in whose call a frame is, by default the caller's, innermost first.

    Whatever has a scheduler that steps counts as one. The blocks of a modular pipeline have it as
    `components`.
    """
    for one in frames(sys._getframe(1) if frame is None else frame):
        yield from _steppers(_callers(one))


def everywhere() -> list[tuple[int, Any]]:
    """The pipelines in whose call any thread is, with the thread; innermost first.

    Another thread goes on whenever this one lets it, and its frames end. Python's own code does not
    where it reads one, but garbage may be collected there, whose finalizers do: that ended in a
    segmentation fault. CPython's `sys._current_frames` is kept from it in the same way
    (python/cpython#106883).
    """
    with _READING:
        collects = gc.isenabled()
        gc.disable()
        try:
            stacks = list(sys._current_frames().items())
            calls = [(thread, _callers(one)) for thread, frame in stacks for one in frames(frame)]
        finally:
            if collects:
                gc.enable()
    return [(thread, pipe) for thread, callers in calls for pipe in _steppers(callers)]


def _callers(frame: FrameType) -> list[Any]:
    """What may be a pipeline in whose call a frame is."""
    if frame.f_code.co_name != "__call__":
        return []
    known = frame.f_locals
    return [known[name] for name in ("self", "components") if name in known]


def _steppers(callers: list[Any]) -> Iterator[Any]:
    for one in callers:
        with suppress(Exception):  # any object may be there, with any attributes
            if hasattr(getattr(one, "scheduler", None), "step"):
                yield one


def pipeline_of(scheduler: Any) -> Any:
    """The innermost pipeline at work whose scheduler this is; None where there is none."""
    return next((pipe for pipe in pipelines(sys._getframe(1)) if pipe.scheduler is scheduler), None)


def generator() -> Generators:
    """The generator of the pipeline's call that this is inside of.

    Half of diffusers' pipelines (SD3, Flux, Wan, SVD) and of its modular ones do not pass theirs to
    `scheduler.step`, and a sampler's noise would come from torch's global generator: the same call
    would make another picture each time.

    Returns:
        None outside of a call, or where it has none.
    """
    pipeline = _class("pipelines.pipeline_utils", "DiffusionPipeline")
    state = _class("modular_pipelines.modular_pipeline", "PipelineState")
    for one in frames(sys._getframe(1)):
        known = one.f_locals
        if isinstance(known.get("self"), pipeline) and "generator" in known:
            passed: Generators = known["generator"]
            return passed
        if isinstance(known.get("state"), state):
            stated: Generators = known["state"].get("generator")
            return stated
    return None


def is_modular(pipe: Any) -> bool:
    """Whether it is a modular pipeline of diffusers, which is made of blocks."""
    return isinstance(pipe, _class("modular_pipelines.modular_pipeline", "ModularPipeline"))


def _class(module: str, name: str) -> Any:
    """A class of diffusers; nothing is one of its objects where nobody has imported it."""
    return getattr(sys.modules.get(f"diffusers.{module}"), name, ())
