"""Write the trained parts as a diffusers pipeline folder with float16 safetensors and a card.

The folder is written beside the target and renamed into place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
from transformers import CLIPImageProcessor

from training.emoji import export as emoji
from training.emoji.common import load_checkpoint, replacing, size
from training.video.clips import FPS, FRAMES, KINDS
from training.video.decoder import built
from training.video.network import SCHEDULER, Network, build_encoder, build_unet


def build_pipeline(work: Path, model: Path) -> tuple[StableVideoDiffusionPipeline, dict[str, Any]]:
    """The pipeline with the averaged weights of the last checkpoint, and the checkpoint."""
    state = load_checkpoint(work / "video.safetensors")
    network = Network(build_encoder(), build_unet())
    network.load_state_dict(state["average"])
    network.eval()
    half = [0.5, 0.5, 0.5]
    pipeline = StableVideoDiffusionPipeline(
        vae=built(work, model),
        image_encoder=network.encoder,
        unet=network.unet,
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULER),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 224},
            crop_size={"height": 224, "width": 224},
            image_mean=half,
            image_std=half,
        ),
    )
    return pipeline, state


def neutral_classes(folder: Path) -> None:
    """Name the image processor by its usual class, whatever wrote it, and force no dtype."""
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index.write_text(json.dumps(content, indent=2) + "\n")
    processor = folder / "feature_extractor/preprocessor_config.json"
    content = json.loads(processor.read_text())
    content["image_processor_type"] = "CLIPImageProcessor"
    processor.write_text(json.dumps(content, indent=2) + "\n")
    encoder = folder / "image_encoder/config.json"
    content = json.loads(encoder.read_text())
    content |= {key: "float32" for key in ("dtype", "torch_dtype") if key in content}
    encoder.write_text(json.dumps(content, indent=2) + "\n")


def card(work: Path, model: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What a program should know about the model before it loads it."""
    evaluation = work / "evaluation.json"
    figures = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    base = json.loads((model / "card.json").read_text())
    return {
        "name": "emoji-video",
        "class": "StableVideoDiffusionPipeline",
        "resolution": 64,
        "frames": FRAMES,
        "fps": FPS,
        "default_guidance": figures.get("guidance", 1.0),
        "default_steps": 12,
        "motion_buckets": [1, 255],
        "motions": list(KINDS),
        "styles": base["styles"],
        "concepts": base["concepts"],
        "latent_rgb": base["latent_rgb"],
        "evaluation": figures,
        "trained_on": {
            "images": base["trained_on"]["images"],
            "clips_seen": state["seen"],
            "steps": state["step"],
            "hours": round(state["seconds"] / 3600, 2),
            "credits": emoji.CREDITS,
        },
    }


def write(work: Path, model: Path, out: Path) -> None:
    pipeline, state = build_pipeline(work, model)
    with replacing(out) as part:
        pipeline.to(dtype=torch.float16).save_pretrained(part, safe_serialization=True)
        neutral_classes(part)
        emoji.neutral_paths(part)
        (part / "card.json").write_text(json.dumps(card(work, model, state), indent=1) + "\n")
    print(f"{out}: {size(out):.2f} MB, step {state['step']}, clips {state['seen']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the shipped emoji model")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(args.work, args.model, args.out)


if __name__ == "__main__":
    main()
