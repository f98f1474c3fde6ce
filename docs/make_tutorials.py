"""Writes the notebooks of docs/tutorials from their sources.

    python docs/make_tutorials.py [NAME ...] [--keep-outputs]

A source is a Python file of cells, each begun by a line `# %%`: code, `# %% [es]` and `# %% [en]`
the same text in two languages, `# %% [parameters]` code with numbers that a test may make smaller,
`# %% [include FILE]` another source. The code runs once, in a folder of its own; what it prints and
displays is kept in the notebooks, and what `say` prints in the notebook of its language.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).parent / "tutorials"
NAMES, LANGUAGES = ("callbacks", "schedulers"), ("es", "en")
MARK = re.compile(r"^# %%(?: \[(\w+)(?: (\w+))?\])?\n", re.M)
LANGUAGE = 'LANGUAGE = "{}"'
COLOURS = 128
Output = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """`kind`: "code", "parameters", or the language of a text."""

    kind: str
    text: str

    @property
    def is_code(self) -> bool:
        return self.kind in ("code", "parameters")


def cells(name: str) -> list[Cell]:
    """The cells of a source, included ones in their place. Raises `ValueError` for a text in one
    language only.
    """
    head, *parts = MARK.split((HERE / f"{name}.py").read_text("utf-8"))
    if head.strip():
        raise ValueError(f"{name}.py has lines before its first cell: {head.strip()!r}")
    found: list[Cell] = []
    for kind, target, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if kind == "include":
            found += cells(target)
        elif kind in LANGUAGES:
            found.append(
                Cell(kind, "\n".join(_uncommented(line) for line in body.strip().splitlines()))
            )
        elif kind in (None, "parameters"):
            found.append(Cell(kind or "code", body.strip("\n")))
        else:
            raise ValueError(
                f"{name}.py: a cell is es, en, parameters, include FILE or nothing, got {kind!r}"
            )
    texts = [cell.kind for cell in found if not cell.is_code]
    if texts != list(LANGUAGES) * (len(texts) // 2):
        raise ValueError(
            f"{name}.py: every text stands in {' and '.join(LANGUAGES)}, in that order, got {texts}"
        )
    return found


def _uncommented(line: str) -> str:
    if not line.startswith("#"):
        raise ValueError(f"a line of text begins with '# ', got {line!r}")
    return line[1:].removeprefix(" ")


def in_language(found: Sequence[Cell], language: str) -> list[Cell]:
    """The texts of one language, and the code, which prints in that language."""
    wanted = LANGUAGE.format(language)
    return [
        Cell(cell.kind, cell.text.replace(LANGUAGE.format("en"), wanted)) for cell in found
        if cell.is_code or cell.kind == language
    ]  # fmt: skip


class Voices(io.StringIO):
    """Standard output in every language at once: `say` speaks to each in its own, all else goes to
    all.
    """

    def __init__(self) -> None:
        self.heard: dict[str, list[str]] = {language: [] for language in LANGUAGES}

    def write(self, text: str) -> int:
        for lines in self.heard.values():
            lines.append(text)
        return len(text)

    def say(self, *texts: str) -> None:
        for language, text in zip(LANGUAGES, texts, strict=True):
            self.heard[language].append(text + "\n")


def shown(value: Any) -> Output:
    """A displayed value as a notebook keeps it; a picture in at most 128 colours, so that notebooks
    stay small.
    """
    data: dict[str, Any] = {"text/plain": [repr(value)]}
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True)
        data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": ["picture"]}
    return {"output_type": "display_data", "data": data, "metadata": {}}


def run(found: Sequence[Cell]) -> Iterator[dict[str, list[Output]]]:
    """Run the code cells in order in one fresh namespace, as Jupyter does; give each one's outputs
    in each language.
    """
    displayed: list[Output] = []
    space: dict[str, Any] = {
        "__name__": "__main__",
        "display": lambda value: displayed.append(shown(value)),
    }
    for index, cell in enumerate(found):
        if not cell.is_code:
            continue
        voices = Voices()
        displayed.clear()
        if "say" in space:
            space["say"] = voices.say
        with contextlib.redirect_stdout(voices):
            _execute(ast.parse(cell.text), f"cell {index}", space)
        printed = {
            language: "".join(lines).splitlines(keepends=True)
            for language, lines in voices.heard.items()
        }
        yield {
            language: [
                *([{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []),
                *displayed,
            ]
            for language, lines in printed.items()
        }


def _execute(tree: ast.Module, name: str, space: dict[str, Any]) -> None:
    """Run a cell; the value of a last line that is an expression is displayed."""
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), space)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), name, "eval"), space)
        if value is not None:
            space["display"](value)


def notebook(name: str, language: str, outputs: Sequence[list[Output]]) -> dict[str, Any]:
    """A notebook in nbformat 4.5; `outputs` of the code cells, in order."""
    made, left = [], iter(outputs)
    for index, cell in enumerate(in_language(cells(name), language)):
        about: dict[str, Any] = {"tags": ["parameters"]} if cell.kind == "parameters" else {}
        about = {
            "id": f"{name}-{index:02d}",
            "metadata": about,
            "source": cell.text.splitlines(keepends=True),
        }
        if cell.is_code:
            about |= {"cell_type": "code", "execution_count": None, "outputs": next(left)}
        else:
            about |= {"cell_type": "markdown"}
        made.append(about)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {
        "kernelspec": kernel,
        "language_info": {"name": "python"},
        "timonel": {"language": language},
    }
    return {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def path(name: str, language: str) -> Path:
    return HERE / f"{name}.{language}.ipynb"


def kept(name: str, language: str) -> list[list[Output]]:
    """The outputs in the notebook as it is."""
    before = json.loads(path(name, language).read_text("utf-8"))
    return [cell["outputs"] for cell in before["cells"] if cell["cell_type"] == "code"]


def write(name: str, language: str, outputs: Sequence[list[Output]]) -> None:
    text = json.dumps(
        notebook(name, language, outputs), ensure_ascii=False, indent=1, sort_keys=True
    )
    path(name, language).write_text(text + "\n", "utf-8")
    print(path(name, language), f"{len(text) / 1000:.0f} kB")


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """In a new, empty folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser(description="write the notebooks of docs/tutorials")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--keep-outputs", action="store_true", help="run nothing: only the texts have changed"
    )
    asked = parser.parse_args()
    for name in asked.names or NAMES:
        if asked.keep_outputs:
            outputs = {language: kept(name, language) for language in LANGUAGES}
        else:
            with elsewhere():
                made = list(run(in_language(cells(name), "en")))
            outputs = {language: [cell[language] for cell in made] for language in LANGUAGES}
        for language in LANGUAGES:
            write(name, language, outputs[language])


if __name__ == "__main__":
    main()
