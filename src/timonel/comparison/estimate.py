"""What a plan would cost: runs, network evaluations and about how long, from one timed call."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..engine.network import evaluations
from ..errors import TimonelError
from .engine import BATCH, FIRST, Engine, converges, reference
from .plan import Plan
from .store import Store
from .work import works


@dataclass
class Estimate:
    """What is still to do.

    Args:
        runs: Cells.
        done: Cells that are done.
        references: Fine runs.
        evaluations: Network evaluations of runs and references.
        seconds: That they take.
        refused: Cells that cannot run.
    """

    runs: int = 0
    done: int = 0
    references: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    refused: int = 0

    def __str__(self) -> str:
        known = f" ({self.done} more are done)" if self.done else ""
        refused = f", {self.refused} of them refused" if self.refused else ""
        return (
            f"{self.runs} runs{known}{refused}, {self.references} converged references, "
            f"{self.evaluations} network evaluations, about {spoken(self.seconds)}"
        )


def spoken(seconds: float) -> str:
    """A time in the unit one would say."""
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def estimate(plan: Plan, out: Path, batch: int | None = None, references: bool = True) -> Estimate:
    """Load the models, watch their pipelines, time one call of each; writes nothing.

    References are counted with the steps of their first doubling; what does not converge by then
    takes longer.

    Args:
        plan: The cells.
        out: Folder of the comparison, where some may be done.
        batch: Network evaluations a call, at most.
        references: Whether cells are measured against converged references.

    Raises:
        TimonelError: For a pipeline whose network cannot be captured.
    """
    store, total = Store(out), Estimate()
    engine = Engine(plan, store)
    for work in works(plan):
        todo = [cell for cell in work.cells if store.done(cell.id) is None]
        total.done += len(work.cells) - len(todo)
        if not todo:
            continue
        captured = engine.capture(engine.helm(work.samples[0]), work)
        if captured is None:
            raise TimonelError(
                "the network of this pipeline cannot be captured, so only a run shows how long it"
                " takes"
            )
        count = 0
        for cell in todo:
            try:
                run = engine.prepare(cell.recipe, captured)
            except TimonelError:
                total.refused += 1
                continue
            count += evaluations(run.guided, captured.cost)
        fine = {
            reference(cell.recipe, captured.process, FIRST).model_dump_json()
            for cell in todo
            if references and converges(cell.recipe)
        }
        count += len(fine) * 3 * FIRST * captured.parts
        size = min(batch or BATCH, count)
        x = captured.start[torch.arange(size) % captured.count]
        times = torch.full((size,), 500.0, dtype=torch.float64)
        for _ in range(2):
            began = time.perf_counter()
            captured(x, times, [i % captured.count for i in range(size)], [1.0] * size)
            spent = time.perf_counter() - began
        total.runs, total.references = total.runs + len(todo), total.references + len(fine)
        total.evaluations += count
        total.seconds += spent / size * count
    return total
