"""The noise of diffusers' steps: drawn from the generator of `step`, where diffusers' draws it.

Where a scheduler has seeds of its own (`request.seeds`), they are the noise's source, as everywhere
in timonel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..core.drawn import DrawnNoise
from ..pipelines.classes.rows import Row
from ..pipelines.sockets.scheduler import Scheduler


class Draws(Scheduler):
    """What `Compat` does with noise; `_draws` says in which calls diffusers' class draws."""

    if TYPE_CHECKING:
        config: Any
        row: ClassVar[Row]

    def _adds(self) -> bool:
        """Whether the coming row adds noise."""
        run = self.run
        return bool(run.table.x[run.row, -1] or run.table.base[run.row, -1])

    def _draws(self) -> bool:
        """Whether diffusers' class draws noise in the coming call."""
        return self._adds() if self.row.draws is None else bool(self.row.draws(self.config))

    def _seed(self, generator: Any, batch: int) -> None:
        run, session = self.run, self.session
        if session.request.seeds is not None or session.noise is not None:
            super()._seed(generator, batch)
            return
        if self._draws() and (run.noise is None or run.noise == self._unseeded):
            run.draw_from(DrawnNoise())
        if isinstance(run.noise, DrawnNoise):
            run.noise.generators = generator

    def _advance(self, raw: Tensor, noise: Tensor | None, learned: Tensor | None = None) -> None:
        """One row; its noise is drawn first, as diffusers' class does even where it adds none."""
        run, draws = self.run, self._draws()
        if noise is None and draws and isinstance(run.noise, DrawnNoise):
            run.noise.draw(run.row, raw.shape, self._dtype(raw), raw.device, self._times_drawn())
        unused = draws and not self._adds()  # diffusers adds 0 times the noise that it gets
        self._apply(raw, None if unused else noise, learned)

    def _times_drawn(self) -> int:
        """How often diffusers' class draws in the coming call; the last noise is what it adds."""
        return 1

    def _dtype(self, raw: Tensor) -> torch.dtype:
        """The dtype of the noise that diffusers' class draws."""
        kind, sample = self.row.draws_in, self.run.latents.dtype
        if isinstance(kind, torch.dtype):
            return kind
        if kind in ("output", "sample"):
            return raw.dtype if kind == "output" else sample
        other = sample if kind == "both" else torch.float32
        return torch.promote_types(raw.dtype, other)

    def _apply(self, raw: Tensor, noise: Tensor | None, learned: Tensor | None) -> None:
        super()._advance(raw, noise, learned)

    def __deepcopy__(self, memo: dict[int, Any]) -> Draws:
        twin: Draws = super().__deepcopy__(memo)
        run = twin.current
        if run is not None and isinstance(run.noise, DrawnNoise):
            # as in diffusers, where each draws from the generator of its step
            run.draw_from(run.noise.fork())
        return twin
