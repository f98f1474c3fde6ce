"""What the commands print: lines for a person, or one JSON document for a program."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from ..files import CONTROL, plain

Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on standard output, everything else on standard error.",
    ),
]

#: what the command in progress has written, to be named when it is interrupted
KEPT: list[Path] = []


def say(text: object) -> None:
    """Print lines on standard output, without control characters."""
    print(plain(text))


def error(text: object) -> None:
    """As `say`, on standard error."""
    print(plain(text), file=sys.stderr)


def kept(*paths: Path) -> None:
    """Note files that stay when the command is interrupted."""
    KEPT.extend(paths)


@contextmanager
def reporting(as_json: bool) -> Iterator[dict[str, Any]]:
    """A command's block, with a dict for what it reports.

    Args:
        as_json: print the dict at the end, and what the block prints on standard error.
    """
    report: dict[str, Any] = {}
    if not as_json:
        yield report
        return
    with redirect_stdout(sys.stderr):
        yield report
    document(report)


def document(data: Any) -> None:
    """Print data as JSON; numbers that JSON does not have become null."""
    text = json.dumps(_data(data), indent=1, ensure_ascii=False, allow_nan=False)
    print("".join(map(_escaped, text)))


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns below their heads."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def interactive() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirmed(question: str) -> bool:
    """The answer to a question on the terminal; the default is no."""
    return typer.confirm(plain(question), default=False, err=True)


def _escaped(character: str) -> str:
    """A character as JSON writes it, control characters by their number."""
    if character == "\n" or unicodedata.category(character) not in CONTROL:
        return character
    return json.dumps(character)[1:-1] if ord(character) != 0x7F else "\\u007f"


def _data(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _data(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_data(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
