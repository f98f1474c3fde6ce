"""Pictures that are made in Python carry their recipe, and A1111's text beside it."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

import timonel as tm
from timonel.errors import ArgumentError
from timonel.pipelines.recipe.images import Picture

PARAMETER = re.compile(
    r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'
)  # A1111, modules/infotext_utils.py


@pytest.fixture(scope="module")
def emoji() -> tm.Helm:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    return helm


def infotext(path: Path) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and parameters as A1111 reads them."""
    with Image.open(path) as picture:
        *lines, last = picture.info["parameters"].split("\n")
    cut = next(
        (i for i, line in enumerate(lines) if line.startswith("Negative prompt: ")), len(lines)
    )
    negative = "\n".join(lines[cut:]).removeprefix("Negative prompt: ")
    return "\n".join(lines[:cut]), negative, {k: v.strip('"') for k, v in PARAMETER.findall(last)}


def test_a_picture_saved_from_python_is_replayed_bit_for_bit(
    emoji: tm.Helm, tmp_path: Path
) -> None:
    made = emoji(
        "red apple", sampler="dpmpp_2m_sde/karras", steps=4, seeds=[7],
        guidance=tm.cfg(4.0, until=0.5),
        hooks=[tm.guard(), tm.preview(tmp_path / "steps")],
    ).images[0]  # fmt: skip
    made.save(tmp_path / "apple.png")
    recipe = tm.Recipe.read(tmp_path / "apple.png")
    assert (recipe.model, recipe.prompt, recipe.seed, recipe.steps) == ("emoji", "red apple", 7, 4)
    assert (recipe.sampler, recipe.grid, recipe.besides, recipe.missing) == (
        "dpmpp_2m_sde",
        "karras",
        None,
        None,
    )
    again = tm.replay(tmp_path / "apple.png")
    assert ImageChops.difference(again, made).getbbox() is None
    with Image.open(tmp_path / "apple.png") as kept:
        assert made == kept


def test_every_picture_of_a_batch_has_its_own_seed_and_prompts(
    emoji: tm.Helm, tmp_path: Path
) -> None:
    made = emoji(
        ["red apple", "pizza"], negative_prompt=["dog face", "red car"], num_images_per_prompt=2,
        sampler="euler",
        steps=3, seeds=5, guidance=3.0, crops_coords_top_left=(0, 0),
    ).images  # fmt: skip
    recipes = [tm.Recipe.of(picture) for picture in made]
    assert [r.seed for r in recipes] == [5, 6, 7, 8]
    assert [(r.prompt, r.negative_prompt) for r in recipes] == [("red apple", "dog face")] * 2 + [
        ("pizza", "red car")
    ] * 2
    assert {r.batch for r in recipes} == {4}
    again, alone = recipes[3].make(emoji)
    assert (
        max(high for _, high in ImageChops.difference(again, made[3]).getextrema()) <= 2
    )  # alone, not in a batch
    assert alone.batch is None


def test_a_stopped_picture_is_replayed_to_where_it_was(emoji: tm.Helm) -> None:
    stop = tm.stop_when(lambda run: run.step == 2)
    made = emoji("pizza", sampler="euler", steps=5, seeds=1, hooks=[stop]).images[0]
    assert tm.Recipe.of(made).stopped_after == 2
    assert tm.Recipe.of(made).make(emoji)[0] == made


def test_what_a_file_cannot_hold_is_said(emoji: tm.Helm, tmp_path: Path) -> None:
    def brighten(run: tm.Run) -> None:
        run.latents[:, 0] += 0.1

    hooked = emoji("pizza", sampler="euler", steps=2, seeds=1, hooks=[brighten]).images[0]
    assert tm.Recipe.of(hooked).besides == ["hook 'brighten'"]
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    made = emoji("pizza", sampler="euler", steps=2, seeds=1, latents=latents).images[0]
    recipe = tm.Recipe.of(made)
    assert recipe.missing == ["latents"]
    with pytest.raises(ArgumentError, match=r"latents=.*a file cannot hold.*make\(latents=…\)"):
        recipe.make(emoji)
    assert recipe.make(emoji, latents=latents)[0] == made
    drawn = emoji(
        "pizza", sampler="euler", steps=2, generator=torch.Generator().manual_seed(9)
    ).images[0]
    assert (tm.Recipe.of(drawn).seed, tm.Recipe.of(drawn).besides) == (9, ["generator="])


def test_the_recipe_of_a_pipeline_object_says_that_it_needs_the_object(
    emoji: tm.Helm, tmp_path: Path
) -> None:
    helm = tm.Helm(emoji.pipe)
    made = helm("a cat", sampler="euler", steps=2, seeds=3, guidance=2.0).images[0]
    made.save(tmp_path / "cat.png")
    with pytest.raises(
        ArgumentError, match=r"StableDiffusionXLPipeline object.*make\(tm\.Helm\(pipe\)\)"
    ):
        tm.replay(tmp_path / "cat.png")
    assert tm.Recipe.read(tmp_path / "cat.png").make(helm)[0] == made


