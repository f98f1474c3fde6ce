"""The cells of a plan, sorted by what their runs share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..make.recipe import Recipe
from .plan import Cell

SAMPLES = 64  # conditions captured at once
BOTH_PARTS = 2.0  # a scale at which pipelines compute both parts


@dataclass
class Work:
    """The cells of one setting.

    Args:
        cells: Its runs.
        samples: One recipe for each prompt, picture and seed that they are about.
    """

    cells: list[Cell]
    samples: list[Recipe] = field(default_factory=list)

    def slot(self, recipe: Recipe) -> int:
        """Which of the samples a recipe is about."""
        return next(
            i for i, other in enumerate(self.samples) if _subject(other) == _subject(recipe)
        )

    @property
    def scale(self) -> float | None:
        """The largest guidance scale, to capture with; None is the pipeline's."""
        guided = [cell.recipe.guidance for cell in self.cells if cell.recipe.guidance is not None]
        scales = [g.scale if isinstance(g.scale, list) else [g.scale] for g in guided]
        largest = max((s for some in scales for s in some if s is not None), default=None)
        both = any(g.method is not None for g in guided)  # CFG++ needs both parts at 0.6 too
        return max(largest, BOTH_PARTS) if both and largest is not None else largest


def _subject(recipe: Recipe) -> tuple[Any, ...]:
    """What makes another sample of the same setting."""
    return recipe.prompt, recipe.image, recipe.negative_prompt, recipe.seed


def works(plan: Iterable[Cell]) -> Iterator[Work]:
    """The cells of a plan by what they share: model, size, precision, the pipeline's arguments."""
    settings: dict[str, list[Cell]] = {}
    for cell in plan:
        r = cell.recipe
        same = [r.model, r.dtype, r.device, r.width, r.height, r.arguments]
        key = json.dumps(same, sort_keys=True, default=str)
        settings.setdefault(key, []).append(cell)
    for cells in settings.values():
        places: dict[tuple[Any, ...], int] = {}
        for cell in cells:
            places.setdefault(_subject(cell.recipe), len(places))
        parts: list[Work] = [Work([]) for _ in range(0, len(places), SAMPLES)]
        for cell in cells:
            part, place = divmod(places[_subject(cell.recipe)], SAMPLES)
            parts[part].cells.append(cell)
            if place == len(parts[part].samples):
                parts[part].samples.append(cell.recipe)
        yield from parts
