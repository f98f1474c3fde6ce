"""Laws of a comparison: the plan, its runs in one batch, what is kept, what a killed one goes on
with.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner

import timonel as tm
from support.browser import chromium, opened
from timonel import zoo
from timonel.cli import app
from timonel.comparison import compare, engine, planned
from timonel.comparison.estimate import estimate
from timonel.comparison.plan import Plan
from timonel.comparison.store import Store
from timonel.errors import ArgumentError, UnknownName
from timonel.make.generate import generate
from timonel.pipelines.capture import Captured


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """References of few steps: these tests are not about how fine they are."""
    monkeypatch.setattr(engine, "FIRST", 4)
    monkeypatch.setattr(engine, "LAST", 8)


class Counted:
    """Network evaluations, call by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        inner = Captured.outputs

        def outputs(captured: Captured, x: Tensor, *rest: Any) -> Tensor:
            self.sizes.append(len(x))
            return inner(captured, x, *rest)

        monkeypatch.setattr(Captured, "outputs", outputs)


# -- the plan --------------------------------------------------------------------------------------
def test_a_plan_is_the_product_of_its_axes():
    plan = Plan.of(
        "red apple",
        sampler=["euler", "unipc"],
        steps=[3, 4, 5],
        seeds=2,
        guidance_until=[None, 0.4],
    )
    assert len(plan) == 2 * 3 * 2 * 2
    assert plan.varying == ["sampler", "steps", "guidance_until", "seed"]
    assert len({cell.id for cell in plan}) == len(plan)
    assert {cell.recipe.guidance.stop for cell in plan} == {None, 0.4}


def test_equal_recipes_have_equal_names_in_every_plan():
    wide = Plan.of("red apple", sampler=["euler", "dpmpp_2m/karras"], steps=[3, 4], seeds=2)
    narrow = Plan.of("red apple", sampler="DPM++ 2M Karras", steps=4, seed=1)
    assert [cell.id for cell in narrow] == [wide.cells[-1].id]


def test_a_picture_is_told_by_its_content(tmp_path):
    from PIL import Image

    def named(colour: str, name: str) -> str:
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
        (cell,) = Plan.of(str(tmp_path / name), model="emoji-video")
        return cell.id

    red = named("red", "one.png")
    assert named("red", "two.png") == red
    assert named("blue", "one.png") != red


def test_a_bare_grid_is_the_usual_solver_on_it():
    (cell,) = Plan.of("ghost", sampler="ays", steps=10)
    assert (cell.recipe.sampler, cell.recipe.grid) == ("dpmpp_2m", "ays")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, ArgumentError, "the plan is empty"),
        ({"subjects": ""}, ArgumentError, "a subject is a prompt"),
        ({"subjects": "a", "samplr": "euler"}, UnknownName, "sampler"),
        ({"subjects": "a", "sampler": "eulr"}, UnknownName, "euler"),
        ({"subjects": "a", "steps": []}, ArgumentError, "steps has no value"),
        ({"subjects": "a", "steps": 0}, ArgumentError, "steps=0"),
        ({"subjects": "a", "seeds": 2, "seed": 1}, ArgumentError, "not both"),
        ({"subjects": "a", "guidance_until": "step:x"}, ArgumentError, "end of guidance"),
        ({"subjects": "missing.png"}, ArgumentError, "there is no picture"),
        ({"subjects": "a", "model": "emojy"}, tm.TimonelError, "emoj"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_compute(given, error, words, tmp_path):
    with pytest.raises(error, match=words):
        compare(**given, out=tmp_path / "report")
    assert not (tmp_path / "report" / "results.sqlite").exists()


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".json"])
def test_a_file_of_axes_is_the_same_plan(tmp_path, suffix):
    texts = {
        ".toml": 'prompt = ["ghost"]\nsampler = ["euler", "unipc"]\nsteps = [3, 4]\nseeds = 2\n',
        ".yaml": "prompt: [ghost]\nsampler: [euler, unipc]\nsteps: [3, 4]\nseeds: 2\n",
        ".json": json.dumps(
            {"prompt": ["ghost"], "sampler": ["euler", "unipc"], "steps": [3, 4], "seeds": 2}
        ),
    }
    path = tmp_path / f"plan{suffix}"
    path.write_text(texts[suffix])
    told = Plan.of("ghost", sampler=["euler", "unipc"], steps=[3, 4], seeds=2)
    assert [c.id for c in Plan.read(path)] == [c.id for c in told]
    assert len(planned([], path, {"seeds": 1})) == 4


