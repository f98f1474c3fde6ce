"""Law: a killed process leaves nothing half-written, and the next writer removes what it left."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import timonel as tm
from support import nursery
from support.places import environment
from support.tuned_models import brief, mixture
from timonel import files
from timonel.comparison.plan import Plan
from timonel.comparison.store import Outcome, Store
from timonel.errors import ArgumentError
from timonel.tuning import checks
from timonel.tuning.store import MARK
from timonel.tuning.store import FitStore as Fits

__all__ = ["brief"]

CLAIMS = """
import sys, time
from pathlib import Path
from timonel import files
with files.claimed(Path(sys.argv[1]), ".png", ".gif") as stem:
    with files.replacing(files.beside(stem, ".png")) as temporary:
        print("ready", flush=True)
        time.sleep(600)
"""


def child(script: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(path)], stdout=subprocess.PIPE, text=True
    )


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


class Nursery:
    """Processes to be killed; see nursery.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "support.nursery"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            # weights are read in one thread: torch's pool of threads does not survive a fork
            env=environment(
                OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DEACTIVATE_ASYNC_LOAD="1"
            ),
        )  # fmt: skip
        self.chance = random.Random(0)

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line not in ("", "failed"), "what was to be killed has failed"
        return line

    def kill(self, kind: str, path: Path, marks: int, longest: float) -> bool:
        """Kill a process of this kind that writes `path`, up to `longest` s after a random mark.

        False where it was over by then.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {path}\n")
        child, word = int(self.read().removeprefix("child ")), ""
        for _ in range(self.chance.randrange(marks)):
            word = self.read()
            if word == "gone":
                return False
        threading.Event().wait(self.chance.random() * longest)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        while word != "gone":
            word = self.read()
        return True

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


def left(folder: Path) -> list[str]:
    """What is in a folder and has no place there: temporary files, and claims of names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        str(path)
        for path in files
        if path.name.startswith(".") or "is writing this file" in start(path)
    ]


