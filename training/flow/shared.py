"""The pipeline from its own folder and from the parts that it shares with the emoji model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from timonel.zoo.shared import Shared, taken

# SD3 adds shift_factor, which the emoji model's autoencoder leaves unset; 0 keeps its latents.
COMPONENTS = {
    "vae": Shared(part="vae", config={"shift_factor": 0.0}),
    "text_encoder": Shared(part="text_encoder_2"),
    "text_encoder_2": Shared(part="text_encoder_2"),
    "tokenizer": Shared(part="tokenizer_2"),
    "tokenizer_2": Shared(part="tokenizer_2"),
}
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


def load_pipeline(folder: Path, base: Path) -> StableDiffusion3Pipeline:
    """The exported model, wherever it lies, in float32; `base` is the folder of the emoji model."""
    named = json.loads((folder / "card.json").read_text("utf-8"))["components"]
    components = taken(
        base, {name: Shared(**value) for name, value in named.items()}, torch.float32
    )
    return StableDiffusion3Pipeline.from_pretrained(
        folder, dtype=torch.float32, **NO_T5, **components
    )
