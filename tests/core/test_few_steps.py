"""Law: every option runs at every number of steps, so a sweep over steps may begin at 1.

What has nothing to do in so few is said once; what never acts is refused.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import timonel as tm
from support.models import drive
from timonel.core import grids, solvers
from timonel.errors import ArgumentError, say_once
from timonel.exact import Gaussian

PROCESSES = {"vp": tm.VP.from_schedule(), "flow": tm.Flow(3.0)}
SPECIAL: dict[tuple[str, str], tuple[Any, ...]] = {
    ("sa_solver", "variant"): ("simple",),
    ("deis", "variant"): ("tab", "logrho"),
    ("unipc", "variant"): ("bh1", "vary"),
    ("runge_kutta", "tableau"): ("kutta_3",),
    ("exponential_rk", "tableau"): ("krogstad",),
    ("unipc", "order"): (1, 2, 3),
    ("deis", "order"): (1, 2, 3),
    ("dpm_solver", "order"): (1, 2, 3),
    ("er_sde", "order"): (1, 2, 3),
}
VALUES: dict[str, tuple[Any, ...]] = {
    "order": (1, 2, 3, 4), "eta": (0.0, 0.5, 1.0), "variant": ("midpoint", "heun"),
    "curvature": (0.5, 1.0),
    "final_order": (2, 3), "gamma": (1.5,), "r": (0.4,), "remainder": (0, 1, 2), "start": (0.1,),
    "stop": (0.9,),
    "predictor_order": (1, 4), "corrector_order": (0, 4), "restarts": (0, 2), "restart_steps": (3,),
    "s_min": (0.2,),
    "s_max": (1.5,), "s_churn": (4.0,), "s_tmin": (0.1,), "s_tmax": (5.0,), "s_noise": (1.1,),
    "skip": (2, "2/3"),
    "sde": ((0, 2),), "skip_order": (2,), "euler_at_final": (True, False),
    "uncorrected": ((0,),), "scaling": (5.0,),
}  # fmt: skip


@pytest.fixture(autouse=True)
def unsaid() -> Iterator[None]:
    say_once.cache_clear()
    yield
    say_once.cache_clear()


def default(name: str, key: str) -> tuple[Any, ...]:
    return (inspect.signature(solvers.SOLVERS[name].make).parameters[key].default,)


def variants(name: str) -> Iterator[dict[str, Any]]:
    """The solver with each of its options alone, and with those that an option needs."""
    for key in (*solvers.SOLVERS[name].options, *solvers.COMMON):
        for value in SPECIAL.get((name, key)) or VALUES.get(key) or default(name, key):
            also = (
                {"s_churn": 4.0}
                if key in ("s_tmin", "s_tmax")
                else {"skip": 2}
                if key == "skip_order"
                else {}
            )
            yield {**also, key: value}


def acts(name: str, process: tm.Process, options: dict[str, Any]) -> bool:
    try:
        tm.Sampler(name, steps=12, options=options, grid=grid_of(name, process)).compile(process)
    except ArgumentError:
        return False
    return True


def grid_of(name: str, process: tm.Process) -> str | None:
    return "trailing" if name == "dpm_fast" and isinstance(process, tm.Flow) else None


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_an_option_that_acts_in_many_steps_stops_no_sweep_at_few(name: str) -> None:
    data = Gaussian(torch.zeros(2), torch.ones(2))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = []
    for process in PROCESSES.values():
        for options in variants(name):
            if not acts(name, process, options):
                continue
            for steps in (1, 2, 3):
                sampler = tm.Sampler(
                    name, steps=steps, options=options, grid=grid_of(name, process)
                )
                try:
                    made = drive(
                        sampler.compile(process),
                        data,
                        x,
                        noise=lambda row, like: torch.zeros_like(like),
                    )
                    assert torch.isfinite(made).all()
                except (ArgumentError, AssertionError) as error:
                    wrong.append(f"{process.kind} {options} {steps}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "options", "same", "said"), [
    ("lms", {"order": 2}, {"order": 1}, "order=2"),
    ("euler_ancestral", {"s_noise": 1.1}, {}, "s_noise=1.1"),
    ("restart", {}, {"restarts": 0}, "restart"),
    ("dpmpp_2m", {"skip": 3}, {}, "skip=3"),
])  # fmt: skip
def test_what_has_nothing_to_do_in_one_step_is_said_once_and_is_as_without_it(
    name: str,
    options: dict[str, Any],
    same: dict[str, Any],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = PROCESSES["vp"]
    with caplog.at_level(logging.WARNING, "timonel"):
        tables = [tm.Sampler(name, steps=1, options=options).compile(process) for _ in range(3)]
    assert [said in record.getMessage() for record in caplog.records] == [True]
    without = tm.Sampler(name, steps=1, options=same).compile(process)
    assert torch.equal(tables[0].x, without.x)


def test_a_noise_path_has_nothing_to_follow_in_one_step(caplog: pytest.LogCaptureFixture) -> None:
    """Every A1111 name of a stochastic DPM++ comes with a Brownian path."""
    data, start = Gaussian(torch.zeros(2), torch.ones(2)), torch.randn(1, 2)
    with caplog.at_level(logging.WARNING, "timonel"):
        made = [
            tm.sample(
                data, start, tm.Sampler("DPM++ 2M SDE", steps=n), process=PROCESSES["vp"], seeds=[1]
            )
            for n in (1, 1, 2)
        ]
    assert torch.equal(made[0], made[1])
    assert ["noise='brownian'" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(("name", "options", "said"), [
    ("euler", {"s_noise": 1.1}, "nothing to multiply"),
    ("euler_ancestral", {"s_noise": 1.1, "eta": 0.0}, "nothing to multiply"),
    ("euler_ancestral", {"skip": 2}, "no forecast foresees"),
    ("heun", {"skip": 2}, "only steps of one call"),
    ("lms", {"order": 9}, "order"),
])  # fmt: skip
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_what_never_acts_is_refused_at_every_number_of_steps(
    name: str, options: dict[str, Any], said: str, steps: int
) -> None:
    with pytest.raises(ArgumentError, match=said):
        tm.Sampler(name, steps=steps, options=options).compile(PROCESSES["vp"])
    with pytest.raises(ArgumentError, match="draws no noise"):
        tm.Sampler("euler", steps=steps, noise="brownian").compile(PROCESSES["vp"])


def test_the_linear_part_of_a_grid_has_nothing_to_do_in_one_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "timonel"):
        made = [
            grids.make("linear_quadratic", PROCESSES["flow"], 1, linear_steps=3) for _ in range(2)
        ]
    assert torch.equal(made[0].sigma, grids.make("linear_quadratic", PROCESSES["flow"], 1).sigma)
    assert ["linear_steps=3" in record.getMessage() for record in caplog.records] == [True]


def test_a_sweep_over_steps_begins_at_one() -> None:
    data = Gaussian(torch.zeros(2), torch.ones(2))
    samplers = [
        tm.Sampler("lms", options={"order": 2}),
        tm.Sampler("euler_ancestral", options={"s_noise": 1.1}),
        "DPM++ 2M SDE", "restart",
    ]  # fmt: skip
    assert all(
        torch.isfinite(
            tm.sample(data, torch.randn(1, 2), s, process=PROCESSES["vp"], steps=n, seeds=[0])
        ).all()
        for s in samplers
        for n in (1, 2, 3)
    )
