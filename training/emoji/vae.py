"""Train the autoencoder: 64x64 RGB <-> 4x16x16 latents, a diffusers ``AutoencoderKL``.

``--decoder-only`` keeps the encoder (and so the latents that a UNet was trained on) and goes on
with the decoder alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from training.emoji.common import (
    Average,
    Clock,
    jitter,
    load_checkpoint,
    log,
    save_atomic,
    shift,
    to_float,
    to_uint8,
)
from training.emoji.data import contact_sheet, load

KL_WEIGHT = 3e-3


def build() -> AutoencoderKL:
    """The untrained autoencoder: three levels, no attention, 0.65 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the right and lower neighbour."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def picture_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + MSE + L1 of the edges."""
    loss = F.l1_loss(output, target) + F.mse_loss(output, target)
    for a, b in zip(edges(output), edges(target), strict=True):
        loss = loss + F.l1_loss(a, b)
    return loss


def psnr(output: Tensor, target: Tensor) -> float:
    """Mean over the pictures of the PSNR in dB, pictures in -1..1."""
    error = (output.clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)).div(4)
    return float((-10 * error.log10()).mean())


@torch.no_grad()
def latents(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Unscaled posterior mean and standard deviation of uint8 pictures."""
    means, stds = [], []
    for part in pictures.split(64):
        posterior = vae.encode(to_float(part)).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def report(vae: AutoencoderKL, pictures: Tensor, work: Path, rescale: bool) -> str:
    """PSNR over all pictures, latent statistics; writes a sheet of pairs; sets scaling_factor."""
    mean, std = latents(vae, pictures)
    output = torch.cat([vae.decode(part).sample for part in mean.split(64)])
    scale = float(mean.square().add(std.square()).mean() - mean.mean().square()) ** -0.5
    if rescale:
        vae.register_to_config(scaling_factor=round(scale, 5))
    pairs = torch.stack([pictures[:72], to_uint8(output[:72])], 1).flatten(0, 1)
    contact_sheet(pairs.numpy(), 16, work / "vae.png")
    per_channel = [round(v, 2) for v in mean.std(dim=(0, 2, 3)).tolist()]
    return (
        f"psnr {psnr(output, to_float(pictures)):.2f} dB, latent mean {mean.mean():.3f}, "
        f"std {per_channel}, largest {mean.abs().max():.1f}, posterior std {std.mean():.3f}, "
        f"scaling_factor {scale:.4f}"
    )


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(args.seed)
    pictures = torch.from_numpy(load(args.work).pictures)
    path, log_path = args.work / "vae.safetensors", args.work / "vae.log"
    vae = AutoencoderKL.from_pretrained(args.init, subfolder="vae") if args.init else build()
    vae = vae.to(memory_format=torch.channels_last).train()
    average = Average(vae, 0.995)
    clock = Clock(args.minutes)
    step = 0
    if path.exists() and not args.init:
        state = load_checkpoint(path)
        vae.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        step, average.steps = state["step"], state["step"]
        clock.before = 0.0 if args.decoder_only else state["seconds"]
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    weights = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.rate, betas=(0.9, 0.99), weight_decay=1e-3)
    saved = clock.seconds
    while not clock.done:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * clock.rate(flat=0.3)
        index = torch.randint(0, len(pictures), (args.batch,), generator=generator)
        target = jitter(shift(to_float(pictures[index]), 4, generator), 0.1, generator)
        flip = torch.rand(args.batch, 1, 1, 1, generator=generator) < 0.3
        target = torch.where(flip, target.flip(3), target)
        target = target.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(target).latent_dist
        output = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = picture_loss(output, target) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        average.update(vae)
        step += 1
        if step % 100 == 0:
            log(
                log_path,
                f"vae step {step} pictures {step * args.batch} seconds {clock.seconds:.0f} "
                f"loss {loss.item():.4f} kl {kl.item():.3f} psnr {psnr(output, target):.2f}",
            )
        if clock.seconds - saved > 120 or clock.done:
            saved = clock.seconds
            log(
                log_path, "vae " + report(average.model, pictures, args.work, not args.decoder_only)
            )
            state = {"model": vae.state_dict(), "average": average.model.state_dict()}
            save_atomic(state | {"step": step, "seconds": clock.seconds}, path)
            average.model.save_pretrained(args.work / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--init", type=Path, help="start from this pipeline folder")
    args = parser.parse_args()
    torch.set_num_threads(2)
    train(args)


if __name__ == "__main__":
    main()
