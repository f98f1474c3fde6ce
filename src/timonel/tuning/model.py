"""The network that a sampler is fitted to, as a denoiser of many samples at levels of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.guidance import CompiledGuidance, Guidance, combine
from ..core.prediction import check, coefficients
from ..core.process import At, Level, Process
from ..core.program import DenoisedFn
from ..core.run import Run
from ..core.table import Table
from ..pipelines.capture import Captured
from .parameters import Arrays

LARGE = 100_000_000  # parameters of a network whose graph is not kept
TOGETHER, MOST = 2**17, 64  # numbers of the samples in a network call, and evaluations in it


class Model(ABC):
    """A network with `count` samples: their initial noise, and whatever else belongs to each.

    `differentiable`: whether a gradient flows through `denoised`. `stepwise`: whether the network
    can be called by itself; else only `run` works. `lean`: whether a gradient computes the network
    again instead of keeping what it made, which takes a third more time and a fraction of the
    memory. `half`: whether it computes in half precision. `evaluations`: network evaluations so
    far.
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
        self.evaluations = 0

    @abstractmethod
    def start(self, samples: Sequence[int]) -> Tensor:
        """The initial noise (n, …) of `samples`."""

    @abstractmethod
    def guided(
        self,
        x: Tensor,
        level: Level,
        samples: Sequence[int],
        scale: float | None,
        away: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The network's guided output (n, …) for x at levels of (n,) numbers, and cond - uncond
        where it has both.

        `away`: that difference as it is foreseen, so that only the conditional half is computed.
        """

    def call(
        self,
        x: Tensor,
        level: Level,
        samples: Sequence[int],
        scale: float | None,
        away: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `guided`, with the denoised prediction (n, …), in at least single precision, for the
        output.
        """
        raw, apart = self.guided(x, level, samples, scale, away)
        wide = torch.promote_types(x.dtype, torch.float32)
        c_x, c_raw = (
            c.to(x.device, wide).reshape(-1, *(1,) * (x.ndim - 1))
            for c in coefficients(self.prediction, level)
        )
        clean = c_x * x.to(wide) + c_raw * raw.to(wide)
        return clean if self.denoised_fn is None else self.denoised_fn(clean), apart

    def denoised(
        self, x: Tensor, level: Level, samples: Sequence[int], scale: float | None
    ) -> Tensor:
        """The denoised prediction (n, …); `scale` 1 is no guidance, None the model's own."""
        return self.call(x, level, samples, scale)[0]

    @property
    def scale(self) -> float | None:
        """The guidance scale where it is guided all the way, as targets are; None is the network's
        own.
        """
        scale = None if self.guidance is None else self.guidance.scale
        assert not isinstance(scale, tuple)
        return scale

    def always(self) -> Guidance | None:
        """The guidance without its interval and without forecasts."""
        return self.guidance and replace(
            self.guidance, start=0.0, stop=math.inf, unit="ratio", forecast=1
        )

    def run(self, table: Table, samples: Sequence[int], always: bool = False) -> Tensor:
        """The results (n, …) of any deterministic table. `always`: guided all the way."""
        guidance = self.always() if always else self.guidance
        made = Run(table, self.prediction, denoised_fn=self.denoised_fn, guidance=guidance)
        made.start(self.start(samples))
        for _ in made.rows():
            raw, apart = self.guided(
                made.latents, spread(made.level, len(samples)), samples, made.scale, made.forecast
            )
            if apart is not None and made.remembers:
                made.remember(apart)
            made.advance(raw)
        return made.result

    def plan(self, arrays: Arrays) -> CompiledGuidance:
        """How every row is guided."""
        return CompiledGuidance.of(self.guidance, arrays.table("fit", "fit"), self.prediction)


def spread(at: At, count: int) -> Level:
    """A level of floats as one for each of `count` samples."""
    return Level(
        *(torch.full((count,), v, dtype=torch.float64) for v in (at.alpha, at.sigma, at.time))
    )


class Pipeline(Model):
    """A captured pipeline: `batch` network evaluations a call, by default as many as `TOGETHER`
    numbers make up.
    """

    differentiable = True

    def __init__(
        self, captured: Captured, guidance: Guidance | None, batch: int | None = None
    ) -> None:
        super().__init__()
        self.captured, self.guidance = captured, guidance
        self.batch = batch or max(1, min(MOST, TOGETHER // captured.start[0].numel()))
        self.process, self.prediction, self.denoised_fn = (
            captured.process,
            captured.prediction,
            captured.denoised_fn,
        )
        self.count = captured.count
        self.half = captured.given[captured.names[0]].dtype in (torch.float16, torch.bfloat16)
        self.lean = sum(p.numel() for p in captured.module.parameters()) > LARGE

    def start(self, samples: Sequence[int]) -> Tensor:
        return self.captured.start[list(samples)]

    def guided(
        self,
        x: Tensor,
        level: Level,
        samples: Sequence[int],
        scale: float | None,
        away: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        each = self.captured.cost(scale) if away is None else 1
        many = max(1, self.batch // each)
        rescale = 0.0 if self.guidance is None else self.guidance.rescale
        self.evaluations += each * len(x)
        made, apart = list[Tensor](), list[Tensor]()
        for i in range(0, len(x), many):
            part = slice(i, i + many)
            n = len(x[part])
            told = level.time[part] if level.time.ndim else level.time
            foreseen = None if away is None else list(away[part])
            raw, found = self.captured.guided(
                x[part], told.expand(n), list(samples[part]), [scale] * n, [rescale] * n, foreseen
            )
            made.append(raw)
            apart += [d for d in found if d is not None]
        return torch.cat(made), torch.stack(apart) if apart else None


class Plain(Model):
    """A denoiser of your own, `denoise(x, level)`, as `timonel.sample` takes it; x (count, …) is
    the initial noise.
    """

    def __init__(
        self, denoise: Callable[[Tensor, At], Tensor], x: Tensor, process: Process,
        prediction: str = "sample",
        unconditional: Callable[[Tensor, At], Tensor] | None = None,
        guidance: Guidance | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.denoise, self.x, self.process, self.prediction = denoise, x, process, check(prediction)
        self.unconditional, self.guidance, self.count = unconditional, guidance, len(x)

    def start(self, samples: Sequence[int]) -> Tensor:
        return self.x[list(samples)]

    def guided(
        self,
        x: Tensor,
        level: Level,
        samples: Sequence[int],
        scale: float | None,
        away: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        told = torch.stack([v.expand(len(x)) for v in level], 1)
        made: Any = None
        apart: Any = None
        for one in torch.unique(told, dim=0):
            chosen = (told == one).all(1)
            out, other = self._at(
                x[chosen], At(*one.tolist()), scale, None if away is None else away[chosen]
            )
            made = x.new_empty(len(x), *out.shape[1:]) if made is None else made
            made[chosen] = out
            if other is not None:
                apart = torch.empty_like(made) if apart is None else apart
                apart[chosen] = other
        return made, apart

    def _at(
        self, x: Tensor, at: At, scale: float | None, away: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self.evaluations += len(x)
        cond = self.denoise(x, at)
        if self.unconditional is None or scale in (None, 1.0):
            return cond, None
        if away is None:
            self.evaluations += len(x)
        uncond = self.unconditional(x, at) if away is None else cond - away
        rescale = 0.0 if self.guidance is None else self.guidance.rescale
        return combine(cond, uncond, float(scale or 1.0), rescale), (
            None if away is not None else cond - uncond
        )
