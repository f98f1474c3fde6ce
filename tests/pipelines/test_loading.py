"""Models are loaded by name as they lie on disks and in the hub's cache, and make what they made
before.

Small random weights in real classes, with real text encoders and tokenizers. Pipelines are compared
with their weights in fresh memory and without gradients: a mapped file's tensors begin anywhere,
and PyTorch's CPU kernels round by alignment, its matmul by `requires_grad`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants, errors
from safetensors.torch import load_file, save_file

import timonel as tm
from support import original, saved
from timonel.errors import ArgumentError, ModelError, UnknownName

FAMILIES = ["sd15", "sdxl", "svd", "sd3", "flux-dev", "wan22"]
SHARD = "40KB"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder each, in shards."""
    root = tmp_path_factory.mktemp("models")
    for key in FAMILIES:
        saved.pipe(key).save_pretrained(root / key, max_shard_size=SHARD)
    return root


def modules(pipe: Any) -> dict[str, torch.nn.Module]:
    return {
        name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }


def made(pipe: Any, key: str, **options: Any) -> torch.Tensor:
    """Latents made under the helm, with the pipeline's weights in fresh memory and without
    gradients.
    """
    for part in modules(pipe).values():
        part.requires_grad_(False)
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.data = tensor.data.clone()
    pipe.set_progress_bar_config(disable=True)
    helm = tm.Helm(pipe)
    latents: torch.Tensor = helm(**saved.PIPES[key].inputs(), steps=2, seeds=[3], **options)[0]
    assert latents.isfinite().all()
    return latents


KNOWN: dict[tuple[str, torch.dtype], torch.Tensor] = {}


def same(key: str, loaded: Any, dtype: torch.dtype = torch.float32) -> None:
    """The loaded pipeline makes, bit for bit, what the pipeline made that was saved.

    Some tensors stay in float32 where diffusers loads in half precision, as T5 and Wan ask for.
    """
    own, found = saved.PIPES[key].build(), modules(loaded)
    assert type(loaded) is type(own)
    assert {part.dtype for part in found.values()} == {dtype}
    if (key, dtype) not in KNOWN:
        for name, part in modules(own).items():
            kept = found[name].state_dict()
            for place, tensor in part.state_dict(keep_vars=True).items():
                tensor.data = tensor.data.to(dtype).to(kept[place].dtype)
        KNOWN[key, dtype] = made(own, key)
    assert torch.equal(made(loaded, key), KNOWN[key, dtype])


@pytest.mark.parametrize("key", FAMILIES)
def test_shards_make_the_same_latents(folders: Path, key: str) -> None:
    for part in modules(saved.pipe(key)):
        index = next((folders / key / part).glob("*.safetensors.index.json"))
        shards = set(json.loads(index.read_text())["weight_map"].values())
        assert len(shards) > 1
        assert shards == {path.name for path in (folders / key / part).glob("*.safetensors")}
    same(key, tm.Helm(folders / key).pipe)


@pytest.mark.parametrize("key", FAMILIES)
def test_half_precision_files_of_a_variant_make_the_same_latents(tmp_path: Path, key: str) -> None:
    half = saved.PIPES[key].build().to(torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    files = [path.name for path in tmp_path.rglob("*.safetensors")]
    assert files
    assert all(name.endswith(".fp16.safetensors") for name in files)
    same(key, tm.Helm(str(tmp_path), torch_dtype=torch.float16, variant="fp16").pipe, torch.float16)
    with pytest.raises(ModelError, match=r"files of a variant only: say variant='fp16'"):
        tm.Helm(str(tmp_path))
    with pytest.raises(ModelError, match=r"no files of the variant 'bf16' \(variants: fp16\)"):
        tm.Helm(str(tmp_path), variant="bf16")


def test_shards_of_a_variant_make_the_same_latents(tmp_path: Path) -> None:
    saved.PIPES["sdxl"].build().to(torch.float16).save_pretrained(
        tmp_path, variant="fp16", max_shard_size=SHARD
    )
    assert len(list(tmp_path.glob("unet/*.fp16-0000*.safetensors"))) > 1
    same("sdxl", tm.Helm(tmp_path, dtype="fp16", variant="fp16").pipe, torch.float16)


def test_a_folder_may_leave_out_a_part_that_its_class_asks_for(tmp_path: Path) -> None:
    """SD3 is often kept without its T5, and diffusers asks for it."""
    own = saved.PIPES["sd3"].build()
    own.register_modules(text_encoder_3=None, tokenizer_3=None)
    own.save_pretrained(tmp_path)
    loaded = tm.Helm(tmp_path).pipe
    assert (loaded.text_encoder_3, loaded.tokenizer_3) == (None, None)
    assert torch.equal(made(loaded, "sd3"), made(own, "sd3"))


def test_each_part_is_read_in_the_precision_asked_for(folders: Path) -> None:
    pipe = tm.Helm(folders / "wan22", dtype={"vae": torch.float32, "default": "bf16"}).pipe
    found = {name: part.dtype for name, part in modules(pipe).items()}
    assert found == dict.fromkeys(found, torch.bfloat16) | {"vae": torch.float32}


def test_float32_files_are_read_in_half_precision(folders: Path) -> None:
    same("sd15", tm.Helm(folders / "sd15", dtype="fp16", device="cpu").pipe, torch.float16)


# -- the hub -------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["sdxl", "wan22"])
def test_a_hub_name_is_read_from_the_hubs_cache_without_network(tmp_path: Path, key: str) -> None:
    saved.hub(
        tmp_path,
        "org/name",
        lambda folder: saved.pipe(key).save_pretrained(folder, max_shard_size=SHARD),
    )
    helm = tm.Helm("org/name", cache_dir=tmp_path)
    assert helm.name == "org/name"
    same(key, helm.pipe)


def test_the_hubs_own_cache_is_the_usual_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    saved.hub(tmp_path, "org/name", saved.pipe("sd15").save_pretrained)
    same("sd15", tm.Helm("org/name", revision="main").pipe)
    with pytest.raises(
        ModelError, match="HF_HUB_OFFLINE is set, and the hub's cache does not hold"
    ):
        tm.Helm("org/name", revision="other")


def test_without_network_a_hub_name_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'org/name'.*HF_HUB_OFFLINE.*cache.*no folder of that name.*emoji"
    ):
        tm.Helm("org/name", cache_dir=tmp_path)


