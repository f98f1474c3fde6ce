"""Laws of what is fitted: where it begins, how it runs, and that its derivatives are right."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest
import torch

import timonel as tm
from support.models import PROCESSES
from support.tuned_models import Exact, mixture
from timonel.core import grids, solvers
from timonel.core.fitted.sampler_file import Fitted
from timonel.core.process import Level
from timonel.engine.gits import gits
from timonel.engine.reference import distance
from timonel.errors import ArgumentError, GridError
from timonel.exact import Mixture
from timonel.tuning import Plain, fit_model, least_squares, rollout
from timonel.tuning.gauss_newton import Task
from timonel.tuning.parameters import Arrays, Form
from timonel.tuning.starts import Paths
from timonel.tuning.targets import converge

closed = importlib.import_module("timonel.core.grids.gaussian")


def form(solver: str = "dpmpp_2m", steps: int = 4, process: str = "vp", memory: int = 3) -> Form:
    place = PROCESSES[process]
    grid = grids.make("trailing" if process == "flow" else "karras", place, steps)
    return Form(place, solver, grid, memory)


def some(of: Form, size: float = 0.05, seed: int = 0) -> torch.Tensor:
    return size * torch.randn(
        of.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_3m"])
def test_no_correction_is_the_solvers_own_table(solver: str, process: str) -> None:
    of = form(solver, 5, process)
    theirs = solvers.make(solver, of.start)
    made = of.arrays(of.zero()).table(solver, of.start.name)
    for name in (
        "alpha",
        "sigma",
        "time",
    ):  # the first and the last are the grid's own, the others read from lam
        own, other = getattr(made, name), getattr(theirs, name)
        assert torch.equal(own[[0, -1]], other[[0, -1]]), name
        assert torch.allclose(own, other, rtol=1e-14, atol=1e-15), name
    wider = torch.zeros_like(theirs.x)
    shared = min(made.x.shape[1], theirs.x.shape[1])
    wider[:, :shared] = made.x[:, :shared]
    assert torch.allclose(wider, theirs.x, rtol=0, atol=4e-16)
    again = Arrays.of(theirs).table(solver, of.start.name)
    assert torch.equal(again.x[:, :shared], theirs.x[:, :shared])


def test_a_fitted_table_runs_as_a_sampler_as_it_ran_in_the_fit() -> None:
    of, model = form(), mixture()
    arrays = of.arrays(some(of))
    table = arrays.table("fitted", "fitted")
    travelled = rollout.roll(model, arrays, range(6)).result
    assert torch.allclose(model.run(table, range(6)), travelled, rtol=1e-9, atol=1e-12)
    back = tm.Table.from_dict(table.to_dict())
    assert torch.equal(back.x, table.x)
    assert torch.equal(Arrays.of(back).flat(), arrays.flat())


@pytest.mark.parametrize("process", PROCESSES)
def test_the_derivatives_of_the_table_are_those_of_its_differences(process: str) -> None:
    of = form(process=process)
    theta = some(of, 0.02)
    chain = of.jacobian(theta)
    assert chain.shape == (4 * of.steps + of.steps**2, of.size)
    for seed in range(2):
        way = some(of, 1.0, seed + 1)
        ahead, behind = (of.arrays(theta + sign * 1e-5 * way).flat() for sign in (1, -1))
        slope = (ahead - behind) / 2e-5
        assert torch.allclose(chain @ way, slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()))


def test_both_ways_give_the_same_gradient_and_on_average_the_same_curvature() -> None:
    of, data = form(steps=3, memory=2), Mixture.random(0, 4, 3)

    def told(x: torch.Tensor, level: Level) -> torch.Tensor:  # as a network, it reads the time too
        return data(x, level) * (
            1 + 0.2 * torch.sin(torch.as_tensor(level.time) / 200).reshape(-1, 1)
        )

    model = Exact(told, 6, shape=(3,))
    theta, samples = some(of, 0.02), list(range(6))
    theta[2 : 2 + of.steps] = -theta[
        2 : 2 + of.steps
    ].abs()  # the first time is the highest that there is
    target = model.x * 0.1
    given = (model, of, theta, samples, target)
    plain = rollout.differences(*given, size=1e-5)
    probed = rollout.backward(*given, probes=100, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(probed.error, plain.error, rtol=1e-9)
    size = float(plain.gradient.abs().max())
    assert torch.allclose(probed.gradient, plain.gradient, atol=1e-3 * size)
    away = (probed.curvature - plain.curvature).norm() / plain.curvature.norm()
    assert float(away) < 0.25  # of 600 projections
    ends = model.run(of.arrays(theta).table("fit", "fit"), samples)
    log = []
    for sign in (1, -1):
        arrays = of.arrays(theta + sign * 1e-5 * plain.gradient / size)
        log.append(distance(model.run(arrays.table("fit", "fit"), samples), target).log().mean())
    assert float(log[0] - log[1]) / 2e-5 == pytest.approx(
        float(plain.gradient.square().sum()) / size, rel=1e-3
    )
    assert torch.allclose(plain.error, distance(ends, target), rtol=1e-9)


def test_a_run_that_begins_on_the_way_of_another_ends_where_a_whole_run_does() -> None:
    of, model = form(), mixture()
    base, samples = of.arrays(some(of)), range(5)
    known = rollout.roll(model, base, samples)
    units = torch.eye(of.size, dtype=torch.float64)
    moved = [of.arrays(some(of) + 0.01 * unit) for unit in units] + [base]
    before = model.evaluations
    found = rollout.results(model, moved, base, known, samples)
    shared = model.evaluations - before
    for candidate, end in zip(moved, found, strict=True):
        whole = rollout.roll(model, candidate, samples).result
        assert torch.allclose(end, whole, rtol=1e-9, atol=1e-12)
    assert shared < 0.7 * len(moved) * 4 * 5


def test_levels_that_would_not_fall_are_refused() -> None:
    of = form()
    theta = of.zero()
    theta[0] = 3.0
    with pytest.raises(GridError):
        of.arrays(theta)


# -- levels without a model ------------------------------------------------------------------------
@pytest.mark.parametrize("process", PROCESSES)
def test_the_levels_for_gaussian_data_fall_and_more_steps_cost_less(process: str) -> None:
    place = PROCESSES[process]
    levels = closed._levels(place)
    cost = closed._cost(levels.ratio, 0.5)
    spent = []
    for steps in (1, 2, 3, 5, 8):
        grid = grids.gaussian(place, steps, std=0.5)
        assert grid.steps == steps
        assert bool((grid.lam[1:] > grid.lam[:-1]).all())
        path = [int((levels.sigma - s).abs().argmin()) for s in grid.sigma[:-1]] + [
            len(levels.sigma) - 1
        ]
        spent.append(sum(float(cost[i, j]) for i, j in itertools.pairwise(path)))
    assert all(later < earlier for earlier, later in itertools.pairwise(spent))
    assert not torch.allclose(grid.sigma, grids.gaussian(place, 8, std=2.0).sigma, rtol=0.05)


@pytest.mark.parametrize("steps", [2, 3])
def test_the_levels_for_gaussian_data_are_the_best_of_all(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed, "CANDIDATES", 14)
    levels = closed._levels(PROCESSES["vp"])
    cost, last = closed._cost(levels.ratio, 0.5), len(levels.sigma) - 1
    every = [(0, *inner, last) for inner in itertools.combinations(range(1, last), steps - 1)]
    best = min(every, key=lambda path: sum(float(cost[i, j]) for i, j in itertools.pairwise(path)))
    grid = grids.gaussian(PROCESSES["vp"], steps, std=0.5)
    assert torch.allclose(grid.sigma[:-1], levels.sigma[list(best[:-1])])


def test_the_cost_of_a_step_is_the_integral_that_it_says() -> None:
    levels = closed._levels(PROCESSES["vp"])
    c, cost = 0.5, closed._cost(levels.ratio, 0.5)
    for i, j in ((0, 100), (150, 300), (398, 399)):
        a, b = float(levels.ratio[i]), float(levels.ratio[j])
        t = torch.logspace(
            float(torch.tensor(b).log10()),
            float(torch.tensor(a).log10()),
            20_001,
            dtype=torch.float64,
        )
        integral = torch.trapezoid((1 / (t**2 + c**2) - 1 / (a**2 + c**2)) ** 2 / t**3, t)
        assert float(cost[i, j]) == pytest.approx(c**4 * float(integral), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"steps": 0}, "at least 1"), ({"std": 0.0}, "std"), ({"std": 1e4}, "std")],
)
def test_levels_for_gaussian_data_refuse_what_they_cannot_do(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        grids.gaussian(PROCESSES["vp"], **{"steps": 4, **given})


def test_paths_that_are_known_give_the_levels_of_gits_for_any_number_of_steps() -> None:
    model = mixture()
    samples = list(range(6))
    paths = Paths(model, samples)

    def denoise(x: torch.Tensor, at: Any) -> torch.Tensor:
        return model.denoise(x, at)

    asked = model.evaluations
    for steps in (3, 6):
        theirs = gits(denoise, model.start(samples), model.process, steps, fine=paths.fine)
        own = paths.levels(steps)
        assert torch.equal(own.sigma, theirs.sigma)
        assert torch.equal(own.time, theirs.time)
    assert model.evaluations == asked


def test_a_fitted_table_is_written_and_read_to_the_same_bits(tmp_path: Any) -> None:
    from support.fitted_files import made

    of = form()
    table = of.arrays(some(of)).table("fitted", "fitted")
    file = Fitted("one", table, made("dpmpp_2m/karras", PROCESSES["vp"]).provenance)
    back = Fitted.read(file.write(tmp_path / "one.json"))
    assert torch.equal(Arrays.of(back.table).flat(), Arrays.of(table).flat())
    model = Exact(mixture().denoise, 4)
    assert torch.equal(model.run(back.table, range(4)), model.run(table, range(4)))


def test_the_path_that_rows_come_near_is_guided_all_the_way_whatever_the_interval() -> None:
    data = Mixture.random(0, 4, 3, classes=2)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = []
    for guidance in (tm.cfg(3.0), tm.cfg(3.0, between=(0.5, 1.0))):
        model = Plain(
            data.conditional(0), x, PROCESSES["vp"], unconditional=data, guidance=guidance
        )
        form = Form(
            model.process,
            "dpmpp_2m",
            tm.Sampler("dpmpp_2m/karras", steps=4).levels(model.process),
            4,
        )
        targets = converge(model, range(8), lambda _: None)
        made.append(
            torch.stack(
                least_squares.path(
                    Task(model, form, targets, tuple(range(8)), (), "rows", 8), range(8)
                )
            )
        )
    assert torch.equal(*made)


def test_a_walk_that_forgets_ends_where_one_that_remembers_does() -> None:
    model = mixture(0, 4)
    arrays = Arrays.of(tm.Sampler("dpmpp_3m/karras", steps=7).compile(model.process))
    kept = rollout.roll(model, arrays, range(4))
    assert all(
        torch.equal(a, b)
        for a, b in zip(rollout.path(model, arrays, range(4), None), kept.x, strict=True)
    )


def guided(guidance: tm.Guidance, count: int = 6, seed: int = 0) -> Plain:
    """A mixture of two classes, guided toward one of them."""
    data = Mixture.random(0, 4, 3, classes=2)
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Plain(data.conditional(0), x, PROCESSES["vp"], unconditional=data, guidance=guidance)


@pytest.mark.parametrize(
    "guidance",
    [
        tm.cfg(3.0, forecast=2),
        tm.cfg(3.0, forecast=3, order=2, until=0.7),
        tm.cfg(3.0, until=1.5, unit="sigma"),
    ],
)
def test_a_fit_sees_the_halves_that_a_run_forecasts(guidance: tm.Guidance) -> None:
    model = guided(guidance)
    of = form(steps=6)
    units = torch.eye(of.size, dtype=torch.float64)
    base = of.arrays(some(of))
    known = rollout.roll(model, base, range(6))
    assert torch.allclose(
        known.result, model.run(base.table("fit", "fit"), range(6)), rtol=1e-9, atol=1e-12
    )
    assert any(d is not None for d in known.differences) == (guidance.forecast > 1)
    moved = [
        of.arrays(some(of) + 0.3 * unit * of.inward(some(of))) for unit in units[: 2 * of.steps]
    ]
    for candidate, end in zip(
        moved, rollout.results(model, moved, base, known, range(6)), strict=True
    ):
        assert torch.allclose(
            end, model.run(candidate.table("fit", "fit"), range(6)), rtol=1e-9, atol=1e-12
        )


@pytest.mark.filterwarnings("ignore:.*seeds for.*corrections")
def test_a_forecast_half_is_fitted_with_the_table_and_costs_less() -> None:
    whole, halved = guided(tm.cfg(3.0), 24), guided(tm.cfg(3.0, forecast=2), 24)
    assert torch.equal(converge(whole, range(4), lambda _: None).result,
                       converge(halved, range(4), lambda _: None).result)  # fmt: skip
    made = fit_model(halved, steps=6, start="dpmpp_2m/karras", iterations=3, minutes=60)
    (one,) = made.outcomes
    assert one.sampler is not None
    assert one.held_tuned < 0.8 * one.held_start
    table = one.sampler.compile(halved.process)
    costs = []
    for model in (whole, halved):
        before = model.evaluations
        model.run(table, range(4))
        costs.append((model.evaluations - before) // 4)
    assert costs == [12, 10]  # both halves in the rows 0, 1, 3 and 5
    with pytest.raises(ArgumentError, match="forecast halves: use method='differences'"):
        fit_model(guided(tm.cfg(3.0, forecast=2), 24), steps=4, method="backward")
