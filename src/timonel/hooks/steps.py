"""Files of single steps, marked inside, so that only those of an earlier run are removed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import picture_files, reading
from ..errors import ArgumentError

MARK = "timonel-step"  # text chunk of a step's PNG
PREDICTED = "denoised_at"  # in the metadata of a step, and not of a saved run
NAME = re.compile(r"step-\d+(?:-\d+)?\.(?:png|safetensors)")


def chunk(step: int, steps: int) -> Any:
    """The text chunk that makes a PNG recognisable as a step's."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(MARK, f"{step}/{steps}")
    return info


class Folder:
    """The step files of a hook in one folder. Those of an earlier run are removed, others stay.

    Removed when the first of this run is written, except for names that this run will replace; of
    those the rest is removed at its end.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.suffix = path, suffix
        self._whole = (
            False  # whether the run was seen from its start; else its first steps are there
        )
        self._written: set[str] = set()

    def begin(self) -> None:
        """A run starts."""
        self._whole, self._written = True, set()

    def name(self, step: int, steps: int, sample: str = "") -> str:
        """The file name of a step."""
        return f"step-{step:0{max(2, len(str(steps)))}d}{sample}{self.suffix}"

    def wrote(self, names: Sequence[str], planned: Iterable[str]) -> None:
        """The files of a step are written; `planned`: the names of all steps of the run."""
        if self._whole and not self._written:
            self._clear({*names, *planned})
        self._written.update(names)

    def end(self) -> None:
        """The run is over."""
        if self._whole and self._written:
            self._clear(self._written)
        self._whole = False

    def _clear(self, keep: set[str]) -> None:
        """Remove step files, recognised by name and mark, except for `keep`."""
        for path in sorted(self.path.glob(f"step-*{self.suffix}")):
            named = NAME.fullmatch(path.name) and path.name not in keep
            if named and path.is_file() and not path.is_symlink() and _ours(path):
                with suppress(OSError):
                    path.unlink()


def _ours(path: Path) -> bool:
    """Whether the file is marked as that of a step."""
    if path.suffix == ".png":
        try:
            return MARK in picture_files.info(path)
        except ArgumentError:
            return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = (file.metadata() or {}).get("timonel", "{}")
            return PREDICTED in reading.parsed(metadata, finite=False)
    except (OSError, SafetensorError, ValueError, TypeError):
        return False
