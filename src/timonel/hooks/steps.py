"""Files of single steps: each says inside that it is one, so that those of an earlier run can be told from yours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "timonel-step"  # text chunk of a step's PNG
NAME = re.compile(r"step-\d+(?:-\d+)?\.(?:png|safetensors)")


def chunk(step: int, steps: int) -> Any:
    """The text chunk that makes a PNG recognisable as a step's."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(MARK, f"{step}/{steps}")
    return info


def clear(written: Sequence[Path]) -> None:
    """Remove the step files of an earlier run beside the first `written` by this one.

    They are known by their name and by what timonel wrote into them; others stay.
    """
    first = written[0]
    for path in sorted(first.parent.glob(f"step-*{first.suffix}")):
        if path in written:
            continue
        if NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink() and _ours(path):
            with suppress(OSError):
                path.unlink()


def _ours(path: Path) -> bool:
    """Whether timonel wrote the file as a step's."""
    if path.suffix == ".png":
        from PIL import Image

        try:
            with Image.open(path) as picture:
                return MARK in picture.info
        except (OSError, ValueError, SyntaxError):
            return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return "timonel" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
