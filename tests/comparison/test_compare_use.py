"""Laws of a comparison in use: it says how far it is, keeps what it has, mends what is gone, takes
a loaded model.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import timonel as tm
from support.browser import chromium, opened, until
from timonel.cli import app
from timonel.comparison import Stopped, compare, engine, page, write
from timonel.comparison.engine import Engine
from timonel.comparison.pictures import FRAME_BYTES, STILL_BYTES
from timonel.comparison.plan import Plan
from timonel.comparison.progress import Lines, State
from timonel.comparison.store import Outcome, Store, to_tensor
from timonel.comparison.webp import SPRITE_BYTES
from timonel.errors import ArgumentError, ModelError

SMALL: dict[str, Any] = {"sampler": ["euler", "dpmpp_2m/karras"], "steps": 2, "seeds": 2}


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """References of few steps: these tests are not about how fine they are."""
    monkeypatch.setattr(engine, "FIRST", 2)
    monkeypatch.setattr(engine, "LAST", 4)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "FIRST", 2)
        patch.setattr(engine, "LAST", 4)
        seen: list[State] = []
        made = compare("ghost", **SMALL, out=tmp_path_factory.mktemp("use"), progress=seen.append)
        return made, seen


# -- how far it is ---------------------------------------------------------------------------------
def test_progress_counts_references_and_names_their_steps_while_they_converge(report: Any) -> None:
    _, seen = report
    fine = [state for state in seen if state.phase == "references"]
    assert next(state.phase for state in seen if state.phase != "watching") == "references"
    assert {state.total for state in fine} == {2}
    assert [fine[0].done, fine[-1].done] == [0, 2]
    assert {state.steps for state in fine} == {2, 4}
    inside = [(state.row, state.rows) for state in fine if state.steps == 4 and state.rows]
    assert inside[-1] == (8, 8)  # two samples of four steps
    assert [row for row, _ in inside] == sorted(row for row, _ in inside)
    runs = [state for state in seen if state.phase == "runs" and state.outcome]
    assert [(state.done, state.total) for state in runs] == [(k + 1, 4) for k in range(4)]
    assert seen[-1].phase == "page"
    assert [state.seconds for state in seen] == sorted(state.seconds for state in seen)


def test_lines_come_at_every_change_and_not_oftener(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(patience=0)
    for steps in (64, 64, 128):
        lines(State("references", 1, 12, steps, 3, 10, 67))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"1:07  references: 1 of 12 are done, now with {n} steps (30 %)" for n in (64, 128)
    ]


def test_the_command_line_says_that_references_converge(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["compare", "ghost", "--sampler", "euler", "--steps", "2", "-o", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "references: 0 of 1 are done, now with 2 steps" in done.stderr


# -- stopped ---------------------------------------------------------------------------------------
def breaking(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    """Ctrl-C in a phase: as Python raises it, in the middle of whatever goes on."""
    owner: Any
    owner, name = {
        "watching": (Engine, "capture"), "references": (engine, "distance"),
        "runs": (engine.Batch, "turns"),
        "measuring": (Engine, "_measures"), "page": (page, "render"),
    }[phase]  # fmt: skip
    inner, hits = getattr(owner, name), []

    def hit(*args: Any, **more: Any) -> Any:
        if not hits:
            hits.append(phase)
            raise KeyboardInterrupt
        return inner(*args, **more)

    def turns(batch: Any) -> Any:
        for turn in inner(batch):
            if hits or not any(job.keeps_steps for job in turn.ended):
                yield turn
                continue
            hits.append(phase)
            yield turn._replace(ended=turn.ended[:1])  # one run has ended, and is not written yet
            raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, turns if phase == "runs" else hit)


@pytest.mark.parametrize(
    ("phase", "runs", "fine"),
    [("watching", 0, 0), ("references", 0, 4), ("runs", 1, 4), ("measuring", 4, 4), ("page", 4, 4)],
)
def test_ctrl_c_keeps_what_ended_says_where_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, runs: int, fine: int
) -> None:
    breaking(monkeypatch, phase)
    root = tmp_path / "a report"
    words = [
        "compare",
        "ghost",
        "--sampler",
        "euler",
        "dpmpp_2m/karras",
        "--steps",
        "2",
        "--seeds",
        "2",
        "-o",
    ]
    done = CliRunner().invoke(app, [*words, str(root)])
    assert done.exit_code == 130
    assert f"{runs} of 4 runs and {fine} reference runs are kept in {str(root)!r}" in done.stderr
    assert shlex.split(done.stderr.splitlines()[-1].partition(":  ")[2]) == [
        "timonel",
        *words,
        str(root),
    ]
    store = Store(root)
    assert sum(o.kind == "cell" for o in store.outcomes.values()) == runs
    assert (root / "index.html").is_file()  # of what there is
    before = {
        name: (root / "latents" / f"{name}.safetensors").stat().st_mtime_ns
        for name in store.outcomes
    }
    assert CliRunner().invoke(app, [*words, str(root)]).exit_code == 0
    assert all(
        (root / "latents" / f"{n}.safetensors").stat().st_mtime_ns == then
        for n, then in before.items()
    )
    assert sum(o.kind == "cell" for o in Store(root).outcomes.values()) == 4


def test_ctrl_c_from_python_is_a_keyboard_interrupt_with_the_call_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, "references")
    with pytest.raises(KeyboardInterrupt) as caught:
        compare("ghost", **SMALL, out=tmp_path, progress=False)
    assert isinstance(caught.value, Stopped)
    monkeypatch.undo()
    monkeypatch.setattr(engine, "FIRST", 2)
    monkeypatch.setattr(engine, "LAST", 4)
    made = eval(caught.value.again, {"tm": tm})
    assert len(made.outcomes) == 4
    assert made.store.root == tmp_path


# -- what is gone, what is new ---------------------------------------------------------------------
def files(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.glob("*/*")}


def test_deleted_files_of_a_report_are_made_again_and_no_others(tmp_path: Path) -> None:
    made = compare("ghost", **SMALL, out=tmp_path, progress=False)
    before = files(tmp_path)
    picture, story = (made.store.picture(made.outcomes[0]), made.store.story(made.outcomes[1].id))
    fine = made.store.latents(made.outcomes[3].reference)
    for gone in (picture, story, fine):
        gone.unlink()
    seen: list[State] = []
    again = compare("ghost", **SMALL, out=tmp_path, progress=seen.append)
    assert "the files of 2 runs are gone, they are made again" in str(seen[0])
    after = files(tmp_path)
    assert after.keys() == before.keys()
    mended = {made.outcomes[0].id, made.outcomes[1].id, made.outcomes[3].reference}
    assert {name for name in after if after[name] != before[name]} <= {
        n for n in after if Path(n).stem in mended
    }
    assert all(o.status == "done" for o in again.outcomes)
    assert again.page.read_text("utf-8").count('"status":"done"') == 4


def test_a_page_is_written_while_pictures_are_gone(report: Any) -> None:
    made, _ = report
    picture = made.store.picture(made.outcomes[0])
    held = picture.read_bytes()
    picture.unlink()
    try:
        text = write(made.plan, Store(made.store.root)).page.read_text("utf-8")
    finally:
        picture.write_bytes(held)
    assert [text.count(f'"status":"{status}"') for status in ("done", "waiting")] == [3, 1]


def test_two_plans_in_one_folder_keep_all_rows(tmp_path: Path) -> None:
    first = compare("ghost", sampler="euler", steps=2, out=tmp_path, progress=False)
    second = compare("red apple", sampler="euler", steps=3, out=tmp_path, progress=False)
    both = {o.id for o in (*first.outcomes, *second.outcomes)}
    assert both <= set(Store(tmp_path).outcomes)
    assert all(Store(tmp_path).done(name) for name in both)


def test_references_that_come_later_measure_what_had_run_before(tmp_path: Path) -> None:
    before = compare("ghost", **SMALL, out=tmp_path, references=False, progress=False)
    assert all(not o.measures for o in before.outcomes)
    times = {o.id: before.store.latents(o.id).stat().st_mtime_ns for o in before.outcomes}
    after = compare("ghost", **SMALL, out=tmp_path, progress=False)
    fresh = compare("ghost", **SMALL, out=tmp_path / "fresh", progress=False)
    assert {o.id: after.store.latents(o.id).stat().st_mtime_ns for o in after.outcomes} == times
    for mine, other in zip(after.outcomes, fresh.outcomes, strict=True):
        assert mine.measures == pytest.approx(other.measures, rel=1e-3)


# -- verdicts --------------------------------------------------------------------------------------
def judged(tmp_path: Path, errors: dict[tuple[str, int], tuple[int, float]]) -> Any:
    """A comparison of settings (sampler, steps), each with its evaluations and its error."""
    names, steps = (
        list(dict.fromkeys(n for n, _ in errors)),
        list(dict.fromkeys(k for _, k in errors)),
    )
    plan, store = Plan.of("ghost", sampler=names, steps=steps, seeds=4), Store(tmp_path)
    for cell in plan:
        cost, error = errors[cell.at["sampler"], cell.at["steps"]]
        made = Outcome(
            cell.id,
            "cell",
            "done",
            cell.recipe,
            nfe=cost // 2,
            evaluations=cost,
            levels=[14.6, 0.0],
        )
        made.measures = {"latent_rmse": error * (1 + 0.01 * cell.recipe.seed)}
        store.save(made, torch.zeros(1, 4, 2, 2), torch.zeros(3, 8, 8), None)
        store.keep([made])
    return write(plan, store)


def test_best_is_said_at_equal_network_evaluations_only(tmp_path: Path) -> None:
    found = judged(tmp_path, {
        ("euler", 6): (12, 0.5), ("heun", 6): (22, 0.1), ("unipc", 6): (12, 0.3),
        ("euler", 11): (22, 0.2), ("heun", 11): (42, 0.01), ("unipc", 11): (22, 0.15),
    })  # fmt: skip
    told = {(g["at"]["sampler"], g["at"]["steps"]): g["verdict"] for g in found.groups}
    assert told == {
        ("euler", 6): "worse", ("unipc", 6): "best", ("euler", 11): "worse", ("unipc", 11): "worse",
        ("heun", 6): "best", ("heun", 11): None,
    }  # fmt: skip
    assert [(g["label"], g["evaluations"]) for g in found.best()] == [
        ("unipc, 6 steps", 12),
        ("heun, 6 steps", 22),
    ]
    assert [g["label"] for g in found.best(evaluations=22)] == ["heun, 6 steps"]
    assert [g["label"] for g in found.best(steps=6)] == ["unipc, 6 steps", "heun, 6 steps"]
    assert found.best(steps=11) == []


def test_the_page_and_the_command_line_say_at_which_cost(tmp_path: Path) -> None:
    from timonel.cli.compare import _say

    found = judged(
        tmp_path, {("euler", 6): (12, 0.5), ("heun", 6): (22, 0.1), ("unipc", 6): (12, 0.3)}
    )
    with chromium() as browser, opened(browser, found.page.as_uri()) as watched:
        cards = watched.page.locator("#cards li").all_inner_texts()
        watched.quiet()
    assert [card.splitlines()[:2] for card in cards] == [["12 network evaluations", "unipc"]]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(
            "rich.console.Console.print", lambda self, table: lines.extend(table.columns[-1]._cells)
        )
        _say(found)
    assert lines == ["best at 12", "", ""]


# -- loaded models ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def half() -> tm.Helm:
    return tm.Helm("emoji", dtype="bf16")


def test_a_loaded_model_runs_as_it_is_and_its_recipes_say_so(tmp_path: Path, half: tm.Helm) -> None:
    half.pipe.set_progress_bar_config(desc="mine")
    made = compare(half, "ghost", **SMALL, out=tmp_path, progress=False)
    assert half.pipe._progress_bar_config == {"desc": "mine"}
    (name,) = made.plan.axes["model"]
    assert name.startswith("emoji@")
    told = tm.Recipe.read(made.store.picture(made.outcomes[0]))
    assert (told.model, told.dtype, told.device) == (name, "bf16", "cpu")
    half.pipe.set_progress_bar_config(disable=True)
    again, _ = told.make(half)
    away = made.store.read_pixels(made.outcomes[0]) - to_tensor(again)
    assert away.abs().mean() < 0.02  # half precision, and other batches
    by_name = Plan.of("ghost", **SMALL)
    assert not {c.id for c in by_name} & {c.id for c in made.plan}


def test_a_loaded_model_is_told_by_its_weights(half: tm.Helm) -> None:
    def name(model: Any) -> str:
        (cell,) = Plan.of("ghost", model=model)
        return cell.recipe.model

    plain = name(half)
    assert name(half) == plain
    assert name(half.pipe).partition("@")[2] == plain.partition("@")[2]
    weight = next(half.pipe.vae.parameters())
    held = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[0] += 1
    changed = name(half)
    with torch.no_grad():
        weight.copy_(held)
    assert changed != plain
    assert name(half) == plain


def test_loaded_and_named_models_stand_in_one_plan(half: tm.Helm) -> None:
    plan = Plan.of("ghost", model=[half, "emoji"], sampler="euler")
    assert [list(plan.helms), plan.cells[1].recipe.model] == [[plan.cells[0].recipe.model], "emoji"]
    assert [cell.recipe.guidance.scale for cell in plan] == [4.0, 4.0]  # of the card, either way
    assert [cell.recipe.dtype for cell in plan] == ["bf16", None]


def test_a_pipeline_that_stays_in_its_own_loop_is_compared_too(
    tmp_path: Path, half: tm.Helm, report: Any
) -> None:
    from diffusers import AutoPipelineForImage2Image

    pipe = AutoPipelineForImage2Image.from_pipe(half.pipe)
    begin, seen = report[0].store.picture(report[0].outcomes[0]), list[State]()
    made = compare(
        pipe, "ghost", image=str(begin), sampler=["euler", "heun"], steps=4, guidance=4.0,
        arguments={"strength": 0.5}, out=tmp_path, progress=seen.append,
    )  # fmt: skip
    assert not made.failed
    assert [(o.nfe, o.evaluations, "latent_rmse" in o.measures) for o in made.outcomes] == [
        (2, 4, True),
        (3, 6, True),
    ]
    assert [group["verdict"] for group in made.groups] == [None, None]  # at unequal cost
    assert max(state.row for state in seen if state.phase == "references") == 4
    assert "one by one" in made.page.read_text("utf-8")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda helm: compare(helm, "a", model="emoji"), ArgumentError, "give the model once"),
        (lambda helm: compare(helm, "a", dtype="fp16"), ArgumentError, "leave dtype out"),
        (
            lambda helm: compare("a", model=[helm, 3]),
            ArgumentError,
            "a name, a pipeline or a Helm, got 3",
        ),
        (lambda helm: compare("emoji", "a"), ArgumentError, "model='emoji'"),
        (
            lambda helm: compare(torch.nn.Identity(), "a"),
            ArgumentError,
            "a pipeline or a Helm, got Identity",
        ),
        (lambda helm: compare(helm), ArgumentError, "the plan is empty"),
        (lambda helm: compare(3), ArgumentError, "subjects must be a list"),
        (lambda helm: compare("a", batch=0), ArgumentError, "batch must be"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused_before_any_compute(
    call: Any,
    error: type,
    said: str,
    half: tm.Helm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        call(half)
    assert not list(tmp_path.rglob("*.html"))


def test_what_is_no_pipeline_is_refused_as_by_the_helm() -> None:
    class Other:
        scheduler = None

        def __call__(self) -> None:
            """Nothing to steer."""

    with pytest.raises(ModelError, match="not a diffusers pipeline"):
        Plan.of("a", model=Other())


# -- the page, and the pictures beside it ----------------------------------------------------------
@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pictures of 1024 x 1024 with their stories: soft ones, and noise, which no format makes
    small.
    """
    plan = Plan.of(
        "a lighthouse", sampler=["euler", "unipc"], steps=40, seeds=2, width=1024, height=1024
    )
    store = Store(tmp_path_factory.mktemp("large"))
    for k, cell in enumerate(plan):
        drawn = torch.Generator().manual_seed(k)
        side, small = (8, 4) if k % 2 else (1024, 128)
        pixels, story = (
            torch.rand(1, 3, side, side, generator=drawn),
            torch.rand(40, 3, small, small, generator=drawn),
        )
        made = Outcome(
            cell.id, "cell", "done", cell.recipe, nfe=40, evaluations=80, levels=[14.6, 0.0]
        )
        soft = torch.nn.functional.interpolate(pixels, (1024, 1024), mode="bicubic")[0]
        store.save(
            made, torch.zeros(1, 4, 2, 2), soft, torch.nn.functional.interpolate(story, (128, 128))
        )
        store.keep([made])
    return write(plan, store)


