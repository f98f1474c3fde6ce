"""Laws of the choice: which sampler, grid and steps a call runs, for the helm, the drop-in and the
command line.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
from PIL import ImageChops
from typer.testing import CliRunner

import timonel as tm
import timonel.compat as compat
from support import tiny
from timonel import zoo
from timonel.cli import app
from timonel.core import grids, names
from timonel.errors import ArgumentError, SchedulerReplaced
from timonel.make.recipe import Recipe
from timonel.pipelines import choice


@pytest.fixture(scope="module")
def emoji() -> tm.Helm:
    return quiet(tm.Helm("emoji"))


def quiet(helm: tm.Helm) -> tm.Helm:
    helm.pipe.set_progress_bar_config(disable=True)
    return helm


@pytest.fixture
def pipe(emoji: tm.Helm) -> Any:
    """A pipeline object of its own, with the networks of emoji and SDXL's scheduler."""
    parts = emoji.pipe.components
    made = d.StableDiffusionXLPipeline(**{**parts, "scheduler": copy.deepcopy(parts["scheduler"])})
    made.set_progress_bar_config(disable=True)
    return made


# -- what is set on the pipeline -------------------------------------------------------------------
KARRAS = {"use_karras_sigmas": True}
SET: dict[str, tuple[Any, str]] = {
    "euler": (lambda c: d.EulerDiscreteScheduler.from_config(c), "euler/leading"),
    "euler, trailing": (lambda c: d.EulerDiscreteScheduler.from_config(c,
    timestep_spacing="trailing"),
                        "euler/trailing"),
    "euler a": (lambda c: d.EulerAncestralDiscreteScheduler.from_config(c),
    "euler_ancestral/leading"),
    "lcm": (lambda c: d.LCMScheduler.from_config(c), "lcm/lcm"),
    "tcd": (lambda c: d.TCDScheduler.from_config(c), "tcd/lcm"),
    "2m karras": (lambda c: d.DPMSolverMultistepScheduler.from_config(c, **KARRAS),
    "dpmpp_2m/karras"),
    "2m sde": (lambda c: d.DPMSolverMultistepScheduler.from_config(c,
    algorithm_type="sde-dpmsolver++", **KARRAS),
               "dpmpp_2m_sde/karras"),
    "unipc beta": (lambda c: d.UniPCMultistepScheduler.from_config(c, use_beta_sigmas=True),
    "unipc/beta_sigma"),
    "heun": (lambda c: d.HeunDiscreteScheduler.from_config(c, **KARRAS), "heun/karras"),
    "pndm": (lambda c: d.PNDMScheduler.from_config(c), "plms/leading"),
    "ddim, parallel": (lambda c: d.DDIMParallelScheduler.from_config(c), "ddim/leading"),
    "compat": (lambda c: compat.UniPCMultistepScheduler.from_config(c, **KARRAS), "unipc/karras"),
    "timonel": (lambda c: tm.Scheduler.from_config(c, sampler="unipc/karras"), "unipc/karras"),
    "timonel, grid of the config": (lambda c: tm.Scheduler.from_config(c, sampler="heun",
    use_karras_sigmas=True),
                                    "heun/karras"),
}  # fmt: skip


@pytest.mark.parametrize("name", SET)
def test_what_is_set_on_the_pipeline_runs_under_the_helm_and_in_the_drop_in(
    name: str, pipe: Any
) -> None:
    make, label = SET[name]
    pipe.scheduler = make(pipe.scheduler.config)
    helm = tm.Helm(pipe)
    assert helm.choose(steps=4).sampler.label == label
    helm("red apple", steps=2, seeds=[1], output_type="latent")
    assert helm.run is not None
    assert helm.choice is not None
    assert (helm.run.table.solver, helm.run.table.grid) == tuple(label.split("/"))
    assert helm.choice.why == f"set on the pipeline: {type(pipe.scheduler).__name__}"
    dropped = tm.Scheduler.from_config(pipe.scheduler.config)
    dropped.set_timesteps(4)
    assert (dropped.run.table.solver, dropped.run.table.grid) == tuple(label.split("/"))


