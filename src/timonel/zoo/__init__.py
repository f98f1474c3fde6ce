"""The small trained models that ship with the package.

Each is a folder: a pipeline in diffusers' format, which may share parts with its base; or a
scheduler config and a LoRA on the network of its base.
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
    from ..hooks.rgb import LatentRGB

__all__ = [
    "HERE", "LORA", "MODELS", "Card", "card", "finish", "fitted", "folder", "parts", "process_of",
    "tuned", "whole",
]  # fmt: skip

HERE = Path(__file__).parent
TUNED = "tuned"  # folder of fitted samplers in that of a model; a file per number of steps
#: fields of a card that a derived model has from its base
INHERITED = ("concepts", "styles", "resolution", "latent_rgb")
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
    """The `card.json` of a shipped model; a derived model inherits from the card of its base.

    Args:
        name: of the model.
        base: the model it is derived from; None: none.
        components: the parts of its pipeline that are those of its base.
        concepts: what it was trained on.
        styles: words for the style of its concepts.
        default_guidance: guidance scale.
        default_steps: number of steps.
        default_sampler: name of the sampler.
        resolution: pixels of a side.
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
        """The linear map from latents to RGB of its autoencoder; None: none was fitted."""
        from ..hooks.rgb import LatentRGB

        fitted = (self.model_extra or {}).get("latent_rgb")
        return None if fitted is None else LatentRGB.from_card(fitted)


def folder(name: str) -> Path:
    """The folder of a model. Raises `UnknownName`, or `ModelError` where files are missing."""
    if name not in MODELS:
        raise UnknownName("shipped model", name, MODELS)
    path = HERE / name
    if not any((path / file).is_file() for file in ("model_index.json", LORA)):
        raise ModelError(
            f"the files of the shipped model {name!r} are missing; install timonel again"
        )
    return path


def whole(name: str) -> Path:
    """The folder of the pipeline to load: that of the model, or of its base; see `finish`."""
    path = folder(name)
    return path if (path / "model_index.json").is_file() else folder(card(name).base or name)


def parts(name: str, dtype: torch.dtype | Mapping[str, torch.dtype]) -> dict[str, Any]:
    """The components of a model's pipeline that are those of its base, by name; see `taken`."""
    known = card(name)
    return taken(folder(known.base), known.components, dtype) if known.base else {}


def finish(pipe: Any, name: str) -> Any:
    """The pipeline of `whole(name)` with the LoRA and the scheduler of the model.

    Args:
        pipe: changed in place where the model has a LoRA.
        name: of the model.

    Returns:
        `pipe`.

    Raises:
        ModelError: for a LoRA that does not fit the base.
    """
    if not (folder(name) / LORA).is_file():
        return pipe
    import diffusers

    merge(pipe.unet, folder(name) / LORA)
    config = _scheduler_config(folder(name), name)
    pipe.scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    return pipe


def card(name: str) -> Card:
    """The card of a model. Raises `ModelError` where it cannot be read."""
    try:
        return Card.model_validate(_card(name))
    except TimonelError:
        raise
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise ModelError(
            f"the card of the shipped model {name!r} cannot be read: {error}"
        ) from error


def _card(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder(name) / "card.json").read_text("utf-8"))
    if not data.get("base"):
        return data
    base = _card(data["base"])
    return {key: base[key] for key in INHERITED if key in base} | data


def tuned(name: str, steps: int, guidance: Guidance | None) -> Sampler | None:
    """The shipped sampler that was fitted to a model for this guidance.

    Args:
        name: of the model.
        steps: number of steps.
        guidance: with its scale; None: no guidance.

    Returns:
        None where none was fitted for so many steps and this guidance.
    """
    sampler = fitted(name, steps)
    if sampler is None or not sampler.fitted or not sampler.fitted.guided_alike(guidance):
        return None
    return sampler


def fitted(name: str, steps: int) -> Sampler | None:
    """The shipped sampler that was fitted to a model for so many steps, whatever the guidance."""
    path = folder(name) / TUNED / f"{steps}.json"
    if not path.is_file():
        return None
    from ..core.fitted.sampler_file import Fitted

    return Sampler(fitted=replace(Fitted.read(path), name=f"{name}-{steps}"))


def process_of(model: str) -> Process:
    """The noise process of a shipped model or a folder of diffusers, without loading weights."""
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
