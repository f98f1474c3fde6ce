"""Pipelines in two stages, a prior and a decoder: Kandinsky, Stable Cascade, Würstchen, unCLIP,
Shap-E.
"""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from .nets import WIDTH, ddim, picture, tensor
from .registry import add
from .standins import Eyes, Lens, Text

TWO, NEW = "Kandinsky 2.1", "Kandinsky 2.2"
BLOCKS: dict[str, Any] = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 8, "cross_attention_dim": WIDTH,
    "encoder_hid_dim": WIDTH, "norm_num_groups": 8,
}  # fmt: skip


def unet(inside: int, added: str, projected: str) -> Any:
    return d.UNet2DConditionModel(
        in_channels=inside,
        out_channels=8,
        addition_embed_type=added,
        encoder_hid_dim_type=projected,
        **BLOCKS,
    )


def movq() -> Any:
    return d.VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], in_channels=3,
        latent_channels=4, layers_per_block=1, norm_num_groups=4, norm_type="spatial",
        num_vq_embeddings=12,
        out_channels=3, up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], vq_embed_dim=4,
    )  # fmt: skip


def prior() -> Any:
    made = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, embedding_dim=WIDTH, num_layers=1,
        num_embeddings=8,
    )  # fmt: skip
    made.clip_std = torch.nn.Parameter(torch.ones(1, WIDTH))
    return made


def unclip(**changes: Any) -> Any:
    options = {
        "variance_type": "fixed_small_log",
        "prediction_type": "sample",
        "num_train_timesteps": 1000,
    }
    return d.UnCLIPScheduler(
        **(options | {"clip_sample": True, "clip_sample_range": 10.0} | changes)
    )


def embeds() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(1, WIDTH, generator=g)
        for name in ("image_embeds", "negative_image_embeds")
    }


def first() -> dict[str, Any]:
    network = unet(4, "text_image", "text_image_proj")
    return {
        "unet": network,
        "movq": movq(),
        "scheduler": ddim(beta_schedule="linear"),
        "text_encoder": Pair(),
    }


def later(inside: int = 4, added: str = "image") -> dict[str, Any]:
    return {
        "unet": unet(inside, added, "image_proj"),
        "movq": movq(),
        "scheduler": d.DDPMScheduler(variance_type="learned_range"),
    }


class Clip(Text):
    """Pooled states first, then those of the words."""

    def __init__(self) -> None:
        super().__init__(pooled=WIDTH)


class Pair(Text):
    """One state for the prompt and those of the words, and nothing else."""

    def forward(self, *args: Any, **named: Any) -> Any:
        made = super().forward(*args, **named)
        return made.text_embeds, made.last_hidden_state


def pictured() -> dict[str, Any]:
    return embeds() | {"image": picture(64), "strength": 0.8, "height": 64, "width": 64}


SIZE: dict[str, Any] = {"height": 64, "width": 64, "output_type": "pt"}
SIZED: dict[str, Any] = {"height": 64, "width": 64}
PRIORS: dict[str, Any] = {"output_type": "pt"}


def priors() -> dict[str, Any]:
    encoders = {"image_encoder": Eyes(), "text_encoder": Clip(), "image_processor": Lens()}
    return {"prior": prior(), "scheduler": unclip()} | encoders


add("KandinskyPriorPipeline", TWO, priors, lambda: PRIORS)
add("KandinskyPipeline", TWO, first, lambda: embeds() | SIZE)
add("KandinskyImg2ImgPipeline", TWO, first, lambda: pictured() | SIZE)
add("KandinskyInpaintPipeline", TWO,
    lambda: first() | {"unet": unet(9, "text_image", "text_image_proj")},
    lambda: embeds() | SIZE | {"image": picture(64), "mask_image": torch.ones(64, 64).numpy()},
)  # fmt: skip
add("KandinskyV22PriorPipeline", NEW, priors, lambda: PRIORS)
add("KandinskyV22PriorEmb2EmbPipeline", NEW, priors,
    lambda: PRIORS | {"image": torch.ones(1, WIDTH), "strength": 0.8})  # fmt: skip
add("KandinskyV22Pipeline", NEW, later, lambda: embeds() | SIZED)
add("KandinskyV22Img2ImgPipeline", NEW, later, lambda: pictured() | SIZED)
add("KandinskyV22InpaintPipeline", NEW, lambda: later(9),
    lambda: embeds() | SIZED | {"image": picture(64),
    "mask_image": torch.ones(64, 64).numpy()})  # fmt: skip
add("KandinskyV22ControlnetPipeline", NEW, lambda: later(8, "image_hint"),
    lambda: embeds() | SIZE | {"hint": tensor(256)})  # fmt: skip
add("KandinskyV22ControlnetImg2ImgPipeline", NEW, lambda: later(8, "image_hint"),
    lambda: pictured() | SIZE | {"hint": tensor(256)})  # fmt: skip
add(
    "KandinskyV22CombinedPipeline", NEW,
    lambda: later() | {f"prior_{name}": made for name, made in combined().items()}, lambda: SIZED,
)  # fmt: skip


def combined() -> dict[str, Any]:
    from .standins import Words

    return priors() | {"tokenizer": Words()}


