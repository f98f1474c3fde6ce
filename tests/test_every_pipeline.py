"""Every pipeline class that can be built, under the helm; docs/pipelines.md says what is expected of each."""

from __future__ import annotations

import pipes
import sys
from pathlib import Path
from pipes import Case, page
from pipes.features import CHECKS, Lacks, Trial, try_all
from pipes.worker import table

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "pipelines.md"
CASES = pipes.load()
# one of each way of guidance and of each kind of process
QUICK = (
    "StableDiffusionPipeline", "StableDiffusionXLPAGPipeline", "StableVideoDiffusionPipeline", "FluxPipeline (dev)",
    "WanPipeline (2.2)", "DDPMPipeline",
)  # fmt: skip
quiet = pytest.mark.filterwarnings("ignore")  # of diffusers, about itself


@pytest.fixture(scope="module")
def trials() -> dict[str, Trial]:
    return {}


@quiet
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("key", QUICK)
def test_pipeline_does_what_the_helm_promises(trials: dict[str, Trial], key: str, check: str) -> None:
    if key not in trials:
        trials[key] = Trial(CASES[key])
    try:
        CHECKS[check](trials[key])
    except Lacks as nothing:
        pytest.skip(str(nothing))


def test_every_built_pipeline_is_on_the_page() -> None:
    assert sorted(page.parse(PAGE.read_text())) == sorted(CASES)


@quiet
def test_every_class_of_diffusers_is_built_or_has_a_reason() -> None:
    text = PAGE.read_text()
    named = {case.name for case in CASES.values()}
    unmentioned = [name for name in page.classes() if name not in named and name not in text]
    assert not unmentioned


@quiet
def test_a_check_that_fails_says_where_and_does_not_stop_the_others() -> None:
    broken = Case(
        "StableDiffusionPipeline", "broken", CASES["StableDiffusionPipeline"].components, lambda: {"height": 7}
    )
    said = try_all(broken)["results"]
    assert said["own"]["went"] == "no"
    assert "divisible by 8" in said["own"]["why"]
    assert "check_inputs" in said["own"]["where"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the checks are timed with SIGALRM")
def test_page_says_what_happens() -> None:
    expected = page.parse(PAGE.read_text())
    for key, said in table(list(CASES)):
        went = [said["results"].get(name, {"went": "no"})["went"].replace("-", "–") for name in CHECKS]
        # a check after one that ended the row is empty on the page
        seen = [cell or "no" for cell in expected[key]]
        assert went == seen, f"{key}: {dict(zip(CHECKS, zip(went, seen, strict=True), strict=True))}"
