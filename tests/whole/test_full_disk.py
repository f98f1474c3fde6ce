"""Law: a full disk is one clear line, nothing is half-written, and the next try succeeds.

Every writer writes over an older file while files cannot grow beyond so many bytes (a limit of the
process), or while a call of the system says that there is no space. The last tests fill a real
disk, a tmpfs of a few kilobytes.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import timonel as tm
from support.fitted_files import made as fitted
from timonel.comparison.rows import export
from timonel.comparison.store import Outcome, Store
from timonel.errors import ArgumentError
from timonel.make.video import write as write_video
from timonel.tuning.gauss_newton import FitState
from timonel.tuning.store import FitStore as Fits
from timonel.tuning.targets import Targets

VP = tm.VP.from_schedule()
NOISE = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
PICTURE = Image.effect_noise((64, 64), 80).convert("RGB")
RECIPE = tm.Recipe(model="emoji", prompt="pizza", seed=1, sampler="euler", steps=2)
OUTCOME = Outcome("a", "cell", "done", RECIPE)


def run(folder: Path) -> Any:
    made = tm.Run(tm.Sampler("dpmpp_2m", steps=4).compile(VP), "v")
    made.start(NOISE)
    made.advance(torch.tanh(made.latents))
    made.save(folder / "run.safetensors")


def store(folder: Path) -> None:
    kept = Store(folder)
    kept.save(OUTCOME, NOISE, torch.rand(3, 48, 48), torch.rand(3, 3, 48, 48))
    kept.keep([OUTCOME])
    assert Store(folder).done("a") is not None


def fits(folder: Path) -> None:
    kept = Fits(folder, {"a": 1})
    kept.keep_targets(Targets((0, 1), torch.rand(2, 4, 16, 16), torch.zeros(2), 32))
    zero = torch.zeros(400, dtype=torch.float64)
    kept.keep(
        4,
        "dpmpp_2m/karras",
        tm.Sampler("euler", steps=4).levels(VP),
        FitState(zero, zero, 1.0, zero),
    )
    assert kept.targets({0, 1}) is not None
    assert kept.read(4, VP) is not None


WRITERS: dict[str, Callable[[Path], Any]] = {
    "run": run,
    "recipe": lambda folder: RECIPE.save(PICTURE, folder / "pizza.png"),
    "fit": lambda folder: fitted("euler", VP).write(folder / "fast.json"),
    "gif": lambda folder: write_video([PICTURE] * 3, folder / "clip.gif"),
    "webp": lambda folder: write_video([PICTURE] * 3, folder / "clip.webp"),
    "mp4": lambda folder: write_video([PICTURE] * 3, folder / "clip.mp4"),
    "report": store,
    "table": lambda folder: export([OUTCOME.row()] * 50, folder / "rows.parquet"),
    "a fit on its way": fits,
}


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def held(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def refused(write: Callable[[Path], Any], folder: Path) -> bool:
    """Whether the writer says in one line that it cannot, with what is not written."""
    try:
        write(folder)
    except ArgumentError as error:
        text = str(error)
        assert "\n" not in text
        assert str(folder) in text
        assert text.startswith("cannot "), text
        return True
    return False


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_cannot_grow_leaves_the_older_one_and_is_said(
    writer: str, tmp_path: Path
) -> None:
    write, anew = WRITERS[writer], tmp_path / "anew"
    write(anew)
    largest = max(len(content) for content in held(anew).values())
    said = 0
    for number, size in enumerate((0, 1, 100, largest // 2, largest - 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with files_end_at(size):
            said += refused(write, folder)
        for name, content in held(folder).items():
            assert len(content) <= size, name
            assert "-timonel-" not in name
        write(folder)  # the next try goes through
        assert held(folder).keys() == held(anew).keys()
        before = held(folder)
        with files_end_at(size):
            refused(write, folder)
        after = held(folder)
        assert after.keys() == before.keys()
        assert all(
            len(after[name]) == len(before[name]) or len(after[name]) <= size for name in after
        )
        write(folder)
    assert said == 5


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_call_that_finds_no_space_is_said_and_leaves_the_older_file(
    writer: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = WRITERS[writer]
    write(tmp_path)
    before = held(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    said = refused(write, tmp_path)
    monkeypatch.undo()
    assert said
    assert held(tmp_path) == before
    write(tmp_path)


# -- a real disk ---------------------------------------------------------------------------------
COARSE = """
import sys
from timonel import tuning
from timonel.comparison import engine
from timonel.tuning import least_squares, targets
# of the samples that others are held to
engine.FIRST, engine.LAST, targets.TRUSTED = 4, 8, 10.0
targets.FIRST = least_squares.FIRST = tuning.FIRST = 4
from timonel.cli import main
sys.exit(main())
"""
FILLED = (
    f"""COARSE = {COARSE!r}
"""
    + """
import subprocess, sys
from pathlib import Path
disk, size, *words = sys.argv[1:]
def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
def go():
    made = subprocess.run([sys.executable, "-W", "ignore", "-c", COARSE, *words],
                          cwd=disk, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    print("status", made.returncode, *made.stderr.strip().splitlines()[-1:])
    files = (p for p in Path(disk).rglob("*") if p.is_file())
    print("files", sorted((str(p.relative_to(disk)), p.stat().st_size) for p in files))
mount(f"size={size}")
go()
mount("remount,size=50m")
go()
"""
)
MINE = ["unshare", "--user", "--map-root-user", "--mount"]


def mountable(folder: Path) -> bool:
    try:
        command = [*MINE, "mount", "-t", "tmpfs", "none", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


COMMANDS = {
    "generate": (["generate", "pizza", "--steps", "2", "--out", "out"], (0, 20, 60)),
    "compare": (
        ["compare", "pizza", "--sampler", "euler", "unipc", "--steps", "3", "-o", "out"],
        (0, 30, 100, 300),
    ),
    "tune": (
        ["tune", "emoji", "--steps", "2", "--seeds", "12", "--minutes", "1", "-o", "out/fast.json"],
        (0, 12, 40),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_ends_a_command_in_one_line_and_the_same_command_goes_on(
    command: str, tmp_path: Path
) -> None:
    if not mountable(tmp_path):
        pytest.skip("no disk can be mounted here")
    words, sizes = COMMANDS[command]
    refusals = 0
    for kilobytes in sizes:
        script = [sys.executable, "-c", FILLED, str(tmp_path), f"{kilobytes or 4}k", *words]
        lines = subprocess.run(
            [*MINE, *script], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        (first, before), (second, after) = lines[0:2], lines[2:4]
        if not first.startswith("status 0"):  # what fits goes through
            refusals += 1
            assert first.startswith("status 2 timonel: cannot "), first
            assert any(said in first for said in ("No space left", "is full")), first
        assert second.startswith("status 0"), second
        for files in (before, after):
            assert "-timonel-" not in files
            assert ", 0)" not in files
    assert refusals >= 2
