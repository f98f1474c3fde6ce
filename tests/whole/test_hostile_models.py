"""No code of a model runs, through whichever door it comes: folders, the hub, single files, plans,
recipes.

Every hostile folder is a whole model with one thing changed, so that without the look at it the
change would be read.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, constants
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from support import saved
from timonel import compat
from timonel.cli import app
from timonel.errors import ArgumentError, ModelError
from timonel.pipelines import trust

RAN = "ran"  # the file that hostile code would leave


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    saved.pipe("sd15").save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which python looks for modules in too, as it does for a script and for
    `python -m`.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("evil", "evil.inner", "None"):
        sys.modules.pop(name, None)
    return tmp_path


def code(at: Path) -> str:
    return (
        f"open({str(at)!r}, 'w')\nclass X:\n"
        "    @classmethod\n    def from_pretrained(cls, *_, **__): return cls()\n"
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def change(path: Path, **entries: Any) -> None:
    write(path, json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | entries))


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def nested(folder: Path) -> Path:
    """Its VAE becomes a whole pipeline of its own."""
    inner = folder / "vae"
    shutil.copytree(folder, inner.with_name("copy"))
    shutil.rmtree(inner)
    inner.with_name("copy").rename(inner)
    change(folder / "model_index.json", vae=["diffusers", "StableDiffusionPipeline"])
    return inner


def none_py(folder: Path, ran: Path) -> None:
    write(folder / "None.py", code(ran))


def part_py(folder: Path, ran: Path) -> None:
    write(folder / "unet" / "mine.py", code(ran))
    change(folder / "model_index.json", unet=["mine", "X"])


def pipeline_py(folder: Path, ran: Path) -> None:
    write(folder / "pipeline.py", code(ran))
    change(folder / "model_index.json", _class_name=["pipeline", "X"])


def class_list(folder: Path, ran: Path) -> None:
    change(folder / "model_index.json", _class_name=["evil", "X"])
    write(folder.parent / "evil.py", code(ran))


def module_beside(folder: Path, ran: Path) -> None:
    write(folder.parent / "evil.py", code(ran))
    change(folder / "model_index.json", unet=["evil", "X"])


def dotted(folder: Path, ran: Path) -> None:
    write(folder.parent / "evil" / "__init__.py", "")
    write(folder.parent / "evil" / "inner.py", code(ran))
    change(folder / "model_index.json", unet=["evil.inner", "X"])


def builtin(folder: Path, ran: Path) -> None:
    change(folder / "model_index.json", unet=["os", "system"])


def dunder(folder: Path, ran: Path) -> None:
    change(folder / "model_index.json", unet=["diffusers", "__loader__"])


def nested_none_py(folder: Path, ran: Path) -> None:
    write(nested(folder) / "None.py", code(ran))


def nested_module(folder: Path, ran: Path) -> None:
    write(folder.parent / "evil.py", code(ran))
    change(nested(folder) / "model_index.json", unet=["evil", "X"])


def nested_pickle(folder: Path, ran: Path) -> None:
    part = nested(folder) / "unet"
    next(part.glob("*.safetensors")).rename(part / "other.safetensors")
    torch.save(Bomb(ran), part / "diffusion_pytorch_model.bin")


def endless(folder: Path, ran: Path) -> None:
    inner = folder
    for _ in range(6):
        (inner / "vae").mkdir(exist_ok=True)
        change(
            inner / "model_index.json",
            _class_name="StableDiffusionPipeline",
            vae=["diffusers", "DiffusionPipeline"],
        )
        inner = inner / "vae"
    change(inner / "model_index.json", _class_name="StableDiffusionPipeline")


def modular_part(folder: Path, ran: Path) -> None:
    change(folder / "vae" / "modular_model_index.json", _class_name="X", vae=["evil", "X"])


def modular_index(folder: Path, ran: Path) -> None:
    hint = {"type_hint": ["evil", "X"]}
    change(
        folder / "modular_model_index.json", _class_name="ModularPipeline", unet=[None, "X", hint]
    )


def tokenizer_map(folder: Path, ran: Path) -> None:
    change(
        folder / "tokenizer" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["org/code--mine.X", None]},
    )


def encoder_map(folder: Path, ran: Path) -> None:
    change(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "mine.X"})


def deep_map(folder: Path, ran: Path) -> None:
    change(
        folder / "text_encoder" / "config.json",
        text_config={"auto_map": {"AutoConfig": "org/code--mine.X"}},
    )


def escaped_map(folder: Path, ran: Path) -> None:
    write(
        folder / "unet" / "preprocessor_config.json",
        '{"auto\\u005fmap": {"AutoImageProcessor": "mine.X"}}',
    )


def processor_map(folder: Path, ran: Path) -> None:
    change(folder / "tokenizer" / "processor_config.json", auto_map={"AutoProcessor": "mine.X"})


def kernel(folder: Path, ran: Path) -> None:
    change(folder / "text_encoder" / "config.json", _attn_implementation="org/kernel")


def adapter(folder: Path, ran: Path) -> None:
    change(
        folder / "text_encoder" / "adapter_config.json",
        base_model_name_or_path="org/code",
        peft_type="LORA",
    )


def vocabulary(folder: Path, ran: Path) -> None:
    (folder / "tokenizer" / "vocab.pkl").write_bytes(pickle.dumps(Bomb(ran)))


def deeper_pickle(folder: Path, ran: Path) -> None:
    (folder / "text_encoder" / "more").mkdir()
    torch.save(Bomb(ran), folder / "text_encoder" / "more" / "pytorch_model.bin")


def objects(folder: Path, ran: Path) -> None:
    np.save(folder / "tokenizer" / "voice.npy", np.array([Bomb(ran)], dtype=object))


def connected(folder: Path, ran: Path) -> None:
    change(folder / "model_index.json", _class_name="KandinskyCombinedPipeline")
    write(folder / "README.md", "---\nprior:\n- org/code\n---\n")


def outside(folder: Path, ran: Path) -> None:
    change(folder / "model_index.json", **{"../evil": ["diffusers", "AutoencoderKL"]})


def linked(folder: Path, ran: Path) -> None:
    write(folder.parent / "elsewhere" / "mine.py", code(ran))
    (folder / "unet" / "more").symlink_to(folder.parent / "elsewhere")


def deep(folder: Path, ran: Path) -> None:
    write(folder / "unet" / "config.json", '{"a":' * 5000 + "1" + "}" * 5000)


def less_deep(folder: Path, ran: Path) -> None:
    write(folder / "unet" / "more.json", '{"a":' * 300 + "1" + "}" * 300)


def large(folder: Path, ran: Path) -> None:
    change(folder / "model_index.json", note="x" * trust.MOST_INDEX)


def pipe(folder: Path, ran: Path) -> None:
    os.mkfifo(folder / "unet" / "more.json")


def looped(folder: Path, ran: Path) -> None:
    (folder / "unet" / "loop").symlink_to(folder)
    change(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": "mine.X"})


SAYS: dict[Callable[[Path, Path], None], str] = {
    none_py: r"brings code of its own \(None\.py\)",
    part_py: r"brings code of its own \(unet/mine\.py\)",
    pipeline_py: r"brings code of its own \(pipeline\.py\)",
    class_list: r"names code of its own",
    module_beside: r"unet is of 'evil', code of its own or of another package",
    dotted: r"unet is of 'evil\.inner'",
    builtin: r"unet is of 'os'",
    dunder: r"__loader__.*is no class",
    nested_none_py: r"code of its own \(vae/None\.py\)",
    nested_module: r"unet is of 'evil'",
    nested_pickle: r"diffusion_pytorch_model\.bin is a pickle",
    endless: r"inside each other, more than",
    modular_part: r"vae is a modular pipeline",
    modular_index: r"type_hint is of 'evil'",
    tokenizer_map: r"tokenizer/tokenizer_config\.json has auto_map=",
    encoder_map: r"text_encoder/config\.json has auto_map=",
    deep_map: r"has auto_map=.*org/code",
    escaped_map: r"unet/preprocessor_config\.json has auto_map=",
    processor_map: r"processor_config\.json has auto_map=",
    kernel: r"code of the hub",
    adapter: r"read another model",
    vocabulary: r"tokenizer/vocab\.pkl is a pickle",
    deeper_pickle: r"text_encoder/more/pytorch_model\.bin is a pickle",
    objects: r"voice\.npy is a pickle",
    connected: r"load other models too",
    outside: r"'\.\./evil', which is no name",
    linked: r"unet/more/mine\.py",
    deep: r"config\.json cannot be read: it is nested deeper than 64",
    less_deep: r"more\.json cannot be read: it is nested deeper than 64",
    large: r"model_index\.json': it has 1,049,024 bytes, more than 1,048,576",
    pipe: r"more\.json is no plain file",
    looped: r"has auto_map=",
}
CASES = pytest.mark.parametrize("spoil", SAYS, ids=lambda spoil: spoil.__name__)


def hostile(whole: Path, here: Path, spoil: Callable[[Path, Path], None]) -> Path:
    folder = Path(shutil.copytree(whole, here / "model"))
    spoil(folder, here / RAN)
    return folder


@CASES
def test_a_hostile_folder_is_refused_and_nothing_of_it_runs(
    whole: Path, here: Path, spoil: Callable[[Path, Path], None]
) -> None:
    folder = hostile(whole, here, spoil)
    with pytest.raises(ModelError, match=SAYS[spoil]):
        tm.Helm(folder)
    assert not (here / RAN).exists()


DOORS: dict[str, list[str]] = {
    "generate": ["generate", "pizza", "--model", "model", "--steps", "1"],
    "animate": ["animate", "picture.png", "--model", "model"],
    "compare": ["compare", "pizza", "--model", "model", "--steps", "1", "--sampler", "euler"],
    "a plan": ["compare", "pizza", "--plan", "plan.json"],
    "tune": ["tune", "model", "--steps", "2"],
    "replay": ["replay", "picture.png", "--yes"],
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "spoil", [none_py, module_beside, nested_module, tokenizer_map], ids=lambda s: s.__name__
)
def test_every_command_refuses_a_hostile_folder(
    door: str, whole: Path, here: Path, spoil: Callable[[Path, Path], None]
) -> None:
    hostile(whole, here, spoil)
    write(here / "plan.json", json.dumps({"model": ["model"], "sampler": ["euler"], "steps": [1]}))
    recipe = tm.Recipe(model="model", prompt="pizza", seed=1, sampler="euler", steps=1)
    recipe.save(Image.new("RGB", (64, 64)), here / "picture.png")
    with pytest.raises(ModelError, match=SAYS[spoil]):
        CliRunner().invoke(app, DOORS[door], catch_exceptions=False)
    assert not (here / RAN).exists()


@CASES
def test_doctor_runs_nothing_of_a_hostile_folder(
    whole: Path, here: Path, spoil: Callable[[Path, Path], None]
) -> None:
    """It reads two configurations and loads nothing, so it may say something of such a model."""
    folder = hostile(whole, here, spoil)
    with contextlib.suppress(ModelError):
        tm.doctor(folder)
    assert not (here / RAN).exists()


# -- the hub -------------------------------------------------------------------------------------
@CASES
def test_a_hostile_repository_in_the_hubs_cache_is_refused(
    whole: Path, here: Path, spoil: Callable[[Path, Path], None]
) -> None:
    def save(folder: Path) -> None:
        shutil.copytree(whole, folder)
        spoil(folder, here / RAN)

    saved.hub(here / "cache", "org/name", save)
    with pytest.raises(ModelError, match="cannot load the model 'org/name'"):
        tm.Helm("org/name", cache_dir=here / "cache")
    assert not (here / RAN).exists()


@pytest.mark.parametrize("revision", ["main", None])
def test_code_in_the_hubs_list_of_files_is_refused_before_anything_more_is_fetched(
    revision: str | None, whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is of the commit that is loaded, also where the branch has moved on between two
    questions.
    """
    snapshot = saved.hub(here / "cache", "org/name", lambda folder: shutil.copytree(whole, folder))
    asked: list[str | None] = []

    def listed(self: Any, name: str, revision: str | None = None, **_: Any) -> Any:
        asked.append(revision)
        files = ["model_index.json", "unet/config.json", *(["None.py"] if revision else [])]
        commit = snapshot.name if revision else "0" * 40
        return SimpleNamespace(
            sha=commit, siblings=[SimpleNamespace(rfilename=file) for file in files]
        )

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this was to be refused before")

    monkeypatch.setattr(HfApi, "model_info", listed)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", refuse)
    with pytest.raises(ModelError, match=r"'org/name': it brings code of its own \(None\.py\)"):
        tm.Helm("org/name", cache_dir=here / "cache", revision=revision)
    assert asked == (["main"] if revision else [None, snapshot.name])


