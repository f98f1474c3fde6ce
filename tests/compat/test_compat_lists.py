"""The lists of diffusers' classes at their edges: levels that repeat, one training level, levels
even in log sigma.
"""

from __future__ import annotations

import logging
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
import timonel.compat as compat
from support.compat_runs import CONFIG, relative, start
from timonel.errors import GridError

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning"),
]


def network(seen: torch.Tensor, time: float = 0.0) -> torch.Tensor:
    return torch.tanh(1.3 * seen + 0.001 * time) + 0.2 * seen


def path(scheduler: Any, *steps: Any, **lists: Any) -> list[torch.Tensor]:
    """The sample after every call, of a network that reads the time too."""
    scheduler.set_timesteps(*steps, **lists)
    x, states = start() * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
        states.append(x)
    return states


def both(name: str, **flags: Any) -> tuple[Any, Any]:
    return tuple(getattr(library, f"{name}Scheduler")(**flags) for library in (diffusers, compat))  # type: ignore[return-value]


# -- levels that repeat ----------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "flags"), [
    ("DPMSolverMultistep", {}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ("DPMSolverMultistep", {"solver_order": 3}),
    ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min"}),
    ("DPMSolverSinglestep", {}), ("DPMSolverSinglestep", {"final_sigmas_type": "sigma_min"}),
    ("UniPCMultistep", {}), ("DEISMultistep", {}), ("SASolver", {}),
])  # fmt: skip
def test_a_level_that_rounding_repeats_is_visited_once(
    name: str, flags: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """diffusers lists it twice; given the list without it, its own class makes the same samples."""
    theirs, ours = both(name, num_train_timesteps=20, **LINEAR, **flags)
    theirs.set_timesteps(20)
    listed = theirs.timesteps.tolist()
    once = list(dict.fromkeys(listed))
    assert len(once) == 19
    for each in (theirs, ours):
        if hasattr(each, "session"):
            each.session.noise = lambda row, like: torch.zeros_like(like)
    with caplog.at_level(logging.WARNING):
        made = path(ours, 20)
    assert (
        len(
            [
                r
                for r in caplog.records
                if "repeat 1 of them" in r.message and "19 steps" in r.message
            ]
        )
        == 1
    )
    assert ours.timesteps.tolist() == once[: len(made)]
    assert ours.num_inference_steps == len(ours.timesteps) == len(made) >= 18
    again = compat.schedulers.CLASSES[f"{name}Scheduler"](num_train_timesteps=20, **LINEAR, **flags)
    again.session.noise = ours.session.noise
    assert torch.equal(made[-1], path(again, timesteps=once)[-1])
    if name.startswith("DPM") and not flags.get(
        "algorithm_type"
    ):  # which take a list of times in diffusers too
        wanted = path(theirs, timesteps=once)
        assert relative(made[-1], wanted[len(made) - 1]) < 2e-5


def test_only_a_call_that_moves_nothing_is_left_out_where_diffusers_result_is_a_number() -> None:
    """At order 1 a step over nothing is no 0 / 0 in diffusers: the two end with the same sample."""
    theirs, ours = both("DPMSolverMultistep", num_train_timesteps=20, solver_order=1, **LINEAR)
    wanted, made = path(theirs, 20), path(ours, 20)
    assert (len(wanted), len(made)) == (20, 19)
    assert relative(made[-1], wanted[-1]) < 2e-5


@pytest.mark.parametrize(("name", "spacing", "calls"), [
    ("EulerDiscrete", "linspace", 30), ("EulerDiscrete", "trailing", 20),
    ("LMSDiscrete", "linspace", 30),
    ("HeunDiscrete", "linspace", 59),
])  # fmt: skip
def test_more_steps_than_training_levels_lie_between_them_as_in_diffusers(
    name: str, spacing: str, calls: int
) -> None:
    theirs, ours = both(name, num_train_timesteps=20, timestep_spacing=spacing, **LINEAR)
    wanted, made = path(theirs, 30), path(ours, 30)
    assert len(made) == calls
    assert relative(made[-1], wanted[-1]) < 1e-4
    assert bool(ours.timesteps.ge(0).all())


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_classes_of_whole_times_refuse_more_steps_than_training_levels_as_diffusers_do(
    name: str,
) -> None:
    for scheduler in both(name, num_train_timesteps=20, **LINEAR):
        with pytest.raises(ValueError, match=r"20"):
            scheduler.set_timesteps(21)


@pytest.mark.parametrize(
    ("name", "steps", "most"), [("EulerDiscrete", 21, 20), ("DPMSolverMultistep", 20, 19)]
)
def test_a_leading_list_of_one_level_over_and_over_is_refused(
    name: str, steps: int, most: int
) -> None:
    theirs, ours = both(name, num_train_timesteps=20, timestep_spacing="leading", **LINEAR)
    theirs.set_timesteps(steps)
    assert theirs.timesteps.unique().numel() == 1
    with pytest.raises(
        GridError, match=f"use at most {most} steps, or timestep_spacing='trailing'"
    ):
        ours.set_timesteps(steps)
    ours.set_timesteps(most)
    assert len(ours.timesteps) == most


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "SASolver"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_lists_without_the_noisiest_levels_are_those_of_diffusers(
    name: str, spacing: str, schedule: str
) -> None:
    """Trailing times keep their distance there and are fewer; times half way between two are
    rounded as numpy does.
    """
    for low in (-2.0, -5.1):
        for steps in (5, 12, 50):
            flags = {
                "lambda_min_clipped": low,
                "timestep_spacing": spacing,
                "beta_schedule": schedule,
            }
            theirs, ours = both(name, **flags)
            for scheduler in (theirs, ours):
                scheduler.set_timesteps(steps)
            assert ours.timesteps.tolist() == theirs.timesteps.tolist()
            assert ours.num_inference_steps == theirs.num_inference_steps


def test_a_time_that_a_caller_lists_twice_stays_a_mistake() -> None:
    for scheduler in (compat.EulerDiscreteScheduler(), compat.DPMSolverMultistepScheduler()):
        with pytest.raises(GridError, match="fall strictly"):
            scheduler.set_timesteps(timesteps=[900, 500, 500, 100])
        with pytest.raises(GridError, match="fall strictly"):
            scheduler.set_timesteps(sigmas=[10.0, 3.0, 3.0, 1.0])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_time_0_that_the_caller_lists_is_called_where_the_list_ends_there(
    eta: float, monkeypatch: Any
) -> None:
    """TCD's list ends at training time 0: a call there moves nothing, in diffusers as here."""
    theirs, ours = both("TCD")
    noise = torch.ones_like(start())
    monkeypatch.setattr(diffusers.schedulers.scheduling_tcd, "randn_tensor", lambda *_, **__: noise)
    ours.session.noise = lambda row, like: noise
    states = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(timesteps=[100, 87, 50, 1, 0])
        x, way = start(), []
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, float(t)), t, x, eta=eta).prev_sample
            way.append(x)
        states.append(way)
    assert len(states[1]) == 5
    assert max(relative(a, b) for a, b in zip(states[1], states[0], strict=True)) < 2e-5
    assert relative(states[1][-1], states[1][-2]) < 1e-6


