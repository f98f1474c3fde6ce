"""Small pipelines that can be saved whole: real text and image encoders, real tokenizers, random
weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import transformers as t

from support.pipes import flux, sd, sd3, sdxl, video
from support.pipes.nets import WIDTH, unet_xl
from support.pipes.registry import Case
from timonel import zoo

WORDS, PLACES = 2596, 16  # of the shipped model's tokenizer
COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def words() -> Any:
    return t.CLIPTokenizer.from_pretrained(zoo.folder("emoji") / "tokenizer_2")


def clip(projected: bool = False, **changes: Any) -> Any:
    """CLIP's text encoder; the second of SDXL and those of SD3 project their pooled state."""
    end = {"bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1, "pad_token_id": WORDS - 1}
    sizes = {"vocab_size": WORDS, "max_position_embeddings": PLACES, "projection_dim": WIDTH}
    config = t.CLIPTextConfig(**(COMMON | sizes | end | changes))
    return (t.CLIPTextModelWithProjection if projected else t.CLIPTextModel)(config)


def t5(width: int = WIDTH, multilingual: bool = False) -> Any:
    config = {
        "vocab_size": WORDS,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 37,
        "num_layers": 2,
        "num_heads": 4,
    }
    return (
        t.UMT5EncoderModel(t.UMT5Config(**config))
        if multilingual
        else t.T5EncoderModel(t.T5Config(**config))
    )


def eyes() -> dict[str, Any]:
    """CLIP's image encoder at the size that SVD resizes to."""
    config = t.CLIPVisionConfig(**COMMON, image_size=224, patch_size=32, projection_dim=WIDTH)
    return {
        "image_encoder": t.CLIPVisionModelWithProjection(config),
        "feature_extractor": t.CLIPImageProcessor(),
    }


def one() -> dict[str, Any]:
    return {"text_encoder": clip(), "tokenizer": words()}


def two(first: bool = False) -> dict[str, Any]:
    return {
        "text_encoder": clip(first), "tokenizer": words(), "text_encoder_2": clip(True),
        "tokenizer_2": words(),
    }  # fmt: skip


def xl() -> dict[str, Any]:
    """Encoders of unequal widths, and a second one of ten layers: by these, readers of single files
    know SDXL.
    """
    encoders = {
        "text_encoder": clip(hidden_size=24),
        "text_encoder_2": clip(True, num_hidden_layers=10),
    }
    return sdxl.parts(unet=unet_xl(cross=24 + WIDTH)) | two() | encoders


def three() -> dict[str, Any]:
    return two(True) | {"text_encoder_3": t5(2 * WIDTH), "tokenizer_3": words()}


def flux_texts() -> dict[str, Any]:
    return one() | {"text_encoder_2": t5(), "tokenizer_2": words()}


def schnell() -> dict[str, Any]:
    return flux.parts(guided=False, scheduler=flux.flow())


def wan_texts() -> dict[str, Any]:
    return {"text_encoder": t5(multilingual=True), "tokenizer": words()}


def refiner() -> dict[str, Any]:
    """SDXL's refiner reads its second text encoder only."""
    none = {
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": clip(True),
        "tokenizer_2": words(),
    }
    return sdxl.refining(unet=unet_xl(sizes=5, cross=WIDTH)) | none


PIPES: dict[str, Case] = {
    "sd15": Case("StableDiffusionPipeline", "sd", lambda: sd.parts() | one()),
    "sdxl": Case("StableDiffusionXLPipeline", "sdxl", xl),
    "refiner": Case("StableDiffusionXLImg2ImgPipeline", "sdxl", refiner, sdxl.image),
    "svd": Case(
        "StableVideoDiffusionPipeline", "svd", lambda: video.svd() | eyes(),
        lambda: {"image": video.picture()},
        after=lambda pipe: pipe.unet.register_to_config(num_frames=2),
    ),
    "sd3": Case("StableDiffusion3Pipeline", "sd3", lambda: sd3.parts() | three()),
    "flux-dev": Case("FluxPipeline", "flux", lambda: flux.parts() | flux_texts()),
    "flux-schnell": Case("FluxPipeline", "flux", lambda: schnell() | flux_texts()),
    "wan": Case("WanPipeline", "wan", lambda: video.wan() | wan_texts(), lambda: {"num_frames": 5}),
    "wan22": Case("WanPipeline", "wan", lambda: video.wan(**video.second()) | wan_texts(),
    lambda: {"num_frames": 5}),
}  # fmt: skip


@cache
def pipe(key: str) -> Any:
    """One of `PIPES`; tests leave it as it is."""
    return PIPES[key].build()


def hub(cache_dir: Path, name: str, save: Callable[[Path], Any]) -> Path:
    """A model in the layout of the hub's cache: named files in snapshots/ that point to blobs/. The
    snapshot.
    """
    root = cache_dir / ("models--" + name.replace("/", "--"))
    commit = hashlib.sha1(name.encode()).hexdigest()
    snapshot, blobs = root / "snapshots" / commit, root / "blobs"
    save(snapshot)
    blobs.mkdir(exist_ok=True)
    for path in [p for p in snapshot.rglob("*") if p.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.replace(blob)
        path.symlink_to(
            Path(*[".."] * len(path.relative_to(root).parts[:-1])) / "blobs" / blob.name
        )
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return snapshot
