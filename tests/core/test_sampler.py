"""Samplers by name: what they mean, and that nothing wrong passes unsaid."""

from __future__ import annotations

import itertools

import pytest
import torch

import timonel as tm
from support.models import PROCESSES
from timonel.core import grids
from timonel.core.process import EDM, VE, VP, Cosine, Flow, Trig
from timonel.errors import ArgumentError, GridError, UnknownName


def test_the_name_may_carry_the_grid():
    joined, apart = (
        tm.Sampler("dpmpp_2m/karras", steps=5),
        tm.Sampler("dpmpp_2m", grid="karras", steps=5),
    )
    assert joined == apart
    assert joined.label == "dpmpp_2m/karras"
    assert torch.equal(joined.compile(PROCESSES["vp"]).x, apart.compile(PROCESSES["vp"]).x)
    assert tm.Sampler("dpmpp_2m/karras", grid="karras") == tm.Sampler("dpmpp_2m/karras")


def test_the_usual_grid_is_karras_and_trailing_for_flows():
    for process, grid in (("vp", "karras"), ("edm", "karras"), ("flow", "trailing")):
        assert tm.Sampler("euler").compile(PROCESSES[process]).grid == grid
    assert tm.Sampler("lcm", steps=4).compile(PROCESSES["vp"]).grid == "lcm"
    assert tm.Sampler("lcm/trailing", steps=4).compile(PROCESSES["vp"]).grid == "trailing"


def test_options_reach_the_solver_and_the_grid():
    made = tm.Sampler("unipc/karras", steps=6, options={"order": 3}, grid_options={"rho": 3.0})
    assert made.compile(PROCESSES["vp"]).history == 4
    plain = tm.Sampler("unipc/karras", steps=6)
    assert not torch.equal(made.levels(PROCESSES["vp"]).sigma, plain.levels(PROCESSES["vp"]).sigma)


def test_own_levels_set_the_steps():
    assert tm.Sampler("euler", sigmas=[10.0, 1.0, 0.0]).compile(PROCESSES["vp"]).steps == 2
    assert tm.Sampler("euler", times=[999, 400, 10]).compile(PROCESSES["vp"]).steps == 3
    assert tm.Sampler("euler", steps=2, sigmas=[10.0, 1.0]).compile(PROCESSES["vp"]).steps == 2
    with pytest.raises(ArgumentError, match=r"steps=5.*2 steps"):
        tm.Sampler("euler", steps=5, sigmas=[10.0, 1.0]).compile(PROCESSES["vp"])


