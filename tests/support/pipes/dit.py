"""Transformers for pictures, the first generation: PixArt to Lumina, HunyuanDiT, Sana, AuraFlow."""

from __future__ import annotations

from typing import Any

import diffusers as d

from .nets import WIDTH, ddim, flow, kl, tensor
from .registry import LEFT_OUT, add
from .standins import Text, Words

ADA: dict[str, Any] = {
    "num_layers": 1, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 8, "attention_bias": True, "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False, "sample_size": 8,
}  # fmt: skip


def parts(network: Any, **changes: Any) -> dict[str, Any]:
    return {"transformer": network, "vae": kl(), "scheduler": flow()} | changes


add(
    "DiTPipeline", "DiT",
    lambda: parts(d.DiTTransformer2DModel(**ADA, norm_type="ada_norm_zero"), scheduler=ddim()),
    lambda: {"class_labels": [1], "output_type": "np"}, two={"class_labels": [1, 1]},
)  # fmt: skip


def pixart(**changes: Any) -> dict[str, Any]:
    options = ADA | {
        "caption_channels": WIDTH,
        "cross_attention_dim": 16,
        "norm_type": "ada_norm_single",
    }
    return parts(d.PixArtTransformer2DModel(**options, norm_eps=1e-6), scheduler=ddim(), **changes)


add("PixArtAlphaPipeline", "PixArt", pixart)
add("PixArtSigmaPipeline", "PixArt", pixart)
add(
    "PixArtSigmaPAGPipeline",
    "PAG",
    lambda: pixart(pag_applied_layers="blocks.0"),
    guidance="threefold",
)


def hunyuan(**changes: Any) -> dict[str, Any]:
    return parts(
        d.HunyuanDiT2DModel(**HUNYUAN, num_layers=2),
        scheduler=d.DDPMScheduler(beta_end=0.03, prediction_type="v_prediction"),
        text_encoder=Text(), text_encoder_2=Text(), **changes,
    )  # fmt: skip


HUNYUAN: dict[str, Any] = {
    "sample_size": 8, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
    "in_channels": 4,
    "cross_attention_dim": WIDTH, "cross_attention_dim_t5": WIDTH, "pooled_projection_dim": 16,
    "hidden_size": 24,
    "activation_fn": "gelu-approximate", "text_len": 77, "text_len_t5": 256,
}  # fmt: skip
LONG = {"max_sequence_length": LEFT_OUT}


def longer() -> dict[str, Any]:
    return {"tokenizer": Words(model_max_length=8), "tokenizer_2": Words(model_max_length=8)}


add("HunyuanDiTPipeline", "HunyuanDiT", lambda: hunyuan() | longer())
add(
    "HunyuanDiTPAGPipeline",
    "PAG",
    lambda: hunyuan(pag_applied_layers="blocks.1") | longer(),
    guidance="threefold",
)
add(
    "HunyuanDiTControlNetPipeline", "ControlNet",
    lambda: hunyuan(controlnet=d.HunyuanDiT2DControlNetModel(**HUNYUAN,
    transformer_num_layers=2)) | longer(),
    lambda: {"control_image": tensor()},
)  # fmt: skip

# -- Sana ----------------------------------------------------------------------------------------
SANA: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 4, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": WIDTH, "sample_size": 8,
}  # fmt: skip


def dc() -> Any:
    kinds: dict[str, Any] = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (
            ("block_types", ("ResBlock", "EfficientViTBlock")), ("block_out_channels", (8, 8)),
            ("qkv_multiscales", ((), (5,))), ("layers_per_block", (1, 1)),
        )
    }  # fmt: skip
    return d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
        scaling_factor=0.4,
        **kinds,
    )  # fmt: skip


