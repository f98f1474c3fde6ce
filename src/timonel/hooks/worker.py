"""A background thread for pictures, so that the sampler does not wait for files."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

_CUDA: Any = torch.cuda  # torch does not annotate its streams


class Pending:
    """A tensor on its way to the host: created in the thread of the sampler, fetched in another.

    `fetch` copies on another stream, after the work that computes the tensor and beside whatever
    the sampler has queued since. Nothing else waits.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.ready: Any = None
        if tensor.device.type == "cuda":
            self.ready = torch.cuda.current_stream(tensor.device).record_event()

    def fetch(self) -> Tensor:
        """The tensor on the host."""
        if self.ready is None:
            return self.tensor.cpu()
        stream = _CUDA.Stream(self.tensor.device)
        stream.wait_event(self.ready)
        with torch.cuda.stream(stream):
            return self.tensor.cpu()


class Worker:
    """Runs jobs one at a time in a thread that exists only while there are jobs.

    Args:
        room: how many jobs may wait.
        block: whether `submit` waits for room; else the job replaces the oldest waiting one, so the
            newest is never lost.
    """

    def __init__(self, room: int = 8, *, block: bool = True) -> None:
        self.room, self.block, self.dropped = room, block, 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = False
        self._error: BaseException | None = None
        self._change = threading.Condition()

    def __reduce__(self) -> Any:
        """A copy has no jobs."""
        return partial(Worker, self.room, block=self.block), ()

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; `failure` returns what it raises."""
        with self._change:
            while self.block and len(self._jobs) >= self.room:
                self._change.wait()
            while len(self._jobs) >= self.room:
                self._jobs.popleft()
                self.dropped += 1
            self._jobs.append(job)
            if not self._busy:
                self._busy = True
                # no daemon: jobs are finished even where the run fails and the program ends
                threading.Thread(target=self._work, name="timonel-pictures", daemon=False).start()

    def failure(self) -> BaseException | None:
        """The newest error of a job since the last call, or None."""
        with self._change:
            error, self._error = self._error, None
        return error

    def wait(self) -> None:
        """Return when every job is done."""
        with self._change:
            while self._busy:
                self._change.wait()

    def _work(self) -> None:
        while True:
            with self._change:
                if not self._jobs:
                    self._busy = False
                    self._change.notify_all()
                    return
                job = self._jobs.popleft()
                self._change.notify_all()
            try:
                job()
            except BaseException as error:  # the hook says it from the sampler's thread
                with self._change:
                    self._error = error
            del job
