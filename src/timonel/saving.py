"""A run on disk: one safetensors file with the tensors, and the rest as JSON in its metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import ArgumentError
from .errors import path as file_of
from .files import write_tensors
from .guidance import Guidance
from .noise import Noise, Seeded, source
from .program import Shape, State
from .run import Run
from .table import Table

FORMAT = "timonel-run-2"
OWN = "own"  # a noise source that only the caller can make again


def save(run: Run, path: str | PathLike[str]) -> None:
    """Write `run` atomically. A noise source other than seeds has to be given again to `load`."""
    start, (here, clean, called, _) = run.snapshot()
    tensors = {f"start.{k}": v for k, v in _tensors(start).items()} | _tensors(here)
    if clean is not None:
        tensors["denoised"] = clean.detach().contiguous().clone()
    data = {
        "format": FORMAT,
        "row": here.row,
        "table": run.table.to_dict(),
        "prediction": run.prediction,
        "noise": _source(run.noise),
        "called": called,
        "guidance": None if run.guidance is None else asdict(run.guidance),
        "guided_since": run.guided_since,
        "shaped": run.shape is not None,
        "history": len(here.history),
        "differences": len(here.differences),
    }
    write_tensors(path, tensors, {"timonel": json.dumps(data)})


def load(
    path: str | PathLike[str],
    *,
    noise: Noise | None = None,
    shape: Shape | None = None,
    hooks: Sequence[Any] = (),
    keep: int = 0,
    context: Any = None,
    device: str = "cpu",
) -> Run:
    """The run saved at `path`, ready to advance. Raises `ArgumentError` on a file that is not one."""
    from safetensors import SafetensorError, safe_open

    file_of("path", path)
    if not Path(path).is_file():
        raise ArgumentError(f"there is no saved run at {str(path)!r}")
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            data = json.loads((file.metadata() or {}).get("timonel", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ArgumentError(f"{str(path)!r} is not a saved run: {error}") from error
    written = data.get("format") if isinstance(data, dict) else None
    if written != FORMAT:
        raise ArgumentError(f"{str(path)!r} is not a saved run of this version (format {written!r})")
    try:
        made, shaped, scales = (data[k] for k in ("noise", "shaped", "guidance"))
        table, prediction = Table.from_dict(data["table"]), data["prediction"]
        told = data.get("differences", 0)  # files of runs before there were any
        places = (("start.", 0, 0), ("", data["row"], told))
        states = [_state(tensors, prefix, row, data["history"], count) for prefix, row, count in places]
    except (KeyError, TypeError) as error:
        raise ArgumentError(f"{str(path)!r} is not a saved run: it lacks {error}") from error
    if made == OWN and noise is None:
        raise ArgumentError(f"{str(path)!r} was run with its own noise source; give it again: Run.load(path, noise=…)")
    if shaped and shape is None:
        raise ArgumentError(f"{str(path)!r} was run with shape=; give it again: Run.load(path, shape=…)")
    if made is not None and noise is None:
        noise = source(**made, table=table)
    run = Run(
        table, prediction, noise=noise, guidance=None if scales is None else _guidance(scales),
        hooks=hooks, shape=shape, keep=keep, context=context,
    )  # fmt: skip
    # files of runs before predictions and changes of guidance were saved have neither
    start, here = states
    run.restore(start, here, tensors.get("denoised"), data.get("called"), data.get("guided_since", 0))
    return run


def _source(noise: Noise | None) -> dict[str, Any] | str | None:
    """A noise source as the arguments of `noise.source`, `OWN` where it is the caller's."""
    if isinstance(noise, Seeded):
        return {"kind": noise.kind, "seeds": list(noise.seeds), "device": noise.device}
    return None if noise is None else OWN


def _tensors(state: State) -> dict[str, Tensor]:
    named = {"x": state.x, "base": state.base} | {f"h{i + 1}": h for i, h in enumerate(state.history)}
    named |= {f"d{i}": d for i, d in enumerate(state.differences)}
    # cloned: safetensors refuses tensors that share memory, as x and base do at the start
    return {name: t.detach().contiguous().clone() for name, t in named.items() if t is not None}


def _state(tensors: dict[str, Tensor], prefix: str, row: int, history: int, differences: int) -> State:
    predictions = tuple(tensors.get(f"{prefix}h{i + 1}") for i in range(history))
    told = tuple(tensors[f"{prefix}d{i}"] for i in range(differences))
    return State(row, tensors[f"{prefix}x"], tensors.get(f"{prefix}base"), predictions, told)


def _guidance(data: dict[str, Any]) -> Guidance:
    scale = data["scale"]
    return Guidance(**{**data, "scale": tuple(scale) if isinstance(scale, list) else scale})
