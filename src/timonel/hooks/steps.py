"""Files of single steps: each says inside that it is one, so that those of an earlier run can be
told from yours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import picture_files, reading
from ..errors import ArgumentError

MARK = "timonel-step"  # text chunk of a step's PNG
PREDICTED = (  # in the data of a step's tensors; a saved run, which may have such a name, has none
    "denoised_at"
)
NAME = re.compile(r"step-\d+(?:-\d+)?\.(?:png|safetensors)")


def chunk(step: int, steps: int) -> Any:
    """The text chunk that makes a PNG recognisable as a step's."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(MARK, f"{step}/{steps}")
    return info


class Folder:
    """The step files of a hook in one folder. Those that an earlier run left there go, others stay.

    They go when the first of this run is written, but for names that this run will write too, which
    are replaced one by one; and at its end those that it did not come to.
    """

    def __init__(self, path: Path, suffix: str) -> None:
        self.path, self.suffix = path, suffix
        self._whole = (
            False  # whether the present run is seen from its start: else its first steps lie there
        )
        self._written: set[str] = set()

    def begin(self) -> None:
        """A run starts."""
        self._whole, self._written = True, set()

    def name(self, step: int, steps: int, sample: str = "") -> str:
        """The name of a step's file."""
        return f"step-{step:0{max(2, len(str(steps)))}d}{sample}{self.suffix}"

    def wrote(self, names: Sequence[str], planned: Iterable[str]) -> None:
        """The files of a step are written. `planned`: the names that this run writes if it comes to
        its end.
        """
        if self._whole and not self._written:
            self._clear({*names, *planned})
        self._written.update(names)

    def end(self) -> None:
        """The run is over."""
        if self._whole and self._written:
            self._clear(self._written)
        self._whole = False

    def _clear(self, keep: set[str]) -> None:
        """Remove step files by their name and by what timonel wrote into them, but for `keep`."""
        for path in sorted(self.path.glob(f"step-*{self.suffix}")):
            named = NAME.fullmatch(path.name) and path.name not in keep
            if named and path.is_file() and not path.is_symlink() and _ours(path):
                with suppress(OSError):
                    path.unlink()


def _ours(path: Path) -> bool:
    """Whether timonel wrote the file as a step's."""
    if path.suffix == ".png":
        try:
            return MARK in picture_files.info(path)
        except ArgumentError:
            return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return PREDICTED in reading.parsed(
                (file.metadata() or {}).get("timonel", "{}"), finite=False
            )
    except (OSError, SafetensorError, ValueError, TypeError):
        return False
