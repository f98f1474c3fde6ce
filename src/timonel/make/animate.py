"""A video from a still picture, with image-to-video pipelines such as Stable Video Diffusion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.guidance import Guidance
from ..core.sampler import Sampler
from ..errors import ArgumentError, finite, whole
from ..files import placed, ready
from ..picture_files import picture as read
from .video import SUFFIXES, write

if TYPE_CHECKING:
    from PIL import Image

    from ..pipelines.helm import Helm


STRIP = 256  # rows of a picture that are put on white at once
LEAST = 8  # pixels of a picture's sides: below, image encoders cannot resize it


@dataclass(frozen=True)
class Motion:
    """What Stable Video Diffusion takes beside the picture.

    Attributes:
        bucket: how much moves, 1 to 255 (127 is usual).
        fps: frames a second, an input of the model and the rate of the file.
        noise: standard deviation of the noise added to the picture, 0 to 1; with more the video
            departs further from it.
    """

    bucket: int = 127
    fps: int = 7
    noise: float = 0.02

    def __post_init__(self) -> None:
        whole("motion bucket", self.bucket, 1, 255)
        whole("fps", self.fps, 1, 120)
        finite("noise", self.noise, 0, 1)

    def arguments(self) -> dict[str, Any]:
        """By the names of the pipeline's arguments."""
        return {"motion_bucket_id": self.bucket, "fps": self.fps, "noise_aug_strength": self.noise}


@dataclass(frozen=True)
class Animated:
    """The result of `animate`.

    Attributes:
        video: the file.
        frames: its pictures.
        seconds: that the call took.
        calls: of the network.
        stopped: why the run was stopped; "" where it was not.
    """

    video: Path
    frames: list[Image.Image] = field(repr=False)
    seconds: float
    calls: int
    stopped: str


def still(path: str | PathLike[str]) -> Image.Image:
    """The picture at `path`, on white where it is transparent.

    Raises:
        ArgumentError: there is none.
    """
    from PIL import Image

    picture = read(path)
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    opaque, (width, height) = Image.new("RGB", picture.size), picture.size
    for top in range(0, height, STRIP):  # so that a large picture is not held five times
        strip = picture.crop((0, top, width, min(height, top + STRIP))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        opaque.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return opaque


def animate(
    picture: Image.Image,
    out: str | PathLike[str],
    *,
    helm: Helm,
    sampler: Sampler | str | None = None,
    steps: int | None = None,
    seed: int = 0,
    motion: Motion | None = None,
    guidance: Guidance | float | None = None,
    chunk: int = 8,
    hooks: Sequence[Any] = (),
    overwrite: bool = True,
    **options: Any,
) -> Animated:
    """Make a video of a picture, and write it; a stopped run is decoded and written too.

    Args:
        picture: of PIL, RGB, at least 8 pixels a side.
        out: the file; its suffix says which kind of video it is.
        helm: with an image-to-video pipeline.
        sampler: as in a call of the helm.
        steps: as in a call of the helm.
        seed: of the noise.
        motion: see `Motion`.
        guidance: as in a call of the helm; of a shipped model its own by default.
        chunk: frames decoded at once, which bounds memory.
        hooks: as in a call of the helm.
        overwrite: replace a file that exists. Without it such a file is refused, and for one that
            appears meanwhile the video gets the next free name.
        **options: of the pipeline: height, width, num_frames, …

    Raises:
        ArgumentError: before any compute, for what cannot be used or written.
    """
    target(out, overwrite=overwrite)
    if not {"image", "motion_bucket_id"} <= set(helm.parameters):
        raise ArgumentError(
            f"{type(helm.pipe).__name__} does not make videos of pictures; name an image-to-video"
            " model, e.g. stabilityai/stable-video-diffusion-img2vid-xt"
        )
    if min(picture.size) < LEAST:
        raise ArgumentError(
            f"the picture has {picture.width}x{picture.height} pixels; give one of at least {LEAST}"
        )
    motion = motion or Motion()
    if helm.card is not None:
        options = {"height": helm.card.resolution, "width": helm.card.resolution, **options}
        guidance = helm.card.default_guidance if guidance is None else guidance
    began = time.perf_counter()
    output = helm(
        picture,
        sampler=sampler,
        steps=steps,
        seeds=[seed],
        guidance=guidance,
        hooks=hooks,
        decode_chunk_size=whole("chunk", chunk),
        **motion.arguments(),
        **options,
    )
    seconds = time.perf_counter() - began
    run = helm.run
    assert run is not None
    frames = output.frames[0]
    stopped = run.reason if run.status == "stopped" else ""
    with placed(out, overwrite=overwrite) as path:
        return Animated(write(frames, path, motion.fps), frames, seconds, run.advances, stopped)


def target(out: str | PathLike[str], *, overwrite: bool) -> Path:
    """The video's path. Raises `ArgumentError` where no video can be written there."""
    if Path(out).suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"a video is a {', '.join(SUFFIXES)} file, got {str(out)!r}")
    return ready(out, overwrite=overwrite)
