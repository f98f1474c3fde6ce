"""Train the flow transformer on the latents and the text encoder of the shipped emoji model.

Rectified flow (Esser et al. 2024, arXiv 2403.03206): x_t = (1 - t) x_0 + t noise, the network
predicts noise - x_0, t is logit-normal. The autoencoder and the text encoder are frozen, so every
picture and every caption is encoded once, at the start. A checkpoint in ``--work`` is continued;
``torchrun --nproc_per_node 2`` shares the batch over two processes.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from training.emoji.common import Average, Clock
from training.emoji.data import STYLES, EmojiData, caption, load
from training.emoji.loop import Training, joined
from training.emoji.muon import Muon
from training.emoji.text import encode, token_ids
from training.emoji.vae import latents
from training.flow.network import (
    APART,
    ZEROS,
    CountedAttention,
    build_transformer,
    condition,
    velocity,
)

DROPOUT = 0.1
PROBES = 256


def variants(data: EmojiData) -> list[str]:
    """Every text that `data.caption` can draw, and the empty prompt first."""
    names = [
        [name, *(f"{name}, {tag}" for tag in tags)]
        for name, tags in zip(data.names, data.tags, strict=True)
    ]
    plain = [text for texts in names for text in texts]
    return [
        "",
        *dict.fromkeys([*plain, *(f"{text}, {style} style" for text in plain for style in STYLES)]),
    ]


@torch.no_grad()
def encoded_texts(model: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompt (K, 16, 192) and pooled (K, 192) embeddings of the shipped text encoder."""
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer_2")
    encoder = CLIPTextModelWithProjection.from_pretrained(model / "text_encoder_2").float().eval()
    parts = [encode(encoder, ids) for ids in token_ids(tokenizer, texts).split(256)]
    return torch.cat([p for p, _ in parts]), torch.cat([p for _, p in parts])


@dataclass
class Batches:
    """Draws noisy latents with their conditions."""

    data: EmojiData
    mean: Tensor
    std: Tensor
    rows: dict[str, int]
    prompt: Tensor
    pooled: Tensor
    generator: torch.Generator
    rng: random.Random

    @classmethod
    def read(cls, emoji: Path, model: Path) -> Batches:
        """Encode the pictures and captions of the folder ``emoji`` by the parts of ``model``."""
        data = load(emoji)
        vae = AutoencoderKL.from_pretrained(model, subfolder="vae", dtype=torch.float32).eval()
        mean, std = latents(vae, torch.from_numpy(data.pictures))
        scale, texts = vae.config.scaling_factor, variants(data)
        rows = {text: row for row, text in enumerate(texts)}
        encoded = encoded_texts(model, texts)
        return cls(
            data, mean * scale, std * scale, rows, *encoded, torch.Generator(), random.Random()
        )

    def seed(self, seed: int) -> None:
        """Start both sources of randomness anew."""
        self.generator.manual_seed(seed)
        self.rng.seed(seed)

    def draw(self, size: int) -> tuple[dict[str, Tensor], Tensor]:
        """What `velocity` takes, and the true velocity."""
        index = torch.randint(0, len(self.mean), (size,), generator=self.generator)
        texts = [caption(self.data, i, self.rng) for i in index.tolist()]
        row = [self.rows["" if self.rng.random() < DROPOUT else text] for text in texts]
        context, pooled = condition(self.prompt[row], self.pooled[row])
        clean = self.mean[index]
        clean = clean + self.std[index] * torch.randn(clean.shape, generator=self.generator)
        noise = torch.randn(clean.shape, generator=self.generator)
        uniform = (torch.arange(size) + torch.rand(size, generator=self.generator)) / size
        time = torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).sigmoid()
        # half of the time as many zero tokens as the pipeline appends by default, else fewer
        fewer = ((ZEROS + 1) ** torch.rand(size, generator=self.generator) - 1).floor()
        zeros = torch.where(torch.rand(size, generator=self.generator) < 0.5, ZEROS, fewer)
        wide = time.view(-1, 1, 1, 1)
        inputs = {
            "noisy": clean.lerp(noise, wide),
            "time": time,
            "context": context,
            "pooled": pooled,
            "zeros": zeros,
        }
        return inputs, noise - clean


@torch.no_grad()
def probe(network: SD3Transformer2DModel, fixed: tuple[dict[str, Tensor], Tensor]) -> float:
    """Mean square error on noise, times and captions that are always the same."""
    inputs, target = fixed
    errors = []
    for rows in torch.arange(len(target)).split(64):
        output = velocity(network, **{key: value[rows] for key, value in inputs.items()})
        errors.append((output - target[rows]).square().mean(dim=(1, 2, 3)))
    return torch.cat(errors).mean().item()


@dataclass
class FlowTraining(Training):
    """Velocity prediction. `fixed`: what the averaged network is asked whenever it is saved."""

    called = "flow"
    network: SD3Transformer2DModel
    fixed: tuple[dict[str, Tensor], Tensor] | None = None

    def loss(self, batches: Batches, size: int) -> Tensor:
        inputs, target = batches.draw(size)
        return (velocity(self.network, **inputs) - target).square().mean()

    def checked(self) -> str:
        return "" if self.fixed is None else f"probe {probe(self.average.model, self.fixed):.4f}"


def start(args: argparse.Namespace) -> FlowTraining:
    """A new training, or the one that the work folder holds."""
    torch.manual_seed(0)
    network = build_transformer()
    network.set_attn_processor(CountedAttention())
    hidden, rest = [], []
    for name, weight in network.named_parameters():
        (hidden if weight.ndim >= 2 and name not in APART else rest).append(weight)
    adamw = torch.optim.AdamW(rest, lr=args.rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    both = [Muon(hidden, args.rate), adamw]
    training = FlowTraining(
        network.train(), Average(network, args.decay), both, Clock(args.minutes)
    )
    path = args.work / "flow.safetensors"
    if path.exists():
        training.load(path)
    return training


def train(args: argparse.Namespace) -> None:
    world, rank = joined()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    batches = Batches.read(args.emoji, args.model)
    batches.seed(0)
    fixed = batches.draw(PROBES)
    training = start(args)
    training.fixed = fixed
    batches.seed(1000 + training.step * world + rank)
    training.run(batches, args, world, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--emoji", type=Path, required=True, help="the emoji model's work folder (data)"
    )
    parser.add_argument("--model", type=Path, required=True, help="the shipped emoji model")
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--minutes", type=float, default=60, help="over all restarts")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--flat", type=float, default=0.4, help="part of the time at full rate")
    parser.add_argument("--decay", type=float, default=0.998, help="of the moving average")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