@pytest.fixture
def hub_says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Sets what asking the hub raises."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def says(error: Exception) -> None:
        def fails(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(HfApi, "model_info", fails)

    return says


def test_an_unreachable_hub_is_named_with_the_reason(
    tmp_path: Path, hub_says: Callable[[Exception], None]
) -> None:
    hub_says(ConnectionError("the cable is out"))
    with pytest.raises(
        ModelError, match=r"the hub was not reached \(the cable is out\), and the hub's cache"
    ):
        tm.Helm("org/name", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (errors.GatedRepoError, "it is gated: accept its licence"),
        (errors.RepositoryNotFoundError, "the hub shows no such model"),
        (errors.RevisionNotFoundError, "the hub has no such revision"),
    ],
)
def test_what_the_hub_refuses_comes_with_its_remedy(
    kind: Any, says: str, tmp_path: Path, hub_says: Callable[[Exception], None]
) -> None:
    hub_says(kind("no", response=SimpleNamespace(headers={}, request=None)))
    with pytest.raises(ModelError, match=says):
        tm.Helm("org/name", cache_dir=tmp_path)


# -- single files --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd15.safetensors and sdxl.safetensors with their original names; folders of the same names
    hold no weights.
    """
    root = tmp_path_factory.mktemp("single")
    for key in ("sd15", "sdxl"):
        configuration(root / key, key)
        save_file(original.checkpoint(saved.pipe(key)), root / f"{key}.safetensors")
    return root


def configuration(folder: Path, key: str) -> None:
    saved.pipe(key).save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()


@pytest.mark.parametrize("key", ["sd15", "sdxl"])
def test_a_single_file_makes_the_same_latents(single: Path, key: str) -> None:
    same(key, tm.Helm(single / f"{key}.safetensors", config=single / key).pipe)


def test_a_single_file_is_read_in_half_precision_and_into_another_class(single: Path) -> None:
    same(
        "sd15",
        tm.Helm(single / "sd15.safetensors", config=single / "sd15", dtype="fp16").pipe,
        torch.float16,
    )
    wanted = "StableDiffusionImg2ImgPipeline"
    helm = tm.Helm(single / "sd15.safetensors", config=single / "sd15", pipeline_class=wanted)
    assert type(helm.pipe).__name__ == wanted


def test_a_single_file_finds_its_configuration_on_the_hub(single: Path, tmp_path: Path) -> None:
    """Diffusers knows SDXL by the names of its weights, and which model of the hub has its
    configuration.
    """
    with pytest.raises(
        ModelError,
        match=r"HF_HUB_OFFLINE.*give config=.*'stabilityai/stable-diffusion-xl-base-1.0'",
    ):
        tm.Helm(str(single / "sdxl.safetensors"), cache_dir=tmp_path)
    saved.hub(
        tmp_path,
        "stabilityai/stable-diffusion-xl-base-1.0",
        lambda folder: configuration(folder, "sdxl"),
    )
    same("sdxl", tm.Helm(str(single / "sdxl.safetensors"), cache_dir=tmp_path).pipe)


def test_a_single_file_that_is_no_whole_model_is_refused(
    single: Path, folders: Path, tmp_path: Path
) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet.alpha": torch.zeros(1)}, lora)
    with pytest.raises(ModelError, match="diffusers does not know these weights; a LoRA"):
        tm.Helm(lora)
    with pytest.raises(ModelError, match="no single files for StableVideoDiffusionPipeline"):
        tm.Helm(lora, config=folders / "svd")
    with pytest.raises(ModelError, match="missing"):
        tm.Helm(lora, config=single / "sd15")
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        tm.Helm(single / "sd15.safetensors", config=tmp_path)


# -- what is refused -----------------------------------------------------------------------------
class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "MODEL.PTH"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / name)
    with pytest.raises(ModelError, match=r"is a pickle.*take the model's \.safetensors"):
        tm.Helm(tmp_path / name)
    disguised = tmp_path / "model.safetensors"
    shutil.copy(tmp_path / name, disguised)
    with pytest.raises(ModelError, match="cannot load the model"):
        tm.Helm(disguised)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_folder_of_pickles_is_never_opened(tmp_path: Path, part: str, hub: bool) -> None:
    names = {
        "unet/diffusion_pytorch_model": "diffusion_pytorch_model.bin",
        "text_encoder/model": "pytorch_model.bin",
    }

    def save(folder: Path) -> None:
        saved.pipe("sd15").save_pretrained(folder)
        (folder / f"{part}.safetensors").unlink()
        torch.save(Bomb(tmp_path / "exploded"), (folder / part).with_name(names[part]))

    snapshot = saved.hub(tmp_path, "org/name", save)
    with pytest.raises(ModelError, match="safetensors" if hub else r"\.bin is a pickle"):
        tm.Helm("org/name", cache_dir=tmp_path) if hub else tm.Helm(snapshot)
    assert not (tmp_path / "exploded").exists()


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    saved.pipe("sd15").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (tmp_path / "unet" / "mine.py").write_text(code)
    (tmp_path / "pipeline.py").write_text(code)
    for change in ({"unet": ["mine", "Mine"]}, {"_class_name": ["pipeline", "Mine"]}):
        (tmp_path / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(ModelError, match="brings code of its own"):
            tm.Helm(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_folder_is_refused(folders: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(folders / "sd15", tmp_path / name))

    shard = next(copy("gone").glob("unet/*-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        tm.Helm(tmp_path / "gone")
    cut = next(copy("cut").glob("unet/*-00002-of-*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot load the model"):
        tm.Helm(tmp_path / "cut")
    (copy("index") / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"its model_index\.json cannot be read"):
        tm.Helm(tmp_path / "index")


def test_what_is_no_model_is_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "models--org--name" / "snapshots").mkdir(parents=True)
    for name, says in [
        (tmp_path / "none" / "here", "there is no such folder"),
        (tmp_path / "none.safetensors", "there is no such file"),
        (folders / "sd15" / "unet", r"no model_index\.json, it holds config\.json, diffusion"),
        (tmp_path / "models--org--name", "one of snapshots/ is the model's"),
    ]:
        with pytest.raises(ModelError, match=says):
            tm.Helm(name)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dtype": "fp12"}, UnknownName, "fp12"),
        ({"dtype": 16}, UnknownName, "16"),
        ({"dtype": "fp16", "torch_dtype": torch.float32}, ArgumentError, "disagree"),
        ({"dtype": {"vae": "fp12"}}, UnknownName, "fp12"),
        ({"dtype": {"vea": "fp32", "default": "bf16"}}, UnknownName, "did you mean 'vae'"),
        ({"device": "abacus"}, ArgumentError, "device 'abacus' cannot be used here"),
        ({"variant": "fp16"}, ModelError, r"no files of the variant 'fp16' \(variants: none\)"),
        ({"revision": "main"}, ArgumentError, "revision='main' does not go with a folder"),
        ({"config": "org/name"}, ArgumentError, "config='org/name' does not go with a folder"),
        (
            {"pipeline_class": "StableDifusionPipeline"},
            UnknownName,
            "did you mean 'StableDiffusionPipeline'",
        ),
        ({"pipeline_class": dict}, UnknownName, "pipeline class"),
        ({"pipeline_class": "FluxPipeline"}, ModelError, "cannot load the model"),
        ({"dtipe": "fp16"}, UnknownName, "did you mean 'dtype'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    folders: Path, options: Any, error: Any, says: str
) -> None:
    with pytest.raises(error, match=says):
        tm.Helm(folders / "sd15", **options)


def test_options_that_do_not_fit_a_single_file_or_an_object_are_refused(single: Path) -> None:
    with pytest.raises(ArgumentError, match="variant='fp16' does not go with a single file"):
        tm.Helm(single / "sd15.safetensors", config=single / "sd15", variant="fp16")
    with pytest.raises(ArgumentError, match="a single file is read in one dtype"):
        tm.Helm(single / "sd15.safetensors", config=single / "sd15", dtype={"default": "fp16"})
    with pytest.raises(ArgumentError, match="a pipeline object is used as it is: dtype"):
        tm.Helm(saved.pipe("sd15"), dtype="fp16")


def test_a_folder_is_loaded_into_another_class_of_the_same_parts(folders: Path) -> None:
    helm = tm.Helm(folders / "sdxl", pipeline_class="StableDiffusionXLImg2ImgPipeline")
    assert type(helm.pipe).__name__ == "StableDiffusionXLImg2ImgPipeline"
    weights = {}
    for path in (folders / "sdxl" / "unet").glob("*.safetensors"):
        weights |= load_file(path)
    assert all(
        torch.equal(value, weights[key]) for key, value in helm.pipe.unet.state_dict().items()
    )
