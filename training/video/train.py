"""Train the video UNet on the encoded clips, as SVD was trained; the image encoder is frozen.

EDM: sigma is log-normal, the prediction is v (sigma_data 1), c_noise = 0.25 log sigma. A checkpoint
in ``--work`` is continued; ``torchrun --nproc_per_node 2`` shares the batch over two processes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from training.emoji.common import Average, Clock, load_checkpoint, to_float
from training.emoji.loop import Training, joined
from training.emoji.unet import optimizers
from training.video import clips
from training.video.network import Network, build_encoder, build_unet

SIGMA_MEAN, SIGMA_STD = 1.0, 1.6  # of log sigma; SVD: 0.7 and 1.6 for clips of 14 frames
DROP_BOTH, DROP_STILL, DROP_EMBEDDING = 0.05, 0.02, 0.03


@dataclass
class Batches:
    """Draws noisy clips with their conditions; reads new shards as they appear."""

    work: Path
    generator: torch.Generator
    seen: set[str] = field(default_factory=set)
    rows: dict[str, Tensor] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)

    def refresh(self) -> None:
        """Take in shards written since the last call."""
        found = clips.read(self.work, self.seen)
        for shard in found:
            self.rows = {
                k: torch.cat([self.rows[k], v]) if k in self.rows else v for k, v in shard.items()
            }
        if not self.rows:
            raise FileNotFoundError(f"no clips below {self.work / 'clips'}: run clips.py first")
        if found:
            self.order = []

    def draw(self, size: int) -> dict[str, Tensor]:
        """One batch: every clip once before any comes again."""
        while len(self.order) < size:
            self.order += torch.randperm(len(self.rows["ids"]), generator=self.generator).tolist()
        index, self.order = torch.tensor(self.order[:size]), self.order[size:]
        batch = {key: row[index] for key, row in self.rows.items()}
        clean = batch["latents"].float()
        uniform = (torch.arange(size) + torch.rand(size, generator=self.generator)) / size
        spread = torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4))
        sigma = (SIGMA_MEAN + SIGMA_STD * spread).exp()
        noise = torch.randn(clean.shape, generator=self.generator)
        wide = sigma.view(-1, 1, 1, 1, 1)
        fate = torch.rand(size, generator=self.generator)
        both = fate < DROP_BOTH
        still = fate < DROP_BOTH + DROP_STILL
        embedding = both | (fate > 1 - DROP_EMBEDDING)
        return batch | {
            "sigma": sigma,
            "noisy": clean + wide * noise,
            "target": (noise - wide * clean) / (wide**2 + 1).sqrt(),
            "still": batch["still"].float() * ~still.view(-1, 1, 1, 1),
            "keep": (~embedding).float(),
        }


@dataclass
class VideoTraining(Training):
    """v prediction. `far`: the running loss of clips that are mostly noise."""

    called = "video"
    network: Network
    far: float = 0.0

    def loss(self, batches: Batches, size: int) -> Tensor:
        if self.step % 100 == 0 or not batches.rows:
            batches.refresh()
        batch = batches.draw(size)
        embedding = self.network.embed(to_float(batch["picture"])) * batch["keep"][:, None]
        output = self.network(
            batch["noisy"], batch["still"], batch["sigma"], embedding, batch["ids"]
        )
        error = (output - batch["target"]).square().mean(dim=(1, 2, 3, 4))
        for value in error.detach()[batch["sigma"] > 5].tolist():
            self.far = value if self.far == 0 else 0.99 * self.far + 0.01 * value
        return error.mean()

    def told(self, batches: Batches) -> str:
        return f"clips {self.seen} of {len(batches.rows['ids'])} far {self.far:.4f}"


def start(args: argparse.Namespace) -> VideoTraining:
    """A new training, or the one that the work folder holds."""
    torch.manual_seed(0)
    encoder = build_encoder()
    encoder.load_state_dict(load_checkpoint(args.work / "encoder.folded.safetensors")["encoder"])
    network = Network(encoder, build_unet())
    network.unet.set_attn_processor(AttnProcessor())
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    network.unet.train()
    average = Average(network, args.decay)
    training = VideoTraining(network, average, optimizers(network, args.rate), Clock(args.minutes))
    path = args.work / "video.safetensors"
    if path.exists():
        training.load(path)
    return training


def train(args: argparse.Namespace) -> None:
    world, rank = joined()
    torch.set_num_threads(1)
    training = start(args)
    batches = Batches(args.work, torch.Generator().manual_seed(1000 + training.step * world + rank))
    training.run(batches, args, world, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="over all restarts")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--flat", type=float, default=0.4, help="part of the time at full rate")
    parser.add_argument("--decay", type=float, default=0.995, help="of the moving average")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
