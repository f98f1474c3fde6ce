"""`--tail`: what it takes, and that the picture is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from timonel.cli import app
from timonel.cli.options import tails_of
from timonel.errors import TimonelError
from timonel.make.recipe import Recipe


def test_a_tail_in_words() -> None:
    said: dict[str, dict[str, Any]] = {
        "12:euler/ays,steps=4": {"step": 12, "sampler": "euler/ays", "steps": 4},
        "3:heun": {"step": 3, "sampler": "heun"},
        "2:DPM++ 2M Karras, steps=3": {"step": 2, "sampler": "dpmpp_2m/karras", "steps": 3},
        "2:euler,grid=karras,rho=5": {
            "step": 2, "sampler": "euler/karras", "grid_options": {"rho": 5},
        },
        "1:ddim,eta=0.5,sigmas=3/1.2/0.4": {
            "step": 1, "sampler": "ddim", "options": {"eta": 0.5}, "sigmas": [3.0, 1.2, 0.4],
        },
    }  # fmt: skip
    for text, data in said.items():
        assert tails_of([text])[0].model_dump(exclude_defaults=True) == data
    guided = tails_of(["2:heun,guidance=2.5"])[0].guidance
    assert guided is not None
    assert guided.scale == 2.5


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("12", "--tail '12:euler/ays,steps=4'"),
        ("a:euler", "--tail '12:euler/ays,steps=4'"),
        ("-1:euler", "--tail '12:euler/ays,steps=4'"),
        ("4:", "STEP:SAMPLER"),
        ("4:steps=3", "STEP:SAMPLER"),
        ("4:eulr", "did you mean 'euler'"),
        ("4:euler,steps", "KEY=VALUE"),
        ("4:euler,steps=", "KEY=VALUE"),
        ("4:euler,steps=x", "no number of steps"),
        ("4:euler,steps=0", "greater than or equal to 1"),
        ("4:euler,sigmas=a/b", "sigmas=3/1.2/0.4"),
        ("4:euler,guidance=much", "guidance=3"),
        ("4:euler,eta=1", "no option 'eta'"),
        ("4:euler/ays,sigmas=3", "give one of grid="),
    ],
)
def test_bad_words_are_refused_with_an_example(text: str, match: str) -> None:
    with pytest.raises(TimonelError) as error:
        tails_of([text])
    assert match in str(error.value)


def test_a_tail_that_no_run_gets_to_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    for tails, match in (
        (["8:euler"], "nothing left of 8 steps"),
        (["5:euler", "5:heun"], "order of their steps"),
        (["2:euler,steps=2", "4:heun"], "nothing left of 4 steps"),
    ):
        options = [word for text in tails for word in ("--tail", text)]
        done = CliRunner().invoke(
            app, ["generate", "pizza", "--steps", "8", "-o", str(tmp_path), *options]
        )
        assert done.exit_code != 0
        assert match in str(done.exception) + done.output
        assert not list(tmp_path.iterdir())


def test_generate_with_tails_and_replay_make_the_same_picture(tmp_path: Path) -> None:
    words = ["generate", "pizza", "--steps", "6", "--sampler", "euler/karras", "-o", str(tmp_path)]
    tails = ["--tail", "2:dpmpp_2m/ays,steps=2", "--tail", "3:ddim,eta=0.5,guidance=2"]
    done = CliRunner().invoke(app, [*words, *tails, "--seed", "4"])
    assert done.exit_code == 0, done.output
    recipe = Recipe.read(tmp_path / "pizza-4.png")
    assert recipe.steps == 6
    assert recipe.tails is not None
    assert [tail.step for tail in recipe.tails] == [2, 3]
    assert "4 network calls" in done.output
    again = CliRunner().invoke(app, ["replay", str(tmp_path / "pizza-4.png")])
    assert "identical, bit for bit" in again.output
    assert again.exit_code == 0
