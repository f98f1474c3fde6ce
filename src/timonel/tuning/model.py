"""The network that a sampler is fitted to, with the samples that it is fitted on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.guidance import CompiledGuidance, Guidance
from ..core.prediction import check, coefficients
from ..core.process import At, Level, Process, double
from ..core.program import DenoisedFn
from ..core.table import Table
from ..engine.drive import finish, run_on
from ..engine.network import Answer, Denoiser, Denoisers, Query
from ..pipelines.capture import Captured
from .parameters import Arrays

LARGE = 100_000_000  # parameters of a network whose graph is not kept
TOGETHER, MOST = 2**17, 64  # numbers of the samples in a network call, and evaluations in it


class Model(ABC):
    """A network with `count` samples: their initial noise, and whatever else belongs to each.

    It is a `Network`, whose conditions are the numbers of the samples, and counts what it
    evaluates. A subclass says what it is by these attributes:

    Args:
        process: What noise the network was trained on.
        prediction: What it predicts.
        count: Number of samples.
        denoised_fn: Changes the denoised prediction before it is used; None leaves it.
        differentiable: Whether a gradient flows through it.
        stepwise: Whether the network can be called by itself; else only `run` works.
        lean: Whether a gradient computes the network again in place of keeping what it needs, which
            takes a third more time and a fraction of the memory.
        half: Whether it computes in half precision.
        guidance: As the sampler will be used.
    """

    process: Process
    prediction: str
    count: int
    denoised_fn: DenoisedFn | None = None
    differentiable = False
    stepwise = True
    lean = False
    half = False
    guidance: Guidance | None = None

    def __init__(self) -> None:
        self.evaluations = 0  # so far

    @abstractmethod
    def start(self, samples: Sequence[int]) -> Tensor:
        """The initial noise (n, …) of `samples`."""

    @abstractmethod
    def answers(self, queries: Sequence[Query]) -> list[Answer]:
        """An answer to each query; gradients flow where the model is differentiable."""

    def cost(self, scale: float | None) -> int:
        """Network evaluations for one sample at this guidance scale."""
        return 1

    def evaluate(self, queries: Sequence[Query]) -> list[Answer]:
        """As `answers`, and counted."""
        self.evaluations += sum(query.cost(self) for query in queries)
        return self.answers(queries)

    def denoised(self, queries: Sequence[Query]) -> list[Answer]:
        """As `evaluate`, with the denoised prediction, in at least single precision, as output."""
        answers = zip(queries, self.evaluate(queries) if queries else [], strict=True)
        return [answer._replace(raw=self._clean(query, answer.raw)) for query, answer in answers]

    def _clean(self, query: Query, raw: Tensor) -> Tensor:
        x, level = query.x, query.level
        if isinstance(level, At):
            level = Level(*(double([v]) for v in (level.alpha, level.sigma, level.time)))
        wide = torch.promote_types(x.dtype, torch.float32)
        c_x, c_raw = (
            c.to(x.device, wide).reshape(-1, *(1,) * (x.ndim - 1))
            for c in coefficients(self.prediction, level)
        )
        clean = c_x * x.to(wide) + c_raw * raw.to(wide)
        return clean if self.denoised_fn is None else self.denoised_fn(clean)

    def query(
        self, x: Tensor, level: At | Level, samples: Sequence[int], scale: float | None
    ) -> Query:
        """The query of a row that is guided by `scale`; 1 is no guidance, None the model's."""
        rescale = 0.0 if self.guidance is None else self.guidance.rescale
        return Query(x, level, samples, scale, rescale)

    @property
    def scale(self) -> float | None:
        """The guidance scale of runs that are guided all the way; None is the network's."""
        scale = None if self.guidance is None else self.guidance.scale
        assert not isinstance(scale, tuple)
        return scale

    def always(self) -> Guidance | None:
        """The guidance without its interval and without forecasts."""
        return self.guidance and replace(
            self.guidance, start=0.0, stop=math.inf, unit="ratio", forecast=1
        )

    def run(self, table: Table, samples: Sequence[int], always: bool = False) -> Tensor:
        """The results (n, …) of any deterministic table.

        Args:
            table: Of any solver.
            samples: Their numbers (n,).
            always: Whether every row is guided, whatever interval the guidance has.
        """
        guidance = self.always() if always else self.guidance
        run = run_on(self, table, guidance=guidance)
        run.start(self.start(samples))
        return finish(run, self, samples)

    def guided(self, arrays: Arrays) -> CompiledGuidance:
        """How every row of a sampler is guided."""
        return CompiledGuidance.of(self.guidance, arrays.table("fit", "fit"), self.prediction)


class Pipeline(Model):
    """A captured pipeline.

    Args:
        captured: Its network with the conditions of all samples.
        guidance: As the sampler will be used.
        batch: Network evaluations a call, by default as many as `TOGETHER` numbers make up.
    """

    differentiable = True

    def __init__(
        self, captured: Captured, guidance: Guidance | None, batch: int | None = None
    ) -> None:
        super().__init__()
        self.captured, self.guidance = captured, guidance
        self.batch = batch or max(1, min(MOST, TOGETHER // captured.start[0].numel()))
        self.process, self.prediction = captured.process, captured.prediction
        self.denoised_fn, self.count = captured.denoised_fn, captured.count
        self.half = captured.entry.dtype in (torch.float16, torch.bfloat16)
        self.lean = sum(p.numel() for p in captured.module.parameters()) > LARGE

    def start(self, samples: Sequence[int]) -> Tensor:
        """See `Model.start`."""
        return self.captured.start[list(samples)]

    def cost(self, scale: float | None) -> int:
        """See `Network.cost`."""
        return self.captured.cost(scale)

    def answers(self, queries: Sequence[Query]) -> list[Answer]:
        """An answer to each query, in calls of at most `batch` evaluations."""
        answers, call, left = list[Answer](), list[Query](), self.batch
        for one in (one for query in queries for one in query.split()):
            cost = one.cost(self)
            if call and cost > left:
                answers += self.captured.evaluate(call)
                call, left = [], self.batch
            call.append(one)
            left -= cost
        singles = iter(answers + self.captured.evaluate(call))
        return [Answer.join([next(singles) for _ in range(len(query.x))]) for query in queries]


class Plain(Model):
    """Any denoiser.

    Args:
        denoise: `denoise(x, level)`, as `timonel.sample` takes it.
        x: The initial noise (count, …).
        process: What noise the denoiser knows.
        prediction: What it returns.
        unconditional: As `denoise`, where it is guided.
        guidance: As the sampler will be used.
    """

    def __init__(
        self, denoise: Denoiser, x: Tensor, process: Process, prediction: str = "sample",
        unconditional: Denoiser | None = None, guidance: Guidance | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.x = Denoisers(denoise, unconditional), x
        self.process, self.prediction = process, check(prediction)
        self.guidance, self.count = guidance, len(x)

    def start(self, samples: Sequence[int]) -> Tensor:
        """See `Model.start`."""
        return self.x[list(samples)]

    def cost(self, scale: float | None) -> int:
        """See `Network.cost`."""
        return self.network.cost(scale)

    def answers(self, queries: Sequence[Query]) -> list[Answer]:
        """See `Model.answers`."""
        return self.network.evaluate(queries)