@pytest.mark.parametrize(
    ("name", "text"), [("plan.toml", "prompt = ["), ("plan.txt", ""), ("plan.json", "[1]")]
)
def test_a_file_that_is_no_plan_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ArgumentError, match="plan"):
        Plan.read(tmp_path / name)


def test_a_large_plan_asks_for_a_second_thought(tmp_path):
    with pytest.raises(ArgumentError, match="1001 runs; pass yes=True"):
        compare("ghost", sampler="euler", seeds=1001, out=tmp_path)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ArgumentError, match=r"thesis\.tex"):
        compare("ghost", sampler="euler", out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# -- the runs --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small comparison with everything in it: cutoff, noise, a cell that cannot be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "FIRST", 4)
        patch.setattr(engine, "LAST", 8)
        return compare(
            "ghost", sampler=["unipc/karras", "euler", "dpmpp_2m_sde/karras", "euler/oss_flux"],
            steps=[2, 8],
            guidance_until=[None, 0.5], seed=[0, 1, 2, 3], out=tmp_path_factory.mktemp("compare"),
        )  # fmt: skip


def test_a_cell_that_cannot_run_is_kept_with_its_reason_and_the_rest_goes_on(report):
    assert {o.recipe.grid for o in report.failed} == {"oss_flux"}
    assert all("oss_flux" in o.reason or "flow" in o.reason for o in report.failed)
    assert len(report.outcomes) - len(report.failed) == 3 * 2 * 2 * 4


def test_the_reference_itself_has_no_error(report):
    """UniPC on Karras' grid with as many steps as the finest reference is that reference."""
    (group,) = [
        group
        for group in report.groups
        if group["at"]["sampler"] == "unipc/karras"
        and group["at"]["steps"] == 8
        and group["at"]["guidance_until"] == "none"
    ]
    assert group["mean"]["latent_rmse"] < 1e-5
    assert (group["verdict"], group["pareto"]) == ("best", True)


def test_calls_that_a_cutoff_saves_are_counted(report):
    for outcome in report.outcomes:
        if outcome.status == "done":
            cut = outcome.recipe.guidance.stop is not None
            assert outcome.evaluations + outcome.evaluations_saved == 2 * outcome.nfe
            assert (outcome.evaluations_saved > 0) == cut


def test_samplers_that_draw_noise_have_a_distance_between_distributions_only(report):
    for group in report.groups:
        if group["count"]:
            assert group["stochastic"] == ("sde" in group["at"]["sampler"])
            assert ("latent_rmse" in group["mean"]) != group["stochastic"]
            assert group["energy"] is not None


def test_a_cell_is_the_picture_that_its_recipe_makes(report, tmp_path):
    outcome = next(
        o for o in report.outcomes if o.recipe.sampler == "dpmpp_2m_sde" and o.recipe.guidance.stop
    )
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    made = generate(outcome.recipe, tmp_path, helm=helm)
    alone = _pixels(made.picture)
    assert (
        alone - report.store.read_pixels(outcome)
    ).abs().max() <= 2 / 255  # rounding depends on the batch
    assert tm.Recipe.read(report.store.picture(outcome)).sampler == outcome.recipe.sampler


def _pixels(path: Path) -> Tensor:
    from PIL import Image

    from timonel.comparison.store import to_tensor

    with Image.open(path) as picture:
        return to_tensor(picture.convert("RGB"))


def test_the_table_has_a_row_for_every_cell(report):
    table = report.table
    assert table.num_rows == len(report.plan)
    assert set(table.column("status").to_pylist()) == {"done", "failed"}
    assert table.column("recipe").to_pylist()[0].startswith("{")


def test_nothing_is_computed_twice(report, monkeypatch):
    counted = Counted(monkeypatch)
    monkeypatch.setattr(engine.Engine, "capture", None)  # a network that is not even looked at
    plan = Plan(
        report.plan.axes, tuple(c for c in report.plan if c.at["sampler"] != "euler/oss_flux")
    )
    again = compare(plan=plan, out=report.store.root)
    assert counted.sizes == []
    assert [o.seconds for o in again.outcomes] == [
        o.seconds for o in report.outcomes if o.status == "done"
    ]


def test_runs_of_different_samplers_and_steps_share_calls(monkeypatch, tmp_path, coarse):
    counted = Counted(monkeypatch)
    compare(
        "ghost",
        sampler=["euler", "heun"],
        steps=[2, 5],
        guidance_until=[None, 0.5],
        out=tmp_path,
        batch=12,
    )
    halves = sum(counted.sizes)
    assert max(counted.sizes) == 12
    assert len(counted.sizes) < halves / 4


def test_the_page_of_a_real_comparison_slides_scrubs_and_sorts(report):
    with chromium() as browser, opened(browser, report.page.as_uri()) as watched:
        page = watched.page
        before = page.locator("#split").get_attribute("aria-valuetext")
        page.locator("#split").focus()
        page.keyboard.press("Home")
        assert page.locator("#split").get_attribute("aria-valuetext") != before
        page.locator("#scrub").focus()
        page.keyboard.press("Home")
        page.locator("#grid .story:visible").first.wait_for()
        at = page.locator("#rows thead th").all_inner_texts().index("NFE") + 1
        page.click("#sort-nfe")
        told = [
            text
            for text in page.locator(f"#rows tbody tr > :nth-child({at})").all_inner_texts()
            if text.isdigit()
        ]
        assert told == sorted(told, key=int)
        assert set(told) == {"2", "8"}
        watched.quiet()


def test_a_command_copied_from_the_page_makes_the_picture_again(report, tmp_path, monkeypatch):
    with chromium() as browser, opened(browser, report.page.as_uri()) as watched:
        watched.page.locator("#grid .shot").first.click()
        command = watched.page.locator("#command").inner_text()
        watched.quiet()
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command)
    assert program == "timonel"
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (made,) = [p for p in (tmp_path / "out").glob("*.png") if ".sheet" not in p.name]
    told = tm.Recipe.read(made)
    cell = next(
        c
        for c in report.plan
        if c.recipe.chosen() == told.chosen() and c.recipe.guidance == told.guidance
    )
    outcome = report.store.outcomes[cell.id]
    assert (_pixels(made) - report.store.read_pixels(outcome)).abs().max() <= 2 / 255


