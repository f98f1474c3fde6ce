"""Writes docs/parity.md from what the parity harness measures: `python docs/make_parity.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

if __name__ == "__main__":
    from parity_page import page

    (ROOT / "docs" / "parity.md").write_text(page(), "utf-8")
