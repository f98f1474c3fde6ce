"""Law: whatever a file holds, it is read right or refused with a timonel error; nothing else, and
no hang.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import save_file

import timonel as tm
from support.damage import bytes_of, data_of
from timonel import reading
from timonel.comparison.plan import Plan, _unique
from timonel.comparison.store import Outcome, Store
from timonel.core.fitted.fitted import Fitted
from timonel.core.run import Run
from timonel.errors import ArgumentError, TimonelError
from timonel.make.animate import still

CELL = Plan.of("ghost", sampler="euler", steps=4, seed=3).cells[0]
FITTED = Path(tm.__file__).parent / "zoo" / "emoji" / "tuned" / "6.json"


def saved_run(folder: Path) -> Run:
    table = tm.Sampler("dpmpp_2m_sde", steps=4).compile(tm.VP.from_schedule())
    run = Run(table, "v", noise=tm.SeededNoise([1, 2]), guidance=tm.cfg(3.0, until=0.5))
    run.start(torch.ones(2, 1, 2, 2))
    for _ in range(2):
        run.advance(torch.tanh(run.latents))
    run.save(folder / "run.safetensors")
    return run


def go_on(path: Path) -> torch.Tensor:
    run = Run.load(path)
    for _ in run.rows():
        run.advance(torch.tanh(run.latents))
    return run.result


def mutate_run(folder: Path, chance: random.Random) -> Callable[[], Any]:
    saved_run(folder)
    path = folder / "run.safetensors"
    right = go_on(path)
    if chance.random() < 0.5:
        path.write_bytes(bytes_of(path.read_bytes(), chance))

        def same() -> None:
            assert torch.equal(go_on(path), right)

        return same
    with safe_open(str(path), framework="pt") as file:
        data = json.loads(file.metadata()["timonel"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    data.pop("digest")
    data = data_of(data, chance)
    if chance.random() < 0.3:
        name = chance.choice(list(tensors))
        tensors[name] = chance.choice([torch.ones(3), torch.ones(2, 1, 2, 2).int(), torch.ones(())])
    save_file(tensors, path, metadata={"timonel": json.dumps(data)})
    return lambda: go_on(path)


def mutate_picture(folder: Path, chance: random.Random) -> Callable[[], Any]:
    path = folder / "picture.png"
    recipe = tm.Recipe(
        model="emoji", prompt="pizza", seed=1, sampler="euler", steps=2, guidance={"scale": 3.0}
    )
    if chance.random() < 0.5:
        recipe.save(Image.new("RGB", (16, 16), "red"), path)
        path.write_bytes(bytes_of(path.read_bytes(), chance))
    else:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("timonel", json.dumps(data_of(recipe.model_dump(exclude_none=True), chance)))
        Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    return lambda: (still(path), tm.Recipe.read(path).chosen().compile(tm.VP.from_schedule()))


def mutate_fitted(folder: Path, chance: random.Random) -> Callable[[], Any]:
    path, text = folder / "fast.json", FITTED.read_bytes()
    made = (
        bytes_of(text, chance)
        if chance.random() < 0.3
        else json.dumps(data_of(json.loads(text), chance)).encode()
    )
    path.write_bytes(made)

    def use() -> None:
        fitted = Fitted.read(path)
        "".join(fitted.lines())
        fitted.on(tm.VP.from_schedule())

    return use


def mutate_plan(folder: Path, chance: random.Random) -> Callable[[], Any]:
    path = folder / f"plan{chance.choice(['.json', '.yaml'])}"
    axes = {
        "prompt": ["ghost"],
        "sampler": ["euler", "unipc"],
        "steps": [3, 4],
        "seeds": 2,
        "guidance": [1.0, 2.0],
    }
    text = json.dumps(data_of(axes, chance)).encode()
    path.write_bytes(bytes_of(text, chance) if chance.random() < 0.5 else text)
    return lambda: [cell.id for cell in Plan.read(path, yes=False)]


def mutate_store(folder: Path, chance: random.Random) -> Callable[[], Any]:
    store = Store(folder / "report")
    row = Outcome(
        "a", "cell", "done", CELL.recipe, nfe=4, levels=[1.0, 0.0], measures={"psnr": 3.0}
    ).row()
    if chance.random() < 0.5:
        store.root.mkdir()
        store.keep([Outcome("a", "cell", "done", CELL.recipe)])
        table = store.root / "results.sqlite"
        table.write_bytes(bytes_of(table.read_bytes(), chance))
        return lambda: Store(store.root)
    changed = data_of(row, chance)

    def read() -> None:
        store.root.mkdir(exist_ok=True)
        made = store._read(
            "results.sqlite", lambda: reading.parsed(json.dumps(changed), finite=False)
        )
        assert not store.whole(made)
        assert store.picture(made).parent == store.root / "pictures"

    return read


KINDS = {"run": mutate_run, "picture": mutate_picture, "fitted": mutate_fitted, "plan": mutate_plan,
         "store": mutate_store}  # fmt: skip


def attack(kind: str, folder: Path, numbers: range) -> None:
    for number in numbers:
        chance, place = random.Random(f"{kind} {number}"), folder / str(number)
        place.mkdir()
        use = KINDS[kind](place, chance)
        try:
            use()
        except TimonelError as error:
            assert str(error), (kind, number)  # noqa: PT017
        except Exception as error:
            raise AssertionError(f"{kind} {number}: {error!r}") from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_read_right_or_refused(kind: str, tmp_path: Path) -> None:
    attack(kind, tmp_path, range(60))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_changed_files_are_read_right_or_refused(kind: str, tmp_path: Path) -> None:
    attack(kind, tmp_path, range(60, 1060))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 70 + "]" * 70,
        '{"a": 1, "a": 2}',
        "1" * 401,
        "1e999",
        "NaN",
        "[Infinity]",
        "{",
        None,
        3,
    ],
)
def test_json_is_bounded(text: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        reading.parsed(text)


def test_pictures_are_looked_at_before_they_are_decoded(tmp_path: Path) -> None:
    bomb, pipe = tmp_path / "bomb.png", tmp_path / "pipe.png"
    Image.new("1", (12_000, 12_000)).save(bomb)
    os.mkfifo(pipe)
    for path, words in (
        (bomb, "pixels"),
        (pipe, "no plain file"),
        (tmp_path, "directory"),
        ("/dev/zero", "plain"),
    ):
        with pytest.raises(ArgumentError, match=rf"(?i){words}"):
            still(path)


PEAK = """
import resource, sys
from PIL import Image
from timonel import picture_files, reading
Image.preinit()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for path in sys.argv[1:]:
    try:
        picture_files.picture(path)
    except ValueError:
        pass
    print(peak() - before)
