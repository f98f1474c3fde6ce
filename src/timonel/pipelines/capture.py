"""Capture: the network of a pipeline under fixed conditions, as a plain denoiser.

    captured = capture(tm.Helm("emoji"), ["red apple", "pizza"], seeds=[0, 1], guidance=4.0)
    raw = captured(x, times, samples=[0, 1])        # what the pipeline would hand to its scheduler

A short run of the pipeline is watched: what its network gets beside the sample, how the scheduler's
times become the network's, how the outputs are combined. Two rows settle that, a third one checks
it, and so does a call in which every sample is at another level. What does not pass is not
captured, and says why: the helm can still run it. Every sample has its conditions in a slot, so one
call serves samples of different runs, samplers, levels and guidance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.guidance import Guidance, stretch
from ..core.process import At, Process
from ..core.program import DenoisedFn
from ..core.run import Run
from ..core.sampler import Sampler
from ..engine.conditions import Conditions
from ..engine.network import Answer, Query
from ..errors import ArgumentError
from . import watched
from .guidance import batch_tree
from .helm import Helm
from .watched import NotCaptured

__all__ = ["Captured", "NotCaptured", "capture"]


def capture(
    helm: Helm,
    *args: Any,
    seeds: Sequence[int] | int | None = None,
    guidance: Guidance | float | None = None,
    **options: Any,
) -> Captured:
    """The network of a pipeline under the conditions of a call. It costs three network calls.

    Args:
        helm: Whose pipeline.
        args: As in a call of the helm.
        seeds: One for each sample, or one for all.
        guidance: A scale, above 1 where any of what is to run will be guided.
        options: As in a call of the helm.

    Returns:
        The network with the conditions of the samples.

    Raises:
        NotCaptured: Where the pipeline's loop does more than call one network and step.
        TimonelError: What a call of the helm raises.
    """
    watch = watched.Watch()
    settings = {
        "sampler": Sampler("euler"), "steps": watched.ROWS, "guidance": guidance, "hooks": [watch],
        "seeds": seeds,
    }  # fmt: skip
    call = helm.ready(args, {**settings, **options}, partial(watched.WatchingGate, watch))
    session = call.session
    session.scheduler.__dict__["add_noise"] = _noised
    try:
        call()
        raise NotCaptured(
            f"{type(helm.pipe).__name__} does not make {watched.ROWS} steps on request"
        )
    except watched.Watched:
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
    """A network with the conditions of samples; make one with `capture`. It is a `RunnableNetwork`.

    Args:
        helm: Whose pipeline it is.
        module: The network.
        start: The pipeline's initial latents (n, …), unit normal, of the slots 0 … n - 1.
        process: The noise of the pipeline's scheduler.
        prediction: What the network predicts.
        denoised_fn: Changes the denoised prediction, where the scheduler clips.
        scale: Guidance scale it was captured with; None where there is no guidance.
        conditions: The network's arguments beside the sample and the time, a slot for each sample.
        names: What the network calls its sample and its time.
        entry: A sample as the network gets it, for its dtype and device.
        time_dtype: Of the time that the network gets; None where it is no tensor.
        joined: The dimension along which the sample is followed by what else the network reads.
        clock: (a, b) with network time = a·time + b.
        weights: (parts, 1, …), what the pipeline multiplies the parts with before it adds them.
        place: Which of the parts is the conditional one.
    """

    helm: Helm
    module: nn.Module
    start: Tensor
    process: Process
    prediction: str
    denoised_fn: DenoisedFn | None
    scale: float | None
    conditions: Conditions
    names: tuple[str, str]
    entry: Tensor
    time_dtype: torch.dtype | None
    joined: int
    clock: tuple[float, float]
    weights: Tensor
    place: int

    @property
    def count(self) -> int:
        """How many samples there are conditions for."""
        return len(self.conditions)

    @property
    def parts(self) -> int:
        """Network evaluations for one guided sample."""
        return len(self.weights)

    def cost(self, scale: float | None) -> int:
        """Network evaluations for one sample at this guidance scale; None is the captured one."""
        return 1 if scale == 1.0 else self.parts

    def admit(self, other: Captured) -> tuple[int, ...]:
        """Take in the conditions of another capture of the pipeline, also while runs go on.

        Args:
            other: Of other prompts; its `start` is the noise to begin at.

        Returns:
            The slots of its samples here; `conditions.evict` lets go of them.

        Raises:
            ArgumentError: Where the two cannot share a call.
        """
        same = self.module is other.module and self.names == other.names
        if not same or (self.clock, self.place, self.joined) != (
            other.clock, other.place, other.joined
        ):  # fmt: skip
            raise ArgumentError("the other capture is one of another pipeline or another size")
        if self.scale != other.scale or not torch.equal(self.weights, other.weights):
            raise ArgumentError(
                f"the other was captured with guidance={other.scale}, and this one with"
                f" {self.scale}: capture it with guidance={self.scale}"
            )
        return self.conditions.add(other.conditions)

    def __call__(
        self, x: Tensor, times: Tensor, samples: Sequence[int],
        scales: Sequence[float | None] | None = None,
        rescales: Sequence[float] | None = None,
    ) -> Tensor:  # fmt: skip
        """What the pipeline hands to its scheduler, in one network call.

        Args:
            x: Samples (n, …), in coordinates of unit variance.
            times: The scheduler's times (n,).
            samples: The slot of each sample's conditions.
            scales: Guidance scale of each; 1 computes the conditional part alone, None is the
                captured one.
            rescales: See `Guidance.rescale`; 0 where it is left out.

        Returns:
            The raw output (n, …).
        """
        scales = [None] * len(x) if scales is None else scales
        rescales = [0.0] * len(x) if rescales is None else rescales
        levels = [At(math.nan, math.nan, time) for time in times.double().tolist()]
        slots = [(slot,) for slot in samples]
        each = zip(torch.split(x, 1), levels, slots, scales, rescales, strict=True)
        return Answer.join(self.evaluate(list(itertools.starmap(Query, each)))).raw

    def evaluate(self, queries: Sequence[Query]) -> list[Answer]:
        """One network call for all queries; see `Network`.

        Raises:
            ArgumentError: For a slot without conditions, and for guidance that the capture has not.
        """
        counts = [self._cost(query) for query in queries for _ in range(len(query.x))]
        slots = [slot for query in queries for slot in query.conditions]
        repeats = torch.tensor(counts)
        again = torch.arange(len(counts)).repeat_interleave(repeats)
        x = torch.cat([query.x for query in queries])
        times = torch.cat([_times(query) for query in queries])
        part = [p for n in counts for p in ([self.place] if n == 1 else range(n))]
        rows = [slots[i] for i in again.tolist()], part
        outputs = iter(torch.split(self.outputs(x[again], times[again], *rows), counts))
        return [
            self._answer(query, [next(outputs) for _ in range(len(query.x))]) for query in queries
        ]

    def outputs(
        self, x: Tensor, times: Tensor, slots: Sequence[int], parts: Sequence[int]
    ) -> Tensor:
        """The network's output.

        Args:
            x: Samples (n, …).
            times: The scheduler's times (n,).
            slots: Whose conditions, (n,).
            parts: Which part of them, (n,); that at `place` is the conditional one.

        Returns:
            Raw outputs (n, …), in the dtype of x.
        """
        arguments = self.conditions.select(slots, parts)
        entering, extra = x.to(self.entry), arguments.pop(watched.EXTRA)
        if extra is not None:
            entering = torch.cat([entering, extra.to(entering)], dim=self.joined)
        clock = self.clock[0] * times.double() + self.clock[1]
        dtype = self.time_dtype or torch.float32
        if self.time_dtype is None or not self.time_dtype.is_floating_point:
            whole = not clock.requires_grad and bool((clock == clock.round()).all())
            dtype = torch.int64 if whole else torch.float32
        arguments |= {self.names[0]: entering, self.names[1]: clock.to(x.device, dtype)}
        output = batch_tree.tensors(self.module(**arguments))
        assert output is not None
        return output[:, : x.shape[1]].to(x.dtype)

    def _cost(self, query: Query) -> int:
        """Network evaluations for one sample of a query."""
        if len(query.conditions) != len(query.x):
            raise ArgumentError(
                f"{len(query.x)} samples need the slot of each one's conditions, got"
                f" {len(query.conditions)}"
            )
        if query.forecast is None:
            return self.cost(query.scale)
        if self.parts == 2:
            return 1
        raise ArgumentError(
            f"this has {self.parts} parts, and one of two can be forecast: leave forecast= out"
        )

    def _answer(self, query: Query, outputs: list[Tensor]) -> Answer:
        """A query's raw output, from the parts (parts, …) of each of its samples."""
        if query.method is not None or query.uncond:
            return self._guided(query, outputs)
        raw, differences = [], []
        for i, output in enumerate(outputs):
            if query.difference and len(output) == 2:
                differences.append(output[self.place] - output[1 - self.place])
            if query.forecast is not None:
                uncond = output - query.forecast[i].to(output)
                output = torch.cat([output, uncond] if self.place == 0 else [uncond, output])
            raw.append(self._combined(output, query.scale, query.rescale))
        return Answer(torch.stack(raw), torch.stack(differences) if differences else None)

    def _guided(self, query: Query, outputs: list[Tensor]) -> Answer:
        """A query's answer where more is made of its two parts than a sum, or is read of them."""
        scale = self.scale if query.scale is None else query.scale
        parts = torch.stack(outputs) * self._sign
        if parts.shape[1] == 1 and query.forecast is None:  # not guided
            return Answer(parts[:, 0], None, parts[:, 0] if query.uncond else None, query.momentum)
        if self.parts != 2 or scale is None:
            raise ArgumentError(
                f"a guidance method combines two parts by one scale, and this has {self.parts} at"
                f" guidance {self.scale}: guide it by cfg(…)"
            )
        cond = parts[:, 0 if query.forecast is not None else self.place]
        if query.forecast is not None:
            uncond = cond - query.forecast.to(cond)
        else:
            uncond = parts[:, 1 - self.place]
        return query._replace(scale=scale).guided(cond, uncond)

    def _combined(self, output: Tensor, scale: float | None, rescale: float) -> Tensor:
        """The parts (parts, …) of one sample, guided."""
        if len(output) == 1:
            return output[0] * self._sign
        weights = self.weights if scale in (None, self.scale) else self._weights(scale)
        guided = (output * weights.to(output)).sum(0)
        if not rescale:
            return guided
        return guided * (1 - rescale + rescale * stretch(output[self.place].std(), guided.std()))

    @property
    def _sign(self) -> float:
        """-1 where the pipeline hands the negated output to its scheduler."""
        return 1.0 if float(self.weights.sum()) > 0 else -1.0

    def _weights(self, scale: float) -> Tensor:
        """The weights at another scale.

        The guidance beyond 1 grows in proportion, per frame where it varies.
        """
        if self.parts != 2 or self.scale is None:
            raise ArgumentError(
                f"this was captured with {self.parts} parts at guidance {self.scale}: capture it"
                f" with guidance={scale:g}"
            )
        cond = 1 + (self.weights[self.place] * self._sign - 1) * (scale - 1) / (self.scale - 1)
        weights = torch.empty_like(self.weights)
        weights[self.place], weights[1 - self.place] = cond * self._sign, (1 - cond) * self._sign
        return weights