def test_of_makes_a_sampler_of_whatever_names_one():
    given = tm.Sampler("heun", steps=3)
    assert tm.Sampler.of(given) is given
    assert tm.Sampler.of(given, 7).steps == 7
    assert tm.Sampler.of(None).name == tm.Sampler().name
    assert tm.Sampler.of("heun/karras", 4) == tm.Sampler("heun", grid="karras", steps=4)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: tm.Sampler("dpmp_2m"), UnknownName, "did you mean 'dpmpp_2m'"),
        (lambda: tm.Sampler("euler/karas"), UnknownName, "did you mean 'karras'"),
        (lambda: tm.Sampler("euler", grid="karas"), UnknownName, "karas"),
        (lambda: tm.Sampler("euler/karras", grid="trailing"), ArgumentError, "trailing"),
        (lambda: tm.Sampler("euler/"), UnknownName, "grid ''"),
        (lambda: tm.Sampler("euler", steps=0), ArgumentError, "got 0"),
        (lambda: tm.Sampler("euler", steps=2.0), ArgumentError, r"2\.0"),
        (lambda: tm.Sampler("euler/karras", sigmas=[1.0]), ArgumentError,
        "one of grid=, sigmas= and times="),
        (lambda: tm.Sampler("euler", sigmas=[1.0], times=[3]), ArgumentError, "one of"),
        (lambda: tm.Sampler("euler", options={"eta": 1}), ArgumentError,
        "eta.*euler_ancestral has it"),
        (lambda: tm.Sampler("ddim", options={"etta": 1}).compile(PROCESSES["vp"]), ArgumentError,
        "etta.*takes eta"),
        (lambda: tm.Sampler("ddim", options={"eta": 2}).compile(PROCESSES["vp"]), ArgumentError,
        r"eta.*\[0, 1\].*2"),
        (lambda: tm.Sampler("unipc", options={"order": 4}).compile(PROCESSES["vp"]), ArgumentError,
        "at most 3.*4"),
        (lambda: tm.Sampler("unipc", options={"variant": "bh3"}).compile(PROCESSES["vp"]),
        ArgumentError, "bh3"),
        (lambda: tm.Sampler("euler", steps=2000).compile(PROCESSES["vp"]), GridError,
        "2000.*at most 1000"),
        (lambda: tm.Sampler(3), ArgumentError, "3"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_sampler_is_refused_with_the_value(call, error, said):
    with pytest.raises(error, match=said):
        call()


@pytest.mark.parametrize(
    ("x", "process", "said"),
    [
        (torch.ones(2, 3, dtype=torch.int64), PROCESSES["vp"], "int64"),
        ([1.0], PROCESSES["vp"], "tensor"),
        (torch.tensor(1.0), PROCESSES["vp"], "batch"),
        (torch.ones(2, 3), "vp", "'vp'"),
    ],
)
def test_a_start_or_process_that_cannot_be_used_is_refused(x, process, said):
    with pytest.raises(ArgumentError, match=said):
        tm.sample(lambda x, at: x, x, "euler", process=process)


def test_a_network_that_returns_another_shape_is_refused():
    with pytest.raises(ArgumentError, match=r"\(1, 2\).*\(1, 3\)"):
        tm.sample(lambda x, at: x[:, :2], torch.ones(1, 3), "euler", process=PROCESSES["vp"])


def test_options_of_a_grid_are_refused_beside_given_levels():
    with pytest.raises(ArgumentError, match="belong to a named grid"):
        tm.Sampler("euler", sigmas=[10.0, 1.0], grid_options={"rho": 3.0})


@pytest.mark.parametrize(
    "process", [VP.from_schedule(), EDM(0.002, 80.0), Flow(), VE(0.01, 50.0), Cosine(), Trig()]
)
def test_more_steps_than_a_run_may_have_are_refused_before_levels_are_made(process):
    """10,000 steps take 11 s and 0.1 GB at most (sa_solver on EDM); a million would take minutes
    and gigabytes.
    """
    for steps in (10_001, 10**6, 10**9):
        with pytest.raises(tm.ArgumentError, match=r"steps=[\d,]+ is more than the 10,000"):
            tm.Sampler("euler", steps=steps)
        with pytest.raises(tm.ArgumentError, match=r"steps=[\d,]+ is more than the 10,000"):
            grids.make("karras", process, steps)
        with pytest.raises(tm.ArgumentError, match=r"steps=[\d,]+ is more than the 10,000"):
            tm.sample(lambda x, at: x, torch.ones(1, 2), "euler", process=process, steps=steps)


def test_as_many_steps_as_a_run_may_have_are_made():
    assert grids.make("karras", EDM(0.002, 80.0), 10_000).steps == 10_000
    with pytest.raises(tm.ArgumentError, match="1,000,000 is more"):
        tm.Sampler("restart", options={"restarts": 1000, "restart_steps": 1000}).compile(
            EDM(0.002, 80.0)
        )
    with pytest.raises(tm.ArgumentError, match="20,000 is more"):
        tm.Sampler("euler", sigmas=[float(i) for i in range(20_000, 0, -1)]).compile(
            EDM(0.002, 80_000.0)
        )
    with pytest.raises(tm.ArgumentError, match="more than 1,000,000 entries"):
        tm.Sampler("euler", sigmas=itertools.count())
