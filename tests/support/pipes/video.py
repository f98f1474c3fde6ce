"""Video, the UNets and the first transformers: AnimateDiff, SVD, I2VGen, Latte, CogVideoX, Mochi,
LTX, Wan.
"""

from __future__ import annotations

from typing import Any

import diffusers as d

from .nets import (
    WIDTH,
    clip,
    controlnet,
    ddim,
    euler,
    flow,
    kl,
    picture,
    tensor,
    unet,
    unet_xl,
    wan_vae,
)
from .registry import add
from .standins import Eyes, Lens, Text

VIDEO: dict[str, Any] = {"kind": "video"}
ANIMATE = "AnimateDiff"


def motion(**changes: Any) -> Any:
    options: dict[str, Any] = {
        "block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_norm_num_groups": 2,
        "motion_num_attention_heads": 2,
    }  # fmt: skip
    return d.MotionAdapter(**(options | changes))


def animate(**changes: Any) -> dict[str, Any]:
    scheduler = ddim(beta_schedule="linear")
    return {
        "vae": kl(),
        "unet": unet(),
        "motion_adapter": motion(),
        "scheduler": scheduler,
    } | changes


FEW = {"num_frames": 4}


def footage(name: str = "video", frames: int = 4) -> dict[str, Any]:
    return {name: clip(frames)}


add("AnimateDiffPipeline", ANIMATE, animate, lambda: FEW, **VIDEO)
add(
    "AnimateDiffPAGPipeline",
    ANIMATE,
    lambda: animate(pag_applied_layers="mid"),
    lambda: FEW,
    **VIDEO | {"guidance": "threefold"},
)
add("AnimateDiffVideoToVideoPipeline", ANIMATE, animate, footage, **VIDEO)
add(
    "AnimateDiffControlNetPipeline", ANIMATE, lambda: animate(controlnet=controlnet()),
    lambda: FEW | footage("conditioning_frames"), **VIDEO,
)  # fmt: skip
add(
    "AnimateDiffVideoToVideoControlNetPipeline", ANIMATE, lambda: animate(controlnet=controlnet()),
    lambda: footage() | footage("conditioning_frames"), **VIDEO,
)  # fmt: skip
add(
    "AnimateDiffSparseControlNetPipeline", ANIMATE,
    lambda: animate(
        controlnet=d.SparseControlNetModel(
            block_out_channels=(8, 16), layers_per_block=1, in_channels=4, conditioning_channels=3,
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
            cross_attention_dim=WIDTH,
            conditioning_embedding_out_channels=(8, 8), norm_num_groups=1, attention_head_dim=8,
            use_simplified_condition_embedding=False,
        )
    ),
    lambda: FEW | footage("conditioning_frames") | {"controlnet_frame_indices": [0, 1, 2, 3]},
    **VIDEO,
)  # fmt: skip
add(
    "AnimateDiffSDXLPipeline", ANIMATE,
    lambda: animate(
        unet=unet_xl(), text_encoder=Text(), text_encoder_2=Text(pooled=WIDTH),
        motion_adapter=motion(use_motion_mid_block=False), scheduler=ddim(beta_schedule="linear"),
    ),
    lambda: FEW, **VIDEO,
)  # fmt: skip
add(
    "PIAPipeline", "PIA", lambda: animate(motion_adapter=motion(conv_in_channels=9)),
    lambda: FEW | {"image": picture(16)}, **VIDEO,
)  # fmt: skip


def svd() -> dict[str, Any]:
    network = d.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=8, in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=WIDTH,
        num_attention_heads=8, projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
    )  # fmt: skip
    vae = d.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), in_channels=3, out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4, layers_per_block=1,
    )  # fmt: skip
    scheduler = euler(
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002,
        timestep_type="continuous",
        use_karras_sigmas=True, interpolation_type="linear",
    )  # fmt: skip
    return {
        "unet": network,
        "vae": vae,
        "scheduler": scheduler,
        "image_encoder": Eyes(),
        "feature_extractor": Lens(),
    }


add(
    "StableVideoDiffusionPipeline",
    "Stable Video Diffusion",
    svd,
    lambda: {"image": tensor(16), "num_frames": 2},
    **VIDEO,
)
add(
    "I2VGenXLPipeline", "I2VGen-XL",
    lambda: {
        "unet": d.I2VGenXLUNet(
            block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), norm_num_groups=2,
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), cross_attention_dim=WIDTH,
            attention_head_dim=2,
        ),
        "vae": kl(), "scheduler": ddim(), "image_encoder": Eyes(), "feature_extractor": Lens(),
    },
    lambda: {"image": picture(16), "num_frames": 2, "decode_chunk_size": 1}, **VIDEO,
)  # fmt: skip


