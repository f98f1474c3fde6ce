"""The shipped models made from `emoji`, most by a LoRA: how they load, what they are, and what they
can do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import timonel as tm
from timonel import zoo
from timonel.cli import app
from timonel.errors import ModelError
from timonel.make.recipe import Recipe
from timonel.zoo.lora import merge

HEIRS = [name for name in zoo.MODELS if zoo.card(name).base]
DERIVED = [name for name in HEIRS if (zoo.folder(name) / zoo.LORA).is_file()]


@pytest.fixture(scope="module")
def helms() -> dict[str, tm.Helm]:
    return {name: tm.Helm(name) for name in zoo.MODELS if name in ("emoji", *DERIVED)}


def size(name: str) -> int:
    return sum(path.stat().st_size for path in zoo.folder(name).rglob("*") if path.is_file())


def layers() -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"line": torch.nn.Linear(6, 5), "place": torch.nn.Conv2d(3, 4, 3)})


def factors(rank: int = 2) -> dict[str, torch.Tensor]:
    shapes = {"line": ((rank, 6), (5, rank)), "place": ((rank, 3, 3, 3), (4, rank, 1, 1))}
    pairs = {
        name: dict(zip(("lora_A", "lora_B"), both, strict=True)) for name, both in shapes.items()
    }
    return {
        f"unet.{n}.{kind}.weight": torch.randn(s)
        for n, both in pairs.items()
        for kind, s in both.items()
    }


def test_merged_layer_computes_what_the_two_layers_beside_it_would(tmp_path: Path) -> None:
    network, base, file, given = layers(), layers(), tmp_path / "lora.safetensors", factors()
    save_file(given, file)
    merge(network, file)
    flat, picture = torch.randn(2, 6), torch.randn(2, 3, 8, 8)
    a, b = given["unet.line.lora_A.weight"], given["unet.line.lora_B.weight"]
    torch.testing.assert_close(network["line"](flat), base["line"](flat) + flat @ a.T @ b.T)
    a, b = given["unet.place.lora_A.weight"], given["unet.place.lora_B.weight"]
    beside = torch.nn.functional.conv2d(torch.nn.functional.conv2d(picture, a), b)
    torch.testing.assert_close(network["place"](picture), base["place"](picture) + beside)


def test_lora_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    whole = factors()
    half = {key: value for key, value in whole.items() if key != "unet.line.lora_B.weight"}
    unknown = {key.replace("line", "lime"): value for key, value in whole.items()}
    narrow = {
        key: value[:, :-1] if key == "unet.line.lora_A.weight" else value
        for key, value in whole.items()
    }
    strange = {**half, "unet.line.alpha": torch.ones(1)}
    for number, wrong in enumerate((half, unknown, narrow, strange)):
        file = tmp_path / f"{number}.safetensors"
        save_file({key: value.contiguous() for key, value in wrong.items()}, file)
        with pytest.raises(ModelError, match="LoRA"):
            merge(layers(), file)
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot read the LoRA"):
        merge(layers(), tmp_path / "broken.safetensors")


def test_shipped_models_together_are_small() -> None:
    assert sum(size(name) for name in zoo.MODELS) <= 60e6
    for name in DERIVED:
        assert size(name) <= 4.2e6


@pytest.mark.parametrize("name", HEIRS)
def test_card_inherits_what_the_autoencoder_and_data_decide(name: str) -> None:
    card, base = zoo.card(name), zoo.card("emoji")
    assert (card.name, card.base) == (name, "emoji")
    assert set(base.concepts) <= set(card.concepts)
    assert card.latent_rgb() is not None
    assert (card.resolution, card.styles) == (base.resolution, base.styles)


@pytest.mark.parametrize("name", DERIVED)
def test_derived_weights_are_base_plus_products_in_any_precision(
    name: str, helms: dict[str, tm.Helm]
) -> None:
    given = load_file(zoo.folder(name) / zoo.LORA)
    base, whole = (helms[n].pipe.unet.state_dict() for n in ("emoji", name))
    half = tm.Helm(name, dtype="fp16").pipe.unet.state_dict()
    changed = {key.split(".lora_")[0].removeprefix("unet.") + ".weight" for key in given}
    for key, weight in base.items():
        assert torch.equal(whole[key], weight) == (key not in changed)
        torch.testing.assert_close(half[key].float(), whole[key], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("name", DERIVED)
def test_lora_file_loads_in_plain_diffusers_to_the_same_network(
    name: str, helms: dict[str, tm.Helm]
) -> None:
    pytest.importorskip("peft")
    helm, pipe = helms[name], tm.Helm("emoji").pipe
    pipe.load_lora_weights(zoo.folder(name))
    noise, prompt = torch.randn(1, 4, 16, 16), torch.randn(1, 16, 192)
    added = {
        "text_embeds": torch.randn(1, 192),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
    }
    with torch.no_grad():
        one, two = (
            p.unet(noise, 500, prompt, added_cond_kwargs=added).sample for p in (helm.pipe, pipe)
        )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_missing_base_or_scheduler_is_a_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = DERIVED[0]
    shutil.copytree(zoo.folder(name), tmp_path / name)
    monkeypatch.setattr(zoo, "HERE", tmp_path)
    with pytest.raises(ModelError, match="files of the shipped model 'emoji' are missing"):
        tm.Helm(name)
    (tmp_path / name / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(ModelError, match="scheduler configuration"):
        zoo.process_of(name)
    (tmp_path / name / "card.json").write_text(json.dumps([name]))
    with pytest.raises(ModelError, match="cannot be read"):
        zoo.card(name)


def paint(helm: tm.Helm, prompt: list[str], **given: Any) -> torch.Tensor:
    seeds = list(range(len(prompt)))
    return helm(prompt, seeds=seeds, output_type="pt", **given).images.float()


def test_zero_snr_model_begins_at_pure_noise() -> None:
    last = {name: zoo.process_of(name).at_index(999) for name in ("emoji", "emoji-zsnr")}
    assert float(last["emoji-zsnr"].alpha) == 0
    assert float(last["emoji"].alpha) > 0.05


@pytest.mark.filterwarnings("ignore::timonel.errors.UnknownPrompt")  # emoji itself knows no white
def test_black_is_black_and_white_is_white_for_the_zero_snr_model_alone(
    helms: dict[str, tm.Helm],
) -> None:
    """The shared autoencoder's darkest picture has a brightness of 0.11."""
    prompt = ["black", "black", "white", "white"]
    painted = {n: paint(helms[n], prompt, steps=8, guidance=3.0) for n in ("emoji", "emoji-zsnr")}
    level = {name: pictures.mean(dim=(1, 2, 3)) for name, pictures in painted.items()}
    assert level["emoji-zsnr"][:2].max() < 0.15
    assert level["emoji-zsnr"][2:].min() > 0.95
    assert painted["emoji-zsnr"][:2].max() < 0.7  # nowhere is there a light place
    assert painted["emoji-zsnr"][2:].min() > 0.7  # nowhere a dark one
    assert level["emoji"][:2].min() > 0.4
    assert painted["emoji"][2:].min() < 0.6


