"""Law: a process that is killed leaves nothing half-written, and whoever writes next clears away what it left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import timonel as tm
from timonel import files, prediction
from timonel.comparison.plan import Plan
from timonel.comparison.store import Outcome, Store
from timonel.errors import ArgumentError, PredictionError
from timonel.guidance import combine
from timonel.process import Level
from timonel.tuning import checks
from timonel.tuning.store import MARK
from timonel.tuning.store import Store as Fits

RUNS = """
import sys, torch, timonel as tm
from timonel.run import Run
torch.set_num_threads(1)
table = tm.Sampler("dpmpp_2m_sde", steps=400).compile(tm.VP.from_schedule())
run = Run(table, "v", noise=tm.SeededNoise([1]))
run.start(torch.ones(1, 4, 8, 8))
for _ in run.rows():
    run.advance(torch.tanh(run.latents))
    run.save(sys.argv[1])
    print(run.row, flush=True)
"""
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


def go_on(run: Any) -> torch.Tensor:
    for _ in run.rows():
        run.advance(torch.tanh(run.latents))
    return run.result


def killed_runs(folder: Path, count: int) -> None:
    table = tm.Sampler("dpmpp_2m_sde", steps=400).compile(tm.VP.from_schedule())
    whole = tm.Run(table, "v", noise=tm.SeededNoise([1]))
    whole.start(torch.ones(1, 4, 8, 8))
    right, chance, path = go_on(whole), random.Random(0), folder / "run.safetensors"
    for _ in range(count):
        process = child(RUNS, path)
        assert process.stdout is not None
        for _ in range(chance.randrange(1, 60)):
            assert process.stdout.readline()
        threading.Event().wait(chance.random() * 0.01)
        kill(process)
        assert torch.equal(go_on(tm.Run.load(path)), right)
        tm.Run.load(path).save(path)
        assert [p.name for p in folder.iterdir()] == [path.name]


def test_a_killed_run_is_whole_and_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    killed_runs(tmp_path, 2)


@pytest.mark.slow
def test_a_run_killed_fifty_times_is_whole_and_leaves_nothing_after_the_next(tmp_path: Path) -> None:
    killed_runs(tmp_path, 50)


def test_the_claims_and_files_of_a_dead_process_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
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


def test_the_umask_is_respected_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    outcome = Outcome("a", "cell", "done", Plan.of("ghost", sampler="euler", steps=4).cells[0].recipe)
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


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rescaling_a_flat_output_has_its_limit(scale: float) -> None:
    flat = torch.full((2, 4, 4, 4), 0.5)
    assert torch.equal(combine(flat, flat * 0, scale, 0.7), combine(flat, flat * 0, scale))


def test_an_edm_prediction_beyond_unit_variance_is_refused() -> None:
    level = Level(*(torch.tensor(v, dtype=torch.float64) for v in (1.0, 5.0, 0.4)))
    with pytest.raises(PredictionError, match="unit variance"):
        prediction.coefficients("edm", level)
