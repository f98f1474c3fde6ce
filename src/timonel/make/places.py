"""Where the files of a picture go; imports nothing heavy, so a wrong name is refused at once."""

from __future__ import annotations

from pathlib import Path

from ..errors import ArgumentError
from ..files import beside, ready, writable

ENDINGS = (".png", ".sheet.png", ".gif")  # of the picture, its contact sheet and its animation
OTHERS = (
    ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".svg", ".pdf", ".mp4",
    ".json",
)  # fmt: skip


def placed(out: Path, count: int, overwrite: bool) -> tuple[Path, str | None]:
    """The folder and, where `out` names a picture, its name.

    Args:
        out: a folder, or a .png file.
        count: of pictures; several need a folder.
        overwrite: replace files that exist.

    Raises:
        ArgumentError: they cannot be written.
    """
    if out.is_dir() or out.suffix.lower() not in (".png", *OTHERS):
        writable(out)
        return out, None
    if out.suffix.lower() != ".png":
        raise ArgumentError(
            f"a picture is a .png file, which holds its recipe, got {str(out)!r}; or name a folder"
        )
    if count > 1:
        raise ArgumentError(
            f"{count} pictures have names of their own: give a folder, got {str(out)!r}"
        )
    unused(out.with_suffix(""), overwrite)
    return out.parent, out.stem


def unused(stem: Path, overwrite: bool) -> None:
    """Raise `ArgumentError` where a file of this picture exists or cannot be written."""
    for ending in ENDINGS:
        ready(beside(stem, ending), overwrite=overwrite)
