"""Train the judge: a small CNN that names the concept of a 64x64 picture.

It sees real emoji only, strongly augmented, so that it can also judge imperfect pictures.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.emoji_judge import build
from training.emoji.common import jitter, log, save_atomic, to_float
from training.emoji.data import load


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, move, scale, rotate, recolour, blur and add noise."""
    count = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, scale = uniform(-15, 15) * math.pi / 180, uniform(0.85, 1.25)
    flip = torch.where(uniform(0, 1) < 0.3, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [cos * flip, -sin, uniform(-0.15, 0.15), sin * flip, cos, uniform(-0.15, 0.15)]
    grid = F.affine_grid(torch.stack(rows, 1).view(count, 2, 3), list(pictures.shape), False)
    moved = F.grid_sample(pictures - 1, grid, align_corners=False) + 1
    moved = jitter(moved, 0.2, generator)
    blurred = F.avg_pool2d(F.pad(moved, (1,) * 4, mode="replicate"), 3, 1)
    moved = moved.lerp(blurred, uniform(-0.3, 1.3).clamp(0, 1).view(-1, 1, 1, 1))
    noise = torch.randn(moved.shape, generator=generator)
    return moved + noise * uniform(-0.1, 0.2).clamp(min=0).view(-1, 1, 1, 1)


@torch.no_grad()
def accuracy(model: nn.Module, pictures: Tensor, concept: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 of pictures in -1..1."""
    ranked = torch.cat([model(part).topk(5).indices for part in pictures.split(128)])
    hit = ranked == concept[:, None]
    return float(hit[:, 0].float().mean()), float(hit.any(1).float().mean())


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    data = load(args.work)
    pictures, concept = torch.from_numpy(data.pictures), torch.from_numpy(data.concept)
    model = build(len(data.names)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, args.steps, 0.1)
    for step in range(1, args.steps + 1):
        index = torch.randint(0, len(pictures), (64,), generator=generator)
        logits = model(augment(to_float(pictures[index]), generator))
        loss = F.cross_entropy(logits, concept[index], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log(args.work / "classifier.log", f"classifier step {step} loss {loss.item():.3f}")
    model.eval()
    real = accuracy(model, to_float(pictures), concept)
    hard = accuracy(model, augment(to_float(pictures), generator), concept)
    log(
        args.work / "classifier.log",
        f"classifier pictures {args.steps * 64} top-1/top-5: real {real[0]:.3f}/{real[1]:.3f}, "
        f"augmented {hard[0]:.3f}/{hard[1]:.3f}",
    )
    save_atomic(
        {"model": model.state_dict(), "classes": len(data.names)}, args.work / "judge.safetensors"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
