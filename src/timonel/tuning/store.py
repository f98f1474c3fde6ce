"""A fit on disk while it goes on, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import reading
from ..core.grids import Grid
from ..core.process import Process, double
from ..core.saving import digest
from ..errors import ArgumentError, finite, whole
from ..files import replacing, write_tensors
from .gauss_newton import State
from .targets import Targets

TARGETS = "targets.safetensors"
MARK = "timonel-fit"  # the file that says whose the folder is
MADE = re.compile(
    r"\d+\.json|targets\.safetensors|timonel-fit|\..+-timonel-\d+-[0-9a-f]{16}(\.\w+)?"
)


def usable(folder: Path) -> None:
    """Raise `ArgumentError` where the folder of a fit is somebody else's: it is marked, or empty,
    or not there.
    """
    if not os.path.lexists(folder):
        return
    try:
        mine = (
            folder.is_dir()
            and not folder.is_symlink()
            and ((folder / MARK).is_file() or not any(folder.iterdir()))
        )
    except OSError as error:
        raise ArgumentError(f"cannot read {str(folder)!r}: {error.strerror}") from error
    if not mine:
        raise ArgumentError(
            f"{str(folder)!r} is in the way: a fit keeps there what it has so far, and this was not"
            " made by one. Move it, or give another name to fit to"
        )


class Store:
    """The folder of a fit. `settings`: what makes it this fit and no other; a folder of another one
    is not read.

    Raises `ArgumentError` as `usable`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        usable(folder)
        self.folder = folder
        self.key = hashlib.sha256(
            json.dumps(settings, sort_keys=True, default=str).encode()
        ).hexdigest()[:16]

    def targets(self) -> Targets | None:
        """The converged samples, where they were made already."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / TARGETS
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("key") != self.key:
                    return None
                samples = tuple(whole("sample", s, 0) for s in reading.parsed(meta["samples"]))
                result, change = file.get_tensor("result"), file.get_tensor("change")
                numbers = (
                    int(meta["steps"]),
                    finite("seconds", float(meta["seconds"]), 0),
                    int(meta["calls"]),
                )
                told = {name: text for name, text in meta.items() if name != "digest"}
                same = meta.get("digest") == digest({"result": result, "change": change}, told)
                return Targets(samples, result, change, *numbers) if same else None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            return None  # made again

    def keep_targets(self, made: Targets) -> None:
        """Write the converged samples."""
        told = {name: str(getattr(made, name)) for name in ("steps", "seconds", "calls")}
        meta = {"key": self.key, "samples": json.dumps(made.samples), **told}
        tensors = {"result": made.result.contiguous(), "change": made.change.contiguous()}
        self._mark()
        write_tensors(self.folder / TARGETS, tensors, {**meta, "digest": digest(tensors, meta)})

    def read(self, steps: int, process: Process) -> tuple[str, Grid, State] | None:
        """Where the fit for so many steps began and where it was."""
        try:
            data = reading.parsed(reading.text(self.folder / f"{steps}.json"))
            if data.pop("key") != self.key or data.pop("digest") != digest({}, data):
                return None
            label, levels = data.pop("start"), [double(v) for v in data.pop("levels")]
            told = {name: double(data[name]) for name in ("theta", "best", "average")}
            curvature = None if data["curvature"] is None else double(data["curvature"])
            held = [(int(i), float(e)) for i, e in data["held"]]
            state = State(**{**data, **told, "curvature": curvature, "held": held})
            alpha, sigma, time = levels
            return label, Grid(process, alpha, sigma, time, label.partition("/")[2]), state
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # begun anew
            return None

    def keep(self, steps: int, label: str, grid: Grid, state: State) -> None:
        """Write where the fit for so many steps began and where it is."""
        data = {name: _plain(value) for name, value in vars(state).items()}
        data |= {
            "key": self.key,
            "start": label,
            "levels": [v.tolist() for v in (grid.alpha, grid.sigma, grid.time)],
        }
        self._mark()
        with replacing(self.folder / f"{steps}.json") as temporary:
            temporary.write_text(
                json.dumps({**data, "digest": digest({}, _unkeyed(data))}), "utf-8"
            )

    def _mark(self) -> None:
        """Make the folder, and write into it whose it is."""
        if not (self.folder / MARK).is_file():
            with replacing(self.folder / MARK) as temporary:
                temporary.write_text(
                    "What a fit of timonel has so far; it goes when the fit is done.\n", "utf-8"
                )

    def clear(self) -> None:
        """Remove what the fit has written, for it is done; the folder too, unless somebody put more
        into it.
        """
        with suppress(OSError):
            if not (self.folder / MARK).is_file():
                return
            for path in list(self.folder.iterdir()):
                if MADE.fullmatch(path.name) and path.name != MARK and not path.is_dir():
                    path.unlink()
            (self.folder / MARK).unlink()
            self.folder.rmdir()


def _unkeyed(data: Mapping[str, Any]) -> dict[str, Any]:
    """What `read` sees of the data: as JSON brings it back, and without the key."""
    made: dict[str, Any] = json.loads(json.dumps({k: v for k, v in data.items() if k != "key"}))
    return made


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
