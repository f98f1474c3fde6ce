"""A network told by a few of its weights, so that a file can say which one it was made for."""

from __future__ import annotations

import bisect
import itertools

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn

from ..process import double

SAMPLES = 64  # weights in a fingerprint
KINDS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
# share of values that rounding leaves equal, at least; on another way to a dtype some end one unit
# apart
ALIKE = 0.75
LEAST = 2.0**-24  # the distance of the smallest numbers of float16


class Fingerprint(BaseModel):
    """A network's class, its number of parameters, and some of their values. Made by `fingerprint`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    parameters: int
    dtype: str  # the coarsest that holds all values exactly
    values: list[float]

    @field_validator("dtype")
    @classmethod
    def _known(cls, name: str) -> str:
        dtype = getattr(torch, name, None)
        if dtype not in KINDS:
            raise ValueError(f"{name!r} is none of {', '.join(map(str, KINDS))}")
        return name

    def fits(self, other: Fingerprint) -> bool:
        """Whether both are the same weights, be it rounded to another dtype; a fine-tuned sibling's
        are not.
        """
        if (self.network, self.parameters, len(self.values)) != (
            other.network,
            other.parameters,
            len(other.values),
        ):
            return False
        coarse = max((getattr(torch, one.dtype) for one in (self, other)), key=_unit)
        a, b = (double(one.values).to(coarse).double() for one in (self, other))
        near = torch.allclose(a, b, rtol=_unit(coarse), atol=LEAST)
        return near and float((a == b).double().mean()) >= ALIKE

    def __str__(self) -> str:
        return f"{self.network} of {self.parameters:,} parameters"


def fingerprint(module: nn.Module) -> Fingerprint | None:
    """The fingerprint of a network: 64 weights, evenly spread over all of them, and nothing else is
    read.

    None where they cannot be read: a network without weights, or one whose weights are elsewhere
    (offloaded, meta).
    """
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    weights = [weight for weight in module.parameters() if weight.numel()]
    total = sum(weight.numel() for weight in weights)
    if not total:
        return None
    try:
        found = _values(weights, total)
        values = torch.stack([value.to("cpu", torch.float64) for value in found])
    except (
        RuntimeError,
        TypeError,
        NotImplementedError,
    ):  # meta tensors, and kinds that have no single values
        return None
    if not bool(torch.isfinite(values).all()):
        return None
    coarse = max(
        (kind for kind in KINDS if torch.equal(values.to(kind).double(), values)), key=_unit
    )
    name = str(coarse).removeprefix("torch.")
    return Fingerprint(
        network=type(module).__name__, parameters=total, dtype=name, values=values.tolist()
    )


def _values(weights: list[nn.Parameter], total: int) -> list[Tensor]:
    """The values in the middle of each of 64 equal parts of all parameters."""
    ends = list(itertools.accumulate(weight.numel() for weight in weights))
    found = []
    for place in ((2 * i + 1) * total // (2 * SAMPLES) for i in range(SAMPLES)):
        k = bisect.bisect_right(ends, place)
        at = _index(place - ends[k] + weights[k].numel(), weights[k].shape)
        found.append(weights[k].detach()[at])
    return found


def _index(place: int, shape: torch.Size) -> tuple[int, ...]:
    """The index of the element at `place`, counted row by row however the tensor lies in memory."""
    found = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        found.append(at)
    return tuple(reversed(found))


def _unit(dtype: torch.dtype) -> float:
    """The relative distance of two neighbouring numbers."""
    return float(torch.finfo(dtype).eps)
