"""Whoever reads, copies or pickles a run or a scheduler changes nothing, and the copy goes on bit
for bit.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import timonel as tm
from support.copied import X, begun, finished, network
from support.places import environment
from timonel import compat

XL = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "num_train_timesteps": 1000,
}  # fmt: skip
SOLVERS = ("euler", "dpmpp_2m", "unipc", "heun", "dpmpp_2m_sde", "plms")


def over(scheduler: Any, sample: torch.Tensor, times: Any = None) -> torch.Tensor:
    for t in scheduler.timesteps if times is None else times:
        sample = scheduler.step(
            network(sample, t), t, sample, generator=torch.Generator().manual_seed(5)
        ).prev_sample
    return sample


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}
MAKES = {
    **{name: lambda name=name: tm.Scheduler.from_config(XL, sampler=name) for name in SOLVERS},
    **{
        name: lambda name=name: getattr(compat, name).from_config(XL)
        for name in (
            "DPMSolverMultistepScheduler",
            "HeunDiscreteScheduler",
            "DDIMScheduler",
            "LCMScheduler",
        )
    },
    "clip": lambda: compat.DDIMScheduler.from_config({**XL, "clip_sample": True}),
    "flow": lambda: compat.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("done", [0, 3, 6])
def test_a_copied_run_ends_with_the_same_bits_and_so_does_the_run(
    way: str, solver: str, done: int
) -> None:
    want = finished(begun(solver))
    run = begun(solver, done)
    twin = COPIES[way](run)
    assert (twin.row, twin.step, twin.status) == (run.row, run.step, run.status)
    assert torch.equal(finished(twin), want)
    assert run.step == done
    assert torch.equal(finished(run), want)


def test_an_edit_in_place_before_the_copy_reaches_the_base_of_both() -> None:
    def edit(run: tm.Run) -> None:
        if run.step == 2:
            run.latents.add_(0.5)
            kept.append(copy.deepcopy(run))

    kept: list[tm.Run] = []
    want = finished(begun("unipc", hooks=[edit]))
    assert torch.equal(finished(kept[0]), want)


def test_kept_states_and_guidance_travel() -> None:
    run = begun("dpmpp_2m", 4, keep=6)
    twin = pickle.loads(pickle.dumps(run))
    twin.rewind(2)
    assert torch.equal(finished(twin), finished(begun("dpmpp_2m")))


def test_a_hook_that_cannot_be_pickled_is_named_and_still_copied() -> None:
    seen: list[int] = []
    run = begun("euler", 2, hooks=[lambda run: seen.append(run.step)])
    with pytest.raises(tm.TimonelError, match=r"hook '<lambda>'.*run\.save"):
        pickle.dumps(run)
    assert torch.equal(finished(copy.deepcopy(run)), finished(run))
    for hook in (tm.trace(), tm.guard(), tm.preview("previews"), tm.collect(), tm.progress()):
        pickle.dumps(begun("euler", hooks=[hook]) if hook.name == "trace" else hook)


def test_a_pickled_run_goes_on_in_another_process(tmp_path: Path) -> None:
    run = begun("dpmpp_2m_sde", 3)
    (tmp_path / "run.pickle").write_bytes(pickle.dumps(run))
    code = (
        "import pickle, sys, torch; from support import copied; "
        "torch.set_num_threads(int(sys.argv[2]))\n"
        "folder = sys.argv[1]\n"
        "run = pickle.load(open(folder + '/run.pickle', 'rb')); "
        "torch.save(copied.finished(run), folder + '/x.pt')"
    )
    threads = str(torch.get_num_threads())
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), threads], check=True, env=environment()
    )
    assert torch.equal(torch.load(tmp_path / "x.pt"), finished(run))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("make", MAKES)
def test_a_copied_scheduler_goes_on_with_the_same_bits_and_so_does_the_first(
    way: str, make: str
) -> None:
    whole = MAKES[make]()
    whole.set_timesteps(6)
    want = over(whole, X)
    first = MAKES[make]()
    first.set_timesteps(6)
    unused = COPIES[way](first)
    times = list(first.timesteps)
    middle = over(first, X, times[:4])
    twin = COPIES[way](first)
    assert list(map(float, twin.timesteps)) == list(map(float, times))
    assert twin.config == first.config
    for scheduler in (twin, first):
        assert torch.equal(over(scheduler, middle, times[4:]), want)
    assert torch.equal(over(unused, X), want)
    after = COPIES[way](first)
    after.set_timesteps(6)
    assert torch.equal(over(after, X), want)


@pytest.mark.parametrize("way", COPIES)
def test_a_copied_list_is_a_list_and_drives_what_it_drove(way: str) -> None:
    scheduler = MAKES["euler"]()
    scheduler.set_timesteps(6)
    listed = COPIES[way](scheduler.timesteps)
    assert list(map(float, listed)) == list(map(float, scheduler.timesteps))
    assert scheduler.run.row == 0
    half = COPIES[way](scheduler.timesteps[3:])
    assert list(map(float, half)) == list(map(float, scheduler.timesteps))[3:]


def test_a_pickled_branch_goes_on_inside_its_pipeline() -> None:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    kept: list[Any] = []

    def keep(run: tm.Run) -> None:
        if run.step == 2 and not kept:
            kept.extend([pickle.dumps(run.branch()), copy.deepcopy(run.branch())])

    def call(**more: Any) -> torch.Tensor:
        given = {
            "steps": 4,
            "seeds": [7],
            "sampler": "dpmpp_2m/karras",
            "guidance": 4.0,
            "output_type": "latent",
        }
        images: torch.Tensor = helm("red apple", **given, **more).images
        return images

    want = call()
    assert torch.equal(call(hooks=[keep]), want)
    assert torch.equal(call(resume=pickle.loads(kept[0])), want)
    assert torch.equal(call(resume=kept[1]), want)


def test_what_a_run_keeps_changes_only_while_no_other_thread_copies_it() -> None:
    run = tm.Run(tm.Sampler("euler", steps=6).compile(tm.VP.from_schedule()), "epsilon", keep=2)
    held: list[bool] = []

    class Kept(dict[int, Any]):
        def __setitem__(self, step: int, kept: Any) -> None:
            held.append(run._change._is_owned())
            super().__setitem__(step, kept)

    run._checkpoints.points = Kept()
    run.start(torch.zeros(1, 1))
    for _ in run.rows():
        run.advance(run.latents)
    assert held == [True] * 5
