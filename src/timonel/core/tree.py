"""Noise from torchsde's Brownian path, as diffusers' and k-diffusion's SDE samplers draw it.

The path W is over sigma and a function of one whole number, in whatever order it is read; so a run
that comes back to a row has the same noise, and only that number is saved.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import threading
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, finite, whole
from .table import Table

Span = tuple[float, float]
DIGITS = 6  # of sigma, that torchsde's path tells apart at diffusers' tolerance
MOST = (1 << 63) - 1  # the largest number that a path is drawn from


def installed() -> bool:
    """Whether torchsde is here."""
    return importlib.util.find_spec("torchsde") is not None


class TreeNoise:
    """Noise of a table of DPM-Solver++ SDE, of two calls a step, in coordinates `x0 + sigma·noise`.

    diffusers adds `(W(mid) - W(from)) / sqrt(from - mid)` before the inner call, and to the step as
    a whole `(W(to) - W(from)) / sqrt(from - to)`. The table adds the first noise to the step too,
    and another one after the inner call; so that is what remains of the second.

    Args:
        entropy: what the path is drawn from, 0 … 2^63 - 1; a list has one for each sample.
        low: sigma where the path ends, above 0.
        high: sigma where it begins.
        table: of the run.

    Raises:
        ArgumentError: torchsde is not installed, or a number that is none.
    """

    kind = "torchsde"

    def __init__(self, entropy: int | Sequence[int], low: float, high: float, table: Table) -> None:
        if not installed():
            raise ArgumentError(
                "this noise is a path of torchsde, which is not installed: pip install torchsde"
            )
        several = isinstance(entropy, Sequence)
        self.entropy: int | list[int] = (
            [whole("entropy", one, 0, MOST) for one in entropy]  # type: ignore[union-attr]
            if several
            else whole("entropy", entropy, 0, MOST)
        )
        self.high = finite("high", high, 0)
        self.low = finite("low", low, 0, self.high)
        self._spans = _spans(table)
        self._tree: tuple[Any, list[Any]] | None = None
        self._lock = threading.RLock()

    def over(self, table: Table) -> TreeNoise:
        """The same path for another table."""
        return TreeNoise(self.entropy, self.low, self.high, table)

    def to_dict(self) -> dict[str, Any]:
        """The arguments, but for the table."""
        return {"kind": self.kind, "entropy": self.entropy, "low": self.low, "high": self.high}

    def __call__(self, row: int, like: Tensor) -> Tensor:
        """The noise of a row.

        Args:
            row: of the table.
            like: a tensor of the noise's shape, dtype and device.

        Raises:
            ArgumentError: the row draws none.
        """
        if row not in self._spans:
            raise ArgumentError(
                f"row {row} of this table draws no noise; rows that do: {sorted(self._spans)}"
            )
        parts = (weight * self._unit(span, like) for weight, span in self._spans[row])
        return reduce(torch.add, parts)

    def _unit(self, span: Span, like: Tensor) -> Tensor:
        kind = (like.shape, like.dtype, like.device)
        begin, end = (min(max(sigma, self.low), self.high) for sigma in span)
        with self._lock:
            if self._tree is None or self._tree[0] != kind:
                self._tree = kind, self._paths(like)
            paths = self._tree[1]
            parts = [path(round(end, DIGITS), round(begin, DIGITS)) for path in paths]
        increment: Tensor = torch.stack(parts) if isinstance(self.entropy, list) else parts[0]
        return -increment / math.sqrt(begin - end)

    def _paths(self, like: Tensor) -> list[Any]:
        """One path for the batch, or one for each sample."""
        one = not isinstance(self.entropy, list)
        drawn = [self.entropy] if isinstance(self.entropy, int) else self.entropy
        if not one and len(drawn) != len(like):
            raise ArgumentError(f"{len(drawn)} generators for a batch of {len(like)}: give as many")
        interval = importlib.import_module("torchsde").BrownianInterval
        return [
            interval(
                t0=round(self.low, DIGITS), t1=round(self.high, DIGITS), tol=10.0**-DIGITS,
                size=like.shape if one else like.shape[1:], dtype=like.dtype, device=like.device,
                entropy=entropy, pool_size=24, halfway_tree=True,
            )
            for entropy in drawn
        ]  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tree": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())


def _spans(table: Table) -> Mapping[int, list[tuple[float, Span]]]:
    """Stretches of path that a drawing row's noise is a sum of, with their weights."""
    sigma = (table.sigma / table.alpha).tolist()
    spans: dict[int, list[tuple[float, Span]]] = {}
    for step in range(table.steps):
        first = table.first_row(step)
        rest = float(table.x[first + 1, -1]) if first + 1 < table.nfe else 0.0
        if not table.x[first, -1]:
            continue
        stage, share = (sigma[first], sigma[first + 1]), float(table.base[first, -1])
        spans[first] = [(1.0, stage)]
        if rest:
            whole = (sigma[first], sigma[first + 2])
            spans[first + 1] = [(math.hypot(share, rest) / rest, whole), (-share / rest, stage)]
    return spans
