"""One function and one line make a sampler: everything that lists, checks or tests samplers has it.

The package is copied, and the sampler of CONTRIBUTING.md written into the copy.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import timonel

ROOT = Path(__file__).parents[2]
PACKAGE = Path(timonel.__file__).parent
NAME = "my_euler"
#: tests that every sampler has to pass
LAWS = ("test_laws", "test_order", "test_product", "test_few_steps", "test_svd", "test_pipelines",
        "test_pipelines_levels", "test_loops", "test_resume")  # fmt: skip


def place(name: str) -> str:
    """Where a test file lies, from the root."""
    (path,) = (ROOT / "tests").rglob(f"{name}.py")
    return str(path.relative_to(ROOT))


def block(language: str, containing: str) -> str:
    """The code of CONTRIBUTING.md in a language that contains some text."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.S)
    return next(code for code in blocks if containing in code)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a copy of the package that has one more sampler."""
    folder = tmp_path_factory.mktemp("src")
    package = folder / "timonel"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("zoo", "__pycache__"))
    (package / "zoo").symlink_to(PACKAGE / "zoo")
    function = block("python", f"def {NAME}")
    family = package / "core/solvers/first_order.py"
    body = function[function.index("def ") :]
    family.write_text(family.read_text("utf-8") + "\n\n" + body, "utf-8")
    table = package / "core/solvers/__init__.py"
    text, line = table.read_text("utf-8"), block("text", f'"{NAME}": SolverSpec')
    assert len(line.strip().splitlines()) == 1
    table.write_text(text.replace("    # Runge-Kutta\n", line + "    # Runge-Kutta\n", 1), "utf-8")
    return folder


def python(source: Path, *arguments: str) -> str:
    """What a Python process with the copy prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": f"{source}:{ROOT / 'tests'}:{ROOT / 'docs'}", "OMP_NUM_THREADS": "1",
             "PATH": "", "HOME": str(source)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_commands_list_and_complete_it(source: Path) -> None:
    listed = python(source, "-m", "timonel", "samplers")
    assert re.search(rf"^{NAME} +1 +N ", listed, re.M), listed
    code = "from timonel.cli import complete; print(complete.samplers('my_'))"
    assert python(source, "-c", code).strip() == f"['{NAME}']"


def test_it_is_found_by_name_and_is_a_table_on_every_grid_and_process(source: Path) -> None:
    python(
        source,
        "-c",
        f"""
import torch
import timonel as tm
from timonel.core import names
from support.product import FLOW_ONLY, PLACES, REFUSES

assert names.sampler("My Euler").solver == {NAME!r}
tried = 0
for place, process in PLACES.items():
    for grid in tm.GRIDS:
        if grid in REFUSES[place] or (grid in FLOW_ONLY and place != "flow"):
            continue
        new, old = (tm.Sampler(f"{{n}}/{{grid}}", steps=4).compile(process)
                    for n in ({NAME!r}, "euler"))
        assert new.solver == {NAME!r} and torch.equal(new.x, old.x)
        tried += 1
assert tried > 90
""",
    )


def test_a_comparison_runs_it(source: Path, tmp_path: Path) -> None:
    python(
        source,
        "-c",
        f"""
import timonel as tm
from timonel import zoo
from timonel.pipelines.load import load

helm = tm.Helm(load("emoji"))
made = tm.compare(helm, "ghost", sampler=["euler", {NAME!r}], steps=2, seeds=1, progress=False,
                  references=False, out={str(tmp_path)!r})
assert {{row["sampler"] for row in made.rows}} == {{"euler", {NAME!r}}}
""",
    )


def test_the_pages_have_it(source: Path) -> None:
    """And its order, measured."""
    python(
        source,
        "-c",
        f"""
import make_samplers as made

spec = made.SOLVERS[{NAME!r}]
order = made.measured_order({NAME!r}, spec)
assert abs(float(order) - 1) < 0.1
assert made.sampler_row({NAME!r}, spec, order).startswith("| `{NAME}` | 1 | ")
for path in made.READMES:
    assert "`{NAME}`" in made.listed(path.read_text("utf-8"))
""",
    )


def test_every_law_has_a_test_of_it(source: Path) -> None:
    files = [place(name) for name in LAWS]
    options = ["--collect-only", "-q", "-n0", "-p", "no:cacheprovider", "-k", NAME]
    counts = python(source, "-m", "pytest", *files, *options)
    assert not [file for file in files if not re.search(rf"^{file}: [1-9]", counts, re.M)]


@pytest.mark.slow
def test_it_passes_the_laws(source: Path) -> None:
    files = [place(name) for name in ("test_laws", "test_order", "test_few_steps")]
    options = ["-n0", "-p", "no:cacheprovider", "-k", NAME, "-m", "not slow"]
    assert "......" in python(source, "-m", "pytest", *files, *options)
