"""The teacher's paths: where its guided ODE leads from pure noise, stored as (latents, time, end).

DPM++ 2M with guidance 4 in ten steps. Shards appear one by one, so that the training can begin with
the first.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from training.emoji.common import save_atomic
from training.emoji.data import STYLES, load
from training.emoji.unet import SCHEDULER
from training.zsnr.lora import Texts, base, call

GUIDANCE = 4.0
INDICES = tuple(range(999, 0, -100))


def alphas_sigmas() -> tuple[Tensor, Tensor]:
    """alpha and sigma of every training index."""
    from diffusers import EulerDiscreteScheduler

    alphas = EulerDiscreteScheduler(**SCHEDULER).alphas_cumprod.double()
    return alphas.sqrt().float(), (1 - alphas).sqrt().float()


ALPHA, SIGMA = alphas_sigmas()


@torch.no_grad()
def denoised(unet: nn.Module, x: Tensor, index: int, prompt: Tensor, pooled: Tensor) -> Tensor:
    """The guided prediction of the clean latents; no prompt is zeros."""
    count = len(x)
    both = torch.cat([prompt * 0, prompt]), torch.cat([pooled * 0, pooled])
    without, given = call(unet, x.repeat(2, 1, 1, 1), torch.full((2 * count,), index), *both).chunk(
        2
    )
    noise = without + GUIDANCE * (given - without)
    return (x - SIGMA[index] * noise) / ALPHA[index]


def follow(
    unet: nn.Module, x: Tensor, prompt: Tensor, pooled: Tensor
) -> tuple[list[Tensor], Tensor]:
    """DPM++ 2M (arXiv 2211.01095, algorithm 2) down the indices. Returns x at each of them, and the
    end.
    """
    points, before, width = [x], None, 0.0
    for index, new in itertools.pairwise(INDICES):
        clean = denoised(unet, x, index, prompt, pooled)
        step = float((ALPHA[new] / SIGMA[new]).log() - (ALPHA[index] / SIGMA[index]).log())
        ahead = clean if before is None else clean + step / (2 * width) * (clean - before)
        x = SIGMA[new] / SIGMA[index] * x - ALPHA[new] * torch.expm1(torch.tensor(-step)) * ahead
        before, width = clean, step
        points.append(x)
    return points, denoised(unet, x, INDICES[-1], prompt, pooled)


def shard(
    unet: nn.Module, texts: Texts, names: list[str], size: int, rng: random.Random
) -> dict[str, Tensor]:
    """Paths: x (paths, indices, 4, 16, 16), end (paths, 4, 16, 16), caption (paths, 2)."""
    chosen = [(rng.randrange(len(names)), rng.randrange(2 * len(STYLES))) for _ in range(size)]
    prompt, pooled = texts([captioned(names, concept, style) for concept, style in chosen])
    points, end = follow(unet, torch.randn(size, 4, 16, 16), prompt, pooled)
    return {"x": torch.stack(points, 1).half(), "end": end.half(), "caption": torch.tensor(chosen)}


def captioned(names: list[str], concept: int, style: int) -> str:
    """The caption of a concept: for half of the style numbers the name alone."""
    return names[concept] + (f", {STYLES[style]} style" if style < len(STYLES) else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=Path("src/timonel/zoo/emoji"))
    parser.add_argument("--minutes", type=float, default=6, help="of CPU time")
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin, folder = time.process_time(), args.work / "paths"
    folder.mkdir(exist_ok=True)
    pipe, names = base(args.base), load(args.work).names
    texts = Texts(pipe)
    while time.process_time() - begin < 60 * args.minutes:
        number = len(list(folder.glob("*.safetensors")))
        torch.manual_seed(number)
        save_atomic(
            shard(pipe.unet, texts, names, args.size, random.Random(number)),
            folder / f"{number:04}.safetensors",
        )
        print(number, f"{time.process_time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
