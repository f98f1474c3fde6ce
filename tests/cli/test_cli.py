"""The command line on the shipped model, as a person would use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from timonel.cli import app
from timonel.core.solvers import SOLVERS
from timonel.errors import TimonelError
from timonel.make.recipe import Recipe

APPLE = [
    "generate",
    "red apple",
    "--steps",
    "6",
    "--sampler",
    "dpmpp_2m/karras",
    "--seed",
    "7",
    "--guidance",
    "4",
]


def run(*arguments: str, folder: Path, check: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }  # as here: the bits of a picture depend on the threads
    done = subprocess.run(
        [sys.executable, "-m", "timonel", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == check, done.stderr
    return done


def here(*arguments: str, folder: Path, check: int = 0) -> str:
    """What the command prints, run in this process, where everything is imported already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == check, (done.output, done.exception)
    return done.stdout


def test_generate_leaves_picture_sheet_animation_and_previews(tmp_path: Path) -> None:
    said = here(*APPLE, "--guidance-until", "0.4", "--preview", folder=tmp_path)
    out = tmp_path / "out"
    written = {"red-apple-7.png", "red-apple-7.sheet.png", "red-apple-7.gif"}
    assert {p.name for p in out.iterdir()} == {*written, "red-apple-7"}
    assert len(list((out / "red-apple-7").iterdir())) == 6
    for name in written:
        assert f"out/{name}" in said
    with Image.open(out / "red-apple-7.gif") as animation:
        assert animation.n_frames > 1
    recipe = Recipe.read(out / "red-apple-7.png")
    assert (recipe.prompt, recipe.seed, recipe.steps) == ("red apple", 7, 6)
    assert (recipe.sampler, recipe.grid) == ("dpmpp_2m", "karras")
    assert recipe.guidance is not None
    assert (recipe.guidance.scale, recipe.guidance.stop) == (4.0, 0.4)


def test_prompts_over_the_run_are_in_the_recipe_that_replays_them(tmp_path: Path) -> None:
    changes = ["--prompt-at", "step:2:pizza", "--prompt-at", "step:3-5:dog"]
    here(*APPLE, *changes, "--negative-at", "0.5:house", folder=tmp_path)
    picture = tmp_path / "out/red-apple-7.png"
    recipe = Recipe.read(picture)
    assert recipe.prompts is not None
    assert [(one.at, one.to, one.prompt) for one in recipe.prompts.entries] == [
        (0.0, None, "red apple"), (2.0, None, "pizza"), (3.0, 5.0, "dog"),
    ]  # fmt: skip
    assert recipe.negative_prompts is not None
    assert "identical, bit for bit" in here("replay", str(picture), folder=tmp_path)


def test_replay_makes_the_same_bits_and_says_when_it_cannot(tmp_path: Path) -> None:
    here(*APPLE[:-2], "--sampler", "dpmpp_2m_sde", folder=tmp_path)
    picture = tmp_path / "out/red-apple-7.png"
    assert "identical, bit for bit" in run("replay", str(picture), folder=tmp_path).stdout
    with Image.open(picture) as old, Image.open(picture.with_name("red-apple-7-replay.png")) as new:
        assert old.tobytes() == new.tobytes()
    recipe = Recipe.read(picture)
    recipe.model_copy(update={"seed": 8}).save(Image.open(picture).copy(), picture)
    assert "different" in here("replay", str(picture), folder=tmp_path, check=1)


def test_ctrl_c_once_stops_at_the_next_step_and_saves(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "timonel", "generate", "pizza", "--steps", "900", "--preview"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    steps = tmp_path / "out/pizza-0"
    deadline = time.monotonic() + 120
    while not (steps.is_dir() and len(list(steps.glob("step-*.png"))) > 2):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "stopped after step" in output
    recipe = Recipe.read(tmp_path / "out/pizza-0.png")
    assert recipe.stopped_after is not None
    assert 0 < recipe.stopped_after < 900
    assert not list((tmp_path / "out").glob(".*"))


def test_same_seed_and_prompt_give_the_same_picture_whatever_the_count(tmp_path: Path) -> None:
    here("generate", "cat face", "--steps", "3", "--seed", "4", "--count", "2", folder=tmp_path)
    here("generate", "cat face", "--steps", "3", "--seed", "5", "--out", "alone", folder=tmp_path)
    with (
        Image.open(tmp_path / "out/cat-face-5.png") as a,
        Image.open(tmp_path / "alone/cat-face-5.png") as b,
    ):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("arguments", "says"), [
    (["generate", "x", "--sampler", "dpmpp2m"], "did you mean 'dpmpp_2m'"),
    (["generate", "x", "--sampler", "euler/karas"], "did you mean 'karras'"),
    (["generate", "x", "--steps", "0"], "at least 1, got 0"),
    (["generate", "x", "--steps", "2000"], "2000 steps are more than the 1000 training levels"),
    (["generate", "x", "--eta", "0.5"], "has no option 'eta'"),
    (["generate", "x", "--guidance-until", "40"], "not a ratio"),
    (["generate", "x", "--guidance-until", "half"], "step:4 or sigma:1.2"),
    (["generate", "x", "--prompt-at", "0.4 a fox"], "a position and a prompt"),
    (["generate", "x", "--prompt-at", "4:a fox"], "no ratio of the steps"),
    (["generate", "x", "--model", "no/such-model"], "cannot load the model 'no/such-model'"),
    (["generate", "x", "--dtype", "fp8"], "unknown dtype 'fp8'"),
    (["generate", "  "], "the prompt is empty"),
    (["generate", "x", "--out", "/proc/nowhere"], "cannot write into '/proc/nowhere'"),
    (["explain", "euler/ays_svd"], "ays_svd"),
    (["explain", "euler", "--model", "nowhere"], "cannot read the scheduler configuration"),
    (["replay", "missing.png"], "cannot read the picture 'missing.png'"),
])  # fmt: skip
def test_wrong_input_is_one_clear_message_and_nothing_half_written(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, TimonelError), result.output
    assert says in str(result.exception)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("command", [["generate", "x"], ["animate", "x.png"]])
def test_refusals_reach_the_shell_as_status_2_and_one_line_before_diffusers_is_imported(
    command: list[str], tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    code = (
        "import sys\nfrom timonel.cli import main\n"
        "try: main()\nfinally: print('diffusers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--sampler", "nothing"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert done.stderr.startswith("timonel: unknown sampler 'nothing'")
    assert done.stderr.count("\n") == 1


def test_full_disk_is_one_clear_message_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    # files of at most 2 blocks
    command = f'ulimit -f 2; "{sys.executable}" -m timonel generate pizza --steps 2'
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("timonel: cannot write 'out/pizza-0")
    assert "Traceback" not in done.stderr
    sizes = [p.stat().st_size for p in (tmp_path / "out").iterdir()]
    assert all(size > 0 for size in sizes)
    assert not list((tmp_path / "out").glob(".*"))


def test_listings_name_everything() -> None:
    runner = CliRunner()
    text = runner.invoke(app, ["samplers"]).output
    assert all(name in text for name in SOLVERS)
    assert "karras" in runner.invoke(app, ["grids"]).output
    assert "emoji" in runner.invoke(app, ["models", "--concepts"]).output


def test_explain_prints_the_table_and_writes_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["explain", "dpmpp_2m/karras", "--steps", "10"])
    assert result.exit_code == 0
    assert "14.61464" in result.output
    with Image.open(tmp_path / "out/explain-dpmpp_2m-karras-10.png") as picture:
        assert picture.width > 800
