"""What the shell offers after Tab, without importing anything heavy for a key press.

Names of samplers and grids are read from the source of their tables. Others are repeated here; a
test holds them equal.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

CORE = Path(__file__).parents[1] / "core"
MODELS = ("emoji", "emoji-flow", "emoji-zsnr", "emoji-lcm", "emoji-video")
DTYPES = ("fp32", "fp16", "bf16")


@cache
def _keys(module: str, table: str) -> tuple[str, ...]:
    """The keys of a dictionary in the source of a module of the core."""
    for node in ast.parse((CORE / module).read_text("utf-8")).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys)):
                if name == table:
                    return tuple(ast.literal_eval(key) for key in keys if key is not None)
    raise AssertionError(f"{module} has no {table}")


def samplers(incomplete: str) -> list[str]:
    """Names of samplers, or after "solver/" the same solver with each grid."""
    front, slash, _ = incomplete.partition("/")
    if slash:
        return _starting(incomplete, (f"{front}/{grid}" for grid in grids("")))
    return _starting(incomplete, _keys("solvers/__init__.py", "SOLVERS"))


def grids(incomplete: str) -> list[str]:
    """Grids."""
    return _starting(incomplete, _keys("grids/__init__.py", "GRIDS"))


def models(incomplete: str) -> list[str]:
    """Names of the shipped models."""
    return _starting(incomplete, MODELS)


def dtypes(incomplete: str) -> list[str]:
    """Names of dtypes."""
    return _starting(incomplete, DTYPES)


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
