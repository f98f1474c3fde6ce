"""One call: its name is parsed once, its file is read once, and nobody but the core writes into a
run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import timonel as tm
from support.fitted_files import NAMED, made
from timonel import zoo
from timonel.core import names
from timonel.core.fitted.sampler_file import Fitted
from timonel.pipelines.session import Phase

SOURCE = Path(tm.__file__).parent
# public assignments of a run: its sample and its guidance, which are orders
ORDERS = ("latents", "guidance")


@pytest.fixture
def helm() -> tm.Helm:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    return helm


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are parsed, without the solver's part of "solver/grid"."""
    seen, parse, inside = list[str](), names.sampler, list[str]()

    def counted(name: str) -> Any:
        if not inside:
            seen.append(name)
        inside.append(name)
        try:
            return parse(name)
        finally:
            inside.pop()

    monkeypatch.setattr(names, "sampler", counted)
    return seen


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", "euler a", "dpmpp_2m/karras", "unipc"])
def test_a_name_is_parsed_once_in_a_call(helm: tm.Helm, parsed: list[str], name: str) -> None:
    parsed.clear()
    helm("red apple", sampler=name, steps=3, seeds=[1], output_type="latent")
    assert parsed == ([] if name == "unipc" else [name])  # a solver's own name needs no parser


def test_a_file_is_read_once_in_a_call(
    helm: tm.Helm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reads, read = list[Any](), Fitted.read.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Fitted], path: Any) -> Any:
        reads.append(path)
        return read(cls, path)

    file = made(tm.Sampler(NAMED, steps=3), zoo.process_of("emoji"))
    path = file.write(tmp_path / "fast.json")
    monkeypatch.setattr(Fitted, "read", classmethod(counted))
    helm("red apple", sampler=str(path), seeds=[1], output_type="latent")
    assert reads == [str(path)]


def _assigned(tree: ast.AST) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AugAssign) else targets
        for target in targets:
            each = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (one for one in each if isinstance(one, ast.Attribute))


def test_nothing_outside_the_core_writes_into_a_run() -> None:
    found = []
    for path in SOURCE.rglob("*.py"):
        if SOURCE / "core" in path.parents:
            continue
        for target in _assigned(ast.parse(path.read_text())):
            owner = ast.unparse(target.value)
            if owner.split(".")[-1] in ("run", "_run", "twin_run") and target.attr not in ORDERS:
                found.append(f"{path.name}:{target.lineno} {ast.unparse(target)}")
    assert not found


def test_the_phases_of_a_call_that_is_rewound(helm: tm.Helm) -> None:
    """A pipeline that keeps its sample is handed the other one in an idle turn, and computes on."""
    seen: list[Phase] = []
    helm.pipe.unet.register_forward_pre_hook(lambda *_: seen.append(helm.session.phase))  # type: ignore[union-attr]

    def back(run: tm.Run) -> None:
        if run.step == 3 and run.advances == 3:
            run.rewind(1)

    helm("red apple", steps=4, seeds=[1], keep=4, hooks=[back], output_type="latent")
    assert helm.session is not None
    assert helm.session.phase is Phase.COMPUTE
    assert seen == [Phase.COMPUTE] * 6
    run = helm.run
    assert run is not None
    assert run.advances == 6
