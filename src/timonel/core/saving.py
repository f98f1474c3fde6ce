"""A run on disk: one safetensors file with the tensors, and the rest as JSON in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from .. import reading
from ..errors import ArgumentError, among
from ..errors import path as file_of
from ..files import write_tensors
from . import drawn, tree
from . import noise as noises
from .fitted.sampler_file import Fitted
from .guidance import Guidance
from .noise import Noise, Seeded, source
from .program import Shape, State
from .sampler import Sampler
from .table import Table

if TYPE_CHECKING:
    from .run import Run

FORMAT = "timonel-run-2"
OWN = "own"  # a noise source that only the caller can make again
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
Count = Annotated[int, Field(ge=0, le=2**31)]


class SavedNoise(BaseModel):
    """The arguments of `noise.source`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str
    seeds: list[Annotated[int, Field(ge=0, le=noises.MOST)]]
    device: str


class SavedStretch(BaseModel):
    """A `drawn.Stretch`, whose states are tensors of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    devices: list[str]
    order: list[Count]
    shape: list[Count]
    dtype: str
    rows: list[Count]


class SavedDraws(BaseModel):
    """A `drawn.DrawnNoise`, whose states are tensors of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["drawn"]
    stretches: list[SavedStretch]


class SavedTree(BaseModel):
    """The arguments of `tree.TreeNoise`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["torchsde"]
    entropy: Annotated[int, Field(ge=0, le=tree.MOST)]
    low: float
    high: float


class Saved(BaseModel):
    """What a file says of a run beside its tensors. Files of before have no `digest` and may lack
    what has a default.

    `history`, `differences`: how many tensors of each the run remembers. `sampler`: what a
    pipeline's list was made with. `digest`: of everything in the file.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    row: Count
    table: dict[str, Any]
    prediction: str
    noise: SavedNoise | SavedDraws | SavedTree | Literal["own"] | None
    called: Count | None = None
    guidance: dict[str, Any] | None
    guided_since: Count = 0
    shaped: bool
    history: Count
    differences: Count = 0
    sampler: dict[str, Any] | None = None
    digest: str | None = None


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
        "noise": _source(run.noise, tensors),
        "called": called,
        "guidance": None if run.guidance is None else asdict(run.guidance),
        "guided_since": run.guided_since,
        "shaped": run.shape is not None,
        "history": len(here.history),
        "differences": len(here.differences),
        "sampler": None if run.sampler is None else _spelled(run.sampler),
    }
    write_tensors(path, tensors, {"timonel": json.dumps({**data, "digest": digest(tensors, data)})})


def load(
    cls: type[Run],
    path: str | PathLike[str],
    *,
    noise: Noise | None = None,
    shape: Shape | None = None,
    hooks: Sequence[Any] = (),
    keep: int = 0,
    context: Any = None,
    device: str = "cpu",
) -> Run:
    """The run saved at `path`, ready to advance. Raises `ArgumentError` on a file that is not one,
    or is damaged.
    """
    data, tensors = _contents(path, device)
    saved = _said(data, path)
    if saved.noise == OWN and noise is None:
        raise ArgumentError(
            f"{str(path)!r} was run with its own noise source; give it again: Run.load(path,"
            " noise=…)"
        )
    if saved.shaped and shape is None:
        raise ArgumentError(
            f"{str(path)!r} was run with shape=; give it again: Run.load(path, shape=…)"
        )
    try:
        table = Table.from_dict(saved.table)
        given = _noise(saved.noise, table, tensors)
        guidance = None if saved.guidance is None else _guidance(saved.guidance)
        run = cls(
            table, saved.prediction, noise=given if noise is None else noise, guidance=guidance,
            hooks=hooks,
            shape=shape, keep=keep, context=context,
        )  # fmt: skip
        run.sampler = None if saved.sampler is None else _sampler(saved.sampler)
        wrong = _misfit(saved, run, tensors)
    except ArgumentError as error:
        raise ArgumentError(f"the run saved at {str(path)!r} cannot go on: {error}") from error
    if wrong:
        raise _no_run(path, wrong)
    start, here = (
        _state(tensors, prefix, row, saved.history, count)
        for prefix, row, count in (("start.", 0, 0), ("", saved.row, saved.differences))
    )
    run.restore(start, here, tensors.get("denoised"), saved.called, saved.guided_since)
    return run


