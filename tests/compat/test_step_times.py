"""Which row a step of compat means where its time is not the next one of a list, held against
diffusers' classes.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import timonel as tm
import timonel.compat as compat
from support import tiny
from timonel.errors import ArgumentError, RunError
from timonel.pipelines.session import Request

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LIBRARIES = (diffusers, compat)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(
        1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def network(x: Tensor, t: Any) -> Tensor:
    return 0.9 * x + 0.1 * torch.tanh(x) * (1 + float(t) / 1000)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def pair(name: str, steps: int | None, **flags: Any) -> tuple[Any, Any]:
    both = tuple(getattr(library, f"{name}Scheduler")(**{**SD, **flags}) for library in LIBRARIES)
    for scheduler in both:
        if steps is not None:
            scheduler.set_timesteps(steps)
    return both


def quiet(monkeypatch: pytest.MonkeyPatch, theirs: Any, ours: Any) -> None:
    """No noise in either, from the next set_timesteps on."""
    monkeypatch.setattr(
        sys.modules[type(theirs).__module__], "randn_tensor", lambda shape, **_: torch.zeros(shape)
    )
    ours.session.noise = lambda row, like: torch.zeros_like(like)


# -- time and sample are all -----------------------------------------------------------------------
@pytest.mark.parametrize("flags", [
    {"clip_sample": False}, {"clip_sample": False, "set_alpha_to_one": False},
    {"clip_sample": True},
    {"clip_sample": False, "prediction_type": "v_prediction", "steps_offset": 1},
    {"clip_sample": False, "timestep_spacing": "trailing"},
])  # fmt: skip
@pytest.mark.parametrize("steps", [7, 50])
def test_ddim_steps_from_any_time_in_any_order(flags: dict[str, Any], steps: int) -> None:
    theirs, ours = pair("DDIM", steps, **flags)
    listed = set(ours.timesteps.tolist()) if flags.get("timestep_spacing") else set()
    times = random.Random(steps)
    for k in range(25):
        t = times.choice([times.randrange(1000), 0, 999, ours.timesteps[k % steps].item()])
        if t in listed:  # where diffusers leaves its own list
            continue
        more = {"use_clipped_model_output": bool(k % 2)} if flags["clip_sample"] else {}
        x, out = noise(k), network(noise(k), t)
        want, got = (
            s.step(out, torch.tensor(t) if k % 3 else t, x, **more) for s in (theirs, ours)
        )
        assert far(got.prev_sample, want.prev_sample) < 2e-5, (t, k)
        assert far(got.pred_original_sample, want.pred_original_sample) < 2e-5


@pytest.mark.parametrize("steps", [None, 20])
def test_ddpm_steps_in_any_order(steps: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair("DDPM", None, clip_sample=False)
    quiet(monkeypatch, theirs, ours)
    for scheduler in (theirs, ours) if steps else ():
        scheduler.set_timesteps(steps)
    times = random.Random(1)
    for k in range(12):
        t = times.choice(ours.timesteps.tolist())
        want, got = (s.step(network(noise(k), t), t, noise(k)).prev_sample for s in (theirs, ours))
        assert far(got, want) < 2e-5, t


def test_ddpm_steps_from_a_time_off_its_list_by_its_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    """From t to t - 1000 // N by eq. 7 of arXiv 2006.11239; diffusers' class has no next entry
    there.
    """
    theirs, ours = pair("DDPM", 20, clip_sample=False)
    quiet(monkeypatch, theirs, ours)
    with pytest.raises(IndexError):
        theirs.step(noise(), 333, noise())
    bars = theirs.alphas_cumprod.double()
    for t in (333, 12):
        x = noise()
        out = network(x, t)
        bar, to = bars[t], bars[t - 50] if t >= 50 else torch.ones(()).double()
        clean = (x - (1 - bar).sqrt() * out) / bar.sqrt()
        want = (
            to.sqrt() * (1 - bar / to) / (1 - bar) * clean
            + (bar / to).sqrt() * (1 - to) / (1 - bar) * x
        )
        assert far(ours.step(out, t, x).prev_sample, want) < 1e-6


def test_noise_of_steps_in_any_order_is_fresh_and_that_of_the_generator() -> None:
    _, ours = pair("DDIM", 10)
    seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, again = (
        ours.step(noise(1), 455, noise(), eta=1.0, generator=g).prev_sample for g in seeded
    )
    assert torch.equal(first, again)
    assert not torch.equal(
        ours.step(noise(1), 455, noise(), eta=1.0, generator=seeded[0]).prev_sample, first
    )
    calm = ours.step(
        noise(1), 455, noise()
    ).prev_sample  # another eta, which diffusers takes at every step
    theirs, _ = pair("DDIM", 10)
    assert far(calm, theirs.step(noise(1), 455, noise()).prev_sample) < 2e-6


def test_a_loop_may_take_numbers_of_its_own_and_be_left_half_way() -> None:
    theirs, ours = pair("DDIM", 20, clip_sample=False)
    ends = []
    for scheduler in (theirs, ours):
        x = noise()
        for times in (range(995, 600, -50), range(995, -1, -50), scheduler.timesteps.tolist()):
            for t in times:
                x = scheduler.step(network(x, t), t, x).prev_sample
        ends.append(x)
    assert far(ends[1], ends[0]) < 1e-5
    assert ours.run.status == "done"
    assert ours.run.steps == 20


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_several_samples_a_turn_leave_the_run_of_the_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As inversion by fixed points and null-text optimisation step, beside the sample that the loop
    turns by.
    """
    theirs, ours = pair(name, None, clip_sample=False)
    quiet(monkeypatch, theirs, ours)
    ends, turns = [], 0
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(8)
        x, y, z = noise(1), noise(2), noise(3)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
            y = scheduler.step(network(y, t), t, y).prev_sample
            if name == "DDIM":
                z = scheduler.step(network(z, t), max(0, int(t) - 31), z).prev_sample
            turns += scheduler is ours
            if scheduler is ours:
                assert torch.equal(ours.run.latents, x)
                assert ours.run.step == turns
        ends.append((x, y, z))
    assert turns == 8
    for got, want in zip(ends[1], ends[0], strict=True):
        assert far(got, want) < 2e-5
    for t in ours.timesteps:
        ours.step(noise(), t, noise())
        with pytest.raises(ArgumentError, match="eta"):
            ours.step(noise(), t, noise(), eta=2.0)
        break


