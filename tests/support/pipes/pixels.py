"""Pictures without words or without latents: DDPM, DDIM, LDM, consistency models, DeepFloyd IF,
Amused.
"""

from __future__ import annotations

from typing import Any

import diffusers as d

from .nets import WIDTH, ddim, kl, mask, tensor, unet
from .registry import add
from .standins import Text

NO: dict[str, Any] = {"guidance": "none"}


def unet2d(inside: int = 3, outside: int = 3, **changes: Any) -> Any:
    return d.UNet2DModel(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=8,
        in_channels=inside,
        out_channels=outside, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4, **changes,
    )  # fmt: skip


def alone(scheduler: Any) -> dict[str, Any]:
    return {"unet": unet2d(), "scheduler": scheduler}


PIXELS = {"output_type": "np"}
add("DDPMPipeline", "DDPM", lambda: alone(d.DDPMScheduler()), lambda: PIXELS, **NO)
add("DDIMPipeline", "DDIM", lambda: alone(d.DDIMScheduler()), lambda: PIXELS, **NO)
add(
    "PNDMPipeline",
    "PNDM",
    lambda: alone(d.PNDMScheduler(skip_prk_steps=True)),
    lambda: PIXELS,
    **NO,
)
add("ScoreSdeVePipeline", "Score SDE", lambda: alone(d.ScoreSdeVeScheduler()), lambda: PIXELS, **NO)
add("KarrasVePipeline", "Karras VE", lambda: alone(d.KarrasVeScheduler()), lambda: PIXELS, **NO)
add("RePaintPipeline", "RePaint", lambda: alone(d.RePaintScheduler()),
    lambda: PIXELS | {"image": tensor(8), "mask_image": mask(8)}, **NO)  # fmt: skip
add(
    "ConsistencyModelPipeline", "Consistency models",
    lambda: alone(d.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002,
    sigma_max=80.0)),
    lambda: PIXELS, **NO,
)  # fmt: skip


def vq() -> Any:
    return d.VQModel(
        block_out_channels=[8, 8], in_channels=3, out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=3, norm_num_groups=4,
    )  # fmt: skip


add(
    "LDMPipeline", "Latent diffusion", lambda: alone(ddim()) | {"vqvae": vq()}, lambda: PIXELS, **NO
)
add(
    "LDMTextToImagePipeline", "Latent diffusion",
    lambda: {"vqvae": kl(), "unet": unet(), "scheduler": ddim(), "bert": Text()},
    lambda: PIXELS | {"guidance_scale": 3.0},
)  # fmt: skip
add(
    "LDMSuperResolutionPipeline", "Latent diffusion",
    lambda: {"vqvae": vq(), "unet": unet2d(6), "scheduler": ddim()},
    lambda: PIXELS | {"image": tensor(8)}, **NO,
    two={"image": tensor(8).repeat(2, 1, 1, 1)},
)  # fmt: skip


# -- DeepFloyd IF ----------------------------------------------------------------------------------
def floyd(inside: int = 3, **more: Any) -> dict[str, Any]:
    network = d.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=[32, 32], in_channels=inside,
        out_channels=6,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"], act_fn="gelu",
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], attention_head_dim=8,
        addition_embed_type="text", addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift", class_embed_type="timestep" if inside == 6 else None,
    )  # fmt: skip
    scheduler = d.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0,
        variance_type="learned_range",
    )  # fmt: skip
    return {"unet": network, "scheduler": scheduler, "watermarker": None} | more


def super_floyd() -> dict[str, Any]:
    return floyd(6, image_noising_scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2"))


IF = "DeepFloyd IF"
SEEN: dict[str, Any] = {"output_type": "pt"}


def source(name: str = "image") -> dict[str, Any]:
    return SEEN | {name: tensor(16) * 2 - 1}


add("IFPipeline", IF, floyd, lambda: SEEN)
add("IFImg2ImgPipeline", IF, floyd, lambda: source() | {"strength": 0.8})
add("IFInpaintingPipeline", IF, floyd, lambda: source() | {"mask_image": mask(), "strength": 0.8})
add("IFSuperResolutionPipeline", IF, super_floyd, lambda: source())
add("IFImg2ImgSuperResolutionPipeline", IF, super_floyd,
    lambda: SEEN | {"image": tensor(8) * 2 - 1,
    "strength": 0.8} | source("original_image"))  # fmt: skip
add("IFInpaintingSuperResolutionPipeline", IF, super_floyd,
    lambda: source("original_image") | {"image": tensor(8) * 2 - 1, "mask_image": mask(),
    "strength": 0.8})  # fmt: skip


# -- Amused: tokens, not noise ---------------------------------------------------------------------
def amused() -> dict[str, Any]:
    network = d.UVit2DModel(
        hidden_size=8, use_bias=False, hidden_dropout=0.0, cond_embed_dim=WIDTH,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10, encoder_hidden_size=WIDTH, vocab_size=32, codebook_size=8,
        in_channels=8,
        block_out_channels=8, num_res_blocks=1, downsample=True, upsample=True, block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1, attention_dropout=0.0, intermediate_size=8, layer_norm_eps=1e-6,
        ln_elementwise_affine=True,
    )  # fmt: skip
    vqvae = d.VQModel(
        act_fn="silu", block_out_channels=[8], down_block_types=["DownEncoderBlock2D"],
        in_channels=3,
        latent_channels=8, layers_per_block=1, norm_num_groups=8, num_vq_embeddings=8,
        out_channels=3,
        sample_size=8, up_block_types=["UpDecoderBlock2D"], mid_block_add_attention=False,
        lookup_from_codebook=True,
    )  # fmt: skip
    return {
        "transformer": network,
        "vqvae": vqvae,
        "scheduler": d.AmusedScheduler(mask_token_id=31),
        "text_encoder": Text(pooled=WIDTH),
    }


add("AmusedPipeline", "Amused", amused, lambda: {"height": 4, "width": 4, "output_type": "np"})
