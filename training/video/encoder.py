"""Train the image encoder to tell what a picture shows, and so how it will move; then it is frozen.

Cross entropy over the concepts and over the kinds of motion, on two linear heads that are not kept.
In SVD too the image encoder is trained before, on another task, and frozen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import beside  # noqa: F401
import torch
import torch.nn.functional as F
from clips import KINDS, Pose, kinds, render
from common import Clock, jitter, load_checkpoint, log, save_atomic, to_float
from data import load
from network import WIDTH, build_encoder, prepared
from torch import Tensor, nn
from unet import optimizers


def varied(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture at another size and place, in slightly other colours, some mirrored."""
    r = torch.rand(len(pictures), 4, generator=generator).tolist()
    moved = [
        render(p.flip(2) if a < 0.3 else p, [Pose()], 0.72 + 0.28 * b, 0.12 * (c - 0.5), 0.12 * (d - 0.5))
        for p, (a, b, c, d) in zip(pictures, r, strict=True)
    ]
    return jitter(torch.cat(moved), 0.1, generator)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data, generator = load(args.emoji), torch.Generator().manual_seed(1)
    pictures, concept = to_float(torch.from_numpy(data.pictures)), torch.from_numpy(data.concept)
    kind = torch.tensor(kinds(args.emoji))[concept]
    encoder = build_encoder().train()
    heads = nn.ModuleList([nn.Linear(WIDTH, len(KINDS)), nn.Linear(WIDTH, len(data.names))])
    both = nn.ModuleList([encoder, heads])
    path = args.work / "encoder.safetensors"
    if path.exists():
        state = load_checkpoint(path)
        encoder.load_state_dict(state["encoder"])
        if "heads" in state:
            heads.load_state_dict(state["heads"])
    pair = optimizers(both, args.rate)
    clock, step, order = Clock(args.minutes, warmup=10), 0, torch.tensor([], dtype=torch.long)
    right = 0.0
    while not clock.done:
        if len(order) < args.batch:
            order = torch.cat([order, torch.randperm(len(pictures), generator=generator)])
        index, order = order[: args.batch], order[args.batch :]
        embedding = encoder(prepared(varied(pictures[index], generator))).image_embeds
        guess = [head(embedding) for head in heads]
        loss = F.cross_entropy(guess[0], kind[index]) + 0.5 * F.cross_entropy(guess[1], concept[index])
        both.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in pair:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * clock.rate(flat=0.3)
            optimizer.step()
        right = 0.95 * right + 0.05 * float((guess[0].argmax(1) == kind[index]).float().mean())
        step += 1
        if step % 25 == 0 or clock.done:
            line = f"encoder step {step} seconds {clock.seconds:.0f} loss {loss.item():.3f} kind right {right:.3f}"
            log(args.work / "encoder.log", line)
    save_atomic({"encoder": encoder.state_dict(), "heads": heads.state_dict(), "step": step}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emoji", type=Path, required=True, help="work folder of training/emoji")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
