"""What pipelines read of a scheduler beside its protocol, and what its step gives them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..process import VP, Process, double
from ..run import Run


class Attributes:
    """The betas of a variance preserving process under diffusers' names, as some loops use them.

    Missing, as Python means it, where the process has none.
    """

    process: Process

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar = alpha² at every training time, (T,)."""
        if not isinstance(self.process, VP):
            raise AttributeError(f"a {self.process.kind} process has no betas")
        times = torch.arange(self.process.train_steps, dtype=torch.float64)
        return (self.process.at_time(times).alpha ** 2).float()

    @property
    def alphas(self) -> Tensor:
        """1 - beta at every training time, (T,)."""
        bar = self.alphas_cumprod.double()
        return (bar / torch.cat([double([1.0]), bar[:-1]])).float()

    @property
    def betas(self) -> Tensor:
        """beta at every training time, (T,)."""
        return 1 - self.alphas

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """abar where a grid ends: at sigma = 0."""
        return torch.ones_like(self.alphas_cumprod[0])


class Stepped:
    """What `Scheduler.step` returns: `(prev_sample, pred_original_sample)`, the second made only where it is read.

    By attribute, place or name, as diffusers' outputs are read.
    """

    NAMES = ("prev_sample", "pred_original_sample")

    def __init__(self, run: Run, sample: Tensor) -> None:
        self._run, self.prev_sample = run, sample

    @property
    def pred_original_sample(self) -> Tensor:
        """The denoised prediction; the sample itself where the run has arrived at sigma = 0, edits included."""
        run = self._run
        done = run.row == run.table.nfe and bool(run.table.sigma[-1] == 0)
        return self.prev_sample if done or run.called_at is None else run.denoised

    def __len__(self) -> int:
        return 2

    def __getitem__(self, key: int | str) -> Tensor:
        if isinstance(key, str) and key not in self.NAMES:
            raise KeyError(key)
        made: Tensor = getattr(self, key if isinstance(key, str) else self.NAMES[key])
        return made

    def __iter__(self) -> Iterator[Tensor]:
        yield self[0]
        yield self[1]


def held(raw: Tensor, times: Tensor, time: float) -> Tensor:
    """The velocity at the row's level that says of every token what its own does at its level.

    `x - t·v` is the denoised token at its own t: scaled by t / time, the row's formula gives the same.
    """
    return -raw * (times.to(raw) / time)[..., None]
