"""The small pictures that a page holds; the full ones stay in files beside it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from .. import picture_files, reading
from .store import Outcome, Store
from .webp import SMALL, within

SIDE, FRAME = 320, 192  # pixels of the longer side: of a picture, and of a video's frame
# at most, so that the page of 60 runs is below 5 MB
STILL_BYTES, FRAME_BYTES = 32_000, 6_000


def small(outcome: Outcome, store: Store) -> list[str]:
    """A run's picture as a data address; of a video its frames, so that several play in step."""
    if outcome.id not in store.small:
        path = store.picture(outcome)
        store.small[outcome.id] = _frames(path) if outcome.frames else [_still(path)]
    return store.small[outcome.id]


def link(outcome: Outcome, store: Store) -> str:
    """Where the full picture is, from the page."""
    return store.picture(outcome).relative_to(store.root).as_posix()


def embedded(path: Path) -> str:
    """A file as a data address."""
    return _address(reading.content(path, "the picture"), path.suffix[1:])


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _still(path: Path) -> str:
    picture = picture_files.picture(path)
    return embedded(path) if max(picture.size) <= SMALL else _webp(picture, SIDE, STILL_BYTES)


def _frames(path: Path) -> list[str]:
    return picture_files.frames(path, lambda frame: _webp(frame, FRAME, FRAME_BYTES))


def _webp(picture: Any, side: int, most: int) -> str:
    from PIL import Image

    whole = picture.convert("RGB")

    def draw(share: float) -> Any:
        smaller = whole.copy()
        smaller.thumbnail((round(side * share),) * 2, Image.Resampling.LANCZOS)
        return smaller

    return _address(within(most, draw)[0], "webp")
