"""A combination in timonel: diffusers' scheduler by its name and flags, or timonel's sampler."""

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
from . import dry_run
from .in_diffusers import Peer


@dataclass(frozen=True)
class Ours:
    """What timonel does with a combination.

    Args:
        code: what one writes.
        refused: why it does not; "" where it does.
        calls: network calls.
        times: what the network gets in each of them.
        left: standard deviation of the noise in the result, exact.
        spread: that of the result on Gaussian data, over the data's, exact.
    """

    code: str
    refused: str = ""
    calls: int = 0
    times: tuple[float, ...] = ()
    left: float = math.nan
    spread: float = math.nan


Result = tuple[Ours, Table | None]


def in_timonel(
    facts: Facts, loop: Loop, peer: Peer, sampler: str | None, steps: int, by_class: bool
) -> Result:
    """What timonel does, and its table; None where it refuses.

    Args:
        facts: of the model.
        loop: of its pipeline.
        peer: the same in diffusers.
        sampler: a sampler, or a class of diffusers; None is the model's own scheduler.
        steps: how many.
        by_class: whether it was named in diffusers' words.
    """
    config = dict(facts.scheduler)
    if sampler is None and facts.scheduler_class == "Scheduler":
        code = "it is timonel's"
        return _run(code, facts, loop, steps, {}, lambda: Scheduler.from_config(config))
    if by_class:
        named = _compat(facts, loop, peer, steps)
        if named[1] is not None or peer.flags or peer.cls is None:
            return named
        sampler = peer.cls.__name__
    code = f"timonel.Scheduler.from_config(pipe.scheduler.config, sampler={sampler!r})"
    return _run(
        code, facts, loop, steps, {}, lambda: Scheduler.from_config(config, sampler=sampler)
    )


def twin(facts: Facts, loop: Loop, peer: Peer, steps: int) -> Table | None:
    """The table of timonel's scheduler of the same name and flags, as diffusers' should be."""
    return _compat(facts, loop, peer, steps, configured=True)[1]


def _compat(facts: Facts, loop: Loop, peer: Peer, steps: int, configured: bool = False) -> Result:
    name = facts.scheduler_class if peer.cls is None else peer.cls.__name__
    if peer.cls is None or name not in compat.__all__:
        refused = f"timonel.compat has no {name}; name one of `timonel samplers`"
        return Ours("", refused=refused), None
    cls, config = getattr(compat, name), dict(facts.scheduler)
    code = f"the same line, after: from timonel.compat import {name}"

    def make() -> Any:
        return cls.from_config(config, **peer.flags)

    return _run(code, facts, loop, steps, peer.lists, make, configured)


def _run(
    code: str, facts: Facts, loop: Loop, steps: int, lists: Mapping[str, Any],
    make: Callable[[], Any], configured: bool = False,
) -> Result:  # fmt: skip
    try:
        scheduler = make()
        dry_run.listed(scheduler, loop, facts.process, steps, dict(lists), configured)
    except TimonelError as error:
        return Ours(code, refused=str(error)), None
    table = scheduler.run.table
    times = tuple(table.time[:-1].tolist())
    return Ours(code, "", table.nfe, times, left(table), spread(table)), table


def left(table: Table) -> float:
    """Standard deviation of the noise that a table leaves in its result, for data at one point."""
    done = effects(table)
    start = float(done.start[-1]) * float(table.sigma[0])
    return math.hypot(start, float(done.noise[-1].norm())) / float(table.alpha[-1])


def spread(table: Table) -> float:
    """Standard deviation of the result for Gaussian data, over the data's."""
    return float(spreads(table, dry_run.DATA)[-1])