def test_models_by_folder_and_precision_are_in_the_recipe(emoji: tm.Helm, tmp_path: Path) -> None:
    folder = Path(tm.__file__).parent / "zoo" / "emoji"
    helm = tm.Helm(folder, torch_dtype=torch.bfloat16)
    helm.pipe.set_progress_bar_config(disable=True)
    recipe = tm.Recipe.of(helm("pizza", sampler="euler", steps=1, seeds=1).images[0])
    assert (recipe.model, recipe.dtype, recipe.pipeline) == (str(folder), "bf16", None)


def test_a1111_reads_the_parameters(tmp_path: Path) -> None:
    """The chunk is parsed as A1111 does it; what it has no word for keeps ours."""
    recipe = tm.Recipe(
        model="stabilityai/sdxl", prompt="one, two: three\nlines", negative_prompt="dog", seed=7,
        sampler="dpmpp_2m_sde", grid="karras", steps=12, arguments={"guidance_scale": 4.5},
    )  # fmt: skip
    for options, name in (({}, "DPM++ 2M SDE"), ({"variant": "heun"}, "DPM++ 2M SDE Heun")):
        recipe.model_copy(update={"options": options}).save(
            Image.new("RGB", (24, 16)), tmp_path / "x.png"
        )
        prompt, negative, found = infotext(tmp_path / "x.png")
        assert (prompt, negative) == ("one, two: three\nlines", "dog")
        assert {**found, "Version": ""} == {
            "Steps": "12", "Sampler": name, "Schedule type": "Karras", "CFG scale": "4.5",
            "Seed": "7",
            "Size": "24x16", "Model": "sdxl", "Version": "",
        }  # fmt: skip
    recipe.model_copy(update={"sampler": "a, b", "grid": None}).save(
        Image.new("RGB", (8, 8)), tmp_path / "y.png"
    )
    assert infotext(tmp_path / "y.png")[2]["Sampler"] == "a, b"


def test_a_signed_picture_is_a_picture_of_pil_in_every_other_way(tmp_path: Path) -> None:
    from timonel.pipelines.recipe.images import sign

    plain = Image.new("RGB", (8, 8), "red")
    made = plain.copy()
    recipe = tm.Recipe(model="emoji", prompt="σ", seed=1, sampler="euler", steps=2)
    assert sign(made, recipe.texts(made.size))
    assert isinstance(made, Picture)
    assert made == plain == made
    assert made != Image.new("RGB", (8, 8), "blue")
    for twin in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert tm.Recipe.of(twin) == recipe
    buffer = io.BytesIO()
    made.save(buffer, "PNG")
    with Image.open(buffer) as kept:
        assert json.loads(kept.info["timonel"])["prompt"] == "σ"
    for name, held in (("a.PNG", True), ("a.webp", False), ("a.gif", False)):
        made.save(tmp_path / name)
        with Image.open(tmp_path / name) as kept:
            assert ("timonel" in kept.info) is held
    made.resize((4, 4)).save(tmp_path / "small.png")
    with pytest.raises(ArgumentError, match="no timonel recipe"):
        tm.Recipe.read(tmp_path / "small.png")
    assert not sign(torch.zeros(3), {})


def test_a_broken_picture_or_recipe_is_one_clear_error(tmp_path: Path) -> None:
    recipe = tm.Recipe(model="emoji", prompt="pizza", seed=1, sampler="euler", steps=2)
    path = recipe.save(Image.effect_noise((64, 64), 50), tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes(path.read_bytes()[:-900])
    (tmp_path / "text.png").write_text("not a picture")
    broken = {"half.png": "cannot be read as a picture", "text.png": "is not a picture"}
    for name, text in (
        ("list.png", "[1]"),
        ("field.png", '{"model": "emoji", "steps": 0}'),
        ("cut.png", "{"),
    ):
        from timonel.pipelines.recipe.images import chunks

        Image.new("RGB", (8, 8)).save(tmp_path / name, pnginfo=chunks({"timonel": text}))
        broken[name] = "cannot be read"
    for name, said in broken.items():
        with pytest.raises(ArgumentError, match=said) as caught:
            tm.Recipe.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["emoji", "emoji-flow", "emoji-lcm", "emoji-zsnr"])
@pytest.mark.parametrize(
    "given", [{}, {"sampler": "euler"}, {"sampler": "dpmpp_2m/karras"}, {"levels": True}]
)
def test_the_levels_are_in_the_recipe_whoever_chose_them(
    name: str, given: dict[str, object]
) -> None:
    """A call that names less than a recipe does is replayed on the levels that it was made on."""
    helm = tm.Helm(name)
    levels = {"sigmas": [1.0, 0.7, 0.3]} if name == "emoji-flow" else {"timesteps": [900, 600, 200]}
    helm.pipe.set_progress_bar_config(disable=True)
    call = {"seeds": 3, "steps": 4, **given}
    if call.pop("levels", None):
        call = {"seeds": 3, "sampler": "euler", **levels}
    if name in ("emoji-flow", "emoji-zsnr") and "karras" in str(given):
        return  # these begin at pure noise, where that grid has no level
    made = helm("red apple", **call).images[0]
    run = helm.run
    assert run is not None
    assert tm.Recipe.of(made).steps == (3 if "levels" in given else 4)
    assert tm.Recipe.of(made).make(helm)[0] == made
    assert helm.run is not run
    assert torch.equal(helm.run.table.time, run.table.time)
