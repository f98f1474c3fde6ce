"""Transformers for pictures, the second generation: Chroma, Bria, Qwen-Image, Z-Image, Krea and
others.
"""

from __future__ import annotations

import importlib
from typing import Any

import diffusers as d

from .nets import WIDTH, flow, kl, mask, picture, qwen_vae, tensor, wan_vae
from .registry import add
from .standins import Processor, Text

DYNAMIC: dict[str, Any] = {"use_dynamic_shifting": True}


def parts(network: Any, **changes: Any) -> dict[str, Any]:
    return {"transformer": network, "vae": kl(), "scheduler": flow()} | changes


def image() -> dict[str, Any]:
    return {"image": tensor(), "strength": 0.8}


def chroma(**changes: Any) -> dict[str, Any]:
    network = d.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=[4, 4, 8], approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    network.register_to_config(guidance_embeds=False)  # the inpainting pipeline asks for it
    return parts(network, vae=kl(shift_factor=0.06, scaling_factor=1.5), **changes)


add("ChromaPipeline", "Chroma", chroma, guidance="sequential")
add("ChromaImg2ImgPipeline", "Chroma", chroma, image, guidance="sequential")
add(
    "ChromaInpaintPipeline",
    "Chroma",
    chroma,
    lambda: image() | {"mask_image": mask()},
    guidance="sequential",
)
add(
    "BriaPipeline", "Bria",
    lambda: parts(
        d.BriaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        vae=kl(shift_factor=0.0), scheduler=flow(**DYNAMIC),
    ),
)  # fmt: skip


def fibo(**changes: Any) -> dict[str, Any]:
    network = d.BriaFiboTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH, pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )  # fmt: skip
    vae = wan_vae(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
    return parts(
        network, vae=vae, scheduler=flow(**DYNAMIC), text_encoder=Text(layers=2), **changes
    )


JSON = '{"text": "a red apple", "edit_instruction": "green"}'
add("BriaFiboPipeline", "Bria Fibo", fibo, lambda: {"prompt": JSON, "height": 32, "width": 32})
add(
    "BriaFiboEditPipeline",
    "Bria Fibo",
    fibo,
    lambda: {"prompt": JSON, "height": 32, "width": 32, "image": picture(32)},
)
add(
    "OvisImagePipeline", "Ovis-Image",
    lambda: parts(
        d.OvisImageTransformer2DModel(
            patch_size=1, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 4, 8),
        ),
        vae=kl(shift_factor=0.06),
    ),
    guidance="sequential",
)  # fmt: skip

# -- Qwen-Image ------------------------------------------------------------------------------------
QWEN: dict[str, Any] = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (8, 4, 4),
}  # fmt: skip


def thumbnails() -> None:
    """The editing pipelines bring every picture to a megapixel; here to 32 by 32."""
    small = {
        "edit": (32, 32, None),
        "edit_inpaint": (32, 32, None),
        "edit_plus": (32, 32),
        "layered": (32, 32),
    }
    for name, size in small.items():
        module = importlib.import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}")
        vars(module)["calculate_dimensions"] = lambda area, ratio, size=size: size


def qwen(**changes: Any) -> dict[str, Any]:
    thumbnails()
    made = parts(
        d.QwenImageTransformer2DModel(**QWEN),
        vae=qwen_vae(),
        scheduler=flow(**DYNAMIC),
        processor=Processor(),
    )
    return made | changes


def true_cfg() -> dict[str, Any]:
    return {"negative_prompt": "blur", "true_cfg_scale": 3.0, "max_sequence_length": 64}


def control(extra: int = 0) -> Any:
    return d.QwenImageControlNetModel(**QWEN, extra_condition_channels=extra)


def without_processor(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in qwen(**changes).items() if k != "processor"}


add("QwenImagePipeline", "Qwen-Image", without_processor, true_cfg, guidance="sequential")
add(
    "QwenImageImg2ImgPipeline",
    "Qwen-Image",
    without_processor,
    lambda: true_cfg() | image(),
    guidance="sequential",
)
add("QwenImageInpaintPipeline", "Qwen-Image", without_processor,
    lambda: true_cfg() | image() | {"mask_image": mask()}, guidance="sequential")  # fmt: skip
add("QwenImageControlNetPipeline", "ControlNet", lambda: without_processor(controlnet=control()),
    lambda: true_cfg() | {"control_image": tensor()}, guidance="sequential")  # fmt: skip
add(
    "QwenImageControlNetInpaintPipeline", "ControlNet",
    lambda: without_processor(controlnet=control(4)),
    lambda: true_cfg() | {"control_image": tensor(), "control_mask": mask()}, guidance="sequential",
)  # fmt: skip
add(
    "QwenImageEditPipeline",
    "Qwen-Image",
    qwen,
    lambda: true_cfg() | {"image": picture(32)},
    guidance="sequential",
)
add("QwenImageEditPlusPipeline", "Qwen-Image", qwen, lambda: true_cfg() | {"image": [picture(32)]},
    guidance="sequential")  # fmt: skip
add(
    "QwenImageEditInpaintPipeline", "Qwen-Image", qwen,
    lambda: true_cfg() | {"image": picture(32), "mask_image": mask(32), "strength": 0.8},
    guidance="sequential",
)  # fmt: skip
add("QwenImageLayeredPipeline", "Qwen-Image", qwen,
    lambda: true_cfg() | {"image": picture(32), "layers": 2, "output_type": "pt"},
    guidance="sequential")  # fmt: skip