def start(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(80).decode("latin-1")


def native(kills: Nursery, folder: Path, count: int) -> tuple[int, int]:
    right, path = nursery.go_on(nursery.fresh()), folder / "run.safetensors"
    different, orphans = 0, 0
    while count:
        count -= kills.kill("native", path, 60, 0.01)
        if path.is_file():
            different += not torch.equal(nursery.go_on(tm.Run.load(path)), right)
            tm.Run.load(path).save(path)
            orphans += len(left(folder))
    assert [p.name for p in folder.iterdir()] == [path.name]
    return different, orphans


def steered(kills: Nursery, folder: Path, count: int) -> tuple[int, int]:
    """A killed run that goes on in another process makes the picture of a whole run."""
    helm, asked, path = nursery.helm(), nursery.asked(), folder / "run.safetensors"
    right, different, orphans = helm(**asked).images, 0, 0
    while count:
        path.unlink(missing_ok=True)
        count -= kills.kill("steered", path, 9, 0.1)
        run = tm.Run.load(path) if path.is_file() else None
        made = helm(**asked, resume=run, hooks=[tm.checkpoint(path)]).images
        different += not torch.equal(made, right)
        orphans += len(left(folder))
    return different, orphans


def compared(kills: Nursery, folder: Path, count: int) -> tuple[int, int]:
    """A folder whose process was killed several times ends as an undisturbed one."""
    whole, different, orphans, done, paths = folder / "whole", 0, 0, 0, itertools.count()
    nursery.compared(whole, nursery.nothing)
    right = contents(whole)
    while done < count:
        path = folder / f"killed-{next(paths)}"
        for _ in range(min(10, count - done)):
            done += kills.kill("compared", path, 12, 0.3)
        nursery.compared(path, nursery.nothing)
        different += contents(path) != right
        orphans += len(left(path))
    return different, orphans


def contents(folder: Path) -> dict[str, Any]:
    """Of a comparison: the outcome of every run, latents, picture, and the list of files."""
    store = Store(folder)
    found: dict[str, Any] = {
        str(p.relative_to(folder)): None for p in folder.rglob("*") if p.is_file()
    }
    for name, outcome in store.outcomes.items():
        row = {
            key: value
            for key, value in outcome.row().items()
            if key not in ("seconds", "evaluations_saved", "evaluations")
        }
        found[name] = (
            row,
            store.read_latents(name).numpy().tobytes(),
            store.read_pixels(outcome).numpy().tobytes(),
        )
    return found


def tuned(kills: Nursery, folder: Path, count: int) -> tuple[int, int]:
    """A fit that was killed several times goes on and finds what an undisturbed one finds."""
    whole, different, orphans, done, paths = folder / "whole.json", 0, 0, 0, itertools.count()
    nursery.tuned(whole, nursery.nothing)
    right = tm.Sampler.load(whole).compile(mixture(0).process)
    while done < count:
        path = folder / f"killed-{next(paths)}" / "fast.json"
        for _ in range(min(5, count - done)):
            done += kills.kill("tuned", path, 6, 0.1)
        nursery.tuned(path, nursery.nothing)
        made = tm.Sampler.load(path).compile(mixture(0).process)
        same = all(
            torch.equal(getattr(made, k), getattr(right, k))
            for k in ("alpha", "sigma", "time", "x")
        )
        different += not same
        orphans += len(left(path.parent)) + (
            sorted(p.name for p in path.parent.iterdir()) != [path.name]
        )
    return different, orphans


def generated(kills: Nursery, folder: Path, count: int) -> tuple[int, int]:
    """Every picture that is there is whole, and the next call makes the same one."""
    whole, different, orphans, done, paths = folder / "whole", 0, 0, 0, itertools.count()
    nursery.generated(whole, nursery.nothing)
    (right,) = pixels(whole).values()
    while done < count:
        path = folder / f"killed-{next(paths)}"
        for _ in range(min(5, count - done)):
            done += kills.kill("generated", path, 4, 0.4)
        nursery.generated(path, nursery.nothing)
        made = pixels(path)
        different += not made or any(one != right for one in made.values())
        orphans += len(left(path))
    return different, orphans


def pixels(folder: Path) -> dict[str, bytes]:
    """The pictures of a folder, less their sheets; all files are read."""
    found = {}
    for path in folder.rglob("*.*"):
        with Image.open(path) as picture:
            picture.load()
            if path.suffix == ".png" and ".sheet" not in path.name and path.parent == folder:
                found[path.name] = picture.tobytes()
    return found


@pytest.fixture(scope="module")
def kills() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


KILLED = {
    "native": native,
    "steered": steered,
    "compared": compared,
    "tuned": tuned,
    "generated": generated,
}
MANY = {"native": 50, "steered": 50, "compared": 40, "tuned": 40, "generated": 20}


@pytest.mark.parametrize("kind", KILLED)
def test_what_is_killed_a_few_times_is_whole_goes_on_and_leaves_nothing_after_the_next(
    kind: str, kills: Nursery, tmp_path: Path
) -> None:
    assert KILLED[kind](kills, tmp_path, 2) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_what_is_killed_two_hundred_times_is_whole_goes_on_and_leaves_nothing_after_the_next(
    kind: str, kills: Nursery, tmp_path: Path
) -> None:
    assert KILLED[kind](kills, tmp_path, MANY[kind]) == (0, 0)


def test_the_claims_and_files_of_a_dead_process_go_and_those_of_a_living_one_stay(
    tmp_path: Path,
) -> None:
    mine = tmp_path / ".apple-timonel-1-mine.png"
    mine.write_bytes(b"mine")
    process = child(CLAIMS, tmp_path / "apple")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    before = {p.name for p in tmp_path.iterdir()}
    assert len(before) == 4
    with files.claimed(tmp_path / "apple", ".png", ".gif") as stem:
        assert stem.name == "apple-2"
    assert before <= {p.name for p in tmp_path.iterdir()}
    kill(process)
    with files.claimed(tmp_path / "apple", ".png", ".gif") as stem:
        assert stem.name == "apple"
        for ending in (".png", ".gif"):
            with files.replacing(files.beside(stem, ending)) as temporary:
                temporary.write_bytes(b"new")
    assert {p.name for p in tmp_path.iterdir()} == {mine.name, "apple.png", "apple.gif"}


def test_the_umask_is_respected_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        with files.replacing(tmp_path / "x.txt") as temporary:
            temporary.write_text("x")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_one_clear_line_and_the_next_try_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    outcome = Outcome(
        "a", "cell", "done", Plan.of("ghost", sampler="euler", steps=4).cells[0].recipe
    )
    picture, latents = torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArgumentError, match=r"cannot write .*No space left on device"):
        store.save(outcome, latents, picture, None)
    monkeypatch.undo()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    store.save(outcome, latents, picture, None)
    store.keep([outcome])
    assert Store(tmp_path).done("a") == outcome
    store.picture(outcome).unlink()
    assert Store(tmp_path).done("a") is None


def test_a_folder_that_no_fit_made_is_refused_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "fast.json.part"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ArgumentError, match="in the way"):
        checks.target(tmp_path / "fast.json", [4])
    with pytest.raises(ArgumentError, match="in the way"):
        Fits(folder, {})
    (folder / MARK).write_text("")
    Fits(folder, {}).clear()
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]