def _times(query: Query) -> Tensor:
    """The time of each sample of a query (n,)."""
    time, count = query.level.time, len(query.x)
    if isinstance(time, Tensor):
        return time.expand(count)
    return torch.full((count,), time, dtype=torch.float64)


def _captured(
    helm: Helm, rows: list[watched.WatchedRow], scale: float | None, run: Run, process: Process
) -> Captured:
    """What the rows show, checked. Raises `NotCaptured` where they do not fit together."""
    pipe, start = type(helm.pipe).__name__, rows[0].x
    module = watched.module(rows, pipe)
    each = [watched.merged(row, len(start), pipe) for row in rows]
    names = watched.names(each[0], pipe)
    sample, time = (each[0][name] for name in names)
    extra, joined = watched.layout(each, rows, names[0], pipe)
    clock = watched.clock(
        [watched.time(m[names[1]]) for m in each], [row.time for row in rows], pipe
    )
    weights = watched.weights(rows, len(start), pipe)
    guided = len(weights) > 1
    place = int(weights.flatten(1).abs().sum(1).argmax()) if guided else 0
    if scale is None and guided and weights[0].numel() == 1:
        scale = float(weights[place] / weights.sum())
    arguments = {**watched.constant(each, names, pipe), watched.EXTRA: extra}
    captured = Captured(
        helm, module, start, process, run.prediction, run.denoised_fn, scale if guided else None,
        Conditions(arguments, len(start), len(weights), batch_tree.batched), names,
        sample.new_empty(0), time.dtype if isinstance(time, Tensor) else None, joined, clock,
        weights, place,
    )  # fmt: skip
    _check(captured, rows, pipe)
    return captured


@torch.no_grad()
def _check(captured: Captured, rows: list[watched.WatchedRow], pipe: str) -> None:
    """One call with samples of every row must give what the rows gave."""
    slots = [k % captured.count for k in range(len(rows))]
    x = torch.stack([row.x[i] for row, i in zip(rows, slots, strict=True)])
    raw = torch.stack([row.raw[i] for row, i in zip(rows, slots, strict=True)])
    times = torch.tensor([row.time for row in rows], dtype=torch.float64)
    try:
        again = captured(x, times, slots)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise NotCaptured(
            f"the network of {pipe} does not take samples of different times: {error}"
        ) from error
    off = float((again - raw).abs().max() / raw.abs().max())
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in (captured.entry, raw))
    if not off <= (watched.HALF if half else watched.EXACT):
        raise NotCaptured(
            f"the network of {pipe} gives something else outside its loop, by {off:.2g} of its"
            " largest"
        )