def test_a_loop_with_two_samples_is_rewound_and_stopped_as_any() -> None:
    _, ours = pair("DDIM", 6, clip_sample=False)
    ours.session.request = Request(keep=6)
    ours.set_timesteps(6)
    x, y, shown = noise(1), noise(2), []
    for t in ours.timesteps:
        shown.append(int(t))
        x = ours.step(network(x, t), t, x).prev_sample
        y = ours.step(network(y, t), t, y).prev_sample
        if len(shown) == 3:
            ours.run.rewind(1)
    times = ours.timesteps.tolist()
    assert shown == [*times[:3], *times[1:]]


# -- journeys off the list -------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep"])
@pytest.mark.parametrize("first", [990, 905, 333, 4])
def test_a_journey_off_the_list_goes_on_by_the_cleaner_levels_of_the_list(
    name: str, first: int
) -> None:
    """As diffusers' class does with that list."""
    theirs, ours = pair(name, None)
    ours.set_timesteps(20)
    times = [first, *(int(t) for t in ours.timesteps.tolist() if t < first - 1e-3)]
    ours.timesteps = torch.tensor(
        [int(t) for t in ours.timesteps.tolist()]
    )  # whole numbers, as diffusers takes them
    theirs.set_timesteps(timesteps=times)
    ends = []
    for scheduler in (theirs, ours):
        x = noise()
        for t in times:
            t = torch.tensor(float(t))
            seen = scheduler.scale_model_input(x, t)
            x = scheduler.step(network(seen, t), t, x).prev_sample
        ends.append(x)
    assert far(ends[1], ends[0]) < 2e-5
    assert ours.run.status == "done"
    assert ours.run.steps == len(times)


