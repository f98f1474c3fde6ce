"""Tiny networks and schedulers that several families share. Latents have half the side of the
pictures.
"""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch
from PIL import Image

WIDTH = 32  # of the text encoders' states


def ddim(**changes: Any) -> Any:
    """Stable Diffusion's training schedule."""
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
    }
    return d.DDIMScheduler(**(options | {"set_alpha_to_one": False, "steps_offset": 1} | changes))


def euler(**changes: Any) -> Any:
    """SDXL's."""
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    return d.EulerDiscreteScheduler(**(options | {"timestep_spacing": "leading"} | changes))


def flow(**changes: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler(**changes)


def kl(latents: int = 4, levels: int = 2, side: int = 16, **changes: Any) -> Any:
    """The autoencoder of Stable Diffusion's kind."""
    return d.AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latents,
        norm_num_groups=4,
        sample_size=side,
        **({"layers_per_block": 1} | changes),
    )


def unet(inside: int = 4, outside: int = 4, cross: int = WIDTH, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "sample_size": 8, "in_channels": inside, "out_channels": outside,
        "block_out_channels": (8, 16),
        "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
        "cross_attention_dim": cross, "norm_num_groups": 4,
    }  # fmt: skip
    return d.UNet2DConditionModel(**(options | changes))


def unet_xl(
    inside: int = 4, sizes: int = 6, pooled: int = WIDTH, cross: int = 2 * WIDTH, **changes: Any
) -> Any:
    """SDXL's: it is told sizes, and one vector for the prompt."""
    added = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 1),
        "projection_class_embeddings_input_dim": sizes * 8 + pooled,
    }  # fmt: skip
    return unet(inside, cross=cross, **(added | changes))


def controlnet(cls: str = "ControlNetModel", cross: int = WIDTH, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "in_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 8,
        "cross_attention_dim": cross, "norm_num_groups": 4,
        "conditioning_embedding_out_channels": (8, 8),
    }  # fmt: skip
    return getattr(d, cls)(**(options | changes))


# for adapters that add to the first block before it halves the picture
CROSS_FIRST: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip

XL_CONTROL: dict[str, Any] = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 1),
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH, "cross": 2 * WIDTH,
}  # fmt: skip


def wan_vae(**changes: Any) -> Any:
    options = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return d.AutoencoderKLWan(**(options | {"temperal_downsample": [False, True, True]} | changes))


def qwen_vae(latents: int = 4) -> Any:
    return d.AutoencoderKLQwenImage(
        base_dim=8, z_dim=latents, dim_mult=[1, 2, 4], num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * latents, latents_std=[1.0] * latents,
    )  # fmt: skip


def tensor(side: int = 16, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """A picture (1, C, side, side) in 0..1."""
    return torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(seed))


def picture(side: int = 16, seed: int = 0) -> Image.Image:
    pixels = (tensor(side, seed)[0].permute(1, 2, 0) * 255).byte().numpy()
    return Image.fromarray(pixels)


def mask(side: int = 16) -> torch.Tensor:
    """The left half is repainted."""
    made = torch.zeros(1, 1, side, side)
    made[..., : side // 2] = 1
    return made


def clip(frames: int = 9, side: int = 16) -> list[Image.Image]:
    return [picture(side, seed) for seed in range(frames)]
