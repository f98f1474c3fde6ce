"""Laws of fitting a sampler: never worse on unseen noise, exact where the answer is known, and what
it refuses.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from support.models import PROCESSES
from support.tuned_models import START, Exact, brief, fresh, mixture
from timonel.core.process import Level, Process
from timonel.engine.network import Answer, Query
from timonel.engine.reference import distance
from timonel.errors import ArgumentError
from timonel.exact import Gaussian, Mixture, solve
from timonel.tuning import METHODS, Plain, Tuning, fit_model, held_out, targets
from timonel.tuning.fitting import BATCH, ROOM, at_once, held_bytes

__all__ = ["brief"]
few = pytest.mark.filterwarnings(
    "ignore:.*seeds for.*corrections"
)  # these fits are as small as they can be
pytestmark = [pytest.mark.usefixtures("brief"), few]


# -- what a fit is worth ---------------------------------------------------------------------------
def never_worse(seed: int, **how: Any) -> float:
    """How many times the error on new noise fell, by a fit to a random mixture; 1 where nothing was
    kept.
    """
    model = mixture(seed)
    found = fit_model(model, steps=4, start=START, **how)
    if not found.samplers:
        assert "nothing kept" in found.lines()[0]
        return 1.0
    other, truth = fresh(model)
    samples = range(other.count)

    def error(sampler: tm.Sampler | str) -> float:
        table = tm.Sampler.of(sampler, 4).compile(other.process)
        return held_out.geometric(distance(other.run(table, samples), truth.of(samples)))[0]

    return error(START) / error(found.samplers[4])


def test_a_fit_is_never_worse_than_its_start_on_new_noise() -> None:
    gains = [never_worse(seed, method="rows") for seed in range(6)]
    assert min(gains) >= 1.0
    assert sorted(gains)[3] > 1.2


@pytest.mark.slow
def test_a_fit_is_never_worse_than_its_start_on_new_noise_over_fifty_mixtures() -> None:
    ways: tuple[dict[str, Any], ...] = (
        {"method": "rows"},
        {"method": "differences", "iterations": 2},
        {"method": "backward", "iterations": 2},
    )
    gains = [never_worse(seed, **ways[seed % 3]) for seed in range(50)]
    assert min(gains) >= 1.0
    assert sorted(gains)[25] > 1.5


@pytest.mark.parametrize("method", ["rows", "differences", "backward"])
def test_the_exact_table_is_found_where_there_is_one(method: str) -> None:
    data, std = Gaussian(torch.zeros(3), 0.5), 0.5
    model = Exact(data, 12)
    found = fit_model(model, steps=3, start=START, method=method, iterations=3)
    (one,) = found.outcomes
    assert one.held_start > 0.02 * std  # which no solver's own table reaches
    assert one.held_tuned < 1e-4 * std
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    truth = solve(data, x, model.process, tolerance=1e-7)
    made = Exact(data, 5)
    made.x = x
    table = found.samplers[3].compile(model.process)
    away = distance(made.run(table, range(5)), truth) / distance(truth, torch.zeros_like(truth))
    assert float(away.max()) < 2e-3  # of the targets themselves


def test_the_last_coefficient_is_the_closed_form_where_all_else_is_given() -> None:
    """A row of one prediction is x' = (keep + weight·a)·x where D = a·x, and two of them make the
    whole way.
    """
    std = 0.5
    data = Gaussian(torch.zeros(1), std)
    model = Exact(data, 12)
    found = fit_model(model, steps=2, start=START, method="differences", iterations=4, memory=1)
    table = found.samplers[2].compile(model.process)
    x, gains = torch.ones(1, 1, dtype=torch.float64), []
    for k in range(2):
        level = Level(table.alpha[k], table.sigma[k], table.time[k])
        gains.append(float(table.x[k, 0]) + float(table.x[k, 2]) * float(data(x, level)))
    first = model.process.at_sigma(torch.tensor(model.process.sigma_max, dtype=torch.float64))
    last = model.process.at_sigma(torch.tensor(model.process.sigma_min, dtype=torch.float64))
    truth = float(data(data.solution(x, first, last), last))
    assert gains[0] * gains[1] == pytest.approx(truth, rel=2e-3)


@pytest.mark.slow
def test_five_fitted_steps_reach_the_error_of_twelve_and_eight_that_of_twenty_five(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_out, "GOALS", (12, 25))
    found = fit_model(mixture(0, 64, 8), steps=[5, 8], minutes=10, iterations=20)
    for one, goal in zip(found.outcomes, (12, 25), strict=True):
        assert one.sampler is not None
        assert one.sampler.fitted is not None
        errors = {
            m.steps: m.error
            for m in one.sampler.fitted.provenance.errors
            if m.sampler == "dpmpp_2m/karras"
        }
        assert one.held_tuned <= errors[goal]


def test_levels_alone_are_measured_by_the_usual_ones() -> None:
    found = fit_model(mixture(1), steps=5, method="levels")
    (one,) = found.outcomes
    assert one.start == START
    if one.sampler is not None:
        assert one.held_tuned < one.held_start
        assert one.sampler.fitted is not None
        assert one.sampler.fitted.table.solver == "fitted"
    else:
        assert "not clearly below" in one.reason


def test_a_fit_that_is_not_better_is_not_saved_and_says_so(tmp_path: Path) -> None:
    point = Exact(
        lambda x, level: torch.full_like(x, 0.3), 12, shape=(3,)
    )  # which every solver reproduces
    found = fit_model(
        point, steps=3, start=START, method="differences", iterations=1, out=tmp_path / "fast.json"
    )
    assert found.samplers == {}
    assert found.files == []
    assert re.match(
        r"3 steps: nothing kept, .* not clearly below that of its start dpmpp_2m/karras",
        found.lines()[0],
    )
    assert list(tmp_path.iterdir()) == []


def test_several_numbers_of_steps_share_the_converged_samples_and_make_a_folder(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    model = Exact(Gaussian(torch.zeros(3), 0.5), 12)
    found = fit_model(
        model, steps=[3, 4], start=START, method="rows", out=tmp_path / "fast", log=told.append
    )
    assert [path.name for path in found.files] == ["3.json", "4.json"]
    assert sum("targets" in line for line in told) == 2  # a run and its double
    for path, steps in zip(found.files, (3, 4), strict=True):
        fitted = tm.Sampler(str(path)).fitted
        assert fitted is not None
        assert fitted.steps == steps
        assert fitted.provenance.held_out["tuned"] < fitted.provenance.held_out["start"]
        assert torch.equal(fitted.table.x, found.samplers[steps].compile(model.process).x)
    assert [path.name for path in tmp_path.iterdir()] == ["fast"]


def test_ctrl_c_keeps_the_best_so_far_and_ends_all(tmp_path: Path) -> None:
    told: list[str] = []

    def stop(message: str) -> None:
        told.append(message)
        if "iteration 2" in message:
            raise KeyboardInterrupt

    out = tmp_path / "fast"
    found = fit_model(
        mixture(0), steps=[3, 4], start=START, method="differences", out=out, log=stop
    )
    assert [one.steps for one in found.outcomes] == [3]
    assert found.outcomes[0].held_tuned < found.outcomes[0].held_start
    assert found.files == [out / "3.json"]
    assert "the same call goes on" in told[-1]
    assert any("iteration 2" in line and "held-out error" in line for line in told)


# -- what is said before ---------------------------------------------------------------------------
class Large(Exact):
    """A model whose samples are as large as a video's, without the memory."""

    def start(self, samples: Any) -> Tensor:
        return torch.zeros(1).expand(len(samples), 4 * 25 * 72 * 128)


