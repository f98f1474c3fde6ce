"""The progress of a run on standard error: a bar on a terminal, else a line every 10 %."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, TextIO

from ..core.hook import Hook
from ..files import plain

if TYPE_CHECKING:
    from ..core.run import Run


class _Bars:
    """The one live display of a terminal; concurrent runs have a line each."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._display: Any = None
        self._open: set[int] = set()

    def add(self, label: str, run: Run) -> int:
        with self._lock:
            if self._display is None:
                self._display = _display()
                self._display.start()
            task = int(self._display.add_task(label, total=run.steps, completed=run.step, note=""))
            self._open.add(task)
            return task

    def update(self, task: int, run: Run, note: str) -> None:
        with self._lock:
            if task in self._open:
                done = {"completed": run.step, "total": run.steps}  # a tail changes the total
                self._display.update(task, **done, note=note, refresh=True)

    def close(self, task: int) -> None:
        with self._lock:
            if task not in self._open:
                return
            self._open.discard(task)
            if not self._open:
                self._display.stop()
                self._display = None


_BARS = _Bars()


def _display() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,  # drawn once a step; no thread that a failed run would leave
        redirect_stdout=sys.stdout.isatty(),  # output into a pipe stays in the pipe
    )


class ProgressBar(Hook):
    """See `progress`."""

    name = "progress"

    shows_progress = True

    def __init__(self, label: str = "") -> None:
        self.label = " ".join(plain(label).split())
        self._task: int | None = None
        self._close: Any = None
        self._tenth = 0
        self._begun: tuple[float, int] = (0.0, 0)  # clock and step where this run was first seen

    def on_start(self, run: Run) -> None:
        self._open(run, run.step)

    def on_step(self, run: Run) -> None:
        if self._close is None:  # a loaded, branched or rewound run has no start
            self._open(run, run.step - 1)
        note = self._note(run)
        if self._task is not None:
            _BARS.update(self._task, run, note)
            return
        tenth = run.step * 10 // run.steps
        if tenth != self._tenth:
            self._tenth = tenth
            _say(f"{self._title()}step {run.step}/{run.steps}  {note}")

    def on_end(self, run: Run) -> None:
        if run.status == "stopped":
            reason = f": {run.reason}" if run.reason else ""
            _say(f"{self._title()}stopped after step {run.step}/{run.steps}{reason}")
        if self._close is not None:
            self._close()
        self._close = self._task = None

    def _open(self, run: Run, step: int) -> None:
        if self._close is not None:
            self._close()
        self._begun, self._tenth = (time.perf_counter(), step), step * 10 // run.steps
        self._task = _BARS.add(self.label, run) if _terminal(sys.stderr) else None
        # a run that is dropped has no end: its line is removed with it
        self._close = weakref.finalize(run, _BARS.close, -1 if self._task is None else self._task)

    def _title(self) -> str:
        return f"{self.label}: " if self.label else ""

    def _note(self, run: Run) -> str:
        clock, first = self._begun
        parts = [f"{(time.perf_counter() - clock) / max(1, run.step - first):.2f} s/step"]
        if run.called_at is not None:
            parts.append(f"σ {run.called_at.ratio:.2f}")
        if run.guidance is not None and run.row:
            parts.append(f"guidance {'off' if run.guided.scales[run.row - 1] == 1.0 else 'on'}")
        return "  ".join(parts)


def progress(label: str = "") -> Hook:
    """Show steps, seconds per step, σ = sigma/alpha and whether guidance is on.

    On standard error: a live bar on a terminal (several runs get a line each), otherwise a plain
    line every 10 %.

    Args:
        label: text before it.

    >>> progress("cat").name
    'progress'
    """
    return ProgressBar(label)


def _terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _say(line: str) -> None:
    """A line on standard error, in the letters of its encoding."""
    stream = sys.stderr
    if stream is None:
        return
    coding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(plain(line).encode(coding, "replace").decode(coding) + "\n")
        stream.flush()
    except (OSError, ValueError):  # a closed pipe must not end a run
        pass
