"""The latents of all-black and all-white pictures: what the decoder turns into that colour.

The autoencoder saw emoji on white, and its encoder does not know a black picture. So the latents
start at the mean of the darkest (lightest) cells of the real emoji and descend through the decoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from training.emoji.common import save_atomic, to_float
from training.emoji.data import load
from training.emoji.unet import scaled_latents

COLOURS = {"black": -1.0, "white": 1.0}
CELLS = 200


def nearest(work: Path, value: float) -> Tensor:
    """Mean scaled latent (1, 4, 1, 1) of the cells of real pictures that are nearest to `value`."""
    data = load(work)
    cells = F.adaptive_avg_pool2d(to_float(torch.from_numpy(data.pictures)), 16).mean(1)
    chosen = (cells - value).abs().flatten().topk(CELLS, largest=False).indices
    return (
        scaled_latents(work, data)[0].movedim(1, -1).reshape(-1, 4)[chosen].mean(0).view(1, 4, 1, 1)
    )


def find(vae: AutoencoderKL, begin: Tensor, value: float, steps: int) -> tuple[Tensor, Tensor]:
    """Scaled latents (4, 16, 16) of the plain picture `value` in -1..1, and the decoded picture."""
    latent = begin.expand(1, 4, 16, 16).clone().requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=0.02)
    for _ in range(steps):
        decoded = vae.decode(latent / vae.config.scaling_factor).sample
        error = ((value - decoded) * value).clamp(
            min=0
        )  # beyond the colour is as good: pictures are clamped
        loss = error.square().mean() + 1e-3 * (latent - begin).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return latent.detach()[0], decoded.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path("src/timonel/zoo/emoji"))
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(
        args.base, subfolder="vae", torch_dtype=torch.float32
    ).requires_grad_(False)
    found = {}
    for name, value in COLOURS.items():
        found[name], decoded = find(vae, nearest(args.work, value), value, args.steps)
        brightness = decoded.clamp(-1, 1).add(1).div(2)
        print(
            f"{name}: mean {brightness.mean():.4f}, min {brightness.min():.3f}, max "
            f"{brightness.max():.3f}"
        )
    save_atomic(found, args.work / "plain.safetensors")


if __name__ == "__main__":
    main()
