"""A run on three steps that a test holds up where it wants, to order it from other threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch

import timonel as tm
from timonel.core.run import Run

STEPS = 3
VP = tm.VP.from_schedule()
FINAL = ("done", "stopped", "failed")
SECONDS = 60.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; what never comes is a failure, not a hang."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.002)


class Gate:
    """Where a thread waits until it is let through, once or for ever."""

    def __init__(self) -> None:
        self._change, self._permits, self.inside, self.passed = threading.Condition(), 0.0, False, 0

    def wait(self) -> None:
        with self._change:
            self.inside = True
            assert self._change.wait_for(lambda: self._permits > 0, SECONDS)
            self._permits, self.inside, self.passed = self._permits - 1, False, self.passed + 1
            self._change.notify_all()

    def open(self, times: float = 1) -> None:
        with self._change:
            before = self.passed
            self._permits += times
            self._change.notify_all()
            if self.inside:
                assert self._change.wait_for(lambda: self.passed > before, SECONDS)


def denoise(x: torch.Tensor, level: Any) -> torch.Tensor:
    return 0.5 * x


def begun(sampler: str = "euler", **options: Any) -> Run:
    return tm.begin(torch.ones(1, 4), sampler, process=VP, steps=STEPS, **options)
