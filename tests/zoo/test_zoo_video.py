"""Laws of the shipped video model: it begins with the given picture, and moves more where more
motion is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import timonel as tm
from timonel import zoo
from timonel.cli import app
from timonel.make.animate import Motion, animate

PROMPTS = ("red apple", "cat face", "soccer ball")
LIMIT = 16e6  # bytes


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    helm = tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    return helm([*PROMPTS], steps=10, sampler="dpmpp_2m/karras", guidance=4.0, seeds=0).images


@pytest.fixture(scope="module")
def helm() -> tm.Helm:
    made = tm.Helm("emoji-video")
    made.pipe.set_progress_bar_config(disable=True)
    return made


def frames(helm: tm.Helm, picture: Image.Image, out: Path, **more: Any) -> np.ndarray:
    made = animate(picture, out / "clip.gif", helm=helm, steps=8, **more)
    return np.stack([np.asarray(frame, dtype=float) for frame in made.frames])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a - b) ** 2).mean()))


def test_the_first_frame_is_the_given_picture(helm, pictures, tmp_path):
    for picture in pictures:
        clip = frames(helm, picture, tmp_path)
        assert clip.shape[0] >= 8
        assert psnr(clip[0], np.asarray(picture, dtype=float)) >= 22


@pytest.mark.slow
def test_motion_grows_with_the_bucket(helm, pictures, tmp_path):
    for picture in pictures:
        moved = []
        for bucket in (10, 100, 230):
            clip = frames(helm, picture, tmp_path, motion=Motion(bucket))
            moved.append(np.abs(np.diff(clip, axis=0)).mean())
        assert moved[0] < moved[1] < moved[2]


def test_a_seed_makes_the_same_video_again(helm, pictures, tmp_path):
    one, two = (frames(helm, pictures[0], tmp_path, seed=3) for _ in range(2))
    assert np.array_equal(one, two)


def test_the_command_line_animates_a_picture_without_naming_a_model(pictures, tmp_path):
    pictures[0].save(tmp_path / "apple.png")
    words = [
        "animate",
        str(tmp_path / "apple.png"),
        "--steps",
        "3",
        "-o",
        str(tmp_path / "clip.mp4"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "8 frames, 3 network calls" in done.output


def test_a_model_without_prompt_says_how_it_begins(tmp_path):
    done = CliRunner().invoke(
        app, ["generate", "cat", "--model", "emoji-video", "-o", str(tmp_path)]
    )
    assert isinstance(done.exception, tm.ArgumentError)
    assert "timonel animate" in str(done.exception)


def test_the_model_stays_small():
    assert (
        sum(path.stat().st_size for path in zoo.folder("emoji-video").rglob("*") if path.is_file())
        <= LIMIT
    )
