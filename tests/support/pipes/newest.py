"""The newest classes, and those of which a relative is built elsewhere."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from .dit_new import parts
from .flux import flux2
from .nets import WIDTH, ddim, flow, tensor, wan_vae
from .registry import add
from .sdxl import parts as xl
from .standins import Text
from .video_more import ANYFLOW, ONE, ROPE


def words(rows: int = 8, width: int = WIDTH) -> dict[str, Any]:
    """Prompts as what a text encoder makes of them."""
    draw = torch.Generator().manual_seed(1)
    made = torch.randn(2, 1, rows, width, generator=draw)
    return {"prompt_embeds": made[0], "negative_prompt_embeds": made[1]}


def masks() -> dict[str, Any]:
    ones = torch.ones(1, 8, dtype=torch.int64)
    return {"prompt_embeds_mask": ones, "negative_prompt_embeds_mask": ones}


def ernie() -> dict[str, Any]:
    network = d.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=1, ffn_hidden_size=32, in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    return {"transformer": network, "vae": flux2()["vae"], "scheduler": flow()}


add(
    "ErnieImagePipeline", "ERNIE image", ernie,
    lambda: {
        "prompt": None, "negative_prompt": None, "use_pe": False, "height": 64, "width": 64,
        **{key: [value[0]] for key, value in words().items()},
    },
)  # fmt: skip


def refiner() -> dict[str, Any]:
    network = d.HunyuanImageTransformer2DModel(
        in_channels=16, out_channels=8, num_attention_heads=4, attention_head_dim=8, num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1, patch_size=(1, 1, 1), guidance_embeds=False, text_embed_dim=WIDTH,
        rope_axes_dim=(4, 2, 2), use_meanflow=False,
    )  # fmt: skip
    vae = d.AutoencoderKLHunyuanImageRefiner(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2, temporal_compression_ratio=1, downsample_match_channel=False,
        upsample_match_channel=False,
    )  # fmt: skip
    guider = d.AdaptiveProjectedMixGuidance(guidance_scale=3.0)
    return parts(network, vae=vae, scheduler=flow(shift=4.0), text_encoder=Text(), guider=guider)


add(
    "HunyuanImageRefinerPipeline", "HunyuanImage 2.1", refiner,
    lambda: {"prompt": None, "image": tensor()} | words() | masks(), guidance="sequential",
)  # fmt: skip
add(
    "AnyFlowFARPipeline", "AnyFlow",
    lambda: {
        "transformer": d.AnyFlowFARTransformer3DModel(**ROPE, **ANYFLOW, chunk_partition=(1, 2)),
        "vae": wan_vae(),
        "scheduler": d.FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0),
    },
    lambda: {"num_frames": 9, "guidance_scale": 6.0, "chunk_partition": [1, 2]}, **ONE,
)  # fmt: skip
add(
    "TextToVideoZeroSDXLPipeline", "Text to video zero", lambda: xl(scheduler=ddim()),
    lambda: {"video_length": 2, "t0": 0, "t1": 1}, kind="video",
)  # fmt: skip
