"""Stand-ins for what turns words and pictures into embeddings; no pipeline's loop looks inside
them.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature

VOCABULARY = 97


class Words:
    """A tokenizer: one token per word, numbered by its letters."""

    model_max_length = 8
    pad_token_id, bos_token_id, eos_token_id, unk_token_id, mask_token_id = 0, 1, 2, 3, 4
    pad_token, bos_token, eos_token, mask_token = "<pad>", "<s>", "</s>", "<mask>"
    padding_side = "right"

    def __init__(self, **changes: Any) -> None:
        self.added_tokens_decoder: dict[int, Any] = {}
        self.added_tokens_encoder: dict[str, int] = {}
        self.__dict__.update(changes)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [
            5 + sum(map(ord, word)) % (VOCABULARY - 5) for word in re.findall(r"\w+|[^\w\s]", text)
        ] or [1]

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def __call__(
        self, text: Any = None, padding: Any = True, max_length: int | None = None,
        truncation: Any = None,
        images: Any = None, return_length: bool = False, **_: Any,
    ) -> BatchEncoding:  # fmt: skip
        texts = (
            [text]
            if isinstance(text, str)
            else [" ".join(t) if isinstance(t, list) else t for t in text]
        )
        rows = [self.encode(t) for t in texts]
        limit = max_length or self.model_max_length
        if truncation or padding == "max_length":
            rows = [row[:limit] for row in rows]
        width = limit if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        made = {"input_ids": ids, "attention_mask": mask}
        if return_length:
            made["length"] = mask.sum(1)
        if images is not None:
            made["pixel_values"] = torch.zeros(len(rows), 3, 8, 8)
            made["image_grid_thw"] = torch.ones(len(rows), 3, dtype=torch.long)
        return BatchEncoding(made)

    def apply_chat_template(
        self, messages: Any, tokenize: bool = True, return_dict: bool = True, **options: Any
    ) -> Any:
        chats = messages if isinstance(messages[0], list) else [messages]
        said = [" ".join(_said(part["content"]) for part in chat) for chat in chats]
        if not tokenize:
            return said if isinstance(messages[0], list) else said[0]
        made = self(said, **options)
        return made if return_dict else made["input_ids"]

    def decode(self, ids: Any, **_: Any) -> str:
        return "a red apple"

    def batch_decode(self, ids: Any, **_: Any) -> list[str]:
        return ["a red apple"] * len(ids)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return 5 if isinstance(tokens, str) else [5] * len(tokens)

    def add_special_tokens(self, *_: Any, **__: Any) -> int:
        return 0


def _said(content: Any) -> str:
    return (
        content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
    )


class Processor(Words):
    """What some pipelines use instead of a tokenizer: words and pictures at once."""

    image_token, image_token_id, video_token_id = "<image>", 4, 4

    @property
    def tokenizer(self) -> Words:
        return Words()

    @property
    def image_processor(self) -> Lens:
        return Lens()


class Output(tuple[Any, ...]):
    """A model's output: fields by name and by position."""

    def __new__(cls, positions: tuple[Any, ...], **fields: Any) -> Output:
        made = super().__new__(cls, positions)
        made.__dict__.update(fields)
        return made

    def __getitem__(self, key: Any) -> Any:
        return self.__dict__[key] if isinstance(key, str) else super().__getitem__(key)


class Text(nn.Module):
    """A text encoder: an embedding. `pooled`: its first output is one vector per prompt, as CLIP's
    projection.
    """

    def __init__(
        self, width: int = 32, pooled: int | None = None, layers: int = 4, **config: Any
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.head = nn.Linear(width, pooled or width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([nn.Identity()])  # some pipelines listen to the last one
        self.depth, self.pooled = layers, pooled
        common: dict[str, Any] = {
            "hidden_size": width, "d_model": width, "projection_dim": pooled or width,
            "eos_token_id": 2,
            "num_hidden_layers": layers, "max_position_embeddings": 64, "vocab_size": VOCABULARY,
            "pad_token_id": 0,
        }  # fmt: skip
        self.config = SimpleNamespace(
            **(common | {"text_config": SimpleNamespace(**common)} | config)
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.table.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.table.weight.device

    @property
    def model(self) -> Text:
        return self

    language_model = encoder = text_model = model

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor | None = None, *_: Any, **named: Any) -> Output:
        ids = named["inputs_embeds"] if input_ids is None else input_ids
        last = self.table(ids.remainder(VOCABULARY)) if not ids.is_floating_point() else ids
        last = self.layers[0](last)
        one = self.head(last.mean(1))
        hidden = (*(last * (i + 1) / (self.depth + 1) for i in range(self.depth)), last)
        positions = (last, one, hidden) if self.pooled is None else (one, last, hidden)
        return Output(
            positions,
            last_hidden_state=last,
            hidden_states=hidden,
            pooler_output=one,
            text_embeds=one,
        )


class Eyes(nn.Module):
    """An image encoder: the mean colour, projected."""

    def __init__(
        self, width: int = 32, patches: int = 4, projected: int | None = None, **config: Any
    ) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(3, width), nn.Linear(width, projected or width)
        self.patches = patches
        given = {
            "hidden_size": width,
            "image_size": 8,
            "patch_size": 4,
            "projection_dim": projected or width,
        }
        self.config = SimpleNamespace(**(given | config))

    @property
    def dtype(self) -> torch.dtype:
        return self.inside.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.inside.weight.device

    def forward(self, pixel_values: Tensor, *_: Any, **__: Any) -> Output:
        last = self.inside(pixel_values.mean((-1, -2)))[:, None].repeat(1, self.patches, 1)
        one = self.outside(last[:, 0])
        hidden = (last * 0.5, last * 0.7, last)
        return Output(
            (one, last),
            image_embeds=one,
            last_hidden_state=last,
            hidden_states=hidden,
            pooler_output=one,
        )


class Lens:
    """A feature extractor: pictures to (B, 3, 8, 8)."""

    image_mean = image_std = (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        self.size = {"height": 8, "width": 8, "shortest_edge": 8}
        self.crop_size = {"height": 8, "width": 8}

    def __call__(self, images: Any = None, *_: Any, **__: Any) -> BatchFeature:
        count = len(images) if isinstance(images, (list, tuple, Tensor)) else 1
        return BatchFeature({"pixel_values": torch.full((count, 3, 8, 8), 0.5)})

    preprocess = __call__
