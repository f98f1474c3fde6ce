"""Copies of a run, in this process and in another one: `copy.deepcopy(run)` and `pickle`.

A copy stands where the run stands and goes on bit for bit; the run itself does not notice. What
belongs to a process does not travel in a pickle: the loop that drives the run, what the network
remembers beside its weights, and the `context` of a pipeline. A copy in the same process keeps the
context and the very hooks.
"""

from __future__ import annotations

import copy
import pickle
import threading
from types import MethodType
from typing import Any, TypeAlias

from ..errors import RunError
from .control import elsewhere
from .driver import UNKNOWN, Driver

Run: TypeAlias = Any  # `run.Run`, which stands above this file


#: fields that a copy begins anew: they belong to a process, or to a row under way
IDLE: dict[str, Any] = {
    **dict.fromkeys(("_before", "_flight", "_hooking", "_loop", "_watched")),
    "_waiting": False, "firing": False, "lent": (),
}  # fmt: skip
ANEW = {*IDLE, "_change", "driver"}
SHARED = ("context", "hooks", "noise", "program")  # of copies in one process


def fields(run: Run) -> dict[str, Any]:
    """The fields of a copy; an edit in place reaches its base, and the run is left alone."""
    with run._change:
        state = {name: value for name, value in vars(run).items() if name not in ANEW}
        if elsewhere(run._hooking):
            state |= {"_at": run._between(), "_status": "running"}
        elif run._at is not None:
            state["_at"] = run._at._replace(state=run._edited())
        if state["_at"] is not None:
            state["_at"] = state["_at"]._replace(memory=UNKNOWN)
        state["_checkpoints"] = run._checkpoints.without_memory()
        return state


def revive(run: Run, state: dict[str, Any]) -> None:
    """Make `run` of the fields of another one."""
    fresh = {"_change": threading.Condition(threading.RLock()), "driver": Driver()}
    run.__dict__.update(state, **IDLE, **fresh)


def packed(run: Run) -> dict[str, Any]:
    """The fields of a run for a pickle.

    Raises:
        RunError: a hook, the noise source or `denoised_fn` cannot be pickled.
    """
    state = {**fields(run), "context": None}
    named = [(f"hook {hook.name!r}", hook) for hook in run.hooks]
    for what, value in (*named, ("noise", run.noise), ("denoised_fn", run.denoised_fn)):
        if isinstance(value, MethodType):
            continue  # a method, of a scheduler that is pickled with its run
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise RunError(
                f"the {what} of this run cannot be pickled ({error}): use a function of a module or"
                " an object that can, take it off (run.hooks = []), or save the run with"
                " run.save(path) and give it again to Run.load"
            ) from error
    return state


def deep(run: Run, memo: dict[int, Any]) -> Run:
    """An independent run at the same point; hooks and context are shared."""
    cls: type[Any] = type(run)
    twin = object.__new__(cls)
    memo[id(run)] = twin
    state = fields(run)
    shared = {name: state.pop(name) for name in SHARED}
    noise = shared["noise"]
    if isinstance(noise, MethodType):
        shared["noise"] = copy.deepcopy(noise, memo)  # a scheduler's, which is copied with its run
    revive(twin, copy.deepcopy(state, memo) | shared | {"hooks": list(shared["hooks"])})
    return twin
