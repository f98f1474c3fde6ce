"""Which of the keys that a caller sets change nothing in a class, and what would act instead."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

from ..core.process import Process
from ..core.process.config import name_of
from ..errors import ArgumentError, TimonelError
from ..pipelines.classes.config import TRAINING, Keys
from ..pipelines.classes.flags import REMEDIES, UNSEEN
from ..pipelines.classes.rows import Row
from ..pipelines.classes.rule import LevelRequest, shaping
from ..pipelines.classes.tables import FEW
from ..pipelines.sockets import acting

Compat: TypeAlias = Any  # `base.Compat`, which stands above this file

Config = Mapping[str, Any]
#: which UniPC on Karras' levels never reads
SHIFTS = ("shift", "flow_shift", "use_dynamic_shifting", "time_shift_type")
logger = logging.getLogger("timonel")


def check(scheduler: Compat, keys: Keys, process: Process, describes: bool) -> None:
    """Say which keys that the caller has set change nothing.

    `describes`: a constructor describes its model as a config does, with the betas of a process
    that has none too, so those may do nothing.

    Raises `ArgumentError` for one that the class does not have.
    """
    cls, name = type(scheduler), type(scheduler).__name__
    unread, defaults = cls.row.unread, cls.defaults
    described = (*TRAINING, "steps_offset") if describes else ()
    explicit = {k: v for k, v in keys.explicit.items() if k not in described or k in unread}
    rest = {key: value for key, value in keys.rest.items() if key not in explicit}

    def see(changes: Config) -> tuple[Any, ...] | None:
        flags = {key: value for key, value in changes.items() if key in defaults}
        others = {k: v for k, v in changes.items() if k not in defaults and v is not None}
        trial: Compat = object.__new__(cls)
        trial._create(others, {**rest, **keys.flags, **flags}, trial=True)
        return seen(trial)

    visible = {key: value for key, value in explicit.items() if key not in UNSEEN}
    never = [key for key in explicit if key in unread and explicit[key] != defaults[key]]
    for key in dict.fromkeys([*acting.idle(see, visible, defaults), *never]):
        remedy = unread.get(key) or _remedy(key, keys.flags, process.kind, cls.row)
        if key not in defaults:
            raise ArgumentError(f"{key}={explicit[key]!r} changes nothing in {name}: {remedy}")
        stronger = _stronger(key, explicit)
        why = f"here: {remedy}"
        if stronger is not None:
            why = f"beside {stronger}={explicit[stronger]!r}; leave one of them out"
        logger.warning("%s=%r changes nothing %s (%s)", key, explicit[key], why, name)


def seen(scheduler: Compat) -> tuple[Any, ...] | None:
    """All that a scheduler does for a few and for more steps, in numbers; None without levels."""
    mu = acting.mu(scheduler.process, scheduler.config)
    rows: list[Any] = []
    try:
        for steps in (6, FEW + 1):
            scheduler._visit(LevelRequest(steps, mu=mu), None, trial=True)
            table = scheduler.run.table
            numbers = (table.x, table.base, table.alpha, table.sigma, table.time)
            rows += [tuple(values.flatten().tolist()) for values in numbers]
            rows.append(scheduler.init_noise_sigma)
    except TimonelError:
        return None
    return (
        name_of(scheduler.process),
        scheduler.prediction,
        scheduler.sampler.options.get("eta"),
        scheduler._levels.grid.name,
        *rows,
        *acting.shaped(scheduler.config, scheduler._shape()),
    )


def _stronger(key: str, explicit: Config) -> str | None:
    """The key among `explicit` that sets the levels where `key` would too."""
    if key == "final_sigmas_type":
        return "interpolation_type" if explicit.get("interpolation_type") == "log_linear" else None
    if key not in ("timestep_spacing", "interpolation_type"):
        return None
    return next(iter(shaping(explicit)), None)


def _remedy(key: str, flags: Config, kind: str, row: Row) -> str:
    """What would act instead of a key that does not."""
    if kind not in acting.FOR.get(key, (kind,)):
        models = " and ".join(acting.FOR[key])
        return f"it is a key of {models} models, and this model's process is {kind!r}"
    if key in ("sigma_min", "sigma_max"):
        karras = "use_karras_sigmas" in flags
        flag = "e.g. use_karras_sigmas=True" if karras else "which EulerDiscreteScheduler has"
        needs = f"it needs a sigma flag, {flag}; or leave it out"
        return "leave it out" if row.levels.rises else needs
    if key == "timestep_type" and "edm" not in row.kinds:
        return "leave it out"
    shape = next(iter(shaping(flags)), None)
    if shape and key in ("timestep_spacing", "steps_offset", "lambda_min_clipped", *SHIFTS):
        return f"{shape}=True sets the levels; pass {shape}=False as well"
    if key == "lower_order_final" and flags.get("solver_order", 1) > 1:
        way = "pass final_sigmas_type='sigma_min' as well" if kind == "vp" else "leave it out"
        return f"the step to sigma = 0 is of order 1 anyhow; {way}"
    return REMEDIES.get(key, "leave it out")
