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
from collections import OrderedDict
from types import MethodType
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from .control import elsewhere
from .driver import UNKNOWN, Driver
from .program import Program

if TYPE_CHECKING:
    from .run import Run

#: fields that are made anew, for they are a process' own or follow from the others
ANEW = (
    "_border", "_change", "_due", "_flight", "_hooking", "_loop", "_waiting", "_watched", "driver",
    "firing", "lent",
    "memory", "program",
)  # fmt: skip
SHARED = ("context", "hooks", "noise", "shape")  # of copies in one process


def fields(run: Run) -> dict[str, Any]:
    """What a copy of the run is made of. An edit in place reaches the base in the copy, and the run
    is left alone.
    """
    with run._change:
        made = {name: value for name, value in vars(run).items() if name not in ANEW}
        watched, here = run._watched, run._state
        if watched is not None and here is not None:
            x, version, before = watched
            if here.x is x and (version < 0 or x._version != version):
                made["_state"] = run._edited(before, here)
        if elsewhere(run._hooking):
            stands = run._between()
            made |= {
                "_state": stands.state,
                "_last": stands.last,
                "_clean": stands.clean,
                "_called": stands.called,
            }
            made["_status"] = "running"
        made["_kept"] = OrderedDict(
            (step, kept._replace(memory=UNKNOWN)) for step, kept in run._kept.items()
        )
        return made


def revive(run: Run, made: dict[str, Any]) -> None:
    """Make `run` of the fields of another one."""
    vars(run).update(made)
    run._kept = OrderedDict(
        (step, kept._replace(memory=UNKNOWN)) for step, kept in run._kept.items()
    )
    fresh: dict[str, Any] = {
        "_due": UNKNOWN,
        "memory": UNKNOWN,
        "_waiting": False,
        "firing": False,
        "lent": (),
    }
    fresh |= dict.fromkeys(("_border", "_flight", "_hooking", "_loop", "_watched"))
    vars(run).update(fresh, _change=threading.Condition(threading.RLock()), driver=Driver())
    run.program = Program.bind(run.table, run.prediction, run.shape)


def packed(run: Run) -> dict[str, Any]:
    """The fields of a run for a pickle. Raises `RunError` where a hook, a noise source or a shape
    cannot be pickled.
    """
    made = fields(run)
    made["context"] = None
    made["_kept"] = OrderedDict(
        (step, kept._replace(memory=None)) for step, kept in made["_kept"].items()
    )
    named = [(f"hook {hook.name!r}", hook) for hook in run.hooks]
    for what, value in (*named, ("noise", run.noise), ("shape", run.shape)):
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
    return made


def deep(run: Run, memo: dict[int, Any]) -> Run:
    """A run of its own at the same point; hooks and context are the same ones."""
    twin = type(run).__new__(type(run))
    memo[id(run)] = twin
    made = fields(run)
    shared = {name: made.pop(name) for name in SHARED}
    own = {name: copy.deepcopy(value, memo) for name, value in made.items()}
    noise = shared["noise"]
    if isinstance(noise, MethodType):
        shared["noise"] = copy.deepcopy(noise, memo)  # a scheduler's, which is copied with its run
    revive(twin, {**own, **shared, "hooks": list(shared["hooks"])})
    return twin
