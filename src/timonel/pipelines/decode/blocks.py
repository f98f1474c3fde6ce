"""The rest of a modular pipeline's call after its loop, run once more with other latents.

Where a classic pipeline is in one function (`tail.py`), a modular one is in several, one inside the
other: the block that steps, the loop it is a part of, the sequences of blocks around that. Their
rests are run from the inside out, each with what the one before returned: of a function its
statements from the present one on, of a loop the later parts of its last turn, of a sequence its
later blocks. The states that they pass on are copies.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import modular
from ..caller import frames
from .tail import NoTail, Rest, SilentBar, Stage, StandIn, Tail, rest_of

LOOP, PASSING = "loop_step", "sub_blocks"  # a turn of a loop; what a sequence goes through
Result = tuple[Any, Any]  # the components and the state, as every block returns them


@dataclass(frozen=True)
class Level:
    """One function of the call, in a block.

    Attributes:
        block: that it belongs to.
        rest: of the function; None where only later blocks follow.
        values: the function's variables.
        names: of its module.
        later: the blocks that follow inside `block`.
        turns: whether the later blocks are those of a turn of its loop.
    """

    block: Any
    rest: Rest | None
    values: dict[str, Any]
    names: dict[str, Any]
    later: tuple[Any, ...] = ()
    turns: bool = False


def look(pipe: Any) -> BlocksTail | None:
    """The rest of the present call of a modular pipeline, from inside a step of its scheduler.

    Returns:
        The rest; None outside of a call.

    Raises:
        NoTail: a block's source cannot be read.
    """
    from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks as Block

    levels: list[Level] = []
    for frame in frames():
        this = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if this is pipe:
            return BlocksTail(pipe, levels)
        if isinstance(this, Block):
            levels.append(_level(this, frame))
    return None


def _level(block: Any, frame: types.FrameType) -> Level:
    """What is left of a function of a block."""
    values, name = dict(frame.f_locals), frame.f_code.co_name
    inside = values.get("block") if name in (LOOP, "__call__") else None
    parts = list((getattr(block, PASSING, None) or {}).values())
    at = next((i for i, part in enumerate(parts) if part is inside), None)
    if at is None:
        rest = rest_of(frame.f_code, frame.f_lineno)
        kept = {key: values[key] for key in rest.names if key in values}
        return Level(block, rest, kept, frame.f_globals)
    chosen = hasattr(block, "select_block")  # one of its blocks, and no other follows
    return Level(block, None, values, {}, () if chosen else tuple(parts[at + 1 :]), name == LOOP)


class BlocksTail(Tail):
    """The rest of one call of a modular pipeline. Make one with `look`.

    Args:
        pipe: the pipeline.
        levels: its functions, innermost first.
    """

    def __init__(self, pipe: Any, levels: list[Level]) -> None:
        super().__init__(pipe)
        self.levels = [self._kept(level) for level in levels]
        if not any(level.rest is not None for level in levels):
            raise NoTail(f"{type(pipe).__name__} steps its scheduler outside of its blocks")

    def _kept(self, level: Level) -> Level:
        """A level whose states do not change with the call."""
        memo = self.__dict__.setdefault("_memo", {})
        values = {key: _copied(value, memo, lambda v: v) for key, value in level.values.items()}
        return Level(level.block, level.rest, values, level.names, level.later, level.turns)

    def _run(self, stage: Stage, form: str) -> Any:
        """Run the rests from the inside out."""
        memo: dict[int, Any] = {}
        value = lambda one: self._value("", one, stage)  # noqa: E731
        result: Result | None = None
        turn = self._turn()
        for level in self.levels:
            values = {key: _copied(one, memo, value) for key, one in level.values.items()}
            for state in values.values():
                _requests(state, form)
            if level.rest is not None:
                result = self._function(level, {**values, **turn}, stage, result)
            elif result is not None:
                for block in level.later:
                    result = block(*result, **(turn if level.turns else {}))
        assert result is not None
        state = result[1]
        shown = (state.get(name) for name in modular.OUTPUTS)
        return tuple(one for one in shown if one is not None)

    def _function(
        self, level: Level, values: dict[str, Any], stage: Stage, result: Result | None
    ) -> Result:
        """The rest of a function of a block; `result` is what the function inside it returned."""
        block = level.block if result is None else _Around(level.block, result)
        known = {key: stage if one is self.pipe else one for key, one in values.items()}
        known |= {"self": block} | (
            {"progress_bar": SilentBar()} if "progress_bar" in known else {}
        )
        assert level.rest is not None
        returned: Result = level.rest.call(known, level.names)
        return returned

    def _turn(self) -> dict[str, Any]:
        """The variables of the loop in its last turn, as its parts get them."""
        for level in self.levels:
            count, time, listed = (level.rest and level.rest.loop) or (None, None, "")
            turns: Any = level.values.get(listed)
            turns = getattr(turns, "timesteps", turns)
            if count and time and isinstance(turns, (Tensor, list, tuple)) and len(turns):
                return {count: len(turns) - 1, time: turns[-1]}
        return {}


class _Around(StandIn):
    """A loop whose present turn has returned `result`."""

    def __init__(self, block: Any, result: Result) -> None:
        super().__init__(block)
        self.__dict__["_result"] = result

    def loop_step(self, *_: Any, **__: Any) -> Result:
        """What the turn has returned."""
        returned: Result = self._result
        return returned

    def progress_bar(self, *_: Any, **__: Any) -> SilentBar:
        """A bar that shows nothing."""
        return SilentBar()


def _copied(value: Any, memo: dict[int, Any], leaf: Callable[[Any], Any]) -> Any:
    """A copy of a state of a pipeline or a block, the same one each time; else `leaf(value)`."""
    from diffusers.modular_pipelines.modular_pipeline import BlockState, PipelineState

    if not isinstance(value, (BlockState, PipelineState)):
        return leaf(value)
    if id(value) not in memo:
        if isinstance(value, BlockState):
            copy: Any = BlockState(**{key: leaf(one) for key, one in vars(value).items()})
        else:
            values = {key: leaf(one) for key, one in value.values.items()}
            copy = PipelineState(values, {k: list(v) for k, v in value.kwargs_mapping.items()})
        memo[id(value)] = copy
    return memo[id(value)]


def _requests(state: Any, form: str) -> None:
    """Let the last block make pictures of a form."""
    if hasattr(state, "kwargs_mapping"):
        state.set("output_type", form)
