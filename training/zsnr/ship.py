"""Write a derived model's folder: its LoRA, its scheduler's configuration and its card with the
figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler, LCMScheduler

from training.emoji.common import load_checkpoint
from training.emoji.data import load
from training.emoji.unet import SCHEDULER
from training.zsnr.train import ZERO_SNR

LORA = "pytorch_lora_weights.safetensors"
KINDS: dict[str, dict[str, Any]] = {
    "zsnr": {
        "scheduler": EulerDiscreteScheduler.from_config(ZERO_SNR),
        "card": {"default_guidance": 3.0, "default_steps": 20, "default_sampler": "dpmpp_2m"},
        "more": ["black", "white"],
    },
    "lcm": {
        "scheduler": LCMScheduler.from_config(SCHEDULER),
        "card": {"default_guidance": 1.0, "default_steps": 4, "default_sampler": "lcm"},
        "more": [],
    },
}


def card(kind: str, work: Path) -> dict[str, Any]:
    """What the base's card does not say."""
    state, figures = load_checkpoint(work / f"{kind}.safetensors"), work / f"{kind}.json"
    made = {
        "name": f"emoji-{kind}",
        "base": "emoji",
        "class": "StableDiffusionXLPipeline",
        **KINDS[kind]["card"],
    }
    if KINDS[kind]["more"]:
        made["concepts"] = [*load(work).names, *KINDS[kind]["more"]]
    made["evaluation"] = json.loads(figures.read_text()) if figures.exists() else {}
    hours = round(state["seconds"] / 3600, 2)
    made["trained_on"] = {"samples_seen": state["seen"], "steps": state["step"], "hours": hours}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--lora", type=Path, required=True, help="the file that train.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    part = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    KINDS[args.kind]["scheduler"].save_pretrained(part / "scheduler")
    shutil.copy(args.lora, part / LORA)
    (part / LORA).chmod(0o644)
    (part / "card.json").write_text(json.dumps(card(args.kind, args.work), indent=1) + "\n")
    if args.out.exists():
        shutil.rmtree(args.out)
    part.rename(args.out)
    print(
        f"{args.out}: "
        f"{sum(p.stat().st_size for p in args.out.rglob('*') if p.is_file()) / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
