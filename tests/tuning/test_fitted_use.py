"""Laws of the sampler file in recipes, commands, comparisons and beside a shipped model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from support.fitted_files import NAMED, made
from support.models import PROCESSES
from timonel import zoo
from timonel.cli import app
from timonel.cli.options import choose, sampler_of
from timonel.comparison import compare, engine
from timonel.comparison.plan import Plan
from timonel.core.fitted.fingerprint import fingerprint
from timonel.errors import ArgumentError, FittedElsewhere
from timonel.make.generate import generate
from timonel.make.recipe import Recipe


@pytest.fixture
def fast(tmp_path: Path) -> str:
    """A file for a VP model: six steps of DPM++ 2M on Karras' levels."""
    return str(made(tm.Sampler(NAMED, steps=6), PROCESSES["vp"]).write(tmp_path / "fast.json"))


# -- recipes, the command line, comparisons --------------------------------------------------------
@pytest.fixture(scope="module")
def emoji() -> tm.Helm:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    return helm


def test_a_picture_replays_bit_for_bit_when_the_file_is_gone(
    emoji: tm.Helm, tmp_path: Path
) -> None:
    process = zoo.process_of("emoji")
    told = {"fingerprint": fingerprint(emoji.pipe.unet)}
    path = made(tm.Sampler(NAMED, steps=3), process, **told).write(tmp_path / "fast.json")
    common: dict[str, Any] = {
        "model": "emoji",
        "prompt": "red apple",
        "seed": 7,
        "steps": 3,
        "guidance": {"scale": 4},
    }
    fitted = Recipe(**common, **Recipe.choice(tm.Sampler(str(path))))
    assert fitted.chosen() == tm.Sampler(str(path))
    ours = generate(fitted, tmp_path / "ours", helm=emoji)
    theirs = generate(
        Recipe(**common, **Recipe.choice(tm.Sampler(NAMED))), tmp_path / "theirs", helm=emoji
    )
    path.unlink()
    again, _ = Recipe.read(ours.picture).make(emoji)
    with Image.open(ours.picture) as one, Image.open(theirs.picture) as other:
        assert one.tobytes() == other.tobytes() == again.tobytes()
    with pytest.raises(ArgumentError, match="fitted for 3 steps, not 5"):
        fitted.model_copy(update={"steps": 5}).chosen()
    with pytest.raises(ArgumentError, match="format None"):
        fitted.model_copy(update={"table": {"x": 1}}).chosen()


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The shipped emoji with a fitted sampler for three steps beside it."""
    home = tmp_path / "zoo" / "emoji"
    home.mkdir(parents=True)
    for part in (zoo.HERE / "emoji").iterdir():
        (home / part.name).symlink_to(part) if part.name != zoo.TUNED else None
    made(tm.Sampler(NAMED, steps=3), zoo.process_of("emoji")).write(home / zoo.TUNED / "3.json")
    monkeypatch.setattr(zoo, "HERE", home.parent)
    return home


def test_a_shipped_table_is_for_its_steps_and_guidance_alone(shipped: Path) -> None:
    found = zoo.tuned("emoji", 3, tm.cfg(4.0))
    assert found is not None
    assert (found.name, found.steps) == ("emoji-3", 3)
    assert zoo.tuned("emoji", 3, tm.cfg(4.0, until=1.0)) == found
    for steps, guidance in (
        (4, tm.cfg(4.0)),
        (3, tm.cfg(5.0)),
        (3, tm.cfg(4.0, until=0.4)),
        (3, None),
    ):
        assert zoo.tuned("emoji", steps, guidance) is None


def test_generate_uses_a_shipped_table_and_says_so(shipped: Path, tmp_path: Path) -> None:
    def painted(*options: str) -> tuple[str, Recipe]:
        words = [
            "generate",
            "red apple",
            "--steps",
            "3",
            "-o",
            str(tmp_path / "out"),
            "--overwrite",
            *options,
        ]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output, Recipe.read(tmp_path / "out" / "red-apple-0.png")

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FittedElsewhere
        )  # the file here says nothing of the network
        said, recipe = painted()
    assert (
        "sampler    emoji-3, 3 steps (sampler fitted to emoji for these steps; steps as named)"
        in said
    )
    assert (recipe.sampler, recipe.table is None) == ("emoji-3", False)
    for options in (["--sampler", "euler"], ["--guidance", "3"], ["--set", "variant=midpoint"]):
        said, recipe = painted(*options)
        assert "sampler    emoji-3" not in said
        assert recipe.table is None


def test_the_command_line_takes_a_file_for_a_sampler(fast: str, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def said(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words])
        assert done.exit_code == code, done.output
        return f"{done.output}{done.exception or ''}"

    told = said("explain", fast, "-o", str(out))
    for words in (
        "6 steps",
        "fitted to emoji",
        "guidance 4",
        "error of tuned: 0.33333",
        "euler with 6 steps: 0.50000",
    ):
        assert words in told
    assert (out / "explain-fast-6.png").is_file()
    said("explain", fast, "--vs", "euler", "--model", "emoji", "-o", str(out))
    assert (out / "explain-fast-vs-euler-karras-6.png").is_file()
    for words, why in (
        (["explain", fast, "--steps", "9"], "fitted for 6 steps, not 9"),
        (["explain", fast, "--model", "emoji-video"], "was fitted to 'emoji'"),
        (["explain", fast, "--set", "eta=1"], "eta=1 has nothing to set"),
        (["generate", "red apple", "--sampler", fast, "--steps", "7"], "fitted for 6 steps, not 7"),
        (
            ["generate", "red apple", "--sampler", fast, "--eta", "0.5"],
            "eta=0.5 has nothing to set",
        ),
        (
            ["generate", "red apple", "--sampler", str(tmp_path / "none.json")],
            "cannot read the sampler file",
        ),
    ):
        assert why in said(*words, code=1)


# -- comparisons -----------------------------------------------------------------------------------
def test_a_file_runs_at_its_own_steps_whichever_are_asked(fast: str) -> None:
    def spots(**axes: Any) -> list[tuple[str, int]]:
        plan = Plan.of("red apple", **axes)
        assert all(cell.at.get("steps", cell.recipe.steps) == cell.recipe.steps for cell in plan)
        return [(cell.at["sampler"], cell.recipe.steps) for cell in plan]

    assert spots(sampler=["euler", fast], steps=[12, 4]) == [
        ("euler", 4),
        ("euler", 12),
        ("fast", 6),
    ]
    assert spots(sampler=["euler", fast], steps=[12, 6]) == [
        ("euler", 12),
        ("euler", 6),
        ("fast", 6),
    ]
    assert spots(sampler=["euler", fast]) == [("euler", 6), ("fast", 6)]
    assert spots(sampler=tm.Sampler(fast)) == [("fast", 6)]
    plan = Plan.of("red apple", sampler=["euler", fast], steps=[12, 4])
    assert dict(plan.axes)["steps"] == (4, 6, 12)
    json.dumps(dict(plan.axes))


def test_a_plan_refuses_what_a_file_does_not_leave_open(fast: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = made(tm.Sampler("euler", steps=6), PROCESSES["vp"]).write(
        tmp_path / "other" / "fast.json"
    )
    for axes, said in (
        ({"sampler": [fast, str(other)]}, "two samplers are called 'fast'"),
        ({"sampler": ["euler", fast], "grid": ["karras"]}, "own levels"),
        ({"sampler": [str(tmp_path / "none.json")]}, "cannot read"),
    ):
        with pytest.raises(ArgumentError, match=said):
            Plan.of("red apple", **axes)


def test_a_file_is_compared_under_its_own_name_with_the_bits_of_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FIRST", 4)
    monkeypatch.setattr(engine, "LAST", 8)
    path = made(tm.Sampler(NAMED, steps=3), zoo.process_of("emoji")).write(tmp_path / "fast.json")
    found = compare(
        "red apple",
        sampler=[NAMED, str(path)],
        seed=[3],
        guidance=[4.0, 6.0],
        out=tmp_path / "report",
    )
    assert not found.failed
    for scale in (4.0, 6.0):
        named, fitted = (
            next(o for c, o in zip(found.plan, found.outcomes, strict=True)
                 if (c.at["sampler"], c.at["guidance"]) == (name, scale))
            for name in (NAMED, "fast")
        )  # fmt: skip
        assert torch.equal(found.store.read_latents(named.id), found.store.read_latents(fitted.id))
        assert named.reference == fitted.reference
        assert found.store.outcomes[fitted.reference].recipe.table is None
    assert {group["label"].split(",")[0] for group in found.groups} == {NAMED, "fast"}
    page = found.page.read_text("utf-8")
    assert "--sampler fast.json" in page
    assert "Sampler fast runs where it was not fitted" in page
    assert "held_out_prompts" not in page
    picture = found.store.picture(found.outcomes[-1])
    path.unlink()
    assert Recipe.read(picture).chosen().label == "fast"
    again = compare(
        "red apple",
        sampler=[NAMED],
        steps=3,
        seed=[3],
        guidance=[4.0, 6.0],
        out=tmp_path / "report",
    )
    assert not again.failed


def test_a_command_that_names_no_sampler_takes_a_fitted_one_only_where_it_fits(
    shipped: Path, fast: str, capsys: pytest.CaptureFixture[str]
) -> None:
    helm = tm.Helm("emoji")

    def chosen(name: str | None = None, steps: int = 3, scale: float = 4.0, **more: Any) -> Any:
        given: dict[str, Any] = {"settings": [], "noise": None, **more}
        named = None if name is None else sampler_of(name, None if name == fast else steps, **given)
        found = choose(helm, named, None if name else steps, guidance=tm.cfg(scale), **given)
        assert f"sampler    {found.label}, {found.steps} steps (" in capsys.readouterr().out
        return found.label, found.steps

    assert chosen() == ("emoji-3", 3)
    for words, options in (
        (("dpmpp_2m/karras", 4), {"steps": 4}),
        (("dpmpp_2m/karras", 3), {"scale": 5.0}),
        (("dpmpp_2m/karras", 3), {"settings": ["variant=midpoint"]}),
        (("dpmpp_2m/karras", 3), {"noise": "independent"}),
        (("euler/karras", 3), {"name": "euler"}),
        (("fast", 6), {"name": fast}),
    ):
        assert chosen(**options) == words
