"""Laws of a fit that was killed: the same call goes on where it was, and finds what it would have
found.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import timonel as tm
from support.places import environment
from support.tuned_models import START, brief, mixture
from timonel.core.process import Level
from timonel.tuning import fit_model
from timonel.tuning.gauss_newton import FitState
from timonel.tuning.store import FitStore

__all__ = ["brief"]
pytestmark = [
    pytest.mark.usefixtures("brief"),
    pytest.mark.filterwarnings("ignore:.*seeds for.*corrections"),
]
SCRIPT = """
import sys, time, warnings
import torch
torch.set_num_threads(1)
from timonel.tuning import fit_model, held_out
from support.tuned_models import START, mixture
warnings.simplefilter("ignore")
held_out.USUAL, held_out.GOALS = (START,), ()

def told(message):
    print(message, flush=True)
    if "iteration 2" in message:
        time.sleep(600)  # to be killed here

fit_model(
    mixture(0), steps=3, start=START, method="differences", iterations=4, out=sys.argv[1], log=told
)
"""
FIT = {"steps": 3, "start": START, "method": "differences", "iterations": 4}


def test_a_fit_that_was_killed_goes_on_and_finds_the_same(tmp_path: Path) -> None:
    whole = fit_model(mixture(0), **FIT)  # type: ignore[arg-type]
    out = tmp_path / "fast.json"
    script = tmp_path / "fitting.py"
    script.write_text(SCRIPT, "utf-8")
    with subprocess.Popen(
        [sys.executable, str(script), str(out)], env=environment(OMP_NUM_THREADS="1")
    ) as child:
        state = tmp_path / "fast.json.part" / "3.json"
        ends = time.monotonic() + 240
        while not state.is_file() or json.loads(state.read_text("utf-8"))["iteration"] < 2:
            assert child.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    told: list[str] = []
    found = fit_model(mixture(0), out=out, log=told.append, **FIT)  # type: ignore[arg-type]
    assert "3 steps: going on at iteration 2" in told
    assert "18 converged samples from before" in told
    assert not any("targets:" in line for line in told)
    assert found.files == [out]
    assert not (tmp_path / "fast.json.part").exists()
    one, other = (
        tm.Sampler.of(s).compile(mixture(0).process) for s in (whole.samplers[3], str(out))
    )
    for name in ("alpha", "sigma", "time", "x"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert found.outcomes[0].held_tuned == whole.outcomes[0].held_tuned
    once, twice = (made.samplers[3].fitted.provenance.calls for made in (whole, found))  # type: ignore[union-attr]
    assert (
        once <= twice < 1.3 * once
    )  # what was spent before the kill counts; one run more tells how long runs take


def test_ctrl_c_leaves_what_the_same_call_goes_on_with(tmp_path: Path) -> None:
    def stop(message: str) -> None:
        if "iteration 2" in message:
            raise KeyboardInterrupt

    out, told = tmp_path / "fast.json", list[str]()
    fit_model(mixture(0), out=out, log=stop, **FIT)  # type: ignore[arg-type]
    assert (tmp_path / "fast.json.part").is_dir()
    fit_model(mixture(0), out=out, log=told.append, **FIT)  # type: ignore[arg-type]
    assert "3 steps: going on at iteration 2" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.json"]


def test_a_fit_that_goes_on_keeps_time_for_what_follows_it(tmp_path: Path) -> None:
    """What follows takes two seconds here, and one is left: no iteration is begun."""

    def stop(message: str) -> None:
        if "iteration 2" in message:
            raise KeyboardInterrupt

    given, told = {**FIT, "out": tmp_path / "fast.json", "iterations": None}, list[str]()
    fit_model(mixture(0), log=stop, **given)  # type: ignore[arg-type]
    slow = mixture(0)
    quick = slow.denoise

    def denoise(x: Tensor, level: Level) -> Tensor:
        time.sleep(0.1)
        return quick(x, level)

    slow.denoise = denoise
    found = fit_model(slow, log=told.append, minutes=0.02, **given)  # type: ignore[arg-type]
    assert "3 steps: going on at iteration 2" in told
    assert not any("iteration 3" in line for line in told)
    assert found.files == [tmp_path / "fast.json"]


@pytest.mark.parametrize("other", ["network", "noise", "samples", "start"])
def test_what_is_left_of_another_fit_is_not_taken_up(other: str, tmp_path: Path) -> None:
    def stop(message: str) -> None:
        if "iteration 2" in message:
            raise KeyboardInterrupt

    out, told = tmp_path / "fast.json", list[str]()
    fit_model(mixture(0, 12), out=out, log=stop, **FIT)  # type: ignore[arg-type]
    other_noise = mixture(0, 12)
    other_noise.x = other_noise.x.flip(0)
    model = {
        "network": mixture(1, 12), "noise": other_noise, "samples": mixture(0, 15),
        "start": mixture(0, 12),
    }[other]  # fmt: skip
    more = {**FIT, "iterations": 1, **({"start": "dpmpp_2m/lam"} if other == "start" else {})}
    with pytest.raises(KeyboardInterrupt):
        fit_model(model, out=out, log=_until_targets(told), **more)  # type: ignore[arg-type]
    assert "targets: " in told[-1]


def _until_targets(told: list[str]):  # type: ignore[no-untyped-def]
    def tell(message: str) -> None:
        told.append(message)
        if "targets: " in message or "from before" in message:
            raise KeyboardInterrupt

    return tell


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"key": 1}', "null"])
def test_a_state_that_cannot_be_read_is_begun_anew(broken: str, tmp_path: Path) -> None:
    store, model = FitStore(tmp_path / "x.part", {"a": 1}), mixture(0, 12)
    grid = tm.Sampler(START, steps=3).levels(model.process)
    theta = torch.zeros(4, dtype=torch.float64)
    state = FitState(
        theta, theta + 1, 0.5, theta, torch.eye(4, dtype=torch.float64), held=[(0, 0.7), (1, 0.5)]
    )
    store.keep(3, START, grid, state)
    known = store.read(3, model.process)
    assert known is not None
    assert (known[0], known[2].held, known[2].error) == (START, state.held, 0.5)
    assert torch.equal(known[2].best, state.best)
    assert torch.equal(known[1].sigma, grid.sigma)
    (tmp_path / "x.part" / "3.json").write_text(broken, "utf-8")
    (tmp_path / "x.part" / "targets.safetensors").write_text(broken, "utf-8")
    assert store.read(3, model.process) is None
    assert store.targets(set(range(12))) is None
    assert FitStore(tmp_path / "x.part", {"a": 2}).read(3, model.process) is None
