"""Train the image encoder to tell what a picture shows, and so how it will move; then it is frozen.

Cross entropy over the concepts and over the kinds of motion, on two linear heads. In SVD too the
image encoder is trained before, on another task, and frozen. At the end the kinds' head is folded
into the projection: the first dimensions of an embedding are its kinds, standardised and loud
enough to be heard by the UNet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from training.emoji.common import Clock, jitter, load_checkpoint, log, save_atomic, to_float
from training.emoji.data import load
from training.emoji.unet import optimizers
from training.video.clips import KINDS, Pose, kinds, render
from training.video.network import WIDTH, build_encoder, prepared


def varied(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture at another size and place, in slightly other colours, some mirrored."""
    r = torch.rand(len(pictures), 4, generator=generator).tolist()
    moved = [
        render(
            p.flip(2) if a < 0.3 else p,
            [Pose()],
            0.72 + 0.28 * b,
            0.12 * (c - 0.5),
            0.12 * (d - 0.5),
        )
        for p, (a, b, c, d) in zip(pictures, r, strict=True)
    ]
    return jitter(torch.cat(moved), 0.1, generator)


LOUD = 4.0  # standard deviation of the dimensions that tell the kind; that of the others is 1


@torch.no_grad()
def folded(
    encoder: CLIPVisionModelWithProjection, head: nn.Linear, pool: Tensor
) -> dict[str, Tensor]:
    """The encoder's weights with the kinds in front of the embedding. Biases are left to the
    network that listens.
    """
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    projection = state["visual_projection.weight"]
    spread = torch.cat([encoder(part.float()).image_embeds for part in pool[::7].split(64)]).std(0)
    kinds = head.weight @ projection
    told = torch.cat(
        [(encoder(part.float()).image_embeds @ head.weight.T) for part in pool[::7].split(64)]
    ).std(0)
    state["visual_projection.weight"] = torch.cat([
        kinds * (LOUD / told)[:, None], (projection / spread[:, None])[len(kinds) :]
    ])  # fmt: skip
    return state


@torch.no_grad()
def variants(pictures: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` variants of every picture as the encoder gets them, in half precision: (count·N, 3,
    224, 224).
    """
    parts = [
        prepared(varied(part, generator)).half()
        for _ in range(count)
        for part in pictures.split(64)
    ]
    return torch.cat(parts)


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
    pool = variants(pictures, args.variants, generator)
    log(args.work / "encoder.log", f"encoder {len(pool)} variants of {len(pictures)} pictures")
    clock, step, order = Clock(args.minutes, warmup=10), 0, torch.tensor([], dtype=torch.long)
    right = 0.0
    while not clock.done:
        if len(order) < args.batch:
            order = torch.cat([order, torch.randperm(len(pool), generator=generator)])
        index, order = order[: args.batch], order[args.batch :]
        picture = index % len(pictures)
        embedding = encoder(pool[index].float()).image_embeds
        guess = [head(embedding) for head in heads]
        loss = F.cross_entropy(guess[0], kind[picture]) + 0.5 * F.cross_entropy(
            guess[1], concept[picture]
        )
        both.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in pair:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * clock.rate(flat=0.3)
            optimizer.step()
        right = 0.95 * right + 0.05 * float((guess[0].argmax(1) == kind[picture]).float().mean())
        step += 1
        if step % 25 == 0 or clock.done:
            line = (
                f"encoder step {step} seconds {clock.seconds:.0f} loss {loss.item():.3f} "
                f"kind right {right:.3f}"
            )
            log(args.work / "encoder.log", line)
    save_atomic({"encoder": encoder.state_dict(), "heads": heads.state_dict(), "step": step}, path)
    save_atomic(
        {"encoder": folded(encoder.eval(), heads[0], pool)},
        args.work / "encoder.folded.safetensors",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emoji", type=Path, required=True, help="work folder of training/emoji")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--variants", type=int, default=8, help="of every picture; 0.3 GB each")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
