"""Write the trained transformer as a pipeline folder that shares its other parts with the emoji
model.

The folder holds the transformer (float16 safetensors), the scheduler's configuration,
``model_index.json`` and a card; the card names the parts that come from the base model. It is
written beside the target and renamed into place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from timonel.zoo.shared import taken
from training.emoji import export as emoji
from training.emoji.common import load_checkpoint, replacing, size
from training.flow.network import SCHEDULER, build_transformer
from training.flow.shared import COMPONENTS, NO_T5


def build_pipeline(
    work: Path, base: Path, shift: float
) -> tuple[StableDiffusion3Pipeline, dict[str, Any]]:
    """The pipeline with the averaged weights of the last checkpoint, and the checkpoint."""
    state = load_checkpoint(work / "flow.safetensors")
    transformer = build_transformer()
    transformer.load_state_dict(state["average"])
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER | {"shift": shift}),
        **NO_T5,
        **taken(base, COMPONENTS, torch.float32),
    )
    return pipeline, state


def card(work: Path, base: Path, state: dict[str, Any]) -> dict[str, Any]:
    """What a program should know about the model before it loads it; the rest is in the base's
    card.
    """
    evaluation = work / "evaluation.json"
    figures = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    first = json.loads((base / "card.json").read_text("utf-8"))
    return {
        "name": "emoji-flow",
        "class": "StableDiffusion3Pipeline",
        "base": first["name"],
        "components": {
            name: part.model_dump(exclude_defaults=True) for name, part in COMPONENTS.items()
        },
        "default_guidance": figures.get("best_guidance", 3.0),
        "default_steps": 20,
        "default_sampler": "dpmpp_2m/beta",
        "evaluation": figures,
        "trained_on": {
            "images": first["trained_on"]["images"],
            "samples_seen": state["seen"],
            "steps": state["step"],
            "hours": round(state["seconds"] / 3600, 2),
            "credits": emoji.CREDITS,
        },
    }


def write(work: Path, base: Path, out: Path, shift: float) -> None:
    pipeline, state = build_pipeline(work, base, shift)
    with replacing(out) as part:
        pipeline.transformer.to(torch.float16).save_pretrained(part / "transformer")
        pipeline.scheduler.save_pretrained(part / "scheduler")
        pipeline.save_config(part)
        emoji.neutral_paths(part)
        (part / "card.json").write_text(json.dumps(card(work, base, state), indent=1) + "\n")
    print(f"{out}: {size(out):.2f} MB, step {state['step']}, pictures {state['seen']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the shipped emoji model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shift", type=float, default=SCHEDULER["shift"], help="of the scheduler")
    args = parser.parse_args()
    write(args.work, args.model, args.out, args.shift)


if __name__ == "__main__":
    main()
