"""docs/parity.md says what the harness finds, and docs/differences.md names tests that exist."""

from __future__ import annotations

import re
from importlib.metadata import version

import diffusers
import pytest

from support import parity_cases, parity_k
from support.parity_page import NOTES, page
from support.peers import k_diffusion_sampling
from support.places import DOCS, TESTS

PAGE, DIFFERENCES = DOCS / "parity.md", DOCS / "differences.md"
ERROR = re.compile(r"\d+e[-+]\d+|inf|0e\+00")

pytestmark = pytest.mark.skipif(
    k_diffusion_sampling() is None, reason="k-diffusion is not installed"
)
LISTED = pytest.mark.skipif(
    f"diffusers {version('diffusers')}" not in PAGE.read_text("utf-8"),
    reason="the page is of another diffusers",
)


@LISTED
def test_the_page_is_what_the_harness_finds() -> None:
    """Every line, verdict and count; only the sizes of errors within the tolerance may vary."""
    made, written = (
        ERROR.sub("#", text).splitlines() for text in (page(), PAGE.read_text("utf-8"))
    )
    assert made == written, "run python docs/make_parity.py"


@LISTED
def test_every_scheduler_of_diffusers_is_on_the_page() -> None:
    names = {n for n in dir(diffusers.schedulers) if n.endswith("Scheduler")}
    assert names == {*parity_cases.PEERS, *parity_cases.OUT_OF_SCOPE}
    text = PAGE.read_text("utf-8")
    assert all(
        f"| `{name}` |" in text for name in [*names, *parity_k.PEERS, *parity_k.OUT_OF_SCOPE]
    )


def test_notes_are_of_peers_that_exist() -> None:
    assert set(NOTES) <= {*parity_cases.PEERS, *parity_k.PEERS}


def test_differences_name_tests_that_exist() -> None:
    code = "".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", DIFFERENCES.read_text("utf-8"))
    assert len(names) > 20
    assert [n for n in names if f"def {n}(" not in code] == []


def test_every_measured_difference_is_written_down() -> None:
    code = "".join(
        (TESTS / "parity" / f"test_parity_{n}.py").read_text("utf-8")
        for n in ("differences", "ends")
    )
    written = DIFFERENCES.read_text("utf-8")
    assert [
        n for n in re.findall(r"^def (test_\w+)\(", code, re.M) if f"`{n}`" not in written
    ] == []
