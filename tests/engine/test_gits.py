"""GITS: the path is the best of all paths, the cost is the error of Euler, and the grid beats fixed
ones.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from support.models import Gaussian, Mixture, drive
from timonel.core import grids, solvers
from timonel.core.process import EDM, VP, Flow, double
from timonel.engine.gits import choose, deviations, gits
from timonel.errors import ArgumentError, GridError

PLACES = {"vp": VP.from_schedule(), "edm": EDM(0.002, 80.0), "flow": Flow(3.0),
          "zero-snr": VP.from_schedule(rescale_zero_snr=True)}  # fmt: skip
MODEL = Mixture()


def noise(batch: int, seed: int) -> torch.Tensor:
    return torch.randn(batch, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("coefficient", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_the_path_has_the_least_cost_of_all_paths(steps, coefficient):
    for seed in range(5):
        cost = torch.rand(9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

        def price(path, cost=cost):
            return sum(
                coefficient**k * cost[i, j] for k, (i, j) in enumerate(itertools.pairwise(path))
            )

        every = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), steps - 1)]
        path = choose(cost, steps, coefficient)
        assert len(path) == steps + 1
        assert tuple(path) in every
        assert float(price(path)) == pytest.approx(float(min(price(p) for p in every)), rel=1e-12)


@pytest.mark.parametrize("place", PLACES)
def test_the_cost_is_the_distance_of_one_euler_step_from_the_teacher(place):
    process = PLACES[place]
    grid = grids.make("trailing", process, 6)
    start = noise(3, 0)
    samples, clean, x = [start], [], start
    for k in range(grid.steps):
        one = grids.cut(grid, start=k, stop=k + 1)
        clean.append(MODEL(x, _at(grid, k)))
        x = drive(solvers.make("euler", one), MODEL, x)
        samples.append(x)
    cost = deviations(grid, torch.stack(samples), torch.stack(clean))
    for i, j in itertools.combinations(range(7), 2):
        jump = grids.Grid(process, *(v[[i, j]] for v in (grid.alpha, grid.sigma, grid.time)))
        landed = drive(solvers.make("euler", jump), MODEL, samples[i])
        wanted = ((landed - samples[j]) / grid.alpha[j]).norm(dim=1).mean()
        assert float(cost[i, j]) == pytest.approx(float(wanted), abs=1e-10)
        assert j > i + 1 or float(cost[i, j]) < 1e-10  # the teacher's own steps cost nothing


def _at(grid, k):
    from timonel.core.process import At

    return At(*(float(v) for v in grid[k]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("steps", [1, 2, 6, 12])
def test_gits_chooses_exactly_n_plus_one_of_the_fine_levels(steps, place):
    process = PLACES[place]
    fine = grids.make("trailing", process, 12)
    grid = gits(MODEL, noise(8, 0), process, steps, fine=fine)
    assert grid.steps == steps
    assert grid.name == "gits"
    assert set(grid.time.tolist()) <= set(fine.time.tolist())
    assert torch.equal(grid.sigma[[0, -1]], fine.sigma[[0, -1]])
    calls = []
    counted = gits(
        lambda x, at: calls.append(at) or MODEL(x, at), noise(8, 0), process, steps, fine=15
    )
    assert counted.steps == steps
    assert len(calls) == 15


@pytest.mark.parametrize(("place", "margin"), [("vp", 0.8), ("edm", 0.6), ("flow", 0.7)])
def test_gits_makes_euler_more_exact_than_uniform_indices_and_karras(place, margin):
    """Mean distance to the solution over 200 starts the grid was not made with; the solution by
    DOP853.
    """
    process, x = PLACES[place], noise(200, 1)
    begin = {"trailing": "trailing", "linspace": "linspace", "karras": "karras"}
    made = {name: grids.make(name, process, 6) for name in begin}
    made["gits"] = gits(MODEL, noise(64, 0), process, 6)
    first = made["gits"][0]
    if (
        float(first.alpha) == 0
    ):  # the ODE is solved from just below pure noise, where x is still the noise
        start = process.at_lam(double(-12.0))
        reference = MODEL.solve(x, start, process.at_lam(double(9.0)))
    else:
        reference = MODEL.solve(x, first, process.at_lam(double(9.0)))
    error = {
        name: float((drive(solvers.make("euler", grid), MODEL, x) - reference).norm(dim=1).mean())
        for name, grid in made.items()
    }
    for name in begin:
        assert error["gits"] < margin * error[name], error


def test_gits_does_not_depend_on_the_prediction_kind():
    process = PLACES["vp"]

    def epsilon(x, at):
        return (x - at.alpha * MODEL(x, at)) / at.sigma

    one = gits(MODEL, noise(8, 0), process, 5, fine=20)
    two = gits(epsilon, noise(8, 0), process, 5, fine=20, prediction="epsilon")
    assert torch.equal(one.time, two.time)


def test_a_smaller_coefficient_makes_the_early_steps_finer():
    process = PLACES["vp"]
    second = [
        gits(MODEL, noise(32, 0), process, 6, coefficient=c).ratio_at(1) for c in (0.8, 1.0, 1.3)
    ]
    assert second == sorted(second, reverse=True)
    assert second[0] > second[-1]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"steps": 61}, GridError, "61 steps.*60 fine"),
        ({"steps": 0}, ArgumentError, "steps.*0"),
        ({"fine": 0}, ArgumentError, "fine.*0"),
        ({"fine": "many"}, ArgumentError, "fine.*many"),
        ({"fine": grids.make("trailing", Flow(), 20)}, ArgumentError, "same process"),
        ({"coefficient": 0}, ArgumentError, "coefficient.*0"),
        ({"x": [1.0]}, ArgumentError, "batch of noise.*list"),
        ({"x": torch.zeros(3)}, ArgumentError, r"batch of noise.*\(3,\)"),
        ({"x": torch.zeros(0, 2)}, ArgumentError, r"batch of noise.*\(0, 2\)"),
        ({"x": torch.zeros(2, 2, dtype=torch.int64)}, ArgumentError, "int64"),
        ({"denoise": lambda x, at: x * float("nan")}, GridError, "not finite"),
        ({"prediction": "score"}, ArgumentError, "score"),
    ],
)
def test_what_gits_cannot_use_is_refused(change, error, said):
    options = {
        "denoise": Gaussian((0.1, 0.2), (0.5, 1.0)),
        "x": noise(4, 0),
        "process": PLACES["vp"],
        "steps": 5,
    }
    with pytest.raises(error, match=said):
        gits(**{**options, **change})
