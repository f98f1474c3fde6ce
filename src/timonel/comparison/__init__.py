"""Compare samplers, schedules and guidance on your prompts: pictures, numbers and one page.

result = tm.compare("red apple", sampler=["euler", "dpmpp_2m/karras"], steps=[6, 10], seeds=4)
result.page               # report/index.html
result.best(steps=10)     # ties included
result.rows               # dicts; also result.to_pandas(), result.table (pyarrow)
result.export("runs.parquet")
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
    """A comparison that was stopped by Ctrl-C.

    Attributes:
        kept: what there is, and where, in words.
        again: the call that goes on.
    """

    def __init__(self, kept: str, again: str) -> None:
        super().__init__(f"{kept}; this call goes on: {again}")
        self.kept, self.again = kept, again


@dataclass
class Comparison:
    """The result of a comparison.

    Attributes:
        plan: what was compared.
        store: the folder with every run.
        page: the HTML file.
        groups: a row for every setting, with means over its seeds and prompts.
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
        """The settings nearest to the converged samples among those of equal cost, ties included.

        Settings of different cost are not compared with each other.

        Args:
            steps: only settings with so many steps.
            evaluations: only settings with so many network evaluations a picture.

        Returns:
            Rows of `groups`, ordered by evaluations, then by distance.
        """
        wanted = {"steps": steps, "evaluations": evaluations}
        best = [
            group
            for group in self.groups
            if group["verdict"] in ("best", "tie")
            and all(n in (None, group["at"].get(k, group.get(k))) for k, n in wanted.items())
        ]
        return sorted(best, key=lambda group: (group["evaluations"], group["mean"]["latent_rmse"]))


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

    Args:
        subjects: prompts, or pictures; or a loaded model, a pipeline or a `Helm`, which is used as
            it is, as in `compare(pipe, "red apple", …)`.
        prompts: after a loaded model, what would be `subjects`.
        out: the folder.
        plan: a plan, or a TOML, YAML or JSON file of axes.
        batch: network evaluations a call; 16 by default.
        references: also compute the converged sample of every seed and prompt, with 64 to 256
            steps, to which distances are measured.
        yes: allow more than 1,000 runs.
        progress: called with a `State` after every network call; True prints lines on stderr.
        claims: for the page, see `claims.measured`.
        **axes: every field of a recipe, a value or a list; see `Plan.of`.

    Returns:
        The result. A run that fails is kept with its reason, and the others go on.

    Raises:
        UnknownName, ArgumentError: before any compute, for what cannot be meant.
        Stopped: on Ctrl-C; a `KeyboardInterrupt` that says what is kept, and how to go on.
    """
    from .engine import BATCH, Engine
    from .store import Store

    path("out", out)
    size = BATCH if batch is None else whole("batch", batch)
    references, yes = flag("references", references), flag("yes", yes)
    if not isinstance(progress, bool):
        function("progress", progress, "lambda state: print(state)", 1)
    settings = {"plan": plan, "batch": batch, "references": references, "yes": yes}
    again = _call(subjects, prompts, axes, out=str(out), **settings)
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
    report = progress if callable(progress) else Lines() if progress else lambda state: None
    paging = _paging(chosen, store, report)
    engine = Engine(chosen, store, batch=size, references=references, progress=paging)
    try:
        engine.run()
        engine.report("page")
        return write(chosen, store, engine.notes, claims)
    except KeyboardInterrupt:
        raise Stopped(kept(chosen, store, engine.notes), again) from None


def kept(plan: Plan, store: Store, notes: Sequence[Any] = ()) -> str:
    """Write the page of what there is, and say what that is; a second Ctrl-C keeps the old page."""
    try:
        write(plan, store, notes)
        page = ""
    except KeyboardInterrupt:
        page = " (the page is an older one)"
    done = sum(store.done(cell.id) is not None for cell in plan)
    fine = sum(o.kind == "reference" and o.status == "done" for o in store.outcomes.values())
    return (
        f"stopped: {done} of {len(plan)} runs and {fine} reference runs are kept in"
        f" {str(store.root)!r}{page}; what was on its way begins again"
    )


def _call(subjects: Any, prompts: Any, axes: dict[str, Any], **others: Any) -> str:
    """The call of `compare`, as it could be typed again."""
    usual = {"batch": None, "plan": None, "references": True, "yes": False}
    named = {k: v for k, v in others.items() if k not in usual or v is not usual[k]}
    positional = [v for v in (subjects, prompts) if v is not None]
    words = [_typed(v) for v in positional if not (isinstance(v, tuple) and not v)]
    words += [f"{k}={_typed(v)}" for k, v in {**axes, **named}.items()]
    return f"tm.compare({', '.join(words)})"


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
    """The plan of a call: as it is, read from a file, or of axes.

    Args: as of `compare`.
    """
    if not isinstance(subjects, str):
        subjects = several("subjects", subjects, "['red apple']")
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
    """Write the page of what the store has of a plan.

    Args:
        plan: what is compared.
        store: the folder.
        notes: sentences for the page, each in English ("en") and Spanish ("es").
        claims: see `claims.measured`.
    """
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
