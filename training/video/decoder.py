"""The shipped emoji autoencoder as an ``AutoencoderKLTemporalDecoder``.

SVD's class fixes 32 groups in every GroupNorm, has one residual block less in the middle of the
decoder and no convolution before it. So that 64x64 and 32x32 features keep their groups of 2 and of
4, each sits among silent channels (zero weights) of a layer with 32 such groups; at 16x16 the
groups shrink from 8 to 2. That network is tuned for some minutes: its encoder to the latents of the
shipped one, its decoder to the frames of clips. The temporal parts start, and stay, as identities.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch import Tensor, nn

from training.emoji.common import Average, Clock, load_checkpoint, log, save_atomic, to_float
from training.emoji.data import load
from training.emoji.vae import picture_loss, psnr
from training.video.clips import FRAMES, draw, kinds

WIDTHS = {16: 64, 32: 128, 64: 64}


def narrow(model: Path) -> AutoencoderKL:
    """The shipped autoencoder with the structure of SVD's, still without its silent channels."""
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm) and module.num_channels == 64:
            module.num_groups = 32
    for part in (vae.encoder, vae.decoder):
        part.mid_block.attentions = nn.ModuleList([None])
    vae.decoder.mid_block.resnets = vae.decoder.mid_block.resnets[:1]
    entry, before = vae.decoder.conv_in, vae.post_quant_conv
    with torch.no_grad():
        entry.bias += torch.einsum("oihw,i->o", entry.weight, before.bias)
        entry.weight.copy_(torch.einsum("oihw,ij->ojhw", entry.weight, before.weight[:, :, 0, 0]))
    vae.post_quant_conv = None
    vae.register_to_config(use_post_quant_conv=False)
    return vae


def counterpart(name: str) -> str:
    """The name in the temporal autoencoder of a parameter of the spatial one."""
    if name.startswith("decoder"):
        return re.sub(r"(resnets\.\d+)\.", r"\1.spatial_res_block.", name)
    return name


@torch.no_grad()
def widen(vae: AutoencoderKL) -> AutoencoderKLTemporalDecoder:
    """The same function in SVD's class: silent channels added, temporal parts identities."""
    wide = AutoencoderKLTemporalDecoder(
        down_block_types=vae.config.down_block_types,
        block_out_channels=tuple(WIDTHS[c] for c in vae.config.block_out_channels),
        layers_per_block=vae.config.layers_per_block,
        latent_channels=vae.config.latent_channels,
        sample_size=vae.config.sample_size,
        scaling_factor=vae.config.scaling_factor,
        force_upcast=False,
    ).eval()
    targets = dict(wide.named_parameters())
    for name, value in vae.named_parameters():
        target = targets[counterpart(name)].zero_()
        target[tuple(slice(0, size) for size in value.shape)] = value
    silent = (
        "temporal_res_block.conv2.weight",
        "temporal_res_block.conv2.bias",
        "to_out.0.weight",
        "to_out.0.bias",
    )
    for name, target in targets.items():
        if name.endswith(silent):
            target.zero_()
    wide.decoder.time_conv_out.weight.zero_()[:, :, 1, 0, 0] = torch.eye(3)
    wide.decoder.time_conv_out.bias.zero_()
    return wide


def batches(args: argparse.Namespace, count: int, seed: int) -> list[Tensor]:
    """Frames of ``count`` random clips: (8, 3, 64, 64) in -1..1, one row of clips each."""
    data, kind_of = load(args.emoji), kinds(args.emoji)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, len(data.pictures), (count,), generator=generator).tolist()
    return [to_float(draw(data, kind_of, generator, i)["frames"]) for i in index]


@torch.no_grad()
def report(vae: AutoencoderKL, teacher: AutoencoderKL, held: Tensor) -> str:
    """PSNR of held back frames and how far the latents are from the shipped ones."""
    latents, student = teacher.encode(held).latent_dist.mean, vae.encode(held).latent_dist.mean
    return (
        f"psnr {psnr(vae.decode(student).sample, held):.2f} dB, of shipped latents "
        f"{psnr(vae.decode(latents).sample, held):.2f}, shipped "
        f"{psnr(teacher.decode(latents).sample, held):.2f}; latents rms "
        f"{(student - latents).square().mean().sqrt():.4f} of {latents.std():.3f}"
    )


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    path, log_path = args.work / "decoder.safetensors", args.work / "decoder.log"
    teacher = AutoencoderKL.from_pretrained(
        args.model, subfolder="vae", torch_dtype=torch.float32
    ).eval()
    vae = narrow(args.model).to(memory_format=torch.channels_last).train()
    average, clock, step = Average(vae, 0.99), Clock(args.minutes), 0
    if path.exists():
        state = load_checkpoint(path)
        vae.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        step = average.steps = state["step"]
        clock.before = state["seconds"]
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=1e-3
    )
    held = torch.cat(batches(args, 12, seed=99))[::2]
    log(log_path, "decoder start " + report(average.model, teacher, held))
    while not clock.done:
        frames = torch.cat(
            [clip[torch.randperm(FRAMES)[:4]] for clip in batches(args, 4, seed=1000 + step)]
        )
        with torch.no_grad():
            goal = teacher.encode(frames).latent_dist
        noisy = goal.mean + args.noise * torch.randn_like(goal.mean)
        moments = vae.encode(frames).latent_dist
        distance = F.mse_loss(moments.mean, goal.mean) + 0.01 * F.mse_loss(
            moments.logvar, goal.logvar
        )
        loss = picture_loss(vae.decode(noisy).sample, frames) + distance
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = args.rate * clock.rate(flat=0.3)
        optimizer.step()
        average.update(vae)
        step += 1
        if step % 50 == 0 or clock.done:
            log(
                log_path,
                f"decoder step {step} loss {loss.item():.4f} "
                + report(average.model, teacher, held),
            )
            state = {"model": vae.state_dict(), "average": average.model.state_dict()}
            save_atomic(state | {"step": step, "seconds": clock.seconds}, path)


def built(work: Path, model: Path) -> AutoencoderKLTemporalDecoder:
    """The autoencoder of the last checkpoint, in SVD's class."""
    vae = narrow(model)
    vae.load_state_dict(load_checkpoint(work / "decoder.safetensors")["average"])
    return widen(vae)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emoji", type=Path, required=True, help="work folder of training/emoji")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="the shipped emoji model")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument(
        "--noise", type=float, default=0.03, help="on the latents, so that sampled ones decode well"
    )
    train(parser.parse_args())


if __name__ == "__main__":
    main()
