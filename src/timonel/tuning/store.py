"""A fit on disk while it goes on, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Set
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
from .gauss_newton import FitState
from .targets import Targets

TARGETS = "targets.safetensors"
MARK = "timonel-fit"  # the file that says whose the folder is
WRITTEN = re.compile(
    r"\d+\.json|targets\.safetensors|timonel-fit|\..+-timonel-\d+-[0-9a-f]{16}(\.\w+)?"
)


def usable(folder: Path) -> None:
    """Check that a folder is a fit's: it is marked, or empty, or not there.

    Raises:
        ArgumentError: Where it is somebody else's.
    """
    if not os.path.lexists(folder):
        return
    try:
        mine = folder.is_dir() and not folder.is_symlink()
        mine = mine and ((folder / MARK).is_file() or not any(folder.iterdir()))
    except OSError as error:
        raise ArgumentError(f"cannot read {str(folder)!r}: {error.strerror}") from error
    if not mine:
        raise ArgumentError(
            f"{str(folder)!r} is in the way: a fit keeps there what it has so far, and this was not"
            " made by one. Move it, or give another name to fit to"
        )


class FitStore:
    """The folder of a fit.

    Args:
        folder: Where it is.
        settings: What makes it this fit and no other; the files of another are not read.

    Raises:
        ArgumentError: As `usable`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        usable(folder)
        self.folder = folder
        text = json.dumps(settings, sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]

    def targets(self, samples: Set[int]) -> Targets | None:
        """The converged samples, where they were written before.

        Args:
            samples: Those that the fit has; others are not read.
        """
        from safetensors import SafetensorError, safe_open

        path = self.folder / TARGETS
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("key") != self.key:
                    return None
                numbers = tuple(whole("sample", s, 0) for s in reading.parsed(meta["samples"]))
                result, change = file.get_tensor("result"), file.get_tensor("change")
                seconds = finite("seconds", float(meta["seconds"]), 0)
                targets = Targets(
                    numbers, result, change, int(meta["steps"]), seconds, int(meta["calls"])
                )
                rest = {name: text for name, text in meta.items() if name != "digest"}
                same = meta.get("digest") == digest({"result": result, "change": change}, rest)
                same = same and set(numbers) <= samples and len(numbers) == len(result)
                return targets if same else None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            return None  # computed again

    def keep_targets(self, targets: Targets) -> None:
        """Write the converged samples."""
        numbers = {name: str(getattr(targets, name)) for name in ("steps", "seconds", "calls")}
        meta = {"key": self.key, "samples": json.dumps(targets.samples), **numbers}
        tensors = {"result": targets.result.contiguous(), "change": targets.change.contiguous()}
        self._mark()
        write_tensors(self.folder / TARGETS, tensors, {**meta, "digest": digest(tensors, meta)})

    def read(self, steps: int, process: Process) -> tuple[str, Grid, FitState] | None:
        """Where the fit for so many steps began and where it was; None where there is none.

        Args:
            steps: The number of steps.
            process: Of the model.
        """
        try:
            data = reading.parsed(reading.text(self.folder / f"{steps}.json"))
            if data.pop("key") != self.key or data.pop("digest") != digest({}, data):
                return None
            label, levels = data.pop("start"), [double(v) for v in data.pop("levels")]
            tensors = {name: double(data[name]) for name in ("theta", "best", "average")}
            curvature = None if data["curvature"] is None else double(data["curvature"])
            held = [(int(i), float(e)) for i, e in data["held"]]
            state = FitState(**{**data, **tensors, "curvature": curvature, "held": held})
            alpha, sigma, time = levels
            return label, Grid(process, alpha, sigma, time, label.partition("/")[2]), state
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # begun anew
            return None

    def keep(self, steps: int, label: str, grid: Grid, state: FitState) -> None:
        """Write where the fit for so many steps began and where it is.

        Args:
            steps: The number of steps.
            label: Name of the sampler where it began.
            grid: Its levels.
            state: Where it is.
        """
        data = {name: _plain(value) for name, value in vars(state).items()}
        levels = [v.tolist() for v in (grid.alpha, grid.sigma, grid.time)]
        data |= {"key": self.key, "start": label, "levels": levels}
        self._mark()
        with replacing(self.folder / f"{steps}.json") as temporary:
            sealed = {**data, "digest": digest({}, _unkeyed(data))}
            temporary.write_text(json.dumps(sealed), "utf-8")

    def _mark(self) -> None:
        """Make the folder, and write into it whose it is."""
        if not (self.folder / MARK).is_file():
            with replacing(self.folder / MARK) as temporary:
                text = "What a fit of timonel has so far; it goes when the fit is done.\n"
                temporary.write_text(text, "utf-8")

    def clear(self) -> None:
        """Remove what the fit has written, and the folder where nobody put more into it."""
        with suppress(OSError):
            if not (self.folder / MARK).is_file():
                return
            for path in list(self.folder.iterdir()):
                if WRITTEN.fullmatch(path.name) and path.name != MARK and not path.is_dir():
                    path.unlink()
            (self.folder / MARK).unlink()
            self.folder.rmdir()


def _unkeyed(data: Mapping[str, Any]) -> dict[str, Any]:
    """What `read` sees of the data: as JSON brings it back, and without the key."""
    unkeyed: dict[str, Any] = json.loads(json.dumps({k: v for k, v in data.items() if k != "key"}))
    return unkeyed


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
