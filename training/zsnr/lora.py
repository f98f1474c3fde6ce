"""Low-rank additions to the emoji model's UNet: W + B A on every linear and convolution layer.

The file is the one that `pipe.load_lora_weights` reads: `unet.<layer>.lora_A.weight` and
`.lora_B.weight`.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from training.emoji.common import Clock, load_checkpoint, log, save_atomic
from training.emoji.data import caption, load
from training.emoji.text import encode, token_ids
from training.emoji.unet import scaled_latents

RANK = 24
LAYERS = (nn.Linear, nn.Conv2d)


class LowRank(nn.Module):
    """The parametrization W + B A; B starts at zero, so that training starts at the base model."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        rank = min(rank, outputs, inputs)
        bound = 1 / math.sqrt(inputs)
        self.lora_A = nn.Parameter(torch.empty(rank, inputs).uniform_(-bound, bound))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.lora_B @ self.lora_A).view(weight.shape)


def added(unet: nn.Module) -> dict[str, LowRank]:
    """The additions by the name of their layer."""
    return {
        name.split(".parametrizations")[0]: m
        for name, m in unet.named_modules()
        if isinstance(m, LowRank)
    }


def add(unet: nn.Module, rank: int = RANK) -> None:
    """Freeze the UNet and add a trainable low-rank product to each layer."""
    unet.requires_grad_(False)
    for module in [m for m in unet.modules() if isinstance(m, LAYERS)]:
        register_parametrization(module, "weight", LowRank(module.weight, rank))


def export(factors: dict[str, Tensor], shapes: dict[str, torch.Size], path: Path) -> None:
    """Write the factors as float16 in diffusers' LoRA format; a convolution's A is a convolution of
    its own.
    """
    tensors = {}
    for name, factor in factors.items():
        layer, kind = name.rsplit(".", 1)
        shape = shapes[layer]
        if len(shape) == 4:
            factor = (
                factor.view(len(factor), *shape[1:])
                if kind == "lora_A"
                else factor[:, :, None, None]
            )
        tensors[f"unet.{layer}.{kind}.weight"] = factor.half().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, path)


def base(folder: Path) -> StableDiffusionXLPipeline:
    """The model to start from, in float32, with the attention that trains fastest on a CPU."""
    pipe = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, add_watermarker=False
    )
    pipe.unet.set_attn_processor(AttnProcessor())
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass
class Texts:
    """Prompt embeddings of captions, kept; None is no prompt (zeros)."""

    pipe: StableDiffusionXLPipeline
    kept: dict[str | None, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, texts: list[str | None]) -> tuple[Tensor, Tensor]:
        """Hidden states (N, 16, 192) and pooled embeddings (N, 192)."""
        new = [t for t in dict.fromkeys(texts) if t not in self.kept]
        if new:
            ids = token_ids(self.pipe.tokenizer_2, [t or "" for t in new])
            for text, prompt, pooled in zip(
                new, *encode(self.pipe.text_encoder_2, ids), strict=True
            ):
                self.kept[text] = (prompt * 0, pooled * 0) if text is None else (prompt, pooled)
        pairs = [self.kept[t] for t in texts]
        return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])


def call(unet: nn.Module, noisy: Tensor, time: Tensor, prompt: Tensor, pooled: Tensor) -> Tensor:
    """The UNet's raw output for 64x64 pictures."""
    ids = torch.tensor([64.0, 64, 0, 0, 64, 64]).expand(len(noisy), 6)
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    return unet(
        noisy, time, prompt, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
    ).sample


@dataclass
class Pictures:
    """Draws clean latents with a caption of each."""

    work: Path
    rng: random.Random
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.data = load(self.work)
        self.mean, self.std = scaled_latents(self.work, self.data)

    def draw(self, size: int) -> tuple[Tensor, list[str]]:
        index = torch.randint(0, len(self.mean), (size,), generator=self.generator)
        spread = torch.randn(self.mean[index].shape, generator=self.generator)
        texts = [caption(self.data, i, self.rng) for i in index.tolist()]
        return self.mean[index] + self.std[index] * spread, texts


@dataclass
class Work(Clock):
    """A clock of this process' own computing: on a busy machine the training takes longer, and is
    not worse.
    """

    start: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        return self.before + time.process_time() - self.start


def fit(
    unet: nn.Module, loss: Callable[[int], Tensor], args: argparse.Namespace, name: str
) -> dict[str, Tensor]:
    """AdamW on the additions until the work is done; returns their moving average. A checkpoint is
    continued.
    """
    parts = added(unet)
    factors = {f"{n}.{k}": w for n, part in parts.items() for k, w in part.named_parameters()}
    average = {n: w.detach().clone() for n, w in factors.items()}
    optimizer = torch.optim.AdamW(
        factors.values(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    clock, step, running = Work(args.minutes, warmup=10), 0, 0.0
    path, log_path = args.work / f"{name}.safetensors", args.work / f"{name}.log"
    if path.exists():
        state = load_checkpoint(path)
        optimizer.load_state_dict(state["optimizer"])
        step, clock.before, average = state["step"], state["seconds"], state["average"]
        for n, w in factors.items():
            w.data.copy_(state["factors"][n])
    saved = clock.seconds
    while not clock.done:
        value = loss(args.batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(list(factors.values()), 1.0)
        optimizer.param_groups[0]["lr"] = args.rate * clock.rate(flat=args.flat)
        optimizer.step()
        step += 1
        decay = min(args.decay, (1 + step) / (10 + step))
        for n, w in factors.items():
            average[n].lerp_(w.detach(), 1 - decay)
        running = value.item() if step == 1 else 0.97 * running + 0.03 * value.item()
        if step % 20 == 0:
            rate = optimizer.param_groups[0]["lr"]
            log(
                log_path,
                f"{name} step {step} seconds {clock.seconds:.0f} loss {running:.4f} rate "
                f"{rate:.2e}",
            )
        if clock.seconds - saved > 60 or clock.done:
            saved = clock.seconds
            state = {
                "factors": factors,
                "average": average,
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            save_atomic(
                copy.copy(state) | {"seconds": clock.seconds, "seen": step * args.batch}, path
            )
    return average


def arguments(description: str | None, rate: float) -> argparse.ArgumentParser:
    """What the training scripts share on their command lines."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--work", type=Path, required=True, help="what training/emoji/data.py and vae.py wrote"
    )
    parser.add_argument("--base", type=Path, default=Path("src/timonel/zoo/emoji"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the LoRA file")
    parser.add_argument("--minutes", type=float, default=10, help="of CPU time, over all restarts")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--flat", type=float, default=0.3, help="part of the time at full rate")
    parser.add_argument("--decay", type=float, default=0.985, help="of the moving average")
    parser.add_argument("--rank", type=int, default=RANK)
    return parser
