"""A model with samples that no fit has seen, and the errors of samplers on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

import timonel as tm
from timonel.comparison.measure import consistency, mean_and_error
from timonel.core import solvers
from timonel.core.grids import usual
from timonel.engine.reference import distance
from timonel.errors import TimonelError
from timonel.tuning.held_out import geometric
from timonel.tuning.model import Model
from timonel.tuning.starts import Paths
from timonel.tuning.targets import Targets

SOLVERS = {
    "Euler": "euler",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 3M": "dpmpp_3m",
    "UniPC": "unipc",
    "iPNDM": "ipndm",
}
GRIDS = ("karras", "trailing", "lam", "beta", "gaussian")
FLOW_GRIDS = ("trailing", "flow", "lam", "beta", "gaussian")
FEW, FINALISTS = 4, 2  # samples that every variant is tried on; variants that are tried on all
PATHS = 16  # samples that GITS sees


def told(errors: Tensor) -> str:
    """Their geometric mean ± its standard error."""
    mean, doubt = geometric(errors)
    return f"{mean:.2g} ±{doubt / mean:.0%}" if math.isfinite(mean) else "–"


def ratio(ours: Tensor, theirs: Tensor) -> str:
    """The mean ratio of paired errors, and two standard errors of its logarithm either way."""
    logs = (ours.clamp(min=1e-12) / theirs.clamp(min=1e-12)).log()
    middle, doubt = float(logs.mean()), 2 * float(logs.std()) / math.sqrt(len(logs))
    return (
        f"{math.exp(middle):.2f} ({math.exp(middle - doubt):.2f} to {math.exp(middle + doubt):.2f})"
    )


@dataclass(frozen=True)
class Cell:
    """Errors (n,) of the results `made` of one sampler, which `mark` tells from others.

    `pixels`: those of its pictures; `steady`: the frame consistency of its clips in dB.
    """

    errors: Tensor
    mark: str
    made: Tensor
    pixels: Tensor | None = None
    steady: Tensor | None = None

    @property
    def error(self) -> float:
        """Their geometric mean."""
        return geometric(self.errors)[0]

    def __str__(self) -> str:
        seen = "" if self.pixels is None else f" ({geometric(self.pixels)[0]:.2g})"
        return (
            f"{told(self.errors)}{seen} {self.mark}".rstrip() if math.isfinite(self.error) else "–"
        )


def steady(seen: Tensor) -> Tensor | None:
    """The frame consistency (n,) in dB of clips (n, F, 3, H, W); None for pictures."""
    return (
        torch.tensor([consistency(clip) for clip in seen], dtype=torch.float64)
        if seen.ndim == 5
        else None
    )


@dataclass(eq=False)
class Problem:
    """A model with samples that no fit has seen, their converged results, and samplers fitted to
    it, by steps.
    """

    name: str
    model: Model
    targets: Targets
    fitted: dict[int, tm.Sampler]
    about: str
    decode: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def paths(self) -> Paths:
        """What GITS needs; it may see the samples that it is judged by."""
        return Paths(self.model, self.targets.samples[:PATHS])

    @cached_property
    def truth(self) -> Tensor | None:
        """The converged pictures."""
        return None if self.decode is None else self.decode(self.targets.result)

    @cached_property
    def steady(self) -> Tensor | None:
        """The frame consistency of the converged clips; None for pictures."""
        return None if self.truth is None else steady(self.truth)

    def run(self, table: tm.Table) -> Tensor:
        """The results of a sampler."""
        return self.model.run(table, self.targets.samples)

    def cell(self, made: Tensor, mark: str = "") -> Cell:
        """What results come to, in latents; fewer than all are those of the first samples."""
        return Cell(distance(made, self.targets.result[: len(made)]), mark, made)

    def shown(self, cell: Cell) -> Cell:
        """`cell` with the errors of its pictures, and the frame consistency of clips."""
        if self.decode is None or self.truth is None:
            return cell
        seen = self.decode(cell.made)
        return replace(cell, pixels=distance(seen, self.truth), steady=steady(seen))

    def steadiness(self, cell: Cell) -> str:
        """The mean frame consistency of its clips, and by how much it is above that of the
        converged ones.
        """
        if cell.steady is None or self.steady is None:
            return "–"
        above, doubt = mean_and_error((cell.steady - self.steady).tolist())
        doubt = math.nan if doubt is None else doubt
        return f"{float(cell.steady.mean()):.2f} ({above:+.2f} ±{doubt:.2f})"

    def best(self, tables: Iterable[tuple[str, tm.Table]]) -> Cell | None:
        """The best on all samples of those samplers that are the best on a quarter of them."""
        every = self.targets.samples
        few = max(FEW, len(every) // 4)
        tried = [
            (self.cell(self.model.run(table, every[:few]), mark), table) for mark, table in tables
        ]
        tried = sorted(
            (one for one in tried if math.isfinite(one[0].error)), key=lambda one: one[0].error
        )
        cells = [
            self.cell(torch.cat([cell.made, self.model.run(table, every[few:])]), cell.mark)
            for cell, table in tried[:FINALISTS]
        ]
        return self.shown(min(cells, key=lambda cell: cell.error)) if cells else None

    # -- samplers ------------------------------------------------------------------------------
    def named(
        self, solver: str, grids: Sequence[str], steps: int
    ) -> Iterator[tuple[str, tm.Table]]:
        """A solver on every grid that this process has, by the first letter of the grid."""
        for grid in grids:
            try:
                yield grid[0], tm.Sampler(solver, grid, steps).compile(self.model.process)
            except TimonelError:
                continue

    def rows(self, steps: int) -> Iterator[tuple[str, Iterable[tuple[str, tm.Table]]]]:
        """The rows of the table: what is to be beaten, each with the variants that it may choose
        from.
        """
        grids = FLOW_GRIDS if self.model.process.kind == "flow" else GRIDS
        goal = usual(self.model.process)
        for title, solver in SOLVERS.items():
            yield title, self.named(solver, grids, steps)
        yield f"DPM++ 2M {goal}", self.named("dpmpp_2m", (goal,), steps)
        yield "AYS", ((s, t) for s in SOLVERS.values() for _, t in self.named(s, ("ays",), steps))
        levels = self.paths.levels(steps)
        yield "GITS", ((s, solvers.make(s, levels)) for s in SOLVERS.values())

    def others(self, steps: int) -> dict[str, Cell]:
        """The rows' best, by title."""
        found = {title: self.best(tables) for title, tables in self.rows(steps)}
        return {title: cell for title, cell in found.items() if cell is not None}

    def tuned(self, steps: int) -> Cell | None:
        """What was fitted for so many steps; `ArgumentError` where it was for another process."""
        sampler = self.fitted.get(steps)
        if sampler is None:
            return None
        return self.shown(self.cell(self.run(sampler.compile(self.model.process))))

    def goal(self, steps: int) -> Cell:
        """DPM++ 2M on the usual grid."""
        return self.cell(
            self.run(
                tm.Sampler("dpmpp_2m", usual(self.model.process), steps).compile(self.model.process)
            )
        )
