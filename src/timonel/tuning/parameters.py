"""What can be fitted of a sampler: levels, times of the network, corrections of coefficients.

The table is that of the solver on the fitted levels plus corrections that begin at zero (arXiv
2510.17699), so a fit begins as a known sampler, and levels that move take their coefficients along.
All numbers are float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core import solvers
from ..core.grids import Grid
from ..core.process import At, Level, Process, double
from ..core.table import Table, registers
from ..errors import GridError

STEP = 1e-6  # of the differences that give the derivatives of `Arrays`


@dataclass(frozen=True, eq=False)
class Arrays:
    """A sampler of N rows with one call each.

    Row k makes keep[k]·x + sum over j <= k of weights[k, j]·D_j of the sample x.

    Args:
        alpha: Of the calls (N,).
        sigma: Of the calls (N,).
        time: That the network gets there (N,).
        keep: Coefficients of x (N,).
        weights: Of the denoised predictions D in the order of their calls (N, N).
        end: The level of the result.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor
    keep: Tensor
    weights: Tensor
    end: Level

    @property
    def rows(self) -> int:
        """Number of network calls N."""
        return len(self.keep)

    def flat(self) -> Tensor:
        """All numbers in one vector: N each of alpha, sigma, time and keep, then N·N weights."""
        return torch.cat([self.alpha, self.sigma, self.time, self.keep, self.weights.flatten()])

    @property
    def levels(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and time of the calls, (N,) each."""
        return self.alpha, self.sigma, self.time

    def at(self, row: int) -> At:
        """The level of a row's call."""
        return At(*(float(v[row]) for v in self.levels))

    @classmethod
    def of(cls, table: Table) -> Arrays:
        """The numbers of a table that `supports` allows."""
        n = table.nfe
        weights = torch.zeros(n, n, dtype=torch.float64)
        for k in range(n):
            for i in range(min(table.history, k + 1)):
                weights[k, k - i] = table.x[k, 2 + i]
        return cls(
            table.alpha[:-1], table.sigma[:-1], table.time[:-1], table.x[:, 0], weights,
            Level(table.alpha[-1], table.sigma[-1], table.time[-1]),
        )  # fmt: skip

    def table(self, solver: str, grid: str) -> Table:
        """The same as a table of order 0, for fitted coefficients have no order of convergence.

        Args:
            solver: Its name.
            grid: Its name.
        """
        n = self.rows
        used = (self.weights != 0).nonzero()
        history = max([int(k - j) + 1 for k, j in used.tolist()], default=1)
        names = registers(history)
        x = torch.zeros(n, len(names), dtype=torch.float64)
        base = torch.zeros_like(x)
        base[:, 1], x[:, 0] = 1, self.keep
        for k, j in used.tolist():
            x[k, 2 + k - j] = self.weights[k, j]
        alpha, sigma, time = (
            torch.cat([v, e.reshape(1)])
            for v, e in zip((self.alpha, self.sigma, self.time), self.end, strict=True)
        )
        return Table(solver, grid, "denoised", 0, alpha, sigma, time, tuple(range(n)), x, base)


def supports(table: Table) -> bool:
    """Whether a fit can begin at a table: deterministic, denoised basis, one call a step."""
    calls = table.step == tuple(range(table.nfe))
    plain = not (table.stochastic or table.uses_base or table.reads_uncond)
    return calls and table.basis == "denoised" and plain


@dataclass(frozen=True, eq=False)
class Form:
    """The parameters theta of a sampler of N steps; zero is the solver on its first levels.

    theta holds, in this order: N - 1 shifts of the levels after the first, as parts of the spacing
    of lam beside them; N shifts of the times that the network gets, as parts of their spacing; and
    for every row a correction of the coefficients of x and of the last denoised predictions.

    Args:
        process: Of the model.
        solver: Name of the solver.
        start: The levels.
        memory: How many denoised predictions a row corrects.
    """

    process: Process
    solver: str
    start: Grid
    memory: int

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return self.start.steps

    @cached_property
    def names(self) -> tuple[tuple[str, int, int], ...]:
        """(what, row, prediction) of every parameter."""
        n = self.steps
        levels = [("level", k, 0) for k in range(1, n)]
        clock = [("time", k, 0) for k in range(n)]
        rows = [("keep", k, 0) for k in range(n)]
        weights = [
            ("weight", k, j) for k in range(n) for j in range(max(0, k + 1 - self.memory), k + 1)
        ]
        return (*levels, *clock, *rows, *weights)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.names)

    def zero(self) -> Tensor:
        """The parameters of the start."""
        return torch.zeros(self.size, dtype=torch.float64)

    @cached_property
    def _spacing(self) -> Tensor:
        """Units of the shifts of lam (N - 1,): the smaller finite spacing beside a level."""
        lam = self.start.lam
        gaps = [float(g) if math.isfinite(float(g)) else math.inf for g in lam[1:] - lam[:-1]]
        units = [min(gaps[k - 1], gaps[k]) for k in range(1, self.steps)]
        return double([u if math.isfinite(u) else 1.0 for u in units])

    @cached_property
    def _ticks(self) -> Tensor:
        """(N,) units of the shifts of the times."""
        time = self.start.time[:-1]
        if self.steps == 1:
            return (time.abs() * 0.1).clamp(min=1e-3)
        gaps = (time[1:] - time[:-1]).abs()
        return torch.minimum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]]))

    def grid(self, theta: Tensor) -> Grid:
        """The fitted levels. Raises `GridError` where they do not fall."""
        n, start = self.steps, self.start
        if n == 1:
            return start
        lam = start.lam[1:n] + theta[: n - 1] * self._spacing
        moved = self.process.at_lam(lam)
        still = theta[: n - 1] == 0  # to the bit where it begins
        parts = (start.alpha, moved.alpha), (start.sigma, moved.sigma), (start.time, moved.time)
        alpha, sigma, time = (
            torch.cat([a[:1], torch.where(still, a[1:n], b), a[-1:]]) for a, b in parts
        )
        return Grid(self.process, alpha, sigma, time, start.name)

    def arrays(self, theta: Tensor) -> Arrays:
        """The sampler of `theta`. Raises `GridError` for levels that do not fall."""
        n = self.steps
        plain = Arrays.of(solvers.make(self.solver, self.grid(theta)))
        low, high = self._range
        time = (plain.time + theta[n - 1 : 2 * n - 1] * self._ticks).clamp(low, high)
        keep = plain.keep + theta[2 * n - 1 : 3 * n - 1]
        weights = plain.weights.clone()
        for (_, k, j), value in zip(self.names[3 * n - 1 :], theta[3 * n - 1 :], strict=True):
            weights[k, j] += value
        return Arrays(plain.alpha, plain.sigma, time, keep, weights, plain.end)

    @cached_property
    def _range(self) -> tuple[float, float]:
        """The lowest and the highest time that the network knows."""
        first, last = float(self.start.time[0]), float(self.start.time[-2])
        ends = [first, last, _lowest(self.process, last)]
        return min(ends), max(ends)

    def inward(self, theta: Tensor) -> Tensor:
        """Where each parameter can move (P,): 1, and -1 for a time that can only fall."""
        n = self.steps
        time = self.grid(theta).time[:-1] + theta[n - 1 : 2 * n - 1] * self._ticks
        ways = torch.ones_like(theta)
        ways[n - 1 : 2 * n - 1] = torch.where(time >= self._range[1] - 1e-9, -1.0, 1.0)
        return ways

    def jacobian(self, theta: Tensor) -> Tensor:
        """Derivatives (Q, P) of the numbers of `Arrays.flat`, by differences in `inward`."""
        ways, here = self.inward(theta), self.arrays(theta).flat()
        columns = []
        for p in range(self.size):
            step = torch.zeros_like(theta)
            step[p] = STEP * ways[p]
            try:
                columns.append((self.arrays(theta + step).flat() - here) / step[p])
            except GridError:  # two levels are almost one
                columns.append(torch.zeros_like(here))
        return torch.stack(columns, 1)


def _lowest(process: Process, last: float) -> float:
    """The lowest time the network knows."""
    try:
        return float(process.at_sigma(double([process.sigma_min])).time)
    except GridError:
        return last
