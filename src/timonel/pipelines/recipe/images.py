"""Pictures that carry their recipe, which any `save` to a PNG writes, with A1111's text beside it.

A picture that was changed since (resized, converted, …) is another one, and PIL saves it as usual.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .data import INFOTEXT, KEY


class Picture(Image.Image):
    """A picture of PIL whose `info` has a recipe, which `save` writes into a PNG."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As `PIL.Image.Image.save`; a PNG gets the recipe, unless the caller chooses `pnginfo`."""
        if "pnginfo" not in params and _png(fp, format) and KEY in self.info:
            params["pnginfo"] = chunks(self.info)
        super().save(fp, format, **params)

    def __eq__(self, other: object) -> bool:
        """Whether the pixels are the same, for a plain picture of PIL too."""
        if not isinstance(other, Image.Image):
            return NotImplemented
        return (self.mode, self.size, self.tobytes()) == (other.mode, other.size, other.tobytes())

    __hash__ = None  # type: ignore[assignment]


def sign(image: Any, texts: Mapping[str, str]) -> bool:
    """Put texts into a picture for its `save`; False where it is no plain picture of PIL.

    Args:
        image: the picture; its class becomes `Picture`.
        texts: by the names of the chunks, see `RecipeData.texts`.
    """
    if type(image) is not Image.Image and not isinstance(image, Picture):
        return False
    image.info.update(texts)
    image.__class__ = Picture
    return True


def chunks(info: Mapping[Any, Any]) -> PngInfo:
    """The text chunks of a PNG from a picture's `info`."""
    texts = PngInfo()
    if KEY in info:
        texts.add_itxt(KEY, info[KEY])
    if INFOTEXT in info:
        texts.add_text(INFOTEXT, info[INFOTEXT])
    return texts


def _png(fp: Any, format: str | None) -> bool:
    """Whether PIL writes a PNG."""
    if format:
        return format.upper() == "PNG"
    path = fp if isinstance(fp, (str, bytes, os.PathLike)) else getattr(fp, "name", "")
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    return Path(os.fsdecode(path)).suffix.lower() in (".png", ".apng")
