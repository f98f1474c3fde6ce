"""The shipped flow model: what it shares with `emoji`, how it loads, and that it paints what it is
asked.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import timonel as tm
from timonel import zoo
from timonel.errors import ModelError

NAME = "emoji-flow"
LIMIT = 12e6  # bytes


@pytest.fixture(scope="module")
def helm() -> tm.Helm:
    return tm.Helm(NAME)


def paint(helm: tm.Helm, prompt: str, **given: Any) -> torch.Tensor:
    more = {"steps": 8, "seeds": [1], "guidance": 3.0, "max_sequence_length": 0, **given}
    return helm(prompt, output_type="pt", **more).images[0].float()


def test_the_model_is_small_and_holds_nothing_that_its_base_holds(helm: tm.Helm) -> None:
    root = zoo.folder(NAME)
    assert type(helm.pipe) is StableDiffusion3Pipeline
    assert (root / "transformer").is_dir()
    assert not any((root / name).exists() for name in zoo.card(NAME).components)
    files = [p for p in root.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    assert sum(p.stat().st_size for p in files) <= LIMIT


def test_shared_parts_are_the_bases_and_one_object_each(helm: tm.Helm) -> None:
    base, pipe = tm.Helm("emoji").pipe, helm.pipe
    assert pipe.text_encoder is pipe.text_encoder_2
    assert pipe.tokenizer is pipe.tokenizer_2
    assert (pipe.text_encoder_3, pipe.tokenizer_3) == (None, None)
    for own, theirs in ((pipe.vae, base.vae), (pipe.text_encoder, base.text_encoder_2)):
        kept = theirs.state_dict()
        assert own.state_dict().keys() == kept.keys()
        assert all(torch.equal(value, kept[key]) for key, value in own.state_dict().items())
    assert pipe.vae.config.scaling_factor == base.vae.config.scaling_factor
    assert pipe.vae.config.shift_factor == 0  # so that latents mean the same to both pipelines


def test_shared_parts_are_read_in_the_precision_asked_for(helm: tm.Helm) -> None:
    pipe = tm.Helm(
        NAME, dtype={"vae": torch.float32, "text_encoder": "bf16", "default": "fp16"}
    ).pipe
    found = {
        name: part.dtype
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    half = torch.float16
    assert found == {
        "vae": torch.float32, "text_encoder": torch.bfloat16, "text_encoder_2": half,
        "transformer": half,
    }  # fmt: skip
    whole = helm.pipe.text_encoder.state_dict()
    for key, value in pipe.text_encoder_2.state_dict().items():
        torch.testing.assert_close(value.float(), whole[key], rtol=1e-3, atol=1e-6)


def test_its_process_is_the_straight_path_from_noise() -> None:
    first = zoo.process_of(NAME).at_index(999)
    assert (float(first.alpha), float(first.sigma)) == (0, 1)


@pytest.mark.parametrize("zeros", [0, 256])
def test_prompt_decides_the_picture_with_any_number_of_zero_tokens(
    helm: tm.Helm, zeros: int
) -> None:
    """256 zero tokens in place of T5's are the pipeline's default, none is faster."""
    apple, tree = (
        paint(helm, prompt, max_sequence_length=zeros) for prompt in ("red apple", "pine tree")
    )
    inside = slice(20, 44)
    assert apple[0, inside, inside].mean() > apple[1, inside, inside].mean() + 0.2  # red
    assert tree[1, inside, inside].mean() > tree[0, inside, inside].mean()  # green
    for picture in (apple, tree):
        assert picture[:, :3, :3].mean() > 0.85  # on white, as the data


def test_seed_decides_the_variant(helm: tm.Helm) -> None:
    one = paint(helm, "red apple")
    assert torch.equal(one, paint(helm, "red apple"))
    assert not torch.equal(one, paint(helm, "red apple", seeds=[2]))


def test_missing_or_unknown_shared_parts_are_a_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (NAME, "emoji"):
        shutil.copytree(zoo.folder(name), tmp_path / name)
    monkeypatch.setattr(zoo, "HERE", tmp_path)
    path = tmp_path / NAME / "card.json"
    card = json.loads(path.read_text("utf-8"))
    card["components"]["vae"]["part"] = "vea"
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match="vea"):
        tm.Helm(NAME)
    card["components"]["vae"] = {"parts": "vae"}
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"card .* cannot be read"):
        tm.Helm(NAME)
    shutil.rmtree(tmp_path / "emoji")
    with pytest.raises(ModelError, match="missing"):
        tm.Helm(NAME)
