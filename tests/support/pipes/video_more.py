"""More video: EasyAnimate, Allegro, ConsisID, Sana Video, ChronoEdit, Motif, AnyFlow, Helios."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from .nets import WIDTH, ddim, flow, picture, wan_vae
from .registry import add
from .standins import Eyes, Lens, Text
from .video import COG, LEARNED, SHORT, VIDEO, cog_vae

ONE = VIDEO | {"guidance": "sequential"}


def easy(channels: int = 4) -> dict[str, Any]:
    vae = d.AutoencoderKLMagvit(
        in_channels=3, out_channels=3, block_out_channels=(8,) * 4, latent_channels=4,
        layers_per_block=1,
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        norm_num_groups=2,
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        spatial_group_norm=False,
    )  # fmt: skip
    vae.register_to_config(cache_mag_vae=False)  # the inpainting pipeline asks for it
    network = d.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH, num_layers=1, sample_width=16, sample_height=16, patch_size=2,
    )  # fmt: skip
    return {"transformer": network, "vae": vae, "scheduler": flow(), "text_encoder": Text()}


EASY: dict[str, Any] = {"num_frames": 5, "max_sequence_length": 16}
add(
    "EasyAnimatePipeline",
    "EasyAnimate",
    easy,
    lambda: {"num_frames": 5, "negative_prompt": "blur"},
    **VIDEO,
)
add(
    "EasyAnimateInpaintPipeline", "EasyAnimate", lambda: easy(9),
    lambda: {
        "num_frames": 5, "negative_prompt": "blur", "video": torch.rand(1, 3, 5, 16, 16),
        "mask_video": torch.ones(1, 1, 5, 16, 16),
    },
    **VIDEO,
)  # fmt: skip
add(
    "AllegroPipeline", "Allegro",
    lambda: {
        "transformer": d.AllegroTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            num_layers=1,
            cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8,
            caption_channels=WIDTH,
        ),
        "vae": d.AutoencoderKLAllegro(
            in_channels=3, out_channels=3, down_block_types=("AllegroDownBlock3D",) * 4,
            up_block_types=("AllegroUpBlock3D",) * 4, block_out_channels=(8,) * 4,
            latent_channels=4,
            layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
        ),
        "scheduler": ddim(),
    },
    lambda: {"num_frames": 8}, **VIDEO,
)  # fmt: skip


def consisid() -> dict[str, Any]:
    face: dict[str, Any] = {
        "cross_attn_interval": 1, "is_kps": False, "is_train_face": True, "cross_attn_dim_head": 1,
        "cross_attn_num_heads": 1, "LFE_id_dim": 2, "LFE_vit_dim": 2, "LFE_depth": 5,
        "LFE_dim_head": 8,
        "LFE_num_heads": 2, "LFE_num_id_token": 1, "LFE_num_querie": 1, "LFE_output_dim": 21,
        "LFE_ff_mult": 1,
        "LFE_num_scale": 1,
    }  # fmt: skip
    network = d.ConsisIDTransformer3DModel(in_channels=8, **COG, **LEARNED, **face)
    return {"transformer": network, "vae": cog_vae(), "scheduler": d.CogVideoXDDIMScheduler()}


add(
    "ConsisIDPipeline", "ConsisID", consisid,
    lambda: SHORT | {"image": picture(), "id_vit_hidden": [torch.ones(1, 2, 2)],
    "id_cond": torch.ones(1, 2)},
    module="diffusers.pipelines.consisid.pipeline_consisid", **VIDEO,
)  # fmt: skip
SANA: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 12,
    "num_layers": 1,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
    "sample_size": 8,
    "caption_channels": WIDTH, "mlp_ratio": 2.5, "patch_size": (1, 2, 2),
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
}  # fmt: skip
FRAMES: dict[str, Any] = {"frames": 9, "height": 32, "width": 32, "complex_human_instruction": []}


def sana(scheduler: Any) -> dict[str, Any]:
    return {
        "transformer": d.SanaVideoTransformer3DModel(**SANA),
        "vae": wan_vae(),
        "scheduler": scheduler,
    }


add(
    "SanaVideoPipeline", "Sana Video",
    lambda: sana(
        d.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
        flow_shift=8.0)
    ),
    lambda: FRAMES, **VIDEO,
)  # fmt: skip
add(
    "SanaImageToVideoPipeline",
    "Sana Video",
    lambda: sana(flow(shift=8.0)),
    lambda: FRAMES | {"image": picture(32)},
    **VIDEO,
)
ROPE: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "out_channels": 16,
    "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1, "cross_attn_norm": True,
}  # fmt: skip
add(
    "ChronoEditPipeline", "ChronoEdit",
    lambda: {
        "transformer": d.ChronoEditTransformer3DModel(
            in_channels=36, qk_norm="rms_norm_across_heads", rope_max_seq_len=32, image_dim=WIDTH,
            **ROPE
        ),
        "vae": wan_vae(), "scheduler": flow(shift=7.0), "image_encoder": Eyes(),
        "image_processor": Lens(),
    },
    lambda: {"num_frames": 5, "image": picture()}, **ONE,
)  # fmt: skip
MOTIF: dict[str, Any] = {
    "in_channels": 33, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 12,
    "num_layers": 1,
    "num_single_layers": 1, "mlp_ratio": 4.0, "patch_size": 1, "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "text_embed_dim": WIDTH, "rope_axes_dim": (4, 4, 4),
}  # fmt: skip


def motif(**changes: Any) -> dict[str, Any]:
    network = d.MotifVideoTransformer3DModel(**(MOTIF | changes))
    made = {
        "transformer": network,
        "vae": wan_vae(),
        "scheduler": flow(shift=7.0),
        "text_encoder": Text(),
    }
    return made | {"guider": d.ClassifierFreeGuidance(guidance_scale=3.0)}


class Seeing(Text):
    """A text encoder with eyes."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = Eyes()


add("MotifVideoPipeline", "Motif Video", motif, lambda: {"num_frames": 9}, **ONE)
add(
    "MotifVideoImage2VideoPipeline", "Motif Video",
    lambda: motif(image_embed_dim=WIDTH) | {"feature_extractor": Lens(), "text_encoder": Seeing()},
    lambda: {"num_frames": 9, "image": picture()}, **ONE,
)  # fmt: skip
ANYFLOW: dict[str, Any] = {
    "in_channels": 16, "rope_max_seq_len": 32, "gate_value": 0.25, "deltatime_type": "r",
}  # fmt: skip
add(
    "AnyFlowPipeline", "AnyFlow",
    lambda: {
        "transformer": d.AnyFlowTransformer3DModel(**ROPE, **ANYFLOW), "vae": wan_vae(),
        "scheduler": d.FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0),
    },
    lambda: {"num_frames": 9, "guidance_scale": 6.0}, **ONE,
)  # fmt: skip
add(
    "HeliosPipeline", "Helios",
    lambda: {
        "transformer": d.HeliosTransformer3DModel(
            in_channels=16, qk_norm="rms_norm_across_heads", rope_dim=(4, 4, 4),
            has_multi_term_memory_patch=True,
            guidance_cross_attn=True, zero_history_timestep=True, is_amplify_history=False, **ROPE,
        ),
        "vae": wan_vae(), "scheduler": d.HeliosScheduler(stage_range=[0, 1], stages=1,
        use_dynamic_shifting=True),
    },
    lambda: {"num_frames": 9, "guidance_scale": 1.0}, **VIDEO | {"guidance": "none"},
)  # fmt: skip
