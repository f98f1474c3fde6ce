"""What a short run of a pipeline shows of its network: watched row by row, and looked through.

Every function here raises `NotCaptured` where the rows do not fit together.
"""

from __future__ import annotations

import inspect
import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.hook import Hook
from ..core.process import Process
from ..core.run import Run
from ..engine.conditions import join
from ..engine.tensor_trees import equal
from ..errors import ModelError
from .guidance import batch_tree
from .guidance.gate import Called, Gate

ROWS = 3  # of the watched run: the first and the last settle the clock, the middle one checks it
TIMES = ("timestep", "timesteps", "t")  # what networks call their time
EXTRA = "…"  # no network's name: what the sample is joined with
# how far a captured call may be from the watched one, relative, in float32 and below
EXACT, HALF = 1e-3, 3e-2


class NotCaptured(ModelError):
    """A pipeline whose network cannot be taken out of its loop."""


class Watched(BaseException):
    """The watched run has shown what it can show."""


@dataclass
class WatchedRow:
    """One row of the watched run: what the network got and gave, and what became of it."""

    calls: list[tuple[nn.Module, dict[str, Any], Tensor]] = field(default_factory=list)
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    raw: Tensor = field(default_factory=lambda: torch.empty(0))  # as the scheduler got it
    after: Tensor = field(default_factory=lambda: torch.empty(0))  # the next row's x
    time: float = 0.0


class Watch(Hook):
    """Collects the rows of a run whose steps are one call each."""

    def __init__(self) -> None:
        self.rows = [WatchedRow()]
        self.process: Process | None = None

    def on_step(self, run: Run) -> None:
        """Keep what the step shows; raises `Watched` after the last."""
        run.context.look(run.latents)  # what is captured here will be decoded as this call would
        row, newest, at = self.rows[-1], run.newest, run.called_at
        assert newest is not None
        assert at is not None
        row.x, row.raw = newest[0].clone(), newest[1].clone()
        row.after, row.time = run.latents.clone(), at.time
        if len(self.rows) == ROWS:
            raise Watched
        self.rows.append(WatchedRow())


class WatchingGate(Gate):
    """A gate that changes nothing and notes every call."""

    def __init__(self, watch: Watch, *call: Any) -> None:
        super().__init__(*call)
        self.watch = watch

    def combined(self, raw: Tensor, x: Tensor) -> Tensor:
        """The pipeline's combination as it is."""
        return raw

    def call(self, called: Called) -> Any:
        """Note a call, and let it go on."""
        module, result = called.module, called.compute()
        if not called.main:
            raise NotCaptured(
                f"{self._name} calls a second network beside its own ({type(module).__name__})"
            )
        signature = inspect.signature(type(module).forward)
        named = signature.bind(module, *called.args, **called.kwargs).arguments
        named.pop("self", None)
        output = batch_tree.tensors(result)
        if output is None or self.session.run is None:
            raise NotCaptured(f"{type(module).__name__} returns no tensor to watch")
        self.watch.rows[-1].calls.append((module, {**named, **named.pop("kwargs", {})}, output))
        return result


def module(rows: list[WatchedRow], pipe: str) -> nn.Module:
    """The one network that every row calls alike, on the sample that the row before left."""
    modules = {module for row in rows for module, _, _ in row.calls}
    if len(modules) != 1 or len({len(row.calls) for row in rows}) != 1:
        raise NotCaptured(f"{pipe} does not call one network alike at every step")
    for before, after in itertools.pairwise(rows):
        if not torch.equal(before.after, after.x):
            raise NotCaptured(f"{pipe} changes its sample between the steps")
    return modules.pop()


def constant(merged: list[dict[str, Any]], names: tuple[str, str], pipe: str) -> dict[str, Any]:
    """The network's arguments beside the sample and the time, which no step changes."""
    first, *others = merged
    constant = {name: value for name, value in first.items() if name not in names}
    for name, value in constant.items():
        if not all(equal(value, other.get(name)) for other in others):
            raise NotCaptured(f"{pipe} gives its network another {name!r} at every step")
    return constant


def merged(row: WatchedRow, count: int, pipe: str) -> dict[str, Any]:
    """The arguments of a row's calls as those of one call, one part after the other."""
    sizes = []
    for _, arguments, _ in row.calls:
        sample = batch_tree.sample_of((), arguments)
        if not isinstance(sample, Tensor) or len(sample) % count:
            raise NotCaptured(f"{pipe} gives its network no batch of {count} samples")
        sizes.append(len(sample))
    first, *others = [arguments for _, arguments, _ in row.calls]
    if not others:
        return first
    if len(set(sizes)) > 1 or any(other.keys() != first.keys() for other in others):
        raise NotCaptured(f"{pipe} calls its network for unlike parts")
    try:
        return {
            name: join(
                [first[name], *(o[name] for o in others)], sizes[0], name, batch_tree.batched
            )
            for name in first
        }
    except ValueError as error:
        raise NotCaptured(f"{pipe} calls its network for parts with {error}") from error


