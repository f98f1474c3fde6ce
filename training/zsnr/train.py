"""Turn the emoji model into a v model with zero terminal SNR that also paints plain black and
white.

``--epsilon`` trains the control: the same pictures and time, but epsilon on the base's own levels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn

from training.emoji.common import load_checkpoint
from training.emoji.unet import SCHEDULER
from training.zsnr.lora import Pictures, Texts, add, arguments, base, call, export, fit

ZERO_SNR = SCHEDULER | {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
PLAIN, DROPPED, FIRST = 0.10, 0.10, 0.05  # parts of a batch: plain colours, no prompt, pure noise


@dataclass
class Loss:
    """The mean squared error of v on one batch; of epsilon, weighted as the base was, for the
    control.
    """

    unet: nn.Module
    pictures: Pictures
    texts: Texts
    plain: dict[str, Tensor]
    epsilon: bool = False

    def __post_init__(self) -> None:
        self.alphas = EulerDiscreteScheduler(
            **(SCHEDULER if self.epsilon else ZERO_SNR)
        ).alphas_cumprod

    def clean(self, size: int) -> tuple[Tensor, list[str | None]]:
        """Latents and captions; some are plain colours, some have no prompt."""
        latents, captions = self.pictures.draw(size)
        texts: list[str | None] = list(captions)
        for i in range(size):
            fate = self.pictures.rng.random()
            if fate < PLAIN:
                name = self.pictures.rng.choice(list(self.plain))
                latents[i], texts[i] = self.plain[name], name
            elif fate < PLAIN + DROPPED:
                texts[i] = None
        return latents, texts

    def __call__(self, size: int) -> Tensor:
        generator = self.pictures.generator
        clean, texts = self.clean(size)
        uniform = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        time = (1000 * uniform**0.75).long().clamp(0, 999)
        time[torch.rand(size, generator=generator) < FIRST] = 999
        alpha = self.alphas[time].view(-1, 1, 1, 1).sqrt()
        sigma = (1 - alpha**2).sqrt()
        noise = torch.randn(clean.shape, generator=generator)
        output = call(self.unet, alpha * clean + sigma * noise, time, *self.texts(texts))
        if self.epsilon:
            return ((output - noise).square() * (1 / alpha**2).clamp(max=8)).mean()
        return (output - (alpha * noise - sigma * clean)).square().mean()


def main() -> None:
    parser = arguments(__doc__, rate=3e-3)
    parser.add_argument("--epsilon", action="store_true", help="the control")
    args = parser.parse_args()
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
    plain = load_checkpoint(args.work / "plain.safetensors")
    loss = Loss(pipe.unet.train(), pictures, Texts(pipe), plain, args.epsilon)
    average = fit(pipe.unet, loss, args, "epsilon" if args.epsilon else "zsnr")
    export(average, shapes, args.out / "pytorch_lora_weights.safetensors")


if __name__ == "__main__":
    main()
