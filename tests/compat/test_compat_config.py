"""Configurations of diffusers' scheduler names on timonel: passed on, saved, loaded, and refused
where not done.
"""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
import timonel.compat as compat
from support import tiny
from support.compat_runs import CONFIG, INVERSE, relative, trained
from timonel.compat.schedulers import CLASSES
from timonel.errors import ArgumentError, UnknownName

# numpy 2 against torch, inside diffusers' own schedulers
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
SVD = {
    "prediction_type": "v_prediction", "sigma_max": 700.0, "sigma_min": 0.002,
    "timestep_type": "continuous",
    "use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1, **CONFIG,
}  # fmt: skip
FOR = {
    kind: [name for name, cls in CLASSES.items() if kind in cls.kinds and name not in INVERSE]
    for kind in ("vp", "edm", "flow")
}
MODELS = {
    "vp": diffusers.EulerDiscreteScheduler(**CONFIG, steps_offset=1, timestep_spacing="leading"),
    "v": diffusers.DDIMScheduler(**CONFIG, prediction_type="v_prediction"),
    "edm": diffusers.EDMEulerScheduler(sigma_max=120.0),
    "svd": diffusers.EulerDiscreteScheduler(**SVD),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.6),
    "wan": diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    ),
}
KIND = {
    "vp": "vp",
    "v": "vp",
    "edm": "edm",
    "svd": "edm",
    "flow": "flow",
    "dynamic": "flow",
    "wan": "flow",
}
PAIRS = [(model, name) for model in MODELS for name in FOR[KIND[model]]]


def facts(scheduler: Any) -> tuple[Any, ...]:
    """What a scheduler knows of its model."""
    process = scheduler.process
    of = {
        "vp": ("steps_offset",),
        "edm": ("sigma_data", "sigma_min", "sigma_max"),
        "flow": ("shift", "_dynamic"),
        "trig": ("train_steps",),
        "cosine": ("train_steps",),
    }
    return (
        process.kind,
        scheduler.prediction,
        process.train_steps,
        *(getattr(process, k) for k in of[process.kind][:1]),
    )


def public(config: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


# -- passed on -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("model", "name"), PAIRS)
def test_from_config_keeps_what_the_model_was_trained_for_there_and_back(
    model: str, name: str
) -> None:
    source = MODELS[model]
    made = getattr(compat, name).from_config(source.config)
    plain = tm.Scheduler.from_config(source.config)
    assert facts(made) == facts(plain)
    assert facts(tm.Scheduler.from_config({**made.config, "_class_name": name})) == facts(plain)
    back = getattr(compat, type(source).__name__).from_config(made.config)
    assert facts(back) == facts(plain)
    mu = {"mu": 1.0} if model == "dynamic" and made.config.get("use_dynamic_shifting") else {}
    if mu and name == "FlowMatchHeunDiscreteScheduler":
        mu = {}
    made.set_timesteps(6, **mu)
    assert torch.isfinite(made.run.table.x).all()


@pytest.mark.parametrize("name", [n for n in FOR["vp"] if n != "UnCLIPScheduler"])
def test_diffusers_reads_the_configs_that_timonel_writes(name: str) -> None:
    config = trained(name).config
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(config)
    assert {k: theirs.config[k] for k in CONFIG} == CONFIG


def test_flags_that_were_defaults_of_another_class_are_left_to_this_one() -> None:
    """As in diffusers, whose PNDM is spaced "leading" and whose DPM-Solver "linspace" when nobody
    says so.
    """
    config = diffusers.PNDMScheduler(**CONFIG).config
    assert (
        compat.DPMSolverMultistepScheduler.from_config(config).config.timestep_spacing == "linspace"
    )
    written = diffusers.PNDMScheduler(**CONFIG, timestep_spacing="leading").config
    assert (
        compat.DPMSolverMultistepScheduler.from_config(written).config.timestep_spacing == "leading"
    )


def test_flags_of_a_class_survive_a_visit_to_another() -> None:
    config = diffusers.PNDMScheduler(**CONFIG, skip_prk_steps=True, steps_offset=1).config
    there = compat.DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True)
    back = compat.PNDMScheduler.from_config(there.config)
    assert back.config.skip_prk_steps is True
    assert back.sampler.name == "plms"