def names(arguments: dict[str, Any], pipe: str) -> tuple[str, str]:
    """What the network calls its sample and its time."""
    sample = batch_tree.sample_of((), arguments)
    name = next(name for name, value in arguments.items() if value is sample)
    time = next((name for name in TIMES if arguments.get(name) is not None), None)
    if time is None:
        raise NotCaptured(
            f"the network of {pipe} gets no time by one of the names {', '.join(TIMES)}"
        )
    return name, time


def layout(
    merged: list[dict[str, Any]], rows: list[WatchedRow], name: str, pipe: str
) -> tuple[Tensor | None, int]:
    """What the network's input holds beside the sample, and along which dimension it follows."""
    extras = []
    for arguments, row in zip(merged, rows, strict=True):
        entering, x = arguments[name], row.x
        if entering.ndim != x.ndim:
            raise NotCaptured(f"{pipe} gives its network the sample in another layout")
        wider = [d for d in range(1, x.ndim) if entering.shape[d] != x.shape[d]]
        joined = wider[0] if wider else 1
        if len(wider) > 1 or entering.shape[joined] < x.shape[joined]:
            raise NotCaptured(f"{pipe} gives its network the sample in another layout")
        width = x.shape[joined]
        held = entering.narrow(joined, 0, width)
        if not all(torch.equal(part, x.to(held)) for part in torch.split(held, len(x))):
            raise NotCaptured(f"{pipe} changes its sample before it gives it to the network")
        extras.append(entering.narrow(joined, width, entering.shape[joined] - width))
    if not all(torch.equal(extras[0], other) for other in extras[1:]):
        raise NotCaptured(f"{pipe} joins its sample with something else at every step")
    return (extras[0] if extras[0].numel() else None), joined


def time(value: Any) -> float:
    """The one time that a network got."""
    times = torch.as_tensor(value, dtype=torch.float64).flatten()
    if not torch.equal(times, times[:1].expand_as(times)):
        raise NotCaptured("the network gets different times for the parts of a sample")
    return float(times[0])


def clock(network: list[float], times: list[float], pipe: str) -> tuple[float, float]:
    """(a, b) with network = a·times + b; exact for the usual cases."""
    slope = (network[-1] - network[0]) / (times[-1] - times[0])
    for a in (1.0, 1e-3, -1.0, -1e-3):
        if abs(slope - a) < 1e-4 * abs(a):
            slope = a
    offset = network[0] - slope * times[0]
    offset = round(offset) if abs(offset - round(offset)) < 1e-4 else offset
    span = abs(network[-1] - network[0])
    if any(abs(slope * t + offset - n) > 1e-2 * span for t, n in zip(times, network, strict=True)):
        raise NotCaptured(
            f"{pipe} gives its network times that are not linear in those of its scheduler"
        )
    return slope, float(offset)


def weights(rows: list[WatchedRow], count: int, pipe: str) -> Tensor:
    """The weights (parts, 1, …) with raw = sum of weight·part.

    One for each part, or one for each frame of it.
    """
    pieces = torch.cat([_pieces(row, count, pipe) for row in rows], 1)
    raws = torch.cat([row.raw.double() for row in rows])
    bound = (EXACT if rows[0].raw.dtype == torch.float32 else HALF) * raws.norm()
    ones = (1,) * (raws.ndim - 1)
    weights = _least(pieces.flatten(1), raws.flatten()).view(-1, *ones)
    if (torch.sum(pieces * weights[:, None], 0) - raws).norm() <= bound:
        return _rounded(weights)
    frames = [
        _least(pieces[:, :, i].flatten(1), raws[:, i].flatten()) for i in range(raws.shape[1])
    ]
    weights = torch.stack(frames, 1).view(len(pieces), -1, *ones[1:])
    if (torch.sum(pieces * weights[:, None], 0) - raws).norm() <= bound:
        return _rounded(weights)
    raise NotCaptured(
        f"{pipe} combines what its network returns in a way that is not a sum of its parts"
    )


def _pieces(row: WatchedRow, count: int, pipe: str) -> Tensor:
    """The network's outputs of a row by their parts (parts, count, …)."""
    output = torch.cat([output for _, _, output in row.calls]).double()
    if output.ndim == row.raw.ndim and output.shape[1] == 2 * row.raw.shape[1]:
        output = output[:, : row.raw.shape[1]]  # the rest is a learned variance
    if output.shape[1:] != row.raw.shape[1:] or len(output) % count:
        raise NotCaptured(f"{pipe} makes something else of what its network returns")
    return torch.stack(torch.split(output, count))


def _least(pieces: Tensor, raw: Tensor) -> Tensor:
    """Least squares by the normal equations; parts that are equal share the weight."""
    solution: Tensor = torch.linalg.lstsq(
        pieces @ pieces.T, (pieces @ raw)[:, None], driver="gelsd"
    ).solution
    return solution[:, 0]


def _rounded(weights: Tensor) -> Tensor:
    """Weights without the noise of their measurement: they were written with a few digits."""
    near = (weights * 1e4).round() / 1e4
    return torch.where((weights - near).abs() < 1e-4, near, weights)
