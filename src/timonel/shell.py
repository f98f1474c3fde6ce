"""Commands to be copied into a shell."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable

from .files import CONTROL

ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}


def command(words: Iterable[str]) -> str:
    """The words as a line that bash and zsh read as these words, with no control characters.

    A word with a line break or a control character is written as `$'…'`.
    """
    return " ".join(map(_word, words))


def placed(before: Iterable[str], argument: str, options: Iterable[str]) -> list[str]:
    """The words of a command; an argument that looks like an option stands last, behind `--`."""
    if argument.startswith("-"):
        return [*before, *options, "--", argument]
    return [*before, argument, *options]


def _word(word: str) -> str:
    if not any(unicodedata.category(c) in CONTROL for c in word):
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    if character in ESCAPES or unicodedata.category(character) not in CONTROL:
        return ESCAPES.get(character, character)
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogatepass"))