def test_words_of_another_class_become_this_ones_own() -> None:
    dpm = compat.DPMSolverMultistepScheduler(
        **CONFIG, algorithm_type="sde-dpmsolver++", solver_type="heun"
    )
    assert compat.DEISMultistepScheduler.from_config(dpm.config).config.algorithm_type == "deis"
    assert compat.UniPCMultistepScheduler.from_config(dpm.config).config.solver_type == "bh2"
    unipc = compat.UniPCMultistepScheduler.from_config(dpm.config, solver_type="bh1")
    assert (
        compat.DPMSolverMultistepScheduler.from_config(unipc.config).config.solver_type
        == "midpoint"
    )


#: arguments of a class, and the classes that its configuration visits; the last is read back by the
#: first
CHAINS: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "DPMSolverMultistep",
        {"prediction_type": "epsilon", "solver_order": 2},
        ["EulerDiscrete", "DDIM"],
    ),
    ("DPMSolverSinglestep", {"prediction_type": "epsilon"}, ["EulerDiscrete"]),
    ("LCM", {**CONFIG, "prediction_type": "epsilon"}, ["DDPM", "EulerDiscrete", "HeunDiscrete"]),
    ("TCD", {**CONFIG, "prediction_type": "v_prediction"}, ["DDIM", "DEISMultistep"]),
    ("EDMEuler", {"sigma_min": 0.002, "sigma_max": 80.0}, ["EDMDPMSolverMultistep"]),
    ("EDMDPMSolverMultistep", {"sigma_max": 80.0, "solver_order": 2}, ["EDMEuler"]),
    ("EulerDiscrete", {}, ["DPMSolverMultistep", "EulerAncestralDiscrete"]),
    ("UniPCMultistep", {**CONFIG, "use_karras_sigmas": True}, ["DPMSolverMultistep", "DDIM"]),
]


@pytest.mark.parametrize(("name", "given", "visits"), CHAINS)
def test_a_config_says_which_values_were_defaults_as_diffusers_says_it(
    name: str, given: dict[str, Any], visits: list[str], tmp_path: Path
) -> None:
    """`_use_default_values`, from the constructor, after visits to other classes, set in place,
    saved and loaded.
    """
    said: list[list[set[str]]] = []
    own = getattr(compat, f"{name}Scheduler").defaults
    for module in (diffusers, compat):
        classes = [getattr(module, f"{one}Scheduler") for one in (*visits, name)]
        made = classes[-1](**given)
        line = [made]
        for cls in classes:
            line.append(cls.from_config(line[-1].config))
        made.register_to_config(num_train_timesteps=500)
        line[-1].save_pretrained(tmp_path)
        line.append(classes[-1].from_pretrained(str(tmp_path)))
        ends = (made, line[-2], line[-1])
        said.append(
            [{k for k in one.config.get("_use_default_values", ()) if k in own} for one in ends]
        )
    assert said[0] == said[1]


@pytest.mark.parametrize(("name", "kind"), [
    ("FlowMatchEulerDiscreteScheduler", "vp"), ("EDMEulerScheduler", "vp"),
    ("EDMEulerScheduler", "flow"),
    ("FlowMatchHeunDiscreteScheduler", "svd"),
])  # fmt: skip
def test_a_class_for_another_kind_of_model_is_refused(name: str, kind: str) -> None:
    with pytest.raises(ArgumentError, match=r"is not for a \w+ model.*use \w+Scheduler"):
        getattr(compat, name).from_config(MODELS[kind].config)


