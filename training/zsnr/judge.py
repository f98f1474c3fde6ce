"""Pictures of captions under timonel, and how many of them the judge names right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import timonel as tm
from training.emoji.classifier import accuracy
from training.emoji.common import to_float, to_uint8

CAPTIONS = Path(__file__).parents[1] / "emoji/captions100.txt"


def paint(helm: tm.Helm, prompts: list[str], seed: int, steps: int, **given: Any) -> Tensor:
    """uint8 pictures (N, 64, 64, 3); prompt i of a seed starts from its own noise."""
    made = []
    for first in range(0, len(prompts), 25):
        part = prompts[first : first + 25]
        seeds = [1000 * seed + first + i for i in range(len(part))]
        made.append(helm(part, seeds=seeds, steps=steps, output_type="pt", **given).images)
    return to_uint8(torch.cat(made).float() * 2 - 1)


def top1(judge: Any, pictures: Tensor, captions: list[str], names: list[str]) -> float:
    """The judge's accuracy on pictures of captions."""
    return accuracy(
        judge, to_float(pictures), torch.tensor([names.index(text) for text in captions])
    )[0]
