"""Train the UNet and, with it, the text encoder on the cached latents of the autoencoder.

Epsilon prediction on SDXL's noise schedule. ``--init`` starts from a pipeline folder; without it a
checkpoint in ``--work`` is continued.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from training.emoji.common import Average, Clock, load_checkpoint, save_atomic
from training.emoji.data import EmojiData, caption, load
from training.emoji.loop import Training, joined
from training.emoji.muon import Muon
from training.emoji.text import WIDTH, build_encoder, encode, token_ids, write_tokenizer
from training.emoji.vae import latents

TIME_DIM = 32
DROPOUT = 0.12
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
}


def build_unet() -> UNet2DConditionModel:
    """The untrained UNet: SDXL's kind, three levels, cross attention on the two lower ones."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 192),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(3, 3, 6),
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_DIM,
        projection_class_embeddings_input_dim=6 * TIME_DIM + WIDTH,
        norm_num_groups=16,
    )


class Network(nn.Module):
    """What is trained together: the text encoder and the UNet."""

    def __init__(self, encoder: CLIPTextModelWithProjection, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.unet = unet

    def forward(self, noisy: Tensor, time: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
        """Predicted noise; where ``keep`` is 0 the condition is all zeros (no prompt)."""
        prompt, pooled = encode(self.encoder, ids)
        time_ids = torch.tensor([64.0, 64, 0, 0, 64, 64]).expand(len(ids), 6)
        added = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids}
        prompt = prompt * keep[:, None, None]
        return self.unet(noisy, time, prompt, added_cond_kwargs=added).sample


@dataclass
class Batches:
    """Draws noisy latents with their captions."""

    data: EmojiData
    mean: Tensor
    std: Tensor
    tokenizer: CLIPTokenizer
    alphas: Tensor
    generator: torch.Generator
    rng: random.Random

    def draw(self, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """noisy, time, ids, keep, noise, weight."""
        index = torch.randint(0, len(self.mean), (size,), generator=self.generator)
        texts = [caption(self.data, i, self.rng) for i in index.tolist()]
        fate = [self.rng.random() for _ in texts]
        texts = ["" if f < 0.2 * DROPOUT else t for f, t in zip(fate, texts, strict=True)]
        keep = torch.tensor([float(not 0.2 * DROPOUT <= f < DROPOUT) for f in fate])
        spread = torch.randn(self.mean[index].shape, generator=self.generator)
        clean = self.mean[index] + self.std[index] * spread
        uniform = (torch.arange(size) + torch.rand(size, generator=self.generator)) / size
        time = (1000 * uniform**0.85).long().clamp(0, 999)
        alpha = self.alphas[time].view(-1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=self.generator)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        snr = (alpha / (1 - alpha)).flatten()
        weight = (1 + 1 / snr).clamp(max=8) * (5 / snr).clamp(max=1)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return noisy, time, token_ids(self.tokenizer, texts), keep, noise, weight / weight.mean()


def scaled_latents(work: Path, data: EmojiData) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every picture's latents, in the UNet's scaling; cached."""
    path = work / "latents.safetensors"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        mean, std = latents(vae, torch.from_numpy(data.pictures))
        scale = vae.config.scaling_factor
        save_atomic({"mean": mean * scale, "std": std * scale}, path)
    cached = load_checkpoint(path)
    return cached["mean"], cached["std"]


def start(args: argparse.Namespace, data: EmojiData) -> tuple[Network, CLIPTokenizer]:
    """Network and tokenizer: those of ``--init``, or new ones."""
    if args.init:
        tokenizer = CLIPTokenizer.from_pretrained(args.init / "tokenizer_2")
        encoder = CLIPTextModelWithProjection.from_pretrained(args.init / "text_encoder_2")
        unet = UNet2DConditionModel.from_pretrained(args.init, subfolder="unet")
        network = Network(encoder.float(), unet.float())
    else:
        tokenizer = write_tokenizer(data, args.work / "tokenizer_2")
        network = Network(build_encoder(tokenizer), build_unet())
    network.unet.set_attn_processor(AttnProcessor())
    return network.to(memory_format=torch.channels_last).train(), tokenizer


def optimizers(network: Network, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices; AdamW for embeddings, vectors, first and last convolution."""
    apart = ("embedding.weight", "conv_in.weight", "conv_out.weight")
    hidden, rest = [], []
    for name, weight in network.named_parameters():
        (hidden if weight.ndim >= 2 and not name.endswith(apart) else rest).append(weight)
    adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    return [Muon(hidden, rate), adamw]


class EmojiTraining(Training):
    """Epsilon prediction, weighted by the noise."""

    called, logged = "unet", 50
    network: Network

    def loss(self, batches: Batches, size: int) -> Tensor:
        noisy, time, ids, keep, noise, weight = batches.draw(size)
        error = (self.network(noisy, time, ids, keep) - noise).square().mean(dim=(1, 2, 3))
        return (error * weight).mean()


def train(args: argparse.Namespace) -> None:
    world, rank = joined()
    torch.set_num_threads(
        max(1, 2 // world)
    )  # two processes use two cores better than two threads do
    torch.manual_seed(0)
    data = load(args.work)
    network, tokenizer = start(args, data)
    average = Average(network, args.decay)
    training = EmojiTraining(network, average, optimizers(network, args.rate), Clock(args.minutes))
    path = args.work / "unet.safetensors"
    if path.exists() and not args.init:
        training.load(path)
    mean, std = scaled_latents(args.work, data)
    alphas = EulerDiscreteScheduler(**SCHEDULER).alphas_cumprod
    seed = training.step * world + rank
    generator = torch.Generator().manual_seed(1000 + seed)
    batches = Batches(data, mean, std, tokenizer, alphas, generator, random.Random(seed))
    training.run(batches, args, world, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--flat", type=float, default=0.4, help="part of the time at full rate")
    parser.add_argument("--decay", type=float, default=0.998, help="of the moving average")
    parser.add_argument("--init", type=Path, help="start from this pipeline folder")
    args = parser.parse_args()
    train(args)


if __name__ == "__main__":
    main()
