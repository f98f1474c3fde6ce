"""The names people type are read in one place, and an unknown one says what is near."""

from __future__ import annotations

import diffusers
import pytest

import timonel as tm
from timonel.core import names, solvers
from timonel.core.grids import GRIDS
from timonel.errors import ArgumentError, UnknownName


@pytest.mark.parametrize(
    ("typed", "solver", "grid", "options", "noise"),
    [
        ("dpmpp_2m", "dpmpp_2m", None, {}, "independent"),
        ("dpmpp_2m/karras", "dpmpp_2m", "karras", {}, "independent"),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras", {}, "independent"),
        ("DPM++ 2M", "dpmpp_2m", None, {}, "independent"),
        ("Euler a", "euler_ancestral", None, {}, "independent"),
        (
            "DPM++ 2M SDE Heun Exponential",
            "dpmpp_2m_sde",
            "exponential",
            {"variant": "heun"},
            "brownian",
        ),
        ("dpmpp_2m_sde_gpu", "dpmpp_2m_sde", None, {}, "brownian"),
        (
            "uni_pc_bh2",
            "unipc",
            None,
            {"order": 3, "variant": "bh2", **names.DISCARDS},
            "independent",
        ),
        ("DPM2 a Karras", "dpm2_ancestral", "karras", names.DISCARDS, "independent"),
        ("LMS Karras", "lms", "karras", {}, "independent"),
        ("euler sgm_uniform", "euler", "sgm_uniform", {}, "independent"),
        ("DPM++ 3M SDE Polyexponential", "dpmpp_3m_sde", "polyexponential", {}, "brownian"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral", None, {}, "independent"),
        ("KDPM2DiscreteScheduler/Karras", "dpm2", "karras", {}, "independent"),
        ("dpmpp_2m_cfg_pp/karras", "dpmpp_2m_cfg_pp", "karras", {}, "independent"),
        ("Euler a CFG++ Karras", "euler_ancestral_cfg_pp", "karras", {}, "independent"),
        ("DPM++ 2M Align Your Steps", "dpmpp_2m", "ays", {}, "independent"),
    ],
)
def test_a_typed_name_stands_for_a_sampler(typed, solver, grid, options, noise):
    made = tm.Sampler(typed)
    assert (made.name, made.grid, dict(made.options), made.noise) == (solver, grid, options, noise)
    assert tm.Sampler.of(typed, 7).steps == 7


def test_every_alias_leads_to_something_that_compiles():
    process = tm.VP.from_schedule()
    for alias, named in names.ALIASES.items():
        assert named.solver in solvers.SOLVERS
        assert names.key(alias) == alias
        assert tm.Sampler(alias, steps=6).compile(process).solver == named.solver
    assert set(names.GRID_ALIASES.values()) <= set(GRIDS)


def test_no_alias_hides_a_solver_or_a_grid():
    assert not {
        names.key(name)
        for name in solvers.SOLVERS
        if name != names.ALIASES.get(names.key(name), (name,))[0]
    } & (set(names.ALIASES))
    for alias, grid in names.GRID_ALIASES.items():
        assert names.grid(alias) == grid


def test_every_scheduler_of_diffusers_that_samples_latents_has_a_name():
    """By its class name; what is left out is no sampler of latents, or is listed in docs/parity.md
    with its reason.
    """
    known = {alias for alias in names.ALIASES if alias.endswith("scheduler")}
    classes = {
        name.lower()
        for name in dir(diffusers)
        if name.endswith("Scheduler") and not name.startswith("Flax")
    }
    assert known <= classes
    assert len(known) > 25


def test_own_options_win_over_an_alias():
    made = tm.Sampler("uni_pc_bh2", options={"order": 2, "discard_penultimate": False})
    assert made.options == {"order": 2, "variant": "bh2", "discard_penultimate": False}


@pytest.mark.parametrize(
    ("typed", "error", "said"),
    [
        ("eler", UnknownName, "'euler'"),
        ("DPM++ 2M Karas", UnknownName, "dpm\\+\\+ 2m"),
        ("dpm_adaptive", ArgumentError, "levels from the sample.*res_3s"),
        ("sa_solver_pece", ArgumentError, "does not exist yet.*'sa_solver'"),
        ("euler/karas", UnknownName, "'karras'"),
        ("DPM++ 2M Karras/ays", ArgumentError, "'karras'.*'ays'.*one"),
        ("euler_gpu", UnknownName, "euler"),
        (3, ArgumentError, "got 3"),
        ("", UnknownName, "known"),
        ("karras", ArgumentError, "is a grid.*dpmpp_2m/karras"),
    ],
)
def test_what_is_no_sampler_is_refused_with_the_nearest(typed, error, said):
    with pytest.raises(error, match=said):
        tm.Sampler(typed)


def test_an_option_the_sampler_lacks_names_the_sampler_that_has_it():
    with pytest.raises(ArgumentError, match="euler_ancestral has it"):
        tm.Sampler("euler", options={"eta": 1.0})
    with pytest.raises(ArgumentError, match="dpmpp_2m_sde has it"):
        tm.Sampler("dpmpp_2m", options={"eta": 0.5})
    with pytest.raises(ArgumentError, match=r"s_noise=2.*nothing to multiply"):
        tm.Sampler("dpmpp_2m", steps=5, options={"s_noise": 2}).compile(tm.VP.from_schedule())
    with pytest.raises(ArgumentError, match=r"s_tmax.*s_churn=20"):
        tm.Sampler("dpmpp_2m", steps=5, options={"s_tmax": 2.0}).compile(tm.VP.from_schedule())
