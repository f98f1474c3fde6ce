"""Writes docs/parity.md from what the parity harness measures: `python docs/make_parity.py`."""

from support.parity_page import page
from support.places import DOCS

if __name__ == "__main__":
    (DOCS / "parity.md").write_text(page(), "utf-8")
