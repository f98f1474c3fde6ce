"""The tutorials' notebooks are what their source says, in both languages, and every cell of them
runs.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import make_tutorials as maker

LARGEST = 400_000  # bytes of a notebook
# the numbers of the cell `parameters`, as small as the cells' own assertions allow
SMALL = {
    "callbacks": 'STEPS, REPEATS, CUTS, PROMPTS = 15, 1, (0.8, 0.4), ["red apple"]',
    "schedulers": 'FEW, MANY, FINE, PROMPTS = 4, 6, 12, ["red apple"]',
}


BOTH = [(name, language) for name in maker.NAMES for language in maker.LANGUAGES]


def committed(name: str, language: str) -> dict[str, Any]:
    return json.loads(maker.path(name, language).read_text("utf-8"))


def code(name: str, language: str) -> list[str]:
    return [
        "".join(c["source"]) for c in committed(name, language)["cells"] if c["cell_type"] == "code"
    ]


@pytest.mark.parametrize(("name", "language"), BOTH)
def test_a_notebook_is_what_its_source_makes(name: str, language: str) -> None:
    there = committed(name, language)
    kept = [cell["outputs"] for cell in there["cells"] if cell["cell_type"] == "code"]
    assert there == maker.notebook(name, language, kept)


@pytest.mark.parametrize("name", maker.NAMES)
def test_both_languages_run_the_same_code(name: str) -> None:
    spanish, english = code(name, "es"), code(name, "en")
    assert [
        cell.replace(maker.LANGUAGE.format("es"), maker.LANGUAGE.format("en")) for cell in spanish
    ] == english
    assert (
        sum(one != two for one, two in zip(spanish, english, strict=True)) == 1
    )  # the language of what is printed


@pytest.mark.parametrize(("name", "language"), BOTH)
def test_a_notebook_is_valid_small_and_shows_what_its_cells_made(name: str, language: str) -> None:
    there = committed(name, language)
    assert (there["nbformat"], there["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in there["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]{1,64}", each) for each in ids)
    assert maker.path(name, language).stat().st_size < LARGEST
    outputs = [output for cell in there["cells"] for output in cell.get("outputs", ())]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    printed = "".join(
        "".join(output["text"]) for output in outputs if output["output_type"] == "stream"
    )
    calls = sum(cell.count("verdict(\n") for cell in code(name, language))
    said = re.findall(r"^[✔◐✘] (\w+)", printed, re.M)
    assert len(said) == calls
    assert set(said) == {"es": {"Aquí"}, "en": {"Here"}}[language]
    drawn = sum(cell.count("display(") for cell in code(name, language))
    assert sum("image/png" in output.get("data", ()) for output in outputs) == drawn > 3


def test_texts_that_are_not_in_both_languages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "HERE", tmp_path)
    for source in (
        "# %% [es]\n# hola\n# %%\nx = 1\n",
        "# %% [en]\n# a\n# %% [es]\n# b\n",
        "# %% [fr]\n# a\n",
        "x\n# %%\n",
    ):
        (tmp_path / "odd.py").write_text(source, "utf-8")
        with pytest.raises(ValueError, match=r"odd\.py"):
            maker.cells("odd")


def test_what_is_said_and_displayed_reaches_the_notebook_of_each_language() -> None:
    source = (
        'def say(es, en): ...\n|say("uno", "one"); print(2)\n|display(picture := 3)\n|picture * 2'
    )
    found = [maker.Cell("code", text) for text in source.split("|")]
    _, spoken, displayed, last = maker.run(found)
    assert [spoken[language][0]["text"] for language in ("es", "en")] == [
        ["uno\n", "2\n"],
        ["one\n", "2\n"],
    ]
    assert displayed["es"][0]["data"] == {"text/plain": ["3"]}
    assert last["en"][0]["data"] == {"text/plain": ["6"]}


def check_run(name: str, language: str, small: bool) -> None:
    """Run every code cell of the committed notebook; what the cells assert is asserted here."""
    cells = []
    for cell in committed(name, language)["cells"]:
        kind = "code" if cell["cell_type"] == "code" else language
        replaced = small and "parameters" in cell["metadata"].get("tags", ())
        cells.append(maker.Cell(kind, SMALL[name] if replaced else "".join(cell["source"])))
    assert len(cells) == len(committed(name, language)["cells"])
    with maker.elsewhere():
        made = list(maker.run(cells))
    asserted = [
        any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(c.text)))
        for c in cells
        if c.is_code
    ]
    assert sum(asserted) > len(asserted) / 2
    assert len(made) == len(asserted)
    drawn = sum(
        "image/png" in output.get("data", ()) for outputs in made for output in outputs[language]
    )
    assert drawn == sum(cell.text.count("display(") for cell in cells if cell.is_code)


@pytest.mark.parametrize(
    ("name", "language"),
    [("callbacks", "es"), pytest.param("schedulers", "en", marks=pytest.mark.slow)],
)
def test_every_cell_runs_with_fewer_steps(name: str, language: str) -> None:
    check_run(name, language, small=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "language"), BOTH)
def test_every_cell_runs_as_it_stands(name: str, language: str) -> None:
    check_run(name, language, small=False)
