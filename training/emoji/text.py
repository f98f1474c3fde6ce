"""The tokenizer and the text encoder: real CLIP classes, small, with an own vocabulary.

As in SDXL's refiner only the second pair exists (``tokenizer_2``, ``text_encoder_2``). Prompt
embeddings are the hidden states before the last layer; the pooled embedding is the projection of
the last hidden state at the end-of-text token.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from training.emoji.data import STYLES, EmojiData

LENGTH = 16
WIDTH = 192
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The 256 printable characters by which byte-level BPE writes the bytes 0..255."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in kept}
    for i, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + i)
    return [table[b] for b in range(256)]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until each word is one token."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for w in split for pair in itertools.pairwise(w))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for w in split:
            i = 0
            while i < len(w) - 1:
                if (w[i], w[i + 1]) == best:
                    w[i : i + 2] = [w[i] + w[i + 1]]
                i += 1


def write_tokenizer(data: EmojiData, folder: Path) -> CLIPTokenizer:
    """Learn the vocabulary of the captions, write ``vocab.json`` and ``merges.txt``, load it."""
    text = " ".join([*data.names, *(t for tags in data.tags for t in tags), *STYLES, "style"])
    merges = learn_merges(sorted(set(re.findall(r"[a-z]+", text.lower()))))
    letters = byte_letters()
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    tokens = list(dict.fromkeys(tokens))
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=END, model_max_length=LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """The untrained text encoder: two layers of width 192."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    embeddings = encoder.text_model.embeddings
    torch.nn.init.normal_(embeddings.token_embedding.weight, std=0.7)
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.2)
    return encoder


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """(N, 16) token numbers, padded as the pipeline pads them."""
    return tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def encode(encoder: CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt embeddings (N, 16, 192) and pooled embeddings (N, 192), as SDXL takes them."""
    output = encoder(ids, output_hidden_states=True)
    return output.hidden_states[-2], output.text_embeds
