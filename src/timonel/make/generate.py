"""A picture from a prompt, with a contact sheet and an animation of its steps."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArgumentError
from ..files import beside, claimed, free, new_folder, writable
from ..hooks.collect import collect
from ..hooks.preview import preview as preview_hook
from ..pipelines.helm import Helm
from .places import ENDINGS, unused
from .recipe import Recipe

SHOWN = 256  # pixels of the longer side of every step's picture
SMALL = 256  # up to this side pictures are decoded at every step, above by the linear preview


@dataclass(frozen=True)
class Generated:
    """The result of `generate`.

    Attributes:
        picture: the PNG, with its recipe in it.
        sheet: the contact sheet of its steps.
        animation: of its steps.
        recipe: of what really ran.
        seconds: that it took.
        calls: of the network.
        stopped: why the run was stopped; "" where it was not.
        previews: the folder of the steps' pictures.
    """

    picture: Path
    sheet: Path
    animation: Path
    recipe: Recipe
    seconds: float
    calls: int
    stopped: str
    previews: Path | None = None


def generate(
    recipe: Recipe,
    folder: Path,
    *,
    helm: Helm | None = None,
    preview: bool = False,
    hooks: Sequence[Any] = (),
    name: str | None = None,
    overwrite: bool = False,
) -> Generated:
    """Make a recipe's picture, and write it; a stopped run is decoded and written too.

    Args:
        recipe: of the picture.
        folder: for its files.
        helm: with the model; by default the recipe's model is loaded.
        preview: also write every step's picture while it runs, in a folder of the picture's name.
        hooks: as in a call of the helm.
        name: of the picture, without ".png"; by default the prompt and the seed.
        overwrite: replace files that exist. Without it a `name` that exists is refused, and the
            default one gets a number.

    Raises:
        ArgumentError: before any compute, for what cannot be used or written.
    """
    helm = helm or recipe.helm()
    if recipe.prompt and "prompt" not in helm.parameters:
        raise ArgumentError(
            f"{type(helm.pipe).__name__} takes no prompt; it begins with a picture: timonel animate"
            " PICTURE"
        )
    stem = folder / (name or f"{slug(recipe.title)}-{recipe.seed}")
    if name is not None:
        unused(stem, overwrite)
    writable(folder)
    decode = True if _side(helm, recipe) <= SMALL else None
    steps = collect(decode=decode, size=SHOWN)
    watchers: list[Any] = [steps, *hooks]
    with _previews(stem, preview, overwrite) as previews:
        if previews is not None:
            stem = previews
            watchers.append(preview_hook(previews, decode=decode, size=SHOWN))
        began = time.perf_counter()
        picture, done = recipe.make(helm, hooks=watchers)
    seconds = time.perf_counter() - began
    run = helm.run
    assert run is not None
    with _stem(stem, preview, overwrite) as stem:
        png, sheet, animation = (beside(stem, ending) for ending in ENDINGS)
        done.save(picture, png)
        try:
            steps.contact_sheet(sheet)
            steps.animation(animation, fps=6)
        except ArgumentError as error:  # the disk is full
            raise ArgumentError(f"{error}; the picture itself is kept: {str(png)!r}") from error
        reason = run.reason if run.status == "stopped" else ""
        return Generated(png, sheet, animation, done, seconds, run.advances, reason, previews)


@contextmanager
def _previews(stem: Path, wanted: bool, overwrite: bool) -> Iterator[Path | None]:
    """A new folder for the steps' pictures; removed where it stays empty."""
    if not wanted:
        yield None
        return
    if overwrite:
        writable(stem)
    folder = stem if overwrite else new_folder(stem, *ENDINGS)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


@contextmanager
def _stem(stem: Path, taken: bool, overwrite: bool) -> Iterator[Path]:
    """The path of the files without suffix: `stem`, or the next free one unless it is `taken`."""
    if overwrite:
        yield stem
        return
    with claimed(stem if taken else free(stem, *ENDINGS, ""), *ENDINGS) as path:
        yield path


def _side(helm: Helm, recipe: Recipe) -> int:
    """The longer side of the picture, in pixels."""
    if recipe.width or recipe.height:
        return max(recipe.width or 0, recipe.height or 0)
    if helm.card:
        return helm.card.resolution
    size = getattr(getattr(helm.pipe, "unet", None), "config", {}).get("sample_size") or 64
    return int(size) * int(getattr(helm.pipe, "vae_scale_factor", 8))


def slug(text: str) -> str:
    """A prompt as a file name: letters and digits, joined by dashes, at most 60 and 180 bytes."""
    short = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60]
    return short.encode("utf-8", "ignore")[:180].decode("utf-8", "ignore").strip("-") or "picture"
