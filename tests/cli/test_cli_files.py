"""Files of the user: nothing is replaced unasked, nothing is computed before it is sure that it can
be written.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from timonel import files
from timonel.cli import app
from timonel.errors import ArgumentError
from timonel.make.places import placed


def run(*words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def picture(path: Path) -> bytes:
    Image.new("RGB", (8, 8), "red").save(path)
    return path.read_bytes()


def apple(*more: str) -> str:
    return run("generate", "red apple", "--sampler", "euler", "--seed", "7", *more)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_the_same_command_twice_leaves_the_first_result_and_numbers_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    apple("--steps", "4", "--preview")
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = apple("--steps", "2", "--preview")
    assert "out/red-apple-7-2.png" in said
    assert all(path.read_bytes() == data for path, data in first.items())
    assert names(out / "red-apple-7-2") == {"step-01.png", "step-02.png"}
    assert "red-apple-7-replay.png" in run("replay", "out/red-apple-7.png")
    assert "red-apple-7-replay-2.png" in run("replay", "out/red-apple-7.png")
    run("explain", "euler/karras", "--steps", "3")
    assert "explain-euler-karras-3-2.png" in run("explain", "euler/karras", "--steps", "3")

    keep = {
        "notes.txt": b"mine",
        "step-99.png": picture(tmp_path / "mine.png"),
    }  # the name alone does not make it ours
    for name, data in keep.items():
        (out / "red-apple-7" / name).write_bytes(data)
    apple("--steps", "2", "--preview", "--overwrite")
    assert names(out / "red-apple-7") == {"step-01.png", "step-02.png", *keep}
    assert all((out / "red-apple-7" / name).read_bytes() == data for name, data in keep.items())
    assert not (out / "red-apple-7-3.png").exists()
    assert tm.Recipe.read(out / "red-apple-7.png").steps == 2


COMMANDS = {
    "generate": (["generate", "pizza"], "taken.png"),
    "animate": (["animate", "first.png"], "taken.mp4"),
    "replay": (["replay", "recipe.png"], "taken.png"),
    "explain": (["explain", "euler"], "taken.svg"),
    "tune": (["tune", "emoji"], "taken.json"),
}


@pytest.fixture
def nothing_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, where no model may be loaded and no table plotted."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "first.png")
    recipe = tm.Recipe(model="emoji", prompt="pizza", seed=1, sampler="euler", steps=2)
    recipe.save(Image.new("RGB", (64, 64)), tmp_path / "recipe.png")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this was to be refused before")

    monkeypatch.setattr("timonel.pipelines.load.load", refuse)
    monkeypatch.setattr("timonel.explain.effects", refuse)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_name_of_the_users_that_is_taken_is_refused_before_any_compute(
    command: str, nothing_loads: Path
) -> None:
    words, name = COMMANDS[command]
    (nothing_loads / name).write_bytes(b"mine")
    before = names(nothing_loads)
    with pytest.raises(ArgumentError, match=rf"'{name}' exists: .*--overwrite"):
        CliRunner().invoke(app, [*words, "-o", name], catch_exceptions=False)
    assert (nothing_loads / name).read_bytes() == b"mine"
    assert names(nothing_loads) == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["nowhere", "behind a file", "suffix", "folder"])
def test_what_cannot_be_written_is_refused_before_any_compute(
    command: str, kind: str, nothing_loads: Path
) -> None:
    words, name = COMMANDS[command]
    (nothing_loads / "file").write_bytes(b"")
    if kind == "folder":
        (nothing_loads / name).mkdir()
    place = {
        "nowhere": f"/proc/nowhere/{name}", "behind a file": f"file/{name}", "suffix": "x.webp.txt",
        "folder": name,
    }[kind]  # fmt: skip
    if (command, kind) in {
        ("generate", "suffix"),
        ("generate", "folder"),
        ("replay", "folder"),
        ("explain", "folder"),
    }:
        return  # where a folder may be meant, that is one
    before = names(nothing_loads)
    with pytest.raises(ArgumentError, match=r"cannot write|file, got|ends in|is a folder"):
        CliRunner().invoke(app, [*words, "-o", place], catch_exceptions=False)
    assert names(nothing_loads) == before


def test_looking_whether_a_folder_can_be_written_touches_nothing_in_it(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    for name in (".timonel", "link"):
        (tmp_path / name).symlink_to(mine)
    before = names(tmp_path)
    files.writable(tmp_path)
    with pytest.raises(ArgumentError, match="exists"):
        files.ready(tmp_path / "link")
    files.ready(tmp_path / "link", overwrite=True)
    with files.replacing(tmp_path / "link") as temporary:
        temporary.write_bytes(b"new")
    assert mine.read_bytes() == b"mine"
    assert names(tmp_path) == before
    for path in ("/dev/null", tmp_path):
        with pytest.raises(ArgumentError, match=r"no plain file|is a folder"):
            files.ready(path, overwrite=True)


def test_whoever_runs_side_by_side_gets_names_of_their_own(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def one(number: int) -> tuple[Path, Path]:
        together.wait()
        with files.claimed(tmp_path / "red.apple", ".png", ".gif") as stem:
            for ending in (".png", ".gif"):
                with files.replacing(files.beside(stem, ending)) as temporary:
                    temporary.write_text(str(number))
        return stem, files.new_folder(tmp_path / "steps")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(8)))
    assert len({stem for stem, _ in found}) == len({folder for _, folder in found}) == 8
    for number, (stem, _) in enumerate(found):
        assert [files.beside(stem, ending).read_text() for ending in (".png", ".gif")] == [
            str(number)
        ] * 2
    assert not list(tmp_path.glob(".*"))


def test_a_block_that_fails_leaves_no_empty_file_and_no_file_of_others_is_lost(
    tmp_path: Path,
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"mine")
    placing = files.placed(tmp_path / "clip.mp4")
    assert placing.__enter__().name == "clip-2.mp4"
    assert names(tmp_path) == {"clip.mp4", "clip-2.mp4"}
    assert not placing.__exit__(KeyError, KeyError(), None)
    assert names(tmp_path) == {"clip.mp4"}
    with files.placed(tmp_path / "clip.mp4", overwrite=True) as path:
        assert path.name == "clip.mp4"


def test_a_picture_may_be_named_and_a_folder_meant(tmp_path: Path) -> None:
    assert placed(tmp_path / "apple.png", 1, False) == (tmp_path, "apple")
    assert placed(tmp_path / "v1.5", 3, False) == (tmp_path / "v1.5", None)
    with pytest.raises(ArgumentError, match="give a folder"):
        placed(tmp_path / "apple.png", 2, False)
    with pytest.raises(ArgumentError, match=r"is a \.png file"):
        placed(tmp_path / "apple.jpg", 1, False)
    (tmp_path / "apple.sheet.png").write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=r"apple\.sheet\.png' exists"):
        placed(tmp_path / "apple.png", 1, False)


@pytest.mark.skipif(os.name == "nt", reason="other rules for names")
def test_long_prompts_make_names_that_a_disk_takes(tmp_path: Path) -> None:
    from timonel.make.generate import slug

    for prompt in ("apple " * 100, "𠀀" * 100, "苹果 " * 90):
        with files.claimed(tmp_path / f"{slug(prompt)}-{2**63 - 1}", ".png", ".sheet.png") as stem:
            for ending in (".png", ".sheet.png"):
                with files.replacing(files.beside(stem, ending)) as temporary:
                    temporary.write_bytes(b"x")


@pytest.mark.parametrize("kind", ["preview", "save_steps"])
def test_step_files_of_a_longer_run_before_do_not_stay_among_the_new_ones(
    tmp_path: Path, kind: str
) -> None:
    noise = tm.SeededNoise([0])

    def go(steps: int, stop: int | None = None) -> None:
        decode = {"decode": lambda x: x.new_zeros(len(x), 3, 8, 8)} if kind == "preview" else {}
        hooks = [getattr(tm, kind)(tmp_path, **decode)]
        if stop:
            hooks.append(tm.stop_when(lambda run: run.step == stop))
        x = tm.sample(
            lambda x, at: x * 0,
            noise(0, _zeros()),
            "euler",
            process=tm.Flow(),
            steps=steps,
            hooks=hooks,
        )
        assert x.shape == (1, 4, 8, 8)

    suffix = "png" if kind == "preview" else "safetensors"
    (tmp_path / f"step-50.{suffix}").write_bytes(b"mine")
    for steps, stop, left in ((5, None, 5), (3, None, 3), (4, None, 4), (4, 2, 2)):
        go(steps, stop)
        assert names(tmp_path) == {
            f"step-50.{suffix}",
            *(f"step-{i:02d}.{suffix}" for i in range(1, left + 1)),
        }


def test_a_saved_run_stays_among_the_step_files_whatever_its_name(tmp_path: Path) -> None:
    noise = tm.SeededNoise([0])

    def go(*hooks: Any) -> None:
        tm.sample(
            lambda x, at: x * 0,
            noise(0, _zeros()),
            "euler",
            process=tm.Flow(),
            steps=4,
            hooks=list(hooks),
        )

    go(lambda run: run.save(tmp_path / f"step-{10 + run.step}.safetensors"))
    saved = names(tmp_path)
    assert len(saved) == 4
    go(tm.save_steps(tmp_path))
    assert names(tmp_path) == saved | {f"step-{i:02d}.safetensors" for i in range(1, 5)}
    assert tm.Run.load(tmp_path / "step-12.safetensors").step == 2


def _zeros():
    import torch

    return torch.zeros(1, 4, 8, 8)
