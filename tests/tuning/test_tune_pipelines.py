"""Laws of fitting on pipelines: the same call for any of them, a file that is used anywhere, and
what is refused.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from support.pipes import load
from support.tuned_models import START, brief
from timonel import tuning, zoo
from timonel.cli import app
from timonel.core.fitted.fingerprint import fingerprint
from timonel.core.fitted.sampler_file import Fitted
from timonel.errors import ArgumentError, FittedElsewhere
from timonel.pipelines.capture import capture
from timonel.tuning import held_out, least_squares, targets
from timonel.tuning.parameters import Arrays
from timonel.tuning.rollout import roll
from timonel.tuning.samples import painted, samples_of

__all__ = ["brief"]
CASES = load()
WORDS = ["a red apple", "a blue pear", "the sea", "two dogs", "one cat", "night sky"]
SMALL: dict[str, Any] = {"steps": 3, "seeds": 12, "start": START, "method": "rows"}
pytestmark = [
    pytest.mark.usefixtures("brief"),
    pytest.mark.filterwarnings("ignore:.*seeds for.*corrections"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converged samples of a few steps: these networks are random, and what is tested is how a fit
    is wired.
    """
    for module in (targets, least_squares, tuning):
        monkeypatch.setattr(module, "FIRST", 4)
    monkeypatch.setattr(targets, "TRUSTED", 10.0)


def pipeline(name: str) -> tuple[tm.Helm, dict[str, Any]]:
    """A helm on a small pipeline, and the arguments of its call beside prompt, picture and
    guidance.
    """
    helm = tm.Helm(CASES[name].build())
    helm.pipe.set_progress_bar_config(disable=True)
    given = CASES[name].inputs()
    return helm, {
        key: value
        for key, value in given.items()
        if key not in ("prompt", "image", "guidance_scale")
    }


# -- the same call for any pipeline ----------------------------------------------------------------
@pytest.mark.usefixtures("rough")
def test_a_file_of_a_fit_is_used_at_the_helm_and_in_the_drop_in_scheduler(tmp_path: Path) -> None:
    helm, given = pipeline("StableDiffusionXLPipeline")
    guidance, out = tm.cfg(3.0, until=0.4), tmp_path / "fast.json"
    own = fingerprint(helm.pipe.unet)
    found = tm.tune(helm, prompts=WORDS, guidance=guidance, out=out, **SMALL, **given)
    assert found.files == [out]
    made = Fitted.read(out).provenance
    assert made.fingerprint == own
    assert made.guidance is not None
    assert made.guidance.guidance() == guidance
    assert (made.prediction, made.dtype, made.process.kind, made.start) == (
        "epsilon",
        "float32",
        "vp",
        START,
    )
    assert (len(made.seeds), len(made.held_out_seeds)) == (8, 4)
    assert not set(made.seeds) & set(made.held_out_seeds)
    assert not set(made.prompts) & set(made.held_out_prompts)
    assert set(made.prompts) | set(made.held_out_prompts) == set(WORDS)
    assert made.held_out["tuned"] < made.held_out["start"]
    assert made.versions["timonel"] == tm.__version__
    assert made.calls == found.evaluations > 0
    call = {**given, "prompt": "a red apple"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FittedElsewhere)
        ours = helm(**call, sampler=str(out), guidance=guidance, seeds=[3]).images
    assert helm.run is not None
    fitted = found.samplers[3].fitted
    assert fitted is not None
    assert torch.equal(helm.run.table.x, fitted.table.x)
    with pytest.warns(
        FittedElsewhere, match=r"fitted with guidance 3 from 0 to 0\.4 of the way, this run has"
    ):
        guided = helm(**call, sampler=str(out), guidance=3.0, seeds=[3]).images
    assert not torch.equal(ours, guided)
    helm.pipe.scheduler = tm.Scheduler.from_config(helm.pipe.scheduler.config, sampler=str(out))
    generator = torch.Generator().manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FittedElsewhere)
        dropped = helm.pipe(
            **call, num_inference_steps=3, guidance_scale=3.0, generator=generator
        ).images
    assert torch.allclose(dropped, guided, atol=1e-4)


