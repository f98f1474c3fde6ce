"""The transformer of the flow model, and how it is called in training.

``StableDiffusion3Pipeline`` without its third text encoder appends ``max_sequence_length`` (256)
zero tokens to the prompt. Context tokens have no positions, so these stay equal to each other in
every layer: in training one of them stands for all, and its attention logit is raised by the log of
their number, which is the same function for a third of the work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from training.emoji.text import WIDTH

SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0}
ZEROS = 256  # the pipeline's default max_sequence_length
APART = ("pos_embed.proj.weight", "proj_out.weight")


def build_transformer(layers: int = 4, heads: int = 6, head_dim: int = 32) -> SD3Transformer2DModel:
    """The untrained MMDiT: every block starts as the identity (adaLN-zero), the output as zero."""
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        caption_projection_dim=heads * head_dim,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if name.endswith(
                ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")
            ):
                nn.init.zeros_(module.weight)
    return transformer


def condition(prompt: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Context (N, 17, 384) and pooled projection (N, 384) from the encoder's (N, 16, 192), (N,
    192).

    As the pipeline makes them when one encoder serves as both, but with a single zero token.
    """
    twice = torch.cat([prompt, prompt], dim=-1)
    return F.pad(twice, (0, 0, 0, 1)), torch.cat([pooled, pooled], dim=-1)


class CountedAttention:
    """Joint attention of SD3 whose last context token counts as many (0 or more) equal ones."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        size, count, _ = hidden_states.shape

        def split(x: Tensor) -> Tensor:
            return x.view(size, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

        def joined(
            x: Tensor, context: Tensor, norm: nn.Module | None, context_norm: nn.Module | None
        ) -> Tensor:
            x, context = split(x), split(context)
            x, context = norm(x) if norm else x, context_norm(context) if context_norm else context
            return torch.cat([x, context], dim=2)

        query = joined(
            attn.to_q(hidden_states),
            attn.add_q_proj(encoder_hidden_states),
            attn.norm_q,
            attn.norm_added_q,
        )
        key = joined(
            attn.to_k(hidden_states),
            attn.add_k_proj(encoder_hidden_states),
            attn.norm_k,
            attn.norm_added_k,
        )
        value = joined(attn.to_v(hidden_states), attn.add_v_proj(encoder_hidden_states), None, None)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        picture, context = mixed[:, :count], mixed[:, count:]
        if not attn.context_pre_only:
            context = attn.to_add_out(context)
        return attn.to_out[0](picture), context


def velocity(
    transformer: SD3Transformer2DModel,
    noisy: Tensor,
    time: Tensor,
    context: Tensor,
    pooled: Tensor,
    zeros: Tensor,
) -> Tensor:
    """Predicted noise - clean at ``time`` in 0..1; ``zeros`` (N) is the number of zero tokens."""
    tokens = (
        noisy.shape[-1] * noisy.shape[-2] // transformer.config.patch_size**2 + context.shape[1]
    )
    bias = F.pad(zeros.log().view(-1, 1, 1, 1), (tokens - 1, 0))
    return transformer(
        noisy,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=1000 * time,
        joint_attention_kwargs={"attention_mask": bias},
        return_dict=False,
    )[0]
