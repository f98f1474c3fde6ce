"""The timesteps socket: a tensor whose iteration is driven by the run.

A pipeline's own `for t in timesteps` ends when the run is stopped, waits while it is paused and
goes back when it is rewound. Everywhere else it is the plain tensor of network times, one per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .scheduler import Scheduler


class Timesteps(Tensor):
    """Network times of the rows, noisiest first; iterating drives `scheduler.run`."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    scheduler: Scheduler

    @staticmethod
    def of(times: Tensor, scheduler: Scheduler) -> Timesteps:
        made: Timesteps = Tensor._make_subclass(Timesteps, times)
        made.scheduler = scheduler
        return made

    def plain(self) -> Tensor:
        """The same numbers without the socket."""
        return self.as_subclass(Tensor)

    def __getitem__(self, key: Any) -> Tensor:
        """A contiguous slice cuts the run's grid, as image-to-image and two-stage pipelines do."""
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            if (start, stop) != (0, len(self)) and start < stop:
                return self.scheduler.cut(start, stop)
            if (start, stop) == (0, len(self)):
                return self
        return self.plain()[key]

    def __iter__(self) -> Iterator[Tensor]:
        return _drive(self.plain(), self.scheduler)


def _drive(times: Tensor, scheduler: Scheduler) -> Iterator[Tensor]:
    """Yield the time of the run's next row until the run ends.

    Where nothing advanced since the last time was yielded, the caller is only reading the list (or
    skips steps because the pipeline was interrupted): then go on to the next entry.
    """
    run = scheduler.run
    listed = list(times)
    position, seen = -1, -1
    while True:
        if run.advances == seen or not run.started:
            position += 1
            if position >= len(listed):
                break
        else:
            if not run.proceed():
                break
            position = run.row
            scheduler.hand_moved()
        seen = run.advances
        yield listed[position]
    if run.started and run.advances:
        if run.status == "running":
            run.stop("the pipeline was interrupted")
            run.proceed()
        scheduler.hand_result()
        run.finish()
