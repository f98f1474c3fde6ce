"""Every public member of the classes that `timonel.compat` names is there, with the value that
diffusers gives it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import timonel as tm
from support import pipes
from support.compat_runs import ALONE, Stepped, counted, relative, same_noise
from timonel import compat
from timonel.compat.members import INTERNAL
from timonel.compat.schedulers import CLASSES
from timonel.errors import ArgumentError, RunError

XL = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000, "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip
FIRST_LIST = "diffusers' class has a list of all steps before set_timesteps is called"
UNIT = "samples have unit variance here"
CALLS = "one entry for each network call, where diffusers lists the next step's level twice"
AUDIO = "diffusers' class is for one audio model and has levels of its own"
#: (class, member) or ("", member), when, and why its value is another one
OTHER: dict[tuple[str, str], tuple[str, str]] = {
    ("", "config"): ("always", "the same keys, with the class that wrote them"),
    ("", "compatibles"): ("always", "the classes of timonel.compat"),
    ("", "init_noise_sigma"): ("always", UNIT),
    ("", "is_scale_input_called"): ("always", "there is nothing to scale"),
    ("SASolverScheduler", "tau_func"): (
        "always",
        "a function is no plain data; the config's None means the same one",
    ),
    ("PNDMScheduler", "timesteps"): ("made", FIRST_LIST),
    ("DDIMInverseScheduler", "ignore_for_config"): ("always", "there are no deprecated keys"),
    **{
        (f"CogVideoX{kind}Scheduler", name): ("always", "those of abar, which diffusers shifts")
        for kind in ("DDIM", "DPM")
        for name in ("alphas", "betas")
    },
    **{
        ("IPNDMScheduler", name): ("always", AUDIO)
        for name in ("alphas", "betas", "timesteps", "ets")
    },
    **{
        (f"{name}Scheduler", member): ("made", FIRST_LIST)
        for name in (
            "DPMSolverSDE",
            "HeunDiscrete",
            "KDPM2AncestralDiscrete",
            "KDPM2Discrete",
            "LMSDiscrete",
            "IPNDM",
        )
        for member in ("num_inference_steps", "timesteps", "sigmas")
        if (name, member) != ("IPNDM", "timesteps")
    },
    **{
        (f"{name}Scheduler", member): ("made", FIRST_LIST)
        for name, listed in (
            ("SCM", ("timesteps",)),
            ("DDPMWuerstchen", ("timesteps",)),
            ("MiniMaxH3", ("timesteps", "sigmas", "num_inference_steps")),
            ("FlowMapEulerDiscrete", ("timesteps", "sigmas", "num_inference_steps")),
            ("CMStochasticIterative", ("sigmas",)),
            ("CosineDPMSolverMultistep", ("timesteps", "sigmas")),
        )
        for member in listed
    },
    **{("EDMEulerScheduler", name): ("made", FIRST_LIST) for name in ("timesteps", "sigmas")},
    **{
        (f"{name}Scheduler", "sigmas"): ("always", CALLS)
        for name in ("DPMSolverSDE", "KDPM2AncestralDiscrete", "KDPM2Discrete")
    },
}


def made(library: Any, name: str) -> Any:
    cls = getattr(library, name)
    if name.startswith("FlowMatch"):
        return cls(shift=3.0)
    return cls() if name.startswith("EDM") or name in ALONE else cls.from_config(XL)


def theirs_made(name: str, steps: int | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, of numpy
        scheduler = made(diffusers, name)
        if steps is not None:
            counted(scheduler, steps)
        return scheduler


def members(scheduler: Any) -> dict[str, Any]:
    found = {}
    for name in dir(scheduler):
        if not name.startswith("_"):
            try:
                found[name] = getattr(scheduler, name)
            except AttributeError:
                continue  # a property of diffusers that its own constructor leaves without a value
    return found


def alike(a: Any, b: Any) -> bool:
    if callable(a):
        return callable(b)
    if isinstance(a, (int, float, torch.Tensor, np.ndarray)) and not isinstance(a, bool):
        x, y = (torch.as_tensor(v).as_subclass(torch.Tensor).double() for v in (a, b))
        return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=2e-5)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", CLASSES)
def test_each_public_member_of_diffusers_class_is_there_with_its_value(name: str) -> None:
    theirs, ours = theirs_made(name), made(compat, name)
    for when in ("made", "set", "running"):
        if when == "set":
            theirs, _ = theirs_made(name, 8), counted(ours, 8)
        if when == "running":
            x = torch.ones(1, 2, 4, 4)
            Stepped(ours)(0.1 * x, ours.timesteps[0], x)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                Stepped(theirs)(0.1 * x, theirs.timesteps[0], x)
        for member, value in members(theirs).items():
            if member in INTERNAL:
                with pytest.raises(AttributeError, match=member):
                    getattr(ours, member)
                continue
            mine = getattr(ours, member)
            at, _ = OTHER.get((name, member), OTHER.get(("", member), ("never", "")))
            if at not in (when, "always"):
                assert alike(value, mine), f"{name}.{member} {when}: {mine!r}; diffusers {value!r}"


def test_no_name_is_left_out_without_need() -> None:
    """A name whose reason is gone may not stay in the list."""
    public: set[str] = set()
    for name in CLASSES:
        theirs, x = theirs_made(name, 8), torch.ones(1, 2, 4, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Stepped(theirs)(0.1 * x, theirs.timesteps[0], x)
        public |= set(dir(theirs))
    assert set(INTERNAL) <= public
    assert not [name for name in INTERNAL for cls in CLASSES.values() if hasattr(cls, name)]


@pytest.mark.parametrize("name", CLASSES)
def test_methods_take_the_arguments_of_diffusers_methods_by_name(name: str) -> None:
    theirs, ours = getattr(diffusers, name), getattr(compat, name)
    for method in (
        "set_timesteps",
        "add_noise",
        "scale_model_input",
        "index_for_timestep",
        "get_velocity",
    ):
        if hasattr(theirs, method):
            wanted = {
                n
                for n, p in inspect.signature(getattr(theirs, method)).parameters.items()
                if p.kind == 1
            }
            known = inspect.signature(getattr(ours, method)).parameters
            assert wanted <= set(known), f"{name}.{method} lacks {wanted - set(known)}"


@pytest.mark.parametrize(
    "name", [n for n in CLASSES if hasattr(getattr(diffusers, n), "index_for_timestep")]
)
def test_a_time_is_at_its_place(name: str) -> None:
    theirs, ours = theirs_made(name, 8), made(compat, name)
    counted(ours, 8)
    if name not in (
        "IPNDMScheduler",
        "KDPM2AncestralDiscreteScheduler",
    ):  # other times; times rounded to float32
        places = [theirs.index_for_timestep(t) for t in theirs.timesteps]
        assert [ours.index_for_timestep(t) for t in ours.timesteps] == places
    assert ours.index_for_timestep(float(ours.timesteps[0])) == 0
    with pytest.raises(tm.ArgumentError, match="nearest"):
        ours.index_for_timestep(123.456)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"])
def test_the_velocity_is_the_one_that_models_are_trained_on(name: str) -> None:
    theirs, ours = theirs_made(name), made(compat, name)
    g = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(3, 2, 4, 4, generator=g) for _ in range(2))
    times = torch.tensor([1, 500, 999])
    assert torch.allclose(
        ours.get_velocity(x, noise, times), theirs.get_velocity(x, noise, times), atol=1e-5
    )
    drop = tm.Scheduler.from_config(XL)
    assert torch.allclose(
        drop.get_velocity(x, noise, times), theirs.get_velocity(x, noise, times), atol=1e-5
    )


def test_the_velocity_of_a_flow_and_of_eulers_class() -> None:
    x, noise = torch.full((1, 1), 2.0), torch.full((1, 1), 3.0)
    assert (
        float(
            made(compat, "FlowMatchEulerDiscreteScheduler").get_velocity(
                x, noise, torch.tensor([500.0])
            )
        )
        == 1.0
    )
    euler = made(
        compat, "EulerDiscreteScheduler"
    )  # diffusers reads abar at the place in the list, not at the time
    euler.set_timesteps(4)
    bar = float(euler.alphas_cumprod[int(euler.timesteps[2])])
    expected = 3 * math.sqrt(bar) - 2 * math.sqrt(1 - bar)
    assert float(euler.get_velocity(x, noise, euler.timesteps[2:3])) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "TCDScheduler"])
def test_the_time_before_is_the_next_of_the_list(name: str) -> None:
    theirs, ours = theirs_made(name), made(compat, name)
    assert int(ours.previous_timestep(10)) == int(theirs.previous_timestep(10)) == 9
    theirs.set_timesteps(5)
    ours.set_timesteps(5)
    for t in theirs.timesteps:
        assert int(ours.previous_timestep(t)) == int(theirs.previous_timestep(t))


def test_set_shift_acts_on_the_next_list(caplog: pytest.LogCaptureFixture) -> None:
    name = "FlowMatchEulerDiscreteScheduler"
    theirs, ours = (getattr(library, name)(shift=3.0) for library in (diffusers, compat))
    for scheduler in (theirs, ours):
        scheduler.set_shift(7.0)
        scheduler.set_timesteps(8)
    assert ours.shift == theirs.shift == 7.0
    assert torch.allclose(ours.timesteps.as_subclass(torch.Tensor), theirs.timesteps, atol=2e-3)
    assert ours.sigma_min == pytest.approx(theirs.sigma_min)
    again = compat.FlowMatchEulerDiscreteScheduler.from_config(
        ours.config
    )  # as the helm makes one from it
    assert again.shift == 7.0
    dynamic = compat.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    dynamic.set_shift(7.0)
    assert "shift=7.0 changes nothing" in caplog.text
    assert "use_dynamic_shifting=False" in caplog.text


def test_set_shift_acts_on_the_drop_in_and_is_refused_where_there_is_no_flow() -> None:
    drop = tm.Scheduler.from_config(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, sampler="euler"
    )
    drop.set_shift(7.0)
    drop.set_timesteps(4)
    fresh = tm.Scheduler.from_config(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0}, sampler="euler"
    )
    fresh.set_timesteps(4)
    assert drop.timesteps.tolist() == fresh.timesteps.tolist()
    assert drop.config.shift == 7.0
    for scheduler in (tm.Scheduler.from_config(XL), made(compat, "DDIMScheduler")):
        with pytest.raises(tm.ArgumentError, match="flow"):
            scheduler.set_shift(7.0)
    for bad in (0.0, -1.0, math.nan, "x", True):
        with pytest.raises(tm.ArgumentError, match="shift"):
            drop.set_shift(bad)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_times_shift_and_stretch_as_in_diffusers(kind: str) -> None:
    flags = {"time_shift_type": kind, "use_dynamic_shifting": True, "shift_terminal": 0.1}
    theirs, ours = (s.FlowMatchEulerDiscreteScheduler(**flags) for s in (diffusers, compat))
    t = torch.linspace(1, 0.1, 7)
    assert torch.allclose(ours.time_shift(1.3, 1.0, t), theirs.time_shift(1.3, 1.0, t))
    assert torch.allclose(ours.stretch_shift_to_terminal(t), theirs.stretch_shift_to_terminal(t))
    with pytest.raises(tm.ArgumentError, match="shift_terminal"):
        compat.FlowMatchEulerDiscreteScheduler().stretch_shift_to_terminal(t)


CONVERTS = (
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "SASolver",
    "UniPCMultistep",
)


@pytest.mark.parametrize("name", CONVERTS)
def test_a_prediction_is_read_as_diffusers_reads_it(name: str) -> None:
    theirs, ours = theirs_made(f"{name}Scheduler", 6), made(compat, f"{name}Scheduler")
    ours.set_timesteps(6)
    g = torch.Generator().manual_seed(0)
    x, raw = (torch.randn(1, 2, 4, 4, generator=g) for _ in range(2))
    theirs._init_step_index(theirs.timesteps[0])
    expected = theirs.convert_model_output(raw, sample=x)
    assert torch.allclose(ours.convert_model_output(raw, sample=x), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(
        ours.convert_model_output(raw, ours.timesteps[0], x), expected, rtol=1e-4, atol=1e-4
    )


def test_edm_classes_precondition_as_in_diffusers() -> None:
    theirs, ours = theirs_made("EDMEulerScheduler"), made(compat, "EDMEulerScheduler")
    x, raw = torch.ones(1, 2), torch.full((1, 2), 0.3)
    for sigma in (0.1, torch.tensor(2.0)):
        assert torch.allclose(
            ours.precondition_inputs(x, sigma), theirs.precondition_inputs(x, sigma)
        )
        assert torch.allclose(ours.precondition_noise(sigma), theirs.precondition_noise(sigma))
        assert torch.allclose(
            ours.precondition_outputs(x, raw, sigma), theirs.precondition_outputs(x, raw, sigma)
        )
    boundary = "get_scalings_for_boundary_condition_discrete"
    lcm = (
        getattr(s, boundary)(259)
        for s in (made(compat, "LCMScheduler"), theirs_made("LCMScheduler"))
    )
    assert next(lcm) == pytest.approx(next(lcm))


def test_step_index_counts_from_the_first_step() -> None:
    ours = made(compat, "EulerDiscreteScheduler")
    ours.set_timesteps(4)
    assert ours.step_index is None
    assert ours.begin_index is None
    x, seen = torch.zeros(1, 2), []
    for t in ours.timesteps:
        x = ours.step(x, t, x).prev_sample
        seen.append(ours.step_index)
    assert seen == [1, 2, 3, 4]
    ours.set_begin_index(2)
    assert ours.begin_index == 2


def test_a_config_that_ends_at_time_zero_says_so() -> None:
    for flags in ({}, {"set_alpha_to_one": False}):
        for name in ("DDIMScheduler", "LCMScheduler", "TCDScheduler"):
            theirs, ours = (getattr(library, name)(**flags) for library in (diffusers, compat))
            assert float(ours.final_alpha_cumprod) == pytest.approx(
                float(theirs.final_alpha_cumprod)
            )


ORIGINAL = [
    (steps, original, strength)
    for steps in (1, 4, 7)
    for original in (None, 20, 50)
    for strength in (1.0, 0.5)
]


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize("asked", ORIGINAL)
def test_distilled_lists_are_diffusers_for_each_original_number_and_strength(
    name: str, asked: tuple[int, int | None, float]
) -> None:
    steps, original, strength = asked
    theirs, ours = theirs_made(name), made(compat, name)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps, original_inference_steps=original, strength=strength)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=strength)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    with pytest.raises(tm.ArgumentError, match="strength"):
        ours.set_timesteps(45, original_inference_steps=40, strength=0.5)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about itself
@pytest.mark.parametrize(
    "name", ["LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_latent_consistency_pipelines_give_the_latents_that_they_give_with_diffusers_class(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = pipes.load()[name]
    pipe = case.build()
    made = []
    for library in (diffusers, compat):
        scheduler = library.LCMScheduler.from_config(pipe.scheduler.config)
        with monkeypatch.context() as patch:
            same_noise(scheduler, patch)
            pipe.scheduler = scheduler
            given = {**case.inputs(), "num_inference_steps": steps, "original_inference_steps": 40}
            made.append(pipe(**given, generator=torch.Generator().manual_seed(3)).images)
    assert relative(made[1], made[0]) < 1e-4


def test_edms_index_is_taken_back_only_after_a_step_that_was_a_look() -> None:
    """diffusers' Cosmos pipelines step for a prediction and take the index back; elsewhere it moves
    with the run.
    """
    ours = compat.EDMEulerScheduler()
    ours.set_timesteps(4)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)) * ours.init_noise_sigma
    ours.step(x, ours.timesteps[0], ours.scale_model_input(x, ours.timesteps[0]))
    ours._step_index = 1  # where it is
    with pytest.raises(RunError, match=r"run\.rewind"):
        ours._step_index -= 1
    with pytest.raises(ArgumentError, match="shape of the sample"):
        ours.step(x, ours.timesteps[1], x, pred_original_sample=x[:, :2])


def test_edm_euler_takes_a_clean_prediction_in_the_place_of_the_output() -> None:
    ends = []
    for lib in (diffusers, compat):
        scheduler = lib.EDMEulerScheduler()
        scheduler.set_timesteps(5)
        x = (
            torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
            * scheduler.init_noise_sigma
        )
        for t in scheduler.timesteps:
            clean = torch.tanh(scheduler.scale_model_input(x, t))
            x = scheduler.step(clean, t, x, return_dict=False, pred_original_sample=clean)[0]
        ends.append(x)
    assert torch.allclose(*ends, atol=1e-5)
