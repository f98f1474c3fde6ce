"""Video, the later transformers: HunyuanVideo, LTX 2, Kandinsky 5, Cosmos."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers as d
import torch

from .nets import WIDTH, flow, kl, picture, tensor, wan_vae
from .registry import LEFT_OUT, add
from .standins import Eyes, Lens, Processor, Text
from .video import VIDEO, unipc

HUNYUAN: dict[str, Any] = {
    "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1, "patch_size": 1, "patch_size_t": 1, "text_embed_dim": WIDTH,
    "pooled_projection_dim": WIDTH, "rope_axes_dim": (2, 4, 4),
}  # fmt: skip


def hunyuan_vae(latents: int = 4, levels: int = 4, **changes: Any) -> Any:
    options = {
        "scaling_factor": 0.47,
        "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 4,
    }
    return d.AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=latents, act_fn="silu", norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("HunyuanVideoDownBlock3D",) * levels,
        up_block_types=("HunyuanVideoUpBlock3D",) * levels,
        block_out_channels=(8,) * levels, mid_block_add_attention=True, **(options | changes),
    )  # fmt: skip


def hunyuan(
    channels: int = 4, guided: bool = True, cls: str = "HunyuanVideoTransformer3DModel", **more: Any
) -> Any:
    network = getattr(d, cls)(in_channels=channels, guidance_embeds=guided, **(HUNYUAN | more))
    made = {"transformer": network, "vae": hunyuan_vae(), "scheduler": flow(shift=7.0)}
    return made | {"text_encoder": Text(), "text_encoder_2": Text()}


TEMPLATE: dict[str, Any] = {"prompt_template": {"template": "{}", "crop_start": 0}, "num_frames": 9}
TOLD = VIDEO | {"guidance": "embedded"}
ONE = VIDEO | {"guidance": "sequential"}
add("HunyuanVideoPipeline", "HunyuanVideo", hunyuan, lambda: TEMPLATE, **TOLD)
add(
    "HunyuanSkyreelsImageToVideoPipeline",
    "HunyuanVideo",
    lambda: hunyuan(8),
    lambda: TEMPLATE | {"image": picture()},
    **TOLD,
)
add(
    "HunyuanVideoFramepackPipeline", "HunyuanVideo",
    lambda: hunyuan(
        cls="HunyuanVideoFramepackTransformer3DModel", patch_size=2, image_condition_type=None,
        has_image_proj=True,
        image_proj_dim=WIDTH, has_clean_x_embedder=True,
    ) | {"image_encoder": Eyes(), "feature_extractor": Lens()},
    lambda: TEMPLATE | {"image": picture(32), "height": 32, "width": 32, "latent_window_size": 3},
    **TOLD,
)  # fmt: skip


class Llava(Text):
    """Words and a picture: the picture's states come first."""

    def forward(self, *args: Any, **named: Any) -> Any:
        return super().forward(named["input_ids"])


add(
    "HunyuanVideoImageToVideoPipeline", "HunyuanVideo",
    lambda: hunyuan(9, False, image_condition_type="latent_concat")
    | {"text_encoder": Llava(image_token_index=5), "image_processor": Lens()},
    lambda: TEMPLATE | {
        "image": picture(),
        "prompt_template": {"template": "{}", "crop_start": 0, "image_emb_len": 3,
        "image_emb_start": 1,
                            "image_emb_end": 4, "double_return_token_id": 271},
        "max_sequence_length": 64,
    },
    **VIDEO | {"guidance": "none"},
)  # fmt: skip


def hunyuan15(task: str, **changes: Any) -> dict[str, Any]:
    network = d.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0, patch_size=1, patch_size_t=1, text_embed_dim=WIDTH, text_embed_2_dim=WIDTH,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4), target_size=16, task_type=task,
    )  # fmt: skip
    vae = d.AutoencoderKLHunyuanVideo15(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4, temporal_compression_ratio=2, downsample_match_channel=False,
        upsample_match_channel=False,
    )  # fmt: skip
    guider = d.ClassifierFreeGuidance(guidance_scale=3.0)
    made = {
        "transformer": network,
        "vae": vae,
        "scheduler": flow(shift=7.0),
        "guider": guider,
        "text_encoder": Text(),
    }
    return made | {"text_encoder_2": Text()} | changes


