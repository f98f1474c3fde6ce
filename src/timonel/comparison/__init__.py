"""Compare samplers, schedules and guidance on your own prompt: pictures, numbers, and one page to
send to somebody.

found = tm.compare("red apple", sampler=["euler", "dpmpp_2m/karras", "ays"], steps=[6, 10], seeds=4)
found.page               # report/index.html
found.best(steps=10)     # ties included
found.rows               # dicts; found.to_pandas(), found.table (pyarrow),
found.export("runs.parquet")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, flag, function, path, several, whole
from ..files import writable
from .plan import Plan, check_count, is_model
from .progress import Lines, Progress, State

__all__ = ["Comparison", "State", "Stopped", "compare", "planned", "write"]

if TYPE_CHECKING:
    import pyarrow

    from .store import Outcome, Store

EVERY = 15.0  # seconds between two writings of the page


class Stopped(KeyboardInterrupt):
    """A comparison was stopped by Ctrl-C. `kept`: what there is, and where; `again`: the call that
    goes on.
    """

    def __init__(self, kept: str, again: str) -> None:
        super().__init__(f"{kept}; this call goes on: {again}")
        self.kept, self.again = kept, again


@dataclass
class Comparison:
    """What a comparison found. `page`: the HTML file; `groups`: a row for every setting, over its
    seeds and prompts.
    """

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
    def rows(self) -> list[dict[str, Any]]:
        """A row for every cell."""
        return [outcome.row() for outcome in self.outcomes]

    @property
    def table(self) -> pyarrow.Table:
        """The rows as a table of pyarrow (needs pyarrow)."""
        from .rows import table

        return table(self.rows)

    def to_pandas(self) -> Any:
        """The rows as a pandas data frame (needs pandas)."""
        import pandas

        return pandas.DataFrame(self.rows)

    def export(self, path: str | PathLike[str]) -> Path:
        """Write the rows as a .parquet file (needs pyarrow), and return its path."""
        from .rows import export

        return export(self.rows, path)

    def best(
        self, steps: int | None = None, evaluations: int | None = None
    ) -> list[dict[str, Any]]:
        """The settings of least distance to the converged samples among those of equal cost, and
        what ties with them.

        `steps`, `evaluations`: only those with so many steps, or network evaluations a picture.
        Ordered by evaluations, then by distance: settings of different cost are not weighed against
        each other.
        """
        asked = (("steps", steps), ("evaluations", evaluations))
        found = [
            g for g in self.groups
            if g["verdict"] in ("best", "tie") and all(n in (None, g["at"].get(k, g.get(k))) for k,
            n in asked)
        ]  # fmt: skip
        return sorted(found, key=lambda group: (group["evaluations"], group["mean"]["latent_rmse"]))


def compare(
    subjects: Any = (),
    prompts: Sequence[str] | str | None = None,
    *,
    out: str | PathLike[str] = "report",
    plan: Plan | str | PathLike[str] | None = None,
    batch: int | None = None,
    references: bool = True,
    yes: bool = False,
    progress: Progress | bool = True,
    claims: Sequence[Any] = (),
    **axes: Any,
) -> Comparison:
    """Run a plan and write the page; a comparison that was stopped or killed goes on where it was.

    `subjects, axes`: see `Plan.of`; every field of a recipe may be a list. A loaded model comes
    first, `compare(pipe, "red apple", …)`, or as `model=`: a pipeline or a `Helm`, which is used as
    it is. `plan`: a plan, or a TOML, YAML or JSON file of axes. `batch`: network evaluations a call
    (16). `references`: also make the converged run of every sample, 64 to 256 steps, that distances
    are measured to. `yes`: allow more than 1,000 runs. `progress`: is called with a `State` after
    every network call; by default lines on stderr, none where False.

    Raises `UnknownName` and `ArgumentError` before any compute for what cannot be meant, and
    `Stopped`, a KeyboardInterrupt, on Ctrl-C: it says what is kept, and how to go on. A cell that
    fails later is kept with its reason, and the rest goes on.
    """
    from .engine import BATCH, Engine
    from .store import Store

    path("out", out)
    size = BATCH if batch is None else whole("batch", batch)
    references, yes = flag("references", references), flag("yes", yes)
    if not isinstance(progress, bool):
        function("progress", progress, "lambda state: print(state)", 1)
    again = _call(
        subjects,
        prompts,
        axes,
        out=str(out),
        plan=plan,
        batch=batch,
        references=references,
        yes=yes,
    )
    if is_model(subjects):
        if "model" in axes:
            raise ArgumentError("give the model once, first or as model=")
        subjects, axes = prompts or (), {**axes, "model": subjects}
    elif prompts is not None:
        if not isinstance(subjects, (str, list, tuple)):
            raise ArgumentError(f"a model is a name, a pipeline or a Helm, got {subjects!r}")
        raise ArgumentError("several prompts are one list, and a model by name is model='emoji'")
    chosen = planned(subjects, plan, axes, yes=yes)
    store = Store(Path(out))
    writable(store.root)
    telling = progress if callable(progress) else Lines() if progress else lambda state: None
    paging = _paging(chosen, store, telling)
    engine = Engine(chosen, store, batch=size, references=references, progress=paging)
    try:
        engine.run()
        engine.tell("page")
        return write(chosen, store, engine.notes, claims)
    except KeyboardInterrupt:
        raise Stopped(kept(chosen, store, engine.notes), again) from None


def kept(plan: Plan, store: Store, notes: Sequence[Any] = ()) -> str:
    """Write the page of what there is, and say what that is; a second Ctrl-C leaves the page as it
    was.
    """
    try:
        write(plan, store, notes)
        page = ""
    except KeyboardInterrupt:
        page = " (the page is an older one)"
    done = sum(store.done(cell.id) is not None for cell in plan)
    fine = sum(o.kind == "reference" and o.status == "done" for o in store.outcomes.values())
    what = (
        f"{done} of {len(plan)} runs and {fine} reference runs are kept in"
        f" {str(store.root)!r}{page}"
    )
    return f"stopped: {what}; what was on its way begins again"


def _call(subjects: Any, prompts: Any, axes: dict[str, Any], **others: Any) -> str:
    """The call of `compare`, as it could be typed again."""
    usual = {"batch": None, "plan": None, "references": True, "yes": False}
    named = {k: v for k, v in others.items() if k not in usual or v is not usual[k]}
    words = [
        _typed(v)
        for v in (subjects, prompts)
        if not (v is None or (isinstance(v, tuple) and not v))
    ]
    return f"tm.compare({', '.join([*words, *(f'{k}={_typed(v)}' for k, v in {**axes, **named}.items())])})"


def _typed(value: Any) -> str:
    """A value as it is typed; an object in three dots."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_typed, value))}]"
    if isinstance(value, PathLike):
        return repr(str(value))
    return repr(value) if isinstance(value, (str, int, float, dict, range, type(None))) else "…"