def test_zero_snr_model_still_paints_emoji(helms: dict[str, tm.Helm]) -> None:
    apple, tree = paint(helms["emoji-zsnr"], ["red apple", "pine tree"], steps=8, guidance=3.0)
    inside = slice(20, 44)
    assert apple[0, inside, inside].mean() > apple[1, inside, inside].mean() + 0.2  # red
    assert tree[1, inside, inside].mean() > tree[0, inside, inside].mean()  # green
    for picture in (apple, tree):
        assert picture[:, :3, :3].mean() > 0.85  # on white, as the data


def test_four_steps_of_the_distilled_model_beat_the_teachers_two_at_the_same_number_of_calls(
    helms: dict[str, tm.Helm],
) -> None:
    """Both make four network evaluations; the picture to reach is the teacher's own at 20 steps."""
    prompt = ["red apple", "pine tree", "panda", "bell", "snail", "blue heart"]
    end = paint(helms["emoji"], prompt, sampler="dpmpp_2m/trailing", steps=20, guidance=4.0)

    def psnr(name: str, **given: Any) -> float:
        error = (paint(helms[name], prompt, **given) - end).square().mean(dim=(1, 2, 3))
        return float((-10 * error.log10()).mean())

    teacher = psnr("emoji", sampler="dpmpp_2m/trailing", steps=2, guidance=4.0)
    for sampler in ("lcm", "tcd"):
        assert psnr("emoji-lcm", sampler=sampler, steps=4, guidance=1.0) > teacher + 1


@pytest.mark.parametrize("name", HEIRS)
def test_command_line_paints_with_the_models_own_sampler_and_replays_it(
    name: str, tmp_path: Path
) -> None:
    card, runner = zoo.card(name), CliRunner()
    assert (
        runner.invoke(
            app, ["generate", "red apple", "--model", name, "--out", str(tmp_path)]
        ).exit_code
        == 0
    )
    recipe, solver = (
        Recipe.read(tmp_path / "red-apple-0.png"),
        tm.Sampler(card.default_sampler).name,
    )
    assert (recipe.model, recipe.sampler, recipe.steps) == (name, solver, card.default_steps)
    assert recipe.guidance is not None
    assert recipe.guidance.scale == card.default_guidance
    again, _ = recipe.make()
    with Image.open(tmp_path / "red-apple-0.png") as picture:
        assert picture.tobytes() == again.tobytes()
