"""Capture: the network of a pipeline under fixed conditions, as a plain denoiser.

    captured = capture(tm.Helm("emoji"), ["red apple", "pizza"], seeds=[0, 1], guidance=4.0)
    raw = captured(x, times, samples=[0, 1])        # what the pipeline would hand to its scheduler

A short run of the pipeline is watched: what its network is given beside the sample, how the
scheduler's times become the network's, how the outputs are combined. Two rows settle that, a third
one checks it, and so does a call in which every sample is at another level. What does not pass is
not captured, and says why: the helm can still run it. Since conditions are kept apart per sample,
one call serves samples of different runs, samplers, levels and guidance.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.guidance import Guidance, stretch
from ..core.hook import Hook
from ..core.process import Process
from ..core.program import Shape
from ..core.run import Run
from ..core.sampler import Sampler
from ..errors import ArgumentError, ModelError
from .guidance import arguments, parts
from .guidance.gate import Called, Gate
from .helm import Helm

ROWS = 3  # of the watched run: the first and the last settle the clock, the middle one checks it
TIMES = ("timestep", "timesteps", "t")  # what networks call their time
EXACT, HALF = (
    1e-3,
    3e-2,
)  # how far a captured call may be from the watched one, relative, in float32 and below


class NotCaptured(ModelError):
    """A pipeline whose network cannot be taken out of its loop."""


class Enough(BaseException):
    """The watched run has shown what it can show."""


@dataclass
class Row:
    """One row of the watched run: its network calls as (module, arguments by name, output), and
    what became of them.
    """

    calls: list[tuple[nn.Module, dict[str, Any], Tensor]] = field(default_factory=list)
    x: Tensor | None = None
    raw: Tensor | None = None
    after: Tensor | None = None
    time: float = 0.0


class Watch(Hook):
    """Collects the rows of a run whose steps are one call each."""

    def __init__(self) -> None:
        self.rows = [Row()]
        self.process: Process | None = None

    def on_step(self, run: Run) -> None:
        run.context.look(run.latents)  # what is captured here will be decoded as this call would
        row, newest, at = self.rows[-1], run.newest, run.called_at
        assert newest is not None
        assert at is not None
        row.x, row.raw, row.after, row.time = (
            newest[0].clone(),
            newest[1].clone(),
            run.latents.clone(),
            at.time,
        )
        if len(self.rows) == ROWS:
            raise Enough
        self.rows.append(Row())


class WatchingGate(Gate):
    """A gate that changes nothing and notes every call."""

    def __init__(self, watch: Watch, *call: Any) -> None:
        super().__init__(*call)
        self.watch = watch

    def combined(self, raw: Tensor) -> Tensor:
        """The pipeline's combination as it is."""
        return raw

    def call(self, called: Called) -> Any:
        module, made = called.module, called.compute()
        if not called.main:
            raise NotCaptured(
                f"{self._name} calls a second network beside its own ({type(module).__name__})"
            )
        named = (
            inspect.signature(type(module).forward)
            .bind(module, *called.args, **called.kwargs)
            .arguments
        )
        named.pop("self", None)
        output = parts.tensors(made)
        if output is None or self.session.run is None:
            raise NotCaptured(f"{type(module).__name__} returns no tensor to watch")
        self.watch.rows[-1].calls.append((module, {**named, **named.pop("kwargs", {})}, output))
        return made


def capture(
    helm: Helm,
    *args: Any,
    seeds: Sequence[int] | int | None = None,
    guidance: Guidance | float | None = None,
    **options: Any,
) -> Captured:
    """The network of `helm`'s pipeline for the conditions of a call; the arguments are those of the
    call.

    `guidance`: a scale; give one above 1 where any of what is to run will be guided. Costs three
    network calls. Raises `NotCaptured` with the reason where the pipeline's loop does more than
    call one network and step, and what a call of the helm raises.
    """
    watch = Watch()
    own = {
        "sampler": Sampler("euler"), "steps": ROWS, "guidance": guidance, "hooks": [watch],
        "seeds": seeds,
    }  # fmt: skip
    call = helm.ready(args, {**own, **options}, partial(WatchingGate, watch))
    session = call.session
    session.scheduler.__dict__["add_noise"] = _noised
    try:
        call()
        raise NotCaptured(
            f"{type(helm.pipe).__name__} does not make {ROWS} steps when it is asked to"
        )
    except Enough:
        pass
    if session.rows[0]:
        raise NotCaptured(f"{type(helm.pipe).__name__} begins on the way, not at pure noise")
    scheduler = session.scheduler
    process = scheduler._listed.grid.process
    return _captured(helm, watch.rows, session.request.scale, scheduler.run, process)


