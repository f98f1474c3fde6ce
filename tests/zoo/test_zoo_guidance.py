"""A shipped model is guided as its card says, unless a call says otherwise."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import timonel as tm
from timonel import zoo


@pytest.mark.parametrize("name", ["emoji", "emoji-lcm"])
def test_a_shipped_model_that_is_told_no_guidance_is_guided_as_its_card_says(name):
    helm = tm.Helm(name)

    def paint(**told: float) -> torch.Tensor:
        return helm("red apple", steps=3, seeds=[1], output_type="pt", **told).images

    assert torch.equal(paint(), paint(guidance=zoo.card(name).default_guidance))
    assert torch.equal(paint(guidance_scale=2.0), paint(guidance=2.0))
    assert not torch.equal(paint(), paint(guidance_scale=2.0))


def test_a_shipped_video_model_is_guided_as_its_card_says():
    helm, picture = tm.Helm("emoji-video"), Image.new("RGB", (64, 64), "red")

    def film(**told: float) -> torch.Tensor:
        size = {"height": 64, "width": 64, "num_frames": 8}
        return helm(image=picture, steps=2, seeds=[1], output_type="pt", **size, **told).frames

    assert torch.equal(film(), film(guidance=zoo.card("emoji-video").default_guidance))
    assert not torch.equal(film(), film(max_guidance_scale=3.0))
