"""How far a comparison is, in words and numbers, and lines of it for whoever watches no bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..files import plain

if TYPE_CHECKING:
    from .store import Outcome

EVERY, PATIENCE = 10.0, 3.0  # seconds between lines of a phase, and before the first one


@dataclass(frozen=True)
class State:
    """Where a comparison is.

    Args:
        phase: watching, references, runs or page.
        done: References that are done, or runs that have ended.
        total: Of how many.
        steps: Of the references that are computed now.
        row: Network calls of what is computed now.
        rows: Of how many.
        seconds: Since the comparison began.
        model: Which one is at work.
        gone: Earlier runs whose files somebody deleted; they are run again.
        outcome: What has just ended, None where nothing has.
    """

    phase: str
    done: int = 0
    total: int = 0
    steps: int | None = None
    row: int = 0
    rows: int = 0
    seconds: float = 0.0
    model: str = ""
    gone: int = 0
    outcome: Outcome | None = None

    def __str__(self) -> str:
        if self.phase == "watching":
            gone = f"the files of {self.gone} runs are gone, they are made again; "
            again = gone if self.gone else ""
            return f"{again}watching the pipeline of {self.model}"
        if self.phase == "references":
            now = "" if self.steps is None else f", now with {self.steps} steps{self._share()}"
            return f"references: {self.done} of {self.total} are done{now}"
        if self.phase == "runs":
            return f"runs: {self.done} of {self.total} have ended"
        return "writing the page"

    def _share(self) -> str:
        return f" ({100 * self.row // self.rows} %)" if self.rows else ""


Progress = Callable[[State], None]


def clock(seconds: float) -> str:
    """A time as 1:07 or 1:02:07."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines:
    """Prints a line on stderr where a phase or the steps change, and every ten seconds.

    Args:
        patience: Seconds before the first line.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.begins, self.last, self.before = time.monotonic() + patience, -EVERY, ("", 0)

    def __call__(self, state: State) -> None:
        """Print a line, where it is time."""
        now, what = time.monotonic(), (state.phase, state.steps or 0)
        if now < self.begins or (what == self.before and now - self.last < EVERY):
            return
        self.last, self.before = now, what
        print(plain(f"{clock(state.seconds)}  {state}"), file=sys.stderr, flush=True)
