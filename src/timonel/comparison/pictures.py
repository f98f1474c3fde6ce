"""The small pictures that a page holds; the full ones stay in files beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import picture_files, reading

if TYPE_CHECKING:
    from .store import Outcome, Store

# pixels of the longer side: of a picture that is kept as it is, of others, of a video's frame, and
# of a preview
SMALL, SIDE, FRAME, SPRITE = 128, 320, 192, 96
# at most, so that the page of 60 runs is below 5 MB
STILL_BYTES, FRAME_BYTES, STORY_BYTES = 32_000, 6_000, 24_000
TRIES = ((1.0, 80), (0.8, 70), (0.6, 55), (0.4, 40), (0.25, 25))  # share of the side, and quality


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

    return _address(_within(most, draw)[0], "webp")


def sprite(pictures: Sequence[Any]) -> tuple[bytes, tuple[int, int]]:
    """PIL pictures of equal size side by side: the WebP, and width and height of one in it."""
    from PIL import Image

    longer = max(pictures[0].size)

    def size(share: float) -> tuple[int, int]:
        width, height = (
            max(1, round(n * min(1.0, SPRITE * share / longer))) for n in pictures[0].size
        )
        return width, height

    def draw(share: float) -> Any:
        width, height = size(share)
        sheet = Image.new("RGB", (width * len(pictures), height))
        for k, picture in enumerate(pictures):
            sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (k * width, 0))
        return sheet

    content, share = _within(STORY_BYTES, draw)
    return content, size(share)


def _within(most: int, draw: Callable[[float], Any]) -> tuple[bytes, float]:
    """A picture as WebP of at most `most` bytes or the smallest of `TRIES`, and its share there."""
    content, share = b"", 1.0
    for share, quality in TRIES:
        buffer, picture = io.BytesIO(), draw(share)
        if max(picture.size) <= SMALL and share == 1:
            quality = 92
        picture.save(buffer, format="WEBP", quality=quality)
        content = buffer.getvalue()
        if len(content) <= most:
            break
    return content, share
