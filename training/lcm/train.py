"""Distil the emoji model: one call leads from noisy latents to the end of the teacher's guided
path.

Latent consistency distillation (arXiv 2310.04378) asks the student for the end of the guided ODE
from each of its points, and bootstraps that end from the student itself. Here the paths are few
enough to be computed, so the student learns their ends directly. Below the first level a picture
that is noised leads back to itself (paths.py measures it), so there pictures with new noise, path
ends and real ones, do as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.emoji.common import load_checkpoint
from training.lcm.paths import ALPHA, INDICES, SIGMA, captioned
from training.zsnr.lora import Pictures, Texts, add, arguments, base, call, export, fit

FIRST, BETWEEN = (
    0.3,
    0.1,
)  # parts of a batch: where paths begin, and their other points; the rest is noised anew
LEVELS = torch.tensor(
    [999, 759, 659, 499, 319, 259, 139]
)  # of the new noise: those of 2 to 4 steps, one below
HUBER = 0.1


@dataclass
class Loss:
    """The pseudo-Huber distance to the ends on one batch; reads new shards as they appear."""

    unet: nn.Module
    texts: Texts
    pictures: Pictures
    seen: set[str] = field(default_factory=set)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def refresh(self) -> None:
        """Take in shards written since the last call."""
        for path in sorted((self.pictures.work / "paths").glob("*.safetensors")):
            if path.name not in self.seen:
                self.seen.add(path.name)
                new = load_checkpoint(path)
                self.rows = {
                    k: torch.cat([self.rows[k], v]) if self.rows else v for k, v in new.items()
                }
        if not self.rows:
            raise FileNotFoundError(
                f"no paths below {self.pictures.work / 'paths'}: run paths.py first"
            )

    def draw(self, size: int) -> tuple[Tensor, Tensor, Tensor, list[str | None]]:
        """Noisy latents, their times, the ends of their paths, captions."""
        generator, names = self.pictures.generator, self.pictures.data.names
        index = torch.randint(0, len(self.rows["end"]), (size,), generator=generator)
        end = self.rows["end"][index].float()
        texts: list[str | None] = [
            captioned(names, *row) for row in self.rows["caption"][index].tolist()
        ]
        fate = torch.rand(size, generator=generator)
        place = torch.randint(1, len(INDICES), (size,), generator=generator) * (fate >= FIRST)
        time, x = torch.tensor(INDICES)[place], self.rows["x"][index, place].float()
        real, said = self.pictures.draw(size)
        level = LEVELS[torch.randint(0, len(LEVELS), (size,), generator=generator)]
        for i in (fate > FIRST + BETWEEN).nonzero().flatten().tolist():
            if level[i] == LEVELS[0] or i % 2:
                end[i], texts[i] = real[i], said[i]
            time[i] = level[i]
            x[i] = ALPHA[time[i]] * end[i] + SIGMA[time[i]] * torch.randn(
                end[i].shape, generator=generator
            )
        return x, time, end, texts

    def __call__(self, size: int) -> Tensor:
        self.refresh()
        x, time, end, texts = self.draw(size)
        output = call(self.unet, x, time, *self.texts(texts))
        error = (x - SIGMA[time].view(-1, 1, 1, 1) * output) / ALPHA[time].view(-1, 1, 1, 1) - end
        return ((error**2 + HUBER**2).sqrt() - HUBER).mean()


def main() -> None:
    args = arguments(__doc__, rate=2e-3).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pipe = base(args.base)
    shapes = {
        name: m.weight.shape
        for name, m in pipe.unet.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d))
    }
    add(pipe.unet, args.rank)
    pictures = Pictures(args.work, random.Random(1), torch.Generator().manual_seed(1))
    loss = Loss(pipe.unet.train(), Texts(pipe), pictures)
    average = fit(pipe.unet, loss, args, "lcm")
    export(average, shapes, args.out / "pytorch_lora_weights.safetensors")


if __name__ == "__main__":
    main()
