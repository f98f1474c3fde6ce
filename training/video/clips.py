"""Make training clips: every emoji moves as its kind of thing does, and starts at the still
picture.

Output: shards ``<work>/clips/NNN.safetensors`` of encoded clips; their number can grow while a
training runs. Latents come from the shipped emoji autoencoder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.emoji.common import to_float, to_uint8
from training.emoji.data import EmojiData, load

FRAMES = 8
SHARD = 250
FPS = 7
KINDS = ("bounce", "spin", "pulse", "sway", "roll")
OF_CATEGORY = {
    "animals": "bounce", "vehicles": "bounce",
    "fun": "spin", "clothes": "spin", "objects": "spin",
    "hearts": "pulse", "body": "pulse", "places": "pulse", "time and weather": "pulse",
    "faces": "sway", "plants": "sway", "drink": "sway",
    "food": "roll",
}  # fmt: skip
ROLLING = {"soccer ball", "baseball", "basketball", "tennis ball", "eight ball", "disco ball"}


def kinds(work: Path) -> list[int]:
    """The kind of motion of every concept: a fixed rule, by what the thing is."""
    rows = json.loads((work / "captions.json").read_text())
    names = ["roll" if row["name"] in ROLLING else OF_CATEGORY[row["category"]] for row in rows]
    return [KINDS.index(name) for name in names]


@dataclass(frozen=True)
class Pose:
    """Where the picture is in one frame; lengths in half pictures, angles in radians."""

    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    wide: float = 1.0
    high: float = 1.0
    pivot: float = 0.0  # of the rotation: its height below the centre


def pose(kind: str, amount: float, phase: float) -> Pose:
    """The pose at ``phase`` (1 is a full period); at phase 0 or amount 0 the still one."""
    wave = math.sin(2 * math.pi * phase)
    if kind == "bounce":
        part = phase % 1.0
        return Pose(y=-0.45 * amount * 4 * part * (1 - part))
    if kind == "spin":
        return Pose(wide=math.cos(1.2 * amount * wave))
    if kind == "pulse":
        size = math.exp(-0.22 * amount * (1 - math.cos(2 * math.pi * phase)))
        return Pose(wide=size, high=size)
    if kind == "sway":
        return Pose(angle=0.4 * amount * wave, pivot=0.8)
    shift = 0.42 * amount * wave
    return Pose(x=shift, angle=shift / 0.7)


def inverse(pose: Pose, size: float, x: float, y: float) -> list[list[float]]:
    """The 2x3 map from a frame to the original, for the pose after the still's size and place."""
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    # frame = rotate(scale(original * size + place - pivot)) + pivot + shift
    a, b = cos / pose.wide, sin / pose.wide
    c, d = -sin / pose.high, cos / pose.high
    left, top = pose.x, pose.y + pose.pivot
    back_x = -(a * left + b * top) - x
    back_y = -(c * left + d * top) + pose.pivot - y
    return [[a / size, b / size, back_x / size], [c / size, d / size, back_y / size]]


def render(picture: Tensor, poses: list[Pose], size: float, x: float, y: float) -> Tensor:
    """Frames (F, 3, 64, 64) in -1..1 of one picture (3, 64, 64) in -1..1; white comes in at the
    sides.
    """
    maps = torch.tensor([inverse(pose, size, x, y) for pose in poses])
    grid = F.affine_grid(maps, [len(poses), 3, *picture.shape[1:]], align_corners=False)
    dark = (picture - 1).expand(len(poses), -1, -1, -1)
    moved = F.grid_sample(dark, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return (moved + 1).clamp(-1, 1)


def clip(
    picture: Tensor, kind: str, bucket: int, fps: int, place: tuple[float, float, float]
) -> Tensor:
    """The frames of one clip: amplitude bucket / 255, one period in 8/7 s, so 8 frames at 7 fps."""
    phases = [FPS * k / (FRAMES * fps) for k in range(FRAMES)]
    return render(picture, [pose(kind, bucket / 255, phase) for phase in phases], *place)


def draw(
    data: EmojiData, kind_of: list[int], generator: torch.Generator, index: int
) -> dict[str, Tensor]:
    """One random clip of picture ``index`` with its conditions, not yet encoded."""
    r = torch.rand(6, generator=generator).tolist()
    bucket = 1 + int(255 * r[0])
    fps = FPS if r[1] < 0.6 else 5 + int(10 * r[2])
    kind = kind_of[int(data.concept[index])]
    place = (0.72 + 0.28 * r[3], 0.12 * (r[4] - 0.5), 0.12 * (r[5] - 0.5))
    picture = to_float(torch.from_numpy(data.pictures[index])[None])[0]
    frames = to_uint8(clip(picture, KINDS[kind], bucket, fps, place))
    strength = float(torch.randn((), generator=generator).mul(0.5).sub(3).exp())
    strength = 0.02 if torch.rand((), generator=generator) < 0.5 else strength
    noise = torch.randn(3, *picture.shape[1:], generator=generator)
    return {
        "frames": frames,
        "noisy": to_float(frames[:1])[0] + strength * noise,
        "ids": torch.tensor([fps - 1.0, bucket, strength]),
        "kind": torch.tensor(kind),
        "index": torch.tensor(index),
    }


@torch.no_grad()
def encode(vae: AutoencoderKL, drawn: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A shard: latents of the frames (scaled) and of the noised still (unscaled, as in SVD)."""
    rows = {key: torch.stack([row[key] for row in drawn]) for key in drawn[0]}
    frames = torch.cat([to_float(row) for row in rows.pop("frames")])
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in frames.split(64)])
    still = torch.cat([vae.encode(part).latent_dist.mode() for part in rows.pop("noisy").split(64)])
    latents = latents.unflatten(0, (-1, FRAMES)) * vae.config.scaling_factor
    pictures = to_uint8(frames[::FRAMES])
    rows |= {"latents": latents.half(), "still": still.half(), "picture": pictures}
    return {key: row.contiguous() for key, row in rows.items()}


def read(work: Path, seen: set[str]) -> list[dict[str, Tensor]]:
    """The shards that are not in ``seen`` yet; adds them."""
    found = [
        path for path in sorted((work / "clips").glob("*.safetensors")) if path.name not in seen
    ]
    seen.update(path.name for path in found)
    return [load_file(path) for path in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emoji", type=Path, required=True, help="work folder of training/emoji")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, required=True, help="the shipped emoji model, for its autoencoder"
    )
    parser.add_argument("--shards", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    (args.work / "clips").mkdir(parents=True, exist_ok=True)
    data, kind_of = load(args.emoji), kinds(args.emoji)
    vae = AutoencoderKL.from_pretrained(
        args.model, subfolder="vae", torch_dtype=torch.float32
    ).eval()
    order: list[int] = []
    for shard in range(args.shards):
        generator = torch.Generator().manual_seed(shard)
        path = args.work / "clips" / f"{shard:03d}.safetensors"
        while len(order) < SHARD:
            order += torch.randperm(len(data.pictures), generator=generator).tolist()
        taken, order = order[:SHARD], order[SHARD:]
        if path.exists():
            continue
        start = time.monotonic()
        save_file(
            encode(vae, [draw(data, kind_of, generator, i) for i in taken]),
            path.with_suffix(".part"),
        )
        os.replace(path.with_suffix(".part"), path)
        print(f"{path.name}: {SHARD} clips, {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
