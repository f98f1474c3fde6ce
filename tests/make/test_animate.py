"""A still picture becomes a video file, from Python and from the command line; wrong input is
refused at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from support import tiny
from timonel.cli import app
from timonel.errors import ArgumentError, ModelError, TimonelError
from timonel.make.animate import Motion, animate, still

SIZE = {"height": 16, "width": 16, "num_frames": 3}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "apple.png"
    Image.new("RGBA", (16, 16), (200, 30, 20, 255)).save(path)
    return path


def test_a_picture_becomes_a_video_and_the_pipeline_is_told_how_it_moves(
    tmp_path: Path, picture: Path
) -> None:
    pipe = tiny.svd()
    pipe.set_progress_bar_config(disable=True)
    helm, out = tm.Helm(pipe), tmp_path / "clip.gif"
    made = animate(still(picture), out, helm=helm, steps=3, seed=5, motion=Motion(200, 10), **SIZE)
    with Image.open(made.video) as file:
        assert file.n_frames == len(made.frames) == 3
        assert file.info["duration"] == 100
    assert made.calls == 3
    again = animate(still(picture), out, helm=helm, steps=3, seed=5, motion=Motion(200, 10), **SIZE)
    other = animate(still(picture), out, helm=helm, steps=3, seed=6, motion=Motion(200, 10), **SIZE)
    assert [f.tobytes() for f in again.frames] == [f.tobytes() for f in made.frames]
    assert [f.tobytes() for f in other.frames] != [f.tobytes() for f in made.frames]


def test_the_command_line_writes_the_video_and_says_where(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timonel.pipelines.load.load", lambda *_, **__: tiny.svd())
    options = [
        "--model",
        "tiny",
        "--steps",
        "2",
        "--frames",
        "3",
        "--width",
        "16",
        "--height",
        "16",
    ]
    done = CliRunner().invoke(
        app, ["animate", str(picture), *options, "-o", str(tmp_path / "clip.mp4")]
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    assert "3 frames, 2 network calls" in done.output


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert still(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["missing.png", "--model", "m"], ArgumentError, "cannot read the picture 'missing.png'"),
        (["apple.png", "--model", "m", "--motion", "300"], ArgumentError, "motion bucket"),
        (["apple.png", "--model", "m", "--fps", "0"], ArgumentError, "fps"),
        (["apple.png", "--model", "m", "--noise", "2"], ArgumentError, "noise"),
        (["apple.png", "--model", "m", "--sampler", "eler"], ArgumentError, "euler"),
        (["apple.png", "--model", "no/such-model"], ModelError, "cannot load"),
        (["apple.png", "--model", "m", "--device", "meta"], ArgumentError, "holds no numbers"),
    ],
)
def test_wrong_input_is_one_clear_message(arguments, error, said, picture, monkeypatch) -> None:
    monkeypatch.chdir(picture.parent)
    result = CliRunner().invoke(app, ["animate", *arguments])
    assert isinstance(result.exception, TimonelError), result.output
    assert isinstance(result.exception, error)
    assert said in str(result.exception)


def test_a_pipeline_that_makes_no_videos_is_refused(tmp_path: Path, picture: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"StableDiffusionXLPipeline does not make videos.*image-to-video"
    ):
        animate(still(picture), tmp_path / "clip.mp4", helm=tm.Helm(tiny.sdxl()), steps=2)


def test_a_picture_of_a_pixel_is_refused_before_any_compute(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="1x1 pixels; give one of at least 8"):
        animate(Image.new("RGB", (1, 1)), tmp_path / "clip.mp4", helm=tm.Helm(tiny.svd()), steps=2)


def test_another_suffix_is_refused_before_any_compute(picture: Path) -> None:
    pipe = tiny.svd()
    with pytest.raises(ArgumentError, match="avi"):
        animate(still(picture), "clip.avi", helm=tm.Helm(pipe), steps=2)