add(
    "HunyuanVideo15Pipeline",
    "HunyuanVideo 1.5",
    lambda: hunyuan15("t2v"),
    lambda: {"num_frames": 9},
    **ONE,
)
add(
    "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo 1.5",
    lambda: hunyuan15("i2v", image_encoder=Eyes(12), feature_extractor=Lens()),
    lambda: {"num_frames": 9, "image": picture()}, **ONE,
)  # fmt: skip

# -- LTX 2: two schedulers, pictures and sound -----------------------------------------------------
SPLIT = {"rope_double_precision": False, "rope_type": "split"}


def ltx2(**changes: Any) -> dict[str, Any]:
    network = d.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=1,
        qk_norm="rms_norm_across_heads",
        caption_channels=WIDTH, **SPLIT,
    )  # fmt: skip
    shared: dict[str, Any] = {
        f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in (
            ("num_attention_heads", 4), ("attention_head_dim", 8), ("num_layers", 1),
            ("num_learnable_registers", None)
        )
    }  # fmt: skip
    return {
        "transformer": network, "vae": ltx2_vae(), "audio_vae": ltx2_sound(), "scheduler": flow(),
        "vocoder": d.pipelines.ltx2.LTX2Vocoder(
            in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1,
            output_sampling_rate=16000,
        ),
        "connectors": d.pipelines.ltx2.LTX2TextConnectors(
            caption_channels=WIDTH, text_proj_in_factor=5, connector_rope_base_seq_len=32,
            rope_theta=10000.0,
            causal_temporal_positioning=False, **SPLIT, **shared,
        ),
    } | changes  # fmt: skip


def ltx2_vae() -> Any:
    return d.AutoencoderKLLTX2Video(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,), decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,), decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,), upsample_factor=(1,), timestep_conditioning=False, patch_size=1,
        patch_size_t=1,
        encoder_causal=True, decoder_causal=False,
    )  # fmt: skip


def ltx2_sound() -> Any:
    return d.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None,
        in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0,
        mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160, is_causal=True,
        mel_bins=8,
    )  # fmt: skip


LTX2: dict[str, Any] = {
    "height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0, "guidance_scale": 3.0,
    "max_sequence_length": 16,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}
add("LTX2Pipeline", "LTX-2", ltx2, lambda: LTX2 | PLAIN, **VIDEO)
add(
    "LTX2ImageToVideoPipeline",
    "LTX-2",
    ltx2,
    lambda: LTX2 | PLAIN | {"image": tensor(32), "image_crf": 0},
    **VIDEO,
)
add("LTX2ConditionPipeline", "LTX-2", ltx2, lambda: LTX2 | PLAIN | {"conditions": seen()}, **VIDEO)
add("LTX2InContextPipeline", "LTX-2", ltx2, lambda: LTX2 | {"conditions": seen()}, **VIDEO)
add("LTX2HDRPipeline", "LTX-2", ltx2, lambda: LTX2 | {"reference_conditions": heard()}, **VIDEO)


def seen() -> Any:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    return LTX2VideoCondition(frames=tensor(32), index=0, strength=1.0, crf=0)


def heard() -> Any:
    from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition

    return LTX2HDRReferenceCondition(frames=tensor(32), strength=1.0)


# -- Kandinsky 5 -----------------------------------------------------------------------------------
def kandinsky5(vae: Any, seeing: bool = False) -> dict[str, Any]:
    network = d.Kandinsky5Transformer3DModel(
        in_visual_dim=16, in_text_dim=WIDTH, in_text_dim2=WIDTH, time_dim=16, out_visual_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(1, 1, 2),
        visual_cond=seeing,
        attention_type="regular",
    )  # fmt: skip
    made = {
        "transformer": network,
        "vae": vae,
        "scheduler": flow(shift=5.0),
        "tokenizer": Processor(),
    }
    return made | {"text_encoder": Text(), "text_encoder_2": Text()}


def small(pipe: Any) -> None:
    """The editing pipeline brings every picture to one of its sizes, a megapixel each; here to 64
    by 64.
    """
    pipe.resolutions = [(64, 64)]


