"""Law: a result does not depend on where the run was killed, saved, resumed, rewound or paused. Bit
for bit.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import timonel as tm
from support.models import MAINLY, VARIANTS, label
from support.places import environment
from support.resuming import STEPS, advance, finish, fresh, path
from timonel.core import saving
from timonel.core.hook import adapt
from timonel.core.process import VP
from timonel.core.run import Run
from timonel.errors import ArgumentError, RunError

EVERY = pytest.mark.parametrize("variant", MAINLY, ids=label)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, int]:
    """A folder of saved runs whose process was killed at a random moment."""
    folder, seed = tmp_path_factory.mktemp("killed"), random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    process = subprocess.Popen(
        [sys.executable, "-m", "support.resuming", str(folder), str(seed)],
        stdout=subprocess.PIPE, text=True, env=environment(OMP_NUM_THREADS="1"),
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(chance.randrange(10, len(VARIANTS) * STEPS)):
        assert process.stdout.readline(), f"the worker ended by itself (seed {seed})"
    time.sleep(chance.random() * 0.01)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return folder, seed


@EVERY
def test_a_killed_run_continues_bit_for_bit(variant, killed):
    folder, seed = killed
    run = Run.load(path(folder, variant))
    assert torch.equal(finish(run), finish(fresh(variant))), f"seed {seed}, row {run.row}"
    assert run.status == "done"


def test_a_kill_leaves_no_file_half_written(killed):
    folder, seed = killed
    names = {path(folder, v).name for v in VARIANTS}
    assert names <= {f.name for f in folder.iterdir()}, f"seed {seed}"
    for name in names:
        Run.load(folder / name)


@EVERY
def test_every_row_can_be_saved_and_loaded(variant, tmp_path):
    """Inner rows of two-call steps and the finished run included."""
    whole, run = finish(fresh(variant)), fresh(variant)
    while True:
        run.save(tmp_path / "run.safetensors")
        loaded = Run.load(tmp_path / "run.safetensors")
        assert (loaded.row, loaded.step) == (run.row, run.step)
        assert torch.equal(finish(loaded), whole)
        if not run.proceed():
            break
        advance(run)
    assert not [f for f in tmp_path.iterdir() if f.name != "run.safetensors"]


@pytest.mark.parametrize("keep", [0, 1, 3, 50])
@EVERY
def test_a_rewound_run_makes_the_same_bits(variant, keep):
    """With `keep` from the state in memory, without it computed again from the start."""
    whole, run = finish(fresh(variant)), fresh(variant, keep=keep)
    wanted = []
    for row in run.rows():
        advance(run)
        if run.table.ends_step(row):
            wanted.append(run.latents.clone())
        if run.step == 4:
            break
    run.rewind(2)
    rows = run.rows()
    row = next(rows)
    if keep >= 3:
        assert run.step == 2
        assert torch.equal(run.latents, wanted[1])
    while run.step < 2:
        advance(run)
        row = next(rows)
    assert row == run.table.first_row(2)
    assert torch.equal(run.latents, wanted[1])
    assert torch.equal(finish(run), whole)
    run.rewind(0)
    assert torch.equal(finish(run), whole)


def test_a_rewind_goes_no_further_than_the_run():
    run = fresh(("euler", {}))
    advance(run)
    for step in (2, -1, 1.0, None):
        with pytest.raises(RunError, match="cannot rewind to step"):
            run.rewind(step)
    unstarted = Run(run.table, "v")
    with pytest.raises(RunError, match="not started"):
        unstarted.rewind(0)


@EVERY
def test_a_branch_is_independent(variant):
    whole, run = finish(fresh(variant)), fresh(variant, keep=2)
    for _ in range(3):
        advance(run)
    twin = run.branch()
    assert torch.equal(twin.latents, run.latents)
    twin.latents.add_(1.0)
    moved = finish(twin)
    assert torch.equal(finish(run), whole)
    assert not torch.equal(moved, whole)
    twin.rewind(0)
    assert torch.equal(finish(twin), whole)


# -- control from another thread ---------------------------------------------------------------
def driven(run: Run, pace: float = 0.002) -> threading.Thread:
    """A thread that drives the run."""

    def drive() -> None:
        for _ in run.rows():
            time.sleep(pace)
            advance(run)

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    return thread


def wait(condition: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


@pytest.mark.parametrize(
    "variant", [("euler", {}), ("unipc", {}), ("edm", {}), ("dpmpp_2m_sde", {})], ids=label
)
def test_pause_resume_and_rewind_from_another_thread_leave_the_bits(variant):
    whole, run = finish(fresh(variant)), fresh(variant)
    go = threading.Event()
    run.hooks = [adapt(lambda run: run.step != 2 or go.wait(20))]
    thread = driven(run)
    wait(lambda: run.step >= 2)
    run.pause()
    go.set()
    assert run.status == "paused"
    wait(
        lambda: not run.firing and run._flight is None
    )  # the row under way when the pause came is still finished
    held = run.row
    time.sleep(0.1)
    assert run.row == held
    assert thread.is_alive()
    run.rewind(1)
    run.resume()
    thread.join(20)
    assert not thread.is_alive()
    assert run.status == "done"
    assert torch.equal(run.result, whole)


def test_stop_from_another_thread_ends_at_the_next_row_with_the_denoised_prediction():
    run = fresh(("heun", {}))
    run.pause()
    thread = driven(run)
    time.sleep(0.01)
    assert run.row == 0
    run.resume()
    wait(lambda: run.row >= 2)
    run.stop("enough")
    thread.join(20)
    assert not thread.is_alive()
    assert (run.status, run.reason) == ("stopped", "enough")
    assert run.row < run.table.nfe
    assert torch.equal(run.result, run.denoised)


def test_stop_ends_a_paused_run():
    run = fresh(("euler", {}))
    run.pause()
    thread = driven(run)
    time.sleep(0.02)
    run.stop()
    thread.join(20)
    assert run.status == "stopped"
    assert run.row == 0


def test_a_stopped_run_can_be_rewound_and_finished():
    run = fresh(("unipc", {}))
    for _ in run.rows():
        advance(run)
        if run.step == 3:
            run.stop()
    assert run.status == "stopped"
    run.rewind(2)
    assert torch.equal(finish(run), finish(fresh(("unipc", {}))))


# -- what is refused ---------------------------------------------------------------------------
def test_the_order_of_calls_is_checked():
    run = Run(fresh(("euler", {})).table, "v")
    for call in (lambda: run.latents, lambda: run.save("x"), lambda: run.denoised):
        with pytest.raises(RunError, match=r"not started|no prediction"):
            call()
    with pytest.raises(RunError, match="cannot advance a run that is new"):
        run.advance(torch.ones(1))
    run = fresh(("euler", {}))
    with pytest.raises(RunError, match="already started"):
        run.start(torch.ones(2, 4, 6, 6))
    finish(run)
    with pytest.raises(RunError, match="cannot advance a run that is done"):
        advance(run)


def test_files_that_are_not_saved_runs_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ArgumentError, match=r"no saved run at .*gone"):
        Run.load(tmp_path / "gone.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ArgumentError, match="not a saved run"):
        Run.load(tmp_path / "text")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ArgumentError, match="format None"):
        Run.load(tmp_path / "other.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "broken.safetensors", metadata={"timonel": "{"})
    with pytest.raises(ArgumentError, match="not a saved run"):
        Run.load(tmp_path / "broken.safetensors")
    fresh(("heun", {})).save(tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArgumentError, match="not a saved run"):
        Run.load(tmp_path / "cut.safetensors")
    bare = json.dumps({"format": saving.FORMAT})
    save_file({"x": torch.ones(1)}, tmp_path / "bare.safetensors", metadata={"timonel": bare})
    with pytest.raises(ArgumentError, match="not a saved run"):
        Run.load(tmp_path / "bare.safetensors")


def test_a_save_that_cannot_be_written_says_so_and_keeps_the_old_file(tmp_path, monkeypatch):
    run, target = fresh(("euler", {})), tmp_path / "run.safetensors"
    run.save(target)
    before = target.read_bytes()
    advance(run)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ArgumentError, match=r"cannot write .*No space left"):
        run.save(target)
    assert target.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["run.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="cannot write"):
        run.save(tmp_path / "file" / "run.safetensors")


def test_what_a_file_cannot_hold_has_to_be_given_again(tmp_path):
    target = tmp_path / "run.safetensors"

    def own(row, like):
        return torch.full_like(like, 0.1 * row)

    table = tm.Sampler("ddpm", steps=3).compile(tm.VP.from_schedule())
    run = Run(table, "v", noise=own)
    run.start(torch.ones(1, 4, 6, 6))
    run.save(target)
    with pytest.raises(ArgumentError, match="noise="):
        Run.load(target)
    assert torch.equal(finish(Run.load(target, noise=own)), finish(run))

    guidance = tm.cfg([3.0, 2.0, 1.0], until=0.5)
    run = Run(table, "v", noise=own, shape=lambda clean: clean.clamp(-1, 1), guidance=guidance)
    run.start(torch.ones(1, 4, 6, 6))
    run.save(target)
    with pytest.raises(ArgumentError, match="shape="):
        Run.load(target, noise=own)
    loaded = Run.load(target, noise=own, shape=run.shape)
    assert loaded.guidance == run.guidance
    assert torch.equal(finish(loaded), finish(run))


def test_a_stopped_run_goes_on_where_it_stopped_after_resume():
    whole = tm.begin(torch.ones(1, 4), "unipc", process=VP.from_schedule(), steps=6)
    parts = tm.begin(torch.ones(1, 4), "unipc", process=VP.from_schedule(), steps=6)
    for _ in tm.iterate(whole, lambda x, at: x * 0.5):
        pass
    for run in tm.iterate(parts, lambda x, at: x * 0.5):
        if run.step == 3:
            run.stop("a break")
    assert (parts.status, parts.step) == ("stopped", 3)
    parts.resume()
    for _ in tm.iterate(parts, lambda x, at: x * 0.5):
        pass
    assert parts.status == "done"
    assert torch.equal(whole.result, parts.result)


def test_a_rewind_while_paused_shows_at_once():
    run = tm.begin(torch.ones(1, 4), "euler", process=VP.from_schedule(), steps=6, keep=6)
    seen = []

    def control():
        while run.status != "paused" or run.step < 4:
            time.sleep(0.001)
        run.rewind(2)
        while run.step != 2:
            time.sleep(0.001)
        seen.append(run.step)
        run.resume()

    thread = threading.Thread(target=control)
    thread.start()
    for _ in tm.iterate(run, lambda x, at: x * 0.5):
        if run.step == 4 and not seen:
            run.pause()
    thread.join()
    assert seen == [2]
    assert run.status == "done"
    assert run.advances == 8
