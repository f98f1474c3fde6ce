"""Files are written to a temporary name beside the target and renamed, so a crash loses nothing.

A name that timonel chooses is a free one: `red-apple-7.png`, then `red-apple-7-2.png`. A name that
the caller chooses is refused while it is taken, unless overwriting is allowed.

A process that is killed leaves a temporary file, or a claim: a file of one line that reserves a
name. Both carry its process number and are locked while it lives, so whoever writes the same target
next removes them, and only those.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CLAIM = re.compile(rb"timonel: process (\d+) is writing this file\n")
LEFT = re.compile(r"\..+-timonel-(\d+)-[0-9a-f]{16}(?:\.\w+)?")  # a temporary file of any target
MOST_CLAIM = 80  # bytes, more than a claim has
# seconds after which an unlocked file is abandoned, even where its process number is in use again
STALE = 3600.0
_CREATING = threading.Lock()  # no thread looks at a file that another created and not yet locked
#: categories of characters that a terminal obeys, or that reorder or break a line
CONTROL = ("Cc", "Cf", "Zl", "Zp", "Cs")


@contextmanager
def replacing(path: str | PathLike[str], *, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path, which becomes `path` on success and is removed on failure.

    Args:
        path: the target; the temporary path has its suffix.
        lasting: whether to wait until the disk has the file before the rename; previews do not.

    Raises:
        ArgumentError: where the file cannot be written (no folder, no permission, disk full).
    """
    target = Path(path)
    with _temporary(target) as temporary:
        try:
            yield temporary
            if lasting:
                _flush(temporary)
            os.replace(temporary, target)
            if lasting:
                _flush(target.parent)
        except OSError as error:
            raise _cannot("write", target, error) from error