def test_a_scheduler_that_is_replaced_is_said_to_be(pipe: Any) -> None:
    class OwnScheduler(d.EulerDiscreteScheduler):
        pass

    pipe.scheduler = OwnScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with pytest.warns(
        SchedulerReplaced, match="OwnScheduler is no sampler.*'dpmpp_2m' runs in place of"
    ):
        found = tm.Helm(pipe).choose(steps=4)
    assert "in place of OwnScheduler" in str(found)
    assert found.sampler.label == "dpmpp_2m/trailing"
    pipe.scheduler = d.SASolverScheduler.from_config(
        pipe.scheduler.config, algorithm_type="noise_prediction"
    )
    with pytest.warns(
        SchedulerReplaced, match="noise_prediction.* runs in place of the SASolverScheduler"
    ):
        tm.Helm(pipe).choose(steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tm.Helm(pipe).choose("heun/karras", 4).why == "as named"


def test_few_steps_lower_the_order_that_is_set_on_the_pipeline(pipe: Any) -> None:
    pipe.scheduler = d.DEISMultistepScheduler.from_config(pipe.scheduler.config)
    assert tm.Helm(pipe).choose(steps=1).sampler.options == {"order": "1", "variant": "logrho"}
    assert tm.Helm(pipe).choose(steps=4).sampler.options == {"order": "2221", "variant": "logrho"}


# -- shipped models --------------------------------------------------------------------------------
@pytest.mark.parametrize("model", zoo.MODELS)
def test_a_shipped_model_runs_as_its_card_says(model: str) -> None:
    helm, card = tm.Helm(model), zoo.card(model)
    found = helm.choose()
    assert (found.sampler.name, found.sampler.steps) == (
        names.sampler(card.default_sampler).solver,
        card.default_steps,
    )
    assert found.sampler.grid is not None
    assert str(found).startswith(f"{found.sampler.label}, {card.default_steps} steps (")
    assert helm.choose("euler").sampler.steps == card.default_steps
    assert helm.choose("euler").sampler.grid == grids.usual(zoo.process_of(model))
    if names.sampler(card.default_sampler).grid is not None:
        assert found.sampler.label == card.default_sampler
    helm.pipe.scheduler = tm.Scheduler.from_config(
        helm.pipe.scheduler.config, sampler="ddim/trailing"
    )
    assert helm.choose().sampler.label == "ddim/trailing"
    assert helm.choose().sampler.steps == card.default_steps


def test_a_scheduler_that_is_changed_in_place_is_set() -> None:
    helm = tm.Helm("emoji")
    assert helm.choose().sampler.label == "dpmpp_2m/karras"
    helm.pipe.scheduler.register_to_config(timestep_spacing="trailing")
    assert helm.choose().sampler.label == "euler/trailing"


@pytest.mark.parametrize("steps", [None, 4, 12])
def test_the_command_line_and_the_helm_choose_alike(
    steps: int | None, emoji: tm.Helm, tmp_path: Path
) -> None:
    words = [
        "generate",
        "red apple",
        "-o",
        str(tmp_path),
        *([] if steps is None else ["--steps", str(steps)]),
    ]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    emoji("red apple", steps=steps, seeds=[0], output_type="latent")
    recipe = Recipe.read(tmp_path / "red-apple-0.png")
    assert emoji.choice is not None
    assert f"sampler    {emoji.choice}\n" in done.output
    assert recipe.chosen() == emoji.choice.sampler
    assert ("emoji-4" in done.output) == (steps == 4)


def test_a_fitted_sampler_is_taken_only_for_a_whole_call_as_it_was_fitted(emoji: tm.Helm) -> None:
    assert emoji.choose(steps=4).sampler.label == "emoji-4"
    for given in ({"guidance": 5.0}, {"fitted": False}, {"sampler": "euler"}):
        assert emoji.choose(steps=4, **given).sampler.fitted is None
    emoji("red apple", steps=4, seeds=[1], denoising_end=0.5, output_type="latent")
    assert emoji.choice is not None
    assert emoji.choice.sampler.label == "dpmpp_2m/karras"


# -- grid and steps --------------------------------------------------------------------------------
def test_a_named_sampler_takes_the_levels_that_somebody_chose_else_the_usual(pipe: Any) -> None:
    def label(**changes: Any) -> str:
        pipe.scheduler = d.EulerDiscreteScheduler.from_config(pipe.scheduler.config, **changes)
        return tm.Helm(pipe).choose("unipc", 4).sampler.label

    assert label() == "unipc/karras"
    assert label(timestep_spacing="trailing") == "unipc/trailing"
    assert label(use_exponential_sigmas=True) == "unipc/exponential"


def test_one_usual_grid_for_samplers_and_fits() -> None:
    pure = tm.VP.from_schedule(rescale_zero_snr=True)
    for process in (tm.VP.from_schedule(), pure, tm.EDM(0.002, 700.0), tm.Flow(3.0)):
        assert tm.Sampler("dpmpp_2m", steps=4).compile(process).grid == grids.usual(process)
    assert grids.usual(pure) == grids.usual(tm.Flow(3.0)) == "trailing"
    assert (
        grids.usual(tm.VP.from_schedule("squaredcos_cap_v2")) == "trailing"
    )  # Karras' levels are nearly all noise
    assert grids.usual(tm.VP.from_schedule("linear", 1e-4, 0.02)) == "karras"


def test_steps_are_the_callers_else_those_of_the_pipeline(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    assert helm.choose().sampler.steps == choice.steps_of(pipe) == 50
    assert helm.choose(steps=7).steps_why == "as named"
    assert helm.choose(tm.Sampler("euler", steps=9)).sampler.steps == 9
    assert helm.choose("lcm").sampler.steps == choice.FEW
    assert helm.choose(tm.Sampler("euler", sigmas=[10.0, 1.0])).sampler.steps == 2
    with pytest.raises(ArgumentError, match="steps=3 and num_inference_steps=4 disagree"):
        helm("red apple", steps=3, num_inference_steps=4)


def test_a_recipe_without_a_grid_is_replayed_on_the_levels_it_was_made_on(emoji: tm.Helm) -> None:
    told: dict[str, Any] = {
        "model": "emoji",
        "prompt": "red apple",
        "seed": 0,
        "steps": 3,
        "sampler": "dpmpp_2m",
    }
    for recipe, grid in (
        (Recipe(**told), "karras"),
        (Recipe(**told, versions={"timonel": "0.1.0"}), "trailing"),
    ):
        recipe.call(emoji, output_type="latent")
        assert emoji.run is not None
        assert emoji.run.table.grid == grid


# -- diffusers' modular pipelines ------------------------------------------------------------------
def modular(emoji: tm.Helm, scheduler: Any, **guider: Any) -> Any:
    from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks

    made = StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {
        k: v
        for k, v in emoji.pipe.components.items()
        if v is not None and k in made._component_specs
    }
    made.update_components(**parts)
    made.update_components(
        guider=d.ClassifierFreeGuidance(guidance_scale=4.0, **guider), scheduler=scheduler
    )
    made.set_progress_bar_config(disable=True)
    return made


def paint(pipe: Any, steps: int) -> tuple[Any, int]:
    """A picture, and how many network calls it took."""
    calls, forward = [0], pipe.unet.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return forward(*args, **kwargs)

    pipe.unet.forward = counted
    try:
        generator = torch.Generator().manual_seed(1)
        made = pipe(
            prompt="red apple",
            num_inference_steps=steps,
            height=64,
            width=64,
            generator=generator,
            output="images",
        )
    finally:
        del pipe.unet.forward
    return made[0], calls[0]


@pytest.mark.parametrize(
    ("make", "stop", "calls"),
    [
        (lambda c: tm.Scheduler.from_config(c, sampler="heun"), 1.0, 14),
        (lambda c: compat.HeunDiscreteScheduler.from_config(c), 1.0, 14),
        (lambda c: tm.Scheduler.from_config(c, sampler="heun"), 0.5, 4 + 4 + 3),
        (lambda c: tm.Scheduler.from_config(c, sampler="euler"), 0.5, 2 + 2 + 2),
    ],
    ids=["heun", "compat", "heun, half", "euler, half"],
)
def test_a_modular_pipeline_guides_by_the_steps_of_the_run(
    make: Any, stop: float, calls: int, emoji: tm.Helm
) -> None:
    pipe = modular(emoji, make(emoji.pipe.scheduler.config), stop=stop)
    first, second = paint(pipe, 4), paint(pipe, 4)
    assert first[1] == second[1] == calls
    assert first[0].tobytes() == second[0].tobytes()
    assert "set_state" not in vars(pipe.guider)
    assert pipe.guider._step is None
    pickle.loads(pickle.dumps(pipe.scheduler.run.hooks))
    if stop == 1.0:
        guided = emoji(
            "red apple", sampler="heun/leading", steps=4, guidance=4.0, seeds=[1]
        ).images[0]
        assert (
            ImageChops.difference(first[0], guided).getextrema() <= ((0, 1),) * 3
        )  # one part a call, not a batch


def test_the_guider_is_left_to_another_scheduler(emoji: tm.Helm) -> None:
    pipe = modular(emoji, tm.Scheduler.from_config(emoji.pipe.scheduler.config, sampler="heun"))
    broken = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: 1 / 0
    try:
        with pytest.raises(ZeroDivisionError):
            pipe(prompt="red apple", num_inference_steps=4, height=64, width=64, output="images")
    finally:
        del pipe.unet.forward
    assert pipe.unet.forward == broken
    pipe.update_components(
        scheduler=d.EulerDiscreteScheduler.from_config(emoji.pipe.scheduler.config)
    )
    assert paint(pipe, 4)[1] == 8


def test_the_doctor_says_what_a_guider_counts(emoji: tm.Helm) -> None:
    pipe = modular(emoji, d.HeunDiscreteScheduler.from_config(emoji.pipe.scheduler.config))
    found = tm.doctor(pipe, steps=8).combination.findings
    said = "the guider of a ModularPipeline counts calls, not steps: guidance ends after 8 of 15"
    assert [f.kind for f in found if f.text.startswith(said)] == ["wrong"]
    assert not any("standard deviation" in f.text for f in found)
    plain = tm.doctor("emoji", "HeunDiscreteScheduler", 8).combination.findings
    assert [f.kind for f in plain if f.text.startswith(said)] == ["note"]
    assert not any("guider" in f.text for f in tm.doctor("emoji", "euler", 8).combination.findings)


def test_a_pipeline_that_reads_betas_at_its_times_gets_whole_ones() -> None:
    pipe, _ = tiny.case("sd_more", "StableDiffusionSAGPipeline")
    assert tm.Helm(pipe).choose("heun", 4).sampler.grid == "trailing"
    assert tm.Helm(pipe).choose("heun/karras", 4).sampler.grid == "karras"
    assert tm.Helm(tiny.sd()).choose("heun", 4).sampler.grid == "karras"


@pytest.mark.filterwarnings("ignore:.*__array_wrap__")  # diffusers' DEIS
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("UniPCMultistepScheduler", {}), ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
        ("DDIMScheduler", {"clip_sample": False}), ("DEISMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
        ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}),
    ],
)  # fmt: skip
def test_a_scheduler_that_is_set_makes_its_own_picture_under_the_helm(
    name: str, flags: dict[str, Any]
) -> None:
    """Its levels, its orders, its end and its number of network calls."""
    pipe = tiny.sdxl()
    pipe.scheduler = getattr(d, name).from_config(pipe.scheduler.config, **flags)
    call = {**tiny.prompt(pipe), "num_inference_steps": 8}
    plain = pipe(**call, generator=torch.Generator().manual_seed(1)).images
    helm = tm.Helm(pipe)
    helmed = helm(**call, generator=torch.Generator().manual_seed(1)).images
    assert float((helmed - plain).abs().max()) < 2e-3 * float(plain.abs().max())
    assert helm.run.table.nfe == 8


