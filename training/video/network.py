"""SVD's UNet, small, and the CLIP image encoder that conditions it."""

from __future__ import annotations

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from training.video.clips import FRAMES

WIDTH = 128
IDS_DIM = 64
SCHEDULER = {  # the published scheduler_config.json of SVD
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
    "clip_sample": False,
}


def build_unet() -> UNetSpatioTemporalConditionModel:
    """The untrained UNet on 8 frames of 16x16 latents, with attention at 8x8 and in the middle."""
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        down_block_types=(
            "DownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types=(
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "UpBlockSpatioTemporal",
        ),
        block_out_channels=(64, 64, 96),
        addition_time_embed_dim=IDS_DIM,
        projection_class_embeddings_input_dim=3 * IDS_DIM,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        transformer_layers_per_block=1,
        num_attention_heads=(2, 2, 3),
        num_frames=FRAMES,
    )


def build_encoder() -> CLIPVisionModelWithProjection:
    """The untrained image encoder; the pipeline passes it 224x224 pictures, here 49 patches."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=224,
            patch_size=32,
            hidden_act="gelu",
        )
    )


def prepared(pictures: Tensor) -> Tensor:
    """Pictures in -1..1 as the pipeline and its feature extractor prepare them for the encoder."""
    return _resize_with_antialiasing(pictures, (224, 224))


class Network(nn.Module):
    """The frozen image encoder and the UNet."""

    def __init__(
        self, encoder: CLIPVisionModelWithProjection, unet: UNetSpatioTemporalConditionModel
    ) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.unet = unet

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Embeddings (N, width) of pictures in -1..1."""
        return self.encoder(prepared(pictures)).image_embeds

    def forward(
        self, noisy: Tensor, still: Tensor, sigma: Tensor, embedding: Tensor, ids: Tensor
    ) -> Tensor:
        """The v prediction for noisy latents (N, F, 4, h, w) at ``sigma``, and the unscaled still's
        latents.
        """
        scaled = noisy / (sigma**2 + 1).sqrt().view(-1, 1, 1, 1, 1)
        still = still[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
        entering = torch.cat([scaled, still], dim=2)
        return self.unet(entering, 0.25 * sigma.log(), embedding[:, None], ids).sample
