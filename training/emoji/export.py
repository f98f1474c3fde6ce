"""Write the trained parts as a diffusers pipeline folder with float16 safetensors and a card.

The folder is written beside the target and renamed into place.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTokenizer

from training.emoji.common import load_checkpoint, replacing, size, to_float
from training.emoji.data import STYLES, EmojiData, load
from training.emoji.text import build_encoder
from training.emoji.unet import SCHEDULER, Network, build_unet, scaled_latents

LOCAL_KEYS = ("_name_or_path", "is_local", "local_files_only")
CREDITS = {
    "Noto Emoji": "Google, Apache-2.0 / OFL-1.1, npm emoji-datasource-google 16.0.0",
    "Twemoji": "Twitter and contributors, CC-BY 4.0, npm emoji-datasource-twitter 16.0.0",
    "Fluent Emoji": "Microsoft, MIT, npm @lobehub/fluent-emoji-3d 1.1.0",
    "emojibase": "Miles Johnson, MIT, npm emojibase-data 17.0.0",
}


def build_pipeline(work: Path) -> tuple[StableDiffusionXLPipeline, dict[str, Any]]:
    """The pipeline with the averaged weights of the last checkpoint, and the checkpoint."""
    state = load_checkpoint(work / "unet.safetensors")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer_2")
    network = Network(build_encoder(tokenizer), build_unet())
    network.load_state_dict(state["average"])
    unused = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
    scheduler = EulerDiscreteScheduler.from_config(SCHEDULER | unused)
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=None,
        text_encoder_2=network.encoder,
        tokenizer=None,
        tokenizer_2=tokenizer,
        unet=network.unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    return pipeline, state


def fit_preview(data: EmojiData, work: Path) -> dict[str, Any]:
    """Least squares from scaled latents (4) and a bias to 16x16 RGB in 0..1."""
    latent, _ = scaled_latents(work, data)
    rgb = F.avg_pool2d(to_float(torch.from_numpy(data.pictures)), 4).add(1).div(2)
    inputs = latent.permute(0, 2, 3, 1).reshape(-1, 4).double()
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    target = rgb.permute(0, 2, 3, 1).reshape(-1, 3).double()
    solution: Tensor = torch.linalg.lstsq(inputs, target).solution
    error = (inputs @ solution).clamp(0, 1).sub(target).square().mean()
    rounded = [[round(v, 5) for v in row] for row in solution.T.tolist()]
    return {
        "weight": [row[:4] for row in rounded],
        "bias": [row[4] for row in rounded],
        "psnr": round(float(-10 * error.log10()), 2),
    }


def neutral_dtype(folder: Path) -> None:
    """Let the text encoder's config not force float16 on whoever loads it."""
    path = folder / "text_encoder_2/config.json"
    config = json.loads(path.read_text())
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")


def neutral_paths(folder: Path) -> None:
    """Take what tells of the machine on which a part was once loaded out of the configs."""
    for path in folder.rglob("*.json"):
        if path.name in ("vocab.json", "tokenizer.json"):
            continue
        content = json.loads(path.read_text())
        found = [content.pop(key) for key in LOCAL_KEYS if key in content]
        if found:
            path.write_text(json.dumps(content, indent=2) + "\n")


def card(data: EmojiData, work: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What a program should know about the model before it loads it."""
    evaluation = work / "evaluation.json"
    figures = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    return {
        "name": "emoji",
        "class": "StableDiffusionXLPipeline",
        "resolution": 64,
        "default_guidance": figures.get("best_guidance", 4.0),
        "default_steps": 25,
        "styles": list(STYLES),
        "concepts": data.names,
        "latent_rgb": fit_preview(data, work),
        "evaluation": figures,
        "trained_on": {
            "images": len(data.pictures),
            "samples_seen": state["seen"],
            "steps": state["step"],
            "hours": round(state["seconds"] / 3600, 2),
            "credits": CREDITS,
        },
    }


def write(work: Path, out: Path) -> None:
    data = load(work)
    pipeline, state = build_pipeline(work)
    with replacing(out) as part:
        pipeline.to(dtype=torch.float16).save_pretrained(part, safe_serialization=True)
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(work / "tokenizer_2" / name, part / "tokenizer_2" / name)
        neutral_dtype(part)
        neutral_paths(part)
        (part / "card.json").write_text(json.dumps(card(data, work, state), indent=1) + "\n")
    print(f"{out}: {size(out):.2f} MB, step {state['step']}, pictures {state['seen']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(args.work, args.out)


if __name__ == "__main__":
    main()
