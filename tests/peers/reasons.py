"""The table of tests that pass with diffusers' schedulers and not with timonel's: `reasons.yaml`.

A list of kinds, each with `why` in a sentence, `shown`: the test or the row of docs/differences.md that is evidence,
and the tests by suite, socket and file.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("reasons.yaml")


@functools.cache
def kinds() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8")) or {}


def tests(suite: str, socket: str) -> list[str]:
    """The names of the tests that have a reason."""
    return [
        f"{file}::{test}"
        for kind in kinds().values()
        for file, names in kind.get(suite, {}).get(socket, {}).items()
        for test in names
    ]
