"""Stable Diffusion 1 and 2: the base, ControlNet, adapters and variants."""

from __future__ import annotations

from typing import Any

import diffusers as d

from .nets import CROSS_FIRST, controlnet, ddim, kl, mask, picture, tensor, unet
from .registry import PROMPT, add
from .standins import Eyes, Lens

SD, CONTROL, PAG = "Stable Diffusion", "ControlNet", "PAG"


def parts(**changes: Any) -> dict[str, Any]:
    return {"vae": kl(), "unet": unet(), "scheduler": ddim()} | changes


def image() -> dict[str, Any]:
    return {"image": tensor(), "strength": 0.8}


def inpaint() -> dict[str, Any]:
    return {"image": tensor(), "mask_image": mask(), "strength": 1.0}


def pag() -> dict[str, Any]:
    return {"pag_applied_layers": "mid"}


def pndm() -> Any:
    return d.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
    )


add("StableDiffusionPipeline", SD, lambda: parts(scheduler=pndm()))
add(
    "StableDiffusionPipeline",
    SD,
    lambda: parts(scheduler=ddim(prediction_type="v_prediction")),
    label=" (v)",
)
add("StableDiffusionImg2ImgPipeline", SD, parts, image)
add("StableDiffusionInpaintPipeline", SD, lambda: parts(unet=unet(9)), inpaint)
add("StableDiffusionInpaintPipeline", SD, parts, inpaint, label=" (4 channels)")
add(
    "StableDiffusionInstructPix2PixPipeline", SD, lambda: parts(unet=unet(8)),
    lambda: {"image": tensor(), "image_guidance_scale": 1.5}, guidance="threefold",
)  # fmt: skip
add(
    "StableDiffusionUpscalePipeline", SD,
    lambda: parts(unet=unet(7, num_class_embeds=100), low_res_scheduler=d.DDPMScheduler(),
    max_noise_level=50),
    lambda: {"image": tensor(8), "noise_level": 20},
)  # fmt: skip
add(
    "StableDiffusionLatentUpscalePipeline", SD,
    lambda: parts(
        vae=kl(levels=4),
        unet=d.UNet2DConditionModel(
            act_fn="gelu", attention_head_dim=8, norm_num_groups=None,
            block_out_channels=[32, 32, 64, 64],
            time_cond_proj_dim=160, conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=32,
            in_channels=8,
            down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3), mid_block_type=None,
            out_channels=5,
            only_cross_attention=False, resnet_time_scale_shift="scale_shift",
            time_embedding_type="fourier",
            timestep_post_act="gelu", up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        ),
        scheduler=d.EulerDiscreteScheduler(prediction_type="sample"),
    ),
    lambda: {"image": tensor(16, channels=4)},
    two={"prompt": [PROMPT] * 2, "image": tensor(16, channels=4).repeat(2, 1, 1, 1)},
)  # fmt: skip
add(
    "StableDiffusionImageVariationPipeline", SD,
    lambda: parts(image_encoder=Eyes(), feature_extractor=Lens()),
    lambda: {"image": picture()},
)  # fmt: skip
add(
    "StableDiffusionControlNetPipeline",
    CONTROL,
    lambda: parts(controlnet=controlnet()),
    lambda: {"image": tensor()},
)
add(
    "StableDiffusionControlNetImg2ImgPipeline", CONTROL, lambda: parts(controlnet=controlnet()),
    lambda: image() | {"control_image": tensor(seed=1)},
)  # fmt: skip
add(
    "StableDiffusionControlNetInpaintPipeline", CONTROL, lambda: parts(controlnet=controlnet()),
    lambda: inpaint() | {"control_image": tensor(seed=1)},
)  # fmt: skip
add(
    "StableDiffusionControlNetXSPipeline", "ControlNet-XS",
    lambda: parts(
        unet=unet(layers_per_block=2, use_linear_projection=True),
        controlnet=d.ControlNetXSAdapter(
            conditioning_embedding_out_channels=(8, 8), num_attention_heads=2,
            block_out_channels=(4, 8),
            base_block_out_channels=(8, 16), cross_attention_dim=32, max_norm_num_groups=2,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        )
    ),
    lambda: {"image": tensor()},
)  # fmt: skip
add(
    "StableDiffusionAdapterPipeline", "T2I-Adapter",
    lambda: parts(
        adapter=d.T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2,
            adapter_type="full_adapter"
        ),
        unet=unet(**CROSS_FIRST),
    ),
    lambda: {"image": tensor()},
)  # fmt: skip
add("StableDiffusionPAGPipeline", PAG, lambda: parts() | pag(), guidance="threefold")
add("StableDiffusionPAGImg2ImgPipeline", PAG, lambda: parts() | pag(), image, guidance="threefold")
add(
    "StableDiffusionPAGInpaintPipeline", PAG, lambda: parts() | pag(), inpaint, guidance="threefold"
)
add(
    "StableDiffusionControlNetPAGPipeline", PAG, lambda: parts(controlnet=controlnet()) | pag(),
    lambda: {"image": tensor()}, guidance="threefold",
)  # fmt: skip
add(
    "StableDiffusionControlNetPAGInpaintPipeline", PAG,
    lambda: parts(controlnet=controlnet()) | pag(),
    lambda: inpaint() | {"control_image": tensor(seed=1)}, guidance="threefold",
)  # fmt: skip


def lcm() -> dict[str, Any]:
    scheduler = d.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    return parts(unet=unet(time_cond_proj_dim=32), scheduler=scheduler)


add("LatentConsistencyModelPipeline", "Latent consistency", lcm, guidance="embedded")
add("LatentConsistencyModelImg2ImgPipeline", "Latent consistency", lcm, image, guidance="embedded")
for name, channels in (("Depth", (8, 4)), ("Normals", (8, 4)), ("Intrinsics", (12, 8))):
    add(
        f"Marigold{name}Pipeline", "Marigold",
        lambda channels=channels: parts(
            unet=unet(*channels), scheduler=ddim(prediction_type="v_prediction"),
            default_denoising_steps=2,
            default_processing_resolution=0,
        ),
        lambda: {"image": tensor(), "processing_resolution": 0, "output_type": "pt"},
        guidance="none",
        two={"image": tensor().repeat(2, 1, 1, 1)},
    )  # fmt: skip
add(
    "StableUnCLIPImg2ImgPipeline", "unCLIP",
    lambda: parts(
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=64),
        image_encoder=Eyes(), feature_extractor=Lens(), image_noising_scheduler=d.DDPMScheduler(),
        image_normalizer=normalizer(),
    ),
    lambda: {"image": picture()},
)  # fmt: skip
add(
    "StableUnCLIPPipeline", "unCLIP",
    lambda: parts(
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=64),
        prior=d.PriorTransformer(num_attention_heads=2, attention_head_dim=8, embedding_dim=32,
        num_layers=1,
                                 num_embeddings=8),
        prior_text_encoder=text_pooled(),
        prior_scheduler=d.UnCLIPScheduler(prediction_type="sample"),
        image_noising_scheduler=d.DDPMScheduler(), image_normalizer=normalizer(),
    ),
    lambda: {"prior_num_inference_steps": 2},
)  # fmt: skip


def normalizer() -> Any:
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    return StableUnCLIPImageNormalizer(embedding_dim=32)


def text_pooled() -> Any:
    from .standins import Text

    return Text(pooled=32)
