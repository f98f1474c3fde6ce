"""A video file holds the frames that were given, at the rate that was asked for."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from timonel.errors import ArgumentError
from timonel.make.video import write


def frames(count: int = 5, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    return [Image.new("RGB", size, (40 * i, 255 - 40 * i, 90)) for i in range(count)]


@pytest.mark.parametrize("size", [(64, 48), (63, 49)])
def test_an_mp4_has_every_frame_at_the_rate_and_near_in_colour(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = write(frames(size=size), tmp_path / "clip.mp4", fps=7)
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert float(stream.average_rate) == 7.0
        shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(shown) == 5
    for i, picture in enumerate(shown):
        assert picture.shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
        assert np.abs(picture[8:40, 8:56].mean((0, 1)) - [40 * i, 255 - 40 * i, 90]).max() < 6
    assert len(list(av.open(str(write(frames(), path, fps=12.5, loops=2))).decode(video=0))) == 10


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_loops_for_ever_with_every_frame(tmp_path: Path, suffix: str) -> None:
    with Image.open(write(frames(), tmp_path / f"clip.{suffix}", fps=10)) as made:
        assert made.n_frames == 5
        assert made.info["loop"] == 0
        made.seek(2)
        made.load()
        assert made.info["duration"] == 100
        assert np.abs(np.asarray(made.convert("RGB")).mean((0, 1)) - [80, 175, 90]).max() < 3


def test_what_cannot_be_a_video_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    for given, path, fps, said in [
        (frames(), "clip.avi", 7.0, "avi"),
        ([], "clip.mp4", 7.0, "one size"),
        ([*frames(1), *frames(1, (32, 32))], "clip.mp4", 7.0, "one size"),
        (frames(), "clip.mp4", 0.0, "fps"),
    ]:
        with pytest.raises(ArgumentError, match=said):
            write(given, tmp_path / path, fps)
    with pytest.raises(ArgumentError, match="cannot write"):
        write(frames(), "/proc/nowhere/clip.mp4")
    assert not list(tmp_path.iterdir())