def test_memory_is_said_before_and_bounded_for_large_samples() -> None:
    told: list[str] = []
    fit_model(mixture(0), steps=3, start=START, method="rows", log=told.append)
    assert re.fullmatch(
        r"rows: 12 samples to fit and 6 to judge, [\d,]+ MiB beside the network", told[0]
    )
    assert re.fullmatch(
        r"about \d+ s for the converged samples, \d+ s are left for the fit", told[1]
    )
    large = Large(mixture().denoise, 4)
    assert at_once(mixture(), 8, "differences", 4) == BATCH
    for steps in (4, 8, 10):
        some = at_once(large, steps, "differences", 4)
        assert 1 <= some < BATCH
        assert (
            held_bytes(large, 64, steps, "differences", 4)
            < 64 * 4 * 921_600 * (2 + 2 * steps + 1) + 2 * ROOM
        )


def test_fewer_seeds_than_corrections_are_told_with_the_number() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        fit_model(mixture(0, 12), steps=4, start=START, method="rows")
    (said,) = [str(one.message) for one in heard]
    found = re.search(r"12 seeds for (\d+) corrections of 4 steps.*seeds=(\d+) or more", said)
    assert found is not None
    assert found[1] == found[2] == str(3 + 4 + 4 + 1 + 2 + 3 + 4)


