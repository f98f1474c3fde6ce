"""Flux 1 and 2, and the models that pack latents as Flux does."""

from __future__ import annotations

from typing import Any

import diffusers as d

from .nets import WIDTH, flow, kl, mask, picture, tensor
from .registry import LEFT_OUT, add
from .standins import Processor, Text

FLUX = "Flux"
NET: dict[str, Any] = {
    "patch_size": 1, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip
DYNAMIC: dict[str, Any] = {"use_dynamic_shifting": True, "shift": 3.0}


def parts(packed: int = 16, out: int = 16, guided: bool = True, **changes: Any) -> dict[str, Any]:
    network = d.FluxTransformer2DModel(
        in_channels=packed, out_channels=out, guidance_embeds=guided, **NET
    )
    return {
        "transformer": network, "scheduler": flow(**DYNAMIC), "text_encoder": Text(),
        "text_encoder_2": Text(),
        "vae": kl(4, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06,
        scaling_factor=1.5),
    } | changes  # fmt: skip


def image() -> dict[str, Any]:
    return {"image": tensor(), "strength": 0.8}


def control() -> Any:
    return d.FluxControlNetModel(in_channels=16, **NET)


add("FluxPipeline", FLUX, parts, guidance="embedded", label=" (dev)")
add(
    "FluxPipeline",
    FLUX,
    lambda: parts(guided=False, scheduler=flow()),
    guidance="none",
    label=" (schnell)",
)
add(
    "FluxPipeline", FLUX, parts, lambda: {"negative_prompt": "blur", "true_cfg_scale": 3.0},
    guidance="sequential",
    label=" (true CFG)",
)  # fmt: skip
add("FluxImg2ImgPipeline", FLUX, parts, image, guidance="embedded")
add(
    "FluxInpaintPipeline",
    FLUX,
    parts,
    lambda: image() | {"mask_image": mask()},
    guidance="embedded",
)
add("FluxFillPipeline", FLUX, lambda: parts(16 + 16 + 16),
    lambda: {"image": tensor(), "mask_image": mask()}, guidance="embedded")  # fmt: skip
add(
    "FluxControlPipeline",
    FLUX,
    lambda: parts(32),
    lambda: {"control_image": tensor()},
    guidance="embedded",
)
add("FluxControlImg2ImgPipeline", FLUX, lambda: parts(32),
    lambda: image() | {"control_image": tensor(seed=1)}, guidance="embedded")  # fmt: skip
add(
    "FluxControlInpaintPipeline", FLUX, lambda: parts(32),
    lambda: image() | {"control_image": tensor(seed=1), "mask_image": mask()}, guidance="embedded",
)  # fmt: skip
add("FluxControlNetPipeline", "ControlNet", lambda: parts(controlnet=control()),
    lambda: {"control_image": tensor()}, guidance="embedded")  # fmt: skip
add(
    "FluxControlNetImg2ImgPipeline", "ControlNet", lambda: parts(controlnet=control()),
    lambda: image() | {"control_image": tensor(seed=1)}, guidance="embedded",
)  # fmt: skip
add(
    "FluxControlNetInpaintPipeline", "ControlNet", lambda: parts(controlnet=control()),
    lambda: image() | {"control_image": tensor(seed=1), "mask_image": mask()}, guidance="embedded",
)  # fmt: skip
KONTEXT: dict[str, Any] = {"max_area": 16 * 16, "_auto_resize": False}
add(
    "FluxKontextPipeline",
    "Flux Kontext",
    parts,
    lambda: {"image": picture()} | KONTEXT,
    guidance="embedded",
)
add(
    "FluxKontextInpaintPipeline", "Flux Kontext", parts,
    lambda: image() | {"mask_image": mask(), "_auto_resize": False}, guidance="embedded",
)  # fmt: skip


def rows() -> dict[str, Any]:
    """VisualCloze's grid: one row of examples and one that lacks its last picture."""
    grid = [[picture(32, 0), picture(32, 1)], [picture(32, 2), None]]
    texts = {
        "task_prompt": "from depth to a picture",
        "content_prompt": "a lake",
        "prompt": LEFT_OUT,
    }
    return {"image": grid, "max_sequence_length": 77} | texts


add("VisualClozeGenerationPipeline", "VisualCloze", lambda: parts(16 + 16 + 16, resolution=32),
    rows, guidance="embedded", two="one grid of pictures a call")  # fmt: skip
add(
    "VisualClozePipeline", "VisualCloze", lambda: parts(16 + 16 + 16, resolution=32),
    lambda: rows() | {"upsampling_height": 32, "upsampling_width": 32, "upsampling_strength": 0.4},
    guidance="embedded", two="one grid of pictures a call",
)  # fmt: skip


# -- Flux 2 -----------------------------------------------------------------------------------
def flux2(guided: bool = True, **changes: Any) -> dict[str, Any]:
    network = d.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=guided,
    )  # fmt: skip
    vae = d.AutoencoderKLFlux2(
        sample_size=16, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=1,
    )  # fmt: skip
    return {
        "transformer": network,
        "vae": vae,
        "scheduler": flow(**DYNAMIC),
        "tokenizer": Processor(),
    } | changes


LAYERS = {"text_encoder_out_layers": (1,), "max_sequence_length": 16}
add("Flux2Pipeline", "Flux 2", flux2, lambda: LAYERS, guidance="embedded")
add(
    "Flux2Pipeline",
    "Flux 2",
    flux2,
    lambda: LAYERS | {"image": picture(64)},
    guidance="embedded",
    label=" (edit)",
)
add(
    "Flux2KleinPipeline",
    "Flux 2",
    lambda: flux2(False, is_distilled=False),
    lambda: LAYERS,
    guidance="sequential",
)
add(
    "Flux2KleinKVPipeline",
    "Flux 2",
    lambda: flux2(False),
    lambda: LAYERS | {"image": picture(64)},
    guidance="none",
)
add(
    "Flux2KleinInpaintPipeline", "Flux 2", lambda: flux2(False, is_distilled=False),
    lambda: LAYERS | image() | {"mask_image": mask()}, guidance="sequential",
)  # fmt: skip
