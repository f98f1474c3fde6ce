"""A hub cache with stand-ins for what diffusers' pipeline tests fetch: byte-level tokenizers, a
small T5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

START, END = "<|startoftext|>", "<|endoftext|>"
T5 = {"vocab_size": 1103, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 5, "num_heads": 4}
BYTES = {"tokenizer_class": "ByT5Tokenizer"}


def _write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def clip(folder: Path) -> None:
    """CLIP's tokenizer without a merge: every byte is a token."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    _write(folder, "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    _write(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special},
    )
    _write(folder, "special_tokens_map.json", special)


def t5(folder: Path) -> None:
    T5EncoderModel(T5Config(**T5)).eval().save_pretrained(folder)
    _write(folder, "tokenizer_config.json", BYTES)


def umt5(folder: Path) -> None:
    UMT5EncoderModel(UMT5Config(**T5)).eval().save_pretrained(folder)
    _write(folder, "tokenizer_config.json", BYTES)


def depth(folder: Path) -> None:
    size = {"height": 32, "width": 32}
    _write(
        folder,
        "preprocessor_config.json",
        {"image_processor_type": "DPTImageProcessor", "size": size},
    )


REPOSITORIES = {
    "tiny-random-clip": clip, "tiny-random-t5": t5, "tiny-random-umt5": umt5,
    "tiny-random-DPTForDepthEstimation": depth,
}  # fmt: skip


def build(cache: Path) -> Path:
    """The cache as `HF_HUB_CACHE` wants it; made once."""
    for name, make in REPOSITORIES.items():
        repository = cache / f"models--hf-internal-testing--{name}"
        folder, revision = repository / "snapshots" / ("0" * 40), repository / "refs" / "main"
        if revision.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        make(folder)
        revision.parent.mkdir(exist_ok=True)
        revision.write_text("0" * 40, encoding="utf-8")
    return cache