"""


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """18 kB that would be 144 million pixels take none, 8 kB of as many as are read a byte or a few
    for each.
    """
    sides = (12_000, 8_192)
    for side in sides:
        Image.new("1", (side, side)).save(tmp_path / f"{side}.png")
    paths = [str(tmp_path / f"{side}.png") for side in sides]
    made = subprocess.run(
        [sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True
    )
    refused, read = map(int, made.stdout.split())
    assert refused < 20
    assert read < 500


def test_json_is_counted_before_memory_is_taken_for_it() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 2,000,000 values"):
            reading.parsed("[" + "[]," * 5_000_000 + "1]")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


SLOW: dict[str, str] = {
    "a.yaml": "seeds: " + ":".join(["1"] * 500_000),
    "b.yaml": "prompt: " + "[" * 100_000,
    "c.yaml": 'prompt: !!int "1:1"',
    "d.yaml": "prompt: [" + "a," * 500_000 + "a]",
    "a.toml": ".".join(["a"] * 500_000) + "=1",
    "b.toml": "a=" + "[" * 100_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_plans_that_their_readers_take_minutes_for_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SLOW[name])
    began = time.process_time()
    with pytest.raises(ArgumentError, match="cannot be read"):
        Plan.read(tmp_path / name)
    assert time.process_time() - began < 5


def test_many_values_of_one_kind_are_sorted_in_linear_time() -> None:
    began = time.process_time()
    assert len(_unique([{"eta": i % 30_000} for i in range(60_000)])) == 30_000
    with pytest.raises(ValueError, match="'29999' twice"):
        reading.parsed("{" + ",".join(f'"{i}":1' for i in range(30_000)) + ',"29999":1}')
    assert time.process_time() - began < 5


def test_yaml_that_stands_for_more_than_it_says_is_refused(tmp_path: Path) -> None:
    text = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ArgumentError, match="by its name"):
        Plan.read(tmp_path / "plan.yaml")


def test_a_plan_is_counted_before_it_is_made() -> None:
    with pytest.raises(ArgumentError, match="100,000,000 runs"):
        Plan.of("ghost", sampler="euler", seeds=10**8)
    with pytest.raises(ArgumentError, match="2000 runs"):
        Plan.of("ghost", sampler=["euler", "unipc"], seeds=1000, yes=False)
    assert len(Plan.of("ghost", sampler="euler", seed=[1] * 5000, yes=False)) == 1


def test_a_links_target_is_no_file_of_a_report(tmp_path: Path) -> None:
    secret, root = tmp_path / "secret.png", tmp_path / "report"
    Image.new("RGB", (8, 8)).save(secret)
    store = Store(root)
    outcome = Outcome("a", "cell", "done", CELL.recipe)
    store.picture(outcome).parent.mkdir(parents=True)
    store.picture(outcome).symlink_to(secret)
    assert not store.whole(outcome)
    with pytest.raises(ArgumentError, match="no file of this folder"):
        store.read_pixels(outcome)
    (root / "latents").symlink_to(tmp_path)
    with pytest.raises(ArgumentError, match="is a link"):
        Store(root)


def test_a_damaged_tensor_is_noticed(tmp_path: Path) -> None:
    saved_run(tmp_path)
    path = tmp_path / "run.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArgumentError, match="damaged"):
        tm.Run.load(path)
