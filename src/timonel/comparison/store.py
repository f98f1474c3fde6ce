"""The folder of a comparison: what was computed stays, and is found again by the name of its
recipe.

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
from . import pictures, rows
from .measure import MEASURES

TABLE, VERSION = "results.sqlite", 1
OURS = {
    TABLE, f"{TABLE}-journal", rows.BEFORE, rows.KEPT, "index.html", "pictures", "stories",
    "latents",
}  # fmt: skip
NEW = f"""SELECT at, outcome FROM runs WHERE at > ? AND typeof(outcome) = 'text' AND typeof(at) = 'integer'
    AND length(outcome) < {reading.TEXT} ORDER BY at"""
NAME = re.compile(r"[\w-]{1,64}")  # of a run, which is that of its files
KINDS, STATUSES = ("cell", "reference"), ("done", "failed")
WAIT = 60.0  # seconds that a writer waits for another
TOLD = 32  # previews that a run shows at most
CREATE = """CREATE TABLE IF NOT EXISTS runs
    (at INTEGER PRIMARY KEY, id TEXT UNIQUE, kind TEXT, status TEXT, outcome TEXT)"""
# what ended well is never replaced by a failure; `at` grows with every change, so that a reader
# finds what is new
KEEP = """INSERT INTO runs VALUES ((SELECT coalesce(max(at), 0) + 1 FROM runs), ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET at = (SELECT max(at) + 1 FROM runs), kind = excluded.kind,
    status = excluded.status, outcome = excluded.outcome WHERE excluded.status = 'done' OR runs.status <> 'done'"""


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
        told = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("recipe", "measures")
        }
        recipe, guidance = self.recipe, self.recipe.guidance
        named = {
            "model": recipe.model, "prompt": recipe.prompt, "image": recipe.image,
            "seed": recipe.seed,
            "sampler": recipe.sampler, "grid": recipe.grid, "steps": recipe.steps,
            "noise": recipe.noise,
            "guidance": None if guidance is None or isinstance(guidance.scale,
            list) else guidance.scale,
            "guidance_until": None if guidance is None else guidance.stop,
        }  # fmt: skip
        return (
            told
            | named
            | {m: self.measures.get(m) for m in MEASURES}
            | {"recipe": recipe.model_dump_json()}
        )

    @classmethod
    def of(cls, row: dict[str, Any]) -> Outcome:
        """From a row. Raises `ValueError` where it is none."""
        return _outcome(row)


def _outcome(row: Any) -> Outcome:
    """What a row says, each value held against its type."""
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}")
    known = {f.name for f in fields(Outcome)} - {"recipe", "measures"}
    measures = {m: row[m] for m in MEASURES if row.get(m) is not None}
    told = {k: v for k, v in row.items() if k in known}
    recipe = Recipe.model_validate(reading.parsed(row.get("recipe")))
    made: Outcome = _checker().validate_python({**told, "measures": measures, "recipe": recipe})
    counts = (
        made.nfe,
        made.halves,
        made.halves_saved,
        made.frames,
        made.steps_told,
        made.width,
        made.height,
    )
    if not all(NAME.fullmatch(name) for name in (made.id, made.reference or "none")):
        raise ValueError(f"{made.id!r} and {made.reference!r} are no names of runs")
    if (
        made.kind not in KINDS
        or made.status not in STATUSES
        or not all(0 <= n < 2**31 for n in counts)
    ):
        raise ValueError(f"the row of {made.id!r} is no run's")
    return made


@cache
def _checker() -> TypeAdapter[Outcome]:
    return TypeAdapter(Outcome)


def _ours(name: str) -> bool:
    """Whether a report may hold a file of this name; an exported table is welcome."""
    return name in OURS or name.startswith(".") or name.endswith(".parquet")


class Store:
    """The folder at `root`. Raises `ArgumentError` where it holds something else than a comparison."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if root.is_dir():
            foreign = sorted(p.name for p in root.iterdir() if not _ours(p.name))
            if foreign:
                raise ArgumentError(
                    f"{str(root)!r} holds something else ({foreign[0]!r}): give an empty folder"
                )
            links = sorted(p.name for p in root.iterdir() if p.name in OURS and p.is_symlink())
            if links:
                raise ArgumentError(
                    f"{links[0]!r} in {str(root)!r} is a link to elsewhere: give a folder of"
                    " its own"
                )
        elif root.exists():
            raise ArgumentError(f"{str(root)!r} is a file; give a folder")
        self.outcomes: dict[str, Outcome] = {}
        self.small: dict[str, list[str]] = {}  # what the page shows of a picture, by the run
        self._seen = 0
        self.refresh()

    # -- rows ----------------------------------------------------------------------------------
    @contextmanager
    def _open(self, kind: str) -> Iterator[sqlite3.Connection]:
        """The table, in one transaction of this kind. Raises `ArgumentError` where it cannot be
        read or written.
        """
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
            raise ArgumentError(
                f"{str(path)!r} cannot be read: {error}; delete it to begin anew"
            ) from error

    def refresh(self) -> None:
        """Read what other processes wrote meanwhile, and the table of before sqlite."""
        if (self.root / TABLE).is_file():
            with self._open("DEFERRED") as table:
                schema = table.execute(
                    "SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL"
                ).fetchall()
                if schema and schema != [
                    ("table", "runs")
                ]:  # a view or a trigger could be anything
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
            reason = " ".join(str(error).split())[:MOST_SHOWN]
            where = str(self.root / file)
            raise ArgumentError(
                f"{where!r} cannot be read: {reason}; delete it to begin anew"
            ) from error

    def done(self, name: str) -> Outcome | None:
        """The outcome of a run that ended well before, and whose files are still there."""
        found = self.outcomes.get(name)
        return found if found is not None and found.status == "done" and self.whole(found) else None

    def whole(self, outcome: Outcome) -> bool:
        """Whether the files of a run that ended well are there: somebody may have deleted pictures."""
        files = [self.picture(outcome), self.latents(outcome.id)]
        files += [self.story(outcome.id)] if outcome.steps_told else []
        return all(reading.inside(self.root, path) for path in files)

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Write the rows of outcomes; their files were written before."""
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
        """Write a run's files. `pixels` (3, H, W) or (F, 3, H, W), `story` (steps, 3, h, w), in
        0..1.
        """
        write_tensors(self.latents(outcome.id), {"latents": latents.float().contiguous()})
        if pixels.ndim == 4:
            outcome.frames = len(pixels)
            write_video([to_image(frame) for frame in pixels], self.picture(outcome))
        else:
            told = outcome.recipe.model_copy(update={"versions": versions()})
            told.save(to_image(pixels), self.picture(outcome))
        self.small.pop(outcome.id, None)
        if story is not None:
            self._tell(outcome, story)

    def _tell(self, outcome: Outcome, story: Tensor) -> None:
        seen = story[torch.linspace(0, len(story) - 1, min(TOLD, len(story))).round().long()]
        content, (outcome.width, outcome.height) = pictures.sprite(
            [to_image(frame) for frame in seen]
        )
        outcome.steps_told = len(seen)
        with replacing(self.story(outcome.id)) as temporary:
            temporary.write_bytes(content)

    # -- where things are ------------------------------------------------------------------------
    def picture(self, outcome: Outcome) -> Path:
        return self.root / "pictures" / f"{outcome.id}{'.webp' if outcome.frames else '.png'}"

    def story(self, name: str) -> Path:
        return self.root / "stories" / f"{name}.webp"

    def latents(self, name: str) -> Path:
        return self.root / "latents" / f"{name}.safetensors"

    def read_latents(self, name: str) -> Tensor:
        """The final latents (1, …) of a run. Raises `ArgumentError` where its file cannot be read."""
        from safetensors import SafetensorError

        try:
            found: Tensor = load_file(self._inside(self.latents(name)))["latents"]
        except (SafetensorError, OSError, KeyError) as error:
            raise _broken(self.latents(name), error) from error
        return found

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


def _broken(path: Path, reason: object) -> ArgumentError:
    return ArgumentError(
        f"{str(path)!r} cannot be read: {reason}; delete it, and the same command makes it again"
    )


def to_image(pixels: Tensor) -> Any:
    """(3, H, W) in 0..1 as a PIL image."""
    from PIL import Image

    return Image.fromarray(
        (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    )


def to_tensor(image: Any) -> Tensor:
    """A PIL image as (3, H, W) in 0..1."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def plain(value: Any) -> Any:
    """JSON has no infinity: None instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
