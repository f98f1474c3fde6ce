"""How the code is written: few branches, short lines and files, docstrings that name arguments.

One folder alone: `pytest tests/whole/test_style.py -k core/solvers`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import timonel as tm

SOURCE = Path(tm.__file__).parent
ROOT = SOURCE.parent.parent
FILES = sorted(SOURCE.rglob("*.py"))
MOST_BRANCHES, MOST_LINES, MOST_COLUMNS = 12, 500, 100
#: modules whose public names are documented for their users; None: all that is defined there
PUBLIC = ("timonel", "timonel.compat", "timonel.exact", "timonel.grids", "timonel.tuning",
          "timonel.pipelines.capture")  # fmt: skip
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.ExceptHandler,
            ast.IfExp, ast.comprehension, ast.match_case)  # fmt: skip
NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def branches(function: ast.AST) -> int:
    """Branches of a function, without those of functions and classes inside it.

    Statements, conditional expressions, loops of comprehensions, and every `and` and `or` count.
    """
    count = 0
    inner = [node for node in ast.iter_child_nodes(function) if not isinstance(node, NESTED)]
    for node in inner:
        count += isinstance(node, BRANCHES)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        count += branches(node)
    return count


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=name_of)


@EVERY_FILE
def test_a_function_has_few_branches(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, NESTED[:2])]
    counts = {f"line {node.lineno}, {node.name}": branches(node) for node in functions}
    many = {name: count for name, count in counts.items() if count > MOST_BRANCHES}
    assert not many, f"more than {MOST_BRANCHES} branches"


@EVERY_FILE
def test_a_file_is_short_and_so_are_its_lines(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    long = [number for number, line in enumerate(lines, 1) if len(line) > MOST_COLUMNS]
    assert not long, f"lines of more than {MOST_COLUMNS} columns"


# -- docstrings of public names --------------------------------------------------------------------
def _public(module: Any) -> Iterator[tuple[str, Any]]:
    """The public functions and classes of a module: of `__all__`, or that are its own."""
    named = getattr(module, "__all__", None)
    for name in named if named is not None else sorted(vars(module)):
        value = getattr(module, name)
        mine = named is not None or getattr(value, "__module__", None) == module.__name__
        reexported = module.__name__ == "timonel.grids"
        if name.startswith("_") or not (mine or reexported):
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class of timonel defines."""
    for name, member in vars(owner).items():
        if name.startswith("_"):
            continue
        function = getattr(member, "__func__", member)
        if isinstance(member, property) or inspect.isfunction(function):
            yield name, getattr(owner, name) if not isinstance(member, property) else member


def _path(value: Any) -> str:
    """The file where a function or class is defined."""
    code = inspect.unwrap(value.fget if isinstance(value, property) else value)
    try:
        return name_of(Path(inspect.getsourcefile(code) or ""))
    except (TypeError, ValueError):
        return ""


def _documented() -> dict[str, Any]:
    """Public names by file and name, each once."""
    values: dict[str, Any] = {}
    for module in PUBLIC:
        for name, value in _public(importlib.import_module(module)):
            values[f"{_path(value)}:{name}"] = value
            for member, function in _members(value) if inspect.isclass(value) else ():
                values[f"{_path(function)}:{name}.{member}"] = function
    return {key: value for key, value in values.items() if key.startswith("src/timonel/")}


DOCUMENTED = _documented()


def _parameters(value: Any) -> list[str]:
    """Parameters of a function or constructor, unless they are data: those of diffusers' class."""
    if isinstance(value, property) or (inspect.isclass(value) and issubclass(value, Exception)):
        return []
    if hasattr(value.__init__ if inspect.isclass(value) else value, "__signature__"):
        return []
    try:
        parameters = list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return []
    return [name for name in parameters if name not in ("self", "cls") and name[0] != "_"]


def _sections(doc: str) -> dict[str, str]:
    """The sections of a docstring in Google's style, by name."""
    parts = re.split(r"^(Args|Returns|Yields|Raises|Source):", doc, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _returns(value: Any) -> bool:
    """Whether a function returns something, by its annotation."""
    annotation = str(getattr(value, "__annotations__", {}).get("return", "None"))
    return inspect.isroutine(value) and annotation not in ("None", "NoReturn", "Never")


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__main__.py"], ids=name_of)
def test_a_public_method_is_documented_or_its_base_is(path: Path) -> None:
    dotted = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    module = pytest.importorskip(dotted.removesuffix(".__init__"))
    classes = [
        value for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and name[0] != "_"
    ]  # fmt: skip
    silent = [
        f"{owner.__name__}.{name}" for owner in classes for name, member in _members(owner)
        if not inspect.getdoc(member)
    ]  # fmt: skip
    assert not silent, "public methods without a docstring"


@pytest.mark.parametrize("key", DOCUMENTED)
def test_a_public_name_is_documented(key: str) -> None:
    """A sentence in the first line; from two parameters on, Args with all of them, and Returns."""
    value = DOCUMENTED[key]
    doc = inspect.getdoc(value) or ""
    first, _, rest = doc.partition("\n")
    assert first, "no docstring"
    assert first[-1] in ".:!?)", "the first line is no sentence"
    assert not rest or rest.startswith("\n"), "the first sentence is longer than a line"
    parameters, sections = _parameters(value), _sections(doc)
    if len(parameters) < 2:
        return
    named = re.findall(r"^ +\**(\w+)(?: \([^)]*\))?:", sections.get("Args", ""), re.M)
    assert not [name for name in parameters if name not in named], "Args does not name them"
    if _returns(value):
        assert {"Returns", "Yields"} & set(sections), "Returns is missing"
