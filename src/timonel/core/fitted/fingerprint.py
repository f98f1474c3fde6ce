"""Which network a sampler was fitted to, recognised by a few of its weights."""

from __future__ import annotations

import bisect
import itertools

import torch
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn

from ..process import double

SAMPLES = 64  # weights in a fingerprint
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2,
)  # fmt: skip
ALIKE = 0.75  # least share of equal values; rounding in two steps changes some by a unit
FP16_TINY = 2.0**-24  # the distance of the smallest numbers of float16


class Fingerprint(BaseModel):
    """A network's class, its number of parameters, and some of their values; see `fingerprint`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str
    parameters: int
    dtype: str  # the coarsest that holds all values exactly
    values: list[float]

    @field_validator("dtype")
    @classmethod
    def _known(cls, name: str) -> str:
        dtype = getattr(torch, name, None)
        if dtype not in DTYPES:
            raise ValueError(f"{name!r} is none of {', '.join(map(str, DTYPES))}")
        return name

    def fits(self, other: Fingerprint) -> bool:
        """Whether both are the same weights, if need be rounded; those of a fine-tune are not."""
        if (self.network, self.parameters) != (other.network, other.parameters):
            return False
        if len(self.values) != len(other.values):
            return False
        coarse = max((getattr(torch, one.dtype) for one in (self, other)), key=_unit)
        a, b = (double(one.values).to(coarse).double() for one in (self, other))
        near = torch.allclose(a, b, rtol=_unit(coarse), atol=FP16_TINY)
        return near and float((a == b).double().mean()) >= ALIKE

    def __str__(self) -> str:
        return f"{self.network} of {self.parameters:,} parameters"


def fingerprint(module: nn.Module) -> Fingerprint | None:
    """The fingerprint of a network: 64 weights, evenly spread over all of them.

    None where they cannot be read: no weights, or offloaded and meta tensors.
    """
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    weights = [weight for weight in module.parameters() if weight.numel()]
    total = sum(weight.numel() for weight in weights)
    if not total:
        return None
    try:
        values = torch.stack([v.to("cpu", torch.float64) for v in _values(weights, total)])
    except (RuntimeError, TypeError, NotImplementedError):  # meta tensors, packed weights
        return None
    if not bool(torch.isfinite(values).all()):
        return None
    exact = (dtype for dtype in DTYPES if torch.equal(values.to(dtype).double(), values))
    name = str(max(exact, key=_unit)).removeprefix("torch.")
    return Fingerprint(
        network=type(module).__name__, parameters=total, dtype=name, values=values.tolist()
    )


def _values(weights: list[nn.Parameter], total: int) -> list[Tensor]:
    """The values in the middle of each of 64 equal parts of all parameters."""
    ends = list(itertools.accumulate(weight.numel() for weight in weights))
    values = []
    for place in ((2 * i + 1) * total // (2 * SAMPLES) for i in range(SAMPLES)):
        k = bisect.bisect_right(ends, place)
        at = _index(place - ends[k] + weights[k].numel(), weights[k].shape)
        values.append(weights[k].detach()[at])
    return values


def _index(place: int, shape: torch.Size) -> tuple[int, ...]:
    """The index of the element at `place`, counted row by row however the tensor lies in memory."""
    index = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        index.append(at)
    return tuple(reversed(index))


def _unit(dtype: torch.dtype) -> float:
    """The relative distance of two neighbouring numbers."""
    return float(torch.finfo(dtype).eps)