@pytest.mark.parametrize("guidance", [tm.cfg(3.0, forecast=2), tm.cfg(3.0, until=0.5)])
def test_what_a_fit_runs_is_what_the_helm_runs(guidance: tm.Guidance) -> None:
    helm, given = pipeline("StableDiffusionXLPipeline")
    call = {**given, "prompt": WORDS[0], "seeds": [3]}
    sampler = tm.Sampler("dpmpp_2m/karras", steps=6)
    model = tuning.Pipeline(capture(helm, guidance=3.0, **call), guidance)
    table = sampler.compile(model.process)
    ours, known = model.run(table, [0]), roll(model, Arrays.of(table), [0])
    helm(**call, sampler=sampler, guidance=guidance)
    assert helm.run is not None
    for made in (ours, known.result):
        assert torch.allclose(made, helm.run.result.to(made), rtol=1e-3, atol=1e-4)
    assert (None in known.differences) == (guidance.forecast > 1 or guidance.stop < 1)


@pytest.mark.usefixtures("rough")
def test_without_a_scale_the_file_is_for_the_pipelines_own(tmp_path: Path) -> None:
    helm, given = pipeline("StableDiffusionPipeline")
    found = tm.tune(helm, prompts=WORDS, out=tmp_path / "fast.json", **SMALL, **given)
    (one,) = found.outcomes
    assert one.sampler is not None
    assert one.sampler.fitted is not None
    guidance = one.sampler.fitted.provenance.guidance
    assert guidance is not None
    assert guidance.scale == 7.5
    with warnings.catch_warnings():
        warnings.simplefilter("error", FittedElsewhere)
        helm(**given, prompt="a red apple", sampler=one.sampler, seeds=[3])


@pytest.mark.usefixtures("rough")
@pytest.mark.parametrize(
    ("name", "kind", "grid"),
    [
        pytest.param("StableVideoDiffusionPipeline", "edm", "karras", marks=pytest.mark.slow),
        ("StableDiffusion3Pipeline", "flow", "trailing"),
    ],
)
def test_video_and_flow_pipelines_take_the_same_call(
    name: str, kind: str, grid: str, tmp_path: Path
) -> None:
    helm, given = pipeline(name)
    subjects_: list[str] = WORDS
    if name.startswith("StableVideo"):
        subjects_ = [str(tmp_path / f"{i}.png") for i in range(3)]
        for i, path in enumerate(subjects_):
            Image.new("RGB", (16, 16), (90 * i, 60, 200 - 90 * i)).save(path)
    small = {**SMALL, "steps": 2, "start": f"dpmpp_2m/{grid}"}
    (one,) = tm.tune(helm, prompts=subjects_, **small, **given).outcomes
    assert (one.steps, one.start) == (2, f"dpmpp_2m/{grid}")
    if one.sampler is None:
        assert "not clearly below" in one.reason
        return
    assert one.sampler.fitted is not None
    assert one.sampler.fitted.provenance.process.kind == kind
    image = {} if subjects_ is WORDS else {"image": Image.open(subjects_[0])}
    words = {"prompt": WORDS[0]} if subjects_ is WORDS else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FittedElsewhere)
        helm(**given, **words, **image, sampler=one.sampler, seeds=[0])


@pytest.mark.usefixtures("rough")
def test_a_pipeline_whose_network_stays_in_its_loop_is_fitted_as_a_whole() -> None:
    helm, given = pipeline("ZImagePipeline")
    told: list[str] = []

    def stop(message: str) -> None:
        told.append(message)
        if "looking for where to begin" in message or "iteration" in message:
            raise KeyboardInterrupt

    with pytest.raises(ArgumentError, match="cannot be called by itself: use method='differences'"):
        tm.tune(helm, prompts=WORDS, **{**SMALL, "steps": 2, "start": "dpmpp_2m/trailing"}, **given)
    found = tm.tune(helm, prompts=WORDS, steps=2, seeds=12, log=stop, **given)
    assert any("every try is a whole call of the pipeline" in line for line in told)
    assert any(line.startswith("differences: 8 samples to fit and 4 to judge") for line in told)
    assert found.evaluations > 12 * (4 + 8)
    assert found.lines() == ["stopped before anything was found"]