# -- Z-Image ---------------------------------------------------------------------------------------
ZED: dict[str, Any] = {
    "all_patch_size": (2,), "all_f_patch_size": (1,), "dim": 32, "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2, "norm_eps": 1e-5, "qk_norm": True,
}  # fmt: skip
ROPE: dict[str, Any] = {
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [8, 4, 4],
    "axes_lens": [256, 32, 32],
}


def zed(**changes: Any) -> dict[str, Any]:
    network = d.ZImageTransformer2DModel(
        in_channels=4, n_layers=2, cap_feat_dim=WIDTH, **ZED, **ROPE
    )
    return parts(
        network, vae=kl(shift_factor=0.1, scaling_factor=0.36), scheduler=flow(**DYNAMIC), **changes
    )


add("ZImagePipeline", "Z-Image", zed)
add("ZImageImg2ImgPipeline", "Z-Image", zed, image)
add("ZImageInpaintPipeline", "Z-Image", zed, lambda: image() | {"mask_image": mask()})
for _name, _more in (
    ("ZImageControlNetPipeline", {}),
    ("ZImageControlNetInpaintPipeline", {"image": 1}),
):
    add(
        _name, "ControlNet",
        lambda more=_more: zed(
            controlnet=d.ZImageControlNetModel(
                control_layers_places=[0], control_refiner_layers_places=[0] if more else None,
                control_in_dim=9 if more else 4,
                add_control_noise_refiner="control_layers" if more else None, **ZED,
            )
        ),
        lambda more=_more: {"control_image": tensor()} | ({"image": tensor(),
        "mask_image": mask()} if more else {}),
    )  # fmt: skip
add("ZImageOmniPipeline", "Z-Image", lambda: zed(siglip=None, siglip_processor=None))

# -- others ----------------------------------------------------------------------------------------
add(
    "Krea2Pipeline", "Krea 2",
    lambda: parts(
        d.Krea2Transformer2DModel(
            in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=WIDTH, num_text_layers=3,
            text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=16,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2),
            rope_theta=1000.0,
        ),
        vae=qwen_vae(), scheduler=flow(**DYNAMIC), text_encoder_select_layers=(1, 2, 3),
    ),
    lambda: {"max_sequence_length": 16}, guidance="sequential",
)  # fmt: skip
add(
    "NucleusMoEImagePipeline", "Nucleus MoE",
    lambda: parts(
        d.NucleusMoEImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4), moe_enabled=False,
            capacity_factors=[8.0, 8.0],
        ),
        vae=qwen_vae(), processor=Processor(),
    ),
    lambda: {"return_index": -1, "height": 32, "width": 32}, guidance="sequential",
)  # fmt: skip
PRX: dict[str, Any] = {
    "patch_size": 1,
    "hidden_size": 8,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "axes_dim": [2, 2],
}
add(
    "PRXPipeline", "PRX",
    lambda: parts(d.PRXTransformer2DModel(in_channels=4, context_in_dim=WIDTH, **PRX),
    vae=kl(shift_factor=0.0)),
)  # fmt: skip
add(
    "PRXPixelPipeline", "PRX",
    lambda: {
        "transformer": d.PRXTransformer2DModel(
            in_channels=3, context_in_dim=WIDTH, bottleneck_size=8, resolution_embeds=True, **PRX
        ),
        "scheduler": flow(),
    },
    lambda: {"output_type": "pt"},
)  # fmt: skip
add(
    "HunyuanImagePipeline", "HunyuanImage 2.1",
    lambda: parts(
        d.HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8,
            num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1), guidance_embeds=False,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH, rope_axes_dim=(4, 4),
        ),
        vae=d.AutoencoderKLHunyuanImage(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32),
            layers_per_block=1,
            scaling_factor=0.47, spatial_compression_ratio=2, sample_size=16,
        ),
        scheduler=flow(shift=7.0), text_encoder=Text(), text_encoder_2=Text(),
        guider=d.AdaptiveProjectedMixGuidance(guidance_scale=3.0), ocr_guider=None,
    ),
    guidance="sequential",
)  # fmt: skip
JOY: dict[str, Any] = {
    "patch_size": [1, 2, 2], "in_channels": 16, "hidden_size": 32, "num_attention_heads": 2,
    "text_dim": WIDTH,
    "num_layers": 1, "rope_dim_list": [4, 6, 6], "theta": 256,
}  # fmt: skip


def buckets(pipe: Any) -> None:
    """These pipelines bring every picture to a megapixel; here to 32 by 32."""
    for name in ("image_processor", "vae_image_processor"):
        if hasattr(getattr(pipe, name, None), "get_default_height_width"):
            getattr(pipe, name).get_default_height_width = lambda *_, **__: (32, 32)


add(
    "JoyImageEditPipeline", "JoyImage",
    lambda: parts(d.JoyImageEditTransformer3DModel(**JOY), vae=wan_vae(), processor=Processor()),
    lambda: {"image": picture(32), "height": 32, "width": 32}, after=buckets,
)  # fmt: skip
add(
    "JoyImageEditPlusPipeline", "JoyImage",
    lambda: parts(d.JoyImageEditPlusTransformer3DModel(**JOY), vae=wan_vae(),
    processor=Processor()),
    lambda: {"images": [picture(32), picture(32, 1)], "height": 32, "width": 32},
    two="one list of pictures a call",
    after=buckets,
)  # fmt: skip
