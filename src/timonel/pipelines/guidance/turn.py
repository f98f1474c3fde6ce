"""What a gate keeps of one turn of a pipeline's loop, and of the call."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...core.run import Run


class Did(Flag):
    """What was done to guidance in a call so far."""

    GUIDED = auto()
    """A second part was seen."""
    SKIPPED = auto()
    """A part was left out."""
    SCALED = auto()
    """A row's scale was not the pipeline's own."""
    WORSE = auto()
    """The conditional part was computed by a worse network too."""


@dataclass
class Turn:
    """One turn of the loop.

    Args:
        at: its run, how many rows that has computed, and the number of the turn.
        blank: when it began there was no output to hand out again, so it is computed in full.
        first: sample, number of parts and output of the first call.
        parts: the parts, as the pipeline got them.
        outputs: of each of the network's outputs the parts, as the network made them.
        repeats: how many outputs of a network were handed out again.
        worse: the outputs of worse networks, each with what `cond - worse` is multiplied by.
    """

    at: tuple[Run, int, int]
    blank: bool
    first: tuple[Any, int, Any] | None = None
    parts: list[Tensor] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    repeats: dict[nn.Module, int] = field(default_factory=dict)
    worse: list[tuple[float, Tensor]] = field(default_factory=list)

    @property
    def alone(self) -> bool:
        """Whether the conditional part had a call of its own."""
        return self.first is not None and self.first[1] == 1


class FirstRow(NamedTuple):
    """What the first row showed: parts, their sum, its sample, and whether each had its call."""

    each: list[Tensor]
    raw: Tensor
    x: Tensor
    sequential: bool
