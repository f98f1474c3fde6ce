"""Pictures as WebP of few bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

# pixels of the longer side: of a picture that is kept as it is, and of a preview
SMALL, SPRITE = 128, 96
SPRITE_BYTES = 24_000  # at most
TRIES = ((1.0, 80), (0.8, 70), (0.6, 55), (0.4, 40), (0.25, 25))  # share of the side, and quality


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

    content, share = within(SPRITE_BYTES, draw)
    return content, size(share)


def within(most: int, draw: Callable[[float], Any]) -> tuple[bytes, float]:
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
