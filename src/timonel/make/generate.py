"""The main job: a prompt in, a picture out, with how it came to be."""

from __future__ import annotations

import inspect
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
# pictures up to this many pixels are decoded at every step; larger ones use the linear preview
SMALL = 256


@dataclass(frozen=True)
class Made:
    """What one job left behind."""

    picture: Path
    sheet: Path
    animation: Path
    recipe: Recipe
    seconds: float
    calls: int
    stopped: str
    previews: Path | None = None


def generate(
    recipe: Recipe, folder: Path, *, helm: Helm | None = None, preview: bool = False,
    hooks: Sequence[Any] = (),
    name: str | None = None, overwrite: bool = False,
) -> Made:  # fmt: skip
    """Make the recipe's picture in `folder`: the PNG, a contact sheet of its steps and an animation
    of them.

    `preview` also writes every step's picture while it runs, into a folder of the picture's name. A
    stopped run is decoded and saved too. `name`: of the picture, without ".png"; by default the
    prompt and the seed. Nothing that exists is replaced unless `overwrite`: a name that is made of
    the prompt gets a number, `name` is refused.

    Raises `ArgumentError` for what cannot be used or written, before any compute.
    """
    helm = helm or recipe.helm()
    if recipe.prompt and "prompt" not in inspect.signature(type(helm.pipe).__call__).parameters:
        raise ArgumentError(
            f"{type(helm.pipe).__name__} takes no prompt; it begins with a picture: timonel animate"
            " PICTURE"
        )
    stem = folder / (name or f"{slug(recipe.title)}-{recipe.seed}")
    if name is not None:
        unused(stem, overwrite)
    writable(folder)
    decode = True if _side(helm, recipe) <= SMALL else None
    story = collect(decode=decode, size=SHOWN)
    watchers: list[Any] = [story, *hooks]
    with _previews(stem, preview, overwrite) as previews:
        if previews is not None:
            stem = previews
            watchers.append(preview_hook(previews, decode=decode, size=SHOWN))
        began = time.perf_counter()
        picture, made = recipe.make(helm, hooks=watchers)
    seconds = time.perf_counter() - began
    run = helm.run
    assert run is not None
    with _stem(stem, preview, overwrite) as stem:
        png, sheet, animation = (beside(stem, ending) for ending in ENDINGS)
        made.save(picture, png)
        try:
            story.contact_sheet(sheet)
            story.animation(animation, fps=6)
        except ArgumentError as error:  # the disk is full
            raise ArgumentError(f"{error}; the picture itself is kept: {str(png)!r}") from error
        reason = run.reason if run.status == "stopped" else ""
        return Made(png, sheet, animation, made, seconds, run.advances, reason, previews)


@contextmanager
def _previews(stem: Path, wanted: bool, overwrite: bool) -> Iterator[Path | None]:
    """The folder of the steps' pictures, nobody else's; one that stays empty goes."""
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
def _stem(stem: Path, mine: bool, overwrite: bool) -> Iterator[Path]:
    """Where the files go: `stem`, or the next free name. `mine`: the folder of that name is this
    picture's.
    """
    if overwrite:
        yield stem
        return
    with claimed(stem if mine else free(stem, *ENDINGS, ""), *ENDINGS) as one:
        yield one


def _side(helm: Helm, recipe: Recipe) -> int:
    """The longer side of the picture, in pixels."""
    given = max(recipe.width or 0, recipe.height or 0)
    if given or helm.card:
        return given or (helm.card.resolution if helm.card else 0)
    size = getattr(getattr(helm.pipe, "unet", None), "config", {}).get("sample_size") or 64
    return int(size) * int(getattr(helm.pipe, "vae_scale_factor", 8))


def slug(text: str) -> str:
    """A prompt as a file name: letters and digits of any script, joined by dashes, at most 60 and
    180 bytes.
    """
    short = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60]
    return short.encode("utf-8", "ignore")[:180].decode("utf-8", "ignore").strip("-") or "picture"
