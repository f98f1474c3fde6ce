"""What the source of a pipeline and the signature of a hook say before anything is computed."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from ..core.hook import Hook
from ..errors import ArgumentError, ModelError, TimonelError
from . import modular
from .caller import is_modular
from .source import getsource

if TYPE_CHECKING:
    from .session import Session

# what in a pipeline's source tells that its loop needs the sampler of its own scheduler
FOREIGN = {
    r"scheduler\.undo_step\(": "goes back in its list on its own to sample a part anew",
    r"scheduler\.step_correct\(": "corrects each step with a second one of its own scheduler",
    r"scheduler\.config\.mask_token_id": "chooses discrete tokens",
    r"def posterior_sample\(": "computes noise from its own scheduler's variances",
    r"sample_schedulers\b": "steps every frame with a scheduler of its own",
    r"scheduler\.__dict__": "keeps a copy of its scheduler's state for each view",
}
TWICE = r"scheduler\._step_index -= 1"
FOREIGN[TWICE] = "calls step twice a turn, once to read its own scheduler's prediction"
# a loop that scales a sigma as a sample makes the prediction itself, of samples that are not of
# unit variance
EXPLODES = r"scheduler\.scale_model_input\(sigma"
FOREIGN[EXPLODES] = "computes with samples x0 + sigma·noise, which are kept at unit variance here"
SHARES = r"progress_bar\(timesteps\[:-1\]\)"  # of a list of shares, whose end is left out
# Stable Cascade's, which makes its share of a whole time of a scheduler that is not Wuerstchen's
RATIOS = r"get_timestep_ratio_conditioning\("
INDEXED = r"\b(?:alphas|alphas_cumprod|betas)\["
STEPS = r"scheduler\w*\.step\("
UTILITIES = (
    "diffusers.configuration_utils",
    "diffusers.modular_pipelines.modular_pipeline",
    "diffusers.pipelines.pipeline_utils",
    "diffusers.utils.hub_utils",
)
# the only uses of a loop's number that do not matter after a rewind: callbacks and the progress bar
HARMLESS = re.compile(
    r"for i, t in enumerate\(.*|callback\w*\(self, i,|i == len\(timesteps\) - 1|\(i \+ 1\) >"
    r" num_warmup_steps"
    r"|\(i \+ 1\) % self\.scheduler\.order|step_idx = i //|i % callback_steps"
)
FLOOR = "int(num_inference_steps * strength)"
STEP = re.compile(r"scheduler\w*\.step\([^)]*\)")
DRAWN = re.compile(r"\bgenerator\b|torch\.randn|randn_tensor|randn_like")
NUMBER = re.compile(
    r"\b(i|index|step_idx|step_index|step)\b\]|\[(i|index|step_idx|step_index|step)\b|\bi\b"
)


def counts(pipe: Any, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a pipeline's loop uses the number of its turn, or draws noise in it.

    Then it cannot follow a rewind. True also where the source cannot be read: a rewind then calls
    the pipeline again, which is always right.

    Args:
        pipe: the pipeline.
        options: of the call; a modular pipeline chooses its loop by them.
    """
    if is_modular(pipe):
        return modular.counts(pipe, options or {})
    try:
        source = getsource(inspect.unwrap(type(pipe).__call__))
    except (OSError, TypeError):
        return True
    loop = re.search(
        r"^( *)for \w+, \w+ in enumerate\(.*timesteps.*\n((?:\1 +.*\n|\s*\n)*)",
        source,
        re.MULTILINE,
    )
    if loop is None or DRAWN.search(STEP.sub("", loop[2])):
        return True
    return NUMBER.search(HARMLESS.sub("", source[loop.start() :])) is not None


def steps_with_scheduler(pipe: Any) -> bool:
    """Whether a pipeline's module calls `scheduler.step`; True where the source cannot be read."""
    if is_modular(pipe):
        return _has(pipe, STEPS)
    for cls in type(pipe).__mro__:
        module = inspect.getmodule(cls)
        if module is None or cls is object:
            continue
        try:
            if re.search(STEPS, getsource(module)):
                return True
        except (OSError, TypeError):
            return True
    return False


def foreign(pipe: Any) -> str | None:
    """What a pipeline's loop needs of its own scheduler that no table has; None: nothing."""
    return next((why for pattern, why in FOREIGN.items() if _has(pipe, pattern)), None)


