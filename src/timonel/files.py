"""Files are written to a temporary name beside the target and renamed, so a crash loses nothing.

One rule for what is there already. A name that timonel chooses is a free one: `red-apple-7.png`, then
`red-apple-7-2.png`. A name that the caller chooses is refused while it is taken, unless overwriting is allowed.
"""

from __future__ import annotations

import os
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from os import PathLike
from pathlib import Path

from .errors import ArgumentError

CONTROL = ("Cc", "Cf", "Zl", "Zp", "Cs")  # characters that a terminal obeys, or that reorder or break a line


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the target's suffix; on success it becomes `path`, on failure it is gone.

    Raises `ArgumentError` where the file cannot be written (no folder, no permission, disk full).
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem[:40]}-", suffix=target.suffix)
        os.close(handle)
    except (OSError, ValueError) as error:
        raise _cannot("write", target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        raise _cannot("write", target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def writable(folder: Path) -> None:
    """Make the folder, or raise `ArgumentError` before anything is computed. No file in it is touched."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".timonel-")
        os.close(handle)
        os.unlink(name)
    except (OSError, ValueError) as error:
        raise _cannot("write into", folder, error) from error


def ready(path: str | PathLike[str], *, overwrite: bool = False) -> Path:
    """`path`, once it is sure that a file can be written there. Nothing at `path` is touched.

    Raises `ArgumentError` for a file that exists, unless `overwrite`; for a folder or device of that name; and for a
    folder that cannot be made or written.
    """
    target = Path(path)
    writable(target.parent)
    try:
        found = target.lstat()
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:
        raise _cannot("write", target, error) from error
    if target.is_dir():
        raise ArgumentError(f"{str(target)!r} is a folder; name a file, e.g. {str(target / 'result')!r}")
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise ArgumentError(f"{str(target)!r} is no plain file; name another")
    if not overwrite:
        raise ArgumentError(f"{str(target)!r} exists: name another file, or replace it with --overwrite")
    return target


def names(stem: Path) -> Iterator[Path]:
    """`stem`, then `stem-2`, `stem-3`, …"""
    yield stem
    yield from (stem.with_name(f"{stem.name}-{number}") for number in count(2))


def short(name: str, most: int = 200) -> str:
    """The beginning of a name in at most so many bytes: file systems take 255, endings and numbers included."""
    return name.encode("utf-8", "surrogateescape")[:most].decode("utf-8", "ignore") if len(name) * 4 > most else name


def beside(stem: Path, ending: str) -> Path:
    """`stem` with something put behind its name, dots in it or not."""
    return stem.with_name(stem.name + ending)


def free(stem: Path, *endings: str) -> Path:
    """The first of `names` of which nothing with any of the endings exists."""
    return next(one for one in names(stem) if not any(os.path.lexists(beside(one, end)) for end in endings))


def new_folder(stem: Path, *endings: str) -> Path:
    """Make a folder by the first of `names` that is free, with the endings too; nobody else gets the same."""
    for one in names(stem):
        if any(os.path.lexists(beside(one, end)) for end in endings):
            continue
        try:
            one.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot("write into", one, error) from error
        return one
    raise AssertionError("names never end")


@contextmanager
def claimed(stem: Path, *endings: str) -> Iterator[Path]:
    """The first of `names` whose files with these endings are all free, now empty files of ours to be replaced.

    Two processes never get the same one. Files that a failed block left empty are removed again.
    """
    one = next(one for one in names(stem) if _take([beside(one, end) for end in endings]))
    try:
        yield one
    except BaseException:
        for path in (beside(one, end) for end in endings):
            with suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()
        raise


@contextmanager
def placed(path: str | PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """`path` to be written by the block; where somebody took it meanwhile, the next free name, unless `overwrite`."""
    target = Path(path)
    if overwrite:
        yield target
        return
    with claimed(target.with_suffix(""), target.suffix) as stem:
        yield beside(stem, target.suffix)


def plain(text: object) -> str:
    """Text without what a terminal would obey: control characters are shown as escapes, such as \\x1b."""
    return "".join(
        c if unicodedata.category(c) not in CONTROL or c in "\n\t\u200c\u200d" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def _take(paths: list[Path]) -> bool:
    """Make all of the paths as new empty files, or none of them where one exists."""
    made: list[Path] = []
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            made.append(path)
        except OSError as error:
            for other in made:
                other.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                return False
            raise _cannot("write", path, error) from error
    return True


def _cannot(what: str, path: Path, error: Exception) -> ArgumentError:
    return ArgumentError(f"cannot {what} {str(path)!r}: {getattr(error, 'strerror', None) or error}")


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