K5: dict[str, Any] = {"height": 32, "width": 32, "max_sequence_length": 16}
add(
    "Kandinsky5T2VPipeline",
    "Kandinsky 5",
    lambda: kandinsky5(hunyuan_vae(16, 2)),
    lambda: K5 | {"num_frames": 5},
    **ONE,
)
add("Kandinsky5I2VPipeline", "Kandinsky 5", lambda: kandinsky5(hunyuan_vae(16, 3), True),
    lambda: K5 | {"num_frames": 5, "image": picture(32)}, **ONE)  # fmt: skip
add(
    "Kandinsky5T2IPipeline",
    "Kandinsky 5",
    lambda: kandinsky5(kl(16)),
    lambda: K5,
    guidance="sequential",
)
add("Kandinsky5I2IPipeline", "Kandinsky 5", lambda: kandinsky5(kl(16, 4), True),
    lambda: K5 | {"image": picture(64), "height": 64, "width": 64}, guidance="sequential",
    after=small)  # fmt: skip

# -- Cosmos ----------------------------------------------------------------------------------------
COSMOS: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "mlp_ratio": 2,
    "text_embed_dim": WIDTH,
    "adaln_lora_dim": 4, "max_size": (4, 32, 32), "patch_size": (1, 2, 2),
    "rope_scale": (2.0, 1.0, 1.0),
    "concat_padding_mask": True, "extra_pos_embed_type": "learnable",
}  # fmt: skip


class Safe(torch.nn.Module):
    """A safety checker that passes everything."""

    dtype, device = torch.float32, torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def resize(picture: torch.Tensor, size: list[int], interpolation: str) -> torch.Tensor:
    return torch.nn.functional.interpolate(picture, size, mode=interpolation)


def without_torchvision() -> None:
    """Cosmos resizes its padding mask with torchvision, which need not be there."""
    from diffusers.models.transformers import transformer_cosmos

    functional, modes = SimpleNamespace(resize=resize), SimpleNamespace(NEAREST="nearest")
    vars(transformer_cosmos).setdefault(
        "transforms", SimpleNamespace(functional=functional, InterpolationMode=modes)
    )


def cosmos(channels: int = 16, out: int = 16, **changes: Any) -> dict[str, Any]:
    without_torchvision()
    network = d.CosmosTransformer3DModel(in_channels=channels, out_channels=out, **COSMOS)
    made = {"transformer": network, "vae": wan_vae(), "scheduler": flow(use_karras_sigmas=True)}
    return made | {"safety_checker": Safe()} | changes


def cosmos1(channels: int) -> dict[str, Any]:
    vae = d.AutoencoderKLCosmos(
        in_channels=3, out_channels=3, latent_channels=4, encoder_block_out_channels=(8,) * 4,
        decode_block_out_channels=(8,) * 4, attention_resolutions=(8,), resolution=64, num_layers=1,
        patch_size=4,
        patch_type="haar", scaling_factor=1.0, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = d.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras",
        num_train_timesteps=1000,
        prediction_type="epsilon", rho=7.0, final_sigmas_type="sigma_min",
    )  # fmt: skip
    return cosmos(channels, 4, vae=vae, scheduler=scheduler)


WORLD: dict[str, Any] = {"height": 32, "width": 32, "num_frames": 9}
add("CosmosTextToWorldPipeline", "Cosmos", lambda: cosmos1(4), lambda: WORLD, **ONE)
add(
    "CosmosVideoToWorldPipeline",
    "Cosmos",
    lambda: cosmos1(5),
    lambda: WORLD | {"image": picture(32)},
    **ONE,
)
add(
    "Cosmos2TextToImagePipeline",
    "Cosmos",
    cosmos,
    lambda: {"height": 32, "width": 32},
    guidance="sequential",
)
add(
    "Cosmos2VideoToWorldPipeline",
    "Cosmos",
    lambda: cosmos(17),
    lambda: WORLD | {"image": picture(32)},
    **ONE,
)
add(
    "Cosmos2_5_PredictBasePipeline", "Cosmos",
    lambda: cosmos(
        17, scheduler=unipc(flow_shift=1.0),
        vae=wan_vae(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
    ),
    lambda: WORLD | {
        "num_frames": 5, "prompt": LEFT_OUT, "prompt_embeds": torch.ones(1, 8, WIDTH),
        "negative_prompt_embeds": torch.zeros(1, 8, WIDTH),
    },
    **ONE,
)  # fmt: skip
