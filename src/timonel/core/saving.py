"""A run on disk: one safetensors file with the tensors, and the rest as JSON in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from .. import reading
from ..errors import ArgumentError
from ..errors import path as file_of
from ..files import write_tensors
from . import saved_noise
from .checkpoints import NetworkCall, Point
from .fitted.sampler_file import Fitted
from .guidance import CompiledGuidance, words
from .guidance.outputs import known
from .noise import Noise, Seeded
from .process import Process
from .program import DenoisedFn, State
from .sampler import Sampler
from .saved_noise import DTYPES, OWN, Count, Strict, described, state_names
from .table import Table
from .tailed import Tail

Run: TypeAlias = Any  # `run.Run`, which stands above this file


FORMAT = "timonel-run-2"


class SavedTail(Strict):
    """A `tailed.Tail`."""

    step: Count
    sampler: dict[str, Any]
    guidance: dict[str, Any] | None = None
    reads: Count = 0


class SavedPast(Strict):
    """The guidance that acted up to a row, before a tail, with what it says for the rows."""

    until: Count
    guidance: dict[str, Any] | None
    scales: list[float | None]
    weights: list[list[float]]
    since: Count


class Saved(Strict):
    """What a file says of a run beside its tensors.

    Older files have no `digest` and may lack what has a default. `history`, `differences`,
    `unconditional`: how many tensors of each the run remembers. `sampler`: what a pipeline's list
    was compiled from. `journey`: its tails, of which `table` has the rows; `past`: the guidance
    before each. `digest`: of everything in the file.
    """

    format: str
    row: Count
    table: dict[str, Any]
    prediction: str
    noise: saved_noise.Saved
    called: Count | None = None
    guidance: dict[str, Any] | None
    guided_since: Count = 0
    shaped: bool
    history: Count
    differences: Count = 0
    unconditional: Count = 0
    sampler: dict[str, Any] | None = None
    journey: list[SavedTail] = Field(default_factory=list)
    past: list[SavedPast] = Field(default_factory=list)
    digest: str | None = None


def save(run: Run, path: str | PathLike[str]) -> None:
    """Write a run atomically. A noise source other than seeds is an argument of `load` again.

    Args:
        run: stands between two rows, or its hooks are called.
        path: of the file, which is replaced.

    Raises:
        RunError: the run has not begun.
    """
    start, (here, call, _) = run.snapshot()
    tensors = {f"start.{k}": v for k, v in _tensors(start).items()} | _tensors(here)
    if call is not None and call.clean is not None:
        tensors["denoised"] = call.clean.detach().contiguous().clone()
        if call.x is not None:
            tensors["called.x"] = call.x.detach().contiguous().clone()
    data = {
        "format": FORMAT,
        "row": here.row,
        "table": run.table.to_dict(),
        "prediction": run.prediction,
        "noise": described(run.noise, tensors),
        "called": None if call is None else call.row,
        "guidance": None if run.guidance is None else words.spelled(run.guidance),
        "guided_since": run.guided_since,
        "shaped": run.denoised_fn is not None,
        "history": len(here.history),
        "differences": len(here.differences),
        "sampler": None if run.sampler is None else _spelled(run.sampler),
        **_turned(run),
    }
    if run.table.reads_uncond:
        data["unconditional"] = len(here.unconditional)
    write_tensors(path, tensors, {"timonel": json.dumps({**data, "digest": digest(tensors, data)})})


def load(
    cls: type[Run],
    path: str | PathLike[str],
    *,
    noise: Noise | None = None,
    denoised_fn: DenoisedFn | None = None,
    hooks: Sequence[Any] = (),
    keep: int = 0,
    context: Any = None,
    device: str = "cpu",
    process: Process | None = None,
) -> Run:
    """The run saved at `path`, ready to advance; the arguments are those of `Run.load`.

    Raises:
        ArgumentError: the file is not a saved run, or is damaged.
    """
    data, tensors = _contents(path, device)
    saved = _validated(data, path)
    if saved.noise == OWN and noise is None:
        raise ArgumentError(
            f"{str(path)!r} needs the noise source that the run had: Run.load(path, noise=…)"
        )
    if saved.shaped and denoised_fn is None:
        raise ArgumentError(
            f"{str(path)!r} was run with denoised_fn=; give it again: Run.load(path, denoised_fn=…)"
        )
    try:
        table = Table.from_dict(saved.table)
        source = saved_noise.source(saved.noise, table, tensors)
        run = cls(
            table, saved.prediction, noise=source if noise is None else noise, hooks=hooks,
            guidance=None if saved.guidance is None else words.read(saved.guidance),
            denoised_fn=denoised_fn, keep=keep, context=context, process=process,
            sampler=None if saved.sampler is None else _sampler(saved.sampler),
        )  # fmt: skip
        wrong = _misfit(saved, run, tensors)
    except ArgumentError as error:
        raise ArgumentError(f"the run saved at {str(path)!r} cannot go on: {error}") from error
    if wrong:
        raise _no_run(path, wrong)
    start = _state(tensors, "start.", 0, saved.model_copy(update={"differences": 0}))
    here = _state(tensors, "", saved.row, saved)
    seen, clean = tensors.get("called.x"), tensors.get("denoised")
    call = None if saved.called is None else NetworkCall(saved.called, seen, clean=clean)
    run.restore(start, Point(here, call), saved.guided_since, _past(saved, run), _journey(saved))
    return run


def digest(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> str:
    """SHA-256 of tensors, with their names, shapes and dtypes, and of plain data beside them."""
    sha = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        sha.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _contents(path: str | PathLike[str], device: str) -> tuple[Any, dict[str, Tensor]]:
    """The metadata of a safetensors file, and its tensors."""
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


def _validated(data: Any, path: str | PathLike[str]) -> Saved:
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
    data = saved.model_dump(exclude={"digest"}, exclude_unset=True)
    if saved.digest is not None and saved.digest != digest(tensors, data):
        return "it is damaged, for it is not what was written"
    table = run.table
    guided = 0 if run.guidance is None else run.guidance.order
    for what, value, most in (
        ("row", saved.row, table.nfe), ("called", saved.called or 0, table.nfe - 1),
        ("guided_since", saved.guided_since, table.nfe), ("differences", saved.differences, guided),
    ):  # fmt: skip
        if value > most:
            return f"{what} {value} is more than the {most} of its table and guidance"
    if not _before_tails(saved, table):
        return "its past guidance is not that of the rows before its tails"
    for count, most in (
        (saved.history, table.history - 1),
        (saved.unconditional, table.unconditional),
    ):
        if count != most:
            return f"it remembers {count} predictions and its table {most}"
    return _misshapen(saved, run, tensors)


def _before_tails(saved: Saved, table: Table) -> bool:
    """Whether the past guidance is of rows before others."""
    rows = [one.until for one in saved.past]
    sizes = [{len(one.scales), len(one.weights)} == {one.until} for one in saved.past]
    return all(sizes) and rows == sorted(rows) and all(until < table.nfe for until in rows)


def _misshapen(saved: Saved, run: Run, tensors: Mapping[str, Tensor]) -> str:
    """Which tensor is missing, of no use, or unlike the sample; nothing where all are well."""
    differences = {f"d{i}" for i in range(saved.differences)}  # as wide as the network's output
    needed, possible = _names(saved, run)
    missing = sorted((needed | differences) - tensors.keys())
    if missing:
        return f"it lacks {missing[0]!r}"
    sample = tensors["x"].shape
    for name in [name for name in tensors if name not in set(state_names(saved.noise))]:
        tensor = tensors[name]
        if name not in needed | possible | differences:
            return f"it has {name!r}, which its table does not use"
        if tensor.dtype not in DTYPES.values() or not tensor.ndim:
            return f"{name!r} is {tensor.dtype} {tuple(tensor.shape)}"
        if name not in differences and tensor.shape != sample:
            return f"{name!r} has the shape {tuple(tensor.shape)}, the sample {tuple(sample)}"
    if isinstance(run.noise, Seeded):
        run.noise.check(len(tensors["x"]))
    return ""


def _names(saved: Saved, run: Run) -> tuple[set[str], set[str]]:
    """The tensors of a run that its file has to hold, and those that it may hold."""
    needed, possible = {"start.x", "x"}, set[str]()
    # of a part of a list what comes after it may read the base
    (needed if run.table.uses_base else possible).update({"start.base", "base"})
    for age in range(saved.history):
        row = saved.row - 1 - age
        read = row >= 0 and run.table.reads(row, range(saved.row, run.table.nfe))
        (needed if read else possible).add(f"h{age + 1}")
    for age in range(saved.unconditional):
        row = saved.row - 1 - age
        kept = row >= 0 and run.program.rows[row].keeps_u0
        (needed if kept else possible).add(f"u{age + 1}")
    if saved.called is not None:
        possible.update(("denoised", "called.x"))
    if run.guided.method is not None and run.guided.method.has_momentum:
        possible.add("momentum")
    return needed, possible


def _no_run(path: str | PathLike[str], reason: object) -> ArgumentError:
    return ArgumentError(f"{str(path)!r} is not a saved run: {reason}")


def _tensors(state: State) -> dict[str, Tensor]:
    named: dict[str, Tensor | None] = {"x": state.x, "base": state.base} | {
        f"h{i + 1}": h for i, h in enumerate(state.history)
    }
    named |= {f"d{i}": d for i, d in enumerate(state.differences)}
    named |= {f"u{i + 1}": u for i, u in enumerate(state.unconditional)}
    named["momentum"] = state.momentum
    # cloned: safetensors refuses tensors that share memory, as x and base do at the start
    return {name: t.detach().contiguous().clone() for name, t in named.items() if t is not None}


def _state(tensors: dict[str, Tensor], prefix: str, row: int, saved: Saved) -> State:
    def several(key: str, count: int, first: int = 1) -> tuple[Tensor | None, ...]:
        return tuple(tensors.get(f"{prefix}{key}{i + first}") for i in range(count))

    known: Any = several("d", saved.differences, 0)
    return State(
        row, tensors[f"{prefix}x"], tensors.get(f"{prefix}base"), several("h", saved.history),
        known, tensors.get(f"{prefix}momentum"), several("u", saved.unconditional),
    )  # fmt: skip


def _spelled(sampler: Sampler) -> dict[str, Any]:
    """A sampler as plain data."""
    data = {field.name: getattr(sampler, field.name) for field in fields(Sampler)}
    data |= {key: dict(value) for key, value in data.items() if isinstance(value, Mapping)}
    return {**data, "fitted": None if sampler.fitted is None else sampler.fitted.to_dict()}


def _turned(run: Run) -> dict[str, Any]:
    """The tails of a run as plain data; nothing where it has none."""
    if not run.journey:
        return {}
    journey = [
        {
            "step": one.step,
            "sampler": _spelled(one.sampler),
            "guidance": None if one.guidance is None else words.spelled(one.guidance),
            "reads": one.reads,
        }
        for one in run.journey
    ]
    past = [
        {
            "until": until,
            "guidance": None if one.guidance is None else words.spelled(one.guidance),
            "scales": list(one.scales[:until]),
            "weights": [list(each) for each in one.weights[:until]],
            "since": one.since,
        }
        for until, one in run.past
    ]
    return {"journey": journey, "past": past}


def _journey(saved: Saved) -> tuple[Tail, ...]:
    """The inverse of `_turned`, the tails."""
    return tuple(
        Tail(
            one.step, _sampler(one.sampler),
            None if one.guidance is None else words.read(one.guidance), one.reads,
        )
        for one in saved.journey
    )  # fmt: skip


def _past(saved: Saved, run: Run) -> tuple[tuple[int, CompiledGuidance], ...]:
    """The inverse of `_turned`, the guidance before each tail."""
    return tuple((one.until, _guided(one, run)) for one in saved.past)


def _guided(past: SavedPast, run: Run) -> CompiledGuidance:
    """The guidance of the rows before a tail; its scales were one per step of another table."""
    guidance = None if past.guidance is None else words.read(past.guidance)
    if guidance is not None and isinstance(guidance.scale, tuple):
        guidance = replace(guidance, scale=guidance.scale[:1][0])
    compiled = CompiledGuidance.of(guidance, run.table, run.prediction, past.since)
    scales, weights = tuple(past.scales), tuple(map(tuple, past.weights))
    if past.guidance is not None:
        compiled = replace(compiled, guidance=words.read(past.guidance))
    return replace(compiled, scales=scales, weights=weights)


def _sampler(data: dict[str, Any]) -> Sampler:
    """The inverse of `_spelled`. Raises `ArgumentError`."""
    known("a sampler", data, (field.name for field in fields(Sampler)))
    fitted = data.get("fitted")
    if fitted is not None:
        fitted = Fitted.from_dict(fitted, str(data.get("name")))
    return Sampler(**{**data, "fitted": fitted})