# -- killed, and from the command line -------------------------------------------------------------
@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was(tmp_path):
    words = [
        "compare",
        "ghost",
        "--sampler",
        "euler",
        "dpmpp_2m/karras",
        "--steps",
        "3",
        "6",
        "--seeds",
        "4",
    ]
    script = (
        "import torch, timonel.comparison.engine as e; torch.set_num_threads(1); "
        "e.FIRST, e.LAST, e.DECODED = 4, 8, 2\n"
        "from timonel.cli import main; main()"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, *words, "-o", str(tmp_path)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table = tmp_path / "results.sqlite"
    try:
        while running.poll() is None and not (table.exists() and _cells(tmp_path) >= 3):
            time.sleep(0.02)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    before = {
        p.name: p.stat().st_mtime_ns
        for p in (tmp_path / "pictures").iterdir()
        if not p.name.startswith(".")
    }
    known = {o.id for o in Store(tmp_path).outcomes.values()}
    assert 3 <= _cells(tmp_path) < 16
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert _cells(tmp_path) == 16
    after = {
        p.name: p.stat().st_mtime_ns
        for p in (tmp_path / "pictures").iterdir()
        if not p.name.startswith(".")
    }
    assert all(after[f"{name}.png"] == before[f"{name}.png"] for name in known)
    assert "page" in done.stdout


def _cells(root: Path) -> int:
    return sum(o.kind == "cell" for o in Store(root).outcomes.values())


def test_lists_on_the_command_line_may_be_written_in_a_row(tmp_path, coarse):
    words = [
        "compare",
        "ghost",
        "--sampler",
        "euler",
        "ays",
        "--steps",
        "2",
        "3",
        "--guidance-until",
        "none",
        "0.4",
    ]
    result = CliRunner().invoke(app, [*words, "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert len(Store(tmp_path).outcomes) == 8 + 2
    assert (tmp_path / "index.html").stat().st_size > 10_000
    data = json.loads(CliRunner().invoke(app, [*words, "-o", str(tmp_path), "--json"]).stdout)
    assert sorted((s["label"], s["evaluations"]) for s in data["settings"])[-1] == (
        "euler, 3 steps, guidance until 0.4",
        5,
    )
    assert data["failed"] == []


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    plan = Plan.of("ghost", sampler=["euler", "heun"], steps=[4], guidance_until=[None, 0.5])
    told = estimate(plan, tmp_path / "report")
    evaluations = (8 + 6) + (14 + 11)  # Heun's last step is one call
    assert told.runs == 4
    assert told.evaluations == evaluations + 2 * 3 * engine.FIRST
    assert told.seconds > 0
    assert not (tmp_path / "report").exists()


def test_references_visit_every_shipped_models_levels():
    for name in zoo.MODELS:
        process = zoo.process_of(name)
        (cell,) = planned("red apple", None, {})
        fine = engine.reference(cell.recipe, process, 8)
        assert fine.chosen().compile(process).steps == 8
