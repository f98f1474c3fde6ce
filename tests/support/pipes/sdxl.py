"""Stable Diffusion XL and what is built on it: ControlNet, adapters, PAG, Kolors."""

from __future__ import annotations

from typing import Any

import diffusers as d

from .nets import CROSS_FIRST, WIDTH, XL_CONTROL, controlnet, euler, kl, mask, tensor, unet_xl
from .registry import add
from .sd import pag
from .standins import Text, Words

XL, CONTROL, PAG = "Stable Diffusion XL", "ControlNet", "PAG"


def parts(**changes: Any) -> dict[str, Any]:
    encoders = {"text_encoder": Text(), "text_encoder_2": Text(pooled=WIDTH)}
    return {"vae": kl(), "unet": unet_xl(), "scheduler": euler()} | encoders | changes


def refining(**changes: Any) -> dict[str, Any]:
    """With the five numbers of the refiner's sizes."""
    return parts(unet=unet_xl(sizes=5), requires_aesthetics_score=True) | changes


def image() -> dict[str, Any]:
    return {"image": tensor(), "strength": 0.8}


def inpaint() -> dict[str, Any]:
    return {"image": tensor(), "mask_image": mask(), "strength": 0.99}


def control(cls: str = "ControlNetModel", **changes: Any) -> Any:
    return controlnet(cls, **(XL_CONTROL | changes))


def union() -> Any:
    return control(
        "ControlNetUnionModel", num_control_type=6, num_trans_channel=8, num_trans_head=2,
        num_proj_channel=8,
    )  # fmt: skip


add("StableDiffusionXLPipeline", XL, parts)
add("StableDiffusionXLImg2ImgPipeline", XL, refining, image)
add("StableDiffusionXLInpaintPipeline", XL, refining, inpaint)
add(
    "StableDiffusionXLInstructPix2PixPipeline", XL, lambda: parts(unet=unet_xl(8)),
    lambda: {"image": tensor(), "image_guidance_scale": 1.5}, guidance="threefold",
)  # fmt: skip
add(
    "StableDiffusionXLControlNetPipeline",
    CONTROL,
    lambda: parts(controlnet=control()),
    lambda: {"image": tensor()},
)
add(
    "StableDiffusionXLControlNetImg2ImgPipeline", CONTROL, lambda: parts(controlnet=control()),
    lambda: image() | {"control_image": tensor(seed=1)},
)  # fmt: skip
add(
    "StableDiffusionXLControlNetInpaintPipeline", CONTROL, lambda: parts(controlnet=control()),
    lambda: inpaint() | {"control_image": tensor(seed=1)},
)  # fmt: skip
add(
    "StableDiffusionXLControlNetUnionPipeline", "ControlNet union",
    lambda: parts(controlnet=union()),
    lambda: {"control_image": [tensor()], "control_mode": [0]},
)  # fmt: skip
add(
    "StableDiffusionXLControlNetUnionImg2ImgPipeline", "ControlNet union",
    lambda: parts(controlnet=union()),
    lambda: image() | {"control_image": [tensor(seed=1)], "control_mode": [0]},
)  # fmt: skip
add(
    "StableDiffusionXLControlNetUnionInpaintPipeline", "ControlNet union",
    lambda: parts(controlnet=union()),
    lambda: inpaint() | {"control_image": [tensor(seed=1)], "control_mode": [0]},
)  # fmt: skip
add(
    "StableDiffusionXLControlNetXSPipeline", "ControlNet-XS",
    lambda: parts(
        unet=unet_xl(layers_per_block=2, use_linear_projection=True),
        controlnet=d.ControlNetXSAdapter(
            conditioning_embedding_out_channels=(8, 8), num_attention_heads=2,
            block_out_channels=(4, 8),
            base_block_out_channels=(8, 16), cross_attention_dim=64, max_norm_num_groups=2,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            transformer_layers_per_block=(1, 1),
        )
    ),
    lambda: {"image": tensor()},
)  # fmt: skip
add(
    "StableDiffusionXLAdapterPipeline", "T2I-Adapter",
    lambda: parts(
        adapter=d.T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2,
            adapter_type="full_adapter"
        ),
        unet=unet_xl(**CROSS_FIRST),
    ),
    lambda: {"image": tensor()},
)  # fmt: skip
add("StableDiffusionXLPAGPipeline", PAG, lambda: parts() | pag(), guidance="threefold")
add(
    "StableDiffusionXLPAGImg2ImgPipeline",
    PAG,
    lambda: refining() | pag(),
    image,
    guidance="threefold",
)
add(
    "StableDiffusionXLPAGInpaintPipeline",
    PAG,
    lambda: refining() | pag(),
    inpaint,
    guidance="threefold",
)
add(
    "StableDiffusionXLControlNetPAGPipeline", PAG, lambda: parts(controlnet=control()) | pag(),
    lambda: {"image": tensor()}, guidance="threefold",
)  # fmt: skip
add(
    "StableDiffusionXLControlNetPAGImg2ImgPipeline", PAG,
    lambda: parts(controlnet=control()) | pag(),
    lambda: image() | {"control_image": tensor(seed=1)}, guidance="threefold",
)  # fmt: skip


class Glm(Words):
    """A tokenizer that also counts positions, as ChatGLM's."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        made = super().__call__(*args, **named)
        made["position_ids"] = made["attention_mask"].cumsum(1) - 1
        return made


class GlmText(Text):
    """States with the sequence first, as ChatGLM's."""

    def forward(self, *args: Any, **named: Any) -> Any:
        made = super().forward(*args, **named)
        made.hidden_states = [h.transpose(0, 1) for h in made.hidden_states]
        return made


def kolors(**changes: Any) -> dict[str, Any]:
    network = unet_xl(pooled=WIDTH, cross=WIDTH)
    made = {
        "vae": kl(),
        "unet": network,
        "scheduler": euler(),
        "text_encoder": GlmText(),
        "tokenizer": Glm(),
    }
    return made | changes


add("KolorsPipeline", "Kolors", kolors, module="diffusers.pipelines.kolors.pipeline_kolors")
add(
    "KolorsImg2ImgPipeline",
    "Kolors",
    kolors,
    image,
    module="diffusers.pipelines.kolors.pipeline_kolors_img2img",
)
add(
    "KolorsPAGPipeline", "Kolors", lambda: kolors() | pag(), guidance="threefold",
    module="diffusers.pipelines.pag.pipeline_pag_kolors",
)  # fmt: skip
