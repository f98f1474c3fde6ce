"""Seeds of a sampler's noise from the generator of a call, which advances as it does in diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.noise import Seeded, source
from ...errors import ArgumentError, RunError
from .. import caller
from ..caller import Generators

if TYPE_CHECKING:
    from ...core.run import Run
    from ...core.sampler import Sampler

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

    if TYPE_CHECKING:

        @property
        def run(self) -> Run: ...

        @property
        def _sampler(self) -> Sampler: ...

    def _unseeded(self, row: int, like: Tensor) -> Tensor:
        """Stands for the noise of a run until `_seed`."""
        raise RunError(
            "the sampler's noise gets its seeds with the first step of the scheduler: call step"
            " first"
        )

    def _seed(self, generator: Any, batch: int) -> None:
        """Seeds for a stochastic sampler that was given none: drawn from the call's generators,
        else from torch's.
        """
        run = self.run
        if run.noise == self._unseeded:
            seeds = drawn(generator or caller.generator(), batch)
            run.draw_from(source(self._sampler.source, seeds, run.table))

    def _spread(self, sample: Tensor) -> None:
        """Where frames or halves are a batch, a sample is several of it and its seed serves all of
        them.
        """
        run = self.run
        if not run.started and isinstance(run.noise, Seeded):
            run.draw_from(run.noise.spread(sample))

    def _advance(self, raw: Tensor, noise: Tensor | None, learned: Tensor | None = None) -> None:
        """One row, with `noise` where a pipeline gives the row's. `learned`: the network's
        variance, left unread.
        """
        run = self.run
        if noise is None:
            run.advance(raw)
            return
        if not (run.table.x[run.row, -1] or run.table.base[run.row, -1]):
            raise ArgumentError(
                f"this pipeline gives the noise that its inversion found, and {run.table.solver!r}"
                " takes none: use a stochastic sampler, e.g. Sampler('ddim', options={'eta': 1})"
            )
        run.advance(raw, lambda row, like: noise.to(like))
