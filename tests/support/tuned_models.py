"""Models that are known exactly, as a fit takes them; they answer for many levels at once, and
gradients flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from support.models import PROCESSES
from timonel.core.process import Level, Process
from timonel.exact import Mixture
from timonel.tuning import held_out
from timonel.tuning.model import Model
from timonel.tuning.targets import Targets, converge

START = "dpmpp_2m/karras"


class Exact(Model):
    """An exact denoiser with `count` samples of noise from `seed`."""

    prediction, differentiable = "sample", True

    def __init__(
        self, denoise: Callable[[Tensor, Level], Tensor], count: int = 18, seed: int = 0,
        process: Process = PROCESSES["vp"], shape: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        own = denoise.shape if shape is None else shape  # type: ignore[attr-defined]
        self.denoise, self.process, self.count = denoise, process, count
        self.x = torch.randn(count, *own, generator=generator, dtype=torch.float64)

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
        self.evaluations += len(x)
        return self.denoise(x, level), None


def mixture(seed: int = 0, count: int = 18, dimension: int = 4, **more: Any) -> Exact:
    """A random mixture of four components."""
    return Exact(Mixture.random(seed, 4, dimension), count, **more)


def fresh(model: Exact, count: int = 24, seed: int = 999) -> tuple[Exact, Targets]:
    """The same denoiser on noise that no fit has seen, with its own converged samples."""
    other = Exact(model.denoise, count, seed, model.process, tuple(model.x.shape[1:]))
    return other, converge(other, range(count), lambda _: None)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one usual sampler is measured beside a fit."""
    monkeypatch.setattr(held_out, "USUAL", (START,))
    monkeypatch.setattr(held_out, "GOALS", ())