# -- bad input -------------------------------------------------------------------------------------
class Cut(Exact):
    """A network through which no gradient comes."""

    def answers(self, queries: Sequence[Query]) -> list[Answer]:
        with torch.no_grad():
            return super().answers(queries)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 1}, "one step has no levels to choose: fit 2 or more"),
        ({"steps": 0}, "steps must be a whole number of at least 2, got 0"),
        ({"steps": [4, -1]}, "at least 2, got -1"),
        ({"steps": 4.5}, r"at least 2, got 4\.5"),
        ({"steps": "8"}, "steps must be a list"),
        ({"steps": True}, "one step|got True"),
        ({"steps": []}, "steps is empty"),
        ({"method": "magic"}, f"unknown method 'magic'.*{'.*'.join(sorted(METHODS))}"),
        ({"method": "levels", "start": START}, "leave start='dpmpp_2m/karras' out"),
        ({"start": "euler_ancestral"}, r"draws noise.*such as start='dpmpp_2m/"),
        ({"start": "dpmpp_2m_sde/karras"}, "draws noise.*start='dpmpp_2m/karras'"),
        ({"start": "heun/karras"}, "begins at dpmpp_2m or dpmpp_3m on any grid, got 'heun/karras'"),
        ({"start": "nonsense"}, "nonsense"),
        ({"minutes": 0}, "minutes must be"),
        ({"minutes": float("nan")}, "minutes must be"),
        ({"split": ([0, 1], [1, 2])}, "none is in both; got 2 and 2, 1 in both"),
        ({"split": ([0, 1], [2, 99])}, "1 that are not there"),
        ({"split": ([0, 1, 2], [])}, "two lists of two or more"),
        ({"out": "fast.txt"}, r"ends in \.json, got 'fast\.txt'"),
        (
            {"out": "fast.json", "steps": [4, 6]},
            "2 numbers of steps make as many files: give a folder",
        ),
    ],
)
def test_what_cannot_be_fitted_says_so(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = {name: tmp_path / value if name == "out" else value for name, value in given.items()}
    said = said.replace("got 'fast", "got '.*fast")
    model = mixture(0, 12)
    with pytest.raises(ArgumentError, match=said):
        fit_model(model, **{"steps": 4, "iterations": 1, **given})
    assert list(tmp_path.iterdir()) == []


def test_differences_are_taken_unless_the_network_is_of_half_precision_and_has_gradients() -> None:
    told: list[str] = []
    cut = Cut(mixture().denoise, 12)
    plain = Plain(Mixture.random(0, 2, 3), torch.randn(12, 3, dtype=torch.float64), PROCESSES["vp"])
    for model in (cut, plain):
        with pytest.raises(
            ArgumentError, match="no gradient flows through this network: use method='differences'"
        ):
            fit_model(model, steps=2, method="backward")
    halved, cut_half = mixture(0, 12), Cut(mixture().denoise, 12)
    halved.half = cut_half.half = True
    ways = (
        (mixture(0, 12), "differences"),
        (halved, "backward"),
        (cut_half, "differences"),
        (plain, "differences"),
    )
    for model, way in ways:
        with pytest.raises(KeyboardInterrupt):
            fit_model(model, steps=2, log=_stop_at_once(told))
        assert told[-1].startswith(way)


def _stop_at_once(told: list[str]) -> Any:
    def stop(message: str) -> None:
        told.append(message)
        raise KeyboardInterrupt

    return stop


def test_samples_that_do_not_converge_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "LAST", 64)
    rough = Exact(lambda x, level: torch.sin(1e4 * x).sign(), 12, shape=(3,))
    with pytest.raises(
        ArgumentError, match=r"have not converged in 64 steps.*still changes them by .* of"
    ):
        fit_model(rough, steps=3)


