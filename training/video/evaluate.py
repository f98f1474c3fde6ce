"""Animate fixed pictures, compare with the true clips, write figures and contact sheets.

The stills are mirrored, which no training picture was. In a sheet every row is one emoji: the still
that was given, then the frames.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image
from torch import Tensor

from training.emoji.common import to_float, to_uint8
from training.emoji.data import contact_sheet, load
from training.video.clips import FPS, KINDS, clip, kinds

HERE = Path(__file__).parent
NAMES = (
    "cat face",
    "red car",
    "lock",
    "t-shirt",
    "red heart",
    "earth",
    "happy face",
    "tulip",
    "pizza",
    "basketball",
)
BUCKETS = (20, 127, 230)
PLACE = (0.88, 0.0, 0.0)


def truth(work: Path, bucket: int) -> tuple[Tensor, list[str]]:
    """The true clips (N, 8, 64, 64, 3) of the mirrored pictures, and their kinds of motion."""
    data, kind_of = load(work), kinds(work)
    found, names = [], []
    for i, name in enumerate(NAMES):
        concept = data.names.index(name)
        index = 3 * concept + i % 3
        picture = to_float(torch.from_numpy(data.pictures[index])[None])[0].flip(2)
        names.append(KINDS[kind_of[concept]])
        found.append(to_uint8(clip(picture, names[-1], bucket, FPS, PLACE)))
    return torch.stack(found), names


def animate(
    pipe: Any, stills: Tensor, bucket: int, args: argparse.Namespace, seed: int = 0
) -> Tensor:
    """uint8 clips (N, 8, 64, 64, 3); picture i starts from its own generator."""
    generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(stills))]
    output = pipe(
        [Image.fromarray(still.numpy()) for still in stills],
        height=64,
        width=64,
        motion_bucket_id=bucket,
        num_inference_steps=args.steps,
        max_guidance_scale=args.guidance,
        generator=generators,
        output_type="pt",
    ).frames
    return torch.stack([to_uint8(2 * frames - 1) for frames in output])


def centre(frames: Tensor) -> Tensor:
    """Centre of what is not white, in pixels: (N, F, 2)."""
    ink = 255 - frames.float().mean(-1)
    along = torch.arange(frames.shape[2], dtype=torch.float32)
    total = ink.sum((2, 3))
    return torch.stack(
        [(ink.sum(2) * along).sum(2) / total, (ink.sum(3) * along).sum(2) / total], 2
    )


def decibels(frames: Tensor, target: Tensor) -> float:
    """Mean over the clips of the PSNR over all their frames."""
    error = (frames.float() - target.float()).square().mean(dim=(1, 2, 3, 4)) / 255**2
    return float((-10 * error.log10()).mean())


def motion(frames: Tensor) -> dict[str, float]:
    """Mean change between neighbouring frames (0..255) and the largest way of the centre, in
    pixels.
    """
    way = (centre(frames) - centre(frames)[:, :1]).norm(dim=2).amax(1)
    return {
        "change": round(float(frames.float().diff(dim=1).abs().mean()), 2),
        "way": round(float(way.mean()), 2),
    }


def astray(frames: Tensor, true: Tensor) -> dict[str, float]:
    """What differs from the true clips: the centre's path (pixels), and what flickers on blank
    paper.

    Blank are the pixels that the true clip leaves white throughout; their change between
    neighbouring frames is 0 in the truth.
    """
    path = (centre(frames) - centre(true)).norm(dim=2).mean()
    blank = (true.amin(dim=(1, 4)) == 255)[:, None, :, :, None].expand(-1, 7, -1, -1, 3)
    flicker = frames.float().diff(dim=1).abs()[blank].mean()
    return {"path": round(float(path), 2), "flicker": round(float(flicker), 2)}


def measure(pipe: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Every figure, bucket by bucket, and the sheets."""
    result: dict[str, Any] = {
        "steps": args.steps,
        "guidance": args.guidance,
        "clips": len(NAMES),
        "buckets": {},
    }
    for bucket in BUCKETS:
        true, _ = truth(args.emoji, bucket)
        frames = animate(pipe, true[:, 0], bucket, args)
        still = true[:, :1].expand_as(true)
        result["buckets"][str(bucket)] = {
            "first_frame_psnr": round(decibels(frames[:, :1], true[:, :1]), 2),
            "clip_psnr": round(decibels(frames[:, 1:], true[:, 1:]), 2),
            "clip_psnr_of_the_still": round(decibels(still[:, 1:], true[:, 1:]), 2),
            "sampled": motion(frames) | astray(frames, true),
            "true": motion(true),
        }
        print(bucket, json.dumps(result["buckets"][str(bucket)]), flush=True)
        for name, rows in (("sheet", frames), ("true", true)):
            row = torch.cat([true[:, :1], rows], 1).flatten(0, 1)
            contact_sheet(row.numpy(), 9, args.out / f"{name}{bucket}.png")
    return result


def differences(pipe: StableVideoDiffusionPipeline, args: argparse.Namespace) -> dict[str, float]:
    """Mean change of the frames when every picture gets another one's embedding, and with another
    seed.
    """
    bucket = BUCKETS[-1]
    stills = truth(args.emoji, bucket)[0][:, 0]
    usual, other = (animate(pipe, stills, bucket, args, seed).float() for seed in (0, 1))
    hook = pipe.image_encoder.register_forward_hook(
        lambda module, inputs, output: type(output)(image_embeds=output.image_embeds.roll(2, 0))
    )
    swapped = animate(pipe, stills, bucket, args).float()
    hook.remove()
    return {
        "other_embedding": round(float((swapped - usual).abs().mean()), 3),
        "other_seed": round(float((other - usual).abs().mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emoji", type=Path, required=True, help="work folder of training/emoji")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the video pipeline's folder")
    parser.add_argument("--out", type=Path, help="folder of the sheets; default: the work folder")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="of the last frame; the first has 1"
    )
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument(
        "--quick", action="store_true", help="without the other seed and the other embedding"
    )
    args = parser.parse_args()
    args.out = args.out or args.work
    torch.set_num_threads(1)
    pipe = StableVideoDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    size = sum(p.stat().st_size for p in args.model.rglob("*") if p.is_file())
    result = {"megabytes": round(size / 1e6, 2)} | measure(pipe, args)
    if not args.quick:
        result["difference"] = differences(pipe, args)
    part = args.work / "evaluation.part"
    part.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(part, args.work / "evaluation.json")
    print(json.dumps({key: value for key, value in result.items() if key != "buckets"}))


if __name__ == "__main__":
    main()