def test_a_page_of_sixty_large_pictures_is_below_5_mb(large: Any) -> None:
    room = (5_000_000 - 400_000) / 60  # beside style, script, words and numbers
    assert room > 4 / 3 * (STILL_BYTES + SPRITE_BYTES)
    assert large.page.stat().st_size < 4 * room + 200_000
    assert FRAME_BYTES < 250_000 / 25 * 3 / 4  # a video of 25 frames
    assert (
        sum(p.stat().st_size for p in (large.store.root / "pictures").iterdir()) > 5_000_000
    )  # noise, in full


def test_a_click_opens_the_full_picture_and_a_page_that_moved_alone_keeps_the_small_one(
    large: Any, tmp_path: Path
) -> None:
    width = "document.querySelector('#big img').naturalWidth"
    with chromium() as browser:
        with opened(browser, large.page.as_uri()) as watched:
            shots = watched.page.locator("#grid .shot img")
            assert (
                shots.first.evaluate("image => image.decode().then(() => image.naturalWidth)")
                <= 320
            )
            watched.page.locator("#grid .shot").first.click()
            until(watched.page, f"{width} === 1024")
            with watched.page.context.expect_page() as new:
                watched.page.click("#full")
            new.value.wait_for_load_state()
            assert new.value.url == large.store.picture(large.outcomes[0]).as_uri()
            assert new.value.evaluate("document.images[0].naturalWidth") == 1024
            watched.quiet()
        moved = tmp_path / "sent.html"
        moved.write_bytes(large.page.read_bytes())
        with opened(browser, moved.as_uri()) as watched:
            watched.quiet()
            watched.page.locator("#grid .shot").first.click()
            watched.page.wait_for_timeout(200)
            assert 0 < watched.page.evaluate(width) <= 320
            assert watched.page.locator("#big img").is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_of_390_pixels_shows_all_of_a_report(report: Any, theme: str) -> None:
    phone = {
        "viewport": {"width": 390, "height": 844},
        "is_mobile": True,
        "has_touch": True,
        "color_scheme": theme,
    }
    with chromium() as browser, opened(browser, report[0].page.as_uri(), **phone) as watched:
        page = watched.page
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        lines = page.locator("#rows tbody th").evaluate_all(
            "all => all.map("
            "(one) => one.clientHeight / parseFloat(getComputedStyle(one).lineHeight))"
        )
        assert max(lines) < 5  # names are not broken letter by letter
        marks = page.locator("#errorplot .plot > text").evaluate_all(
            "all => all.map((one) => one.getBoundingClientRect())"
            ".map(({ left, right, top }) => [top, left, right])"
        )
        for one, other in zip(sorted(marks), sorted(marks)[1:], strict=False):
            assert (
                one[0] != other[0] or one[2] < other[1]
            )  # numbers on one line do not run into each other
        assert page.locator("#errorplot .tick").count() >= 2
        page.locator("#grid .shot").first.click()
        assert page.evaluate(
            "[document.documentElement.scrollWidth, cell.scrollWidth - cell.clientWidth]"
        ) == [390, 0]
        watched.quiet()
