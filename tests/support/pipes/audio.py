"""Sound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers as d
import torch

from .nets import WIDTH, ddim, flow, kl, unet
from .registry import add
from .standins import Text

SOUND: dict[str, Any] = {"kind": "audio"}


def oobleck(latents: int) -> Any:
    return d.AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=latents,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip


class Projection(torch.nn.Module):
    """Words and seconds to states."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        from diffusers.pipelines.stable_audio import StableAudioProjectionModel

        self.inner = StableAudioProjectionModel(
            text_encoder_dim=WIDTH, conditioning_dim=4, min_value=0, max_value=32
        )
        self.config = self.inner.config

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.inner(*args, **named)


def stable_audio() -> dict[str, Any]:
    network = d.StableAudioDiTModel(
        sample_size=4, in_channels=3, num_layers=1, attention_head_dim=4,
        num_key_value_attention_heads=2,
        num_attention_heads=4, out_channels=3, cross_attention_dim=4, time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )  # fmt: skip
    scheduler = d.CosineDPMSolverMultistepScheduler(
        solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
    )
    made = {
        "transformer": network,
        "vae": oobleck(3),
        "scheduler": scheduler,
        "projection_model": Projection(),
    }
    return made | {"text_encoder": Text(WIDTH)}


add("StableAudioPipeline", "Stable Audio", stable_audio, lambda: {"output_type": "latent"}, **SOUND)


class Vocoder(torch.nn.Module):
    """Spectrograms to sound."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_in_dim=8, sampling_rate=16000, upsample_rates=[2, 2])
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        return spectrogram.repeat_interleave(4, 1).mean(-1) * self.scale


def audioldm(**more: Any) -> dict[str, Any]:
    network = unet(
        class_embed_type="simple_projection", projection_class_embeddings_input_dim=WIDTH,
        class_embeddings_concat=True, cross=(8, 16),
    )  # fmt: skip
    made = {
        "unet": network,
        "vae": kl(in_channels=1, out_channels=1),
        "scheduler": ddim(),
        "vocoder": Vocoder(),
    }
    return made | {"text_encoder": Text(pooled=WIDTH)} | more


HEARD: dict[str, Any] = {"audio_length_in_s": 0.02, "output_type": "pt"}
add("AudioLDMPipeline", "AudioLDM", audioldm, lambda: HEARD, **SOUND)


class Clap(torch.nn.Module):
    """Sounds and words in one space: here words only."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.text_model, self.text_projection = Text(pooled=WIDTH), torch.nn.Identity()

    def get_text_features(
        self, ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Any:
        return self.text_model(ids)[0]


add(
    "MusicLDMPipeline", "MusicLDM", lambda: audioldm(text_encoder=Clap(), feature_extractor=None),
    lambda: HEARD, **SOUND,
)  # fmt: skip


def audioldm2() -> dict[str, Any]:
    """Of two encodings, that of the words and that which a language model writes."""
    network = d.AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(None, WIDTH, WIDTH), attention_head_dim=2,
    )  # fmt: skip
    made = audioldm(
        unet=network,
        text_encoder=Clap(),
        text_encoder_2=Text(model_type="t5"),
        feature_extractor=None,
    )
    return made | {"projection_model": Text(), "language_model": Text()}


def encodings() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)
    made = torch.randn(4, 1, 8, WIDTH, generator=draw)
    names = [
        f"{sign}{kind}prompt_embeds" for sign in ("", "negative_") for kind in ("", "generated_")
    ]
    ones = torch.ones(1, 8, dtype=torch.int64)
    return dict(zip(names, made, strict=True)) | {
        "attention_mask": ones,
        "negative_attention_mask": ones,
    }


add(
    "AudioLDM2Pipeline",
    "AudioLDM",
    audioldm2,
    lambda: HEARD | {"prompt": None} | encodings(),
    **SOUND,
)


def dance() -> dict[str, Any]:
    network = d.UNet1DModel(
        block_out_channels=(32, 32, 64), extra_in_channels=64, sample_size=128, sample_rate=16000,
        in_channels=2,
        out_channels=2, flip_sin_to_cos=True, use_timestep_embedding=False,
        time_embedding_type="fourier",
        mid_block_type="UNetMidBlock1D",
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip
    return {"unet": network, "scheduler": d.IPNDMScheduler()}


add(
    "DanceDiffusionPipeline",
    "Dance Diffusion",
    dance,
    lambda: {"audio_length_in_s": 128 / 16000},
    **SOUND | {"guidance": "none"},
)


def longcat() -> dict[str, Any]:
    network = d.LongCatAudioDiTTransformer(
        dit_dim=64, dit_depth=1, dit_heads=4, dit_text_dim=WIDTH, latent_dim=8, text_conv=False
    )
    vae = d.LongCatAudioDiTVae(
        in_channels=1, channels=16, c_mults=[1, 2], strides=[2], latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2, sample_rate=24000,
    )  # fmt: skip
    return {"transformer": network, "vae": vae, "scheduler": flow(), "text_encoder": Text()}


add(
    "LongCatAudioDiTPipeline",
    "LongCat audio",
    longcat,
    lambda: {"audio_duration_s": 0.01},
    **SOUND | {"guidance": "sequential"},
)
