"""Files are written to a temporary name beside the target and renamed, so a crash loses nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from .errors import ArgumentError


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; on success it becomes `path`, on failure it is gone.

    Raises `ArgumentError` where the file cannot be written (no folder, no permission, disk full).
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
        os.close(handle)
    except OSError as error:
        raise ArgumentError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise ArgumentError(f"cannot write {str(target)!r}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def writable(folder: Path) -> None:
    """Make the folder, or raise `ArgumentError` before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".timonel"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ArgumentError(f"cannot write into {str(folder)!r}: {error.strerror or error}") from error


def writable_later(folder: Path) -> None:
    """Raise `ArgumentError` where the folder could not be written, and leave nothing behind."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        writable(folder)
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