def kandinsky3() -> dict[str, Any]:
    network = d.Kandinsky3UNet(
        in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(32, 64), cross_attention_dim=4, encoder_hid_dim=WIDTH,
    )  # fmt: skip
    scheduler = d.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, steps_offset=1, beta_schedule="squaredcos_cap_v2"
    )
    return {"unet": network, "movq": movq(), "scheduler": scheduler}


add("Kandinsky3Pipeline", "Kandinsky 3", kandinsky3)
add(
    "Kandinsky3Img2ImgPipeline",
    "Kandinsky 3",
    kandinsky3,
    lambda: {"image": picture(64), "strength": 0.8},
)


# -- Stable Cascade, Würstchen ---------------------------------------------------------------------
def cascade_prior() -> Any:
    return d.models.StableCascadeUNet(
        conditioning_dim=32, block_out_channels=(32, 32), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=WIDTH,
        clip_text_in_channels=WIDTH, clip_text_pooled_in_channels=WIDTH, dropout=(0.0, 0.0),
    )  # fmt: skip


def cascade_decoder() -> Any:
    kinds = ["SDCascadeResBlock", "SDCascadeTimestepBlock"]
    return d.models.StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=32, block_out_channels=[16, 32],
        num_attention_heads=[-1, 2],
        down_num_layers_per_block=[1, 1], up_num_layers_per_block=[1, 1],
        down_blocks_repeat_mappers=[1, 1],
        up_blocks_repeat_mappers=[1, 1],
        block_types_per_layer=[kinds, [*kinds, "SDCascadeAttnBlock"]],
        switch_level=None, clip_text_pooled_in_channels=WIDTH, dropout=[0.0, 0.0],
    )  # fmt: skip


def paella() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2)


def cascade(network: str, made: Any, **more: Any) -> dict[str, Any]:
    return {network: made, "scheduler": d.DDPMWuerstchenScheduler(), "text_encoder": Clip()} | more


add(
    "StableCascadePriorPipeline", "Stable Cascade",
    lambda: cascade("prior", cascade_prior(), feature_extractor=None, image_encoder=None),
    lambda: {"height": 128, "width": 128, "output_type": "pt"},
)  # fmt: skip
add(
    "StableCascadeDecoderPipeline", "Stable Cascade",
    lambda: cascade("decoder", cascade_decoder(), vqgan=paella()),
    lambda: {"image_embeddings": torch.ones(1, 4, 4, 4), "guidance_scale": 2.0},
)  # fmt: skip
add(
    "StableCascadeCombinedPipeline", "Stable Cascade",
    lambda: cascade("decoder", cascade_decoder(), vqgan=paella())
    | {f"prior_{k}": v for k,
    v in cascade("prior", cascade_prior(), tokenizer=combined()["tokenizer"],
                                           feature_extractor=None, image_encoder=None).items()},
    lambda: {"height": 128, "width": 128, "prior_num_inference_steps": 2},
)  # fmt: skip


def wuerstchen(name: str) -> Any:
    from diffusers.pipelines.deprecated import wuerstchen as w

    if name == "prior":
        return w.WuerstchenPrior(c_in=2, c=8, depth=1, c_cond=WIDTH, c_r=8, nhead=2)
    return w.WuerstchenDiffNeXt(
        c_cond=WIDTH, c_hidden=[16, 32], nhead=[-1, 2], blocks=[1, 1], level_config=["CT", "CTA"],
        effnet_embd=4,
        inject_effnet=[False, True], clip_embd=WIDTH, kernel_size=3, dropout=0.0,
    )  # fmt: skip


add(
    "WuerstchenPriorPipeline", "Würstchen",
    lambda: cascade("prior", wuerstchen("prior")) | {"text_encoder": Text()},
    lambda: {"height": 128, "width": 128, "output_type": "pt"},
)  # fmt: skip
add(
    "WuerstchenDecoderPipeline", "Würstchen",
    lambda: cascade("decoder", wuerstchen("decoder"), vqgan=paella()) | {"text_encoder": Text()},
    lambda: {"image_embeddings": torch.ones(1, 4, 3, 3), "guidance_scale": 2.0},
)  # fmt: skip


# -- Shap-E ----------------------------------------------------------------------------------------
def shap_e() -> dict[str, Any]:
    from diffusers.pipelines.shap_e import ShapERenderer

    network = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, embedding_dim=16, num_embeddings=32,
        embedding_proj_dim=WIDTH,
        time_embed_dim=64, num_layers=1, clip_embed_dim=32, additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer", encoder_hid_proj_type=None, added_emb_type=None,
    )  # fmt: skip
    scheduler = d.HeunDiscreteScheduler(
        beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True, clip_sample_range=1.0,
    )  # fmt: skip
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)),
        d_latent=16,
        d_hidden=8,
        n_output=12,
        background=(0.1,) * 3,
    )
    return {"prior": network, "scheduler": scheduler, "shap_e_renderer": renderer}


SHAPE: dict[str, Any] = {"frame_size": 32, "guidance_scale": 3.0}
add(
    "ShapEPipeline", "Shap-E", lambda: shap_e() | {"text_encoder": Clip()}, lambda: SHAPE, kind="3D"
)
add("ShapEImg2ImgPipeline", "Shap-E",
    lambda: shap_e() | {"image_encoder": Eyes(), "image_processor": Lens()},
    lambda: SHAPE | {"image": picture()}, kind="3D")  # fmt: skip
