"""The folder of a comparison: every run that ended, by the name of its recipe.

index.html            the page, with small pictures in it
results.sqlite        a row for every run that ended, references included
pictures/ID.png       the picture with its recipe in it (`timonel replay`); of a video ID.webp
stories/ID.webp       the previews over the steps, side by side
latents/ID.safetensors

Several processes may write at once: a row is one transaction, and it is written after its files.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from .. import picture_files, reading
from ..errors import MOST_SHOWN, ArgumentError
from ..files import replacing, write_tensors
from ..make.recipe import Recipe
from ..make.video import write as write_video
from ..pipelines.recipe.data import versions
from . import rows
from .measure import MEASURES
from .webp import sprite

TABLE, VERSION = "results.sqlite", 2
OWN = {TABLE, f"{TABLE}-journal", rows.BEFORE, rows.KEPT}
OWN |= {"index.html", "pictures", "stories", "latents"}
# columns of earlier versions, and their names now
FORMER = {
    "halves": "evaluations",
    "halves_saved": "evaluations_saved",
    "steps_told": "previews",
}
NEW = f"""SELECT at, outcome FROM runs WHERE at > ? AND typeof(outcome) = 'text'
    AND typeof(at) = 'integer' AND length(outcome) < {reading.TEXT} ORDER BY at"""
NAME = re.compile(r"[\w-]{1,64}")  # of a run, which is that of its files
KINDS, STATUSES = ("cell", "reference"), ("done", "failed")
WAIT = 60.0  # seconds that a writer waits for another
PREVIEWS = 32  # that a run shows at most
CREATE = """CREATE TABLE IF NOT EXISTS runs
    (at INTEGER PRIMARY KEY, id TEXT UNIQUE, kind TEXT, status TEXT, outcome TEXT)"""
# what ended well is never replaced by a failure; `at` grows with every change, so that a reader
# finds what is new
KEEP = """INSERT INTO runs VALUES ((SELECT coalesce(max(at), 0) + 1 FROM runs), ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET at = (SELECT max(at) + 1 FROM runs), kind = excluded.kind,
    status = excluded.status, outcome = excluded.outcome
    WHERE excluded.status = 'done' OR runs.status <> 'done'"""


@dataclass
class Outcome:
    """What is known of one run that ended.

    Attributes:
        id: the name of the run, which is that of its files.
        kind: "cell" or "reference".
        status: "done" or "failed".
        recipe: what was computed.
        reason: of a failure.
        nfe: rows of the table that were computed, each one or two evaluations.
        evaluations: network evaluations of one sample, conditional and unconditional ones.
        evaluations_saved: those that a guidance cutoff or a forecast left out.
        seconds: its share of the calls that it took part in, and its solver steps.
        stochastic: whether its sampler draws noise.
        frames: of a video, 0 of a picture.
        previews: how many pictures `stories/ID.webp` holds.
        width, height: pixels of one of these.
        reference: the run that a cell is measured against.
        change: of a reference, latent RMSE to the one with half the steps.
        levels: sigma / alpha of the steps, the last 0.
        times: the model's times of the steps.
        measures: distances to the reference, see `measure.MEASURES`.
    """

    id: str
    kind: str
    status: str
    recipe: Recipe
    reason: str = ""
    nfe: int = 0
    evaluations: int = 0
    evaluations_saved: int = 0
    seconds: float = 0.0
    stochastic: bool = False
    frames: int = 0
    previews: int = 0
    width: int = 0
    height: int = 0
    reference: str = ""
    change: float | None = None
    levels: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Flat, for a table: the recipe's fields as columns, and the whole recipe as JSON."""
        recipe, guidance = self.recipe, self.recipe.guidance
        scale = None if guidance is None else guidance.scale
        columns = ("model", "prompt", "image", "seed", "sampler", "grid", "steps", "noise")
        return {
            **{name: getattr(self, name) for name in _columns()},
            **{name: getattr(recipe, name) for name in columns},
            "guidance": None if isinstance(scale, list) else scale,
            "guidance_until": None if guidance is None else guidance.stop,
            **{name: self.measures.get(name) for name in MEASURES},
            "recipe": recipe.model_dump_json(),
        }

    @classmethod
    def of(cls, row: Any) -> Outcome:
        """From a row, of an earlier version too; each value is checked against its type.

        Raises:
            ValueError: it is no row of a run.
        """
        if not isinstance(row, dict):
            raise ValueError(f"a row is a {type(row).__name__}")
        row = {FORMER.get(name, name): value for name, value in row.items()}
        outcome: Outcome = _checker().validate_python({
            **{name: row[name] for name in _columns() if name in row},
            "measures": {name: row[name] for name in MEASURES if row.get(name) is not None},
            "recipe": Recipe.model_validate(reading.parsed(row.get("recipe"))),
        })  # fmt: skip
        if not all(NAME.fullmatch(name) for name in (outcome.id, outcome.reference or "none")):
            raise ValueError(f"{outcome.id!r} and {outcome.reference!r} are no names of runs")
        counts = [value for value in vars(outcome).values() if type(value) is int]
        known = outcome.kind in KINDS and outcome.status in STATUSES
        if not known or not all(0 <= n < 2**31 for n in counts):
            raise ValueError(f"the row of {outcome.id!r} is no run's")
        return outcome


@cache
def _columns() -> tuple[str, ...]:
    """The fields of an outcome that a row has as they are."""
    return tuple(f.name for f in fields(Outcome) if f.name not in ("recipe", "measures"))


@cache
def _checker() -> TypeAdapter[Outcome]:
    return TypeAdapter(Outcome)


class Store:
    """The folder of a comparison.

    Args:
        root: the folder; it is created with the first run that is kept.

    Attributes:
        outcomes: every run that ended, by its name.
        small: what the page shows of a picture, by the run's name.

    Raises:
        ArgumentError: the folder holds something else than a comparison.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.is_dir():
            _only_ours(root)
        elif root.exists():
            raise ArgumentError(f"{str(root)!r} is a file; give a folder")
        self.outcomes: dict[str, Outcome] = {}
        self.small: dict[str, list[str]] = {}
        self._seen = 0
        self.refresh()

    # -- rows ----------------------------------------------------------------------------------
    @contextmanager
    def _open(self, kind: str) -> Iterator[sqlite3.Connection]:
        """The table in one transaction of this kind; `ArgumentError` where that fails."""
        path = self.root / TABLE
        try:
            with closing(sqlite3.connect(path, timeout=WAIT, isolation_level=None)) as table:
                table.execute(f"BEGIN {kind}")
                table.execute("PRAGMA trusted_schema = OFF")
                (version,) = table.execute("PRAGMA user_version").fetchone()
                if version > VERSION:
                    raise ArgumentError(
                        f"{str(path)!r} is of a newer timonel: upgrade, or give another folder"
                    )
                yield table
                table.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise ArgumentError(
                f"cannot use {str(path)!r}: {error}; what it holds stays"
            ) from error
        except sqlite3.DatabaseError as error:
            raise _unreadable(path, error) from error

    def refresh(self) -> None:
        """Read what other processes wrote meanwhile, and the table of before sqlite."""
        if (self.root / TABLE).is_file():
            with self._open("DEFERRED") as table:
                query = "SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL"
                schema = table.execute(query).fetchall()
                if schema and schema != [("table", "runs")]:  # a view or trigger could be anything
                    raise sqlite3.DatabaseError(f"it holds {schema[-1][0]} {schema[-1][1]!r}")
                fresh = table.execute(NEW, (self._seen,)).fetchall() if schema else []
            for at, text in fresh:
                outcome = self._read(TABLE, partial(reading.parsed, text, finite=False))
                self.outcomes[outcome.id], self._seen = outcome, at
        for row in rows.before(self.root):
            outcome = self._read(rows.BEFORE, partial(dict, row))
            self.outcomes.setdefault(outcome.id, outcome)

    def _read(self, file: str, row: Callable[[], Any]) -> Outcome:
        try:
            return Outcome.of(row())
        except (ValueError, TypeError) as error:
            raise _unreadable(
                self.root / file, " ".join(str(error).split())[:MOST_SHOWN]
            ) from error

    def done(self, name: str) -> Outcome | None:
        """The outcome of a run that ended well, and whose files are still there."""
        outcome = self.outcomes.get(name)
        if outcome is None or outcome.status != "done" or not self.whole(outcome):
            return None
        return outcome

    def whole(self, outcome: Outcome) -> bool:
        """Whether the files of a run that ended well are there: a picture may have been deleted."""
        files = [self.picture(outcome), self.latents(outcome.id)]
        files += [self.story(outcome.id)] if outcome.previews else []
        return all(reading.inside(self.root, path) for path in files)

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Write the rows of outcomes; their files are written before, by `save`."""
        known = list(self.outcomes.values()) if (self.root / rows.BEFORE).is_file() else []
        changed = {outcome.id: outcome for outcome in (*known, *outcomes)}
        with self._open("IMMEDIATE") as table:
            table.execute(CREATE)
            table.execute(f"PRAGMA user_version = {VERSION}")
            table.executemany(
                KEEP, [(o.id, o.kind, o.status, json.dumps(o.row())) for o in changed.values()]
            )
        self.outcomes |= changed
        rows.put_away(self.root)

    # -- files ---------------------------------------------------------------------------------
    def save(self, outcome: Outcome, latents: Tensor, pixels: Tensor, story: Tensor | None) -> None:
        """Write a run's files, and note their sizes in its outcome.

        Args:
            outcome: of the run.
            latents: final ones, (1, …).
            pixels: a picture (3, H, W) or frames (F, 3, H, W), in 0..1.
            story: previews (steps, 3, h, w), in 0..1.
        """
        write_tensors(self.latents(outcome.id), {"latents": latents.float().contiguous()})
        if pixels.ndim == 4:
            outcome.frames = len(pixels)
            write_video([to_image(frame) for frame in pixels], self.picture(outcome))
        else:
            recipe = outcome.recipe.model_copy(update={"versions": versions()})
            recipe.save(to_image(pixels), self.picture(outcome))
        self.small.pop(outcome.id, None)
        if story is not None:
            self._save_story(outcome, story)

    def _save_story(self, outcome: Outcome, story: Tensor) -> None:
        count = min(PREVIEWS, len(story))
        shown = story[torch.linspace(0, len(story) - 1, count).round().long()]
        content, (outcome.width, outcome.height) = sprite([to_image(frame) for frame in shown])
        outcome.previews = len(shown)
        with replacing(self.story(outcome.id)) as temporary:
            temporary.write_bytes(content)

    # -- where things are ------------------------------------------------------------------------
    def picture(self, outcome: Outcome) -> Path:
        """The file of a run's picture or video."""
        return self.root / "pictures" / f"{outcome.id}{'.webp' if outcome.frames else '.png'}"

    def story(self, name: str) -> Path:
        """The file of a run's previews."""
        return self.root / "stories" / f"{name}.webp"

    def latents(self, name: str) -> Path:
        """The file of a run's final latents."""
        return self.root / "latents" / f"{name}.safetensors"

    def read_latents(self, name: str) -> Tensor:
        """The final latents (1, …) of a run. Raises `ArgumentError` for a damaged file."""
        from safetensors import SafetensorError

        try:
            latents: Tensor = load_file(self._inside(self.latents(name)))["latents"]
        except (SafetensorError, OSError, KeyError) as error:
            raise _broken(self.latents(name), error) from error
        return latents

    def read_pixels(self, outcome: Outcome) -> Tensor:
        """The picture (3, H, W), or the frames (F, 3, H, W), in 0..1. Raises as `read_latents`."""
        path = self._inside(self.picture(outcome))
        try:
            frames = picture_files.frames(path, lambda frame: to_tensor(frame.convert("RGB")))
            return torch.stack(frames) if outcome.frames else frames[0]
        except (ArgumentError, RuntimeError) as error:
            raise _broken(path, error) from error

    def _inside(self, path: Path) -> Path:
        if not reading.inside(self.root, path):
            raise _broken(path, "it is no file of this folder")
        return path


def _only_ours(root: Path) -> None:
    """Raise `ArgumentError` where a folder holds other files, or links; exports are welcome."""
    for name in sorted(path.name for path in root.iterdir()):
        if name not in OWN and not name.startswith(".") and not name.endswith(".parquet"):
            raise ArgumentError(
                f"{str(root)!r} holds something else ({name!r}): give an empty folder"
            )
    for name in sorted(OWN):
        if (root / name).is_symlink():
            raise ArgumentError(
                f"{name!r} in {str(root)!r} is a link to elsewhere: give a folder of its own"
            )


def _unreadable(path: Path, reason: object) -> ArgumentError:
    return ArgumentError(f"{str(path)!r} cannot be read: {reason}; delete it to begin anew")


def _broken(path: Path, reason: object) -> ArgumentError:
    return ArgumentError(
        f"{str(path)!r} cannot be read: {reason}; delete it, and the same command makes it again"
    )


def to_image(pixels: Tensor) -> Any:
    """(3, H, W) in 0..1 as a PIL image."""
    from PIL import Image

    whole = (pixels.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(whole.permute(1, 2, 0).contiguous().cpu().numpy())


def to_tensor(image: Any) -> Tensor:
    """A PIL image as (3, H, W) in 0..1."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def plain(value: Any) -> Any:
    """A value for JSON, which has no infinity: None instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
