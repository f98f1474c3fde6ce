"""Saves a run, so that it can be continued in another process."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.hook import Hook
from ..errors import ArgumentError, whole
from ..errors import path as file
from ..files import writable_later

if TYPE_CHECKING:
    from ..core.run import Run


class Checkpoint(Hook):
    """See `checkpoint`."""

    name = "checkpoint"

    def __init__(self, path: str | PathLike[str], every: int = 1) -> None:
        self.path, self.every = fspath(file("path", path)), whole("every", every)
        self._saved: int | None = None
        if Path(self.path).is_dir():
            raise ArgumentError(
                f"{self.path!r} is a folder; name a file, e.g. {self.path}/run.safetensors"
            )
        if "{step}" not in str(Path(self.path).parent):
            writable_later(Path(self.path).parent)

    def on_start(self, run: Run) -> None:
        self._saved = None

    def on_step(self, run: Run) -> None:
        self._saved = None
        if run.step % self.every == 0:
            self._save(run)

    def on_end(self, run: Run) -> None:
        if self._saved != run.step:
            self._save(run)

    def _save(self, run: Run) -> None:
        width = max(2, len(str(run.steps)))
        run.save(self.path.replace("{step}", f"{run.step:0{width}d}"))
        self._saved = run.step


def checkpoint(path: str | PathLike[str], every: int = 1) -> Hook:
    """Save the run after every so many steps and when it ends, atomically.

    `Run.load(path)` continues it bit for bit. Pass this hook last, so that it saves what the others
    changed.

    Args:
        path: a .safetensors file, replaced every time; `{step}` in it becomes the number of
            completed steps (01, 02, …), so that all are kept.
        every: save after each `every`-th step, at least 1.

    Returns:
        The hook.

    Raises:
        ArgumentError: where `path` is a folder or cannot be written.
    """
    return Checkpoint(path, every)
