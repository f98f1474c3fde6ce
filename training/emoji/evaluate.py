"""Sample the fixed captions, let the judge name the pictures, write figures and a contact sheet."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from PIL import Image, ImageDraw
from torch import Tensor, nn

from training.emoji.classifier import accuracy, build
from training.emoji.common import load_checkpoint, to_float
from training.emoji.data import load
from training.emoji.vae import latents, psnr

HERE = Path(__file__).parent


def load_judge(work: Path) -> nn.Module:
    """The trained classifier."""
    state = load_checkpoint(work / "judge.safetensors")
    judge = build(state["classes"])
    judge.load_state_dict(state["model"])
    return judge.eval()


def load_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """The shipped pipeline with DPM++ 2M on its own (leading) timesteps."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, add_watermarker=False
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionXLPipeline, captions: list[str], seed: int, guidance: float, steps: int
) -> Tensor:
    """uint8 pictures (N, 64, 64, 3); caption i of seed s starts from its own generator."""
    pictures: list[np.ndarray] = []
    for first in range(0, len(captions), 25):
        part = captions[first : first + 25]
        generators = [
            torch.Generator().manual_seed(1000 * seed + first + i) for i in range(len(part))
        ]
        output = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        )
        pictures.append((output.images * 255).round().astype(np.uint8))
    return torch.from_numpy(np.concatenate(pictures))


def labelled_sheet(captions: list[str], seeds: list[Tensor], path: Path) -> None:
    """One cell a caption, its seeds side by side, the caption below; ten cells a row."""
    width, height, columns = 64 * len(seeds) + 4, 64 + 13, 10
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(captions):
        y, x = divmod(i, columns)
        for j, pictures in enumerate(seeds):
            sheet.paste(Image.fromarray(pictures[i].numpy()), (x * width + 64 * j, y * height))
        draw.text((x * width + 2, y * height + 63), text, fill="black")
    sheet.convert("RGB").save(path, quality=72)


def ceiling(folder: Path, work: Path, judge: nn.Module) -> dict[str, Any]:
    """The judge on real emoji and on the autoencoder's reconstructions of them."""
    data = load(work)
    pictures, concept = torch.from_numpy(data.pictures), torch.from_numpy(data.concept)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32).eval()
    with torch.no_grad():
        parts = latents(vae, pictures)[0].split(64)
        decoded = torch.cat([vae.decode(part).sample for part in parts]).clamp(-1, 1)
    real = accuracy(judge, to_float(pictures), concept)
    rebuilt = accuracy(judge, decoded, concept)
    return {
        "psnr": round(psnr(decoded, to_float(pictures)), 2),
        "real": {"top1": round(real[0], 4), "top5": round(real[1], 4)},
        "reconstructed": {"top1": round(rebuilt[0], 4), "top5": round(rebuilt[1], 4)},
    }


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    names = load(args.work).names
    captions = (HERE / "captions100.txt").read_text().splitlines()
    concept = torch.tensor([names.index(text) for text in captions])
    judge, pipeline = load_judge(args.work), load_pipeline(args.model)
    result: dict[str, Any] = {"captions": len(captions), "seeds": args.seeds, "steps": args.steps}
    result["sampler"] = "DPM++ 2M (diffusers), leading timesteps"
    result["autoencoder"] = ceiling(args.model, args.work, judge)
    result["guidance"] = {}
    best = -1.0
    for guidance in args.guidance:
        seeds = [sample(pipeline, captions, s, guidance, args.steps) for s in range(args.seeds)]
        top1, top5 = accuracy(judge, to_float(torch.cat(seeds)), concept.repeat(args.seeds))
        result["guidance"][str(guidance)] = {"top1": round(top1, 4), "top5": round(top5, 4)}
        print(f"guidance {guidance}: top-1 {top1:.3f}, top-5 {top5:.3f}", flush=True)
        if top1 + top5 > best:
            best = top1 + top5
            result |= {"best_guidance": guidance, "top1": round(top1, 4), "top5": round(top5, 4)}
            labelled_sheet(captions, seeds, args.sheet)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the pipeline folder")
    parser.add_argument("--sheet", type=Path, default=HERE / "sheet.webp")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0, 4.0, 5.0, 6.0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = evaluate(args)
    part = args.work / "evaluation.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, args.work / "evaluation.json")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
