"""The command line as a shell and a script meet it: statuses, one line, JSON, completion, no tricks
from files.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from timonel import cli, zoo
from timonel.cli import app, complete, say
from timonel.cli.options import sampler_of
from timonel.core.grids import GRIDS
from timonel.core.solvers import CONTROLLED, SOLVERS
from timonel.files import plain
from timonel.pipelines.load import DTYPES

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m‮ red\rapple"


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """`timonel …` in this process: status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(say, "KEPT", [])

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["timonel", *words])
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            with pytest.raises(SystemExit) as done:
                cli.main()
        out, err = capsys.readouterr()
        return done.value.code, out, err

    return call


def commands() -> list[str]:
    return sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize(("words", "says"), [
    (["generate"], "Missing argument"),
    (["generate", "pizza", "--stps", "3"], "--steps"),
    (["generate", "-5 apples"], "goes after --"),
    (["generate", "pizza", "--steps", "many"], "--steps"),
    (["generate", "pizza", "--seed", "1" + "0" * 30], "--seed"),
    (["generate", "pizza", "--seed", "-1"], "--seed"),
    (["generate", "pizza", "--guidance", "nan"], "guidance scale must be a finite number"),
    (["generate", "pizza", "--guidance-until", "nan"], "got 'nan'"),
    (["generate", "pizza", "--sampler", "ddim", "--eta", "nan"], "eta must be a finite number"),
    (["generate", "pizza", "--sampler", "euler/karras", "--set", "rho=inf"],
    "rho must be a finite number"),
    (["generate", "pizza", "--dtype", "flaot16"], "did you mean 'float16'"),
    (["generate", "pizza", "--model", "emojy-flow!"], "did you mean 'emoji-flow'"),
    (["generate", "pizza", "--device", "nowhere"], "device 'nowhere' cannot be used"),
    (["generate", "pizza", "-o", "a.jpg"], "is a .png file"),
    (["generate", "pizza", "-o", "text"], "cannot write into 'text'"),
    (["replay", "text"], "not a picture"),
    (["replay", "text", "-o", "x.jpg"], "not a picture"),
    (["animate", "text"], "not a picture"),
    (["animate", "text", "--noise", "nan"], "finite number"),
    (["explain", "DPMSolverMultistepShceduler"], "dpmsolvermultistepscheduler"),
    (["explain", "euler/use_karas_sigmas"], "use karras sigmas"),
    (["doctor", "nowhere"], "no model 'nowhere'"),
    (["doctor", "emoji", "--flag", "x"], "--flag takes KEY=VALUE"),
    (["tune", "emoji", "--minutes", "nan"], "minutes must be a finite number"),
    (["samplrs"], "No such command"),
])  # fmt: skip
def test_wrong_input_is_one_line_on_standard_error_and_status_2(
    shell, tmp_path: Path, words, says
) -> None:
    (tmp_path / "text").write_text("text")
    status, out, err = shell(*words)
    assert (status, out) == (2, ""), err
    assert err.startswith("timonel: ")
    assert err.count("\n") == 1
    assert says in err
    assert [p.name for p in tmp_path.rglob("*.*")] == []


