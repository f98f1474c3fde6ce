"""What comes from files never steers the terminal, and a command that is copied is the command that
was meant.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from timonel import shell, zoo
from timonel.cli import app
from timonel.comparison.progress import Lines, State
from timonel.comparison.report import command
from timonel.make.generate import slug
from timonel.make.places import ENDINGS, unused

EVIL = "\x1b]0;owned\x07\x1b[2Jred\r\u202eapple\x9b31m"
WORDS = [
    "red apple", "-foo", "--steps", "it's", 'a "b"', "two\nlines", "tab\there", "back\\slash",
    "$(touch ran)", "`ls`",
    "", "𐌰𐌱", "👩\u200d🚀", EVIL, "!!", "a;b&c|d", "\x7f", "é\x1bé7",
]  # fmt: skip


def obeyed(text: str) -> list[str]:
    """The characters that a terminal would obey or reorder by."""
    return [
        c
        for c in text
        if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028"
    ]


def cards(folder: Path) -> Path:
    """A model's configurations with hostile texts in them."""
    scheduler = json.loads(
        (zoo.folder("emoji") / "scheduler" / "scheduler_config.json").read_text()
    )
    for name, data in {
        "scheduler/scheduler_config.json": scheduler | {"_class_name": EVIL},
        "model_index.json": {"_class_name": "Evil" + EVIL},
        "unet/config.json": {"_class_name": EVIL},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    "words", [["doctor"], ["doctor", "--json"], ["generate", "pizza", "--model"]]
)
def test_texts_of_a_models_files_do_not_reach_the_terminal(
    words: list[str], tmp_path: Path
) -> None:
    folder = str(cards(tmp_path / "model"))
    words = [*words, folder] if words[0] == "generate" else [words[0], folder, *words[1:]]
    script = "import sys; sys.argv[0] = 'timonel'; from timonel.cli import main; main()"
    made = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert made.stdout or made.stderr
    assert obeyed(made.stdout + made.stderr) == []


def test_texts_of_a_recipe_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tm.Recipe(
        model="emoji", prompt="pizza", seed=1, sampler="euler", steps=1, versions={EVIL: EVIL}
    )
    recipe.save(Image.new("RGB", (64, 64)), tmp_path / "a.png")
    monkeypatch.setattr(
        tm.Recipe, "make", lambda self, *_, **__: (Image.new("RGB", (64, 64), "red"), self)
    )
    monkeypatch.setattr(tm.Recipe, "helm", lambda self, model: SimpleNamespace(run=None))
    monkeypatch.setattr(tm.Recipe, "title", property(lambda self: EVIL))
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "a.png")])
    assert "different" in result.output
    assert obeyed(result.output) == []


def test_what_a_comparison_says_does_not_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from timonel.cli import compare

    group = {
        "label": "[red]x[/]" + EVIL, "halves": 2, "mean": {}, "stderr": {}, "verdict": None,
        "energy": None,
        "energy_stderr": None, "seconds": 1.0,
    }  # fmt: skip
    failed: Any = SimpleNamespace(recipe=SimpleNamespace(sampler=EVIL, steps=1), reason=EVIL)
    compare._say(SimpleNamespace(groups=[group], failed=[failed], page=Path(EVIL)))  # type: ignore[arg-type]
    Lines(patience=0)(State(phase="watching", done=0, total=1, model=EVIL))
    tm.hooks.progress.progress(EVIL).on_end(
        SimpleNamespace(status="stopped", reason=EVIL, step=1, steps=2)
    )  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert "[red]x[/]" in said.out
    assert obeyed(said.out + said.err) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_shell_reads_a_copied_command_as_its_words(tmp_path: Path) -> None:
    line = shell.command(["printf", "%s\\0", *WORDS])
    assert obeyed(line) == []
    assert "\n" not in line
    made = subprocess.run(["bash", "-c", line], capture_output=True, cwd=tmp_path, check=True)
    assert made.stdout.decode().split("\0")[:-1] == WORDS
    assert list(tmp_path.iterdir()) == []


def test_a_plain_command_is_quoted_as_python_does() -> None:
    assert shell.command(WORDS[:5]) == shlex.join(WORDS[:5])


@pytest.mark.parametrize("prompt", WORDS[:5])
def test_the_command_of_a_picture_says_its_prompt(
    prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timonel generate` itself reads it, with its job left out."""
    recipe = tm.Recipe(
        model="emoji", prompt=prompt, negative_prompt="-no", seed=1, sampler="euler", steps=3
    )
    heard = typer.Typer()

    @heard.command(name="generate")
    def _(
        prompt: str, model: str = "", sampler: str = "", steps: int = 0, seed: int = 0,
        negative: str = "",
        out: str = typer.Option("", "-o"),
    ) -> None:  # fmt: skip
        print(repr((prompt, negative, steps)))

    _, name, *words = shlex.split(command(recipe))
    result = CliRunner().invoke(heard, words)
    assert name == "generate"
    assert result.output.strip() == repr((prompt, "-no", 3))


@pytest.mark.parametrize("letter", ["𐌰", "é", "漢", "a"])
def test_a_prompt_of_long_letters_is_a_name_that_the_disk_takes(
    letter: str, tmp_path: Path
) -> None:
    longest = f"{slug(letter * 500)}-{2**63 - 1}-99"
    for ending in ENDINGS:
        with tm.files.replacing(tmp_path / f"{longest}{ending}") as path:
            path.write_bytes(b"x")
    assert len(list(tmp_path.iterdir())) == len(ENDINGS)


def test_a_name_that_the_disk_does_not_take_is_refused_before_any_compute(tmp_path: Path) -> None:
    """244 bytes with ".png", but 250 with ".sheet.png" fit; one letter more does not."""
    unused(tmp_path / ("𐌰" * 61), overwrite=False)
    with pytest.raises(tm.errors.ArgumentError, match="cannot write"):
        unused(tmp_path / ("𐌰" * 62), overwrite=False)


@pytest.mark.parametrize("name", ["𐌰" * 62, "a" * 251])
def test_replay_finds_a_name_beside_a_picture_of_a_long_name(
    name: str, tmp_path: Path, monkeypatch: Any
) -> None:
    recipe = tm.Recipe(model="emoji", prompt="pizza", seed=1, sampler="euler", steps=1)
    recipe.save(Image.new("RGB", (64, 64)), tmp_path / f"{name}.png")
    monkeypatch.setattr(
        tm.Recipe, "make", lambda self, *_, **__: (Image.new("RGB", (64, 64)), self)
    )
    monkeypatch.setattr(tm.Recipe, "helm", lambda self, model: SimpleNamespace(run=None))
    result = CliRunner().invoke(
        app, ["replay", str(tmp_path / f"{name}.png")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert [p.name for p in tmp_path.glob("*-replay.png")]
