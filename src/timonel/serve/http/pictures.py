"""Pictures as the bytes and the text of files."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    """A picture as the bytes of a file; a PNG has its recipe."""
    buffer = io.BytesIO()
    picture = image if kind == "png" else image.convert("RGB")
    picture.save(buffer, FORMATS[kind])
    return buffer.getvalue()


def base64_of(image: Image.Image, kind: str = "png") -> str:
    """A picture as the text of a file."""
    return base64.b64encode(encoded(image, kind)).decode()
