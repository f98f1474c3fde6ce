"""Pipelines of the real classes with small random weights. Prompts are given as embeddings."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)

from support.pipes.registry import CASES
from support.pipes.standins import Eyes, Lens

WIDTH, POOLED, WORDS = 16, 8, 5


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def unet(**changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        **changes,
    )


def sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """A StableDiffusionXLPipeline with SDXL's scheduler configuration."""
    torch.manual_seed(seed)
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + POOLED,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae(), unet=network, scheduler=scheduler, text_encoder=None, text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None, add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd(seed: int = 0) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline with SD 1.5's scheduler configuration."""
    torch.manual_seed(seed)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        skip_prk_steps=True,
    )
    pipe = StableDiffusionPipeline(
        vae=vae(), unet=unet(), scheduler=scheduler, text_encoder=None, tokenizer=None,
        safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompt(pipe: Any, batch: int = 1, seed: int = 1) -> dict[str, Any]:
    """Prompt embeddings and the other arguments of a call."""
    g = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, WORDS, WIDTH, generator=g).expand(batch, -1, -1),
        "negative_prompt_embeds": torch.randn(1, WORDS, WIDTH, generator=g).expand(batch, -1, -1),
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    if isinstance(pipe, StableDiffusionXLPipeline):
        made["pooled_prompt_embeds"] = torch.randn(1, POOLED, generator=g).expand(batch, -1)
        made["negative_pooled_prompt_embeds"] = torch.randn(1, POOLED, generator=g).expand(
            batch, -1
        )
    return made


def svd(seed: int = 0) -> StableVideoDiffusionPipeline:
    """A StableVideoDiffusionPipeline with SVD's scheduler configuration."""
    torch.manual_seed(seed)
    network = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=8,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    decoder = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    pipe = StableVideoDiffusionPipeline(
        vae=decoder.eval(),
        unet=network.eval(),
        scheduler=scheduler,
        image_encoder=Eyes(),
        feature_extractor=Lens(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def still(count: int = 1, seed: int = 0) -> torch.Tensor:
    """Pictures (count, 3, 16, 16) in 0..1."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def case(family: str, key: str, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Any]]:
    """A pipeline of `pipes` and the arguments of its call for one sample."""
    importlib.import_module(f"support.pipes.{family}")
    found = CASES[key]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers on its own configurations
        return found.build().to(dtype), found.inputs()
