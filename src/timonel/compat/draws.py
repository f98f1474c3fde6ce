"""The noise of diffusers' steps: drawn from the generator that `step` is called with, where
diffusers' class draws it.

Where a scheduler has seeds of its own (`request.seeds`), they are the noise's source, as everywhere
in timonel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..core.drawn import DrawnNoise
from ..pipelines.sockets.scheduler import Scheduler

In = torch.dtype | Literal["output", "both"]


class Draws(Scheduler):
    """What `Compat` does with noise. Each class says by `_draws` in which of its calls diffusers'
    class draws.
    """

    draws_in: ClassVar[In] = (
        "output"  # dtype of the noise: the network output's, or what that and the sample make
    )

    if TYPE_CHECKING:
        config: Any

    def _draws(self) -> bool:
        """Whether diffusers' class draws noise in the coming call; by default where the row adds
        some.
        """
        run = self.run
        return bool(run.table.x[run.row, -1] or run.table.base[run.row, -1])

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
        """One row; its noise is drawn first, where diffusers' class draws it even if the row adds
        none.
        """
        run, draws = self.run, self._draws()
        if noise is None and draws and isinstance(run.noise, DrawnNoise):
            kind = self.draws_in
            dtype = raw.dtype if kind == "output" else kind
            if kind == "both":
                dtype = torch.promote_types(raw.dtype, run.latents.dtype)
            assert isinstance(dtype, torch.dtype)
            run.noise.draw(run.row, raw.shape, dtype, raw.device)
        unused = draws and not Draws._draws(self)  # diffusers adds 0 times the noise that it gets
        self._apply(raw, None if unused else noise, learned)

    def _apply(self, raw: Tensor, noise: Tensor | None, learned: Tensor | None) -> None:
        super()._advance(raw, noise, learned)

    def __deepcopy__(self, memo: dict[int, Any]) -> Draws:
        twin: Draws = super().__deepcopy__(memo)
        run = twin.current
        if run is not None and isinstance(run.noise, DrawnNoise):
            # as in diffusers, where each draws from the generator that it is given
            run.draw_from(run.noise.fork())
        return twin
