"""The small trained models that ship with the package, each a folder in diffusers' own format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ModelError, UnknownName
from ..process import Process, from_config

if TYPE_CHECKING:
    from ..hooks.preview import LatentRGB

HERE = Path(__file__).parent
MODELS = {"emoji": "text to emoji, 64x64 (StableDiffusionXLPipeline)"}


class Card(BaseModel):
    """What a shipped model says of itself in `card.json`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    concepts: list[str]
    styles: list[str]
    default_guidance: float
    default_steps: int
    resolution: int

    def latent_rgb(self) -> LatentRGB | None:
        """The linear latents-to-RGB map fitted to this model's autoencoder."""
        from ..hooks.preview import LatentRGB

        fitted = (self.model_extra or {}).get("latent_rgb")
        return None if fitted is None else LatentRGB.from_card(fitted)


def folder(name: str) -> Path:
    """The model's folder. Raises `UnknownName`, or `ModelError` where its files are missing."""
    if name not in MODELS:
        raise UnknownName("shipped model", name, MODELS)
    path = HERE / name
    if not (path / "model_index.json").is_file():
        raise ModelError(f"the files of the shipped model {name!r} are missing; install timonel again")
    return path


def card(name: str) -> Card:
    """What the model says of itself."""
    path = folder(name) / "card.json"
    try:
        return Card.model_validate(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ModelError(f"the card of the shipped model {name!r} cannot be read: {error}") from error


def process_of(model: str) -> Process:
    """The noise process of a shipped model or of a folder in diffusers' format, without loading its weights."""
    root = folder(model) if model in MODELS else Path(model)
    path = root / "scheduler" / "scheduler_config.json"
    try:
        return from_config(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read the scheduler configuration of {model!r} at {str(path)!r}: {error}; "
            f"name a shipped model ({', '.join(MODELS)}) or a folder in diffusers' format"
        ) from error
