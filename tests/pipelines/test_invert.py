"""Laws of inversion over pipelines: the same call makes the same latents again, and says how far it
is off; what cannot be inverted is refused before the network is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import timonel as tm
from support.pipes import load
from timonel.errors import ArgumentError, TimonelError
from timonel.make.inversion import Inversion, latents_of
from timonel.pipelines.capture import NotCaptured

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
CASES = load()
OURS = ("guidance_scale", "true_cfg_scale", "num_inference_steps", "generator", "output_type")


@pytest.fixture(scope="module")
def emoji() -> tm.Helm:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    return helm


@pytest.fixture(scope="module")
def apple(emoji: tm.Helm) -> Image.Image:
    image: Image.Image = emoji("red apple", steps=8, seeds=[3]).images[0]
    return image


@pytest.fixture(scope="module")
def inversion(emoji: tm.Helm, apple: Image.Image) -> Inversion:
    return tm.invert(emoji, apple, "red apple", sampler="ddim", steps=6)


def test_the_same_call_makes_the_picture_again(
    emoji: tm.Helm, apple: Image.Image, inversion: Inversion
) -> None:
    assert inversion.converged
    assert inversion.residual is not None
    assert inversion.residual <= 1e-5
    assert inversion.latents_error < 1e-3
    assert inversion.picture_error < 0.03  # of the autoencoder
    assert "solved in" in str(inversion)
    again = emoji(
        "red apple", latents=inversion.latents, sampler="ddim", steps=6, guidance=1.0
    ).images[0]
    assert again.tobytes() == inversion.picture.tobytes()


def test_reverse_euler_is_further_off(
    emoji: tm.Helm, apple: Image.Image, inversion: Inversion
) -> None:
    rough = tm.invert(emoji, apple, "red apple", sampler="ddim", steps=6, method="ddim")
    assert rough.calls == 6
    assert not rough.converged
    assert "reversed, not solved" in str(rough)
    assert rough.latents_error > 100 * inversion.latents_error


def test_another_prompt_edits_the_picture(emoji: tm.Helm, inversion: Inversion) -> None:
    edited = emoji(
        "green apple", latents=inversion.latents, sampler="ddim", steps=6, guidance=4.0
    ).images[0]
    green = [
        float((pixels[..., 1] - pixels[..., 0]).mean())
        for pixels in (np.asarray(one, dtype=float) for one in (inversion.picture, edited))
    ]
    assert green[1] > green[0] + 10


def test_guidance_that_does_not_contract_says_how_far_it_is_off() -> None:
    """The last of few steps of a guided flow takes many samples to one picture."""
    helm = tm.Helm("emoji-flow")
    helm.pipe.set_progress_bar_config(disable=True)
    picture = helm("red apple", steps=6, seeds=[3]).images[0]
    back = tm.invert(
        helm, picture, "red apple", sampler="ddim", steps=6, guidance=2.0, iterations=20
    )
    assert not back.converged
    assert "not solved" in str(back)
    assert 1e-3 < back.latents_error < 0.1


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "ChromaPipeline"])
def test_other_layouts_are_inverted(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    helm = tm.Helm(case.build())
    helm.pipe.set_progress_bar_config(disable=True)
    given = {key: value for key, value in case.inputs().items() if key not in OURS}
    picture = helm(steps=2, seeds=[1], sampler="euler", output_type="pil", **given).images[0]
    back = tm.invert(helm, picture, given.pop("prompt"), steps=4, **given)
    assert back.converged
    assert back.latents_error < 1e-3


def test_latents_are_kept_in_a_file(inversion: Inversion, tmp_path: Path) -> None:
    path = inversion.save(tmp_path / "noise.safetensors")
    assert torch.equal(latents_of(path), inversion.latents)
    (tmp_path / "no.safetensors").write_text("no")
    for wrong in ("no.safetensors", "absent.safetensors"):
        with pytest.raises(ArgumentError, match="no file of latents"):
            latents_of(tmp_path / wrong)


@pytest.mark.parametrize(("changes", "said"), [
    ({"sampler": "euler_ancestral"}, "draws noise.*'ddim'"),
    ({"image": Image.new("RGB", (40, 64))}, "40x64 and the call makes 64x64 pixels"),
    ({"image": "absent.png"}, "absent.png"),
    ({"image": 3}, "a picture of PIL"),
    ({"method": "newton"}, "fixed_point"),
    ({"latents": torch.zeros(1)}, "is not of an inversion"),
    ({"tolerance": -1}, "tolerance"),
    ({"prompts": "red apple"}, "prompt"),
])  # fmt: skip
def test_what_cannot_be_inverted_is_refused_before_compute(
    emoji: tm.Helm, apple: Image.Image, changes: dict[str, Any], said: str
) -> None:
    calls = []
    hook = emoji.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    given: dict[str, Any] = {"image": apple, "prompt": "red apple", "steps": 4, **changes}
    try:
        with pytest.raises(TimonelError, match=said):
            tm.invert(emoji, **given)
    finally:
        hook.remove()
    assert not calls


def test_what_is_not_captured_says_why() -> None:
    torch.manual_seed(0)
    case = CASES["ZImagePipeline"]
    helm = tm.Helm(case.build())
    helm.pipe.set_progress_bar_config(disable=True)
    given = {key: value for key, value in case.inputs().items() if key not in OURS}
    picture = helm(steps=2, seeds=[1], sampler="euler", output_type="pil", **given).images[0]
    with pytest.raises(NotCaptured, match="no batch"):
        tm.invert(helm, picture, given.pop("prompt"), steps=3, **given)
