"""Every pipeline class that can be built, under the helm; docs/pipelines.md says what is expected
of each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import timonel as tm
from support import pipes
from support.pipes import Case, page
from support.pipes.features import CHECKS, Lacks, Trial, try_all
from support.pipes.worker import table
from support.places import DOCS
from timonel.compat.schedulers import CLASSES
from timonel.errors import ModelError

PAGE = DOCS / "pipelines.md"
CASES = pipes.load()
# one of each way of guidance and of each kind of process
QUICK = (
    "StableDiffusionPipeline", "StableDiffusionXLPAGPipeline", "StableVideoDiffusionPipeline",
    "FluxPipeline (dev)",
    "WanPipeline (2.2)", "DDPMPipeline",
)  # fmt: skip
# one of each thing that pipelines ask of the class of their own scheduler
ASKING = (
    "BriaPipeline", "CogView4Pipeline", "Cosmos2TextToImagePipeline", "CosmosVideoToWorldPipeline",
    "CycleDiffusionPipeline", "DDIMPipeline", "IFPipeline", "KandinskyV22Pipeline",
    "LatentConsistencyModelPipeline", "CogVideoXPipeline (DPM)", "SanaSprintPipeline",
    "ConsistencyModelPipeline", "AnyFlowPipeline", "StableCascadePriorPipeline",
    "StableAudioPipeline", "LongCatAudioDiTPipeline", "LTXConditionPipeline", "MochiPipeline",
    "StableDiffusionLatentUpscalePipeline",
    "TextToVideoZeroPipeline",
)  # fmt: skip
quiet = pytest.mark.filterwarnings("ignore")  # of diffusers, about itself


@pytest.fixture(scope="module")
def trials() -> dict[str, Trial]:
    return {}


@quiet
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("key", QUICK)
def test_pipeline_does_what_the_helm_promises(
    trials: dict[str, Trial], key: str, check: str
) -> None:
    if key not in trials:
        trials[key] = Trial(CASES[key])
    try:
        CHECKS[check](trials[key])
    except Lacks as nothing:
        pytest.skip(str(nothing))


@quiet
@pytest.mark.parametrize("key", ASKING)
def test_compat_class_paints_what_diffusers_class_of_its_name_paints(key: str) -> None:
    CHECKS["compat"](Trial(CASES[key]))


@quiet
def test_compat_class_follows_what_a_pipeline_registers_through_a_file(tmp_path: Path) -> None:
    pipe = CASES["Cosmos2TextToImagePipeline"].build()
    ours = CLASSES["FlowMatchEulerDiscreteScheduler"](use_karras_sigmas=True)
    first = type(pipe)(
        **{**pipe.components, "scheduler": ours}
    )  # its constructor makes another process of a flow
    first.scheduler.save_pretrained(tmp_path)
    loaded = type(first.scheduler).from_pretrained(tmp_path)
    again = type(pipe)(**{**pipe.components, "scheduler": loaded})
    levels = []
    for one in (first, again):
        one.scheduler.set_timesteps(sigmas=[0.0, 0.25, 0.5, 0.75, 1.0])
        levels.append(one.scheduler.sigmas.tolist())
    assert levels[0] == levels[1]
    assert levels[0][0] == pytest.approx(80.0)


OTHER_COORDINATES = {
    "StableDiffusionLatentUpscalePipeline": r"x0 \+ sigma·noise",
    "CosmosTextToWorldPipeline": "calls step twice a turn",
}


@quiet
@pytest.mark.parametrize("derived", [False, True], ids=["diffusers' class", "a class made from it"])
@pytest.mark.parametrize("socket", ["helm", "scheduler"])
@pytest.mark.parametrize("key", OTHER_COORDINATES)
def test_loop_that_computes_with_other_coordinates_is_refused_before_a_call(
    key: str, socket: str, derived: bool
) -> None:
    trial = Trial(CASES[key])
    if derived:
        trial.pipe.__class__ = type("Mine", (type(trial.pipe),), {})
    if socket == "scheduler":
        trial.pipe.scheduler = tm.Scheduler.from_config(trial.pipe.scheduler.config)
    call = trial.steer if socket == "helm" else trial.plainly
    with trial.counted() as calls, pytest.raises(ModelError, match=OTHER_COORDINATES[key]):
        call()
    assert calls == []


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
        "StableDiffusionPipeline",
        "broken",
        CASES["StableDiffusionPipeline"].components,
        lambda: {"height": 7},
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
        went = [
            said["results"].get(name, {"went": "no"})["went"].replace("-", "–") for name in CHECKS
        ]
        # a check after one that ended the row is empty on the page
        seen = [cell or "no" for cell in expected[key]]
        assert went == seen, (
            f"{key}: {dict(zip(CHECKS, zip(went, seen, strict=True), strict=True))}"
        )
