"""Seeds of a sampler's noise from the generator of a call, which advances as it does in diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..noise import Noise, Seeded, source
from . import caller
from .caller import Generators

if TYPE_CHECKING:
    from ..run import Run
    from ..sampler import Sampler

LARGEST = 2**62


def drawn(generators: Generators, batch: int) -> list[int]:
    """One seed from each of several generators, or `batch` from one; from torch's own without any."""
    if isinstance(generators, (list, tuple)):
        return [seed for generator in generators for seed in _draw(generator, 1)]
    assert not isinstance(generators, Sequence)
    return _draw(generators, batch)


def _draw(generator: torch.Generator | None, count: int) -> list[int]:
    device = "cpu" if generator is None else generator.device
    seeds: list[int] = torch.randint(LARGEST, (count,), generator=generator, device=device).tolist()
    return seeds


class Seeding:
    """The noise of a scheduler's run whose seeds come with its first step, for the helm gave none."""

    _seeded: Noise | None  # the noise, once it has seeds

    if TYPE_CHECKING:

        @property
        def run(self) -> Run: ...

        @property
        def _sampler(self) -> Sampler: ...

    def _seed(self, generator: Any, batch: int) -> None:
        """Seeds for a stochastic sampler that was given none: drawn from the call's generators, else from torch's."""
        if self.run.noise != self._late_noise or self._seeded is not None:
            return
        self._seeded = source(self._sampler.source, drawn(generator or caller.generator(), batch), self.run.table)

    def _spread(self, sample: Tensor) -> None:
        """Where frames or halves are a batch, a sample is several of it and its seed serves all of them."""
        run = self.run
        if run.started:
            return
        if isinstance(self._seeded, Seeded):
            self._seeded = self._seeded.spread(sample)
        if isinstance(run.noise, Seeded):
            run.noise = run.noise.spread(sample)

    def _late_noise(self, row: int, like: Tensor) -> Tensor:
        assert self._seeded is not None
        return self._seeded(row, like)
