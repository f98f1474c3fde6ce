"""Where a fit begins: the best of the usual samplers, and levels that GITS chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core import grids, solvers
from ..core.grids import Grid
from ..core.grids.choose import choose
from ..core.process import At, Process
from ..core.sampler import Sampler
from ..engine import gits
from ..engine.reference import distance
from ..errors import ArgumentError, TimonelError
from .model import Model
from .parameters import Arrays, supports
from .rollout import roll
from .targets import Targets

# steps of the paths that GITS chooses from, and its coefficient (arXiv 2405.11326)
FINE, GITS = 40, 1.15
# samples that GITS holds for each of its paths: what a path saw, and what it is compared with
PATH = 205
FEW, FINALISTS = 4, 3  # samples that every start is tried on, and how many starts on more
SOLVERS = ("dpmpp_2m", "dpmpp_3m")
GRIDS = ("karras", "lam", "gaussian", "ays", "trailing", "beta", "exponential")
FLOW_GRIDS = ("trailing", "flow", "gaussian", "lam", "beta")


def begins(model: Model, steps: int, paths: Paths | None = None) -> Iterator[tuple[str, Grid]]:
    """Solvers and the levels that they may begin on, of the grids that the process has.

    Args:
        model: What is fitted to.
        steps: How many.
        paths: For GITS.
    """
    for grid in FLOW_GRIDS if model.process.kind == "flow" else GRIDS:
        for solver in SOLVERS:
            try:
                sampler = Sampler(solver, grid, steps)
                levels = sampler.levels(model.process)
                table = sampler.compile(model.process)
            except TimonelError:
                continue
            if supports(table) and full(levels, model):
                yield f"{solver}/{grid}", levels
    if paths is not None and steps < FINE:
        yield from ((f"{solver}/gits", paths.levels(steps)) for solver in SOLVERS)


class Paths:
    """What GITS needs of a model: a few of its Euler paths, computed once for all numbers of steps.

    Args:
        model: Whose paths.
        samples: The numbers of their noise.
    """

    @torch.no_grad()
    def __init__(self, model: Model, samples: Sequence[int]) -> None:
        def denoise(x: Tensor, at: At) -> Tensor:
            return model.denoised([model.query(x, at, samples, model.scale)])[0].raw

        self.fine = Sampler("euler", grids.usual(model.process), FINE).levels(model.process)
        self.cost = gits.gits_cost(denoise, model.start(samples), self.fine)

    def levels(self, steps: int) -> Grid:
        """The levels on which so many Euler steps stay near the paths; see `engine.gits`."""
        path = choose(self.cost, steps, GITS)
        fine = self.fine
        return Grid(fine.process, fine.alpha[path], fine.sigma[path], fine.time[path], "gits")


def fits(each: int, room: int) -> int:
    """How many paths of samples of `each` bytes `room` bytes hold; two at least."""
    return max(2, room // (PATH * each))


def full(grid: Grid, model: Model) -> bool:
    """Whether a grid begins where the others do, so that the initial noise means the same."""
    top = Sampler("dpmpp_2m", grids.usual(model.process), 2).levels(model.process)
    return bool(torch.isclose(grid.sigma[0], top.sigma[0], rtol=1e-3))


def named(process: Process, sampler: Sampler | str, steps: int) -> tuple[str, Grid]:
    """A start by its name.

    Args:
        process: Of the model.
        sampler: The sampler, or its name.
        steps: How many.

    Raises:
        ArgumentError: Where a fit cannot begin there.
    """
    chosen = Sampler.of(sampler, steps).on(process)
    table = chosen.compile(process)
    if table.stochastic:
        raise ArgumentError(
            f"{chosen.label!r} draws noise, so its pictures have no target: begin at a"
            f" deterministic sampler, such as start='dpmpp_2m/{chosen.grid or 'karras'}'"
        )
    if chosen.name not in SOLVERS or not supports(table):
        raise ArgumentError(
            f"a fit begins at {' or '.join(SOLVERS)} on any grid, got {chosen.label!r}"
        )
    return chosen.label, chosen.levels(process)


@torch.no_grad()
def best(
    model: Model, targets: Targets, samples: Sequence[int], starts: Sequence[tuple[str, Grid]]
) -> tuple[str, Grid]:
    """The start with the least error.

    Args:
        model: What they run on.
        targets: The converged samples.
        samples: The numbers of some; all starts are tried on the first ones, the best on all.
        starts: See `begins`.
    """

    def error(one: tuple[str, Grid], some: Sequence[int]) -> float:
        table = solvers.make(one[0].partition("/")[0], one[1])
        off = distance(roll(model, Arrays.of(table), some).result, targets.of(some))
        return float(off.clamp(min=1e-12).log().nan_to_num(nan=99.0).mean())

    if len(starts) == 1:
        return starts[0]
    few = sorted(starts, key=lambda one: error(one, samples[:FEW]))[:FINALISTS]
    return min(few, key=lambda one: error(one, samples))