def sana(
    cls: str = "SanaTransformer2DModel", more: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    return (
        parts(getattr(d, cls)(**(SANA | (more or {}))), vae=dc(), scheduler=flow(shift=3.0))
        | changes
    )


SPRINT = {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}
DIRECT = {"intermediate_timesteps": None}  # the default fits two steps only
BIG: dict[str, Any] = {"height": 32, "width": 32}
add("SanaPipeline", "Sana", sana, lambda: BIG)
add(
    "SanaPAGPipeline",
    "PAG",
    lambda: sana(pag_applied_layers="blocks.0"),
    lambda: BIG,
    guidance="threefold",
)
add(
    "SanaControlNetPipeline", "ControlNet",
    lambda: sana(controlnet=d.SanaControlNetModel(**SANA | {"num_layers": 1})),
    lambda: BIG | {"control_image": tensor(32)},
)  # fmt: skip
add("SanaSprintPipeline", "Sana Sprint", lambda: sana(more=SPRINT, scheduler=d.SCMScheduler()),
    lambda: BIG | DIRECT, guidance="embedded")  # fmt: skip
add(
    "SanaSprintImg2ImgPipeline", "Sana Sprint",
    lambda: sana(more=SPRINT, scheduler=d.SCMScheduler()),
    lambda: BIG | DIRECT | {"image": tensor(32), "strength": 0.8}, guidance="embedded",
)  # fmt: skip

# -- Lumina, AuraFlow, CogView, HiDream ------------------------------------------------------------
add(
    "LuminaPipeline", "Lumina",
    lambda: parts(
        d.LuminaNextDiT2DModel(
            sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=1,
            num_attention_heads=3,
            num_kv_heads=1, multiple_of=16, norm_eps=1e-5, learn_sigma=True, qk_norm=True,
            cross_attention_dim=WIDTH,
        )
    ),
)  # fmt: skip
add(
    "Lumina2Pipeline", "Lumina 2",
    lambda: parts(
        d.Lumina2Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=16, norm_eps=1e-5,
            axes_dim_rope=[4, 2, 2],
            axes_lens=[64, 64, 64], cap_feat_dim=WIDTH,
        ),
        scheduler=flow(shift=6.0), vae=kl(shift_factor=0.06),
    ),
    guidance="sequential",
)  # fmt: skip
add(
    "AuraFlowPipeline", "AuraFlow",
    lambda: parts(
        d.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32,
            joint_attention_dim=WIDTH,
            out_channels=4, pos_embed_max_size=64,
        ),
        scheduler=flow(shift=1.73),
    ),
)  # fmt: skip
add(
    "CogView3PlusPipeline", "CogView 3",
    lambda: parts(
        d.CogView3PlusTransformer2DModel(
            patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
            out_channels=4,
            text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8,
            sample_size=8,
        ),
        scheduler=d.CogVideoXDDIMScheduler(prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
                                           timestep_spacing="trailing", snr_shift_scale=4.0),
    ),
)  # fmt: skip


def cogview4(channels: int = 4) -> dict[str, Any]:
    network = d.CogView4Transformer2DModel(
        patch_size=2, in_channels=channels, num_layers=1, attention_head_dim=4,
        num_attention_heads=4, out_channels=4,
        text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    shift = {
        "base_shift": 0.25,
        "max_shift": 0.75,
        "base_image_seq_len": 256,
        "time_shift_type": "linear",
    }
    return parts(network, scheduler=flow(use_dynamic_shifting=True, **shift))


add(
    "CogView4Pipeline",
    "CogView 4",
    cogview4,
    lambda: {"max_sequence_length": 16},
    guidance="sequential",
)
add("CogView4ControlPipeline", "CogView 4", lambda: cogview4(8),
    lambda: {"max_sequence_length": 16, "control_image": tensor()},
    guidance="sequential")  # fmt: skip
add(
    "HiDreamImagePipeline", "HiDream",
    lambda: parts(
        d.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4, caption_channels=[WIDTH, WIDTH], text_emb_dim=2 * WIDTH,
            num_routed_experts=4,
            num_activated_experts=2, axes_dims_rope=(4, 2, 2), max_resolution=(8, 8),
            llama_layers=(0, 1),
        ),
        text_encoder=Text(pooled=WIDTH), text_encoder_2=Text(pooled=WIDTH),
        scheduler=flow(shift=3.0),
        vae=kl(shift_factor=0.06),
    ),
    lambda: {"height": 128, "width": 128},
)  # fmt: skip