@pytest.mark.slow
@pytest.mark.usefixtures("rough")
@pytest.mark.filterwarnings("ignore:.*seeds for.*corrections")
def test_an_iteration_on_a_whole_pipeline_moves_the_table_and_never_for_the_worse() -> None:
    helm, given = pipeline("ZImagePipeline")
    told: list[str] = []
    small = {
        **SMALL,
        "steps": 2,
        "start": "dpmpp_2m/trailing",
        "method": "differences",
        "minutes": 30,
    }
    (one,) = tm.tune(helm, prompts=WORDS, log=told.append, **small, **given).outcomes
    assert any("2 steps, iteration 1" in line for line in told)
    assert one.held_tuned <= one.held_start
    if one.sampler is None:
        assert "not clearly below" in one.reason
    else:
        helm(**given, prompt="a red apple", sampler=one.sampler, seeds=[3])


# -- the command line ------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.usefixtures("rough")
def test_the_command_line_fits_a_file_that_generate_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.txt").write_text("red apple\n\nghost\nhouse\nred apple\n", "utf-8")
    out = tmp_path / "fast.json"
    words = [
        "tune", "emoji", "--steps", "2", "--prompts", str(tmp_path / "words.txt"),
        "--seeds", "12", "--method", "rows", "--start", START, "--guidance-until", "0.4",
        "-o", str(out),
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"sampler    {out}" in done.output
    assert "2 steps: held-out error" in done.output
    fitted = Fitted.read(out)
    assert fitted.provenance.model == "emoji"
    assert fitted.provenance.guidance is not None
    assert (fitted.provenance.guidance.scale, fitted.provenance.guidance.stop) == (4.0, 0.4)
    assert fitted.provenance.held_out_prompts == ["house"]
    painted = CliRunner().invoke(
        app, ["generate", "red apple", "--sampler", str(out), "--guidance-until", "0.4", "-o",
        str(tmp_path / "out")],
        catch_exceptions=False,
    )  # fmt: skip
    assert painted.exit_code == 0
    assert (tmp_path / "out" / "red-apple-0.png").is_file()
    out.unlink()
    monkeypatch.setattr(held_out, "better", lambda error, than: False)
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 1
    assert "nothing kept, the held-out error" in done.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "1"], "one step has no levels to choose"),
        (["--seeds", "11"], "11 seeds are too few.*at least 12"),
        (["--method", "magic"], "unknown method 'magic'"),
        (["--prompts", "none.txt"], "cannot read the prompts in 'none.txt'"),
        (["-o", "fast.txt"], "a sampler file's name ends in .json"),
        (["--steps", "3", "4", "-o", "fast.json"], "give a folder"),
        (["--minutes", "0"], "minutes must be"),
        (["--start", "euler_ancestral"], "draws noise"),
        (["--guidance-until", "1.4"], "not a ratio"),
    ],
)
def test_the_command_line_refuses_before_it_computes(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was called")

    monkeypatch.setattr(tuning, "converge", computed)
    done = CliRunner().invoke(app, ["tune", "emoji", *options])
    assert isinstance(done.exception, ArgumentError), done.output
    with pytest.raises(ArgumentError, match=said):
        raise done.exception


# -- prompts, seeds, guidance ----------------------------------------------------------------------
@pytest.fixture(scope="module")
def plain() -> tm.Helm:
    return pipeline("StableDiffusionPipeline")[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts": None}, "say what to fit to: prompts, one a line in a file"),
        ({"prompts": "nowhere.txt"}, "cannot read the prompts in 'nowhere.txt'"),
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": [" ", ""]}, "there is no prompt"),
        ({"prompts": ["here.png"]}, "there is no picture 'here.png'"),
        ({"seeds": 11}, "11 seeds are too few to fit and to judge by: give at least 12"),
        ({"seeds": 12.5}, "seeds must be a whole number"),
        (
            {"guidance": tm.cfg((4.0, 3.0, 2.0))},
            r"one guidance scale and an interval, got 3 .* cfg\(4, until=0\.4\)",
        ),
        ({"guidance": [4.0, 3.0]}, "one guidance scale and an interval, got 2"),
        ({"steps": 1}, "one step"),
        ({"method": "magic"}, "unknown method"),
        ({"minutes": -1}, "minutes must be"),
        ({"out": "fast.png"}, r"ends in \.json"),
        ({"batch": 0}, "batch must be"),
        ({"start": "euler_ancestral"}, "draws noise"),
    ],
)
def test_what_a_fit_cannot_begin_with_is_refused_before_the_pipeline_runs(
    plain: tm.Helm, given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: Any, **__: Any) -> Any:
        raise AssertionError("the pipeline was called")

    monkeypatch.setattr(tuning, "_network", computed)
    with pytest.raises(ArgumentError, match=said):
        tm.tune(plain, **{"prompts": WORDS, "seeds": 12, "steps": 2, **given})