def test_the_choice_of_a_call_with_a_list_says_so() -> None:
    helm = tm.Helm(tiny.sdxl())
    helm(**tiny.prompt(helm.pipe), timesteps=[999, 700, 400, 100], seeds=[1])
    assert "4 steps" in str(helm.choice)
    assert "your list of levels" in str(helm.choice)


def test_another_sampler_ends_clean_where_the_class_that_is_set_does_not() -> None:
    pipe = tiny.sdxl()
    pipe.scheduler = d.DEISMultistepScheduler.from_config(pipe.scheduler.config)
    helm, call = tm.Helm(pipe), {**tiny.prompt(pipe), "num_inference_steps": 6, "seeds": [1]}
    helm(**call)
    assert float(helm.run.table.sigma[-1]) == pytest.approx(0.0292, abs=1e-4)
    helm(**call, sampler="deis")
    assert float(helm.run.table.sigma[-1]) == 0


def test_image_to_image_under_a_class_that_falls_in_order_makes_the_part_that_is_left() -> None:
    pipe, call = tiny.case("sdxl", "StableDiffusionXLImg2ImgPipeline")
    call = {**call, "num_inference_steps": 8, "strength": 0.5}
    for name in ("DEISMultistepScheduler", "DPMSolverSinglestepScheduler"):
        pipe.scheduler = getattr(d, name).from_config(pipe.scheduler.config, lower_order_final=True)
        helm = tm.Helm(pipe)
        helm(**call, seeds=[1])
        assert helm.run.table.nfe == 4


