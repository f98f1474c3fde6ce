"""The recipes run as they stand: every name they load lies in a hub cache, as a small model of the
same class.

The blocks are fenced `py`; those fenced `python` in the documents need no weights and are run by
`test_docs`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from support import saved
from support.places import DOCS

FENCE = re.compile(r"```py\n(.*?)```", re.S)
#: what the blocks name, the small model that stands there, and how it is saved
HUB = {
    "stabilityai/stable-video-diffusion-img2vid-xt": ("svd", torch.float16, "fp16"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", torch.float16, "fp16"),
    "stabilityai/stable-diffusion-xl-refiner-1.0": ("refiner", torch.float16, "fp16"),
    "stabilityai/stable-diffusion-3.5-large": ("sd3", torch.bfloat16, None),
    "black-forest-labs/FLUX.1-dev": ("flux-dev", torch.bfloat16, None),
    "black-forest-labs/FLUX.1-schnell": ("flux-schnell", torch.bfloat16, None),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", torch.float32, None),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ("wan22", torch.float32, None),
}
#: sizes, and the device with the precision it is good at: the only changes
CHANGES = {
    "height=576, width=1024": "height=32, width=32",
    "(1024, 576)": "(32, 32)",
    "height=1024, width=1024": "height=16, width=16",
    "height=480, width=832": "height=16, width=16",
    "num_frames=81": "num_frames=5",
    'dtype="fp16"': 'dtype="fp32"',
    '"dtype": "fp16"': '"dtype": "fp32"',
    'dtype="bf16"': 'dtype="fp32"',
    '"default": "bf16"': '"default": "fp32"',
    'device="cuda"': 'device="cpu"',
    '"device": "cuda"': '"device": "cpu"',
    "enable_model_cpu_offload()": 'enable_model_cpu_offload(device="cpu")',
}
#: what each block leaves behind
MADE = [
    {"clip.mp4", "how-it-came-to-be.gif"}, {"clip.mp4"},
    {"lighthouse.png", "lighthouse-10.png", "steps"},
    {"refined.png", "winter.png"}, {"boat.png"}, {"apple.png", "apple-10.png"}, {"apple-4.png"},
    {"cat.mp4"},
    {"cat.mp4"},
]  # fmt: skip


def blocks(page: str) -> list[str]:
    return FENCE.findall((DOCS / page).read_text("utf-8"))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hub's cache, where models are put when a block names them."""
    return tmp_path_factory.mktemp("hub")


def fill(cache: Path, code: str) -> None:
    for name in HUB:
        if f'"{name}"' in code and not (cache / ("models--" + name.replace("/", "--"))).exists():
            key, dtype, variant = HUB[name]
            pipe = saved.PIPES[key].build().to(dtype)
            saved.hub(cache, name, lambda folder: pipe.save_pretrained(folder, variant=variant))  # noqa: B023


@pytest.mark.parametrize(("number", "made"), list(enumerate(MADE)))
def test_a_recipe_runs_as_it_stands(
    number: int, made: set[str], hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    Image.new("RGB", (40, 30), "teal").save("picture.png")
    code = blocks("recipes.md")[number]
    fill(hub, code)
    for old, new in CHANGES.items():
        code = code.replace(old, new)
    space: dict[str, Any] = {}
    exec(compile(code, f"recipes.md, block {number}", "exec"), space)
    assert {path.name for path in Path().iterdir()} == made | {"picture.png"}
    for path in (path for path in Path().glob("*.png") if path.name in made):
        with Image.open(path) as picture:
            assert picture.size == (16, 16)
            assert len(picture.getcolors(256)) > 1


def test_every_block_and_every_change_is_tested() -> None:
    code = blocks("recipes.md")
    assert len(code) == len(MADE)
    for text in (*CHANGES, *(f'"{name}"' for name in HUB)):
        assert any(text in block for block in code), text


def test_both_languages_have_the_same_programs() -> None:
    """Up to prompts and comments."""

    def shape(code: str) -> str:
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                node.value = "…"
        return ast.dump(tree)

    one, two = blocks("recipes.md"), blocks("recipes.es.md")
    assert [shape(code) for code in one] == [shape(code) for code in two]
