"""Where the repository's folders are, and what a child process of a test needs to import them."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS, DOCS = ROOT / "tests", ROOT / "docs"


def environment(**more: str) -> dict[str, str]:
    """The variables of a child that imports timonel and `support` from this checkout."""
    paths = [str(ROOT / "src"), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}
