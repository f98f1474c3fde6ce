"""What the helm reads of a modular pipeline of diffusers, whose call runs a tree of blocks.

A classic pipeline has one `__call__` with the loop in it. A modular one has blocks: the inputs of
the call are those of the blocks, the loop is a block with another one for each part of a
turn, and progress bars hang on the loops (diffusers 0.42.1, `modular_pipelines`). Here is all that
is different; a function takes either kind, and says of a classic one what it always said.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from inspect import Parameter
from typing import Any

from ..errors import ModelError
from .caller import is_modular

BLOCKS = "diffusers.modular_pipelines.modular_pipeline"
GUIDERS = ("guider", "ocr_guider")  # what guides in a classic pipeline
OUTPUTS = ("images", "videos", "audio")  # in a state, as the last block leaves them
# the only uses of a loop's number that do not matter after a rewind: progress bars, and the step of
# a guider, which gets that of the run (`guidance/guider.py`)
HARMLESS = re.compile(
    r"for i, t in enumerate\(.*|i=i, t=t|\bi: int\b|set_state\(step=i,"
    r"|i == len\(block_state\.timesteps\) - 1|\(i \+ 1\) > block_state\.num_warmup_steps"
    r"|\(i \+ 1\) % components\.scheduler\.order"
)
STEPPED = re.compile(r"scheduler\w*\.step\([^)]*\)|prepare_extra_kwargs\([^)]*\)")
CHANGING = re.compile(r"\bi\b|\bgenerator\b|torch\.randn|randn_tensor|randn_like")


def parameters(pipe: Any) -> dict[str, Parameter]:
    """The arguments of a pipeline's call by name, but for `**kwargs`.

    Of a modular pipeline these are the inputs of its blocks in their order, then `state` and
    `output`. An input that several blocks have with unlike defaults has None.
    """
    signature = inspect.signature(pipe.__call__).parameters
    named = {name: one for name, one in signature.items() if one.kind is not one.VAR_KEYWORD}
    if not is_modular(pipe):
        return named
    inputs = {
        one.name or one.kwargs_type: Parameter(
            one.name or one.kwargs_type,
            Parameter.POSITIONAL_OR_KEYWORD,
            default=one.default,
            annotation=Parameter.empty if one.type_hint is None else one.type_hint,
        )
        for one in pipe._blocks.inputs
    }
    return {**inputs, **named}


def whole(pipe: Any) -> None:
    """Raises `ModelError` where parts of a modular pipeline that every call needs are not there."""
    if not is_modular(pipe):
        return
    missing = [name for name in pipe.null_component_names if name == "scheduler"]
    networks = [n for n in pipe.component_names if n.startswith(("unet", "transformer"))]
    if networks and all(getattr(pipe, name, None) is None for name in networks):
        missing += networks
    if missing:
        raise ModelError(
            f"this {type(pipe).__name__} has no {' and no '.join(missing)} yet: call"
            " pipe.load_components(), or give them with pipe.update_components(…)"
        )


def guiders(pipe: Any) -> dict[str, Any]:
    """The guider objects of a pipeline by the names of its parts."""
    if not is_modular(pipe):
        each = {name: getattr(pipe, name, None) for name in GUIDERS}
        return {name: one for name, one in each.items() if hasattr(one, "set_state")}
    from diffusers.guiders import BaseGuidance

    each = {name: getattr(pipe, name, None) for name in pipe.component_names}
    return {name: one for name, one in each.items() if isinstance(one, BaseGuidance)}


# -- blocks --------------------------------------------------------------------------------------
def leaves(pipe: Any) -> Iterator[Any]:
    """Every block of a modular pipeline that holds no others, and loops with their parts."""
    yield from _leaves(pipe._blocks)


def _leaves(block: Any) -> Iterator[Any]:
    inside = dict(block.sub_blocks or {})
    if not inside or hasattr(block, "loop_step"):
        yield block
    for one in inside.values():
        yield from _leaves(one)


def classes(pipe: Any) -> tuple[type, ...]:
    """The classes whose source says what a pipeline does: that of it, or those of its blocks."""
    if not is_modular(pipe):
        return (type(pipe),)
    return tuple(dict.fromkeys(type(block) for block in leaves(pipe)))


def counts(pipe: Any, options: Mapping[str, Any]) -> bool:
    """Whether the loop of a modular pipeline uses the number of its turn, or draws noise in it.

    Args:
        pipe: the pipeline.
        options: of the call, which choose its blocks.

    Returns:
        As `inspect_source.counts`; True also for a loop inside a block.
    """
    blocks: Any = pipe._blocks
    with suppress(Exception):  # blocks that choose otherwise than by the inputs of a call
        blocks = blocks.get_execution_blocks(**options)
    loops = [block for block in _leaves(blocks) if hasattr(block, "loop_step")]
    turns = [part for loop in loops for part in (loop, *loop.sub_blocks.values())]
    try:
        texts = [inspect.getsource(inspect.unwrap(type(part).__call__)) for part in turns]
    except (OSError, TypeError):
        return True
    left = [STEPPED.sub("", HARMLESS.sub("", text)) for text in texts]
    nested = any("in enumerate(" in text for text in texts[1:]) or len(loops) != 1
    return nested or any(CHANGING.search(text) for text in left)


# -- what a pipeline prints ------------------------------------------------------------------------
@contextmanager
def without_bar(pipe: Any) -> Iterator[None]:
    """No progress bar of the pipeline while the context is open."""
    bars = (
        [one for one in leaves(pipe) if hasattr(one, "loop_step")] if is_modular(pipe) else [pipe]
    )
    before = [(bar, vars(bar).get("_progress_bar_config")) for bar in bars]
    for bar, config in before:
        bar._progress_bar_config = {**(config or {}), "disable": True}
    try:
        yield
    finally:
        for bar, config in before:
            if config is not None:
                bar._progress_bar_config = config
            else:
                vars(bar).pop("_progress_bar_config", None)


@contextmanager
def without_log(pipe: Any) -> Iterator[None]:
    """No tracebacks in diffusers' log, one for each block, of an error that is raised anyway."""
    logger, thread = logging.getLogger(BLOCKS), threading.get_ident()

    def quiet(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or record.thread != thread

    if is_modular(pipe):
        logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)
