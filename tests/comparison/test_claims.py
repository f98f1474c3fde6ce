"""Laws of the claims: a verdict follows from the numbers, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import timonel as tm
from timonel.cli import app
from timonel.comparison import claims


class Told(claims.Evidence):
    """Evidence made of given numbers: (measure, setting) to values of the samples."""

    def __init__(self, numbers: dict[tuple[Any, ...], list[float]]) -> None:
        self.numbers = numbers

    def values(
        self, name: str, sampler: str, steps: int, until: float | None = None
    ) -> list[float]:
        return self.numbers[name, sampler, steps, until]


def evidence(gap: float) -> Told:
    """Settings alike but for Karras', which differs by `gap` with 6 steps and `-gap` with more."""
    numbers = {}
    for name in ("latent_rmse", "detail", "psnr", "seconds", "evaluations"):
        for sampler in claims.SAMPLERS:
            for steps in claims.STEPS:
                for until in (None, 0.4):
                    shift = (gap if steps == 6 else -gap) * ("karras" in sampler)
                    numbers[name, sampler, steps, until] = [
                        1.0 + 0.01 * (-1) ** k + shift + 0.001 * k for k in range(8)
                    ]
    return Told(numbers)


def test_a_difference_holds_beyond_two_standard_errors_only():
    told = evidence(0.5)
    assert told.less("latent_rmse", ("dpmpp_2m/karras", 25), ("euler/leading", 25)) == -1
    assert told.less("latent_rmse", ("dpmpp_2m/karras", 6), ("euler/leading", 6)) == 1
    assert told.less("latent_rmse", ("euler/trailing", 6), ("euler/leading", 6)) == 0


@pytest.mark.parametrize(
    ("signs", "verdict", "when"),
    [
        ({6: -1, 10: -1}, claims.HOLDS, ""),
        ({6: -1, 10: 0}, claims.SOMETIMES, "6"),
        ({6: 0, 10: 1}, claims.FAILS, ""),
    ],
)
def test_a_claim_holds_where_it_holds(signs, verdict, when):
    assert claims._verdict(signs) == (verdict, when)


def test_the_same_has_to_be_shown_not_only_not_refuted():
    told = evidence(0.0)
    told.numbers["latent_rmse", "dpmpp_2m/ays", 10, None] = [0.3, 3.0] * 4
    pair = ("dpmpp_2m/ays", 10), ("euler/leading", 25)
    assert told.less("latent_rmse", *pair) == 0
    assert not told.no_more("latent_rmse", *pair)
    assert told.no_more("latent_rmse", ("euler/trailing", 10), ("euler/leading", 25))


def test_a_claim_of_more_is_judged_the_other_way_round():
    more, fewer = claims.karras(evidence(0.5)), claims.karras(evidence(-0.5))
    assert (more["verdict"], more["when"]["en"]) == (claims.SOMETIMES, "with 6 steps")
    assert (fewer["verdict"], fewer["when"]["en"]) == (claims.SOMETIMES, "with 10, 25 steps")
    assert claims.karras(evidence(0.0))["verdict"] == claims.FAILS


def test_every_claim_is_told_in_both_languages_with_its_numbers():
    told = evidence(0.25)
    for claim in claims.CLAIMS:
        made = claim(told)
        for language in ("en", "es"):
            assert made["claim"][language]
            assert any(letter.isdigit() for letter in made["measured"][language])
        assert made["claim"]["en"] != made["claim"]["es"]
        assert made["verdict"] in (claims.HOLDS, claims.SOMETIMES, claims.FAILS)


def test_detail_is_the_length_of_the_gradient():
    ramp = torch.arange(8.0).expand(3, 8, 8) * 0.1
    assert claims.detail(ramp) == pytest.approx(0.1)
    assert claims.detail(torch.ones(3, 8, 8)) == 0


def test_the_peak_of_a_call_with_cutoff_is_that_of_a_guided_one():
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    made = claims.cutoff_memory(helm)
    assert made["verdict"] == claims.FAILS
    assert "2 with the cutoff and 2 without" in made["measured"]["en"]


def test_a_preset_has_a_plan_of_its_own(tmp_path):
    for words, said in (
        (["red apple", "--preset", "tutorial"], "own plan"),
        (["--preset", "tutoral"], "tutorial"),
    ):
        done = CliRunner().invoke(app, ["compare", *words, "-o", str(tmp_path)])
        assert isinstance(done.exception, tm.TimonelError)
        assert said in str(done.exception)
    assert len(claims.plan()) == 4 * 6 * 3 * 2 * 3
