"""The peers' own suites: diffusers' tests from a checkout, k-diffusion's samplers on exact
denoisers.

Each test of diffusers that passes with its own scheduler passes with timonel's, or stands in
`support/peers/reasons.yaml`.
"""

from __future__ import annotations

import pytest

from support.peers import k_diffusion_pairs, k_diffusion_sampling, reasons, suites
from support.places import ROOT, TESTS

CHECKOUT = suites.checkout()
SUITES = [(name, socket) for name, suite in suites.SUITES.items() for socket in suite.sockets]


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason=suites.HOW)
@pytest.mark.parametrize(("name", "socket"), SUITES)
def test_what_passes_with_diffusers_passes_with_ours_or_has_a_reason(
    name: str, socket: str
) -> None:
    """Minutes for the schedulers, about an hour for the pipelines; records under out/peers are not
    made again.
    """
    suite, out = suites.SUITES[name], ROOT / "out" / "peers"
    ours, baseline = suites.compared(suite, socket, CHECKOUT, out)
    wrong = suites.judge(suites.lost(baseline, ours), reasons.tests(name, socket))
    assert not wrong, "\n".join(wrong)


def test_the_judge_names_what_has_no_reason_and_what_needs_none() -> None:
    record = {"a": {"outcome": "passed", "error": ""}, "b": {"outcome": "passed", "error": ""}}
    ours = {
        "a": {"outcome": "failed", "error": "1 is not 2"},
        "b": record["b"],
        "c": {"outcome": "failed", "error": ""},
    }
    failing = suites.lost(record, ours)
    assert failing == {"a": "1 is not 2"}
    assert suites.judge(failing, ["a"]) == []
    assert suites.judge(failing, ["b"]) == [
        "fails, and has no reason: a",
        "passes, and has a reason: b",
    ]


def test_every_reason_is_a_sentence_with_evidence_that_is_there() -> None:
    written = " ".join(p.read_text("utf-8") for p in TESTS.rglob("test_*.py"))
    for kind in reasons.kinds():
        assert len(kind["why"].split()) > 5, kind
        for place in kind["shown"].split(", "):
            there = (ROOT / place).exists() if "/" in place else f"def {place}(" in written
            assert there, f"{place} of {kind['why']!r} is nowhere"
    for name, socket in SUITES:
        tests = reasons.tests(name, socket)
        assert len(tests) == len(set(tests))


@pytest.mark.skipif(k_diffusion_sampling() is None, reason="k-diffusion is not installed")
def test_the_samplers_of_k_diffusion_agree_on_exact_denoisers() -> None:
    """At one step k-diffusion's multistep samplers fail."""
    for found in k_diffusion_pairs.outcomes(steps=(1, 2, 5), lists=("karras",)):
        assert found.same or found.steps == 1, found
        if found.theirs:
            assert "UnboundLocalError" in found.theirs