def unet3d() -> Any:
    return d.UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), norm_num_groups=2,
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), cross_attention_dim=WIDTH,
        attention_head_dim=4,
    )  # fmt: skip


def text_video() -> dict[str, Any]:
    return {"vae": kl(), "unet": unet3d(), "scheduler": ddim()}


add(
    "TextToVideoSDPipeline",
    "Text to video (ModelScope)",
    text_video,
    lambda: {"num_frames": 3},
    **VIDEO,
)
add(
    "VideoToVideoSDPipeline",
    "Text to video (ModelScope)",
    text_video,
    lambda: footage(frames=3) | {"strength": 0.8},
    **VIDEO,
)
add(
    "LattePipeline", "Latte",
    lambda: {
        "transformer": d.LatteTransformer3DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3,
            in_channels=4,
            caption_channels=WIDTH, cross_attention_dim=24, out_channels=8, attention_bias=True,
            video_length=2,
            activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6,
        ),
        "vae": kl(), "scheduler": ddim(),
    },
    lambda: {"video_length": 2}, **VIDEO,
)  # fmt: skip

# -- CogVideoX and what is built on it -------------------------------------------------------------
COG: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "out_channels": 4, "time_embed_dim": 2,
    "text_embed_dim": WIDTH, "num_layers": 1, "sample_width": 2, "sample_height": 2,
    "sample_frames": 9,
    "patch_size": 2, "temporal_compression_ratio": 4, "max_text_seq_length": 16,
}  # fmt: skip


def cog_vae() -> Any:
    return d.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, block_out_channels=(8,) * 4, latent_channels=4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip


def cog(channels: int = 4, scheduler: Any = None, **changes: Any) -> dict[str, Any]:
    network = d.CogVideoXTransformer3DModel(in_channels=channels, **(COG | changes))
    options = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    usual = d.CogVideoXDDIMScheduler(**options, snr_shift_scale=1.0)
    return {"transformer": network, "vae": cog_vae(), "scheduler": scheduler or usual}


SHORT: dict[str, Any] = {"num_frames": 9, "max_sequence_length": 16}
LEARNED = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True}
add("CogVideoXPipeline", "CogVideoX", cog, lambda: SHORT, **VIDEO)
add(
    "CogVideoXPipeline", "CogVideoX",
    lambda: cog(scheduler=d.CogVideoXDPMScheduler(prediction_type="v_prediction")),
    lambda: SHORT, label=" (DPM)", **VIDEO,
)  # fmt: skip
add(
    "CogVideoXImageToVideoPipeline",
    "CogVideoX",
    lambda: cog(8, **LEARNED),
    lambda: SHORT | {"image": picture()},
    **VIDEO,
)
add(
    "CogVideoXVideoToVideoPipeline",
    "CogVideoX",
    cog,
    lambda: {"max_sequence_length": 16, "strength": 0.8} | footage(frames=9),
    **VIDEO,
)
add(
    "CogVideoXFunControlPipeline", "CogVideoX", lambda: cog(8),
    lambda: {"max_sequence_length": 16} | footage("control_video", 9), **VIDEO,
)  # fmt: skip

# -- Mochi, LTX, Wan, SkyReels ---------------------------------------------------------------------
add(
    "MochiPipeline", "Mochi",
    lambda: {
        "transformer": d.MochiTransformer3DModel(
            patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            pooled_projection_dim=16,
            in_channels=12, qk_norm="rms_norm", text_embed_dim=WIDTH, time_embed_dim=4,
            activation_fn="swiglu",
            max_sequence_length=8,
        ),
        "vae": d.AutoencoderKLMochi(
            latent_channels=12, out_channels=3, encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
        ),
        "scheduler": flow(invert_sigmas=True),
    },
    lambda: {"num_frames": 7}, **VIDEO,
)  # fmt: skip


def ltx(**shift: Any) -> dict[str, Any]:
    network = d.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=WIDTH,
    )  # fmt: skip
    vae = d.AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    return {"transformer": network, "vae": vae, "scheduler": flow(**shift)}


LTX: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9, "guidance_scale": 3.0}
DYNAMIC: dict[str, Any] = {"use_dynamic_shifting": True, "shift_terminal": 0.1}
add("LTXPipeline", "LTX-Video", lambda: ltx(**DYNAMIC), lambda: LTX, **VIDEO)
add(
    "LTXImageToVideoPipeline",
    "LTX-Video",
    lambda: ltx(**DYNAMIC),
    lambda: LTX | {"image": tensor(32)},
    **VIDEO,
)
add("LTXConditionPipeline", "LTX-Video", ltx, lambda: LTX | {"image": tensor(32)}, **VIDEO)
add(
    "LTXI2VLongMultiPromptPipeline", "LTX-Video", ltx,
    lambda: LTX | {"temporal_tile_size": 16, "temporal_overlap": 8}, two="its call makes one video",
    **VIDEO,
)  # fmt: skip
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "out_channels": 16,
    "text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
}  # fmt: skip


