"""Measure the zero-SNR model: brightness of black and white, the judge on captions100, a contact
sheet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler

import timonel as tm
from timonel.zoo.lora import merge
from training.emoji.data import load
from training.emoji.evaluate import labelled_sheet, load_judge
from training.zsnr.judge import CAPTIONS, paint, top1
from training.zsnr.lora import base
from training.zsnr.train import ZERO_SNR

HERE = Path(__file__).parent
PLAIN = ("black", "white")


def models(args: argparse.Namespace) -> dict[str, tm.Helm]:
    """The epsilon model, the control trained on the same pictures, and the zero terminal SNR."""
    made = {"epsilon": base(args.base), "zero SNR": base(args.base)}
    if args.control:
        made["epsilon, same pictures"] = base(args.base)
        merge(made["epsilon, same pictures"].unet, args.control)
    merge(made["zero SNR"].unet, args.lora)
    made["zero SNR"].scheduler = EulerDiscreteScheduler.from_config(ZERO_SNR)
    return {name: tm.Helm(pipe) for name, pipe in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path("src/timonel/zoo/emoji"))
    parser.add_argument("--lora", type=Path, required=True, help="the LoRA file")
    parser.add_argument("--control", type=Path, help="the LoRA file of train.py --epsilon")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0])
    parser.add_argument("--sheet", type=Path, default=HERE / "sheet.webp")
    args = parser.parse_args()
    torch.set_num_threads(1)
    helms, judge, names = models(args), load_judge(args.work), load(args.work).names
    figures: dict[str, Any] = {
        "captions": args.captions,
        "steps": args.steps,
        "sampler": "dpmpp_2m/trailing",
    }
    for guidance in args.guidance:
        common = {"steps": args.steps, "sampler": "dpmpp_2m/trailing", "guidance": guidance}
        row: dict[str, Any] = {}
        cells, labels = [], []
        for name, helm in helms.items():
            for colour in PLAIN:
                cells.append(paint(helm, [colour] * 5, 0, **common))
                labels += [colour] * 5
                level = cells[-1].float().div(255).mean(dim=(1, 2, 3))
                row[f"{name}, {colour}"] = [
                    round(float(f(level)), 4) for f in (torch.min, torch.mean, torch.max)
                ]
        captions = CAPTIONS.read_text().splitlines()[: args.captions]
        cells.append(paint(helms["zero SNR"], captions, 1, **common))
        row["top1"] = round(top1(judge, cells[-1], captions, names), 4)
        figures[f"guidance {guidance}"] = row
        print(guidance, json.dumps(row), flush=True)
        labelled_sheet([*labels, *captions], [torch.cat(cells)], args.sheet)
    (args.work / "zsnr.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
