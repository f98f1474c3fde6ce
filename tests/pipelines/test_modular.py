"""The helm on diffusers' modular pipelines: what a classic pipeline of the same parts makes, the
guider that is set, and a run that goes back.

Right values are those of the classic pipelines under the helm, and of diffusers' own schedulers and
guiders in a plain call of the modular pipeline.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d
import numpy as np
import pytest
import torch
from torch import Tensor

import timonel as tm
from support import pipes
from support.pipes.features import Trial, gap
from timonel.errors import ArgumentError, GridError, Inexact, ModelError, RunError, UnknownName
from timonel.pipelines import modular as read

if not hasattr(d, "ZImageAutoBlocks"):
    pytest.skip("this diffusers has no such blocks yet", allow_module_level=True)
CASES = pipes.load()
XL, STEPS = "StableDiffusionXLModularPipeline", 5
GUIDED = (XL, "WanModularPipeline (2.1)", "QwenImageModularPipeline", "ZImageModularPipeline")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, about itself


def apg(scale: float = 4.0, **changes: Any) -> Any:
    options = {"adaptive_projected_guidance_momentum": -0.5, "eta": 0.5, **changes}
    return d.AdaptiveProjectedGuidance(guidance_scale=scale, **options)


def modular(key: str = XL, guider: Any = None, **parts: Any) -> Trial:
    trial = Trial(CASES[key])
    for name, part in ({"guider": guider} if guider else {} | parts).items():
        setattr(trial.pipe, name, part)
    return trial


def steered(trial: Trial, **orders: Any) -> Tensor:
    return trial.steer(**{"steps": STEPS, **orders})


def same(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return gap(a, b) < tolerance


def back_once(to: int, at: int) -> Callable[[tm.Run], None]:
    done: list[int] = []

    def hook(run: tm.Run) -> None:
        if run.step == at and not done:
            done.append(at)
            run.rewind(to)

    return hook


# -- what it makes ---------------------------------------------------------------------------------
CLASSIC = {
    XL: "StableDiffusionXLPipeline",
    "FluxModularPipeline (dev)": "FluxPipeline (dev)",
    "WanModularPipeline (2.1)": "WanPipeline (2.1)",
    "ZImageModularPipeline": "ZImagePipeline",
}


@pytest.mark.parametrize(
    ("sampler", "guidance"),
    [
        ("euler", 4.0), ("dpmpp_2m/trailing", tm.cfg(4.0, until=0.5)), ("heun", 4.0),
        ("dpmpp_2m_sde", tm.cfg([5, 4, 3, 1, 1])), ("euler", tm.cfg(4.0, rescale=0.7)),
        ("dpmpp_2m", tm.cfg(4.0, forecast=2, order=2)), ("euler", 1.0),
    ],
    ids=["euler", "cutoff", "heun", "per step", "rescaled", "forecast", "off"],
)  # fmt: skip
@pytest.mark.parametrize("key", [XL, "WanModularPipeline (2.1)"])
def test_modular_pipeline_makes_what_the_classic_one_of_its_parts_makes(
    key: str, sampler: str, guidance: Any
) -> None:
    ours, theirs = both(key)
    orders = {"sampler": sampler, "guidance": guidance}
    assert same(steered(ours, **orders), steered(theirs, **orders))


def both(key: str, guider: Any = None) -> tuple[Trial, Trial]:
    """A modular pipeline and the classic one with its parts."""
    ours, theirs = modular(key, guider), Trial(CASES[CLASSIC[key]])
    for network, other in zip(ours.networks, theirs.networks, strict=True):
        other.load_state_dict(network.state_dict())
    for name in ("text_encoder", "text_encoder_2"):
        if hasattr(theirs.pipe, name):
            setattr(theirs.pipe, name, getattr(ours.pipe, name))
    return ours, theirs


@pytest.mark.parametrize(
    ("sampler", "guidance"),
    [
        ("euler", tm.apg(4.0, momentum=-0.5)), ("heun", tm.cfg_zero(4.0)),
        ("dpmpp_2m", tm.tcfg(4.0, until=0.6)), ("euler", tm.cfg_pp(0.6)),
        ("euler", tm.cfg(4.0) + tm.pag(2.0)), ("euler", tm.cfg(1.0) + tm.pag(2.0)),
        ("euler", tm.apg(4.0, forecast=2)),
        ("euler", tm.apg(4.0, rescale=0.5) + tm.pag(1.0)),
    ],
    ids=[
        "APG", "CFG-Zero*", "TCFG", "CFG++", "PAG", "PAG alone", "forecast", "rescaled",
    ],
)  # fmt: skip
@pytest.mark.parametrize("guider", [None, lambda: apg(7.0)], ids=["plain", "APG is set"])
@pytest.mark.parametrize("key", [XL, "WanModularPipeline (2.1)"])
def test_method_of_the_call_takes_the_place_of_the_guiders_formula(
    key: str, guider: Any, sampler: str, guidance: Any
) -> None:
    if key != XL and guidance.terms:
        pytest.skip("this network has no layers that are perturbed")
    ours, theirs = both(key, guider and guider())
    orders = {"sampler": sampler, "guidance": guidance}
    if guider and guidance.method is None:
        return  # plain guidance keeps the formula of the guider that is set
    assert same(steered(ours, **orders), steered(theirs, **orders))


def test_method_may_be_assigned_and_goes_back_exactly() -> None:
    trial = modular()

    def change(run: tm.Run) -> None:
        if run.step == 2:
            run.guidance = tm.apg(4.0, momentum=-0.5)

    straight = steered(trial, sampler="euler", guidance=4.0, hooks=[change])
    hooks = [change, back_once(3, 4)]
    assert torch.equal(steered(trial, sampler="euler", guidance=4.0, keep=6, hooks=hooks), straight)
    assert not same(straight, steered(trial, sampler="euler", guidance=4.0), 1e-6)


@pytest.mark.parametrize("key", [*CLASSIC, "QwenImageModularPipeline", "WanModularPipeline (2.2)"])
def test_helm_makes_what_diffusers_own_scheduler_makes(key: str) -> None:
    """The sampler of the scheduler that is set, where one of timonel has its numbers."""
    trial, orders = Trial(CASES[key]), dict[str, Any]()
    if "Wan" in key:  # diffusers' UniPC rounds its times, and Euler's list ends elsewhere
        trial.pipe.update_components(scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0))
        orders = {"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]}
    plain = trial.plainly(num_inference_steps=STEPS, **orders)
    assert same(steered(trial, **orders), plain, 2e-4)
    assert same(trial.plainly(num_inference_steps=STEPS, **orders), plain, 1e-9)  # nothing is left


def test_helm_and_drop_in_make_the_same_with_two_calls_a_step() -> None:
    trial = modular(guider=d.ClassifierFreeGuidance(guidance_scale=4.0, stop=0.6))
    with trial.counted() as sizes:
        ours = steered(trial, sampler="heun/leading")
    assert sum(sizes) == 2 * 2 * 3 + 3  # guided in three of five steps, one call in the last
    config = trial.pipe.scheduler.config
    trial.pipe.update_components(scheduler=tm.Scheduler.from_config(config, sampler="heun"))
    for _ in range(2):
        assert same(trial.plainly(num_inference_steps=STEPS), ours)
    assert trial.pipe.guider._step is None


# -- guidance --------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", GUIDED)
def test_unguided_rows_call_the_network_for_the_conditional_part_alone(key: str) -> None:
    trial = Trial(CASES[key])
    for guidance, calls in ((3.0, 10), (tm.cfg(3.0, until=2, unit="step"), 7), (1.0, 5)):
        with trial.counted() as sizes:
            steered(trial, sampler="euler", guidance=guidance)
        assert len(sizes) == calls


@pytest.mark.parametrize(
    "guider",
    [
        apg, lambda s: d.ClassifierFreeZeroStarGuidance(guidance_scale=s, zero_init_steps=1),
        lambda s: d.TangentialClassifierFreeGuidance(guidance_scale=s),
        lambda s: d.ClassifierFreeGuidance(guidance_scale=s, use_original_formulation=True),
        lambda s: d.SkipLayerGuidance(
            guidance_scale=s, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=0.9,
            skip_layer_config=d.LayerSkipConfig(indices=[0], fqn="mid_block.attentions.0."
                                                                 "transformer_blocks"),
        ),
    ],
    ids=["APG", "CFG-Zero*", "TCFG", "original", "skip layers"],
)  # fmt: skip
def test_guider_that_is_set_keeps_its_formula(guider: Any) -> None:
    """At its own scale without guidance=, and at that of the call with it."""
    trial = modular(guider=guider(4.0))
    usual = steered(trial, sampler="euler/leading")
    assert same(usual, trial.plainly(num_inference_steps=STEPS), 2e-4)
    trial.pipe.guider = guider(9.0)
    assert same(steered(trial, sampler="euler/leading", guidance=4.0), usual, 1e-6)
    assert trial.pipe.guider.guidance_scale == 9.0
    plain = modular(guider=d.ClassifierFreeGuidance(guidance_scale=4.0))
    assert not same(usual, steered(plain, sampler="euler/leading"), 1e-3)


def test_guider_has_the_interval_of_the_call() -> None:
    trial = modular(guider=apg(stop=0.4))
    with trial.counted() as sizes:
        steered(trial, sampler="euler")  # its own interval
    assert len(sizes) == 5 + 2
    with trial.counted() as sizes:
        steered(trial, sampler="euler", guidance=tm.cfg(between=(0.2, 1.0)))  # a part of it
    assert len(sizes) == 5 + 1
    with trial.counted() as sizes:
        steered(trial, sampler="euler", guidance=tm.cfg(4.0, between=(0.2, 1.0)))
    assert len(sizes) == 5 + 4


def test_guider_that_is_off_guides_at_the_scale_of_the_call() -> None:
    trial = modular(guider=d.ClassifierFreeGuidance(guidance_scale=7.0, enabled=False))
    off, on = steered(trial), steered(trial, guidance=4.0)
    assert same(on, steered(modular(guider=d.ClassifierFreeGuidance(guidance_scale=4.0))))
    assert same(off, steered(trial, guidance=1.0))
    with pytest.raises(ArgumentError, match="no unconditional part"):
        steered(trial, guidance=tm.cfg(until=0.5))
    assert not trial.pipe.guider._enabled


def test_guidance_may_be_changed_at_any_step() -> None:
    trial = modular()

    def off(run: tm.Run) -> None:
        run.guidance = 1.0 if run.step == 2 else run.guidance

    with trial.counted() as sizes:
        changed = steered(trial, sampler="euler", guidance=4.0, hooks=[off])
    assert len(sizes) == 5 + 2
    assert same(changed, steered(trial, sampler="euler", guidance=tm.cfg(4.0, until=0.4)))

    def on(run: tm.Run) -> None:
        run.guidance = 4.0

    later = steered(trial, sampler="euler", guidance=1.0, hooks=[on])
    assert same(later, steered(trial, sampler="euler", guidance=tm.cfg(4.0, between=(0.2, 1))))
    trial.pipe.guider = d.ClassifierFreeGuidance(guidance_scale=4.0, enabled=False)
    with pytest.raises(ArgumentError, match="cannot be switched on now"):
        steered(trial, sampler="euler", hooks=[on])


def test_forecast_of_other_parts_than_two_is_refused() -> None:
    trial = modular(guider=d.SkipLayerGuidance(skip_layer_guidance_layers=[0]))
    with trial.counted() as sizes, pytest.raises(ArgumentError, match="by up to 3 parts"):
        steered(trial, guidance=tm.cfg(4.0, forecast=2))
    assert sizes == []


# -- the run ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep", [0, 6])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_run_with_a_guider_that_remembers_goes_back_exactly(sampler: str, keep: int) -> None:
    """The momentum of APG belongs to a row, as a cache of the network does."""
    trial = modular(guider=apg())
    straight = steered(trial, sampler=sampler)
    again = steered(trial, sampler=sampler, keep=keep, hooks=[back_once(1, 3)])
    assert torch.equal(again, straight)


def test_run_that_was_stopped_or_branched_goes_on_exactly() -> None:
    trial, branches = modular(guider=apg()), list[tm.Run]()
    straight = steered(trial, sampler="dpmpp_2m")

    def hook(run: tm.Run) -> None:
        if run.step == 2:
            branches.append(run.branch())
        elif run.step == 3:
            run.stop()

    stopped = steered(trial, sampler="dpmpp_2m", hooks=[hook], keep=1)
    assert not torch.equal(stopped, straight)
    assert trial.run.status == "stopped"
    first = {"seeds": None, "steps": None}
    assert torch.equal(steered(trial, resume=trial.run, **first), straight)
    assert torch.equal(steered(trial, resume=branches[0], **first), straight)


def test_run_whose_momentum_is_lost_says_so(tmp_path: Path) -> None:
    trial = modular(guider=apg())
    steered(trial, hooks=[lambda run: run.save(tmp_path / "run") if run.step == 3 else None])
    first = {"seeds": None, "steps": None, "resume": tm.Run.load(tmp_path / "run")}
    with pytest.warns(Inexact):
        steered(trial, **first)
    trial.pipe.guider = d.ClassifierFreeGuidance(guidance_scale=4.0)  # which remembers nothing
    assert steered(trial, **first).isfinite().all()


def test_loop_that_counts_its_turns_is_called_again_after_a_rewind() -> None:
    trial = Trial(CASES[XL + " (inpaint)"])  # which blends with noise of the next turn's time
    straight = steered(trial, sampler="euler")
    assert same(steered(trial, sampler="euler", keep=6, hooks=[back_once(1, 2)]), straight)


def test_pipeline_is_as_before_after_calls_and_errors() -> None:
    trial = modular(guider=apg())
    pipe, first = trial.pipe, steered(trial)
    before = {name: getattr(pipe, name) for name in pipe.components}
    state = dict(vars(pipe.guider))

    def fail(run: tm.Run) -> None:
        raise ZeroDivisionError

    with pytest.raises(tm.errors.HookError):
        steered(trial, hooks=[fail])
    for part, one in before.items():
        assert getattr(pipe, part) is one
    assert vars(pipe.guider) == state
    assert torch.equal(steered(trial), first)


def test_second_helm_on_a_pipeline_at_work_is_refused() -> None:
    trial, other = modular(), modular(guider=apg())
    other.pipe.unet = trial.pipe.unet
    refused: list[str] = []

    def call(run: tm.Run) -> None:
        assert trial.pipe.components["guider"] is guider  # what others share is what is set
        for one in (tm.Helm(trial.pipe), tm.Helm(other.pipe)):
            with pytest.raises(RunError) as error:
                one(**trial.case.inputs(), steps=2)
            refused.append(str(error.value))

    guider = trial.pipe.guider
    steered(trial, hooks=[call])
    assert len(refused) == 2 * STEPS
    assert all("is at work in another call" in text for text in refused)


@pytest.mark.parametrize(
    "key", [XL, "FluxModularPipeline (dev)", "WanModularPipeline (2.1)", "QwenImageModularPipeline"]
)
def test_preview_of_the_last_step_is_the_picture(key: str) -> None:
    trial, shown = Trial(CASES[key]), list[Any]()
    options = {**trial.case.inputs(), **trial.case.shown("np"), "seeds": [0], "steps": 3}
    watch = tm.preview(lambda run, images: shown.append(images[0]), decode=True, block=True)
    made = np.asarray(trial.helm(**options, hooks=[watch]))
    frame = made.reshape(-1, *made.shape[-3:])[0]
    assert len(shown) == 3
    ours = np.asarray(shown[-1], dtype=float)[: frame.shape[0], : frame.shape[1]]
    assert abs(ours - frame * 255).max() <= 1.5


def test_call_in_the_background_is_looked_at_while_it_goes_on() -> None:
    trial = modular()
    options = {**trial.case.inputs(), **trial.case.shown("pil"), "seeds": [0], "steps": 3}
    handle = trial.helm.start(**options, hooks=[lambda run: run.pause() if run.step == 1 else None])
    while handle.status != "paused":
        time.sleep(0.01)
    assert [one.size for one in handle.preview(decode=True)] == [(16, 16)]
    handle.resume()
    made = handle.result()[0].tobytes()
    assert made == trial.helm(**options)[0].tobytes()


@pytest.mark.parametrize("key", ["StableDiffusionPipeline", XL])
def test_progress_bars_are_as_before_where_a_hook_shows_the_progress(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(CASES[key])
    bars = (
        [one for one in read.leaves(trial.pipe) if hasattr(one, "loop_step")] if key == XL else []
    )
    for one in bars or [trial.pipe]:
        one.set_progress_bar_config(desc="mine")
    steered(trial)
    assert "mine" in capsys.readouterr().err
    steered(trial, hooks=[tm.progress()])
    assert "mine" not in capsys.readouterr().err
    assert all(one._progress_bar_config == {"desc": "mine"} for one in bars or [trial.pipe])


def test_state_and_outputs_are_the_pipelines_own(tmp_path: Path) -> None:
    helm = modular().helm
    options = {**CASES[XL].inputs(), "seeds": [3], "steps": 2, "output_type": "pil"}
    state = helm(**{**options, "output": None})
    alone, named = (helm(**{**options, "output": o}) for o in ("images", ["images", "latents"]))
    pictures = [state.images[0], alone[0], named["images"][0]]
    assert len({one.tobytes() for one in pictures}) == 1
    assert type(named["latents"]) is Tensor
    for one in pictures:
        one.save(tmp_path / "one.png")
        assert tm.Recipe.read(tmp_path / "one.png").seed == 3


# -- bad input -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"promt": "a fox"}, UnknownName, "did you mean 'prompt'"),
        ({"prompt": 3}, ArgumentError, "prompt must be text"),
        ({"prompt": None}, ArgumentError, "cannot take these arguments"),
        ({"guidance_scale": 3.0}, UnknownName, "guidance_scale"),
        ({"height": 0}, ArgumentError, "height"),
        ({"image": pipes.modular.picture(), "strength": 0.01}, GridError, "leaves none"),
    ],
)
def test_bad_input_is_refused_before_compute(options: Any, error: Any, text: str) -> None:
    trial = modular()
    with trial.counted() as sizes, pytest.raises(error, match=text):
        steered(trial, **options)
    assert sizes == []


def test_pipeline_without_its_parts_says_how_they_are_loaded() -> None:
    pipe = d.StableDiffusionXLAutoBlocks().init_pipeline()
    with pytest.raises(ModelError, match=r"no scheduler and no unet yet: call pipe.load_comp"):
        tm.Helm(pipe)


# -- folders ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    emoji, pipe = tm.Helm("emoji").pipe, d.StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {k: v for k, v in emoji.components.items() if v is not None}
    pipe.update_components(**{k: v for k, v in parts.items() if k in pipe.component_names})
    folder = tmp_path_factory.mktemp("modular") / "emoji"
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def test_saved_pipeline_is_loaded_by_its_folder(saved: Path) -> None:
    call = {"prompt": "red apple", "height": 64, "width": 64, "seeds": [7], "steps": 4}
    loaded = d.ModularPipeline.from_pretrained(str(saved))
    loaded.load_components()
    shipped = tm.Helm("emoji")(**call, sampler="dpmpp_2m/karras", guidance=4.0).images[0]
    for model in (str(saved), loaded):
        helm = tm.Helm(model)
        made = helm(**call, sampler="dpmpp_2m/karras", guidance=4.0).images[0]
        assert np.abs(np.asarray(made, int) - np.asarray(shipped, int)).max() <= 1
    assert tm.Helm(str(saved), dtype="bf16").pipe.unet.dtype == torch.bfloat16


def entry(key: str, value: Any, file: str = "modular_model_index.json") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | {key: value}))

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: (f / "block.py").write_text("1 / 0"), r"code of its own \(block.py\)"),
        (
            entry("auto_map", {"ModularPipelineBlocks": "block.B"}, "modular_config.json"),
            "never run",
        ),
        (entry("_blocks_class_name", "EvilBlocks"), "blocks 'EvilBlocks' are code that comes"),
        (entry("_class_name", "EvilModularPipeline"), "no modular pipeline 'EvilModular"),
        (entry("unet", ["evil", "X", {"type_hint": ["evil", "X"]}]), "is of 'evil'"),
        (entry("auto_map", {"AutoModel": "x.B"}, "unet/config.json"), "never run here"),
        (lambda f: shutil.rmtree(f / "unet"), "its part unet is not in the folder"),
        (lambda f: next((f / "unet").glob("*.safetensors")).unlink(), "unet"),
        (
            lambda f: next((f / "unet").glob("*.safetensors")).rename(f / "unet" / "model.bin"),
            "is a pickle",
        ),
    ],
    ids=[
        "code", "blocks of its own", "unknown blocks", "unknown pipeline", "another library",
        "network of its own", "part is away", "no weights", "pickle",
    ],
)  # fmt: skip
def test_folder_that_would_run_code_or_lacks_a_part_is_refused(
    saved: Path, tmp_path: Path, change: Any, text: str
) -> None:
    shutil.copytree(saved, tmp_path / "changed")
    change(tmp_path / "changed")
    with pytest.raises(ModelError, match=text):
        tm.Helm(str(tmp_path / "changed"))


def test_parts_are_read_from_the_folder_whatever_its_index_says(
    saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(saved, folder)
    index = json.loads((folder / "modular_model_index.json").read_text())
    index["unet"][2] |= {"pretrained_model_name_or_path": "evil/repository", "subfolder": "../x"}
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    assert tm.Helm(str(folder)).pipe.unet is not None
