"""Laws of variations: on the great circle of two seeds' noise, whose ends are their pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from support.pipes import load
from timonel.errors import TimonelError
from timonel.pipelines.capture import capture
from timonel.pipelines.variation import mixed

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")
CASES = load()
OURS = ("guidance_scale", "true_cfg_scale", "num_inference_steps", "generator", "output_type")


@pytest.fixture(scope="module")
def emoji() -> tm.Helm:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    return helm


def made(helm: tm.Helm, seed: int, **more: Any) -> Any:
    return helm("red apple", sampler="ddim", steps=3, seeds=[seed], guidance=1.0, **more).images[0]


def test_the_ends_are_the_pictures_of_both_seeds(emoji: tm.Helm) -> None:
    first, second = made(emoji, 7), made(emoji, 8)
    assert made(emoji, 7, variation=(8, 0)).tobytes() == first.tobytes()
    assert made(emoji, 7, variation=(8, 1.0)).tobytes() == second.tobytes()
    between = made(emoji, 7, variation=(8, 0.2)).tobytes()
    assert between not in (first.tobytes(), second.tobytes())
    assert made(emoji, 7, variation=(8, 0.2)).tobytes() == between
    assert made(emoji, 7).tobytes() == first.tobytes()  # nothing is left of it


def start(helm: tm.Helm, **more: Any) -> Tensor:
    return capture(helm, ["red apple", "pizza"], guidance=1.0, **more).start


def test_each_sample_is_a_mix_of_its_own_pair(emoji: tm.Helm) -> None:
    a, b = start(emoji, seeds=[1, 2]), start(emoji, seeds=[8, 9])
    angle = 0.3 * math.pi / 2
    expected = math.cos(angle) * a + math.sin(angle) * b
    for others in (8, [8, 9]):
        got = start(emoji, seeds=[1, 2], variation=(others, 0.3))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_unit_noise_stays_unit_noise(amount: float) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200_000, generator=g) for _ in range(2))
    both = mixed(a, b, amount)
    assert abs(float(both.mean())) < 0.01
    assert abs(float(both.std()) - 1) < 0.01
    assert abs(float((both**4).mean()) - 3) < 0.1


def test_a_stochastic_sampler_keeps_the_noise_of_the_seed(emoji: tm.Helm) -> None:
    """As in A1111: what is mixed is where the run begins."""
    given: dict[str, Any] = {"sampler": "euler_ancestral", "steps": 3, "guidance": 1.0}
    one = emoji("red apple", seeds=[7], variation=(8, 1.0), **given).images[0]
    other = emoji("red apple", seeds=[8], **given).images[0]
    assert one.tobytes() != other.tobytes()


def test_replay_makes_the_same_bits(emoji: tm.Helm, tmp_path: Path) -> None:
    picture = made(emoji, 7, variation=(8, 0.2))
    picture.save(tmp_path / "one.png")
    recipe = tm.Recipe.read(tmp_path / "one.png")
    assert recipe.variation == (8, 0.2)
    assert recipe.make(emoji)[0].tobytes() == picture.tobytes()
    assert "Variation seed: 8, Variation seed strength: 0.2" in picture.info["parameters"]
    assert tm.Recipe.of(made(emoji, 7)).variation is None


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "StableDiffusionImg2ImgPipeline"])
def test_other_pipelines_too(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    helm = tm.Helm(case.build())
    helm.pipe.set_progress_bar_config(disable=True)
    given = {key: value for key, value in case.inputs().items() if key not in OURS}
    given |= {"steps": 3, "sampler": "euler", "output_type": "pil"}
    at = [helm(seeds=[7], variation=(8, amount), **given).images[0] for amount in (0, 0.5, 1)]
    pairs = [helm(seeds=[seed], **given).images[0] for seed in (7, 8)]
    assert at[0].tobytes() == pairs[0].tobytes()
    assert at[2].tobytes() == pairs[1].tobytes()
    assert at[1].tobytes() not in (at[0].tobytes(), at[2].tobytes())


@pytest.mark.parametrize(("given", "said"), [
    ({"variation": (8, 1.5)}, "amount"),
    ({"variation": (8, -0.1)}, "amount"),
    ({"variation": (8, math.nan)}, "amount"),
    ({"variation": 8}, r"variation must be \(seed, amount\)"),
    ({"variation": (-1, 0.2)}, "seed of a variation"),
    ({"variation": ([8, 9], 0.2)}, "2 seeds for 1 sample"),
    ({"variation": (7, 0.2)}, "mixes seed 7 with itself"),
    ({"variation": (8, 0.2), "latents": torch.zeros(1, 4, 8, 8)}, "are the noise already"),
    ({"variation": (8, 0.2), "seeds": None, "generator": torch.Generator()}, "and no generator="),
])  # fmt: skip
def test_what_cannot_be_mixed_is_refused_before_compute(
    emoji: tm.Helm, given: dict[str, Any], said: str
) -> None:
    calls = []
    hook = emoji.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    try:
        with pytest.raises(TimonelError, match=said):
            emoji("red apple", steps=3, **{"seeds": [7], **given})
    finally:
        hook.remove()
    assert not calls