def _noised(*_: Any) -> Tensor:
    raise NotCaptured(
        "the pipeline mixes a picture with noise, so where it begins depends on the grid"
    )


@dataclass(eq=False)
class Captured:
    """A network with its conditions for `count` samples. Make one with `capture`.

    `start`: the pipeline's initial latents (count, …), unit normal. `own`: the guidance scale it
    was captured with, or None where there is no guidance. `process, prediction, shape`: what a
    `Run` needs.
    """

    helm: Helm
    module: nn.Module
    start: Tensor
    process: Process
    prediction: str
    shape: Shape | None
    own: float | None
    given: dict[str, Any]  # the network's arguments, samples of all parts in one batch
    names: tuple[str, str]  # of the sample and of the time among them
    extra: Tensor | None  # what the sample is joined with, along `joined`
    joined: int
    clock: tuple[float, float]  # network time = a·time + b
    weights: Tensor  # (parts, 1, …): what the pipeline makes of the parts
    place: int  # of the conditional one

    @property
    def count(self) -> int:
        """How many samples there are conditions for."""
        return len(self.start)

    @property
    def parts(self) -> int:
        """Network evaluations for one guided sample."""
        return len(self.weights)

    def outputs(self, x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        """The network's own output (n, …) for samples x at `times`; `rows`: whose conditions,
        part·count + sample.
        """
        batch = self.parts * self.count
        given = {
            name: arguments.select(value, batch, rows, name) for name, value in self.given.items()
        }
        like, time_like = self.given[self.names[0]], self.given[self.names[1]]
        entering = x.to(like)
        if self.extra is not None:
            entering = torch.cat([entering, self.extra[rows].to(like)], dim=self.joined)
        clock = self.clock[0] * times.double() + self.clock[1]
        whole = not isinstance(time_like, Tensor) or not time_like.is_floating_point()
        dtype = torch.float32 if not isinstance(time_like, Tensor) else time_like.dtype
        if whole:
            dtype = (
                torch.int64
                if bool((clock == clock.round()).all()) and not clock.requires_grad
                else torch.float32
            )
        given |= {self.names[0]: entering, self.names[1]: clock.to(x.device, dtype)}
        made = parts.tensors(self.module(**given))
        assert made is not None
        return made[:, : x.shape[1]].to(x.dtype)

    def __call__(
        self, x: Tensor, times: Tensor, samples: Sequence[int],
        scales: Sequence[float | None] | None = None,
        rescales: Sequence[float] | None = None,
    ) -> Tensor:  # fmt: skip
        """What the pipeline hands to its scheduler: raw (n, …) for samples x (n, …) at the
        scheduler's `times` (n,).

        `samples`: whose conditions each of them has, below `count`. `scales`: guidance of each; 1
        computes the conditional part alone, None is the scale it was captured with. One network
        call for all of them.
        """
        return self.guided(x, times, samples, scales, rescales)[0]

    def guided(
        self, x: Tensor, times: Tensor, samples: Sequence[int],
        scales: Sequence[float | None] | None = None,
        rescales: Sequence[float] | None = None, forecasts: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
        """As a call, and of each sample the conditional minus the unconditional part where both
        were computed.

        `forecasts`: that difference where it is foreseen (None elsewhere), so that one part is
        computed.
        """
        told = [None] * len(x) if scales is None else list(scales)
        seen = [None] * len(x) if forecasts is None else list(forecasts)
        counts = [self.cost(s) if away is None else 1 for s, away in zip(told, seen, strict=True)]
        which = torch.tensor(samples).repeat_interleave(torch.tensor(counts))
        part = torch.tensor([p for n in counts for p in ([self.place] if n == 1 else range(n))])
        again = torch.arange(len(x)).repeat_interleave(torch.tensor(counts))
        made = self.outputs(x[again], times[again], (part * self.count + which).to(x.device))
        rest = [0.0] * len(x) if rescales is None else rescales
        found = torch.split(made, counts)
        whole = [
            p if away is None else self._halves(p, away)
            for p, away in zip(found, seen, strict=True)
        ]
        raws = [self._one(p, s, r) for p, s, r in zip(whole, told, rest, strict=True)]
        return torch.stack(raws), [
            p[self.place] - p[1 - self.place] if len(p) == 2 else None for p in found
        ]

    def cost(self, scale: float | None) -> int:
        """Network evaluations for one sample at this guidance scale."""
        return 1 if scale == 1.0 else self.parts

    def _halves(self, conditional: Tensor, away: Tensor) -> Tensor:
        """Both parts of a sample, the unconditional one as it is foreseen."""
        if self.parts != 2:
            raise ArgumentError(
                f"this has {self.parts} parts, and one of two can be forecast: leave forecast= out"
            )
        other = conditional - away.to(conditional)
        return torch.cat([conditional, other] if self.place == 0 else [other, conditional])

    def _one(self, found: Tensor, scale: float | None, rescale: float) -> Tensor:
        """The parts of one sample combined."""
        sign = 1.0 if float(self.weights.sum()) > 0 else -1.0
        if len(found) == 1:
            return found[0] * sign
        weights = self.weights.to(found)
        if scale is not None and scale != self.own:
            weights = self._weights(scale).to(found)
        guided = (found * weights).sum(0)
        if not rescale:
            return guided
        return guided * (1 - rescale + rescale * stretch(found[self.place].std(), guided.std()))

    def _weights(self, scale: float) -> Tensor:
        """The weights at another scale: the guidance beyond 1 grows in proportion, per frame where
        it varies.
        """
        if self.parts != 2 or self.own is None:
            raise ArgumentError(
                f"this was captured with {self.parts} parts at guidance {self.own}: capture it with"
                f" guidance={scale:g}"
            )
        sign = 1.0 if float(self.weights.sum()) > 0 else -1.0
        conditional = 1 + (self.weights[self.place] * sign - 1) * (scale - 1) / (self.own - 1)
        made = torch.empty_like(self.weights)
        made[self.place], made[1 - self.place] = conditional * sign, (1 - conditional) * sign
        return made


# -- from the watched rows -------------------------------------------------------------------------
def _captured(
    helm: Helm, rows: list[Row], own: float | None, run: Run, process: Process
) -> Captured:
    """What the rows show, checked. Raises `NotCaptured` where they do not fit together."""
    pipe, start = type(helm.pipe).__name__, rows[0].x
    assert start is not None
    modules = {module for row in rows for module, _, _ in row.calls}
    if len(modules) != 1 or len({len(row.calls) for row in rows}) != 1:
        raise NotCaptured(f"{pipe} does not call one network alike at every step")
    for before, after in itertools.pairwise(rows):
        if not torch.equal(before.after, after.x):  # type: ignore[arg-type]
            raise NotCaptured(f"{pipe} changes its sample between the steps")
    merged = [_merged(row, len(start), pipe) for row in rows]
    names = _names(merged[0], rows[0], pipe)
    extra, joined = _layout(merged, rows, names[0], pipe)
    for name, value in merged[0].items():
        if name not in names and not all(
            arguments.alike(value, other.get(name)) for other in merged[1:]
        ):
            raise NotCaptured(f"{pipe} gives its network another {name!r} at every step")
    clock = _clock([_time(m[names[1]]) for m in merged], [row.time for row in rows], pipe)
    weights = _weights(rows, len(start), pipe)
    place = int(weights.flatten(1).abs().sum(1).argmax()) if len(weights) > 1 else 0
    if own is None and len(weights) > 1 and weights[0].numel() == 1:
        own = float(weights[place] / weights.sum())
    made = Captured(
        helm, modules.pop(), start, process, run.prediction, run.shape,
        own if len(weights) > 1 else None, merged[0],
        names, extra, joined, clock, weights, place,
    )  # fmt: skip
    _check(made, rows, pipe)
    return made


def _merged(row: Row, count: int, pipe: str) -> dict[str, Any]:
    """The arguments of a row's calls as those of one call: what is batched lies one after the
    other.
    """
    sizes = []
    for _, given, _ in row.calls:
        sample = parts.sample_of((), given)
        if not isinstance(sample, Tensor) or len(sample) % count:
            raise NotCaptured(f"{pipe} gives its network no batch of {count} samples")
        sizes.append(len(sample))
    first, *others = [given for _, given, _ in row.calls]
    if not others:
        return first
    if len(set(sizes)) > 1 or any(given.keys() != first.keys() for given in others):
        raise NotCaptured(f"{pipe} calls its network for unlike parts")
    try:
        return {
            name: arguments.join([first[name], *(g[name] for g in others)], sizes[0], name)
            for name in first
        }
    except ValueError as error:
        raise NotCaptured(f"{pipe} calls its network for parts with {error}") from error


def _names(given: dict[str, Any], row: Row, pipe: str) -> tuple[str, str]:
    """What the network calls its sample and its time."""
    sample = parts.sample_of((), given)
    name = next(name for name, value in given.items() if value is sample)
    time = next((name for name in TIMES if given.get(name) is not None), None)
    if time is None:
        raise NotCaptured(
            f"the network of {pipe} is given no time by one of the names {', '.join(TIMES)}"
        )
    return name, time


def _layout(
    merged: list[dict[str, Any]], rows: list[Row], name: str, pipe: str
) -> tuple[Tensor | None, int]:
    """What the network's input holds beside the sample, and along which dimension it follows."""
    extras = []
    for given, row in zip(merged, rows, strict=True):
        entering, x = given[name], row.x
        assert x is not None
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


def _time(value: Any) -> float:
    """The one time that a network was given."""
    times = torch.as_tensor(value, dtype=torch.float64).flatten()
    if not torch.equal(times, times[:1].expand_as(times)):
        raise NotCaptured("the network is given different times for the parts of a sample")
    return float(times[0])


def _clock(told: list[float], ours: list[float], pipe: str) -> tuple[float, float]:
    """(a, b) with told = a·ours + b; exact for the usual cases."""
    slope = (told[-1] - told[0]) / (ours[-1] - ours[0])
    for a in (1.0, 1e-3, -1.0, -1e-3):
        if abs(slope - a) < 1e-4 * abs(a):
            slope = a
    offset = told[0] - slope * ours[0]
    offset = round(offset) if abs(offset - round(offset)) < 1e-4 else offset
    span = abs(told[-1] - told[0])
    if any(abs(slope * t + offset - n) > 1e-2 * span for t, n in zip(ours, told, strict=True)):
        raise NotCaptured(
            f"{pipe} gives its network times that are not linear in those of its scheduler"
        )
    return slope, float(offset)


def _weights(rows: list[Row], count: int, pipe: str) -> Tensor:
    """The weights (parts, 1, …) with raw = sum of weight·part: one for each part, or one for each
    frame of it.
    """
    found = []
    for row in rows:
        raw = row.raw
        assert raw is not None
        made = torch.cat([output for _, _, output in row.calls]).double()
        if made.ndim == raw.ndim and made.shape[1] == 2 * raw.shape[1]:
            made = made[:, : raw.shape[1]]  # the other half is a learned variance
        if made.shape[1:] != raw.shape[1:] or len(made) % count:
            raise NotCaptured(f"{pipe} makes something else of what its network returns")
        found.append((torch.stack(torch.split(made, count)), raw.double()))
    pieces = torch.cat([p for p, _ in found], 1)
    raws = torch.cat([r for _, r in found])
    single = rows[0].raw is not None and rows[0].raw.dtype == torch.float32
    bound = (EXACT if raws.dtype == torch.float64 and single else HALF) * raws.norm()
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


def _least(pieces: Tensor, raw: Tensor) -> Tensor:
    """Least squares by the normal equations; parts that are equal share the weight."""
    found: Tensor = torch.linalg.lstsq(
        pieces @ pieces.T, (pieces @ raw)[:, None], driver="gelsd"
    ).solution
    return found[:, 0]


def _rounded(weights: Tensor) -> Tensor:
    """Weights without the noise of their measurement: they were written with a few digits."""
    near = (weights * 1e4).round() / 1e4
    return torch.where((weights - near).abs() < 1e-4, near, weights)


@torch.no_grad()
def _check(made: Captured, rows: list[Row], pipe: str) -> None:
    """One call with samples of every row must give what the rows gave."""
    picked = [(row, k % made.count) for k, row in enumerate(rows)]
    x = torch.stack([row.x[i] for row, i in picked])  # type: ignore[index]
    raw = torch.stack([row.raw[i] for row, i in picked])  # type: ignore[index]
    times = torch.tensor([row.time for row, _ in picked], dtype=torch.float64)
    try:
        again = made(x, times, [i for _, i in picked])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise NotCaptured(
            f"the network of {pipe} does not take samples of different times: {error}"
        ) from error
    off = float((again - raw).abs().max() / raw.abs().max())
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in (made.given[made.names[0]], raw))
    if not off <= (HALF if half else EXACT):
        raise NotCaptured(
            f"the network of {pipe} gives something else outside its loop, by {off:.2g} of its"
            " largest"
        )
