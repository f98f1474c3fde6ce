"""Pictures as a video file: MP4 (H.264), GIF or WebP by the suffix."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, finite
from ..files import replacing

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".mp4", ".gif", ".webp")


def write(
    frames: Sequence[Image.Image], path: str | PathLike[str], fps: float = 7.0, *, loops: int = 1
) -> Path:
    """Write pictures as a video, atomically, and return its path.

    MP4 is H.264 in 4:2:0, so an odd width or height gains one repeated line. GIF and WebP
    (lossless) loop for ever; a GIF keeps whole hundredths of a second.

    Args:
        frames: pictures of PIL, of one size.
        path: .mp4, .gif or .webp.
        fps: pictures a second, 0.1 to 120.
        loops: how often an MP4 holds the frames.

    Raises:
        ArgumentError: another suffix, no frames, unequal sizes, or a file that cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind not in SUFFIXES:
        raise ArgumentError(f"a video is a {', '.join(SUFFIXES)} file, got {str(path)!r}")
    shown = [frame.convert("RGB") for frame in frames]
    if not shown or len({frame.size for frame in shown}) > 1:
        raise ArgumentError(
            f"a video needs frames of one size, got {sorted({frame.size for frame in shown})}"
        )
    rate = finite("fps", fps, 0.1, 120)
    with replacing(path) as temporary:
        if kind == ".mp4":
            _mp4(shown * loops, temporary, rate)
        else:
            more: dict[str, Any] = {"lossless": True} if kind == ".webp" else {"disposal": 1}
            first, *rest = shown
            more |= {"append_images": rest, "duration": round(1000 / rate), "loop": 0}
            first.save(temporary, save_all=True, **more)
    return Path(path)


def _mp4(frames: Sequence[Image.Image], path: Path, fps: float) -> None:
    import av
    import numpy as np

    width, height = frames[0].size
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "14"}
        )
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            even = np.pad(np.asarray(frame), odd, mode="edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        file.mux(stream.encode())
