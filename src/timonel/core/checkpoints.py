"""The points that a run can go back to."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..errors import whole
from .driver import UNKNOWN
from .program import State


class NetworkCall(NamedTuple):
    """A network call whose row was applied.

    Args:
        row: of the table.
        x: (batch, …), its sample; None where only the prediction was kept.
        raw: (batch, …), its output, or None as x.
        clean: (batch, …), the denoised prediction, where it is a tensor already.
    """

    row: int
    x: Tensor | None = None
    raw: Tensor | None = None
    clean: Tensor | None = None


class Point(NamedTuple):
    """Where a run stands between two rows.

    Args:
        state: of the run.
        call: the newest network call, None before the first.
        memory: what the network remembered here, None before its first call; `UNKNOWN` where the
            network itself holds it.
    """

    state: State
    call: NetworkCall | None = None
    memory: Any = UNKNOWN

    def clone(self) -> Point:
        """The same point with a copy of its state."""
        return self._replace(state=self.state.clone())


class Checkpoints:
    """The start of a run and the newest `keep` ends of its steps."""

    def __init__(self, keep: int = 0) -> None:
        self.keep = whole("keep", keep, 0)
        self.start: State | None = None
        self.points: dict[int, Point] = {}

    def add(self, step: int, point: Point) -> None:
        """Keep the point where `step` steps are completed, in the place of the oldest."""
        self.points.pop(step, None)
        self.points[step] = point
        while len(self.points) > self.keep:
            del self.points[next(iter(self.points))]

    def back_to(self, step: int) -> Point:
        """A copy of the newest point at or before `step`, else of the start; later ones go."""
        self.points = {at: point for at, point in self.points.items() if at <= step}
        if self.points:
            return self.points[max(self.points)].clone()
        assert self.start is not None
        return Point(self.start.clone(), None, None)

    def forget_momentum(self) -> None:
        """Another guidance method goes on from the points, and begins anew."""
        self.points = {
            step: point._replace(state=point.state._replace(momentum=None))
            for step, point in self.points.items()
        }

    def copy(self) -> Checkpoints:
        """The same points with copies of their states."""
        return self._with({step: point.clone() for step, point in self.points.items()})

    def without_memory(self) -> Checkpoints:
        """The same points without what the network remembered, which belongs to its process."""
        return self._with({s: point._replace(memory=UNKNOWN) for s, point in self.points.items()})

    def _with(self, points: dict[int, Point]) -> Checkpoints:
        twin = Checkpoints(self.keep)
        twin.start, twin.points = self.start, points
        return twin
