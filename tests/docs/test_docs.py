"""What the documents say is true: their code runs, and their lists are those of the tables."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

import make_samplers
from support.places import ROOT
from timonel import zoo
from timonel.cli import app
from timonel.core.grids import GRIDS
from timonel.core.solvers import SOLVERS

READMES = ["README.md", "README.es.md"]
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.S)


def blocks(language: str) -> list[pytest.param]:  # type: ignore[valid-type]
    found = []
    for name in [
        *READMES,
        "CONTRIBUTING.md",
        *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/*.md"))),
    ]:
        codes = [
            code
            for kind, code in FENCE.findall((ROOT / name).read_text("utf-8"))
            if kind == language
        ]
        found += [pytest.param(code, id=f"{name}-{i}") for i, code in enumerate(codes)]
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_in_the_documents_runs_as_written(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs, and prints what the comment behind a `print` of a formatted text says."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "document", "exec"), {"__name__": "document"})
    said = re.findall(r'^print\(f".*"\)  # (.+)$', code, re.M)
    assert [line for line in capsys.readouterr().out.splitlines() if line in said] == said


@pytest.mark.parametrize("name", READMES)
def test_the_example_of_a_denoiser_prints_the_data_it_names(name: str) -> None:
    code = next(
        c
        for k, c in FENCE.findall((ROOT / name).read_text("utf-8"))
        if "variance" in c or "varianza" in c
    )
    assert re.search(r"# \w+ 1\.00, \w+ 0\.50$", code, re.M)


@pytest.mark.parametrize("code", blocks("bash")[:1])
def test_commands_in_the_documents_run_as_written(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in code.strip().splitlines():
        program, *arguments = shlex.split(line)
        assert program == "timonel"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (line, done.output, done.exception)
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "red-apple-7.png",
        "red-apple-7.sheet.png",
        "red-apple-7.gif",
    }


@pytest.mark.slow
def test_the_demo_of_the_makefile_runs_twice_and_replays_its_first_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "Makefile").read_text("utf-8").split("\ndemo:")[1].split("\n\n")[0]
    commands = re.findall(r"^\t\$\(BIN\)/timonel (.+)$", text, re.M)
    assert len(commands) == 3
    for _ in range(2):
        for command in commands:
            done = CliRunner().invoke(app, shlex.split(command))
            assert done.exit_code == 0, (command, done.output, done.exception)
    assert {"red-apple-7.png", "red-apple-7-2.png", "red-apple.mp4"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands_in_the_documents_take_their_options(code: str) -> None:
    known = typer.main.get_command(app)
    for line in (line for line in code.splitlines() if line.startswith("timonel ")):
        _, name, *given = shlex.split(line, comments=True)
        command = known.get_command(click.Context(known), name)
        assert command is not None, line
        command.make_context(name, given)  # raises for what it does not take


@pytest.mark.parametrize("name", READMES)
def test_readmes_list_every_sampler_and_grid(name: str) -> None:
    """As `python docs/make_samplers.py` writes them."""
    text = (ROOT / name).read_text("utf-8")
    assert make_samplers.listed(text) == text
    line = next(x for x in text.splitlines() if x.startswith("Samplers:"))
    assert re.findall(r"`(\w+)`", line) == list(SOLVERS)


def test_the_page_of_samplers_has_every_sampler_and_grid_as_its_table_says() -> None:
    page, made = (ROOT / "docs/samplers.md").read_text("utf-8"), make_samplers
    for name, spec in SOLVERS.items():
        measured = re.search(rf"^\| `{name}` \| \S+ \| (\S+) \|", page, re.M)
        assert measured is not None, name
        assert made.sampler_row(name, spec, measured[1]) in page
    assert all(made.grid_row(name, spec) in page for name, spec in GRIDS.items())


def test_both_readmes_run_the_same_commands() -> None:
    one, two = ((ROOT / name).read_text("utf-8") for name in READMES)
    assert [c for k, c in FENCE.findall(one) if k == "bash"] == [
        c for k, c in FENCE.findall(two) if k == "bash"
    ]


def test_links_and_pictures_in_the_documents_exist() -> None:
    for name in [*READMES, "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text("utf-8")):
            if "://" not in target:
                assert (ROOT / target).exists(), f"{name} names {target}"


def test_changelog_names_every_command_and_model() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    for word in [*commands, *zoo.MODELS]:
        assert word in text
