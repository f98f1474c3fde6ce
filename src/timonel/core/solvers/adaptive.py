"""DPM-Solver-12 and -23 with a controlled step size: what a step is, and how long the next one.

A trial step of h in log(1/s) makes two results from the same predictions, by DPM-Solver of order p
and of order p - 1. Their distance, in units of the tolerance, decides whether the step is kept and
how long the next trial is. The rows of a trial hold both: the base after the last row but one is
the result of lower order, which the last row only adds to.

Source: Lu et al. 2022, arXiv 2206.00927, appendix C; sample_dpm_adaptive of k-diffusion; the
controller: Söderlind 2003, "Digital filters in adaptive time-stepping".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError, finite, whole
from ..grids import Grid, ancestral
from ..process import Level, Process
from ..table import Rows, Table
from .algebra import Frame, frame
from .exponential import DPM_SOLVERS
from .exponential_tableaus import Exponential, dpmpp_2s_tableau, first
from .runge_kutta import at_s, clean_step

SMALL = 1e-8  # keeps an error of 0 from making an infinite step
END = 1e-5  # distance in log s at which the last level counts as reached
BUDGET = 200
#: the pairs by order: the higher method, and the lower one with the same nodes
PAIRS: dict[int, tuple[Exponential, Exponential]] = {
    2: (DPM_SOLVERS[2], DPM_SOLVERS[1]),
    3: (DPM_SOLVERS[3], dpmpp_2s_tableau(1 / 3)),
}


class Pace(NamedTuple):
    """The controller between two trials.

    Args:
        h: length of the next trial in log(1/s).
        inverse: 1/error of the newest kept steps, newest first; empty before the first trial.
    """

    h: float
    inverse: tuple[float, ...] = ()


@dataclass(frozen=True)
class Trial:
    """A step that may be kept.

    Args:
        table: its rows; after them the row to the clean level, where the step reaches the last.
        start: where it begins.
        to: where it ends, noise included.
        arrives: whether that is the last level above sigma = 0.
        rows: how many rows the step has.
        low: from the result of lower order to y = x / m.
        high: from the result of the last row without noise to y = x / m.
    """

    table: Table
    start: Level
    to: Level
    arrives: bool
    rows: int
    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """A controlled journey on the levels of a grid: its ends, tolerance and budget.

    Args:
        grid: its first level, and its last one above sigma = 0, are the ends; where it ends at the
            clean level, one more call goes there.
        order: of the higher method, and calls per trial: 2 or 3.
        rtol: tolerance relative to |y|, above 0.
        atol: tolerance for small y, above 0.
        h_init: length of the first trial in log(1/s), above 0.
        pcoeff: proportional part of the controller.
        icoeff: integral part.
        dcoeff: derivative part.
        accept_safety: a trial is kept where the next one would be so many times as long or longer.
        eta: part of DDPM's noise, in [0, 1].
        s_noise: a factor of the noise.
        budget: most network calls.
    """

    grid: Grid
    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = 1.0
    budget: int = BUDGET

    def __post_init__(self) -> None:
        small = 1e-12
        checked = {
            "order": whole("order", self.order, 2, 3),
            **{name: finite(name, getattr(self, name), small, 1e6) for name in
               ("rtol", "atol", "h_init", "accept_safety")},
            **{name: finite(name, getattr(self, name), -100, 100) for name in
               ("pcoeff", "icoeff", "dcoeff")},
            "eta": finite("eta", self.eta, 0, 1),
            "s_noise": finite("s_noise", self.s_noise, 0, 100),
        }  # fmt: skip
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        whole("budget", self.budget, self.order + 1, 10**6)
        if self.grid.ends is not None or len(self._noisy) < 2:
            raise ArgumentError(
                f"'dpm_adaptive' needs two levels above sigma = 0 to go between, and grid"
                f" {self.grid.name!r} has {len(self._noisy)}; name another grid, or give"
                " sigmas=[first, last]"
            )

    @property
    def _noisy(self) -> list[Level]:
        return [level for level in map(self.grid.__getitem__, range(len(self.grid)))
                if bool(level.sigma > 0)]  # fmt: skip

    @property
    def process(self) -> Process:
        """The noise process."""
        return self.grid.process

    @property
    def frame(self) -> Frame:
        """The coordinates in which steps and errors are measured."""
        return frame(self.grid)

    @property
    def ends(self) -> tuple[Level, Level]:
        """The first and the last level above sigma = 0."""
        return self._noisy[0], self._noisy[-1]

    @property
    def clean(self) -> bool:
        """Whether one more call goes to the clean level."""
        return not bool(self.grid[self.grid.steps].sigma > 0)

    @property
    def least(self) -> int:
        """Network calls that one more trial needs, with the one to the clean level."""
        return self.order + self.clean

    # -- steps -------------------------------------------------------------------------------------
    def trial(self, start: Level, h: float) -> Trial:
        """The trial step of h from a level, no further than to the last one."""
        at, last = self.frame, self.ends[1]
        reach = torch.log(at.s(start) / at.s(last))
        arrives = bool(h >= reach - END)
        to = last if arrives else at_s(self.grid, at, at.s(start) * math.exp(-h))
        levels = [start, to, *([self._clean_level] if arrives and self.clean else [])]
        parts = Level(*(torch.stack(v) for v in zip(*levels, strict=True)))
        grid = Grid.of(self.process, parts, "adaptive", clean=False)
        grid = self._renoised(grid) if self.eta else grid
        table = self._table(grid)
        end, factor = grid.end(0), float(at.m(grid.end(0)))
        rise = float(to.alpha / end.alpha) if grid.renoised(1) else 1.0
        return Trial(table, start, to, arrives, self.order, factor, rise * factor)

    @property
    def _clean_level(self) -> Level:
        return self.grid[self.grid.steps]

    def _renoised(self, grid: Grid) -> Grid:
        """The grid whose first step ends below its target, not below the last level."""
        down, last = ancestral(grid, self.eta).end(0), self.ends[1]
        down = last if bool(down.lam > last.lam) else down
        ends = [down, *([grid[2]] if grid.steps > 1 else [])]
        return replace(grid, ends=Level(*(torch.stack(v) for v in zip(*ends, strict=True))))

    def _table(self, grid: Grid) -> Table:
        at, order = self.frame, self.order
        rows = Rows("dpm_adaptive", grid, order=order, history=order, basis=at.basis)
        pair(rows, grid, at, *PAIRS[order])
        if grid.steps > 1:
            clean_step(rows, grid, at, 1)
        table = rows.table()
        if self.s_noise == 1:
            return table
        scale = torch.ones(table.x.shape[1], dtype=table.x.dtype)
        scale[-1] = self.s_noise
        return replace(table, x=table.x * scale)

    # -- the controller ----------------------------------------------------------------------------
    @property
    def pace(self) -> Pace:
        """The controller before the first trial."""
        return Pace(self.h_init)

    def error(self, low: Tensor, high: Tensor, before: Tensor) -> float:
        """The distance of two results, in units of the tolerance: the root of the mean square.

        Args:
            low: (batch, …), y of the lower order.
            high: (batch, …), y of the higher order.
            before: (batch, …), y of the lower order in the step before; the start, in the first.
        """
        size = self.rtol * torch.maximum(low.abs(), before.abs())
        scaled = (low - high) / size.clamp(min=self.atol)
        return float(torch.linalg.vector_norm(scaled)) / math.sqrt(low.numel())

    def judged(self, pace: Pace, error: float) -> tuple[bool, Pace]:
        """Whether a trial of this error is kept, and the controller after it."""
        order = 1.5 if self.eta else self.order
        one = 1 / (error + SMALL)
        past = (one, *(pace.inverse[1:] or (one, one)))
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        powers = ((p + i + d) / order, -(p + 2 * d) / order, d / order)
        raw = math.prod(value**power for value, power in zip(past, powers, strict=True))
        factor = 1 + math.atan(raw - 1)
        kept = factor >= self.accept_safety
        after = (past[0], past[0], past[1]) if kept else past
        return kept, Pace(pace.h * factor, after)


def pair(rows: Rows, grid: Grid, at: Frame, high: Exponential, low: Exponential) -> None:
    """Write step 0 by both methods: the base before its last row is the result of the lower one."""
    now, new = grid[0], grid.end(0)
    s, h = at.s(now), torch.log(at.s(now) / at.s(new))
    scale, level, nodes = -new.sigma * h, now, high.nodes
    lower = first(1.0, low.b(h), h)
    for i, (c, weights) in enumerate(zip(nodes, high.stages, strict=True)):
        to = new if c == 1 else at_s(grid, at, s * torch.exp(-c * h))
        source, stage = "x" if i == 0 else "base", first(c, weights(h), h)
        row = {source: at.m(to) / at.m(now)}
        row |= {f"h{i - j}": -to.sigma * h * w for j, w in enumerate(stage)}
        base: dict[str, Tensor | float] | None = {"x": 1.0} if i == 0 else None
        if i == len(nodes) - 1:
            base = {source: at.m(new) / at.m(now)}
            base |= {f"h{i - j}": scale * w for j, w in enumerate(lower)}
        rows.add(0, level, row, base=base)
        level = to
    more, i = first(1.0, high.b(h), h), len(nodes)
    added = [a - b for a, b in zip(more, [*lower, torch.zeros_like(h)], strict=True)]
    rows.add(0, level, {"base": 1.0} | {f"h{i - j}": scale * w for j, w in enumerate(added)})


def dpm_adaptive(
    grid: Grid,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    budget: int = BUDGET,
) -> Plan:
    """DPM-Solver-12 or -23 with as many steps as the tolerance asks, up to a budget.

    Steps are as long for all samples of a batch. A trial that is not kept costs its calls too.

    Args:
        grid: the levels; only the first and the last one above sigma = 0 count.
        order: 2 or 3, and network calls per trial.
        rtol: tolerance relative to the sample, above 0.
        atol: tolerance for small values, above 0.
        h_init: length of the first trial in log(1/sigma), above 0.
        pcoeff: proportional part of the controller, -100 … 100.
        icoeff: integral part, -100 … 100.
        dcoeff: derivative part, -100 … 100.
        accept_safety: a trial is kept where the next is at least so many times as long, above 0.
        eta: part of DDPM's noise, in [0, 1].
        s_noise: a factor of the noise, 0 … 100.
        budget: most network calls; the run stops where one more trial would be beyond.

    Returns:
        The plan of a run; it has no table.

    Source: Lu et al. 2022, arXiv 2206.00927, appendix C; sample_dpm_adaptive of k-diffusion.
    """
    return Plan(
        grid, order, rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety, eta, s_noise, budget
    )
