"""Compare samplers, schedules and guidance on your own prompt: pictures, numbers, and one page to send to somebody.

found = tm.compare("red apple", sampler=["euler", "dpmpp_2m/karras", "ays"], steps=[6, 10], seeds=4)
found.page               # report/index.html
found.best(steps=10)     # ties included
found.table              # a pyarrow table; found.to_pandas()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, flag, function, path, several, whole
from ..files import writable
from .plan import Plan

if TYPE_CHECKING:
    import pyarrow

    from .store import Outcome, Store

MANY = 1000  # runs that are not begun without a second thought
EVERY = 15.0  # seconds between two writings of the page


@dataclass
class Comparison:
    """What a comparison found. `page`: the HTML file; `groups`: a row for every setting, over its seeds and prompts."""

    plan: Plan
    store: Store
    page: Path
    groups: list[dict[str, Any]]

    @property
    def outcomes(self) -> list[Outcome]:
        """What came of every cell, in the order of the plan."""
        return [self.store.outcomes[cell.id] for cell in self.plan]

    @property
    def failed(self) -> list[Outcome]:
        """The cells that failed; each has its `reason`."""
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    @property
    def table(self) -> pyarrow.Table:
        """A row for every cell."""
        import pyarrow

        from .store import schema

        return pyarrow.Table.from_pylist([outcome.row() for outcome in self.outcomes], schema=schema())

    def to_pandas(self) -> Any:
        """The table as a pandas data frame (needs pandas)."""
        return self.table.to_pandas()

    def best(self, steps: int | None = None) -> list[dict[str, Any]]:
        """The settings of least distance to the converged samples, and those that tie with them, best first."""
        found = [g for g in self.groups if g["verdict"] in ("best", "tie") and steps in (None, g["at"].get("steps"))]
        return sorted(found, key=lambda group: group["mean"]["latent_rmse"])


def compare(
    subjects: Sequence[str] | str = (),
    *,
    out: str | PathLike[str] = "report",
    plan: Plan | str | PathLike[str] | None = None,
    batch: int | None = None,
    references: bool = True,
    yes: bool = False,
    progress: Callable[[str, Outcome | None], None] | None = None,
    claims: Sequence[Any] = (),
    **axes: Any,
) -> Comparison:
    """Run a plan and write the page; a comparison that was killed goes on where it stopped.

    `subjects, axes`: see `Plan.of`; every field of a recipe may be a list. `plan`: a plan, or a TOML, YAML or JSON
    file of axes. `batch`: network evaluations a call (16). `references`: also make the converged run of every sample,
    64 to 256 steps, that distances are measured to. `yes`: allow more than 1,000 runs.

    Raises `UnknownName` and `ArgumentError` before any compute for what cannot be meant; a cell that fails later is
    kept with its reason, and the rest goes on.
    """
    from .engine import BATCH, Engine
    from .store import Store

    path("out", out)
    size = BATCH if batch is None else whole("batch", batch)
    references, yes = flag("references", references), flag("yes", yes)
    if progress is not None:
        function("progress", progress, "lambda what, outcome: print(what)", 2)
    chosen = planned(subjects, plan, axes)
    if len(chosen) > MANY and not yes:
        raise ArgumentError(f"the plan has {len(chosen)} runs; pass yes=True (--yes) if that is meant")
    store = Store(Path(out))
    writable(store.root)
    told = _paging(chosen, store, progress)
    engine = Engine(chosen, store, batch=size, references=references, progress=told)
    engine.run()
    return write(chosen, store, engine.notes, claims)


def planned(subjects: Sequence[str] | str, plan: Plan | str | PathLike[str] | None, axes: dict[str, Any]) -> Plan:
    """The plan of a call: given, read from a file, or made of axes."""
    subjects = subjects if isinstance(subjects, str) else several("subjects", subjects, "['red apple']")
    if isinstance(plan, Plan):
        if subjects or axes:
            raise ArgumentError("give a plan or its axes, not both")
        return plan
    if plan is not None:
        path("plan", plan)
        return Plan.read(plan, **axes, **({"subjects": subjects} if subjects else {}))
    return Plan.of(subjects, **axes)


def write(plan: Plan, store: Store, notes: Sequence[Any] = (), claims: Sequence[Any] = ()) -> Comparison:
    """Write the page of what the store has of a plan."""
    from ..files import replacing
    from .page import render
    from .report import content

    data = content(plan, store, notes, claims)
    page = store.root / "index.html"
    with replacing(page) as temporary:
        temporary.write_text(render(data), "utf-8")
    return Comparison(plan, store, page, data["groups"])


def _paging(
    plan: Plan, store: Store, progress: Callable[[str, Outcome | None], None] | None
) -> Callable[[str, Outcome | None], None]:
    """`progress`, and the page written anew from time to time."""
    import time

    last = time.monotonic()

    def told(what: str, outcome: Outcome | None) -> None:
        nonlocal last
        if progress is not None:
            progress(what, outcome)
        if outcome is not None and time.monotonic() - last > EVERY:
            write(plan, store)
            last = time.monotonic()

    return told