@pytest.mark.parametrize(
    "spoil", [none_py, module_beside, tokenizer_map, class_list], ids=lambda s: s.__name__
)
@pytest.mark.parametrize("hub", [False, True], ids=["folder", "hub"])
def test_a_hostile_configuration_of_a_single_file_is_refused(
    whole: Path, here: Path, spoil: Callable[[Path, Path], None], hub: bool
) -> None:
    file = Path(
        shutil.copy(next((whole / "unet").glob("*.safetensors")), here / "single.safetensors")
    )
    config = str(hostile(whole, here, spoil))
    options: dict[str, Any] = {}
    if hub:
        saved.hub(here / "cache", "org/name", lambda folder: shutil.copytree(config, folder))
        config, options = "org/name", {"cache_dir": here / "cache"}
    with pytest.raises(ModelError, match=SAYS[spoil]):
        tm.Helm(file, config=config, **options)
    assert not (here / RAN).exists()


# -- what is no code -----------------------------------------------------------------------------
def test_what_looks_alike_but_runs_nothing_is_read(whole: Path, here: Path) -> None:
    """An empty auto_map, a part of a folder of diffusers' pipelines, a checkpoint of the web beside
    the parts.
    """
    folder = Path(shutil.copytree(whole, here / "model"))
    change(folder / "text_encoder" / "config.json", auto_map={}, _attn_implementation="sdpa")
    change(folder / "model_index.json", safety_checker=[None, None])
    torch.save(Bomb(here / RAN), folder / "v1-5-pruned.ckpt")
    torch.save(Bomb(here / RAN), folder / "unet" / "diffusion_pytorch_model.bin")
    np.save(folder / "tokenizer" / "numbers.npy", np.zeros(3))
    assert type(tm.Helm(folder).pipe).__name__ == "StableDiffusionPipeline"
    change(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    assert "safety_checker" in trust.index("model", folder / "model_index.json")[0]
    assert not (here / RAN).exists()


@pytest.mark.parametrize(
    "scheduler", [tm.Scheduler, compat.EulerDiscreteScheduler], ids=["timonel", "compat"]
)
def test_a_pipeline_saved_with_timonels_scheduler_is_read(here: Path, scheduler: Any) -> None:
    own = saved.PIPES["sd15"].build()
    own.scheduler = scheduler.from_config(own.scheduler.config)
    own.save_pretrained(here / "model")
    assert type(tm.Helm(here / "model").pipe.scheduler) is scheduler


# -- replay --------------------------------------------------------------------------------------
@pytest.fixture
def picture(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def loads(name: Any, **_: Any) -> None:
        raise ModelError(f"loading {name}")

    monkeypatch.setattr("timonel.pipelines.load.load", loads)
    recipe = tm.Recipe(model="org/\x1b[2Jname", prompt="pizza", seed=1, sampler="euler", steps=1)
    recipe.save(Image.new("RGB", (64, 64)), here / "picture.png")
    return here / "picture.png"


def test_replay_of_a_model_that_only_the_picture_names_is_refused_without_a_terminal(
    picture: Path,
) -> None:
    with pytest.raises(ArgumentError, match=r"picture\.png.* names the model 'org.*--yes"):
        CliRunner().invoke(app, ["replay", str(picture)], catch_exceptions=False)
    with pytest.raises(ModelError, match="loading org"):
        CliRunner().invoke(app, ["replay", str(picture), "--yes"], catch_exceptions=False)


def test_replay_in_python_loads_such_a_model_only_where_the_call_names_it(picture: Path) -> None:
    for call in (lambda: tm.replay(picture), lambda: tm.Recipe.read(picture).make()):
        with pytest.raises(ArgumentError, match=r"names the model 'org.*name it too: tm\.replay"):
            call()
    read = tm.Recipe.read(picture)
    for copied in (
        read.model_copy(update={"seed": 2}),
        copy.deepcopy(read),
        pickle.loads(pickle.dumps(read)),
    ):
        with pytest.raises(ArgumentError, match="does not ship"):
            copied.make()
    with pytest.raises(ArgumentError, match="and not 'other'"):
        tm.replay(picture, model="other")
    for mine in (
        lambda: tm.replay(picture, model=read.model), lambda: tm.Recipe(**dict(read)).make(),
        lambda: read.model_copy(update={"model": "org/mine"}).make(),
    ):  # fmt: skip
        with pytest.raises(ModelError, match="loading org"):
            mine()
    assert read == tm.Recipe(**dict(read))


@pytest.mark.parametrize(("answer", "loads"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_replay_asks_on_a_terminal(
    picture: Path, answer: str, loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timonel.cli.say.interactive", lambda: True)
    made = CliRunner().invoke(app, ["replay", str(picture)], input=answer)
    assert isinstance(made.exception, ModelError) is loads
    assert "\x1b" not in made.output
    assert "Load it?" in made.output
