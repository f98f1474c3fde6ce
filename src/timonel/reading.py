"""Files from anywhere, read within bounds: how large a file, a text or a picture is, is looked at
before it is used.

Every file that timonel reads is opened here: only plain files, no pipe that never ends and no
device. Nothing in them is run or unpickled.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import ArgumentError
from .errors import path as checked

if TYPE_CHECKING:
    pass

TEXT = 2**26  # bytes of a text file
DEPTH = 64  # lists and dictionaries within each other
ITEMS = 2_000_000  # values in one file
DIGITS = 40  # of a whole number


@contextmanager
def plain_file(path: str | PathLike[str], most: int, what: str = "the file") -> Iterator[BinaryIO]:
    """A plain file of at most `most` bytes, opened. Raises `ArgumentError` for anything else."""
    checked("path", path)
    try:
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except (OSError, ValueError) as error:
        raise _cannot(what, path, error) from error
    found, reason = os.fstat(handle), ""
    if stat.S_ISDIR(found.st_mode):
        reason = "Is a directory"
    elif not stat.S_ISREG(found.st_mode):
        reason = "it is no plain file"
    elif found.st_size > most:
        reason = f"it has {found.st_size:,} bytes, more than {most:,}"
    if reason:
        os.close(handle)
        raise ArgumentError(f"cannot read {what} {str(path)!r}: {reason}")
    with os.fdopen(handle, "rb") as file:
        yield file


def content(path: str | PathLike[str], what: str = "the file", most: int = TEXT) -> bytes:
    """The bytes of a plain file. Raises `ArgumentError` where it cannot be read or has more than
    `most`.
    """
    with plain_file(path, most, what) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise _cannot(what, path, error) from error
    if len(data) > most:  # it grew
        raise ArgumentError(f"cannot read {what} {str(path)!r}: it has more than {most:,} bytes")
    return data


def text(path: str | PathLike[str], what: str = "the file", most: int = TEXT) -> str:
    """The text of a plain file in UTF-8. Raises `ArgumentError` where it cannot be read."""
    try:
        return content(path, what, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"cannot read {what} {str(path)!r}: it is no text in UTF-8") from error


def parsed(text: Any, *, finite: bool = True, items: int = ITEMS, once: bool = True) -> Any:
    """What a text in JSON says. Raises `ValueError` where it is none, or is beyond the bounds of
    this module.

    `finite`: whether NaN and Infinity are refused. A number that is too large for its type, such as
    1e999, always is. `items`: how many values it may hold. `once`: whether a dictionary with the
    same key twice is refused; otherwise the last one counts, as everywhere.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"a text is needed, not a {type(text).__name__}")
    if len(text) > TEXT:
        raise ValueError(f"it has {len(text):,} characters, more than {TEXT:,}")
    counts = [
        text.count(mark) if isinstance(text, str) else text.count(mark.encode()) for mark in ",[{"
    ]
    if sum(counts) > items:  # before memory is taken for them
        raise ValueError(f"it holds more than {items:,} values")
    try:
        made = json.loads(
            text, parse_int=_whole, parse_float=_real, object_pairs_hook=_unique if once else None,
            parse_constant=_refused if finite else None,
        )  # fmt: skip
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH}") from None
    return bounded(made, items)


def bounded(value: Any, items: int = ITEMS) -> Any:
    """`value`, or `ValueError` where it is nested deeper or holds more than what a file of ours may
    hold.
    """
    level, count = [value], 0
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, (list, tuple)):
                inner.extend(one)
            elif isinstance(one, int) and one.bit_length() > 4 * DIGITS:
                raise ValueError("it has a whole number that is too large")
            if count + len(inner) > items:
                raise ValueError(f"it holds more than {items:,} values")
        if not inner:
            return value
        level, count = inner, count + len(inner)
    raise ValueError(f"it is nested deeper than {DEPTH}")


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits is too large")
    return int(digits)


def _real(digits: str) -> float:
    made = float(digits)
    if not math.isfinite(made):
        raise ValueError(f"the number {digits[:DIGITS]} is too large")
    return made


def _refused(name: str) -> float:
    raise ValueError(f"the number {name} is not finite")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(
            name for name, count in Counter(name for name, _ in pairs).items() if count > 1
        )
        raise ValueError(f"it names {twice[:DIGITS]!r} twice")
    return made


def _cannot(what: str, path: Any, error: Exception) -> ArgumentError:
    reason = getattr(error, "strerror", None) or error
    return ArgumentError(f"cannot read {what} {str(path)!r}: {reason}")


def inside(folder: Path, path: Path) -> bool:
    """Whether a plain file lies in a folder, and not only by way of a link."""
    try:
        return (
            path.is_file()
            and path.resolve().is_relative_to(folder.resolve())
            and not path.is_symlink()
        )
    except (OSError, RuntimeError):
        return False
