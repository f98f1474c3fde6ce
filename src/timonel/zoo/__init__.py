"""The small trained models that ship with the package.

Each is a folder: a pipeline in diffusers' own format, or, for a model made from another one, its scheduler's
configuration and a LoRA on the network of its base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ModelError, TimonelError, UnknownName
from ..process import Process, from_config
from ..sampler import DEFAULT
from .lora import LORA, merge

if TYPE_CHECKING:
    from ..hooks.preview import LatentRGB

__all__ = ["HERE", "LORA", "MODELS", "Card", "card", "finish", "folder", "process_of", "whole"]

HERE = Path(__file__).parent
MODELS = {
    "emoji": "text to emoji, 64x64 (StableDiffusionXLPipeline)",
    "emoji-zsnr": "emoji as a v model with zero terminal SNR, which paints plain black and white too",
    "emoji-video": "a picture to 8 moving frames, 64x64 (StableVideoDiffusionPipeline)",
}


class Card(BaseModel):
    """What a shipped model says of itself in `card.json`; what it leaves out is as in its base's card."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    base: str | None = None
    concepts: list[str]
    styles: list[str]
    default_guidance: float
    default_steps: int
    default_sampler: str = DEFAULT
    resolution: int

    def latent_rgb(self) -> LatentRGB | None:
        """The linear latents-to-RGB map fitted to this model's autoencoder."""
        from ..hooks.preview import LatentRGB

        fitted = (self.model_extra or {}).get("latent_rgb")
        return None if fitted is None else LatentRGB.from_card(fitted)


def folder(name: str) -> Path:
    """The model's own folder. Raises `UnknownName`, or `ModelError` where its files are missing."""
    if name not in MODELS:
        raise UnknownName("shipped model", name, MODELS)
    path = HERE / name
    if not any((path / file).is_file() for file in ("model_index.json", LORA)):
        raise ModelError(f"the files of the shipped model {name!r} are missing; install timonel again")
    return path


def whole(name: str) -> Path:
    """The folder of the whole pipeline to load: the model's own, or its base's, which `finish` makes this model."""
    return folder(card(name).base or name)


def finish(pipe: Any, name: str) -> Any:
    """The pipeline loaded from `whole(name)`, with this model's LoRA merged in and its scheduler in place.

    Raises `ModelError` for a LoRA that does not fit the base.
    """
    if card(name).base is None:
        return pipe
    import diffusers

    merge(pipe.unet, folder(name) / LORA)
    config = _scheduler_config(folder(name), name)
    pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    return pipe


def card(name: str) -> Card:
    """What the model says of itself."""
    try:
        return Card.model_validate(_card(name))
    except TimonelError:
        raise
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise ModelError(f"the card of the shipped model {name!r} cannot be read: {error}") from error


def _card(name: str) -> dict[str, Any]:
    own: dict[str, Any] = json.loads((folder(name) / "card.json").read_text("utf-8"))
    shared = ("concepts", "styles", "resolution", "latent_rgb")
    base = {key: value for key, value in _card(own["base"]).items() if key in shared} if own.get("base") else {}
    return {**base, **own}


def process_of(model: str) -> Process:
    """The noise process of a shipped model or of a folder in diffusers' format, without loading its weights."""
    return from_config(_scheduler_config(folder(model) if model in MODELS else Path(model), model))


def _scheduler_config(root: Path, model: str) -> dict[str, Any]:
    path = root / "scheduler" / "scheduler_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return config
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read the scheduler configuration of {model!r} at {str(path)!r}: {error}; "
            f"name a shipped model ({', '.join(MODELS)}) or a folder in diffusers' format"
        ) from error
