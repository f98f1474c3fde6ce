"""The folder of a comparison: what was computed stays, and is found again by the name of its recipe.

index.html            the page
results.parquet       a row for every run that ended, references included; rewritten whole, so never half a table
pictures/ID.png       the picture with its recipe in it (`timonel replay`); of a video ID.webp
stories/ID.webp       the previews over the steps, side by side
latents/ID.safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ArgumentError
from ..files import replacing
from ..recipe import Recipe, versions
from ..video import write as write_video
from .measure import MEASURES

if TYPE_CHECKING:
    import pyarrow

TABLE = "results.parquet"
OURS = {TABLE, "index.html", "pictures", "stories", "latents"}
SPRITE, TOLD = 96, 100  # pixels of the longer side of a preview, and how many of them a run shows at most


@dataclass
class Outcome:
    """What is known of one run that ended. `kind`: cell or reference."""

    id: str
    kind: str
    status: str  # done or failed
    recipe: Recipe
    reason: str = ""
    nfe: int = 0
    halves: int = 0
    halves_saved: int = 0
    seconds: float = 0.0
    stochastic: bool = False
    frames: int = 0  # of a video
    steps_told: int = 0  # pictures of the story
    width: int = 0  # of one of them
    height: int = 0
    reference: str = ""  # the run that a cell is measured against
    change: float | None = None  # of a reference: distance to the one with half the steps
    levels: list[float] = field(default_factory=list)  # sigma / alpha of the steps, 0 at last
    times: list[float] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Flat, for a table: the recipe's fields as columns, and the whole recipe as JSON."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("recipe", "measures")}
        recipe, guidance = self.recipe, self.recipe.guidance
        named = {
            "model": recipe.model, "prompt": recipe.prompt, "image": recipe.image, "seed": recipe.seed,
            "sampler": recipe.sampler, "grid": recipe.grid, "steps": recipe.steps, "noise": recipe.noise,
            "guidance": None if guidance is None or isinstance(guidance.scale, list) else guidance.scale,
            "guidance_until": None if guidance is None else guidance.stop,
        }  # fmt: skip
        return told | named | {m: self.measures.get(m) for m in MEASURES} | {"recipe": recipe.model_dump_json()}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Outcome:
        """From a row of the table."""
        known = {f.name for f in fields(cls)} - {"recipe", "measures"}
        measures = {m: row[m] for m in MEASURES if row.get(m) is not None}
        recipe = Recipe.model_validate(json.loads(row["recipe"]))
        return cls(recipe=recipe, measures=measures, **{k: v for k, v in row.items() if k in known})


class Store:
    """The folder at `root`. Raises `ArgumentError` where it holds something else than a comparison."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.is_dir():
            foreign = sorted(p.name for p in root.iterdir() if p.name not in OURS and not p.name.startswith("."))
            if foreign:
                raise ArgumentError(f"{str(root)!r} holds something else ({foreign[0]!r}): give an empty folder")
        elif root.exists():
            raise ArgumentError(f"{str(root)!r} is a file; give a folder")
        self.outcomes: dict[str, Outcome] = {o.id: o for o in self._read()}

    def _read(self) -> Iterable[Outcome]:
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            held = (self.root / TABLE).read_bytes()  # at once: another process may put a newer table in its place
        except FileNotFoundError:
            return []
        try:
            return [Outcome.of(row) for row in parquet.read_table(pyarrow.BufferReader(held)).to_pylist()]
        except Exception as error:
            raise ArgumentError(
                f"{str(self.root / TABLE)!r} cannot be read: {error}; delete it to begin anew"
            ) from error

    def done(self, name: str) -> Outcome | None:
        """The outcome of a run that ended well before."""
        found = self.outcomes.get(name)
        return found if found is not None and found.status == "done" else None

    # -- writing -------------------------------------------------------------------------------
    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Put outcomes into the table; their files were written before."""
        import pyarrow
        import pyarrow.parquet as parquet

        self.outcomes |= {outcome.id: outcome for outcome in outcomes}
        table = pyarrow.Table.from_pylist([o.row() for o in self.outcomes.values()], schema=schema())
        with replacing(self.root / TABLE) as temporary:
            parquet.write_table(table, temporary)

    def save(self, outcome: Outcome, latents: Tensor, pixels: Tensor, story: Tensor | None) -> None:
        """Write a run's files. `pixels` (3, H, W) or (F, 3, H, W), `story` (steps, 3, h, w), in 0..1."""
        with replacing(self.latents(outcome.id)) as temporary:
            save_file({"latents": latents.float().contiguous()}, temporary)
        if pixels.ndim == 4:
            outcome.frames = len(pixels)
            write_video([to_image(frame) for frame in pixels], self.picture(outcome))
        else:
            told = outcome.recipe.model_copy(update={"versions": versions()})
            told.save(to_image(pixels), self.picture(outcome))
        if story is not None:
            self._tell(outcome, story)

    def _tell(self, outcome: Outcome, story: Tensor) -> None:
        from PIL import Image

        shown = story[torch.linspace(0, len(story) - 1, min(TOLD, len(story))).round().long()]
        images = [to_image(frame) for frame in shown]
        share = min(1.0, SPRITE / max(images[0].size))
        width, height = (max(1, round(side * share)) for side in images[0].size)
        sprite = Image.new("RGB", (width * len(images), height))
        for k, image in enumerate(images):
            sprite.paste(image.resize((width, height), Image.Resampling.LANCZOS), (k * width, 0))
        outcome.steps_told, outcome.width, outcome.height = len(images), width, height
        with replacing(self.story(outcome.id)) as temporary:
            sprite.save(temporary, format="WEBP", quality=88)

    # -- where things are ------------------------------------------------------------------------
    def picture(self, outcome: Outcome) -> Path:
        return self.root / "pictures" / f"{outcome.id}{'.webp' if outcome.frames else '.png'}"

    def story(self, name: str) -> Path:
        return self.root / "stories" / f"{name}.webp"

    def latents(self, name: str) -> Path:
        return self.root / "latents" / f"{name}.safetensors"

    def read_latents(self, name: str) -> Tensor:
        """The final latents (1, …) of a run."""
        found: Tensor = load_file(self.latents(name))["latents"]
        return found

    def read_pixels(self, outcome: Outcome) -> Tensor:
        """The picture (3, H, W), or the frames (F, 3, H, W), in 0..1."""
        from PIL import Image, ImageSequence

        with Image.open(self.picture(outcome)) as opened:
            frames = [to_tensor(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]
        return torch.stack(frames) if outcome.frames else frames[0]


def to_image(pixels: Tensor) -> Any:
    """(3, H, W) in 0..1 as a PIL image."""
    from PIL import Image

    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy())


def to_tensor(image: Any) -> Tensor:
    """A PIL image as (3, H, W) in 0..1."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def schema() -> pyarrow.Schema:
    """The columns of the table."""
    import pyarrow as pa

    text = ("id", "kind", "status", "reason", "reference", "model", "prompt", "image", "sampler", "grid", "noise")
    whole = ("nfe", "halves", "halves_saved", "frames", "steps_told", "width", "height", "seed", "steps")
    real = ("seconds", "change", "guidance", "guidance_until", *MEASURES)
    kinds = dict.fromkeys(text, pa.string()) | dict.fromkeys(whole, pa.int64()) | dict.fromkeys(real, pa.float64())
    lists = dict.fromkeys(("levels", "times"), pa.list_(pa.float64()))
    return pa.schema([*kinds.items(), *lists.items(), ("stochastic", pa.bool_()), ("recipe", pa.string())])


def plain(value: Any) -> Any:
    """JSON has no infinity: None instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
