"""Stable Diffusion 1 and XL as one file, with the names and shapes that Stability's checkpoints
have.

Names from CompVis/stable-diffusion (ldm/modules/diffusionmodules/openaimodel.py and model.py) and
from OpenCLIP's text transformer; the inverse of what diffusers does in
loaders/single_file_utils.py.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
VAE = (
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."), (r"downsamplers\.0", "downsample"),
    (r"upsamplers\.0", "upsample"), (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"), (r"\.down_blocks\.", ".down."),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."), (r"to_out\.0", "proj_out"),
)  # fmt: skip
OPEN_CLIP = (
    (r"encoder\.layers\.", "transformer.resblocks."), (r"layer_norm([12])", r"ln_\1"),
    (r"self_attn", "attn"),
    (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"), (r"final_layer_norm", "ln_final"),
    (r"embeddings\.token_embedding", "token_embedding"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
)  # fmt: skip


def checkpoint(pipe: Any) -> Weights:
    """All weights of a Stable Diffusion 1 or XL pipeline."""
    made = _prefixed("model.diffusion_model.", unet(pipe.unet)) | _prefixed(
        "first_stage_model.", vae(pipe.vae)
    )
    if getattr(pipe, "text_encoder_2", None) is None:
        return made | _prefixed("cond_stage_model.transformer.", clip(pipe.text_encoder))
    first = _prefixed("conditioner.embedders.0.transformer.", clip(pipe.text_encoder))
    return (
        made | first | _prefixed("conditioner.embedders.1.model.", open_clip(pipe.text_encoder_2))
    )


def unet(network: Any) -> Weights:
    each = network.config.layers_per_block + 1
    crossed = {
        int(m[1])
        for key in network.state_dict()
        if (m := re.match(r"up_blocks\.(\d+)\.attentions", key))
    }
    return {_unet_name(key, each, crossed): value for key, value in network.state_dict().items()}


def _unet_name(key: str, each: int, crossed: set[int]) -> str:
    """`each`: places a block has, its layers and one more. `crossed`: the upward blocks that
    attend.
    """
    found = re.fullmatch(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", key)
    if found is None:
        top, rest = key.rsplit(".", 1)
        return f"{TOP[top]}.{rest}"
    side, block, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnets":
        name, tail = rest.split(".", 1)
        rest = f"{RESNET[name]}.{tail}"
    if side == "mid_block":
        return f"middle_block.{2 * layer if kind == 'resnets' else 1}.{rest}"
    if side == "down_blocks":
        at = 1 + block * each + layer
        return {
            "resnets": f"input_blocks.{at}.0.{rest}", "attentions": f"input_blocks.{at}.1.{rest}",
            "downsamplers": f"input_blocks.{block * each + each}.0.{rest.replace('conv', 'op')}",
        }[kind]  # fmt: skip
    at = block * each + layer
    return {
        "resnets": f"output_blocks.{at}.0.{rest}", "attentions": f"output_blocks.{at}.1.{rest}",
        "upsamplers": (
            f"output_blocks.{block * each + each - 1}.{2 if block in crossed else 1}.{rest}"
        ),
    }[kind]  # fmt: skip


def vae(network: Any) -> Weights:
    last, made = len(network.config.up_block_types) - 1, {}
    for key, value in network.state_dict().items():
        name = re.sub(
            r"\.up_blocks\.(\d+)\.(resnets\.)?", lambda m: _up(last - int(m[1]), m[2]), key
        )
        for old, new in VAE:
            name = re.sub(old, new, name)
        one_by_one = (
            ".attn_1." in name and value.ndim == 2
        )  # a convolution there, a linear layer here
        made[name] = value[:, :, None, None] if one_by_one else value
    return made


def _up(block: int, kind: str | None) -> str:
    return f".up.{block}.{'block.' if kind else ''}"


def clip(encoder: Any) -> Weights:
    plain = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    return _prefixed("text_model.", plain)


def open_clip(encoder: Any) -> Weights:
    plain = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    made: Weights = {"text_projection": plain.pop("text_projection.weight").T}
    for key, value in plain.items():
        if found := re.fullmatch(r"(.+self_attn)\.q_proj\.(weight|bias)", key):
            three = [plain[f"{found[1]}.{part}_proj.{found[2]}"] for part in "qkv"]
            made[_renamed(f"{found[1]}.in_proj_{found[2]}")] = torch.cat(three)
        elif not re.search(r"\.[kv]_proj\.", key):
            made[_renamed(key)] = value
    return made


def _renamed(name: str) -> str:
    for old, new in OPEN_CLIP:
        name = re.sub(old, new, name)
    return name


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value.contiguous() for key, value in weights.items()}
