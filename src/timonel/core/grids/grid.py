"""The levels of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import GridError, whole
from ..process import Level, Process

MOST_STEPS = 10_000  # ten times the usual number of training levels; more is a mistake


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels of a run, noisiest first.

    Step k goes from level k to `end(k)`. That is level k + 1, or with `ends` a cleaner level, from
    which fresh noise brings the sample to level k + 1. Churn, ancestral steps and restarts are such
    grids (`renoise.py`), so every solver has them.

    Args:
        process: the noise process that the levels belong to.
        alpha: (steps + 1,), float64.
        sigma: (steps + 1,), float64.
        time: (steps + 1,), float64: network times.
        name: for messages and tables.
        ends: the levels where steps end, (steps,) each; None: where the next step begins.
        slopes: the basis of slopes that come before, "noise" or "velocity"; None: the grid's own.

    Raises:
        GridError: for levels that are not finite or do not fall, or ends above the next level.
    """

    process: Process
    alpha: Tensor
    sigma: Tensor
    time: Tensor
    name: str = "custom"
    ends: Level | None = None
    slopes: str | None = None

    def __post_init__(self) -> None:
        sizes = {tuple(v.shape) for v in (self.alpha, self.sigma, self.time)}
        if len(sizes) != 1 or self.alpha.ndim != 1 or len(self.alpha) < 2:
            raise GridError(
                f"a grid needs at least 2 levels as equal 1-D tensors, got shapes {sorted(sizes)}"
            )
        few_enough("steps", self.steps)
        parts = [self.alpha, self.sigma, self.time, *(self.ends or ())]
        if not bool(torch.isfinite(torch.cat(parts)).all()):
            raise GridError(f"grid {self.name!r} has a level that is not finite")
        self._check_falling()

    def _check_falling(self) -> None:
        noise = -self.lam.detach()  # an angle would have no digits left near pure noise
        end = noise[1:] if self.ends is None else -self.ends.lam.detach()
        if end.shape != noise[1:].shape:
            raise GridError(f"a grid of {self.steps} steps needs as many ends, got {len(end)}")
        flat = (end >= noise[:-1]).nonzero().flatten()
        if len(flat):
            k = int(flat[0])
            a, b = self.ratio_at(k), self.end(k)
            raise GridError(
                f"levels must fall strictly: in grid {self.name!r} level {k + 1} (sigma/alpha"
                f" {ratio(b):.6g}) is not below level {k} ({a:.6g}); remove repeated or rising"
                " values, or use fewer steps"
            )
        if bool((end > noise[1:] + 1e-9).any()):
            raise GridError(
                f"a step of grid {self.name!r} ends above the level where the next one begins"
            )

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.alpha) - 1

    def __len__(self) -> int:
        return len(self.alpha)

    @cached_property
    def _levels(self) -> list[Level]:
        parts = (self.alpha.unbind(), self.sigma.unbind(), self.time.unbind())
        return [Level(*level) for level in zip(*parts, strict=True)]

    def __getitem__(self, k: int) -> Level:
        return self._levels[k]

    def end(self, k: int) -> Level:
        """The level where step k ends, before fresh noise."""
        return self[k + 1] if self.ends is None else Level(*(v[k] for v in self.ends))

    def renoised(self, k: int) -> bool:
        """Whether fresh noise brings the sample from the end of step k - 1 up to level k."""
        return k > 0 and self.ends is not None and bool(self.end(k - 1).lam > self[k].lam + 1e-12)

    def ratio_at(self, k: int) -> float:
        """sigma / alpha of level k as a float (inf at pure noise)."""
        return ratio(self[k])

    @property
    def lam(self) -> Tensor:
        """log(alpha / sigma) of every level."""
        return Level(self.alpha, self.sigma, self.time).lam

    @classmethod
    def of(cls, process: Process, levels: Level, name: str, *, clean: bool = True) -> Grid:
        """A grid through some levels.

        Args:
            process: the noise process.
            levels: (steps,) each, falling; with `clean=False` (steps + 1,).
            name: for messages and tables.
            clean: whether the clean level sigma = 0 is appended.

        Returns:
            The grid.

        Raises:
            GridError: as the class does.
        """
        alpha, sigma, time = levels
        if clean:
            end = process.clean()
            alpha, sigma, time = (torch.cat([a, b]) for a, b in zip(levels, end, strict=True))
        return cls(process, alpha, sigma, time, name)


class Rising(Grid):
    """The levels of a run from a picture to noise, cleanest first.

    Step k goes from level k up to `end(k)`, and no noise is added.
    """

    def _check_falling(self) -> None:
        noise = -self.lam.detach()
        end = noise[1:] if self.ends is None else -self.ends.lam.detach()
        flat = (end <= noise[:-1]).nonzero().flatten()
        if len(flat):
            k = int(flat[0])
            raise GridError(
                f"levels of an inversion must rise: in grid {self.name!r} the end of step {k}"
                f" (sigma/alpha {ratio(self.end(k)):.6g}) is not above its level"
                f" ({self.ratio_at(k):.6g})"
            )

    def renoised(self, k: int) -> bool:
        """Never."""
        return False


def few_enough(what: str, value: Any, low: int = 1, most: int = MOST_STEPS) -> int:
    """A number of steps as a Python int. Raises `GridError` for more than `most`."""
    count = whole(what, value, low)
    if count > most:
        raise GridError(
            f"{what}={count:,} is more than the {most:,} that a run may have; 10 to 50 are usual"
        )
    return count


def ratio(level: Level) -> float:
    """sigma / alpha as a float, inf at pure noise."""
    alpha, sigma = level.alpha.item(), level.sigma.item()
    return sigma / alpha if alpha > 0 else math.inf