def planned(
    subjects: Sequence[str] | str,
    plan: Plan | str | PathLike[str] | None,
    axes: dict[str, Any],
    *,
    yes: bool = False,
) -> Plan:
    """The plan of a call: given, read from a file, or made of axes. `yes`: whether more than 1,000
    runs are meant.
    """
    subjects = (
        subjects if isinstance(subjects, str) else several("subjects", subjects, "['red apple']")
    )
    if isinstance(plan, Plan):
        if subjects or axes:
            raise ArgumentError("give a plan or its axes, not both")
        check_count(len(plan), yes)
        return plan
    if plan is not None:
        path("plan", plan)
        return Plan.read(plan, yes=yes, **axes, **({"subjects": subjects} if subjects else {}))
    return Plan.of(subjects, yes=yes, **axes)


def write(
    plan: Plan, store: Store, notes: Sequence[Any] = (), claims: Sequence[Any] = ()
) -> Comparison:
    """Write the page of what the store has of a plan."""
    from ..files import replacing
    from .page import render
    from .report import content

    store.refresh()
    data = content(plan, store, notes, claims)
    page = store.root / "index.html"
    with replacing(page, lasting=False) as temporary:
        temporary.write_text(render(data), "utf-8")
    return Comparison(plan, store, page, data["groups"])


def _paging(plan: Plan, store: Store, progress: Progress) -> Progress:
    """`progress`, and the page written anew from time to time."""
    import time

    last = time.monotonic()

    def seen(state: State) -> None:
        nonlocal last
        progress(state)
        if state.outcome is not None and time.monotonic() - last > EVERY:
            write(plan, store)
            last = time.monotonic()

    return seen
