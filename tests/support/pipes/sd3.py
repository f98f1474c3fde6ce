"""Stable Diffusion 3 and its variants."""

from __future__ import annotations

from typing import Any

import diffusers as d

from .nets import WIDTH, flow, kl, mask, tensor
from .registry import add
from .standins import Text

SD3 = "Stable Diffusion 3"
NET: dict[str, Any] = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 2 * WIDTH, "caption_projection_dim": 32,
    "pooled_projection_dim": 2 * WIDTH, "out_channels": 4, "pos_embed_max_size": 8,
}  # fmt: skip


def parts(channels: int = 4, **changes: Any) -> dict[str, Any]:
    encoders = {"text_encoder": Text(pooled=WIDTH), "text_encoder_2": Text(pooled=WIDTH)}
    network = d.SD3Transformer2DModel(**(NET | {"in_channels": channels, "out_channels": channels}))
    made = {
        "transformer": network,
        "vae": kl(channels, shift_factor=0.06, scaling_factor=1.5),
        "scheduler": flow(shift=3.0),
    }
    return made | encoders | {"text_encoder_3": Text(2 * WIDTH)} | changes


def image() -> dict[str, Any]:
    return {"image": tensor(), "strength": 0.8}


def control(extra: int = 0) -> Any:
    return d.SD3ControlNetModel(**NET, extra_conditioning_channels=extra)


add("StableDiffusion3Pipeline", SD3, parts)
add("StableDiffusion3Img2ImgPipeline", SD3, parts, image)
add(
    "StableDiffusion3InpaintPipeline",
    SD3,
    lambda: parts(16),
    lambda: image() | {"mask_image": mask()},
)
add(
    "StableDiffusion3PAGPipeline",
    "PAG",
    lambda: parts() | {"pag_applied_layers": "blocks.0"},
    guidance="threefold",
)
add(
    "StableDiffusion3PAGImg2ImgPipeline", "PAG",
    lambda: parts() | {"pag_applied_layers": "blocks.0"}, image,
    guidance="threefold",
)  # fmt: skip
add(
    "StableDiffusion3ControlNetPipeline", "ControlNet", lambda: parts(controlnet=control()),
    lambda: {"control_image": tensor()},
)  # fmt: skip
add(
    "StableDiffusion3ControlNetInpaintingPipeline", "ControlNet",
    lambda: parts(controlnet=control(1)),
    lambda: {"control_image": tensor(), "control_mask": mask()},
)  # fmt: skip