@pytest.mark.parametrize("name", [
    "DEISMultistep", "UniPCMultistep", "SASolver", "DPMSolverSinglestep", "LMSDiscrete",
    "EulerAncestralDiscrete", "LCM", "TCD",
])  # fmt: skip
def test_every_class_of_one_call_begins_off_its_list(name: str) -> None:
    """The first step arrives at the next cleaner level: with the exact answer for one clean sample
    it stays on it.
    """
    _, ours = pair(name, None)
    ours.set_timesteps(12)
    clean = noise(5)
    for first in (int(ours.timesteps[4]) + 7, int(ours.timesteps[-1]) + 3):
        level = ours._coordinates.at_time(torch.tensor([float(first)], dtype=torch.float64))
        x = float(level.alpha) * clean + float(level.sigma) * noise(6)
        seen = ours.scale_model_input(x, first)
        scale = float((seen / x).mean())
        alpha, sigma = float(level.alpha) * scale, float(level.sigma) * scale
        x = ours.step((seen - alpha * clean) / sigma, first, x).prev_sample
        run = ours.run
        assert run.row == 1
        assert run.level.ratio < float(level.ratio)
        assert far(run.denoised, clean) < 1e-5
        if not run.table.stochastic and run.row < run.table.nfe:
            assert far(x, run.level.alpha * clean + run.level.sigma * noise(6)) < 1e-5
        ours.set_timesteps(12)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize(
    "name", ["DEISMultistep", "UniPCMultistep", "DPMSolverMultistep", "SASolver"]
)
def test_a_journey_from_above_the_list_has_all_of_its_levels(name: str, steps: int) -> None:
    """With a step more than the list, and the orders of the list that begins at that time."""
    (_, ours), (_, listed) = (pair(name, None, timestep_spacing="leading") for _ in range(2))
    ours.set_timesteps(steps)
    times = [999, *(t for t in ours.timesteps.tolist() if t < 999)]
    listed.set_timesteps(timesteps=times)
    ends = []
    for scheduler in (listed, ours):
        x = noise()
        for t in times:
            x = scheduler.step(
                network(x, t), t, x, generator=torch.Generator().manual_seed(0)
            ).prev_sample
        ends.append(x)
    assert ours.run.status == "done"
    assert ours.run.steps == len(times)
    assert far(ends[1], ends[0]) < 1e-6


def test_a_time_below_the_list_moves_to_its_end() -> None:
    """diffusers' DEIS steps from its last level instead, whatever the time: from 39 to 0 where the
    sample is at 0.
    """
    theirs, ours = pair("DEISMultistep", 25)
    x = noise()
    moved = [far(s.step(network(x, 0), 0, x).prev_sample, x) for s in (theirs, ours)]
    assert moved[0] == pytest.approx(0.139, abs=0.005)
    assert moved[1] < 1e-6


@pytest.mark.parametrize("first", [777, 35, 19])
def test_pndm_counts_back_from_any_time(first: int) -> None:
    ends = []
    for scheduler in pair("PNDM", 20, skip_prk_steps=True):
        x, times = noise(), list(range(first, -1, -50))
        if len(times) > 1:
            times.insert(1, times[1])
        for t in times:
            x = scheduler.step(network(x, t), t, x).prev_sample
        ends.append(x)
    assert far(ends[1], ends[0]) < 1e-5


