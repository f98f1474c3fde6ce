"""An option acts or is refused, on every process; and each remedy that an error names works."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
from support import tiny
from timonel import compat
from timonel.compat import idle
from timonel.compat.schedulers import CLASSES
from timonel.errors import ArgumentError, GridError, GuardStop, TimonelError, UnknownName
from timonel.pipelines.classes.config import MODEL
from timonel.pipelines.sockets.acting import seen

VP = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
    "num_train_timesteps": 1000,
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "vp": VP,
    "zero-snr": VP | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                      "timestep_spacing": "trailing"},
    "svd": VP | {"prediction_type": "v_prediction", "timestep_type": "continuous",
    "sigma_min": 0.002,
                 "sigma_max": 700.0, "use_karras_sigmas": True},
    "edm": {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0,
    "sigma_data": 0.5},
    "ve": FLOW | {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 1.0,
    "use_karras_sigmas": True},
    "flow": FLOW, "dynamic": FLOW | {"use_dynamic_shifting": True},
    "wan": {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 5.0,
            "prediction_type": "flow_prediction", "timestep_spacing": "linspace"},
    "trig": {"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5},
    "cosine": {"_class_name": "DDPMWuerstchenScheduler", "process": "cosine"},
}  # fmt: skip
OTHER: dict[str, Any] = {
    "num_train_timesteps": 900, "beta_start": 0.1, "beta_end": 0.2,
    "beta_schedule": "squaredcos_cap_v2",
    "trained_betas": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], "prediction_type": "sample",
    "timestep_spacing": "linspace",
    "steps_offset": 3, "rescale_betas_zero_snr": True, "use_karras_sigmas": True,
    "use_exponential_sigmas": True,
    "use_beta_sigmas": True, "use_lu_lambdas": True, "sigma_min": 0.1, "sigma_max": 5.0,
    "sigma_data": 0.7,
    "clock": "angle", "rho": 5.0, "snr_shift_scale": 3.0,
    "timestep_type": "continuous", "shift": 7.0, "flow_shift": 8.0, "use_dynamic_shifting": True,
    "time_shift_type": "linear", "shift_terminal": 0.1, "invert_sigmas": True,
    "final_sigmas_type": "sigma_min",
    "variance_type": "fixed_large", "original_inference_steps": 20, "base_shift": 0.7,
    "max_shift": 2.0,
    "base_image_seq_len": 300, "max_image_seq_len": 5000, "clip_sample": True,
    "clip_sample_range": 2.0,
    "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0,
    "process": "flow",
}  # fmt: skip
PLAIN = [key for key in tm.Scheduler._defaults() if not key.startswith("sampler")]
AS_WELL = re.compile(r"(?:pass|take) (.+?) as well")
INSTEAD = re.compile(r"take (sampler='[^']+') instead")


def made(config: dict[str, Any], sampler: str, **changes: Any) -> Any:
    return tm.Scheduler.from_config(config, sampler=sampler, **changes)


def numbers(scheduler: Any) -> Any:
    return seen({key: scheduler.config[key] for key in tm.Scheduler._defaults()})


def test_every_key_has_another_value_here() -> None:
    assert set(PLAIN) == set(OTHER)


@pytest.mark.parametrize("sampler", ["euler", "euler/karras"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_the_drop_in_acts_or_is_refused_and_the_remedy_works(
    name: str, sampler: str
) -> None:
    config = CONFIGS[name]
    before = numbers(made(config, sampler))
    for key in PLAIN:
        value = OTHER[key]
        try:
            after = numbers(made(config, sampler, **{key: value}))
        except TimonelError as refused:
            assert repr(value) in str(refused) or str(value) in str(refused), refused  # noqa: PT017
            follow(config, sampler, {key: value}, str(refused))
            continue
        same = before == after and before is not None and config.get(key) != value
        said = {
            "prediction_type": "prediction_type",
            "timestep_type": "continuous",
            "process": "flow",
        }
        assert not same or key in said or value == grid_flag(key, before), (
            f"{name}, {sampler}: {key}={value!r} does nothing"
        )


def grid_flag(key: str, visited: Any) -> Any:
    """True, or the spacing, where the levels are those that a key asks for."""
    flags = {"use_karras_sigmas": "karras", "timestep_spacing": "linspace"}
    return OTHER[key] if flags.get(key) == visited[3] else None


def follow(config: dict[str, Any], sampler: str, changes: dict[str, Any], said: str) -> None:
    """Do what an error says: then it is not said again."""
    if "changes nothing" not in said:
        return
    instead, as_well = INSTEAD.search(said), AS_WELL.search(said)
    if instead is not None:
        more, changes = eval(f"dict({instead[1]})"), {}
    elif as_well is not None:
        more = eval(f"dict({as_well[1].replace(' and ', ', ')})")
    else:
        assert "leave it out" in said, said
        return
    followed = made(config, **{"sampler": sampler, **changes, **more})
    if instead is not None and not {"lam", "vp"} & set(more["sampler"].split("/")):
        followed.set_timesteps(5, mu=1.0 if followed.config.use_dynamic_shifting else None)


@pytest.mark.parametrize("name", ["vp", "svd", "flow"])
@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_key_of_a_class_acts_or_is_refused_or_said(
    cls: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind = {"vp": "vp", "svd": "edm", "flow": "flow"}[name]
    if kind not in cls.kinds:
        pytest.skip("not for this process")
    keys = (
        "sigma_max",
        "sigma_data",
        "shift",
        "beta_start",
        "timestep_type",
        "timestep_spacing",
        "steps_offset",
    )
    for key in (*keys, "clip_sample_range", "dynamic_thresholding_ratio", "time_shift_type"):
        if key not in (*cls.defaults, *MODEL):
            continue
        try:
            after = idle.seen(cls.from_config(CONFIGS[name], **{key: OTHER[key]}))
        except TimonelError as refused:
            assert key in str(refused) or "process" in str(refused), refused  # noqa: PT017
            remedy = re.search(r"(?:pass (.+?) as well|e\.g\. (\w+=\w+))", str(refused))
            if "changes nothing" in str(refused) and remedy is not None:
                more = eval(f"dict({(remedy[1] or remedy[2]).replace(' and ', ', ')})")
                cls.from_config(CONFIGS[name], **{key: OTHER[key]}, **more)
            continue
        said = key in cls.defaults and f"{key}={OTHER[key]!r} changes nothing" in caplog.text
        same = after == idle.seen(cls.from_config(CONFIGS[name]))
        assert said or not same or OTHER[key] in (cls.defaults.get(key), "continuous"), (
            f"{key} does nothing in {cls.__name__}"
        )


@pytest.mark.parametrize(
    "cls",
    [
        c
        for c in CLASSES.values()
        if "vp" in c.kinds and c.defaults.get("beta_start") and "Inverse" not in c.__name__
    ],
    ids=str,
)
def test_a_class_takes_sigma_max_in_its_constructor_as_in_from_config(cls: Any) -> None:
    flags = {"use_karras_sigmas": True} if "use_karras_sigmas" in cls.defaults else {}
    for make in (cls, lambda **more: cls.from_config(diffusers.DDIMScheduler().config, **more)):
        if not flags:
            with pytest.raises(ArgumentError, match=r"sigma_max=5\.0 changes nothing"):
                make(sigma_max=5.0)
            continue
        scheduler = make(**flags, sigma_max=5.0)
        scheduler.set_timesteps(4)
        assert float(scheduler.sigmas[0]) == pytest.approx(5.0, rel=1e-3)


def test_what_a_checkpoint_carries_is_never_refused() -> None:
    carried = {
        **OTHER, "process": None, "trained_betas": None, "variance_type": None,
        "prediction_type": "epsilon", "use_exponential_sigmas": False, "use_beta_sigmas": False,
        "use_lu_lambdas": False, "sigma_max": None, "invert_sigmas": False,
        "rescale_betas_zero_snr": False, "use_dynamic_shifting": False,
    }  # fmt: skip
    for config in (carried | VP, carried | FLOW):
        scheduler = tm.Scheduler.from_config(config, sampler="euler/trailing")
        scheduler.set_timesteps(4)
        assert (
            compat.DPMSolverMultistepScheduler.from_config(config).config.num_train_timesteps
            == 1000
        )


def test_the_constructor_asks_of_every_argument_that_it_acts() -> None:
    with pytest.raises(
        ArgumentError, match=r"shift=7\.0 changes nothing: it is a key of flow models"
    ):
        tm.Scheduler(shift=7.0)
    with pytest.raises(
        ArgumentError, match=r"beta_start=0\.1 changes nothing: it is a key of vp models"
    ):
        tm.Scheduler(process="flow", prediction_type="flow", beta_start=0.1)
    assert tm.Scheduler(process="flow", prediction_type="flow", shift=7.0).process.shift == 7
    svd = {
        key: value
        for key, value in made(CONFIGS["svd"], "euler").config.items()
        if not key.startswith("_")
    }
    assert (
        tm.Scheduler(**svd).process.kind == "edm"
    )  # a whole config, with the betas that it carries
    with pytest.raises(UnknownName, match="did you mean 'flow'"):
        tm.Scheduler(process="flows")
    with pytest.raises(UnknownName, match="did you mean 'linspace'"):
        tm.Scheduler(timestep_spacing="linspce")


def test_the_two_names_of_a_flows_shift_are_one() -> None:
    assert (
        made(FLOW, "euler", flow_shift=7.0).process.shift
        == made(FLOW, "euler", shift=7.0).process.shift
        == 7
    )
    assert made(CONFIGS["wan"], "euler", shift=7.0).process.shift == 7
    with pytest.raises(ArgumentError, match=r"shift=3\.0 and flow_shift=7\.0 differ"):
        made(FLOW, "euler", shift=3.0, flow_shift=7.0)
    with pytest.raises(ArgumentError, match=r"sigma_max=5\.0 is above 1, where a flow begins"):
        made(FLOW, "euler/karras", sigma_max=5.0)


def test_the_ends_of_a_sigma_grid_are_those_of_the_config_as_in_diffusers() -> None:
    ends = {"use_karras_sigmas": True, "sigma_min": 0.2, "sigma_max": 5.0}
    theirs = diffusers.EulerDiscreteScheduler(
        **{k: v for k, v in VP.items() if k != "_class_name"}, **ends
    )
    theirs.set_timesteps(6)
    for sampler, changes in (
        ("euler", ends),
        ("euler/karras", {"sigma_min": 0.2, "sigma_max": 5.0}),
    ):
        ours = made(VP, sampler, **changes)
        ours.set_timesteps(6)
        assert torch.allclose(ours.sigmas, theirs.sigmas, rtol=1e-4)


def test_a_grid_that_needs_an_end_gets_the_one_that_its_error_names() -> None:
    scheduler = made(CONFIGS["zero-snr"], "dpmpp_2m/karras")
    with pytest.raises(GridError, match="sigma_max=80"):
        scheduler.set_timesteps(6)
    scheduler = made(CONFIGS["zero-snr"], "dpmpp_2m/karras", sigma_max=80.0)
    scheduler.set_timesteps(6)
    assert float(scheduler.sigmas[0]) == pytest.approx(80.0, rel=1e-4)


# -- set in place ----------------------------------------------------------------------------------
def set_by_attribute(scheduler: Any, key: str, value: Any) -> None:
    setattr(scheduler.config, key, value)


def set_by_item(scheduler: Any, key: str, value: Any) -> None:
    scheduler.config[key] = value


def set_as_pipelines_do(scheduler: Any, key: str, value: Any) -> None:
    scheduler._internal_dict = diffusers.configuration_utils.FrozenDict(
        {**scheduler.config, key: value}
    )


def registered(scheduler: Any, key: str, value: Any) -> None:
    scheduler.register_to_config(**{key: value})


def used_after(way: Any, scheduler: Any, key: str, value: Any) -> None:
    way(scheduler, key, value)
    scheduler.set_timesteps(10)


WAYS = [set_by_attribute, set_by_item, set_as_pipelines_do, registered]


@pytest.mark.parametrize("way", WAYS)
def test_what_scripts_write_for_pndm_is_kept_for_pndm_and_changes_nothing_here(way: Any) -> None:
    scheduler = tm.Scheduler.from_config(VP, sampler="euler")
    scheduler.set_timesteps(10)
    before = scheduler.timesteps.tolist()
    used_after(way, scheduler, "skip_prk_steps", True)
    assert scheduler.timesteps.tolist() == before
    assert compat.PNDMScheduler.from_config(scheduler.config).config.skip_prk_steps is True
    with pytest.raises(UnknownName, match="skip_prk"):  # what nobody writes is refused as before
        used_after(way, scheduler, "skip_prk", True)


@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_is_set_in_place_acts(way: Any) -> None:
    for make in (
        lambda: tm.Scheduler.from_config(VP, sampler="euler"),
        lambda: compat.DDIMScheduler.from_config(VP),
    ):
        scheduler = make()
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 901
        way(scheduler, "steps_offset", 5)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 905
        way(scheduler, "timestep_spacing", "trailing")
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 999
        assert (
            scheduler.config.timestep_spacing == scheduler.config["timestep_spacing"] == "trailing"
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_is_set_in_place_and_does_nothing_is_refused(way: Any) -> None:
    for make in (
        lambda: tm.Scheduler.from_config(VP, sampler="euler"),
        lambda: compat.EulerDiscreteScheduler.from_config(VP),
    ):
        for key, value, error in (
            ("shift", 7.0, "shift"),
            ("sigma_data", 0.7, "edm"),
            ("steps_ofset", 3, "steps_of"),
        ):
            scheduler = make()
            with pytest.raises(ArgumentError, match=error):
                used_after(way, scheduler, key, value)


@pytest.mark.parametrize("way", WAYS)
def test_a_drop_in_class_keeps_a_key_that_a_script_adds_and_says_so(
    way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = compat.EulerDiscreteScheduler.from_config(VP)
    used_after(way, scheduler, "banana", 3)
    assert scheduler.config["banana"] == 3
    assert "'banana' is no argument of EulerDiscreteScheduler" in caplog.text
    with pytest.raises(UnknownName, match="banana"):
        used_after(way, tm.Scheduler.from_config(VP, sampler="euler"), "banana", 3)


def test_what_a_pipelines_constructor_writes_is_never_refused() -> None:
    for make in (
        lambda: made(VP, "euler/karras"),
        lambda: compat.EulerDiscreteScheduler.from_config(VP),
    ):
        scheduler = make()
        set_as_pipelines_do(scheduler, "steps_offset", 2)
        set_as_pipelines_do(scheduler, "clip_sample", False)
        scheduler.set_timesteps(5)


def test_a_key_that_is_set_on_diffusers_config_in_place_reaches_ours() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.config.shift_terminal = 0.1
    ours = tm.Scheduler.from_config(theirs.config, sampler="euler/karras")
    ours.set_timesteps(5)
    assert float(ours.sigmas[-2]) == pytest.approx(0.1)


def test_cosmos_registers_levels_that_explode_on_a_flow() -> None:
    scheduler = tm.Scheduler.from_config(FLOW | {"use_karras_sigmas": True}, sampler="euler")
    scheduler.register_to_config(
        sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, final_sigmas_type="sigma_min"
    )
    assert (type(scheduler.process).__name__, scheduler.prediction) == ("VE", "epsilon")


# -- arguments of calls ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def helm() -> tm.Helm:
    return tm.Helm(tiny.sdxl())


@pytest.mark.parametrize(("options", "error"), [
    ({"denoising_end": 2}, "denoising_end must be .* got 2"),
    ({"denoising_end": 0.0}, "denoising_end"),
    ({"steps": 8, "timesteps": [999, 500, 1]}, "steps=8 and timesteps with 3 entries disagree"),
    ({"num_inference_steps": 8, "sigmas": [14.0, 1.0, 0.0]},
    "steps=8 and sigmas with 3 entries disagree"),
])  # fmt: skip
def test_a_helm_refuses_what_its_pipeline_would_leave_unread(
    helm: tm.Helm, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ArgumentError, match=error):
        helm(**tiny.prompt(helm.pipe), **options)


def test_sigmas_with_their_end_agree_with_the_number_of_their_steps(helm: tm.Helm) -> None:
    helm(**tiny.prompt(helm.pipe), steps=2, sigmas=[14.0, 1.0, 0.0])
    assert helm.run is not None
    assert helm.run.steps == 2


@pytest.mark.parametrize("sampler", [None, "lcm", "euler"])
def test_a_helm_visits_the_callers_own_list_though_it_is_even(sampler: str | None) -> None:
    helm = tm.Helm("emoji-flow")
    helm.pipe.set_progress_bar_config(disable=True)
    helm("red apple", seeds=[1], output_type="latent", sampler=sampler, sigmas=[1.0, 2 / 3, 1 / 3])
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(helm.pipe.scheduler.config)
    theirs.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    assert helm.run is not None
    assert torch.allclose(helm.run.table.sigma.float(), theirs.sigmas, atol=1e-6)


@pytest.mark.parametrize("drop_in", [False, True])
def test_a_strength_that_leaves_no_step_is_refused_with_the_least_that_leaves_one(
    helm: tm.Helm, drop_in: bool
) -> None:
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**helm.pipe.components)
    call = {
        key: value
        for key, value in tiny.prompt(helm.pipe).items()
        if key not in ("height", "width")
    }
    call |= {"image": torch.zeros(1, 3, 16, 16), "strength": 0.05}
    if drop_in:
        pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config)
        with pytest.raises(GridError, match=r"of 8 steps leaves none; use at least 0\.125"):
            pipe(**call, num_inference_steps=8)
    else:
        with pytest.raises(
            GridError, match=r"strength=0\.05 of 8 steps leaves none; use at least 0\.125"
        ):
            tm.Helm(pipe)(**call, steps=8)
        with pytest.raises(ArgumentError, match="both say where to begin"):
            tm.Helm(pipe)(**call, steps=8, denoising_start=0.5)


def test_an_unconditional_denoiser_without_guidance_is_refused() -> None:
    def still(x: torch.Tensor, level: Any) -> torch.Tensor:
        return x * 0

    options: dict[str, Any] = {"process": tm.VP.from_schedule(), "steps": 3}
    with pytest.raises(ArgumentError, match="unconditional= has nothing to do without guidance"):
        tm.sample(still, torch.randn(1, 4), "euler", **options, unconditional=still)
    with pytest.raises(ArgumentError, match="unconditional="):
        next(tm.iterate(tm.begin(torch.randn(1, 4), "euler", **options), still, still))


def test_a_result_that_is_not_a_number_is_never_silent() -> None:
    def broken(x: torch.Tensor, level: Any) -> torch.Tensor:
        return torch.where(torch.arange(len(x)).reshape(-1, 1) == 0, torch.nan, x * 0)

    process = tm.VP.from_schedule()
    with pytest.raises(GuardStop, match=r"the result of every sample has NaN.*tm\.guard"):
        tm.sample(broken, torch.randn(1, 4), "euler", process=process, steps=3)
    with pytest.warns(RuntimeWarning, match="sample 0 of 2"):
        assert (
            tm.sample(broken, torch.randn(2, 4), "euler", process=process, steps=3)[1]
            .isfinite()
            .all()
        )
    scheduler = made(VP, "euler")
    scheduler.set_timesteps(1)
    x = torch.randn(1, 4)
    with pytest.raises(GuardStop, match="every sample"):
        scheduler.step(x * torch.nan, scheduler.timesteps[0], x)


def test_euler_at_the_end_is_what_happens_and_a_high_order_there_says_what_it_needs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cls = CLASSES["DPMSolverMultistepScheduler"]
    assert cls(euler_at_final=True).config.euler_at_final
    cls(lower_order_final=False)
    assert "lower_order_final=False changes nothing" in caplog.text
    assert "pass final_sigmas_type='sigma_min' as well" in caplog.text
    cls(lower_order_final=False, final_sigmas_type="sigma_min")
