"""The small trained models that ship with the package.

Each is a folder: a pipeline in diffusers' own format, which may share parts with its base, or, for
a model made from another one, its scheduler's configuration and a LoRA on the network of its base.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from .. import reading
from ..core.process import Process, from_config
from ..core.sampler import DEFAULT, Sampler
from ..errors import ModelError, TimonelError, UnknownName
from .lora import LORA, merge
from .shared import Shared, taken

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..core.guidance import Guidance
    from ..hooks.preview import LatentRGB

__all__ = [
    "HERE",
    "LORA",
    "MODELS",
    "Card",
    "card",
    "finish",
    "fitted",
    "folder",
    "parts",
    "process_of",
    "tuned",
    "whole",
]

HERE = Path(__file__).parent
TUNED = "tuned"  # a model's folder of fitted samplers, by steps
MODELS = {
    "emoji": "text to emoji, 64x64 (StableDiffusionXLPipeline)",
    "emoji-flow": "text to emoji by flow matching, 64x64 (StableDiffusion3Pipeline)",
    "emoji-zsnr": (
        "emoji as a v model with zero terminal SNR, which paints plain black and white too"
    ),
    "emoji-lcm": "emoji in two to four steps, for the samplers lcm and tcd",
    "emoji-video": "a picture to 8 moving frames, 64x64 (StableVideoDiffusionPipeline)",
}


class Card(BaseModel):
    """What a shipped model says of itself in `card.json`; what it leaves out is as in its base's
    card.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    base: str | None = None
    components: dict[str, Shared] = {}
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
        raise ModelError(
            f"the files of the shipped model {name!r} are missing; install timonel again"
        )
    return path


def whole(name: str) -> Path:
    """The folder of the pipeline to load: the model's own, or its base's, which `finish` makes this
    model.
    """
    own = folder(name)
    return own if (own / "model_index.json").is_file() else folder(card(name).base or name)


def parts(name: str, dtype: torch.dtype | Mapping[str, torch.dtype]) -> dict[str, Any]:
    """The parts that the pipeline in this model's folder takes from its base, by name; see `taken`."""
    made = card(name)
    return taken(folder(made.base), made.components, dtype) if made.base else {}


def finish(pipe: Any, name: str) -> Any:
    """The pipeline loaded from `whole(name)`, with this model's LoRA, if it is one, merged in and
    its scheduler.

    Raises `ModelError` for a LoRA that does not fit the base.
    """
    if not (folder(name) / LORA).is_file():
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
        raise ModelError(
            f"the card of the shipped model {name!r} cannot be read: {error}"
        ) from error


def _card(name: str) -> dict[str, Any]:
    own: dict[str, Any] = json.loads((folder(name) / "card.json").read_text("utf-8"))
    shared = ("concepts", "styles", "resolution", "latent_rgb")
    base = (
        {key: value for key, value in _card(own["base"]).items() if key in shared}
        if own.get("base")
        else {}
    )
    return {**base, **own}


def tuned(name: str, steps: int, guidance: Guidance | None) -> Sampler | None:
    """The shipped sampler that was fitted to this model for so many steps under this guidance, or
    None.

    `guidance`: with its scale, None for none; where another scale or interval was fitted, there is
    none for it.
    """
    found = fitted(name, steps)
    return (
        found
        if found is not None and found.fitted and found.fitted.guided_alike(guidance)
        else None
    )


def fitted(name: str, steps: int) -> Sampler | None:
    """The shipped sampler that was fitted to this model for so many steps, under whatever guidance,
    or None.
    """
    path = folder(name) / TUNED / f"{steps}.json"
    if not path.is_file():
        return None
    from ..core.fitted.sampler_file import Fitted

    return Sampler(fitted=replace(Fitted.read(path), name=f"{name}-{steps}"))


def process_of(model: str) -> Process:
    """The noise process of a shipped model or of a folder in diffusers' format, without loading its
    weights.
    """
    return from_config(_scheduler_config(folder(model) if model in MODELS else Path(model), model))


def _scheduler_config(root: Path, model: str) -> dict[str, Any]:
    path = root / "scheduler" / "scheduler_config.json"
    try:
        config: dict[str, Any] = reading.parsed(reading.text(path))
        return config
    except ValueError as error:
        raise ModelError(
            f"cannot read the scheduler configuration of {model!r} at {str(path)!r}: {error}; "
            f"name a shipped model ({', '.join(MODELS)}) or a folder in diffusers' format"
        ) from error
