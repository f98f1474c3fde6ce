"""Which words of a prompt a shipped model was trained on, and the nearest of its concepts."""

from __future__ import annotations

import difflib
import re
import warnings
from typing import TYPE_CHECKING, Any

from ..errors import UnknownPrompt

if TYPE_CHECKING:
    from . import Card

WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
#: words that say nothing of what is in the picture
FILLERS = frozenset((
    "a", "an", "and", "at", "by", "emoji", "for", "from", "her", "his", "icon", "image", "in", "is",
    "it", "its", "of", "on", "one", "or", "our", "over", "picture", "some", "style", "that", "the",
    "their", "this", "to", "two", "under", "with", "your",
))  # fmt: skip
_WARNED: set[tuple[str, str]] = set()


def unknown(card: Card, prompt: str) -> list[str]:
    """The words of a prompt that the model was not trained on, without fillers."""
    known = _known(card)
    words = [word for word in WORD.findall(prompt.lower()) if word not in FILLERS or word in known]
    new = [
        word
        for word in words
        if not known & {word, word.removesuffix("s"), word.removesuffix("es"), f"{word}s"}
    ]
    return new or ([] if words else [prompt.strip()])


def nearest(card: Card, prompt: str) -> list[str]:
    """Up to three concepts that share the most words with the prompt, exactly or nearly."""
    known = _known(card)
    words = [word for word in WORD.findall(prompt.lower()) if word not in FILLERS]
    near: set[str] = set()
    for word in words:
        near.update(difflib.get_close_matches(word, known, n=3, cutoff=0.82))
    shared = {concept: len(near & set(WORD.findall(concept))) for concept in card.concepts}
    most = max(shared.values())
    text = " ".join(words)
    if not most:
        return difflib.get_close_matches(text, card.concepts, n=3, cutoff=0.7)

    def distance(concept: str) -> float:
        return -difflib.SequenceMatcher(None, text, concept).ratio()

    return sorted((c for c, count in shared.items() if count == most), key=distance)[:3]


def warn(card: Card, prompts: Any, stacklevel: int = 2) -> None:
    """Warn with `UnknownPrompt`, once for each prompt with an unknown word.

    Args:
        card: of the model.
        prompts: one, or a list; anything else is passed over.
        stacklevel: as in `warnings.warn`.
    """
    if isinstance(prompts, str):
        prompts = [prompts]
    for prompt in prompts if isinstance(prompts, (list, tuple)) else ():
        if not isinstance(prompt, str) or not prompt.strip() or (card.name, prompt) in _WARNED:
            continue
        new = unknown(card, prompt)
        if not new:
            continue
        _WARNED.add((card.name, prompt))
        near = nearest(card, prompt)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        warnings.warn(
            f"{card.name!r} does not know {', '.join(map(repr, new))}, so the picture may be of"
            f" anything: {hint}it knows {len(card.concepts)} things such as {card.concepts[0]!r},"
            " see `timonel models --concepts`",
            UnknownPrompt,
            stacklevel=stacklevel + 1,
        )


def _known(card: Card) -> set[str]:
    return {word for text in (*card.concepts, *card.styles) for word in WORD.findall(text.lower())}
