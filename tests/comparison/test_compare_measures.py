"""Laws of the numbers on a comparison's page."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from timonel.comparison import measure

REAL = st.floats(0, 1)


def picture(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*(shape or (3, 20, 24)), generator=torch.Generator().manual_seed(seed))


@given(REAL, REAL)
def test_ssim_of_flat_pictures_is_its_luminance_term(a, b):
    flat = [torch.full((3, 16, 16), v, dtype=torch.float64) for v in (a, b)]
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    assert measure.ssim(*flat) == pytest.approx(expected, abs=1e-6)


def test_ssim_is_one_for_equal_pictures_and_symmetric():
    a, b = picture(0), picture(1)
    assert measure.ssim(a, a) == pytest.approx(1)
    assert measure.ssim(a, b) == pytest.approx(measure.ssim(b, a))
    assert measure.ssim(a, b) < 0.2


def test_ssim_of_uncorrelated_noise_falls_with_the_noise():
    a = picture(0)
    values = [measure.ssim(a, a + s * (picture(1) - 0.5)) for s in (0.1, 0.3, 0.9)]
    assert values == sorted(values, reverse=True)


@given(st.floats(1e-3, 1))
def test_psnr_is_the_logarithm_of_the_error(off):
    a = torch.zeros(3, 8, 8)
    assert measure.psnr(a, a + off) == pytest.approx(-20 * math.log10(off), abs=1e-3)


def test_equal_pictures_have_infinite_psnr():
    assert measure.psnr(picture(0), picture(0)) == math.inf


def test_energy_is_the_formula_without_pairs_of_one_seed():
    x, y = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in (0, 1)
    )

    def apart(a, b):
        return float((a - b).norm()) / math.sqrt(3)

    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    total = sum(
        2 * apart(x[i], y[j]) - apart(x[i], x[j]) - apart(y[i], y[j]) for i, j in pairs
    ) / len(pairs)
    assert measure.energy(x, y)[0] == pytest.approx(total)


def test_energy_finds_a_shift_and_no_difference_where_there_is_none():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 4, generator=g), torch.randn(200, 4, generator=g)
    value, error = measure.energy(x, y)
    assert abs(value) < 3 * error
    shifted, error = measure.energy(x, y + 1)
    assert shifted > 10 * error


def test_the_standard_error_is_that_of_the_mean():
    mean, error = measure.mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert error == pytest.approx(math.sqrt(5 / 3 / 4))
    assert measure.mean_and_error([7.0]) == (7.0, None)


def test_a_difference_inside_the_noise_is_a_tie():
    seeds = range(8)
    noise = [0.1 * (-1) ** k for k in seeds]
    told = {
        "a": dict.fromkeys(seeds, 1.0),
        "b": {k: 1.01 + noise[k] for k in seeds},
        "c": {k: 1.5 + noise[k] for k in seeds},
    }
    assert measure.verdicts(told) == {"a": "best", "b": "tie", "c": "worse"}


def test_a_verdict_is_about_paired_differences():
    """Samples differ much from each other, and a is better on every one of them."""
    told = {
        "a": {k: 1.0 + k for k in range(6)},
        "b": {k: 1.01 * (1 + k) + 0.001 * (-1) ** k for k in range(6)},
    }
    assert measure.verdicts(told) == {"a": "best", "b": "worse"}


def test_one_sample_that_went_elsewhere_does_not_hide_a_factor():
    told = {"a": dict.fromkeys(range(6), 0.01), "b": dict.fromkeys(range(5), 0.05) | {5: 5.0}}
    assert measure.verdicts(told) == {"a": "best", "b": "worse"}


def test_nothing_is_said_of_one_setting_or_one_sample():
    assert measure.verdicts({"a": {0: 1.0, 1: 2.0}}) == {"a": None}
    assert measure.verdicts({"a": {0: 1.0}, "b": {0: 2.0}}) == {"a": None, "b": None}


@given(st.dictionaries(st.integers(0, 50), st.tuples(REAL, REAL), min_size=1))
def test_the_pareto_front_is_what_nothing_beats(points):
    front = measure.pareto(points)
    assert front
    for name, (cost, error) in points.items():
        beaten = any(
            c <= cost and e <= error and (c, e) != (cost, error) for c, e in points.values()
        )
        assert (name in front) == (not beaten)


def test_still_frames_are_consistent_and_noise_is_not():
    still = picture(0, 1, 3, 8, 8).expand(5, -1, -1, -1)
    assert measure.consistency(still) == math.inf
    assert measure.consistency(picture(0, 5, 3, 8, 8)) < 10