@pytest.mark.parametrize(
    ("cls", "own"),
    [("FlowMatchHeunDiscreteScheduler", True), ("FlowMatchEulerDiscreteScheduler", False)],
)
def test_heun_on_a_flow_goes_down_to_the_level_where_its_class_ends(cls: str, own: bool) -> None:
    """Its last call is Euler's, so that it should begin low: at 20 steps .019 from the answer, .043
    on u = 1 - i/N.
    """
    pipe, inputs = tiny.case("sd3", "StableDiffusion3Pipeline")
    pipe.scheduler = getattr(d, cls)(shift=3.0)
    peer = getattr(d, cls)(shift=3.0)
    peer.set_timesteps(6)
    helm = tm.Helm(pipe)
    helm(**{**inputs, "num_inference_steps": 6}, seeds=[1])
    times, theirs = torch.tensor(helm.choice.sampler.times or ()), peer.timesteps.unique().flip(0)
    assert (len(times) == len(theirs) and torch.allclose(times, theirs, rtol=1e-4)) is own


@pytest.mark.parametrize(
    ("steps", "lower", "final"), [(14, True, 2), (14, False, 3), (15, True, 3)]
)
def test_the_third_order_that_is_set_falls_at_the_end_as_the_class_does(
    pipe: Any, steps: int, lower: bool, final: int
) -> None:
    pipe.scheduler = d.DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, solver_order=3, lower_order_final=lower
    )
    sampler = tm.Helm(pipe).choose(steps=steps).sampler
    assert (sampler.name, sampler.options["final_order"]) == ("dpmpp_3m", final)


def test_a_class_of_the_dpm_family_keeps_its_own_times_under_the_helm(pipe: Any) -> None:
    pipe.scheduler = d.DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, solver_order=3
    )
    pipe.scheduler.set_timesteps(4)
    sampler = tm.Helm(pipe).choose(steps=4).sampler
    assert (sampler.name, sampler.times) == ("dpmpp_3m", tuple(pipe.scheduler.timesteps.tolist()))
