"""A fit on disk while it goes on, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import replacing
from ..grids import Grid
from ..process import Process, double
from .fit import State
from .teacher import Targets


class Store:
    """The folder of a fit. `settings`: what makes it this fit and no other; a folder of another one is not read."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def targets(self) -> Targets | None:
        """The converged samples, where they were made already."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / "targets.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("key") != self.key:
                    return None
                samples = tuple(json.loads(meta["samples"]))
                result, change = file.get_tensor("result"), file.get_tensor("change")
                return Targets(samples, result, change, int(meta["steps"]), float(meta["seconds"]), int(meta["calls"]))
        except (SafetensorError, KeyError, ValueError):
            return None  # made again

    def keep_targets(self, made: Targets) -> None:
        """Write the converged samples."""
        told = {name: str(getattr(made, name)) for name in ("steps", "seconds", "calls")}
        meta = {"key": self.key, "samples": json.dumps(made.samples), **told}
        tensors = {"result": made.result.contiguous(), "change": made.change.contiguous()}
        write_tensors(self.folder / TARGETS, tensors, meta)

    def read(self, steps: int, process: Process) -> tuple[str, Grid, State] | None:
        """Where the fit for so many steps began and where it was."""
        try:
            data = json.loads((self.folder / f"{steps}.json").read_text("utf-8"))
            if data.pop("key") != self.key:
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
        data |= {"key": self.key, "start": label, "levels": [v.tolist() for v in (grid.alpha, grid.sigma, grid.time)]}
        with replacing(self.folder / f"{steps}.json") as temporary:
            temporary.write_text(json.dumps(data), "utf-8")

    def clear(self) -> None:
        """Remove the folder; the fit is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
