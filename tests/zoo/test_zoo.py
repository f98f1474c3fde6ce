"""The shipped model: its size, its class, its files, and that it paints what it is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

import timonel as tm
from timonel import zoo
from timonel.errors import ModelError, UnknownName


@pytest.fixture(scope="module")
def helm() -> tm.Helm:
    return tm.Helm("emoji")


def test_emoji_is_small_safe_and_of_the_real_class(helm: tm.Helm) -> None:
    files = [p for p in zoo.folder("emoji").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 25 * 2**20
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt"}
    assert type(helm.pipe) is StableDiffusionXLPipeline
    assert helm.pipe.vae.config.latent_channels == 4


def test_card_tells_what_the_model_knows(helm: tm.Helm) -> None:
    card = helm.card
    assert card is not None
    assert len(card.concepts) >= 300
    assert len(card.styles) == 3
    assert "red apple" in card.concepts
    with pytest.raises(UnknownName, match="emoji"):
        zoo.card("emojo")


def test_unreadable_card_is_a_model_error(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emoji").mkdir()
    monkeypatch.setattr(zoo, "HERE", tmp_path)
    with pytest.raises(ModelError, match="files of the shipped model 'emoji' are missing"):
        zoo.card("emoji")
    (tmp_path / "emoji/model_index.json").write_text("{}")
    (tmp_path / "emoji/card.json").write_text(json.dumps({"name": "emoji"}))
    with pytest.raises(ModelError, match="cannot be read"):
        zoo.card("emoji")


def test_prompt_decides_the_picture_and_seed_the_variant(helm: tm.Helm) -> None:
    def paint(prompt: str, seed: int) -> torch.Tensor:
        made = helm(prompt, steps=8, seeds=[seed], guidance=4.0, output_type="pt").images[0]
        return made.float()

    apple, tree = paint("red apple", 1), paint("pine tree", 1)
    inside = slice(20, 44)
    assert apple[0, inside, inside].mean() > apple[1, inside, inside].mean() + 0.2  # red
    assert tree[1, inside, inside].mean() > tree[0, inside, inside].mean()  # green
    assert torch.equal(apple, paint("red apple", 1))
    assert not torch.equal(apple, paint("red apple", 2))


def test_shipped_preview_map_is_close_to_the_decoder(helm: tm.Helm) -> None:
    latents = helm("pizza", steps=8, seeds=[0], output_type="latent").images
    decoded = helm.context.decode(latents)
    linear = helm.context.latent_rgb(latents).clamp(0, 1)  # type: ignore[misc]
    coarse = torch.nn.functional.adaptive_avg_pool2d(decoded, linear.shape[-1])
    error = torch.nn.functional.mse_loss(linear, coarse)
    assert -10 * torch.log10(error) > 15


def test_fitted_preview_map_is_as_good_as_needed() -> None:
    pipe = tm.Helm("emoji").pipe
    fitted = tm.Helm(pipe).context.latent_rgb  # a pipeline object has no card, so the map is fitted
    assert fitted is not None
    assert fitted.psnr is not None
    assert fitted.psnr > 15