def test_a_network_that_is_not_deterministic_or_not_finite_is_refused() -> None:
    noisy = Exact(lambda x, level: 0.1 * torch.randn_like(x), 12, shape=(3,))
    with pytest.raises(
        ArgumentError, match=r"not deterministic: asked twice, it differs by [\d.]+.*module.eval"
    ):
        fit_model(noisy, steps=3)
    broken = Exact(lambda x, level: x * torch.nan, 12, shape=(3,))
    with pytest.raises(ArgumentError, match="not finite"):
        fit_model(broken, steps=3)


def test_targets_that_take_too_long_to_converge_are_refused() -> None:
    def rough(x: Tensor, level: Level) -> Tensor:
        time.sleep(0.002)
        return torch.sin(1e4 * x).sign()

    said = (
        r"have not converged in \d+ steps, .* and \d+ steps take another \d+ s: give more minutes"
    )
    with pytest.raises(ArgumentError, match=said):
        targets.converge(Exact(rough, 4, shape=(3,)), range(4), lambda _: None, seconds=0.5)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(
        ArgumentError, match="4 samples are too few to fit and to judge by: give 12 or more"
    ):
        fit_model(mixture(0, 4), steps=3)


@pytest.mark.parametrize("scales", [2, 3, 8])
def test_a_guidance_scale_for_every_step_is_refused_before_the_network_is_called(
    scales: int,
) -> None:
    def called(x: Tensor, level: Any) -> Tensor:
        raise AssertionError("the network was called")

    model = Plain(
        called,
        torch.zeros(12, 2, 4),
        tm.VP.from_schedule(),
        unconditional=called,
        guidance=tm.cfg([4.0] * scales),
    )
    said = (
        rf"one guidance scale and an interval, got {scales} scales, one for each step: "
        r"give one, such as cfg\(4,"
    )
    with pytest.raises(ArgumentError, match=said):
        fit_model(model, steps=3)


def test_time_that_is_too_short_is_refused_with_the_time_that_would_do() -> None:
    data = mixture().denoise

    def slow(x: Tensor, level: Level) -> Tensor:
        time.sleep(0.02)
        return data(x, level)

    model = Exact(slow, 40, shape=(4,))
    with pytest.raises(
        ArgumentError, match=r"alone take about .* of the 0\.05 minutes: give minutes=\d"
    ) as refused:
        fit_model(model, steps=3, minutes=0.05)
    asked = float(re.search(r"minutes=([\d.]+)", str(refused.value))[1])  # type: ignore[index]
    assert 40 * 96 * 0.02 / 8 / 60 < asked < 4


def test_samples_are_as_many_as_a_quarter_of_the_time_allows_and_what_was_spent_counts() -> None:
    data = mixture().denoise

    def slow(x: Tensor, level: Level) -> Tensor:
        time.sleep(0.01)
        return data(x, level)

    def fitted(spent: float) -> tuple[Tuning, list[str]]:
        said = list[str]()
        model = Exact(slow, 60, shape=(4,))
        given = {
            "minutes": 0.15,
            "method": "levels",
            "log": said.append,
            "began": time.monotonic() - spent,
        }
        return fit_model(
            model, steps=3, split=(range(50), range(50, 60)), fewer=True, **given
        ), said

    found, said = fitted(0)
    told = next(line for line in said if "for the time is short" in line)
    many = int(told.split()[0])
    assert told == f"{many} of the 60 samples, for the time is short"
    assert 12 <= many < 60
    assert f"targets: {many} samples in 32 steps" in said
    assert found.seconds < 60
    with pytest.raises(ArgumentError, match=r"of the 0\.15 minutes: give minutes=[\d.]+$"):
        fitted(8.9)


@pytest.mark.parametrize(
    "process", [tm.VP.from_schedule(rescale_zero_snr=True), PROCESSES["edm"], PROCESSES["flow"]]
)
def test_every_noise_process_is_fitted_pure_noise_too(process: Process, brief: None) -> None:
    (one,) = fit_model(mixture(0, 18, process=process), steps=4, method="rows").outcomes
    assert one.held_tuned < one.held_start
