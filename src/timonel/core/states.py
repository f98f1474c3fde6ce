"""Which orders a run, or a call in the background, takes in which state.

An order is done or it is refused with `RunError`, which names the state and the call that would
work. None is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..errors import RunError

#: the states of a run; the call of a `Handle` is finishing from the end of its loop on, and ended
#: once it is over
STATES: Mapping[str, str] = MappingProxyType({
    "new": "not begun",
    "running": "rows are computed, or can be",
    "paused": "it waits before its next row",
    "finishing": "the loop is over and its pipeline decodes",
    "done": "complete",
    "stopped": "ended before its last row",
    "failed": "the network or a hook raised",
    "ended": "the call of a handle is over",
})  # fmt: skip
GOES = ("running", "paused")
RESTS = ("stopped", "failed")


class Order(NamedTuple):
    """What an order does, and the states in which it is done."""

    does: str
    states: tuple[str, ...]


ORDERS: Mapping[str, Order] = MappingProxyType({
    "start": Order("begins", ("new",)),
    "stop": Order("ends it before its next row", ("new", *GOES)),
    "pause": Order("lets it wait before its next row", ("new", *GOES)),
    "resume": Order(
        "lets it go on, and takes back a stop that has not ended it", ("new", *GOES, *RESTS)
    ),
    "rewind": Order("goes back before its next row", (*GOES, "done", *RESTS)),
    "latents": Order("changes the sample", (*GOES, "done", *RESTS)),
    "guidance": Order("guides the rows to come", ("new", *GOES, *RESTS)),
    "tail": Order("goes on with another sampler or levels", (*GOES, *RESTS)),
    "prompt": Order("changes the prompt of the rows to come", GOES),
    "branch": Order("copies it", (*GOES, "finishing", "done", *RESTS, "ended")),
    "save": Order("writes it to a file", (*GOES, "finishing", "done", *RESTS, "ended")),
    "preview": Order("shows the newest prediction", (*GOES, "finishing", "done", *RESTS, "ended")),
})  # fmt: skip
REMEDIES = {
    "new": "it has not started: begin it with run.start(noise), or wait for its first step, e.g."
           " with handle.wait()",
    "running": "it has already started: make a new Run, or go back with run.rewind(0)",
    "paused": "it has already started: make a new Run, or go back with run.rewind(0)",
    "finishing": "its loop is over: wait for the end of the call, e.g. with handle.result(), then"
                 " go on with run.rewind(step) and helm(…, resume=run)",
    "done": "it is complete: go back with run.rewind(step) first",
    "stopped": "it has ended: go on with run.resume(), or go back with run.rewind(step)",
    "failed": "it has ended: go on with run.resume(), or go back with run.rewind(step)",
    "ended": "the call has ended: begin another with helm.start(…), or go on with its run,"
             " handle.run.rewind(step) and helm.start(…, resume=handle.run)",
}  # fmt: skip


def allowed(order: str, state: str) -> bool:
    """Whether an order (a key of `ORDERS`) is done in a state (a key of `STATES`)."""
    return state in ORDERS[order].states


def check(order: str, state: str, now: str = "") -> None:
    """Refuse an order that a state does not allow.

    Args:
        order: a key of `ORDERS`.
        state: a key of `STATES`.
        now: what the state is called, where not by its name.

    Raises:
        RunError: it is refused.
    """
    if not allowed(order, state):
        raise RunError(f"{order} is refused while the run is {now or state}: {REMEDIES[state]}")


def table() -> str:
    """The table of allowed orders, in Markdown."""
    lines = [f"| order | what it does | {' | '.join(STATES)} |", "|" + " --- |" * (len(STATES) + 2)]
    for name, order in ORDERS.items():
        marks = ("yes" if allowed(name, state) else "-" for state in STATES)
        lines.append(f"| {name} | {order.does} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"
