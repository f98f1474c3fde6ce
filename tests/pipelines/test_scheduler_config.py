"""What a diffusers scheduler config asks for is done by the drop-in scheduler too, or refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
from support import tiny
from timonel import compat
from timonel.core import grids
from timonel.errors import ArgumentError

LTX = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096, "shift_terminal": 0.1,
}  # fmt: skip
ELSEWHERE = (
    "lam",
    "vp",
    "ays",
    "ays_sd15",
    "ays_sdxl",
    "ays_svd",
)  # cannot begin at pure noise, or no flow's
FLAGS = [
    ("use_karras_sigmas", "karras"),
    ("use_beta_sigmas", "beta_sigma"),
    ("use_lu_lambdas", "lam"),
]


@pytest.mark.parametrize(("flag", "grid"), FLAGS)
def test_sigma_flags_of_a_config_choose_the_grid_that_diffusers_would(flag: str, grid: str) -> None:
    scheduler = tm.Scheduler.from_config(tiny.sdxl().scheduler.config, **{flag: True})
    scheduler.set_timesteps(8)
    assert scheduler.run.table.grid == grid
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(
        tiny.sdxl().scheduler.config, **{flag: True}
    )
    theirs.set_timesteps(8)
    assert torch.allclose(scheduler.sigmas[:-1], theirs.sigmas[:-1], rtol=2e-3)


@pytest.mark.parametrize(("kind", "mu"), [("exponential", 1.1), ("linear", 2.5)])
def test_dynamic_shift_and_terminal_of_flow_configs_are_those_of_diffusers(
    kind: str, mu: float
) -> None:
    """As LTX asks for them: a shift from the size of the picture, then a stretch that ends at
    `shift_terminal`.
    """
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
    assert (again.sampler.name, again.sampler.grid, again.sampler.source) == (
        "dpmpp_2m_sde",
        "karras",
        "brownian",
    )
    assert again.sampler.options == {"eta": 0.4}


@pytest.mark.parametrize(
    ("scheduler", "process", "prediction"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "flow", "flow"),
        (diffusers.FlowMatchHeunDiscreteScheduler(), "flow", "flow"),
        (diffusers.EDMEulerScheduler(), "edm", "edm"),
        (diffusers.EulerDiscreteScheduler(), "vp", "epsilon"),
        (
            diffusers.UniPCMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction"
            ),
            "flow",
            "flow",
        ),
        (diffusers.DDIMScheduler(prediction_type="v_prediction"), "vp", "v"),
    ],
)
def test_a_scheduler_made_in_code_is_recognised_though_its_config_has_no_class_name(
    scheduler, process, prediction
):
    assert "_class_name" not in scheduler.config
    made = tm.Scheduler.from_config(scheduler.config)
    assert (made.process.kind, made.prediction) == (process, prediction)
    if process == "flow":
        assert made.process.shift == scheduler.config.get("shift", 1.0)


@pytest.mark.parametrize(
    "sampler", ["euler", *[f"euler/{grid}" for grid in grids.GRIDS if grid not in ELSEWHERE]]
)
def test_a_terminal_shift_holds_whoever_names_the_grid(sampler: str) -> None:
    scheduler, free = (
        tm.Scheduler.from_config({**LTX, **end}, sampler=sampler)
        for end in ({}, {"shift_terminal": None})
    )
    for one in (scheduler, free):
        one.set_timesteps(8, mu=1.5)
    assert scheduler.sigmas[0] == pytest.approx(float(free.sigmas[0]), rel=1e-6)
    assert float(scheduler.sigmas[-2]) == pytest.approx(0.1, abs=1e-6)
    scheduler.set_timesteps(
        1, mu=1.5
    )  # the only level is the noisiest; diffusers' stretch of it is NaN
    assert scheduler.sigmas.tolist() == pytest.approx([1.0, 0.0], abs=4e-3)


def test_a_samplers_own_end_goes_before_the_terminal_shift() -> None:
    scheduler = tm.Scheduler.from_config(LTX)
    for own, last in (({"terminal": 0.2}, 0.2), ({"sigma_min": 0.3}, 0.3)):
        scheduler.sampler = tm.Sampler("euler", grid="karras", grid_options=own)
        scheduler.set_timesteps(6, mu=1.5)
        assert float(scheduler.sigmas[-2]) == pytest.approx(last, abs=1e-6)
    scheduler.sampler = tm.Sampler(
        "euler", grid="karras", grid_options={"terminal": 0.2, "sigma_min": 0.3}
    )
    with pytest.raises(ArgumentError, match=r"terminal=0\.2 and sigma_min=0\.3 both end the grid"):
        scheduler.set_timesteps(6, mu=1.5)


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("given", [[1.0, 0.9, 0.5, 0.3], [1.0, 0.75, 0.5, 0.25]])
def test_a_list_of_flow_sigmas_is_shifted_stretched_and_shaped_as_diffusers_does(
    flag: str, given: list[float]
) -> None:
    if flag == "use_beta_sigmas":
        pytest.importorskip("scipy")
    for more in ({}, {"shift_terminal": 0.1}, {flag: True}, {flag: True, "shift_terminal": 0.1}):
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **more)
        theirs.set_timesteps(sigmas=given)
        ours = tm.Scheduler.from_config(theirs.config, sampler="euler")
        ours.set_timesteps(sigmas=given)
        assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-6), more


def test_a_list_beside_a_named_grid_is_refused_or_only_counts_where_pipelines_make_it() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    scheduler = tm.Scheduler.from_config(flow, sampler="euler/karras")
    scheduler.set_timesteps(
        sigmas=[1.0, 0.75, 0.5, 0.25]
    )  # what flow pipelines pass where the user gives none
    assert (scheduler.run.table.grid, scheduler.run.steps) == ("karras", 4)
    with pytest.raises(
        ArgumentError, match="sigmas and the sampler 'euler/karras' both set the levels"
    ):
        scheduler.set_timesteps(sigmas=[1.0, 0.9, 0.5, 0.3])
    images = tm.Scheduler.from_config(tiny.sdxl().scheduler.config, sampler="euler/karras")
    with pytest.raises(ArgumentError, match="take sampler='euler' for the list"):
        images.set_timesteps(timesteps=[999, 500])
    with pytest.raises(ArgumentError, match=r"steps=8 and timesteps with 2 entries disagree"):
        images.set_timesteps(8, timesteps=[999, 500])


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_the_spacing_of_a_flow_config_means_nothing_as_in_diffusers(spacing: str) -> None:
    """UniPC and DPM++ write it into every config, Wan's and Sana's too, and never read it there."""
    config = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 5.0}
    theirs = diffusers.UniPCMultistepScheduler(
        **config, prediction_type="flow_prediction", timestep_spacing=spacing
    )
    theirs.set_timesteps(4)
    ours = tm.Scheduler.from_config(theirs.config, sampler="unipc")
    ours.set_timesteps(4)
    assert ours.timesteps.plain().tolist() == pytest.approx(
        [1000.0, 937.5, 2500 / 3, 625.0], abs=1e-3
    )
    assert torch.allclose(
        ours.sigmas, theirs.sigmas, atol=2e-3
    )  # its list ends at 1/1000 before the shift, not at 0


def test_what_a_step_returns_is_read_by_attribute_place_and_name_as_in_diffusers():
    scheduler = tm.Scheduler(sampler="euler")
    scheduler.set_timesteps(3)
    x = (
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        * scheduler.init_noise_sigma
    )
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


@pytest.mark.parametrize(
    "make", [tm.Scheduler, compat.EulerDiscreteScheduler], ids=["timonel", "compat"]
)
def test_a_new_list_forgets_where_the_last_call_began(make: Any) -> None:
    scheduler = make()
    for _ in range(2):
        scheduler.set_timesteps(8)
        assert scheduler.begin_index is None
        scheduler.set_begin_index(3)
        assert scheduler.begin_index == 3
        assert not scheduler.custom_timesteps
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.begin_index is None
    assert scheduler.custom_timesteps


# -- a scheduler that is handed to a pipeline's constructor ----------------------------------------
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used before"])
@pytest.mark.parametrize("name", ["DDIM", "PNDM", "EulerDiscrete"])
@pytest.mark.parametrize("socket", ["scheduler", "compat"])
def test_what_stable_diffusions_constructor_writes_into_a_config_acts(
    socket: str, name: str, used: bool, tmp_path: Path
) -> None:
    """`steps_offset=1` and `clip_sample=False`, which it writes past the scheduler; before and
    after it is saved.
    """
    flags = {"DDIM": {"clip_sample": True}, "PNDM": {"skip_prk_steps": True}}.get(
        name, {"timestep_spacing": "leading"}
    )
    theirs = getattr(diffusers, f"{name}Scheduler")(**SD15, **flags)
    cls = tm.Scheduler if socket == "scheduler" else getattr(compat, f"{name}Scheduler")
    ours = cls.from_config({**theirs.config, "_class_name": f"{name}Scheduler"})
    if used:
        ours.set_timesteps(4)
    for scheduler in (theirs, ours):
        parts = {**tiny.sd().components, "scheduler": scheduler}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers says so
            diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
        scheduler.set_timesteps(4)
    ours.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    again.set_timesteps(4)
    listed = sorted(set(theirs.timesteps.tolist()), reverse=True)
    for one in (ours, again):
        assert sorted(set(one.timesteps.tolist()), reverse=True) == listed == [751, 501, 251, 1]
        assert one._shape() is None


@pytest.mark.parametrize("key", ["timestep_spacing", "clip_sample"])
def test_what_a_pipelines_call_sets_in_a_config_acts(key: str) -> None:
    """LEdits++ sets the spacing and Stable Cascade the clipping, as attributes."""
    theirs = diffusers.DDIMScheduler(**SD15, timestep_spacing="trailing")
    ours = tm.Scheduler.from_config({**theirs.config, "_class_name": "DDIMScheduler"})
    for one in (theirs, ours):
        setattr(one.config, key, {"timestep_spacing": "leading", "clip_sample": False}[key])
        one.set_timesteps(5)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert (ours._shape() is None) == (key == "clip_sample")


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("sampler", [None, "unipc/karras"])
def test_what_cosmos_2s_constructor_registers_makes_its_levels(
    sampler: str | None, saved: bool, tmp_path: Path
) -> None:
    wide = {
        "sigma_max": 80.0,
        "sigma_min": 0.002,
        "sigma_data": 1.0,
        "final_sigmas_type": "sigma_min",
    }
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    given = {**theirs.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    ours = tm.Scheduler.from_config(given, sampler=sampler)
    for one in (theirs, ours):
        one.register_to_config(**wide)
    if saved:
        ours.save_pretrained(tmp_path)
        ours = tm.Scheduler.from_pretrained(tmp_path)
        ours.register_to_config(**wide)
    for one in (theirs, ours):
        one.set_timesteps(sigmas=torch.linspace(0, 1, 5).tolist())
    assert torch.allclose(ours.sigmas, theirs.sigmas[:-1], rtol=1e-5)  # its last call moves nothing


# -- inversion -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "back"), [
    ("DDIMInverseScheduler", "DDIMScheduler"),
    ("DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler"),
])  # fmt: skip
def test_a_scheduler_that_goes_from_a_picture_to_noise_is_no_sampler(name, back, tmp_path):
    """Its times rise; read as a model's config it would run the other way."""
    inverse = getattr(diffusers, name)(beta_schedule="scaled_linear")
    inverse.set_timesteps(5)
    assert inverse.timesteps[0] < inverse.timesteps[-1]
    inverse.save_pretrained(tmp_path)
    written = getattr(diffusers, name).load_config(tmp_path)
    with pytest.raises(ArgumentError, match=f"from a picture to noise.*{back}"):
        tm.Scheduler.from_config(written)
    with pytest.raises(ArgumentError, match="from a picture to noise"):
        tm.Scheduler.from_pretrained(tmp_path)
    pipe = tiny.sd()
    pipe.scheduler = inverse
    with pytest.raises(ArgumentError, match="from a picture to noise"):
        tm.Helm(pipe)(**tiny.prompt(pipe), steps=2)
    there = getattr(diffusers, back).from_config(written)
    assert tm.Scheduler.from_config(there.config).process.kind == "vp"
    theirs = getattr(diffusers, back).from_config(inverse.config)
    ours = getattr(compat, back).from_config(
        inverse.config
    )  # which names the class of the way back, as in diffusers
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(5)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
