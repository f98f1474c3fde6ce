"""What a diffusers scheduler config asks for is done by the drop-in scheduler too, or refused."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

import timonel as tm
import tiny
from timonel.errors import ArgumentError

FLAGS = [("use_karras_sigmas", "karras"), ("use_beta_sigmas", "beta_sigma"), ("use_lu_lambdas", "lam")]


@pytest.mark.parametrize(("flag", "grid"), FLAGS)
def test_sigma_flags_of_a_config_choose_the_grid_that_diffusers_would(flag: str, grid: str) -> None:
    scheduler = tm.Scheduler.from_config(tiny.sdxl().scheduler.config, **{flag: True})
    scheduler.set_timesteps(8)
    assert scheduler.run.table.grid == grid
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(tiny.sdxl().scheduler.config, **{flag: True})
    theirs.set_timesteps(8)
    assert torch.allclose(scheduler.sigmas[:-1], theirs.sigmas[:-1], rtol=2e-3)


@pytest.mark.parametrize(("kind", "mu"), [("exponential", 1.1), ("linear", 2.5)])
def test_dynamic_shift_and_terminal_of_flow_configs_are_those_of_diffusers(kind: str, mu: float) -> None:
    """As LTX asks for them: a shift from the size of the picture, then a stretch that ends at `shift_terminal`."""
    config = {"use_dynamic_shifting": True, "time_shift_type": kind, "shift_terminal": 0.1}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    sigmas = torch.linspace(1, 1 / 6, 6).tolist()
    theirs.set_timesteps(sigmas=sigmas, mu=mu)
    ours = tm.Scheduler.from_config(theirs.config, sampler="euler")
    ours.set_timesteps(sigmas=sigmas, mu=mu)
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-6)
    assert torch.allclose(torch.as_tensor(ours.timesteps), theirs.timesteps, atol=1e-3)


def test_a_sampler_with_options_keeps_them_in_the_config(tmp_path: Path) -> None:
    chosen = tm.Sampler("dpmpp_2m_sde_gpu", grid="karras", options={"eta": 0.4})
    scheduler = tm.Scheduler.from_config(tiny.sdxl().scheduler.config, sampler=chosen)
    scheduler.save_pretrained(tmp_path)
    again = tm.Scheduler.from_pretrained(tmp_path)
    assert (again.sampler.name, again.sampler.grid, again.sampler.source) == ("dpmpp_2m_sde", "karras", "brownian")
    assert again.sampler.options == {"eta": 0.4}


@pytest.mark.parametrize(
    ("scheduler", "process", "prediction"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "flow", "flow"),
        (diffusers.FlowMatchHeunDiscreteScheduler(), "flow", "flow"),
        (diffusers.EDMEulerScheduler(), "edm", "edm"),
        (diffusers.EulerDiscreteScheduler(), "vp", "epsilon"),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "flow", "flow"),
        (diffusers.DDIMScheduler(prediction_type="v_prediction"), "vp", "v"),
    ],
)
def test_a_scheduler_made_in_code_is_recognised_though_its_config_has_no_class_name(scheduler, process, prediction):
    assert "_class_name" not in scheduler.config
    made = tm.Scheduler.from_config(scheduler.config)
    assert (made.process.kind, made.prediction) == (process, prediction)
    if process == "flow":
        assert made.process.shift == scheduler.config.get("shift", 1.0)


def test_a_terminal_shift_beside_a_sigma_flag_is_refused():
    scheduler = tm.Scheduler.from_config(
        diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1, use_karras_sigmas=True).config
    )
    with pytest.raises(ArgumentError, match=r"shift_terminal.*'karras'"):
        scheduler.set_timesteps(5)


def test_what_a_step_returns_is_read_by_attribute_place_and_name_as_in_diffusers():
    scheduler = tm.Scheduler(sampler="euler")
    scheduler.set_timesteps(3)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    made = scheduler.step(x * 0.1, scheduler.timesteps[0], x)
    for place, name in enumerate(("prev_sample", "pred_original_sample")):
        value = getattr(made, name)
        assert torch.equal(made[place], value)
        assert torch.equal(made[place - 2], value)
        assert torch.equal(made[name], value)
    assert [v.shape for v in made] == [x.shape, x.shape]
    with pytest.raises(KeyError, match="sample"):
        made["sample"]
    with pytest.raises(IndexError):
        made[2]
