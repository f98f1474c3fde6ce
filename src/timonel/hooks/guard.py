"""Ends a run where it becomes NaN, infinite or too large."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.hook import Hook
from ..core.not_finite import remedy
from ..errors import GuardStop, finite

if TYPE_CHECKING:
    from ..core.run import Run


class Guard(Hook):
    """See `guard`."""

    name = "guard"

    def __init__(self, limit: float = 1e4) -> None:
        self.limit = finite("guard limit", limit, 0)

    def on_start(self, run: Run) -> None:
        self._check(run, {"initial latents": run.latents})

    def on_step(self, run: Run) -> None:
        self._check(run, {"denoised prediction": run.denoised, "latents": run.latents})

    @torch.no_grad()
    def _check(self, run: Run, tensors: dict[str, Tensor]) -> None:
        flat = (t.detach().float().flatten(1) for t in tensors.values())
        sizes = torch.stack([x.square().mean(1).sqrt() for x in flat]).tolist()  # waits once
        for (what, tensor), size in zip(tensors.items(), sizes, strict=True):
            bad = [i for i, rms in enumerate(size) if not rms <= self.limit]
            if bad:
                raise GuardStop(self._message(run, what, tensor, bad, [size[i] for i in bad]))

    def _message(
        self, run: Run, what: str, tensor: Tensor, bad: list[int], size: list[float]
    ) -> str:
        at = run.called_at or run.level
        where = f"sample {', '.join(map(str, bad))} of {len(tensor)}"
        if len(bad) == len(tensor):
            where = "every sample of the batch"
        broken = int((~tensor[bad].isfinite()).sum())
        if broken:
            wrong = f"NaN or infinity in {broken} of {tensor[bad].numel()} elements"
        else:
            rms = max(s if math.isfinite(s) else math.inf for s in size)
            wrong = f"exploded to rms {rms:.3g} (limit {self.limit:g})"
        return (
            f"{what} of {where}: {wrong}, at step {run.step} of {run.steps}, level"
            f" alpha={at.alpha:.4g} sigma={at.sigma:.4g} time={at.time:.6g}."
            f" {remedy(run, at.alpha)}"
        )


def guard(limit: float = 1e4) -> Guard:
    """Raise `GuardStop` where latents or the denoised prediction hold NaN or infinity, or explode.

    Checked at the start and after every step; waits for the device once each time. The message has
    the step, the level, the samples of the batch, and what to try.

    Args:
        limit: largest root mean square of a sample, in units of latents, where 1 is usual.

    >>> guard().limit
    10000.0
    """
    return Guard(limit)
