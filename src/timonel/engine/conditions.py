"""The conditions of many samples as one batch of a network's arguments: added, evicted, selected.

A network's arguments are trees of tensors. Those tensors that have the batch hold some entries for
every sample (and for each of its parts: conditional, unconditional, …); the others are the same for
all.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from .tensor_trees import equal, map_leaves

Axis = Callable[[Tensor, int, str], int | None]
"""Says along which dimension a tensor has a batch of that size, by the name of the argument."""


@dataclass(frozen=True)
class BatchedRows:
    """A tensor that has `each` entries along `dim` for every row of a batch."""

    tensor: Tensor
    dim: int
    each: int

    def take(self, rows: Tensor) -> Tensor:
        """The entries of some rows (n,)."""
        index = (rows[:, None] * self.each + torch.arange(self.each, device=rows.device)).flatten()
        return self.tensor.index_select(self.dim, index.to(self.tensor.device))

    def fits(self, other: object) -> bool:
        """Whether rows of `other` can follow these."""
        if not isinstance(other, BatchedRows) or (self.dim, self.each) != (other.dim, other.each):
            return False
        a, b = list(self.tensor.shape), list(other.tensor.shape)
        return a[: self.dim] + a[self.dim + 1 :] == b[: self.dim] + b[self.dim + 1 :]


class Conditions:
    """The arguments of a network for the samples of many runs, a slot for each sample.

    Slots stay what they are while others are added and evicted, from any thread; a call that is
    under way goes on with what it selected.

    Args:
        arguments: The network's arguments by name for `count` samples of `parts` parts each, the
            first part of every sample before the second ones.
        count: Samples.
        parts: Network evaluations of one guided sample.
        axis: Where the arguments have their batch.
    """

    def __init__(self, arguments: Mapping[str, Any], count: int, parts: int, axis: Axis) -> None:
        size = count * parts
        order = torch.arange(size).view(parts, count).T.flatten()

        def rows(name: str, value: Any) -> Any:
            dim = axis(value, size, name) if isinstance(value, Tensor) else None
            if dim is None:
                return value
            each = value.shape[dim] // size
            return BatchedRows(BatchedRows(value, dim, each).take(order), dim, each)

        self.parts = parts
        self._next = itertools.count(count)
        self._lock = threading.Lock()
        self._now: tuple[dict[int, int], Any] = (
            {slot: slot for slot in range(count)}, map_leaves(rows, dict(arguments))
        )  # fmt: skip

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots that are taken."""
        return tuple(self._now[0])

    def __len__(self) -> int:
        return len(self._now[0])

    def twin(self) -> Conditions:
        """The same conditions in the same slots; what is added to one leaves the other alone."""
        twin = copy(self)
        twin._lock = threading.Lock()
        twin._next = itertools.count(max(self.slots, default=-1) + 1)
        return twin

    def add(self, other: Conditions) -> tuple[int, ...]:
        """Take in all conditions of another batch.

        Returns:
            Their slots here, in the order of the other's.

        Raises:
            ArgumentError: Where the arguments are no batch together, as prompts of other lengths.
        """
        places, added = other._now
        order = self._row_numbers(list(places.values()), None)

        def joined(name: str, mine: Any, new: Any) -> Any:
            if isinstance(mine, BatchedRows) and mine.fits(new):
                return BatchedRows(
                    torch.cat([mine.tensor, new.take(order)], mine.dim), mine.dim, mine.each
                )
            if not isinstance(mine, BatchedRows) and equal(mine, new):
                return mine
            raise ArgumentError(
                f"these conditions cannot join the batch, for their {name!r} is another:"
                f" {_shape(new)}, and {_shape(mine)} here; run them in a batch of their own"
            )

        if self.parts != other.parts:
            raise ArgumentError(
                f"these conditions have {other.parts} parts a sample, and the batch {self.parts}:"
                " capture both with guidance, or both without"
            )
        with self._lock:
            mine, values = self._now
            values = map_leaves(joined, values, added)
            slots = tuple(next(self._next) for _ in places)
            self._now = mine | {slot: len(mine) + i for i, slot in enumerate(slots)}, values
        return slots

    def evict(self, *slots: int) -> None:
        """Let go of some conditions. Raises `ArgumentError` for a slot that is not taken."""
        with self._lock:
            places, values = self._now
            self._places(places, slots)
            left = [slot for slot in places if slot not in slots]
            rows = self._row_numbers([places[slot] for slot in left], None)
            values = map_leaves(lambda _, value: _taken(value, rows, True), values)
            self._now = {slot: i for i, slot in enumerate(left)}, values

    def select(self, slots: Sequence[int], parts: Sequence[int]) -> dict[str, Any]:
        """The arguments of a network call.

        Args:
            slots: Whose conditions, (n,).
            parts: Which part of them, (n,).

        Raises:
            ArgumentError: For a slot that is not taken.
        """
        places, values = self._now
        rows = self._row_numbers(self._places(places, slots), parts)
        selected: dict[str, Any] = map_leaves(lambda _, value: _taken(value, rows, False), values)
        return selected

    def _places(self, places: Mapping[int, int], slots: Sequence[int]) -> list[int]:
        gone = [slot for slot in slots if slot not in places]
        if gone:
            known = ", ".join(map(str, places))
            raise ArgumentError(f"there are no conditions in slot {gone[0]}; the slots are {known}")
        return [places[slot] for slot in slots]

    def _row_numbers(self, places: Sequence[int], parts: Sequence[int] | None) -> Tensor:
        """The rows of samples: one part of each, or all parts of all where `parts` is None."""
        first = torch.tensor(places, dtype=torch.int64) * self.parts
        if parts is not None:
            return first + torch.tensor(parts)
        return (first[:, None] + torch.arange(self.parts)).flatten()


def join(values: Sequence[Any], size: int, name: str, axis: Axis) -> Any:
    """The same argument of several calls of `size` rows as that of one call.

    Raises:
        ValueError: Where they do not fit together.
    """

    def joined(name: str, *parts: Any) -> Any:
        first = parts[0]
        if all(isinstance(part, Tensor) for part in parts) and len({p.shape for p in parts}) == 1:
            dim = axis(first, size, name)
            if dim is not None:
                return torch.cat(parts, dim)
        if all(equal(first, part) for part in parts[1:]):
            return first
        raise ValueError(f"unlike {name!r}")

    return map_leaves(joined, *values, name=name)


def _taken(value: Any, rows: Tensor, again: bool) -> Any:
    """Some rows of a leaf; as `BatchedRows` where it is to be selected from again."""
    if not isinstance(value, BatchedRows):
        return value
    taken = value.take(rows)
    return BatchedRows(taken, value.dim, value.each) if again else taken


def _shape(value: Any) -> str:
    tensor = value.tensor if isinstance(value, BatchedRows) else value
    return f"a tensor {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