def test_compatibles_are_the_classes_that_fit_the_model() -> None:
    vp = compat.DDIMScheduler(**CONFIG).compatibles
    assert compat.DPMSolverMultistepScheduler in vp
    assert compat.FlowMatchEulerDiscreteScheduler not in vp
    for cls in compat.FlowMatchEulerDiscreteScheduler().compatibles:
        assert cls.from_config(MODELS["flow"].config).process.kind == "flow"


# -- refused ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CLASSES)
def test_an_unknown_argument_is_refused_with_the_nearest_name(name: str) -> None:
    cls = getattr(compat, name)
    with pytest.raises(UnknownName, match="num_train_timesteps"):
        cls(num_train_timestep=1000)
    with pytest.raises(UnknownName, match="num_train_timesteps"):
        cls.from_config(trained(name).config, num_train_timestep=1000)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver", "solver_order": 3},
        "solver_order=2",
    ),
    ("DPMSolverMultistep", {"algorithm_type": "dpm++"}, "dpmsolver\\+\\+"),
    ("DPMSolverMultistep", {"solver_order": 4}, "solver_order=1, 2 or 3"),
    ("DPMSolverMultistep", {"timestep_spacing": "traling"}, "trailing"),
    ("DPMSolverMultistep", {"final_sigmas_type": "one"}, "sigma_min"),
    ("DPMSolverSinglestep", {"solver_order": 4}, "solver_order=1, 2 or 3"),
    ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver"}, "sde-dpmsolver\\+\\+"),
    ("UniPCMultistep", {"predict_x0": False}, "predict_x0=True"),
    ("UniPCMultistep", {"solver_p": 3}, "solver_p=None"),
    ("SASolver", {"tau_func": abs}, "sa_solver"),
    ("FlowMatchLCM", {"scale_factors": [0.5]}, "size of its sample"),
    ("SASolver", {"algorithm_type": "noise_prediction"}, "data_prediction"),
    (
        "EulerDiscrete",
        {"use_karras_sigmas": True, "use_beta_sigmas": True},
        "use_karras_sigmas and use_beta_sigmas",
    ),
]
#: flags that diffusers' classes take and never read, or not beside the others
IDLE: list[tuple[str, dict[str, Any], str]] = [
    *(("LCM", {key: value}, "original_inference_steps") for key, value in
      (("timestep_spacing", "trailing"), ("steps_offset", 1))),
    *(("TCD", {key: value}, "original_inference_steps") for key, value in
      (("timestep_spacing", "trailing"), ("steps_offset", 1))),
    ("TCD", {"timestep_scaling": 5.0}, "boundary"),
    *(("TCD", {key: value}, "never reads it") for key, value in (
        ("clip_sample", True), ("clip_sample_range", 2.0), ("thresholding", True),
        ("dynamic_thresholding_ratio", 0.9), ("sample_max_value", 2.0))),
    *((f"CogVideoX{kind}", {key: value}, "never reads it") for kind in ("DDIM", "DPM")
      for key, value in (("clip_sample", False), ("clip_sample_range", 2.0),
                         ("sample_max_value", 2.0))),
    ("FlowMatchLCM", {"upscale_mode": "nearest"}, "keep their size"),
    ("EulerDiscrete", {"timestep_type": "continuous"}, "v_prediction"),
    ("EulerDiscrete", {"sigma_max": 10.0}, "use_karras_sigmas"),
    ("FlowMatchEulerDiscrete", {"base_shift": 0.7}, "use_dynamic_shifting"),
    ("UniPCMultistep", {"flow_shift": 3.0}, "flow"),
]  # fmt: skip
#: words of other classes that diffusers' constructors take for their own
WORDS = [
    *((name, key, word) for name in ("DPMSolverMultistep", "DPMSolverSinglestep",
    "EDMDPMSolverMultistep")
      for key, word in (("algorithm_type", "deis"), ("solver_type", "bh1"))),
    *(("DEISMultistep", "algorithm_type", word) for word in ("dpmsolver", "dpmsolver++")),
    *(("DEISMultistep", "solver_type", word) for word in ("midpoint", "heun", "bh1", "bh2")),
    *(("UniPCMultistep", "solver_type", word) for word in ("midpoint", "heun", "logrho")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "flags", "remedy"), REFUSALS)
