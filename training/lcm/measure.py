"""Measure the distilled model and its teacher at few steps: judge, PSNR to its converged picture
and to real ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import timonel as tm
from timonel.zoo.lora import merge
from training.emoji.common import to_float
from training.emoji.data import EmojiData, load
from training.emoji.evaluate import labelled_sheet, load_judge
from training.zsnr.judge import CAPTIONS, paint, top1
from training.zsnr.lora import base

HERE = Path(__file__).parent


def psnr(pictures: Tensor, ends: Tensor) -> float:
    """Mean PSNR in dB of uint8 pictures."""
    error = (to_float(pictures) - to_float(ends)).square().mean(dim=(1, 2, 3)).div(4)
    return float((-10 * error.clamp(min=1e-10).log10()).mean())


def real(pictures: Tensor, data: EmojiData, captions: list[str]) -> float:
    """Mean PSNR in dB against the nearest of the three real pictures of each caption."""
    found, concept = [], torch.from_numpy(data.concept)
    for picture, text in zip(pictures, captions, strict=True):
        own = torch.from_numpy(data.pictures)[concept == data.names.index(text)]
        found.append(max(psnr(picture[None], one[None]) for one in own))
    return sum(found) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path("src/timonel/zoo/emoji"))
    parser.add_argument("--lora", type=Path, required=True, help="the LoRA file")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument(
        "--converged", type=int, default=20, help="steps of the teacher's picture to compare with"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--sheet", type=Path, default=HERE / "sheet.webp")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, judge = load(args.work), load_judge(args.work)
    captions = CAPTIONS.read_text().splitlines()[: args.captions]
    teacher, pipe = tm.Helm(base(args.base)), base(args.base)
    merge(pipe.unet, args.lora)
    student = tm.Helm(pipe)
    ways: list[tuple[str, tm.Helm, str, float]] = [
        ("student, lcm", student, "lcm", 1.0),
        ("student, tcd", student, "tcd", 1.0),
        ("base without guidance, lcm", teacher, "lcm", 1.0),
        ("teacher, dpmpp_2m/trailing, guidance 4", teacher, "dpmpp_2m/trailing", 4.0),
    ]
    ends = paint(teacher, captions, 1, args.converged, sampler="dpmpp_2m/trailing", guidance=4.0)
    figures: dict[str, Any] = {"captions": len(captions), "converged": args.converged}
    figures["converged to real"] = round(real(ends, data, captions), 2)
    for steps in args.steps:
        seeds = [ends]
        for name, helm, sampler, guidance in ways:
            pictures = paint(helm, captions, 1, steps, sampler=sampler, guidance=guidance)
            seeds.append(pictures)
            row: dict[str, float] = {"top1": round(top1(judge, pictures, captions, data.names), 4)}
            row |= {
                "end": round(psnr(pictures, ends), 2),
                "real": round(real(pictures, data, captions), 2),
            }
            figures.setdefault(name, {})[str(steps)] = row
            print(steps, name, row, flush=True)
        labelled_sheet(captions, seeds, args.sheet.with_stem(f"{args.sheet.stem}-{steps}"))
    (args.work / "lcm.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
