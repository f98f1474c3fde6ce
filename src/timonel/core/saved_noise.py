"""The noise source of a saved run: what the file says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..errors import ArgumentError, among
from . import drawn, tree
from . import noise as noises
from .noise import Noise, Seeded
from .table import Table

OWN = "own"  # a noise source that only the caller can build again
DTYPES = {
    str(dtype).split(".")[1]: dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
Count = Annotated[int, Field(ge=0, le=2**31)]


class Strict(BaseModel):
    """Data of a file, read as it is: no other key, no other type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SavedNoise(Strict):
    """The arguments of `noise.source`."""

    kind: str
    seeds: list[Annotated[int, Field(ge=0, le=noises.MOST)]]
    device: str


class SavedStretch(Strict):
    """A `drawn.Stretch`, whose states are tensors of the file."""

    devices: list[str]
    order: list[Count]
    shape: list[Count]
    dtype: str
    rows: list[Count]

    @classmethod
    def of(cls, stretch: drawn.Stretch) -> SavedStretch:
        """A stretch without its states."""
        return cls(
            devices=[*stretch.devices], order=[*stretch.order], shape=[*stretch.shape],
            dtype=str(stretch.dtype).split(".")[1], rows=stretch.rows,
        )  # fmt: skip

    def stretch(self, states: tuple[Tensor, ...]) -> drawn.Stretch:
        """The stretch with its states.

        Raises:
            UnknownName: a dtype that is none of `DTYPES`.
        """
        dtype = DTYPES[among("dtype of noise", self.dtype, DTYPES)]
        return drawn.Stretch(
            states, tuple(self.devices), tuple(self.order), tuple(self.shape), dtype, self.rows
        )


class SavedDraws(Strict):
    """A `drawn.DrawnNoise`, whose states are tensors of the file."""

    kind: Literal["drawn"]
    stretches: list[SavedStretch]

    def names(self) -> list[list[str]]:
        """The tensors that are states of generators: of each stretch, and after the newest draw."""
        counts = {str(i): len(s.devices) for i, s in enumerate(self.stretches)}
        counts["end"] = len(self.stretches[-1].devices) if self.stretches else 0
        return [[f"noise.{at}.{i}" for i in range(n)] for at, n in counts.items()]


Entropy = Annotated[int, Field(ge=0, le=tree.MOST)]


class SavedTree(Strict):
    """The arguments of `tree.TreeNoise`."""

    kind: Literal["torchsde"]
    entropy: Entropy | list[Entropy]
    low: float
    high: float


Saved = SavedNoise | SavedDraws | SavedTree | Literal["own"] | None


def described(noise: Noise | None, tensors: dict[str, Tensor]) -> dict[str, Any] | str | None:
    """A noise source as a file holds it.

    Args:
        noise: of the run.
        tensors: of the file; the states of generators are added.

    Returns:
        Plain data; `OWN` for a source of the caller's, None for none.
    """
    if isinstance(noise, Seeded):
        return {"kind": noise.kind, "seeds": list(noise.seeds), "device": noise.device}
    if isinstance(noise, tree.TreeNoise):
        return noise.to_dict()
    if not isinstance(noise, drawn.DrawnNoise):
        return None if noise is None else OWN
    stretches, ends = noise.remembered()
    saved = SavedDraws(kind="drawn", stretches=[SavedStretch.of(s) for s in stretches])
    for names, states in zip(saved.names(), [*(s.states for s in stretches), ends], strict=True):
        tensors.update(zip(names, (state.clone() for state in states), strict=True))
    return saved.model_dump()


def source(saved: Saved, table: Table, tensors: Mapping[str, Tensor]) -> Noise | None:
    """The noise source that a file describes; None where it describes none.

    Args:
        saved: what the file says.
        table: of the run.
        tensors: of the file.

    Raises:
        ArgumentError: it cannot be.
    """
    if isinstance(saved, SavedNoise):
        return noises.source(**saved.model_dump(), table=table)
    if isinstance(saved, SavedTree):
        return tree.TreeNoise(saved.entropy, saved.low, saved.high, table)
    if not isinstance(saved, SavedDraws):
        return None
    missing = [name for name in (*state_names(saved), "x") if name not in tensors]
    if missing:
        raise ArgumentError(f"it lacks {missing[0]!r}")
    *states, ends = [tuple(tensors[name].cpu() for name in names) for names in saved.names()]
    stretches = [s.stretch(state) for s, state in zip(saved.stretches, states, strict=True)]
    return drawn.DrawnNoise.of(stretches, ends, table.nfe, tuple(tensors["x"].shape))


def state_names(saved: Saved) -> Iterator[str]:
    """The names of the tensors that belong to the noise source."""
    if isinstance(saved, SavedDraws):
        for names in saved.names():
            yield from names
