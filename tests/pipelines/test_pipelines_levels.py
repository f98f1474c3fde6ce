"""What the drop-in scheduler makes of the configs, lists and step arguments of the pipelines of
many families.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import timonel as tm
from timonel.core.noise import SeededNoise
from timonel.core.process import EDM, VE, VP, Flow, Trig, from_config
from timonel.core.solvers import SOLVERS
from timonel.errors import ArgumentError, GridError, UnknownName

SHAPE = (2, 4, 6, 6)
CLOSE = 2e-6  # relative; diffusers' levels are float32


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Any) -> Tensor:
    return torch.tanh(1.3 * x + float(t) / 700) + 0.2 * x


def walked(scheduler: Any, x: Tensor, **more: Any) -> Tensor:
    """A loop as pipelines have it."""
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, return_dict=False, **more)[0]
    return x


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# -- processes that configs describe ---------------------------------------------------------------
def test_a_flow_whose_time_runs_backwards_is_stepped_as_diffusers_does() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    ours = tm.Scheduler.from_config(theirs.config, sampler="euler")
    sigmas = np.array([1.0, 0.975, 0.9, 0.6, 0.2])
    theirs.set_timesteps(sigmas=sigmas)
    ours.set_timesteps(sigmas=sigmas)
    assert torch.allclose(ours.timesteps.as_subclass(Tensor), theirs.timesteps, atol=1e-3)
    assert apart(walked(ours, noise()), walked(theirs, noise())) < CLOSE


def test_timesteps_beside_sigmas_are_the_times_before_the_shift() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="linear"
    )
    ours = tm.Scheduler.from_config(theirs.config, sampler="euler")
    times = np.linspace(1000, 1, 6).astype(np.int64).astype(np.float32)
    theirs.set_timesteps(timesteps=times, sigmas=times / 1000, mu=0.7)
    ours.set_timesteps(timesteps=times, sigmas=times / 1000, mu=0.7)
    assert torch.allclose(ours.timesteps.as_subclass(Tensor), theirs.timesteps)
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-6)
    assert apart(walked(ours, noise()), walked(theirs, noise())) < CLOSE
    with pytest.raises(ArgumentError, match="both only for a flow"):
        ours.set_timesteps(timesteps=times, sigmas=times / 500, mu=0.7)


@pytest.mark.parametrize(("steps", "second"), [(1, None), (2, 1.3), (4, None)])
def test_a_consistency_model_of_angles_is_sampled_as_diffusers_does(
    steps: int, second: float | None
) -> None:
    config = diffusers.SCMScheduler().config
    assert isinstance(from_config(config), Trig)
    theirs = diffusers.SCMScheduler(
        sigma_data=1.0
    )  # ours says 1 in its config, and pipelines scale by what it says
    ours = tm.Scheduler.from_config(config, sampler="lcm")
    assert ours.config.sigma_data == 1.0
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps, max_timesteps=1.57080, intermediate_timesteps=second)
    assert torch.allclose(ours.timesteps.as_subclass(Tensor), theirs.timesteps, atol=1e-5)
    found = []
    for scheduler in (theirs, ours):
        generator, x = torch.Generator().manual_seed(3), noise()
        if scheduler is ours:
            ours.run.noise = lambda row, like, g=generator: torch.randn(like.shape, generator=g)
        for t in scheduler.timesteps[:-1]:
            x, clean = scheduler.step(network(x, t), t, x, generator=generator, return_dict=False)
        found.append(clean)
    assert apart(found[1], found[0]) < 2e-5  # diffusers begins at 1.5708, a little above pi/2


def test_a_flow_scheduler_with_levels_above_one_explodes() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    theirs.register_to_config(
        sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, final_sigmas_type="sigma_min"
    )
    process = from_config(theirs.config)
    assert isinstance(process, VE)
    assert float(process.at_sigma(torch.tensor([80.0])).alpha) == 1
    ours = tm.Scheduler.from_config(theirs.config, sampler="euler")
    theirs.set_timesteps(sigmas=torch.linspace(0, 1, 5, dtype=torch.float64))
    ours.set_timesteps(sigmas=torch.linspace(0, 1, 5, dtype=torch.float64))
    assert torch.allclose(ours.sigmas, theirs.sigmas[:5], rtol=1e-5)  # its fifth call moves nothing
    x = [80 * noise(), 80 * noise()]
    for i in range(4):
        for k, scheduler in enumerate((theirs, ours)):
            raw = (x[k] - torch.tanh(x[k])) / scheduler.sigmas[i]
            x[k] = scheduler.step(raw, scheduler.timesteps[i], x[k], return_dict=False)[0]
    assert apart(x[1], x[0]) < 1e-5
    assert isinstance(from_config(ours.config), VE)  # as it is saved


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "exp"])
def test_betas_have_diffusers_names_and_numbers(kind: str) -> None:
    other = diffusers.HeunDiscreteScheduler if kind == "exp" else diffusers.DDIMScheduler
    theirs = other(beta_schedule=kind)
    ours = tm.Scheduler.from_config(theirs.config)
    for name in ("alphas_cumprod", "alphas", "betas"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=3e-6), name


def test_a_scheduler_without_betas_in_its_config_has_the_cosine_ones() -> None:
    theirs = diffusers.UnCLIPScheduler()
    ours = tm.Scheduler.from_config(theirs.config)
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod, atol=3e-6)
    again = tm.Scheduler.from_config(ours.config)  # as it is saved and loaded
    assert torch.equal(again.alphas_cumprod, ours.alphas_cumprod)


def test_levels_of_a_share_of_the_whole_are_stepped_as_diffusers_does() -> None:
    theirs = diffusers.DDPMWuerstchenScheduler()
    ours = tm.Scheduler.from_config(theirs.config, process="cosine", sampler="ddpm/trailing")
    made, draws = [], [noise(20 + i) for i in range(5)]
    ours.session.noise = lambda row, like: draws[row]
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(5)
        x, left = noise(), iter(draws)
        with pytest.MonkeyPatch.context() as patch:
            module = "diffusers.schedulers.scheduling_ddpm_wuerstchen.randn_tensor"
            patch.setattr(module, lambda *args, it=left, **named: next(it))
            for t in scheduler.timesteps[:-2]:  # at the end diffusers keeps abar below 1
                x = scheduler.step(network(x, t), t.expand(2), x).prev_sample
        made.append(x)
    assert torch.allclose(
        ours.timesteps.as_subclass(Tensor), torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    )
    assert apart(made[1], made[0]) < 1e-5


def test_what_a_process_does_not_have_is_missing() -> None:
    scheduler = tm.Scheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config)
    assert not any(hasattr(scheduler, name) for name in ("betas", "alphas", "alphas_cumprod"))


# -- where a journey ends and begins ---------------------------------------------------------------
def test_an_end_at_sigma_min_is_the_lowest_training_level_and_never_repeated() -> None:
    config = {"beta_schedule": "scaled_linear", "final_sigmas_type": "sigma_min"}
    low = VP.from_schedule("scaled_linear", 0.0001, 0.02).sigma_min
    scheduler = tm.Scheduler.from_config(config, sampler="dpmpp_2m/trailing")
    scheduler.set_timesteps(5)
    assert scheduler.run.steps == 5
    assert float(scheduler.sigmas[-1]) == pytest.approx(low, rel=1e-6)
    scheduler = tm.Scheduler.from_config(
        config, sampler="dpmpp_2m/karras"
    )  # its last level is that one already
    scheduler.set_timesteps(5)
    assert scheduler.run.steps == 4
    assert float(scheduler.sigmas[-1]) == pytest.approx(low, rel=1e-6)
    with pytest.raises(UnknownName, match="final_sigmas_type"):
        tm.Scheduler.from_config(config | {"final_sigmas_type": "one"})


@pytest.mark.parametrize("name", [
    name for name, spec in SOLVERS.items()
    if name not in ("restart", "edm", "sa_solver_pece") and not spec.reads_uncond
])  # fmt: skip
def test_a_slice_inside_a_step_begins_at_the_level_of_its_row(name: str) -> None:
    scheduler = tm.Scheduler.from_config(
        {"beta_schedule": "scaled_linear"}, sampler=f"{name}/trailing"
    )
    scheduler.set_timesteps(6)
    table, begin = scheduler.run.table, 3
    listed = scheduler.timesteps[begin:]
    clean = torch.full(SHAPE, 0.7, dtype=torch.float64)
    x = scheduler.add_noise(clean, noise().double(), listed[:1])
    level = table.level(begin)
    for t in listed:  # a network that knows the clean sample
        assert float(t) == pytest.approx(float(level.time), abs=1e-3)
        x = scheduler.step((x - float(level.alpha) * clean) / float(level.sigma), t, x)[0]
        level = scheduler.run.level
    assert float(scheduler.run.table.sigma[0]) == pytest.approx(float(table.sigma[begin]), rel=1e-9)
    assert float((x - clean).abs().max()) < 1e-6


# -- arguments that loops give ---------------------------------------------------------------------
def test_a_named_number_of_original_steps_reaches_the_grid_or_is_refused() -> None:
    theirs = diffusers.LCMScheduler()
    ours = tm.Scheduler.from_config(theirs.config, sampler="lcm")
    for more in ({}, {"original_inference_steps": 20}, {"strength": 0.5}):
        theirs.set_timesteps(4, **more)
        ours.set_timesteps(4, **more)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist(), more
    for strength in (0.3, 0.8, 1.0):  # of a list of the caller's own it is the last share
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=strength)
        assert ours.timesteps.tolist() == theirs.timesteps.tolist(), strength
    with pytest.raises(GridError, match=r"strength=0.2 of 4 steps leaves none; use at least 0.25"):
        ours.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.2)
    with pytest.raises(ArgumentError, match="is of the grid 'lcm'"):
        tm.Scheduler.from_config(theirs.config, sampler="ddim").set_timesteps(
            4, original_inference_steps=20
        )


def test_tokens_that_are_held_cleaner_are_stepped_by_their_own_level() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    ours = tm.Scheduler.from_config(theirs.config, sampler="euler")
    shape = (1, 5, 3)
    x = [noise(1, shape), noise(1, shape)]
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4))
    held = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0]])  # two tokens are clean from the beginning
    for i in range(4):
        for k, scheduler in enumerate((theirs, ours)):
            t = scheduler.timesteps[i]
            raw = -network(x[k], t)
            x[k] = scheduler.step(raw, t, x[k], per_token_timesteps=held * t, return_dict=False)[0]
            if scheduler is ours:  # a clean token's prediction is itself
                assert torch.allclose(ours.run.denoised[:, 2], noise(1, shape)[:, 2], atol=1e-6)
    free = held[0] > 0
    assert apart(x[1][:, free], x[0][:, free]) < 1e-5
    assert torch.allclose(x[0][:, ~free], noise(1, shape)[:, ~free])  # and pipelines keep these


def test_noise_that_a_pipeline_gives_is_the_rows_and_refused_where_none_is_drawn() -> None:
    given = [noise(10 + i) for i in range(4)]
    made = []
    for told in (True, False):
        scheduler = tm.Scheduler.from_config(
            {}, sampler=tm.Sampler("ddim", grid="trailing", options={"eta": 1.0}).name
        )
        scheduler.sampler = tm.Sampler("ddim", grid="trailing", options={"eta": 1.0})
        scheduler.session.noise = (
            (lambda row, like: torch.zeros_like(like)) if told else (lambda row, like: given[row])
        )
        scheduler.set_timesteps(4)
        x = noise()
        for i, t in enumerate(scheduler.timesteps):
            more = {"variance_noise": given[i]} if told and i < 3 else {}
            x = scheduler.step(network(x, t), t, x, **more)[0]
        made.append(x)
    assert torch.equal(*made)
    scheduler = tm.Scheduler.from_config({}, sampler="dpmpp_2m")
    scheduler.set_timesteps(4)
    with pytest.raises(ArgumentError, match="takes none: use a stochastic sampler"):
        scheduler.step(noise(), scheduler.timesteps[0], noise(), variance_noise=noise())


def test_a_learned_variance_is_left_out() -> None:
    made = []
    for raw in (noise(1), torch.cat([noise(1), noise(2)], 1)):
        scheduler = tm.Scheduler.from_config({"variance_type": "learned_range"}, sampler="ddim")
        scheduler.set_timesteps(3)
        made.append(scheduler.step(raw, scheduler.timesteps[0], noise())[0])
    assert torch.equal(*made)
    assert scheduler.config.variance_type is None
    with pytest.raises(ArgumentError, match="belongs to the sampler"):
        tm.Scheduler.from_config({}, variance_type="learned")


def test_a_step_gives_the_sample_and_its_denoised_prediction() -> None:
    scheduler = tm.Scheduler.from_config({}, sampler="euler")
    scheduler.set_timesteps(3)
    x = noise()
    for t in scheduler.timesteps:
        said = scheduler.step(network(x, t), t, x)
        x, clean = said
        assert x is said.prev_sample
        assert torch.equal(
            clean, scheduler.run.denoised if scheduler.run.row < 3 else scheduler.run.result
        )


# -- seeds of batches that are not of samples ------------------------------------------------------
def test_seeds_are_spread_over_the_parts_of_a_sample_whatever_its_batch() -> None:
    frames = torch.arange(6.0).reshape(6, 1)
    two, one = SeededNoise((5, 9)).spread(frames), SeededNoise((9,)).spread(frames[:3])
    assert len(set(two.seeds)) == 6
    assert two.seeds[3:] == one.seeds
    alike = SeededNoise((5, 9)).spread(torch.tensor([[1.0], [2.0], [1.0], [2.0]]))
    assert alike.seeds == (5, 9, 5, 9)
    same = SeededNoise((5, 9))
    assert same.spread(frames[:2]) is same
    assert same.spread(frames[:5]) is same  # no whole number of parts: refused where it draws
    with pytest.raises(ArgumentError, match="2 seeds for a batch of 5"):
        same(0, frames[:5])


def test_the_range_of_an_edm_config_is_kept_and_flows_stay_flows() -> None:
    assert isinstance(from_config(diffusers.FlowMatchEulerDiscreteScheduler().config), Flow)
    edm = from_config(diffusers.EDMEulerScheduler().config)
    assert isinstance(edm, EDM)
    assert not isinstance(edm, VE)
    with pytest.raises(GridError, match="angles must lie"):
        Trig().at_time(torch.tensor([1.7], dtype=torch.float64))
    assert float(Trig().at_time(torch.tensor([math.pi / 2], dtype=torch.float64)).alpha) == 0