def test_what_cannot_begin_off_the_list_says_why() -> None:
    _, heun = pair("HeunDiscrete", 10)
    with pytest.raises(RunError, match=r"calls the network twice a step.*set_timesteps\(timesteps"):
        heun.step(noise(), 500, noise())
    _, ddim = pair("DDIM", 10)
    for t in (1000, -1, 5000):
        with pytest.raises(RunError, match=r"which this model does not have.*\[0, 999\]"):
            ddim.step(noise(), t, noise())
    _, unipc = pair("UniPCMultistep", 10)
    unipc.step(noise(), unipc.timesteps[0], noise())
    with pytest.raises(RunError, match="not in scheduler"):
        unipc.step(noise(), 777, noise())
    with pytest.raises(RunError, match=r"cannot be left out|again"):
        unipc.step(noise(), unipc.timesteps[5], noise())
    drop_in = tm.Scheduler.from_config(
        diffusers.DDIMScheduler(**SD).config, sampler="ddim"
    )  # which is stricter
    drop_in.set_timesteps(10)
    with pytest.raises(RunError, match="not in scheduler"):
        drop_in.step(noise(), 333, noise())


def test_a_journey_off_the_list_is_saved_branched_and_rewound(tmp_path: Path) -> None:
    _, ours = pair("DDIM", 10, clip_sample=False)
    x = noise()
    for t in (955, 855, 755):
        x = ours.step(network(x, t), t, x).prev_sample
    twin, branch = copy.deepcopy(ours), ours.run.branch()
    ours.run.save(tmp_path / "a.run")
    loaded = tm.Run.load(tmp_path / "a.run")
    want = x
    for t in range(655, -1, -100):
        want = ours.step(network(want, t), t, want).prev_sample
    assert torch.equal(twin.step(network(x, 655), 655, x).prev_sample, ours_next(x))
    for run in (branch, loaded):
        for _ in run.rows():
            run.advance(network(run.latents, run.level.time))
        assert far(run.result, want) < 1e-6
    assert ours.run.steps == 10
    ours.run.rewind(0)


def ours_next(x: Tensor) -> Tensor:
    _, ours = pair("DDIM", 10, clip_sample=False)
    sample: Tensor = ours.step(network(x, 655), 655, x).prev_sample
    return sample


# -- beginning anew --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["EulerDiscrete", "DPMSolverMultistep", "HeunDiscrete", "UniPCMultistep"]
)
def test_a_place_that_is_taken_away_begins_anew(name: str) -> None:
    ends = []
    for scheduler in pair(name, 8):
        x = noise() * scheduler.init_noise_sigma
        for k in range(2):
            for t in scheduler.timesteps[: 6 if k == 0 else 15]:
                x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
            if k == 0:
                scheduler._step_index = None
                if hasattr(scheduler, "lower_order_nums") and type(scheduler).__module__.startswith(
                    "diffusers"
                ):
                    scheduler.lower_order_nums, scheduler.model_outputs = 0, [None, None]
                    scheduler.last_sample = None
                x = noise() * scheduler.init_noise_sigma
        ends.append(x)
    assert far(ends[1], ends[0]) < 2e-5


def test_two_samples_a_turn_whose_places_are_taken_away() -> None:
    """What makes diffusers' Euler step two samples in one loop."""
    ends, turns = [], 0
    for scheduler in pair("EulerDiscrete", 8):
        x, y = (noise(k) * scheduler.init_noise_sigma for k in (1, 2))
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
            scheduler._step_index = None
            y = scheduler.step(network(scheduler.scale_model_input(y, t), t), t, y).prev_sample
            scheduler._step_index = None
            turns += 1
        ends.append((x, y))
    assert turns == 16
    assert max(far(a, b) for a, b in zip(ends[1], ends[0], strict=True)) < 2e-5


def test_a_place_is_read_and_not_chosen() -> None:
    _, ours = pair("EulerDiscrete", 8)
    ours._step_index = None
    assert ours._step_index is ours.step_index is None
    ours.step(noise(), ours.timesteps[0], noise())
    ours._step_index = 1
    with pytest.raises(RunError, match=r"_step_index=0 cannot move it.*None"):
        ours._step_index -= 1


