"""The small pictures that a page holds; the full ones stay in files beside it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from .store import Outcome, Store

SMALL, SIDE, FRAME = 128, 320, 192  # pixels of the longer side: kept as it is up to; of a still; of a frame of a video
QUALITY = 80


def small(outcome: Outcome, store: Store) -> list[str]:
    """The picture as a data address, or those of a video's frames, so that several videos can be kept in step."""
    if outcome.id not in store.small:
        path = store.picture(outcome)
        store.small[outcome.id] = _frames(path) if outcome.frames else [_still(path)]
    return store.small[outcome.id]


def link(outcome: Outcome, store: Store) -> str:
    """Where the full picture is, from the page."""
    return store.picture(outcome).relative_to(store.root).as_posix()


def data(path: Path) -> str:
    """A file as a data address."""
    return _address(path.read_bytes(), path.suffix[1:])


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _still(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return data(path) if max(picture.size) <= SMALL else _webp(picture, SIDE)


def _frames(path: Path) -> list[str]:
    from PIL import Image, ImageSequence

    with Image.open(path) as video:
        return [_webp(frame, FRAME) for frame in ImageSequence.Iterator(video)]


def _webp(picture: Any, side: int) -> str:
    from PIL import Image

    made = picture.convert("RGB")
    made.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    made.save(buffer, format="WEBP", quality=QUALITY)
    return _address(buffer.getvalue(), "webp")