def digest(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> str:
    """SHA-256 of tensors, with their names, shapes and dtypes, and of what is said beside them."""
    made = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous()
        made.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        made.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def _contents(path: str | PathLike[str], device: str) -> tuple[Any, dict[str, Tensor]]:
    """What a safetensors file says in its metadata, and its tensors. Raises `ArgumentError` for
    other files.
    """
    from safetensors import SafetensorError, safe_open

    file_of("path", path)
    if not Path(path).is_file():
        raise ArgumentError(f"there is no saved run at {str(path)!r}")
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            data = reading.parsed((file.metadata() or {}).get("timonel", "{}"), finite=False)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_run(path, error) from error
    return data, tensors


def _said(data: Any, path: str | PathLike[str]) -> Saved:
    written = data.get("format") if isinstance(data, dict) else None
    if written != FORMAT:
        raise ArgumentError(
            f"{str(path)!r} is not a saved run of this version (format {written!r})"
        )
    try:
        return Saved.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_run(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _misfit(saved: Saved, run: Run, tensors: Mapping[str, Tensor]) -> str:
    """What does not fit together; nothing where all does."""
    if saved.digest is not None and saved.digest != digest(
        tensors, saved.model_dump(exclude={"digest"}, exclude_unset=True)
    ):
        return "it is damaged, for it is not what was written"
    table = run.table
    guided = 0 if run.guidance is None else run.guidance.order
    for what, value, most in (
        ("row", saved.row, table.nfe), ("called", saved.called or 0, table.nfe - 1),
        ("guided_since", saved.guided_since, table.nfe), ("differences", saved.differences, guided),
    ):  # fmt: skip
        if value > most:
            return f"{what} {value} is more than the {most} of its table and guidance"
    if saved.history != table.history - 1:
        return f"it remembers {saved.history} predictions and its table {table.history - 1}"
    return _misshapen(saved, run, tensors)


def _misshapen(saved: Saved, run: Run, tensors: Mapping[str, Tensor]) -> str:
    """Which tensor is missing, of no use, or unlike the sample; nothing where all are well."""
    needed, possible = {"start.x", "x"}, set[str]()
    bases = {"start.base", "base"}  # of a part of a list what comes after it may read them
    (needed if run.table.uses_base else possible).update(bases)
    for age in range(saved.history):
        row = saved.row - 1 - age
        kept = row >= 0 and (saved.shaped or run.program.rows[row].keeps_h0)
        (needed if kept else possible).add(f"h{age + 1}")
    if saved.called is not None:
        possible.add("denoised")
    apart = {f"d{i}" for i in range(saved.differences)}  # as wide as the network's output
    states = (
        {name for each in _names(saved.noise) for name in each}
        if isinstance(saved.noise, SavedDraws)
        else ()
    )
    for name in sorted(needed | apart):
        if name not in tensors:
            return f"it lacks {name!r}"
    for name, tensor in tensors.items():
        if name in states:
            continue  # `DrawnNoise.of` has looked at them
        if name not in needed | possible | apart:
            return f"it has {name!r}, which its table does not use"
        if tensor.dtype not in DTYPES or not tensor.ndim:
            return f"{name!r} is {tensor.dtype} {tuple(tensor.shape)}"
        if name not in apart and tensor.shape != tensors["x"].shape:
            return (
                f"{name!r} has the shape {tuple(tensor.shape)}, the sample"
                f" {tuple(tensors['x'].shape)}"
            )
    if isinstance(run.noise, Seeded):
        run.noise.check(len(tensors["x"]))
    return ""


def _no_run(path: str | PathLike[str], reason: object) -> ArgumentError:
    return ArgumentError(f"{str(path)!r} is not a saved run: {reason}")


def _source(noise: Noise | None, tensors: dict[str, Tensor]) -> dict[str, Any] | str | None:
    """A noise source as a file says it, `OWN` where it is the caller's; states of generators go to
    `tensors`.
    """
    if isinstance(noise, Seeded):
        return {"kind": noise.kind, "seeds": list(noise.seeds), "device": noise.device}
    if isinstance(noise, tree.TreeNoise):
        return noise.said()
    if not isinstance(noise, drawn.DrawnNoise):
        return None if noise is None else OWN
    stretches, ends = noise.remembered()
    said = SavedDraws(
        kind="drawn",
        stretches=[
            SavedStretch(
                devices=[*s.devices],
                order=[*s.order],
                shape=[*s.shape],
                dtype=str(s.dtype).split(".")[1],
                rows=s.rows,
            )
            for s in stretches
        ],
    )
    for names, states in zip(_names(said), [*(s.states for s in stretches), ends], strict=True):
        tensors.update(zip(names, (state.clone() for state in states), strict=True))
    return said.model_dump()


def _names(saved: SavedDraws) -> list[list[str]]:
    """What the tensors are called that are states of generators: of each stretch, and of the newest
    draw's end.
    """
    counts = [(str(i), len(s.devices)) for i, s in enumerate(saved.stretches)]
    counts.append(("end", counts[-1][1] if counts else 0))
    return [[f"noise.{name}.{j}" for j in range(count)] for name, count in counts]


def _noise(
    saved: SavedNoise | SavedDraws | SavedTree | str | None,
    table: Table,
    tensors: Mapping[str, Tensor],
) -> Noise | None:
    """The noise source that a file describes; None where it describes none. Raises `ArgumentError`."""
    if isinstance(saved, SavedNoise):
        return source(**saved.model_dump(), table=table)
    if isinstance(saved, SavedTree):
        return tree.TreeNoise(saved.entropy, saved.low, saved.high, table)
    if not isinstance(saved, SavedDraws):
        return None
    names, known = _names(saved), {str(dtype).split(".")[1]: dtype for dtype in DTYPES}
    missing = next((name for each in names for name in each if name not in tensors), None)
    if missing is not None or "x" not in tensors:
        raise ArgumentError(f"it lacks {missing or 'x'!r}")
    among(
        "dtype of noise",
        next((s.dtype for s in saved.stretches if s.dtype not in known), "float32"),
        known,
    )
    *states, ends = [tuple(tensors[name].cpu() for name in each) for each in names]
    stretches = [
        drawn.Stretch(
            state, tuple(s.devices), tuple(s.order), tuple(s.shape), known[s.dtype], s.rows
        )
        for s, state in zip(saved.stretches, states, strict=True)
    ]
    return drawn.DrawnNoise.of(stretches, ends, table.nfe, tuple(tensors["x"].shape))


def _tensors(state: State) -> dict[str, Tensor]:
    named = {"x": state.x, "base": state.base} | {
        f"h{i + 1}": h for i, h in enumerate(state.history)
    }
    named |= {f"d{i}": d for i, d in enumerate(state.differences)}
    # cloned: safetensors refuses tensors that share memory, as x and base do at the start
    return {name: t.detach().contiguous().clone() for name, t in named.items() if t is not None}


def _state(
    tensors: dict[str, Tensor], prefix: str, row: int, history: int, differences: int
) -> State:
    predictions = tuple(tensors.get(f"{prefix}h{i + 1}") for i in range(history))
    told = tuple(tensors[f"{prefix}d{i}"] for i in range(differences))
    return State(row, tensors[f"{prefix}x"], tensors.get(f"{prefix}base"), predictions, told)


def _spelled(sampler: Sampler) -> dict[str, Any]:
    """A sampler as plain data."""
    named = {field.name: getattr(sampler, field.name) for field in fields(Sampler)}
    made = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in named.items()
    }
    return {**made, "fitted": None if sampler.fitted is None else sampler.fitted.to_dict()}


def _sampler(data: dict[str, Any]) -> Sampler:
    """The inverse of `_spelled`. Raises `ArgumentError`."""
    unknown = set(data) - {field.name for field in fields(Sampler)}
    if unknown:
        raise ArgumentError(f"a sampler has no {sorted(unknown)[0]!r}")
    table = data.get("fitted")
    return Sampler(
        **{
            **data,
            "fitted": None if table is None else Fitted.from_dict(table, str(data.get("name"))),
        }
    )


def _guidance(data: dict[str, Any]) -> Guidance:
    unknown = set(data) - {field.name for field in fields(Guidance)}
    if unknown:
        raise ArgumentError(f"guidance has no {sorted(unknown)[0]!r}")
    scale = data.get("scale")
    return Guidance(**{**data, "scale": tuple(scale) if isinstance(scale, list) else scale})
