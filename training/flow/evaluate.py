"""Sample the fixed captions, let the judge name the pictures, write figures and a contact sheet.

``--zeros`` is the pipeline's ``max_sequence_length``, the number of zero tokens after the prompt:
256 is its default, 0 is faster. The best guidance is always tried with 256 as well.
"""

from __future__ import annotations

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor

from training.emoji import evaluate as emoji
from training.emoji.classifier import accuracy
from training.emoji.common import to_float
from training.emoji.data import load
from training.flow.network import ZEROS
from training.flow.shared import load_pipeline

HERE = Path(__file__).parent


def solve(
    pipeline: StableDiffusion3Pipeline, captions: list[str], shift: float, args: argparse.Namespace
) -> Tensor:
    """Latents of ``captions`` from the same noise, by Euler steps on a grid of that shift."""
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, shift=shift
    )
    generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
    return pipeline(
        captions,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance[0],
        generator=generators,
        max_sequence_length=args.zeros,
        output_type="latent",
    ).images


def shift_errors(
    pipeline: StableDiffusion3Pipeline, captions: list[str], args: argparse.Namespace
) -> dict[str, float]:
    """RMS distance of the latents at ``--steps`` to those of 8 times as many steps, by shift."""
    kept = pipeline.scheduler
    fine = argparse.Namespace(**vars(args) | {"steps": 8 * args.steps})
    reference = solve(pipeline, captions, 1.0, fine)
    errors = {}
    for shift in args.shifts:
        error = solve(pipeline, captions, shift, args) - reference
        errors[str(shift)] = round(float(error.square().mean().sqrt()), 4)
        print(f"shift {shift}: error {errors[str(shift)]:.4f}", flush=True)
    pipeline.scheduler = kept
    return errors


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    names = load(args.emoji).names
    captions = (HERE.parent / "emoji/captions100.txt").read_text().splitlines()
    concept = torch.tensor([names.index(text) for text in captions]).repeat(args.seeds)
    judge, pipeline = emoji.load_judge(args.emoji), load_pipeline(args.model, args.base)
    pipeline.set_progress_bar_config(disable=True)

    def judged(guidance: float, zeros: int) -> tuple[dict[str, float], list[Tensor]]:
        call = partial(pipeline, max_sequence_length=zeros)
        seeds = [emoji.sample(call, captions, s, guidance, args.steps) for s in range(args.seeds)]
        top1, top5 = accuracy(judge, to_float(torch.cat(seeds)), concept)
        print(
            f"guidance {guidance}, {zeros} zero tokens: top-1 {top1:.3f}, top-5 {top5:.3f}",
            flush=True,
        )
        return {"top1": round(top1, 4), "top5": round(top5, 4)}, seeds

    result: dict[str, Any] = {"captions": len(captions), "seeds": args.seeds, "steps": args.steps}
    result |= {"sampler": "FlowMatchEuler (diffusers)", "zeros": args.zeros, "guidance": {}}
    if args.shifts:
        result["shift_error"] = shift_errors(pipeline, captions[:20], args)
    best = -1.0
    for guidance in args.guidance:
        found, seeds = judged(guidance, args.zeros)
        result["guidance"][str(guidance)] = found
        if sum(found.values()) > best:
            best = sum(found.values())
            result |= {"best_guidance": guidance, **found}
            emoji.labelled_sheet(captions, seeds, args.sheet)
    if args.zeros != ZEROS:
        result["default_zeros"] = judged(result["best_guidance"], ZEROS)[0]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--emoji", type=Path, required=True, help="the emoji model's work folder (data, judge)"
    )
    parser.add_argument("--base", type=Path, required=True, help="the shipped emoji model")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the exported folder")
    parser.add_argument("--sheet", type=Path, default=HERE / "sheet.webp")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 1.0, 2.0, 4.0])
    parser.add_argument(
        "--shifts", type=float, nargs="*", default=[], help="compare these shifts too"
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--zeros", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = evaluate(args)
    part = args.work / "evaluation.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, args.work / "evaluation.json")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