def keeps_unit_variance(pipe: Any) -> None:
    """Check that a pipeline's loop does no arithmetic on samples `x0 + sigma·noise`.

    Raises:
        ModelError: it does.
    """
    if pipe is None:
        return
    name = type(pipe).__name__
    use = "use its own scheduler, or timonel.compat.{}.from_config(…) of its configuration"
    if _has(pipe, EXPLODES):
        raise ModelError(
            f"{name} computes with samples x0 + sigma·noise, and this scheduler keeps unit"
            " variance: " + use.format("EulerDiscreteScheduler")
        )
    if _has(pipe, TWICE):
        raise ModelError(
            f"{name} begins with sigma_max·noise and calls step twice a turn, once for a prediction"
            " alone; this scheduler keeps unit variance and steps: "
            + use.format("EDMEulerScheduler")
        )


def steps_twice(pipe: Any) -> bool:
    """Whether a pipeline calls step twice a turn, once for the prediction alone."""
    return pipe is not None and _has(pipe, TWICE)


def _has(pipe: Any, pattern: str) -> bool:
    each: Any = modular.classes(pipe)  # as what they are, mypy takes no class for hashable
    return any(_holds(cls, pattern) for cls in each)


@cache
def _holds(cls: type, pattern: str) -> bool:
    """Whether the source of a pipeline's class, and of those that it is made from, has a pattern.

    Of a class with a call of its own it is that of its module, whose functions the call may use.
    """
    known = (*UTILITIES, "builtins")
    parts = [part for part in cls.__mro__ if part.__module__ not in known]
    sources = (
        _source(sys.modules.get(p.__module__) if "__call__" in vars(p) else p) for p in parts
    )
    return any(re.search(pattern, source) for source in sources)


def rounds_down(pipe: Any) -> bool:
    """Whether a pipeline begins int(steps · strength) steps before the end.

    A low strength then leaves no step.
    """
    try:
        return FLOOR in getsource(inspect.unwrap(type(pipe).get_timesteps))
    except (AttributeError, OSError, TypeError):
        return False


def changes(pipe: Any) -> dict[str, Any]:
    """Keys that a pipeline's source says of its model beyond its scheduler's config."""
    if _has(pipe, SHARES):
        return {"process": "cosine"}
    return {"process": "vp"} if _has(pipe, RATIOS) else {}


def indexes_by_time(pipe: Any) -> bool:
    """Whether a pipeline reads its scheduler's betas at a time of the loop.

    That time has to be a whole number then.
    """
    return _has(pipe, INDEXED)


def _source(module: Any) -> str:
    try:
        return getsource(module)
    except (OSError, TypeError):
        return ""


@contextmanager
def one_row_loops(pipe: Any, session: Session) -> Iterator[None]:
    """Say why a loop with lists of its own, one entry a step, fails in a run with more rows.

    Args:
        pipe: the pipeline that is called in this context.
        session: of the call.

    Raises:
        ArgumentError: instead of the pipeline's error.
    """
    try:
        yield
    except TimonelError:
        raise
    except (LookupError, ValueError) as error:
        table = None if session.run is None else session.run.table
        names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if table is None or table.nfe == table.steps or "check_inputs" in names:
            raise
        raise ArgumentError(
            f"{type(pipe).__name__} has lists of its own with one entry a step, and"
            f" {table.solver!r} calls the network {table.nfe} times in {table.steps} steps: use a"
            f" sampler of one call a step, e.g. 'dpmpp_2m' ({error})"
        ) from error


def takes_the_run(hook: Any) -> None:
    """Raises `ArgumentError` for a hook that cannot be called with the run alone."""
    if isinstance(hook, type) or not (isinstance(hook, Hook) or callable(hook)):
        return  # refused, with its remedy, where hooks are adapted
    calls: list[Callable[..., Any]] = (
        [hook.on_start, hook.on_step, hook.on_end] if isinstance(hook, Hook) else [hook]
    )
    for call in calls:
        try:
            signature = inspect.signature(call)
        except (ValueError, TypeError):
            continue  # written in C: it says nothing of its arguments
        try:
            signature.bind(None)
        except TypeError:
            name = getattr(call, "__qualname__", type(call).__name__)
            raise ArgumentError(
                f"a hook takes one argument, the run; {name} takes {signature}"
            ) from None
