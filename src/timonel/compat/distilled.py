"""diffusers' schedulers of distilled models by name."""

# ruff: noqa: RUF012 (the class attributes are declared in `Compat`, as ClassVar)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import Compat
from .defaults import DISTILLED

Flags = Mapping[str, Any]
Named = tuple[str, dict[str, Any]]


class LCMScheduler(Compat):
    """`lcm`."""

    family, fixed = "distilled", {"set_alpha_to_one": True}
    defaults = DISTILLED
    solver = "lcm"


class TCDScheduler(Compat):
    """`tcd`, which ends at training time 0 as diffusers' does. `eta` may come with the first step.

    Pipelines give 0 unless told otherwise, as they do to diffusers' class.
    """

    family, eta, fixed = "distilled", 0.3, {"ends_at_time_zero": True}
    defaults = dict(DISTILLED)

    def _solver(self, flags: Flags) -> Named:
        return "tcd", {"eta": 0.3}
