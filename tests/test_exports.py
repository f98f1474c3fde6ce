"""The public surface, and what importing it costs."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import timonel as tm


def test_public_names_are_few_sorted_and_all_there() -> None:
    names = [name for name in tm.__all__ if name != "__version__"]
    assert len(names) <= 60
    assert names == sorted(names)
    for name in names:
        assert getattr(tm, name) is not None


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        _ = tm.smaple


def test_core_imports_torch_and_nothing_heavier() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import timonel as tm\n"
        "tm.Sampler, tm.Run, tm.sample, tm.cfg, tm.preview, tm.trace, tm.Table\n"
        "heavy = {'diffusers', 'transformers', 'PIL', 'matplotlib', 'rich', 'pydantic', 'typer', "
        "'scipy'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_itself_imports_not_even_torch() -> None:
    code = "import sys, timonel; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['timonel', '--help']\n"
        "try:\n"
        "    from timonel.cli import main; main()\n"
        "finally:\n"
        "    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("False")


@pytest.mark.parametrize(
    "module",
    [
        "timonel",
        "timonel.grids",
        "timonel.core.guidance",
        "timonel.hooks.progress",
        "timonel.hooks.rgb",
    ],
)
def test_examples_in_docstrings_are_true(module: str) -> None:
    result = doctest.testmod(
        __import__(module, fromlist=["x"]), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.failed == 0
