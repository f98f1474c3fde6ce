"""The table of tests that pass with diffusers' schedulers and not with timonel's: `reasons.yaml`.

A list of kinds. Each has `why`, a sentence; `shown`, the evidence: a test of ours, or a page of
docs; `match`, what a failure of the kind looks like (a pattern over the test's name and its error);
and the tests, by suite, socket and file. `update` sorts failures into the kinds by their patterns;
what fits none is not written, so that a run fails for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from timonel.files import replacing

TABLE = Path(__file__).with_name("reasons.yaml")
HEADER = """\
# Tests of diffusers v0.40.0 that pass with its own schedulers and not with timonel's, and why; read
# by reasons.py.
# Sorted by `python -m support.peers.suites SUITE SOCKET --update`; `why`, `shown` and `match` are
# written by hand.
"""


def kinds() -> list[dict[str, Any]]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8")) or []


def tests(suite: str, socket: str) -> list[str]:
    """The names of the tests that have a reason."""
    return [
        f"{file}::{test}"
        for kind in kinds()
        for file, names in kind.get("tests", {}).get(f"{suite}, {socket}", {}).items()
        for test in names
    ]


def update(suite: str, socket: str, failing: Mapping[str, str]) -> None:
    """Writes the table anew for one suite and socket.

    Args:
        failing: the tests that fail and their errors.
    """
    table, left = kinds(), dict(failing)
    for kind in table:
        mine = [
            name for name, error in left.items() if re.search(kind["match"], f"{name}\t{error}")
        ]
        files: dict[str, list[str]] = {}
        for name in sorted(mine):
            file, test = name.split("::", 1)
            files.setdefault(file, []).append(test)
            del left[name]
        found = kind.setdefault("tests", {})
        found.pop(f"{suite}, {socket}", None)
        if files:
            found[f"{suite}, {socket}"] = files
    text = HEADER + "".join(
        "\n" + yaml.safe_dump([kind], sort_keys=False, allow_unicode=True, width=110)
        for kind in table
    )
    with replacing(TABLE) as fresh:
        Path(fresh).write_text(text, encoding="utf-8")