def test_an_error_of_timonels_own_is_one_line_and_status_1_and_can_be_seen_whole(
    shell, monkeypatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("two\nlines")

    monkeypatch.setattr("timonel.zoo.card", broken)
    status, out, err = shell("models")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "KeyError" in err
    assert "TIMONEL_DEBUG=1" in err
    monkeypatch.setenv("TIMONEL_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["timonel", "models"])
    with pytest.raises(KeyError):
        cli.main()


def test_not_enough_memory_says_what_to_do(shell, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
            "bytes"
        )

    monkeypatch.setattr("timonel.zoo.card", full)
    status, _, err = shell("models")
    assert (status, err.count("\n")) == (2, 1)
    assert "make it smaller" in err


def test_ctrl_c_is_status_130_and_says_what_is_kept(shell, monkeypatch) -> None:
    first = []

    def make(recipe: tm.Recipe, **_: object) -> object:
        if first:
            raise KeyboardInterrupt
        first.append(1)
        from timonel.make.generate import Generated

        return Generated(Path("a.png"), Path("a.sheet.png"), Path("a.gif"), recipe, 1.0, 2, "")

    monkeypatch.setattr("timonel.make.generate.generate", make)
    status, _, err = shell("generate", "pizza", "--steps", "2", "--count", "3")
    assert status == 130
    assert err.splitlines()[-1] == "timonel: aborted; kept: a.png, a.sheet.png, a.gif"


@pytest.mark.parametrize("name", ["", *commands()])
def test_every_command_explains_itself_by_h(name: str) -> None:
    for flag in ("-h", "--help"):
        done = CliRunner().invoke(app, [*name.split(), flag])
        assert done.exit_code == 0
        assert "Usage" in done.output


def test_json_is_all_of_standard_output_and_says_the_same(shell, tmp_path: Path) -> None:
    def data(*words: str, code: int = 0):
        status, out, _ = shell(*words, "--json")
        assert status == code
        return json.loads(out)

    assert [row["sampler"] for row in data("samplers")] == [*SOLVERS, *CONTROLLED]
    assert [row["grid"] for row in data("grids")] == list(GRIDS)
    assert [row["model"] for row in data("models")] == list(zoo.MODELS)
    assert data("models", "--concepts")[0]["concepts"] == zoo.card("emoji").concepts
    plot = data("explain", "euler", "--steps", "3", "-o", "e.svg")
    assert plot["plot"] == "e.svg"
    assert tm.Table.from_dict(plot["tables"][0]).steps == 3
    (made,) = data("generate", "pizza", "--steps", "2")["pictures"]
    assert Path(made["picture"]).is_file()
    assert made["recipe"]["prompt"] == "pizza"
    again = data("replay", made["picture"])
    assert (again["identical"], again["largest_difference"]) == (True, 0)
    recipe = tm.Recipe.read(made["picture"])
    recipe.save(Image.new("RGB", (64, 64)), "other.png")
    other = data("replay", "other.png", code=1)
    assert not other["identical"]
    assert 0 < other["largest_difference"] <= 255
    assert data("doctor", "emoji")["model"] == "emoji"


def test_every_command_that_prints_data_has_json() -> None:
    known = typer.main.get_command(app).commands
    with_json = {
        name for name, command in known.items() if any("--json" in p.opts for p in command.params)
    }
    assert with_json >= {
        "generate", "animate", "replay", "samplers", "grids", "models", "compare", "explain",
        "doctor", "tune",
    }  # fmt: skip


def test_what_the_shell_completes_is_what_there_is_and_needs_no_torch() -> None:
    assert list(SOLVERS) == complete.samplers("")
    assert list(GRIDS) == complete.grids("")
    assert tuple(zoo.MODELS) == complete.MODELS
    assert tuple(DTYPES) == complete.DTYPES
    assert complete.samplers("euler/ka") == ["euler/karras"]
    asked = {
        "_TIMONEL_COMPLETE": "complete_bash", "COMP_WORDS": "timonel generate x --sampler dpmpp_2",
        "COMP_CWORD": "4",
    }  # fmt: skip
    code = (
        "import sys\n"
        "sys.argv = ['timonel']\n"
        "from timonel.cli import app\n"
        "try:\n"
        "    app(prog_name='timonel')\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [name for name in SOLVERS if name.startswith("dpmpp_2")]
    assert done.stderr.split() == ["False"]


def test_nothing_from_a_file_steers_the_terminal(shell, tmp_path: Path) -> None:
    recipe = tm.Recipe(
        model="emoji", prompt=ESCAPES, seed=1, sampler="euler", steps=1, versions={"torch": ESCAPES}
    )
    path = recipe.save(Image.new("RGB", (64, 64)), tmp_path / "trap.png")
    said = [shell("replay", str(path)), shell("replay", str(path), "--json")]
    recipe.model_copy(update={"model": ESCAPES}).save(Image.new("RGB", (64, 64)), path)
    said.append(shell("replay", str(path)))
    said.append(shell("replay", f"{ESCAPES}.png"))
    assert [status for status, _, _ in said] == [1, 1, 2, 2]
    for _, out, err in said:
        assert not {"\x1b", "\x07", "\x9b", "\r", "‮"} & set(out + err)
    assert json.loads(said[1][1])["versions_before"]["torch"] == ESCAPES
    assert plain("né 🍎 👩‍🍳\n") == "né 🍎 👩‍🍳\n"


def test_a_prompt_that_begins_with_a_dash_goes_after_two(shell) -> None:
    status, out, _ = shell("generate", "--steps", "1", "--sampler", "euler", "--", "-pizza")
    assert status == 0
    assert "out/pizza-0.png" in out
    assert shell("replay", "out/pizza-0.png")[0] == 0


def test_a_prompt_that_the_model_does_not_know_says_so_in_a_line(shell) -> None:
    status, out, err = shell("generate", "a red aple", "--steps", "1", "--json")
    assert status == 0
    assert json.loads(out)
    lines = [line for line in err.splitlines() if line.startswith("timonel: ")]
    assert len(lines) == 1
    assert "did you mean 'red apple'?" in lines[0]


@pytest.mark.parametrize("value", ["abc", "nan", "inf", "1e99", "-1", "", "9" * 30])
def test_every_option_of_every_sampler_and_grid_refuses_nonsense_as_ours(value: str) -> None:
    process = zoo.process_of("emoji")
    options = [(name, key) for name, s in SOLVERS.items() for key in s.options]
    options += [(f"euler/{name}", key) for name, g in GRIDS.items() for key in g.options]
    for name, key in options:
        with contextlib.suppress(tm.TimonelError):
            sampler_of(name, 4, [f"{key}={value}"]).compile(process)