def write_tensors(
    path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file by way of `replacing`.

    Args:
        path: the target.
        tensors: tensors by name.
        metadata: text by key.

    Raises:
        ArgumentError: where the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    with replacing(path) as temporary:
        try:
            # its save_file has another temporary file, which a killed process would leave
            temporary.write_bytes(save(dict(tensors), metadata=metadata))
        except SafetensorError as error:  # a full disk, among others
            raise ArgumentError(f"cannot write {str(path)!r}: {error}") from error


def writable(folder: Path) -> None:
    """Create the folder, or raise `ArgumentError` where it cannot be written."""
    with _temporary(folder / "probe", "write into", folder):
        pass


@contextmanager
def _temporary(target: Path, what: str = "write", shown: Path | None = None) -> Iterator[Path]:
    """A new empty file beside the target, locked; it is removed afterwards unless renamed.

    Those that killed processes left for the same target are removed too.
    """
    stem, suffix = target.stem[:40], target.suffix
    left = re.compile(rf"\.{re.escape(stem)}-timonel-(\d+)-[0-9a-f]{{16}}{re.escape(suffix)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target.parent, left)
        path = target.with_name(f".{stem}-timonel-{os.getpid()}-{secrets.token_hex(8)}{suffix}")
        handle = _create(path)
    except (OSError, ValueError) as error:
        raise _cannot(what, shown or target, error) from error
    try:
        yield path
    finally:
        os.close(handle)
        _remove(path)


def _clear(folder: Path, left: re.Pattern[str]) -> None:
    """Remove the temporary files that killed processes left; `left` matches name and process."""
    with os.scandir(folder) as entries:
        old = [(entry.path, match) for entry in entries if (match := left.fullmatch(entry.name))]
    for name, match in old:
        _reap(Path(name), int(match[1]))


def _clear_names(stem: Path) -> None:
    """Remove temporary files and claims of killed processes for any of `names(stem)`."""
    left = re.compile(rf"\.{re.escape(stem.name[:40])}.*-timonel-(\d+)-[0-9a-f]{{16}}(?:\.\w+)?")
    with suppress(OSError):  # there is no folder yet
        _clear(stem.parent, left)
        with os.scandir(stem.parent) as entries:
            named = [Path(entry.path) for entry in entries if entry.name.startswith(stem.name)]
        for path in named:
            _taken(path)


def _create(path: Path, content: bytes = b"") -> int:
    """Create a new file under the umask; its open and locked handle."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)
    with _CREATING:
        handle = os.open(path, flags, 0o666)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        os.write(handle, content)
    except OSError:
        os.close(handle)
        _remove(path)
        raise
    if fcntl is None:  # an open file cannot be replaced there
        os.close(handle)
        return os.open(os.devnull, os.O_RDONLY)
    return handle


def _reap(path: Path, process: int, *, claim: bool = False) -> bool:
    """Remove the file of a process that ended, unless somebody holds its lock.

    `claim`: the file is a claim, and stays where a result has replaced it meanwhile.
    """
    if fcntl is None:
        return False
    try:
        with _CREATING:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                return False
            fresh = time.time() - facts.st_mtime < STALE
            if process != os.getpid() and fresh and _runs(process):
                return False
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if claim and CLAIM.fullmatch(os.read(handle, MOST_CLAIM)) is None:
                return False
            if os.path.samestat(facts, path.lstat()):  # nobody else did it meanwhile
                path.unlink()
            return True
        finally:
            os.close(handle)
    except OSError:
        return False


def _runs(process: int) -> bool:
    """Whether a process of this number runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ready(path: str | PathLike[str], *, overwrite: bool = False) -> Path:
    """`path`, checked that a file can be written there. Nothing at `path` is touched.

    Args:
        path: the target.
        overwrite: whether it may exist.

    Raises:
        ArgumentError: for a file that exists, unless `overwrite`; for a folder or device of that
            name; for a parent folder that cannot be created or written.
    """
    target = Path(path)
    writable(target.parent)
    try:
        mode = target.lstat().st_mode
        if not _taken(target):
            return target
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:
        raise _cannot("write", target, error) from error
    if target.is_dir():
        raise ArgumentError(
            f"{str(target)!r} is a folder; name a file, e.g. {str(target / 'result')!r}"
        )
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise ArgumentError(f"{str(target)!r} is no plain file; name another")
    if not overwrite:
        raise ArgumentError(
            f"{str(target)!r} exists: name another file, or replace it with --overwrite"
        )
    return target


def names(stem: Path) -> Iterator[Path]:
    """`stem`, then `stem-2`, `stem-3` and so on."""
    yield stem
    yield from (stem.with_name(f"{stem.name}-{number}") for number in count(2))


def short(name: str, most: int = 200) -> str:
    """The beginning of a name in at most `most` bytes; file systems take 255, endings included."""
    if len(name) * 4 <= most:
        return name
    return name.encode("utf-8", "surrogateescape")[:most].decode("utf-8", "ignore")


def beside(stem: Path, ending: str) -> Path:
    """`stem` with `ending` appended to its name, which may have dots."""
    return stem.with_name(stem.name + ending)


def free(stem: Path, *endings: str) -> Path:
    """The first of `names(stem)` that exists with none of the endings."""
    return next(one for one in names(stem) if not any(_taken(beside(one, end)) for end in endings))


def new_folder(stem: Path, *endings: str) -> Path:
    """Create a folder by the first of `names(stem)` that is free, with all endings too.

    Two processes never get the same. Temporary files that killed processes left in the others go.
    """
    _clear_names(stem)
    for one in names(stem):
        if one.is_dir() and not one.is_symlink():
            with suppress(OSError):
                _clear(one, LEFT)
        if any(_taken(beside(one, end)) for end in endings):
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
    """The first of `names(stem)` whose files with these endings are free, reserved by claims.

    Two processes never get the same. Claims that were not replaced are removed at the end.
    """
    _clear_names(stem)
    with ExitStack() as held:
        one = next(one for one in names(stem) if _take([beside(one, end) for end in endings], held))
        yield one


@contextmanager
def placed(path: str | PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """The path for the block to write: `path`, or the next free name unless `overwrite`."""
    target = Path(path)
    if overwrite:
        yield target
        return
    with claimed(target.with_suffix(""), target.suffix) as stem:
        yield beside(stem, target.suffix)


def plain(text: object) -> str:
    r"""Text whose control characters are escapes such as \x1b, so that no terminal obeys them."""
    return "".join(map(_harmless, str(text)))


def _harmless(c: str) -> str:
    if unicodedata.category(c) not in CONTROL or c in "\n\t\u200c\u200d":
        return c
    return c.encode("unicode_escape").decode()


def _taken(path: Path) -> bool:
    """Whether something is there; the claim of a process that ended is removed first."""
    if not os.path.lexists(path):
        return False
    owner = _claimant(path)
    return owner is None or not _reap(path, owner, claim=True) or os.path.lexists(path)


def _claimant(path: Path) -> int | None:
    """The process that claims a name, where the file there is a claim."""
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or not 0 < facts.st_size < MOST_CLAIM:
            return None
        claim = CLAIM.fullmatch(path.read_bytes())
    except (OSError, ValueError):
        return None
    return None if claim is None else int(claim[1])


def _take(paths: list[Path], held: ExitStack) -> bool:
    """Claim all of the paths until `held` is closed, or none of them where one is taken."""
    with ExitStack() as taken:
        for path in paths:
            if _taken(path):
                return False
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = _create(path, b"timonel: process %d is writing this file\n" % os.getpid())
            except FileExistsError:
                return False
            except OSError as error:
                raise _cannot("write", path, error) from error
            taken.callback(_give_up, path)
            taken.callback(os.close, handle)
        held.push(taken.pop_all())
    return True


def _give_up(path: Path) -> None:
    """Remove our claim, unless the file has replaced it."""
    if _claimant(path) == os.getpid():
        _remove(path)


def _cannot(what: str, path: Path, error: Exception) -> ArgumentError:
    reason = getattr(error, "strerror", None) or error
    return ArgumentError(f"cannot {what} {str(path)!r}: {reason}")


def writable_later(folder: Path) -> None:
    """Raise `ArgumentError` where the folder could not be written; create nothing."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        writable(folder)
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