def test_a_prompt_that_the_tokenizer_cuts_is_told_with_what_is_lost(plain: tm.Helm) -> None:
    long = "one two three four five six seven eight nine ten"
    with pytest.warns(
        UserWarning, match="has 10 tokens and tokenizer reads 8: .* is cut off"
    ) as heard:
        made = samples_of(plain, [*WORDS, long], 12, 0)
    assert len(heard) == 1
    assert long in made.prompts


def test_prompts_and_seeds_that_are_held_out_are_never_fitted(
    plain: tm.Helm, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("\n".join([*WORDS, "", *WORDS]), "utf-8")
    for given in (WORDS, WORDS[:3], tmp_path / "words.txt", tuple(WORDS)):
        made = samples_of(plain, given, 14, 100)
        fitted, held = made.split()
        assert (len(fitted), len(held)) == (10, 4)
        assert not {made.prompts[i] for i in fitted} & {made.prompts[i] for i in held}
        assert made.seeds == tuple(range(100, 114))
    assert set(samples_of(plain, ["one"], 12, 0).prompts) == {"one"}


def test_the_shipped_video_model_begins_with_pictures_of_its_concepts_at_its_own_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def paint(prompts: list[str], seeds: tuple[int, ...]) -> list[Image.Image]:
        return [
            Image.new("RGB", (64, 64), (seed, len(prompt), 0))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def stop(_: tm.Helm, made: Any, *rest: Any) -> None:
        asked.update(made=made, inputs=rest[2])
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("timonel.tuning.samples"), "painted", paint)
    monkeypatch.setattr(tuning, "_network", stop)
    with pytest.raises(KeyboardInterrupt):
        tm.tune("emoji-video", steps=4, seeds=12, seed=5)
    made = asked["made"]
    assert set(made.prompts) <= set(zoo.card("emoji-video").concepts)
    assert [picture.getpixel((0, 0))[:2] for picture in made.inputs()["image"]] == [
        (seed, len(prompt)) for prompt, seed in zip(made.prompts, range(5, 17), strict=True)
    ]
    assert asked["inputs"] == {"height": 64, "width": 64}


@pytest.mark.slow
def test_the_painter_paints_what_it_is_asked_for() -> None:
    pictures = painted(["red apple", "blue car"], [3, 4])
    assert [picture.size for picture in pictures] == [(64, 64)] * 2
    reds = [
        sum(p.resize((1, 1)).getpixel((0, 0))[i] * w for i, w in ((0, 1), (2, -1)))
        for p in pictures
    ]
    assert reds[0] > reds[1] + 20


def test_a_pipeline_is_after_a_fit_what_it_was_before() -> None:
    pipe = pipeline("StableDiffusionPipeline")[0].pipe
    weights = [
        p
        for part in pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for p in part.parameters()
    ]
    for i, parameter in enumerate(weights):
        parameter.requires_grad_(i % 2 == 0)
    pipe.set_progress_bar_config(desc="mine")

    def fail() -> None:
        with tuning._still(pipe):
            assert not any(p.requires_grad for p in weights)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fail()
    assert [p.requires_grad for p in weights] == [i % 2 == 0 for i in range(len(weights))]
    assert pipe._progress_bar_config == {"desc": "mine"}
