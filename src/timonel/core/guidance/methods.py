"""Methods of guidance: what is made of the conditional and the unconditional output of a row.

A method is a frozen dataclass, one pure function of the row's outputs. `makers.py` has the
functions that people call, with formulas and sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ...errors import ArgumentError, among, finite, instance, whole
from .outputs import Method, Outputs, each, known

FLOWS = ("flow", "reverse_flow")  # predictions that are velocities of a flow
FORMULAS = ("paper", "diffusers")


def _set(method: Method, **values: Any) -> None:
    for key, value in values.items():
        object.__setattr__(method, key, value)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of every sample, in double precision, broadcastable to it."""
    return (a.double() * b.double()).sum(dim=each(a), keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """`above / below`; 0 where `below` is 0."""
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), 0.0)


@dataclass(frozen=True)
class APG(Method):
    """Adaptive projected guidance; see `apg`."""

    name = "apg"
    has_momentum = True

    eta: float = 0.0
    norm_threshold: float | None = None
    momentum: float = 0.0
    plain_steps: int = 0
    formula: str = "paper"

    def __post_init__(self) -> None:
        limit = self.norm_threshold
        _set(
            self, eta=finite("eta", self.eta, 0, 1),
            momentum=finite("momentum", self.momentum, -1, 1),
            norm_threshold=None if limit is None else _threshold(limit),
            plain_steps=whole("plain_steps", self.plain_steps, 0),
            formula=among("formula", self.formula, FORMULAS),
        )  # fmt: skip

    def combine(
        self, outputs: Outputs, scale: float, momentum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Method`."""
        cond, uncond, paper = outputs.cond, outputs.uncond, self.formula == "paper"
        onto, unit = outputs.denoised(cond) if paper else (cond, 1.0)
        update = unit * (cond - uncond)
        if self.momentum:
            update = update if momentum is None else update + self.momentum * momentum
            momentum = update
        if outputs.place is not None and outputs.place.step < self.plain_steps:
            return torch.lerp(uncond, cond, scale), momentum
        update = self._projected(self._short(update), onto)
        if paper:
            return cond + (scale - 1) / unit * update, momentum
        return uncond + scale * update, momentum

    def _short(self, update: Tensor) -> Tensor:
        """The update, no longer than the threshold."""
        limit = self.norm_threshold
        if limit is None:
            return update
        return update * (limit / _dot(update, update).sqrt().clamp(min=limit)).to(update.dtype)

    def _projected(self, update: Tensor, onto: Tensor) -> Tensor:
        """The update with eta times its part along `onto`."""
        along = _ratio(_dot(update, onto), _dot(onto, onto)).to(update.dtype) * onto
        return update - (1 - self.eta) * along


@dataclass(frozen=True)
class CFGZero(Method):
    """CFG-Zero*, and its zero-init alone; see `cfg_zero` and `zero_init`."""

    name = "cfg_zero"

    zero_init: int | None = None
    optimized: bool = True

    def __post_init__(self) -> None:
        steps = self.zero_init
        _set(
            self, zero_init=None if steps is None else whole("zero_init", steps, 0),
            optimized=instance("optimized", self.optimized, bool, "True or False"),
        )  # fmt: skip

    def check(self, prediction: str) -> None:
        """See `Method`."""
        if self.zero_init and prediction not in FLOWS:
            raise ArgumentError(
                f"zero_init={self.zero_init} sets the velocity of a flow to zero, and this network"
                f" predicts {prediction!r}: give zero_init=0, e.g. cfg_zero(…, zero_init=0)"
            )

    def combine(
        self, outputs: Outputs, scale: float, momentum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Method`."""
        cond, uncond = outputs.cond, outputs.uncond
        if self._still(outputs):
            return torch.zeros_like(cond), momentum
        if self.optimized:
            best = _ratio(_dot(cond, uncond), _dot(uncond, uncond))
            uncond = uncond * best.to(uncond.dtype)
        return torch.lerp(uncond, cond, scale), momentum

    def _still(self, outputs: Outputs) -> bool:
        """Whether the row is one of the first, whose velocity is zero."""
        place, steps = outputs.place, self.zero_init
        if place is None:
            return False
        if steps is None:
            steps = 1 if place.prediction in FLOWS else 0
        return place.step < steps


@dataclass(frozen=True)
class TCFG(Method):
    """Tangential damping; see `tcfg`."""

    name = "tcfg"

    def combine(
        self, outputs: Outputs, scale: float, momentum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Method`.

        With (a, b) the unit eigenvector of the Gram matrix of (cond, uncond), the first right
        singular vector is (a·cond + b·uncond)/s, and the part of uncond along it is
        b·(a·cond + b·uncond).
        """
        cond, uncond = outputs.cond, outputs.uncond
        cc, cu, uu = _dot(cond, cond), _dot(cond, uncond), _dot(uncond, uncond)
        angle = torch.atan2(2 * cu, cc - uu) / 2
        a, b = torch.cos(angle), torch.sin(angle)
        kept = (a * b).to(cond.dtype) * cond + (b * b).to(cond.dtype) * uncond
        return torch.lerp(kept, cond, scale), momentum


@dataclass(frozen=True)
class CFGpp(Method):
    """CFG++; see `cfg_pp`. The solver takes its noise from the unconditional output."""

    name = "cfg_pp"
    reads_uncond = True
    rescales = False

    def combine(
        self, outputs: Outputs, scale: float, momentum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Method`."""
        return torch.lerp(outputs.uncond, outputs.cond, scale), momentum


@dataclass(frozen=True)
class Mambo(Method):
    """MAMBO-G; see `mambo`."""

    name = "mambo"

    damping: float = 8.0

    def __post_init__(self) -> None:
        _set(self, damping=finite("damping", self.damping, 0))

    def combine(
        self, outputs: Outputs, scale: float, momentum: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Method`."""
        cond, uncond = outputs.cond, outputs.uncond
        d = cond - uncond
        ratio = (_dot(d, d) / _dot(uncond, uncond)).sqrt().nan_to_num()
        return cond + ((scale - 1) * torch.exp(-self.damping * ratio)).to(cond.dtype) * d, momentum


def _threshold(value: Any) -> float:
    limit = finite("norm_threshold", value, 0)
    if not limit:
        raise ArgumentError(
            "norm_threshold=0 leaves nothing of the guidance: give None for no limit"
        )
    return limit


METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (APG, CFGZero, TCFG, CFGpp, Mambo)}


def from_dict(data: Any) -> Method:
    """The inverse of `Method.to_dict`.

    Raises:
        ArgumentError: it is no method, or a field has a value of no use.
    """
    instance("a guidance method", data, Mapping, "the dictionary of a method, method.to_dict()")
    rest = dict(data)
    kind = METHODS[among("guidance method", rest.pop("name", None), METHODS)]
    known(f"guidance method {kind.name!r}", rest, (field.name for field in fields(kind)))
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()})
