"""A combination in timonel: the same scheduler of diffusers by its name and flags, or the sampler
by its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import compat
from ..core.analysis import effects, spreads
from ..core.table import Table
from ..errors import TimonelError
from ..pipelines.family.facts import Facts, Loop
from ..pipelines.sockets.scheduler import Scheduler
from . import dry_run as trials
from .in_diffusers import Peer


@dataclass(frozen=True)
class Ours:
    """What timonel does with it. `refused`: why it does not; else the calls, the times, the noise
    left in the result
    and its spread on Gaussian data, both exact."""

    code: str
    refused: str = ""
    calls: int = 0
    times: tuple[float, ...] = ()
    left: float = math.nan
    spread: float = math.nan


Result = tuple[Ours, Table | None]


def in_timonel(
    facts: Facts, loop: Loop, peer: Peer, asked: str | None, steps: int, by_class: bool
) -> Result:
    """What timonel does, and its table; None where it refuses. `by_class`: asked for in diffusers'
    words.
    """
    if asked is None and facts.own == "Scheduler":
        return _run(
            "it is timonel's own",
            facts,
            loop,
            steps,
            {},
            lambda: Scheduler.from_config(dict(facts.scheduler)),
        )
    config = dict(facts.scheduler)
    if by_class:
        named = _compat(facts, loop, peer, steps)
        if named[1] is not None or peer.flags or peer.cls is None:
            return named
        asked = peer.cls.__name__
    code = f"timonel.Scheduler.from_config(pipe.scheduler.config, sampler={asked!r})"
    return _run(code, facts, loop, steps, {}, lambda: Scheduler.from_config(config, sampler=asked))


def twin(facts: Facts, loop: Loop, peer: Peer, steps: int) -> Table | None:
    """The table of timonel's scheduler of the same name and flags: the levels that diffusers' class
    should visit.
    """
    return _compat(facts, loop, peer, steps, configured=True)[1]


def _compat(facts: Facts, loop: Loop, peer: Peer, steps: int, configured: bool = False) -> Result:
    name = facts.own if peer.cls is None else peer.cls.__name__
    if peer.cls is None or name not in compat.__all__:
        return (
            Ours("", refused=f"timonel.compat has no {name}; name one of `timonel samplers`"),
            None,
        )
    cls = getattr(compat, name)
    code, config = f"the same line, after: from timonel.compat import {name}", dict(facts.scheduler)
    return _run(
        code,
        facts,
        loop,
        steps,
        peer.given,
        lambda: cls.from_config(config, **peer.flags),
        configured,
    )


def _run(
    code: str, facts: Facts, loop: Loop, steps: int, given: Mapping[str, Any],
    make: Callable[[], Any],
    configured: bool = False,
) -> Result:  # fmt: skip
    try:
        made = make()
        trials.listed(made, loop, facts.process, steps, dict(given), configured)
    except TimonelError as error:
        return Ours(code, refused=str(error)), None
    table = made.run.table
    return (
        Ours(code, "", table.nfe, tuple(table.time[:-1].tolist()), left(table), spread(table)),
        table,
    )


def left(table: Table) -> float:
    """Standard deviation of the noise that a table leaves in its result, for data at one point."""
    done = effects(table)
    start = float(done.start[-1]) * float(table.sigma[0])
    return math.hypot(start, float(done.noise[-1].norm())) / float(table.alpha[-1])


def spread(table: Table) -> float:
    """Standard deviation of the result for Gaussian data, over the data's."""
    return float(spreads(table, trials.DATA)[-1])
