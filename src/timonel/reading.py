"""Files read within bounds: size, depth and count are checked before memory is taken.

Every file that timonel reads is opened here: plain files only, no pipes and no devices. Nothing in
them is executed or unpickled.
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
from typing import Any, BinaryIO

from .errors import ArgumentError
from .errors import path as checked

TEXT = 2**26  # bytes of a text file
DEPTH = 64  # lists and dictionaries within each other
MOST_ITEMS = 2_000_000  # values in one file
MOST_DIGITS = 40  # of a whole number


@contextmanager
def plain_file(path: str | PathLike[str], most: int, what: str = "the file") -> Iterator[BinaryIO]:
    """A plain file, opened for reading.

    Args:
        path: the file.
        most: how many bytes it may have.
        what: its name in messages.

    Raises:
        ArgumentError: for anything else.
    """
    checked("path", path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise _cannot(what, path, error) from error
    facts, reason = os.fstat(handle), ""
    if stat.S_ISDIR(facts.st_mode):
        reason = "Is a directory"
    elif not stat.S_ISREG(facts.st_mode):
        reason = "it is no plain file"
    elif facts.st_size > most:
        reason = f"it has {facts.st_size:,} bytes, more than {most:,}"
    if reason:
        os.close(handle)
        raise ArgumentError(f"cannot read {what} {str(path)!r}: {reason}")
    with os.fdopen(handle, "rb") as file:
        yield file


def content(path: str | PathLike[str], what: str = "the file", most: int = TEXT) -> bytes:
    """The bytes of a plain file; see `plain_file`."""
    with plain_file(path, most, what) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise _cannot(what, path, error) from error
    if len(data) > most:  # it grew
        raise ArgumentError(f"cannot read {what} {str(path)!r}: it has more than {most:,} bytes")
    return data


def text(path: str | PathLike[str], what: str = "the file", most: int = TEXT) -> str:
    """The text of a plain file in UTF-8; see `plain_file`."""
    try:
        return content(path, what, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"cannot read {what} {str(path)!r}: it is no text in UTF-8") from error


def parsed(text: Any, *, finite: bool = True, items: int = MOST_ITEMS, once: bool = True) -> Any:
    """The data of a text in JSON.

    Args:
        text: JSON, text or bytes.
        finite: whether NaN and Infinity are refused; 1e999 always is.
        items: how many values it may hold.
        once: whether a dictionary with the same key twice is refused; else the last one counts.

    Raises:
        ValueError: where it is no JSON, or exceeds a bound.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"a text is needed, not a {type(text).__name__}")
    if len(text) > TEXT:
        raise ValueError(f"it has {len(text):,} characters, more than {TEXT:,}")
    marks: Any = ",[{" if isinstance(text, str) else (b",", b"[", b"{")
    if sum(text.count(mark) for mark in marks) > items:  # before memory is taken for them
        raise ValueError(f"it holds more than {items:,} values")
    try:
        data = json.loads(
            text, parse_int=_whole, parse_float=_real, object_pairs_hook=_unique if once else None,
            parse_constant=_refused if finite else None,
        )  # fmt: skip
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH}") from None
    return bounded(data, items)


def bounded(value: Any, items: int = MOST_ITEMS) -> Any:
    """`value`. Raises `ValueError` where it is nested too deep or holds too many values."""
    level, count = [value], 0
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, (list, tuple)):
                inner.extend(one)
            elif isinstance(one, int) and one.bit_length() > 4 * MOST_DIGITS:
                raise ValueError("it has a whole number that is too large")
            if count + len(inner) > items:
                raise ValueError(f"it holds more than {items:,} values")
        if not inner:
            return value
        level, count = inner, count + len(inner)
    raise ValueError(f"it is nested deeper than {DEPTH}")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits is too large")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:MOST_DIGITS]} is too large")
    return number


def _refused(name: str) -> float:
    raise ValueError(f"the number {name} is not finite")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it names {name[:MOST_DIGITS]!r} twice")
    return data


def _cannot(what: str, path: Any, error: Exception) -> ArgumentError:
    reason = getattr(error, "strerror", None) or error
    return ArgumentError(f"cannot read {what} {str(path)!r}: {reason}")


def inside(folder: Path, path: Path) -> bool:
    """Whether a plain file lies in a folder, and not only by way of a link."""
    try:
        here = path.resolve().is_relative_to(folder.resolve())
        return here and path.is_file() and not path.is_symlink()
    except (OSError, RuntimeError):
        return False
