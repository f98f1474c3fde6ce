"""The main job: a prompt in, a picture out, with how it came to be."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ArgumentError
from .files import writable
from .hooks.preview import preview as preview_hook
from .hooks.story import collect
from .pipelines.helm import Helm
from .recipe import Recipe

SHOWN = 256  # pixels of the longer side of every step's picture
SMALL = 256  # pictures up to this many pixels are decoded at every step; larger ones use the linear preview


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


def generate(
    recipe: Recipe, folder: Path, *, helm: Helm | None = None, preview: bool = False, hooks: Sequence[Any] = ()
) -> Made:
    """Make the recipe's picture in `folder`: the PNG, a contact sheet of its steps and an animation of them.

    `preview` also writes every step's picture while it runs. A stopped run is decoded and saved too.
    """
    helm = helm or Helm(recipe.model, dtype=recipe.dtype, device=recipe.device)
    if recipe.prompt and "prompt" not in inspect.signature(type(helm.pipe).__call__).parameters:
        raise ArgumentError(
            f"{type(helm.pipe).__name__} takes no prompt; it begins with a picture: timonel animate PICTURE"
        )
    stem = f"{slug(recipe.title)}-{recipe.seed}"
    writable(folder)
    decode = True if _side(helm, recipe) <= SMALL else None
    story = collect(decode=decode, size=SHOWN)
    watchers: list[Any] = [story, *hooks]
    if preview:
        watchers.append(preview_hook(folder / stem, decode=decode, size=SHOWN))
    began = time.perf_counter()
    picture, made = recipe.make(helm, hooks=watchers)
    seconds = time.perf_counter() - began
    run = helm.run
    assert run is not None
    return Made(
        made.save(picture, folder / f"{stem}.png"),
        story.contact_sheet(folder / f"{stem}.sheet.png"),
        story.animation(folder / f"{stem}.gif", fps=6),
        made,
        seconds,
        run.advances,
        run.reason if run.status == "stopped" else "",
    )


def _side(helm: Helm, recipe: Recipe) -> int:
    """The longer side of the picture, in pixels."""
    given = max(recipe.width or 0, recipe.height or 0)
    if given or helm.card:
        return given or (helm.card.resolution if helm.card else 0)
    size = getattr(getattr(helm.pipe, "unet", None), "config", {}).get("sample_size") or 64
    return int(size) * int(getattr(helm.pipe, "vae_scale_factor", 8))


def slug(text: str) -> str:
    """A prompt as a file name: letters and digits of any script, joined by dashes, at most 60."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60].strip("-") or "picture"