# -- PNDM ------------------------------------------------------------------------------------------
def loop(scheduler: Any, times: Iterable[Any], step: Any, x: Tensor) -> Tensor:
    for t in times:
        x = step(network(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize(
    "flags", [{}, {"set_alpha_to_one": True}, {"steps_offset": 1}, {"skip_prk_steps": True}]
)
def test_the_two_loops_of_pndm_make_what_diffusers_makes(flags: dict[str, Any]) -> None:
    ends = []
    theirs, ours = pair("PNDM", 10, **flags)
    assert ours.prk_timesteps.tolist() == [int(t) for t in theirs.prk_timesteps]
    assert np.array_equal(ours.plms_timesteps, theirs.plms_timesteps)
    for scheduler in (theirs, ours):
        assert scheduler.counter == 0
        assert scheduler.ets == []
        x = loop(scheduler, scheduler.prk_timesteps, scheduler.step_prk, noise())
        assert scheduler.counter == len(theirs.prk_timesteps)
        ends.append(loop(scheduler, scheduler.plms_timesteps, scheduler.step_plms, x))
    assert far(ends[1], ends[0]) < 1e-5
    assert ours.counter == theirs.counter
    if not flags.get("skip_prk_steps"):
        with pytest.raises(
            ArgumentError, match=r"step_plms is a multistep call.*prk_timesteps first"
        ):
            ours.step_plms(noise(), ours.prk_timesteps[0], noise())
    ours.set_timesteps(10)
    x = loop(ours, ours.timesteps, ours.step, noise())
    assert far(x, ends[1]) < 1e-6


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize("offset", [0, 1])
def test_pndm_turns_as_often_as_the_part_of_its_list_that_a_pipeline_cuts(
    steps: int, offset: int
) -> None:
    theirs, ours = pair("PNDM", steps, skip_prk_steps=True, steps_offset=offset)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    ends = []
    for start in range(len(ours.timesteps)):
        _, ours = pair("PNDM", steps, skip_prk_steps=True, steps_offset=offset)
        x = ours.add_noise(noise(1), noise(2), ours.timesteps[start : start + 1])
        turns = 0
        for t in ours.timesteps[start:]:
            x, turns = ours.step(network(x, t), t, x).prev_sample, turns + 1
        assert turns == len(ours.timesteps) - start
        ends.append(x)
    assert far(ends[1], ends[2]) < 1e-6  # one level: the second call at it moves nothing


def test_predictions_that_are_assigned_are_those_that_a_step_combines() -> None:
    past = [noise(k) for k in range(3)]
    theirs, ours = pair("PNDM", 20, skip_prk_steps=True)
    for scheduler in (theirs, ours):
        scheduler.ets = list(past)
    for k, t in enumerate((600, 333, 333)):  # any time, for the caller keeps the predictions
        want, got = (
            s.step_plms(network(noise(k), t), t, noise(k)).prev_sample for s in (theirs, ours)
        )
        theirs.counter = 2
        assert far(got, want) < 1e-5
        assert far(torch.stack(ours.ets), torch.stack(theirs.ets)) < 1e-5
    ours.ets = []
    theirs, _ = pair("PNDM", 20, skip_prk_steps=True)
    want = got = noise()
    for t in theirs.timesteps.tolist()[:6]:
        want, got = (
            s.step(network(x, t), t, x).prev_sample for s, x in ((theirs, want), (ours, got))
        )
        assert far(got, want) < 1e-5
    assert far(torch.stack(ours.ets), torch.stack(theirs.ets)) < 1e-5
    for wrong in (3, "a", [1.0]):
        with pytest.raises(ArgumentError, match="ets"):
            ours.ets = wrong


def test_ipndm_steps_from_assigned_predictions_at_any_of_its_times() -> None:
    """By the weights of four evenly spaced slopes (arXiv 2202.09778), of noise at the levels of the
    list.
    """
    ours = compat.IPNDMScheduler()
    ours.set_timesteps(10)
    past = [noise(k) for k in range(3)]
    ours.ets = list(past)
    with pytest.raises(RunError, match=r"pure noise.*ets = \[\]"):
        ours.step(noise(), ours.timesteps[0], noise())
    for k in (5, 6, 5):
        now, new = ours._listed.grid[k], ours._listed.grid[k + 1]
        x, out = noise(7), noise(8)
        newest = [
            float(now.sigma) * x + float(now.alpha) * out,
            *ours.ets[::-1],
        ]  # from v to the noise
        slope = sum(w / 24 * e for w, e in zip((55, -59, 37, -9), newest, strict=False))
        want = float(new.alpha) * (x / float(now.alpha) + float(new.ratio - now.ratio) * slope)
        assert far(ours.step(out, ours.timesteps[k], x).prev_sample, want) < 1e-6


@pytest.mark.parametrize(("name", "flags", "times"), [
    ("DDIM", {"set_alpha_to_one": False, "clip_sample": False}, None),
    ("DDIM", {"set_alpha_to_one": False}, None),
    ("PNDM", {"skip_prk_steps": True}, None), ("PNDM", {}, None), ("TCD", {}, [999, 700, 300, 0]),
])  # fmt: skip
def test_a_last_call_that_moves_nothing_is_made_as_in_diffusers(
    name: str, flags: dict[str, Any], times: list[int] | None
) -> None:
    """So that callbacks of the last step see it; with clipping the picture is clipped once more."""
    ends = []
    for scheduler in pair(name, None, **flags):
        scheduler.set_timesteps(
            10 if times is None else None, **({} if times is None else {"timesteps": times})
        )
        x = noise()
        for t in scheduler.timesteps:
            more = {"eta": 0.0} if name == "TCD" else {}
            x = scheduler.step(network(x, t), t, x, **more).prev_sample
        ends.append((scheduler.timesteps.tolist(), x))
    assert ends[1][0] == ends[0][0]
    assert ends[1][0][-1] == 0
    assert far(ends[1][1], ends[0][1]) < 2e-5


def test_the_half_steps_of_pndm_of_diffusers_miss_by_a_time_where_the_stride_is_odd() -> None:
    """From 875 to 813, where the network is told 812; here to 812."""
    theirs, ours = pair("PNDM", 8)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    ends = [loop(s, s.timesteps, s.step, noise()) for s in (theirs, ours)]
    assert 2e-5 < far(ends[1], ends[0]) < 1e-4
    theirs, ours = pair("PNDM", 8)
    x = torch.ones(1, 1, 1, 1)
    half = float(theirs.step(0 * x, 875, x).prev_sample)
    bars = theirs.alphas_cumprod
    assert half == pytest.approx(float((bars[813] / bars[875]).sqrt()), rel=1e-6)


@pytest.mark.parametrize(("steps", "strength"), [(2, 0.75), (5, 0.8), (5, 0.5)])
def test_the_callback_of_the_last_step_comes_in_image_to_image(steps: int, strength: float) -> None:
    base = tiny.sd()
    given = {key: value for key, value in tiny.prompt(base).items() if key.endswith("embeds")}
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **base.components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    turns = []
    for library in LIBRARIES:
        pipe.scheduler, last = library.PNDMScheduler(**SD, skip_prk_steps=True), []

        def callback(
            pipe: Any, i: int, t: Any, tensors: Any, last: list[bool] = last
        ) -> dict[str, Any]:
            last.append(i == pipe.num_timesteps - 1)
            return {}

        pipe(
            image=torch.rand(1, 3, 32, 32), num_inference_steps=steps, strength=strength,
            output_type="latent",
            callback_on_step_end=callback, **given,
        )  # fmt: skip
        turns.append(last)
    assert turns[1] == turns[0]
    assert turns[1][-1]
