"""Law: the tests lie in folders like the code's, and what they share is imported by its name."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from support.places import ROOT, TESTS

#: folders of tests that are about more than one folder of the code
OVERALL = {"benchmarks", "digest", "docs", "fuzz", "parity", "support", "whole"}
BY_PATH = re.compile(r"\bsys\.path\.\w+\(|\bspec_from_file_location\(|\brun_path\(")
OTHER_TEST = re.compile(r"^\s*(from|import) test_", re.M)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_no_name_of_a_test_file_is_used_twice() -> None:
    names = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_folder_of_tests_is_one_of_the_code() -> None:
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    code = {path.parent.name for path in (ROOT / "src" / "timonel").glob("*/__init__.py")}
    assert folders - OVERALL - {"."} <= code


def test_what_lies_at_the_top_is_about_a_file_at_the_top_or_the_package() -> None:
    names = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    files = {path.stem for path in (ROOT / "src" / "timonel").glob("*.py")}
    assert names - {"exports"} <= files


@pytest.mark.parametrize("folder", ["tests", "docs", "benchmarks", "training"])
def test_nothing_is_imported_by_path(folder: str) -> None:
    assert [path for path in sources(folder) if BY_PATH.search(path.read_text("utf-8"))] == []


def test_no_test_file_imports_another() -> None:
    assert [path for path in sources("tests") if OTHER_TEST.search(path.read_text("utf-8"))] == []