def test_a_flag_that_is_not_done_is_refused_with_its_remedy(
    name: str, flags: dict[str, Any], remedy: str
) -> None:
    cls = getattr(compat, f"{name}Scheduler")
    with pytest.raises(ArgumentError, match=remedy):
        cls(**flags)


def test_every_key_that_a_class_of_diffusers_never_reads_is_tried_here() -> None:
    unread = {(name, key) for name, cls in CLASSES.items() for key in cls.row.unread}
    assert unread <= {(f"{name}Scheduler", key) for name, flags, _ in IDLE for key in flags}


@pytest.mark.parametrize(("name", "flags", "why"), IDLE)
def test_a_flag_that_changes_nothing_in_diffusers_is_taken_and_said_once(
    name: str, flags: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    cls = getattr(compat, f"{name}Scheduler")
    made, (key, value) = cls(**flags), next(iter(flags.items()))
    assert getattr(diffusers, f"{name}Scheduler")(**flags).config[key] == made.config[key] == value
    assert caplog.text.count(f"{key}={value!r} changes nothing") == 1
    assert why in caplog.text
    caplog.clear()
    plain = cls()
    for scheduler in (made, plain, cls.from_config(made.config)):
        scheduler.set_timesteps(6)
    assert torch.equal(made.run.table.x, plain.run.table.x)
    assert not caplog.text  # what a config carries was said where it was asked for


@pytest.mark.parametrize(("name", "key", "word"), WORDS)
def test_a_word_of_another_class_means_what_diffusers_takes_it_for(
    name: str, key: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    flags = {key: word, **({"final_sigmas_type": "sigma_min"} if word == "deis" else {})}
    ours, theirs = (
        getattr(module, f"{name}Scheduler")(**flags).config for module in (compat, diffusers)
    )
    assert ours[key] == theirs[key] == getattr(compat, f"{name}Scheduler").defaults[key]
    assert f"{key}={word!r} is a word of another class" in caplog.text


def test_flags_that_change_nothing_are_kept_where_they_come_with_a_config(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = diffusers.EulerDiscreteScheduler(**CONFIG, timestep_spacing="trailing").config
    assert compat.LCMScheduler.from_config(config).config.timestep_spacing == "trailing"
    assert "changes nothing" not in caplog.text
    compat.LCMScheduler.from_config(config, timestep_spacing="trailing")
    assert "timestep_spacing='trailing' changes nothing" in caplog.text
    with pytest.raises(
        ArgumentError, match=r"sigma_max=5\.0 changes nothing"
    ):  # no key of the class
        compat.DDIMScheduler.from_config(config, sigma_max=5.0)


def test_what_only_the_steps_can_tell_is_refused_before_any_compute() -> None:
    dynamic = compat.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ArgumentError, match="give mu"):
        dynamic.set_timesteps(5)
    with pytest.raises(ArgumentError, match="shifts flow models"):
        compat.EulerDiscreteScheduler().set_timesteps(5, mu=1.0)
    with pytest.raises(ArgumentError, match="not both"):
        compat.EulerDiscreteScheduler().set_timesteps(timesteps=[999], sigmas=[14.0])
    with pytest.raises(ArgumentError, match="switch use_karras_sigmas off"):
        compat.EulerDiscreteScheduler(use_karras_sigmas=True).set_timesteps(timesteps=[999, 500])
    with pytest.raises(ArgumentError, match="final_sigmas_type='sigma_min'"):
        compat.UniPCMultistepScheduler(lower_order_final=False).set_timesteps(5)
    compat.UniPCMultistepScheduler(lower_order_final=False).set_timesteps(1)
    for name in (
        "DDPM",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "EulerDiscrete",
        "HeunDiscrete",
        "LCM",
        "TCD",
    ):
        for module in (compat, diffusers):
            scheduler = getattr(module, f"{name}Scheduler")()
            with pytest.raises(ValueError, match=r"one of"):
                scheduler.set_timesteps(num_inference_steps=2, timesteps=[999, 499])


def test_arguments_of_a_step_that_belong_elsewhere_are_refused() -> None:
    scheduler = compat.EulerDiscreteScheduler(**CONFIG)
    scheduler.set_timesteps(3)
    x = torch.randn(1, 4, 4, 4)
    with pytest.raises(ArgumentError, match="s_churn"):
        scheduler.step(x, 999, x, s_churn=2.0)
    with pytest.raises(ArgumentError, match="eta"):
        scheduler.step(x, 999, x, eta=0.5)
    scheduler.step(x, 999, x, s_churn=0.0, s_noise=1.0)
    tcd = compat.TCDScheduler()
    tcd.set_timesteps(3)
    tcd.step(x, 999, x, eta=0.3)
    with pytest.raises(ArgumentError, match="first step"):
        tcd.step(x, 999, x, eta=0.1)


# -- saved and loaded ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CLASSES)
def test_saving_loading_and_copying_keep_the_configuration(name: str, tmp_path: Path) -> None:
    scheduler = trained(name)
    scheduler.save_pretrained(tmp_path / "scheduler")
    loaded = getattr(compat, name).from_pretrained(str(tmp_path), subfolder="scheduler")
    for other in (loaded, copy.deepcopy(scheduler)):
        assert type(other) is type(scheduler)
        assert public(other.config) == public(scheduler.config)
        assert facts(other) == facts(scheduler)
    theirs = getattr(diffusers, name)
    if hasattr(theirs, "from_pretrained"):  # a folder that diffusers wrote
        changed = theirs.from_config({**public(scheduler.config), "_class_name": name})
        changed.save_pretrained(tmp_path / "theirs")
        again = getattr(compat, name).from_pretrained(str(tmp_path), subfolder="theirs")
        assert {k: again.config[k] for k in again.defaults} == {
            k: scheduler.config[k] for k in again.defaults
        }


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_a_saved_pipeline_names_the_package_and_loads_again(name: str, tmp_path: Path) -> None:
    pipe = tiny.sdxl()
    flags = {"use_karras_sigmas": True} if name.startswith("DPM") else {"clip_sample": False}
    pipe.scheduler = getattr(compat, name).from_config(pipe.scheduler.config, **flags)
    pipe.save_pretrained(tmp_path)
    assert f'"timonel.compat",\n    "{name}"' in (tmp_path / "model_index.json").read_text()
    loaded = diffusers.StableDiffusionXLPipeline.from_pretrained(str(tmp_path))
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is getattr(compat, name)
    assert public(loaded.scheduler.config) == public(pipe.scheduler.config)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    made = [
        p(**tiny.prompt(p), num_inference_steps=3, generator=seed).images
        for p, seed in zip((pipe, loaded), seeds, strict=True)
    ]
    assert torch.equal(*made)


def test_a_fresh_process_loads_a_saved_pipeline_after_one_import(tmp_path: Path) -> None:
    pipe = tiny.sdxl()
    pipe.scheduler = compat.UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    code = (
        "import sys, timonel.compat, diffusers; "
        "pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1]); "
        "print(type(pipe.scheduler).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "UniPCMultistepScheduler", done.stderr


# -- in pipelines ----------------------------------------------------------------------------------
def build(family: str, name: str) -> tuple[Any, dict[str, Any]]:
    importlib.import_module(f"support.pipes.{family}")
    case = importlib.import_module("support.pipes.registry").CASES[name]
    return case.build(), case.inputs()


def test_svd_is_told_a_quarter_of_log_sigma_and_does_not_raise() -> None:
    """diffusers tells it training times of another model, and its last step raises IndexError."""
    pipe, inputs = build("video", "StableVideoDiffusionPipeline")
    flags = {
        "algorithm_type": "sde-dpmsolver++",
        "use_karras_sigmas": True,
        "timestep_spacing": "trailing",
    }
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **flags)
    ours = compat.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **flags)
    told: list[float] = []
    pipe.unet.register_forward_pre_hook(lambda module, args: told.append(float(args[1])))
    pipe.scheduler = ours
    frames = pipe(
        **inputs, num_inference_steps=10, generator=torch.Generator().manual_seed(0)
    ).frames
    assert frames.isfinite().all()
    rho = torch.linspace(700 ** (1 / 7), 0.002 ** (1 / 7), 10, dtype=torch.float64) ** 7
    assert told == pytest.approx((0.25 * torch.log(rho)).tolist(), abs=1e-5)
    pipe.scheduler = theirs
    with pytest.raises(IndexError):
        pipe(**inputs, num_inference_steps=10)


@pytest.mark.parametrize("name", FOR["edm"])
def test_svd_runs_with_every_class(name: str) -> None:
    pipe, inputs = build("video", "StableVideoDiffusionPipeline")
    pipe.scheduler = getattr(compat, name).from_config(pipe.scheduler.config)
    assert pipe(**inputs, num_inference_steps=4).frames.isfinite().all()
    assert pipe.scheduler.sigmas[0] == pytest.approx(700, rel=1e-4)


def test_svd_gives_the_frames_that_it_gives_with_diffusers_euler() -> None:
    pipe, inputs = build("video", "StableVideoDiffusionPipeline")
    made = []
    for module in (diffusers, compat):
        pipe.scheduler = module.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        made.append(
            pipe(**inputs, num_inference_steps=6, generator=torch.Generator().manual_seed(0)).frames
        )
    assert relative(made[1], made[0]) < 1e-4  # measured 2e-6


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
def test_sd3_gives_the_latents_that_it_gives_with_diffusers_class(name: str) -> None:
    pipe, inputs = build("sd3", "StableDiffusion3Pipeline")
    own, made = pipe.scheduler.config, []
    for module in (diffusers, compat):
        pipe.scheduler = getattr(module, name).from_config(own)
        made.append(
            pipe(**inputs, num_inference_steps=6, generator=torch.Generator().manual_seed(0)).images
        )
    assert relative(made[1], made[0]) < 1e-4


@pytest.mark.parametrize("name", FOR["flow"])
def test_sd3_runs_with_every_class_that_fits_flow(name: str) -> None:
    pipe, inputs = build("sd3", "StableDiffusion3Pipeline")
    pipe.scheduler = getattr(compat, name).from_config(pipe.scheduler.config)
    assert pipe(**inputs, num_inference_steps=4).images.isfinite().all()


@pytest.mark.parametrize("strength", [0.75, 0.6])
@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscrete",
        "HeunDiscrete",
        "DPMSolverMultistep",
        "DDIM",
        "UniPCMultistep",
        "DPMSolverSinglestep",
    ],
)
def test_image_to_image_gives_the_latents_that_it_gives_with_diffusers_class(
    name: str, strength: float
) -> None:
    pipe, asked = image_to_image()
    flags = {"clip_sample": False} if name == "DDIM" else {}
    own, made = pipe.scheduler.config, []
    for module in (diffusers, compat):
        pipe.scheduler = getattr(module, f"{name}Scheduler").from_config(own, **flags)
        g = torch.Generator().manual_seed(0)
        made.append(pipe(**asked, strength=strength, num_inference_steps=8, generator=g).images)
    assert relative(made[1], made[0]) < 2e-4  # float32


@pytest.mark.parametrize("name", FOR["vp"])
def test_image_to_image_runs_with_every_class(name: str) -> None:
    pipe, asked = image_to_image()
    more = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe.scheduler = getattr(compat, name).from_config(pipe.scheduler.config, **more)
    assert pipe(**asked, strength=0.5, num_inference_steps=8).images.isfinite().all()


def image_to_image() -> tuple[Any, dict[str, Any]]:
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **tiny.sd().components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    asked = {k: v for k, v in tiny.prompt(pipe).items() if k not in ("height", "width")}
    return pipe, asked | {
        "image": torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    }