# -- one training level ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["DDIM", "DDPM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep"]
)
def test_a_model_of_one_training_level_makes_one_step_as_in_diffusers(name: str) -> None:
    theirs, ours = both(name, num_train_timesteps=1, **{**CONFIG, "beta_start": 0.012})
    assert relative(path(ours, 1)[-1], path(theirs, 1)[-1]) < 2e-5


def test_a_process_of_one_training_level_has_that_level_at_every_index() -> None:
    process = tm.VP([0.3])
    level = process.at_time(torch.tensor([0.0]))
    assert torch.allclose(level.sigma**2, torch.tensor([0.3], dtype=torch.float64))
    assert process.sigma_min == process.sigma_max == pytest.approx((0.3 / 0.7) ** 0.5)
    with pytest.raises(GridError, match=r"times must lie in \[0, 0\]"):
        process.at_time(torch.tensor([1.0]))


# -- Euler's other levels --------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [2, 9])
@pytest.mark.parametrize("flags", [
    {}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading", "steps_offset": 1},
    {"final_sigmas_type": "sigma_min"}, {"use_karras_sigmas": True}, {"use_beta_sigmas": True},
])  # fmt: skip
def test_levels_even_in_log_sigma_are_those_of_diffusers_with_the_times_of_the_spacing(
    flags: dict[str, Any], steps: int
) -> None:
    """N + 1 levels for N times: the list ends at the lowest training level, whatever
    `final_sigmas_type` says.
    """
    theirs, ours = both("EulerDiscrete", **CONFIG, interpolation_type="log_linear", **flags)
    wanted, made = path(theirs, steps), path(ours, steps)
    assert torch.allclose(ours.timesteps.double(), theirs.timesteps.double(), atol=5e-3)
    assert max(relative(a, b) for a, b in zip(made, wanted, strict=True)) < 1e-4
    shaped = {"use_karras_sigmas", "use_beta_sigmas"} & set(flags)
    assert float(ours.sigmas[-1]) == (0 if shaped else pytest.approx(ours.process.sigma_min))


def test_log_linear_levels_with_times_of_the_callers_own() -> None:
    times = [900.0, 600.0, 250.0, 20.0]
    theirs, ours = both("EulerDiscrete", **CONFIG, interpolation_type="log_linear")
    wanted, made = path(theirs, timesteps=times), path(ours, timesteps=times)
    assert ours.timesteps.tolist() == times
    assert max(relative(a, b) for a, b in zip(made, wanted, strict=True)) < 1e-4


@pytest.mark.parametrize(("flags", "said"), [
    ({"timestep_type": "continuous"}, "timestep_type='continuous' changes nothing here"),
    ({"interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"},
    "beside interpolation_type='log_linear'"),
    ({"interpolation_type": "log_linear", "use_karras_sigmas": True},
    "beside use_karras_sigmas=True"),
])  # fmt: skip
def test_a_flag_that_another_one_keeps_from_acting_is_said(
    flags: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        compat.EulerDiscreteScheduler(**CONFIG, **flags)
    assert [r.message for r in caplog.records if said in r.message]


def test_a_flow_begins_at_time_1000_where_unipcs_class_says_999() -> None:
    """Wan 2.2 with `boundary_ratio=1.0` lacks the network of that time; its second one is for those
    below.
    """
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    theirs, ours = both("UniPCMultistep", **config)
    drop_in = tm.Scheduler.from_config(theirs.config)
    for scheduler in (theirs, ours, drop_in):
        scheduler.set_timesteps(4)
    assert [float(s.timesteps[0]) for s in (theirs, ours, drop_in)] == [999, 999, 1000]