def unipc(**changes: Any) -> Any:
    return d.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, **({"flow_shift": 3.0} | changes)
    )


def wan(channels: int = 16, more: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    network = d.WanTransformer3DModel(in_channels=channels, **(WAN | (more or {})))
    return {"transformer": network, "vae": wan_vae(), "scheduler": unipc()} | changes


def second(channels: int = 16) -> dict[str, Any]:
    """Wan 2.2: another network for the noisy part."""
    return {
        "transformer_2": d.WanTransformer3DModel(in_channels=channels, **WAN),
        "boundary_ratio": 0.875,
    }


LEAST: dict[str, Any] = {"num_frames": 5}
ONE = {"guidance": "sequential", "kind": "video"}
BOTH = ONE | {"networks": ("transformer", "transformer_2")}


def seeing() -> dict[str, Any]:
    return {"image_encoder": Eyes(WIDTH), "image_processor": Lens()}


add("WanPipeline", "Wan", wan, lambda: LEAST, label=" (2.1)", **ONE)
add("WanPipeline", "Wan", lambda: wan(**second()), lambda: LEAST, label=" (2.2)", **BOTH)
add(
    "WanPipeline", "Wan",
    lambda: wan(
        48, {"out_channels": 48}, expand_timesteps=True,
        vae=wan_vae(
            z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2,
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48, scale_factor_spatial=16, scale_factor_temporal=4,
        ),
    ),
    lambda: LEAST | {"height": 32, "width": 32}, label=" (2.2, 5B)", **ONE,
)  # fmt: skip
add("WanImageToVideoPipeline", "Wan", lambda: wan(36, {"image_dim": WIDTH}, **seeing()),
    lambda: LEAST | {"image": picture()}, label=" (2.1)", **ONE)  # fmt: skip
add("WanImageToVideoPipeline", "Wan", lambda: wan(36, **second(36)),
    lambda: LEAST | {"image": picture()}, label=" (2.2)", **BOTH)  # fmt: skip
add("WanVideoToVideoPipeline", "Wan", wan, lambda: {"strength": 0.8} | footage(frames=5), **ONE)
add(
    "WanVACEPipeline", "Wan",
    lambda: wan(
        transformer=d.WanVACETransformer3DModel(in_channels=16, vace_layers=[0],
        vace_in_channels=96, **WAN)
    ),
    lambda: LEAST | footage(frames=5), **ONE,
)  # fmt: skip
add(
    "WanAnimatePipeline", "Wan",
    lambda: wan(
        transformer=d.WanAnimateTransformer3DModel(
            in_channels=36, latent_channels=16, image_dim=WIDTH, motion_encoder_size=16,
            motion_style_dim=8,
            motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_dim=4,
            motion_encoder_dim=16,
            face_encoder_hidden_dim=16, face_encoder_num_heads=2, inject_face_latents_blocks=1,
            **WAN,
        ),
        **seeing(),
    ),
    lambda: {
        "image": picture(), "pose_video": clip(5), "face_video": clip(5), "segment_frame_length": 5,
        "prev_segment_conditioning_frames": 1, "guidance_scale": 2.0,
    },
    **ONE,
)  # fmt: skip
add("LucyEditPipeline", "Lucy Edit", lambda: wan(32), lambda: LEAST | footage(frames=5), **ONE)


def sky(channels: int = 16, more: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    network = d.SkyReelsV2Transformer3DModel(in_channels=channels, **(WAN | (more or {})))
    return {"transformer": network, "vae": wan_vae(), "scheduler": unipc(flow_shift=8.0)} | changes


add("SkyReelsV2Pipeline", "SkyReels V2", sky, lambda: LEAST, **ONE)
add("SkyReelsV2ImageToVideoPipeline", "SkyReels V2",
    lambda: sky(36, {"image_dim": WIDTH}, **seeing()),
    lambda: LEAST | {"image": picture()}, **ONE)  # fmt: skip
add("SkyReelsV2DiffusionForcingPipeline", "SkyReels V2", sky, lambda: LEAST, **ONE)
add(
    "SkyReelsV2DiffusionForcingImageToVideoPipeline",
    "SkyReels V2",
    sky,
    lambda: LEAST | {"image": picture()},
    **ONE,
)
add(
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline", "SkyReels V2", sky,
    lambda: footage(frames=7) | {"overlap_history": 3, "num_frames": 17, "base_num_frames": 5},
    **ONE,
)  # fmt: skip
