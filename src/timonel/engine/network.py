"""What a run asks of its network, and the protocol of everything that answers.

Captured pipelines, plain denoisers, the models of a fit and exact models are all a `Network`. It
serves several runs at once: a `Query` is the next row of one of them, with samples, level and
guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..core import border
from ..core.guidance import CompiledGuidance, Method, Outputs, Place, guide
from ..core.process import At, Level, Process
from ..core.program import DenoisedFn

Denoiser = Callable[[Tensor, At], Tensor]


class Query(NamedTuple):
    """What the next row of a run asks of its network.

    Args:
        x: Samples (n, …), in coordinates of unit variance.
        level: Their noise level; tensors (n,), one level each, where gradients go through it.
        conditions: The slot of each sample's conditions, (n,); empty where the network has none.
        scale: Guidance scale; 1 computes the conditional part alone, None is the network's.
        rescale: Share of the guided output that gets the standard deviation of the conditional one.
        forecast: cond - uncond (n, …) where it is known, so that cond alone is computed.
        difference: Whether cond - uncond is wanted where both are computed.
        method: How the outputs are combined; None by the scale alone.
        place: Of the row, for the method.
        momentum: Of the method (n, …), from the row before.
        uncond: Whether the unconditional output is wanted where there is one.
    """

    x: Tensor
    level: At | Level
    conditions: Sequence[int] = ()
    scale: float | None = None
    rescale: float = 0.0
    forecast: Tensor | None = None
    difference: bool = False
    method: Method | None = None
    place: Place | None = None
    momentum: Tensor | None = None
    uncond: bool = False

    def cost(self, network: Network) -> int:
        """Network evaluations, conditional and unconditional ones."""
        return len(self.x) * (1 if self.forecast is not None else network.cost(self.scale))

    def split(self) -> list[Query]:
        """One query for each sample."""
        return [self._replace(
            x=self.x[i : i + 1],
            level=self.level if isinstance(self.level, At) else Level(*(v[i] for v in self.level)),
            conditions=self.conditions[i : i + 1],
            forecast=None if self.forecast is None else self.forecast[i : i + 1],
            momentum=None if self.momentum is None else self.momentum[i : i + 1],
        ) for i in range(len(self.x))]  # fmt: skip

    @classmethod
    def join(cls, queries: Sequence[Query]) -> Query:
        """Queries of one level and guidance as a single one."""
        if len(queries) == 1:
            return queries[0]
        forecasts = [q.forecast for q in queries if q.forecast is not None]
        momenta = [q.momentum for q in queries if q.momentum is not None]
        return queries[0]._replace(
            x=torch.cat([q.x for q in queries]),
            conditions=[slot for q in queries for slot in q.conditions],
            forecast=torch.cat(forecasts) if forecasts else None,
            momentum=torch.cat(momenta) if momenta else None,
        )

    @property
    def guidance(self) -> tuple[object, ...]:
        """What queries have to agree in to be guided as one, but for their level."""
        known = self.forecast is None, self.momentum is None
        return (
            self.scale,
            self.rescale,
            self.method,
            self.place,
            self.difference,
            self.uncond,
            *known,
        )

    def guided(self, cond: Tensor, uncond: Tensor) -> Answer:
        """The answer that the two raw outputs make; the scale is a number."""
        outputs = Outputs(cond, uncond, self.x, self.place)
        assert self.scale is not None
        raw, momentum = guide(
            outputs, self.scale, rescale=self.rescale, method=self.method, momentum=self.momentum
        )
        difference = cond - uncond if self.difference and self.forecast is None else None
        return Answer(raw, difference, uncond if self.uncond else None, momentum)


class Answer(NamedTuple):
    """A network's raw output (n, …), and what the guidance of the row leaves beside it.

    Args:
        raw: The guided output.
        difference: cond - uncond, where that was wanted and computed.
        uncond: The unconditional output, where that was wanted and there is one.
        momentum: Of the guidance method, for the next row.
    """

    raw: Tensor
    difference: Tensor | None = None
    uncond: Tensor | None = None
    momentum: Tensor | None = None

    def split(self, sizes: list[int]) -> list[Answer]:
        """The answers to the queries of `sizes` samples that were joined."""
        if len(sizes) == 1:
            return [self]
        none = [None] * len(sizes)
        parts = (none if field is None else torch.split(field, sizes) for field in self)
        return [Answer(*each) for each in zip(*parts, strict=True)]

    @classmethod
    def join(cls, answers: Sequence[Answer]) -> Answer:
        """Answers to queries of one level and guidance as a single one."""
        raw, *aside = zip(*answers, strict=True)
        kept = ([one for one in field if one is not None] for field in aside)
        return cls(torch.cat(raw), *(torch.cat(field) if field else None for field in kept))


class Network(Protocol):
    """Whatever evaluates the rows of runs."""

    def cost(self, scale: float | None) -> int:
        """Network evaluations for one sample at this guidance scale."""

    def evaluate(self, queries: Sequence[Query]) -> list[Answer]:
        """An answer to each query, in their order."""


class RunnableNetwork(Network, Protocol):
    """A network that says what a run on it needs."""

    process: Process
    prediction: str
    denoised_fn: DenoisedFn | None


@dataclass(frozen=True)
class Denoisers:
    """A conditional denoiser `denoise(x, level)`, and an unconditional one where it is guided."""

    conditional: Callable[[Tensor, Any], Tensor]
    unconditional: Callable[[Tensor, Any], Tensor] | None = None

    def cost(self, scale: float | None) -> int:
        """Network evaluations for one sample; None is no guidance here."""
        return 1 if self.unconditional is None or scale in (None, 1.0) else 2

    def evaluate(self, queries: Sequence[Query]) -> list[Answer]:
        """An answer to each query. Raises `ArgumentError` for outputs unlike their samples."""
        if len(queries) == 1:
            return [self._answer(queries[0])]
        alike: dict[tuple[object, ...], list[int]] = {}  # of one level and guidance
        for i, q in enumerate(queries):
            alike.setdefault((q.level, *q.guidance), []).append(i)
        answers: dict[int, Answer] = {}
        for places in alike.values():
            some = [queries[i] for i in places]
            answer = self._answer(Query.join(some))
            answers |= zip(places, answer.split([len(q.x) for q in some]), strict=True)
        return [answers[i] for i in range(len(queries))]

    def _answer(self, query: Query) -> Answer:
        x, level, scale, forecast = query.x, query.level, query.scale, query.forecast
        cond = self.conditional(x, level)
        if scale is None or scale == 1.0 or self.unconditional is None:
            return Answer(cond, momentum=query.momentum)  # the run looks at it
        cond = border.output(cond, x)
        if forecast is not None:
            return query.guided(cond, cond - forecast)
        return query.guided(cond, border.output(self.unconditional(x, level), x))


def evaluations(guided: CompiledGuidance, cost: Callable[[float | None], int]) -> int:
    """Network evaluations of a whole run for one sample.

    Args:
        guided: The guidance of its rows, `run.guided`.
        cost: Evaluations at a guidance scale, such as `network.cost`.
    """
    rows = zip(guided.scales, guided.weights, strict=True)
    return sum(1 if weights else cost(scale) for scale, weights in rows)
