"""Noise from `torch.Generator`s, drawn as diffusers draws it, that a run can have again.

A scheduler of `timonel.compat` draws the noise of a row when its `step` is called, from the
generator of that call: the same numbers as diffusers' class, and the same state afterwards. A run
may come back to a row (rewind, branch, a saved file), and then its noise has to be the same and the
generator is not to be touched. So the source remembers the state that a generator had where a
stretch of draws began, and which rows it drew; a row that comes back is drawn again from a second
generator at that state. Where nobody else draws from the generator between two steps there is one
stretch, 5 kB on a CPU and 16 bytes on CUDA, however many steps there are.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, RunError, shown, whole

Generators = torch.Generator | Sequence[torch.Generator | None] | None


@dataclass
class Stretch:
    """Draws that follow each other.

    Args:
        states: of the generators before the first draw, uint8.
        devices: of the generators.
        order: for every sample, which of them draws it; one entry where one draws the whole batch.
        shape: of a draw, (batch, …).
        dtype: of a draw.
        rows: in the order of the draws; of a row that was drawn several times the last counts.
    """

    states: tuple[Tensor, ...]
    devices: tuple[str, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: list[int] = field(default_factory=list)

    def alike(self, other: Stretch) -> bool:
        """Whether both draw the same kind of tensor from as many generators."""
        kinds = [(one.devices, one.order, one.shape, one.dtype) for one in (self, other)]
        return kinds[0] == kinds[1]


class DrawnNoise:
    """The noise of a run from generators: `draw` draws a row's, a call returns it again and again.

    It may be shared, as a run and its branches do. A copy in another process and a run that was
    loaded go on from the states that the generators had, for they have no generators of the caller.

    Args:
        generators: one for the batch, one per sample (also of a CPU), or None, torch's own of the
            sample's device. They may be exchanged between rows, as every `step` of diffusers takes
            its own.
    """

    kind = "drawn"

    def __init__(self, generators: Generators = None) -> None:
        self.generators = generators  # what the coming rows are drawn from
        self.stretches: list[Stretch] = []
        self.ends: tuple[Tensor, ...] = ()  # states of the generators after the newest draw
        self._held: tuple[int, Tensor] | None = None
        # stretch, its next draw, generators there
        self._again: tuple[int, int, list[torch.Generator]] | None = None
        self._lock = threading.RLock()

    def __contains__(self, row: int) -> bool:
        return any(row in stretch.rows for stretch in self.stretches)

    def draw(
        self,
        row: int,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        times: int = 1,
    ) -> None:
        """Draw the noise of a row as diffusers' `randn_tensor` does, unless it was drawn before.

        Args:
            row: of the run's table, 0 … nfe - 1.
            shape: of the sample, (batch, …).
            dtype: of the noise.
            device: of the sample.
            times: how often it is drawn, of which the last counts.

        Raises:
            ArgumentError: generators of another accelerator, or fewer than samples.
        """
        with self._lock:
            row = whole("row", row, 0)
            if row in self:
                return
            sources, order = _sources(self.generators, int(shape[0]), device)
            states = tuple(source.get_state() for source in sources)
            new = Stretch(
                states, tuple(str(source.device) for source in sources), order, tuple(shape), dtype
            )
            last = self.stretches[-1] if self.stretches else None
            if last is None or not last.alike(new) or not all(map(torch.equal, self.ends, states)):
                self.stretches.append(new)
                last = new
            for _ in range(times):
                numbers = _normal(sources, last)
                last.rows.append(row)
            self.ends = tuple(source.get_state() for source in sources)
            self._held = (row, numbers)

    def __call__(self, row: int, like: Tensor) -> Tensor:
        """The noise of a row; a new row's is drawn as the newest was.

        Args:
            row: of the run's table.
            like: a tensor on the device where the noise goes.

        Raises:
            RunError: nothing was drawn before.
        """
        with self._lock:
            if self._held is None or self._held[0] != row:
                if row not in self:
                    self._go_on(row, like)
                else:
                    self._held = (row, self._redrawn(row))
            assert self._held is not None
            return self._held[1].to(like.device)

    def _go_on(self, row: int, like: Tensor) -> None:
        if not self.stretches:
            raise RunError(
                "the noise of this run comes from the generator of the scheduler's step: call step"
                " first"
            )
        last = self.stretches[-1]
        times = last.rows.count(last.rows[-1])
        self.draw(row, last.shape, last.dtype, like.device, times)

    def _redrawn(self, row: int) -> Tensor:
        """The numbers of a row that was drawn before."""
        at = next(i for i, stretch in enumerate(self.stretches) if row in stretch.rows)
        stretch = self.stretches[at]
        place = len(stretch.rows) - 1 - stretch.rows[::-1].index(row)
        if self._again is None or self._again[0] != at or self._again[1] > place:
            self._again = (at, 0, _at(stretch.states, stretch.devices))
        _, done, sources = self._again
        for _ in range(done, place + 1):
            numbers = _normal(sources, stretch)
        self._again = (at, place + 1, sources)
        return numbers

    # -- saving ------------------------------------------------------------------------------------
    def remembered(self) -> tuple[list[Stretch], tuple[Tensor, ...]]:
        """The stretches, and the generators' states after the newest draw."""
        with self._lock:
            return [replace(s, rows=[*s.rows]) for s in self.stretches], self.ends

    @classmethod
    def of(
        cls, stretches: Sequence[Stretch], ends: Sequence[Tensor], nfe: int, shape: tuple[int, ...]
    ) -> DrawnNoise:
        """The inverse of `remembered`.

        Args:
            stretches: of draws.
            ends: states of the generators after the newest draw.
            nfe: rows of the run.
            shape: of the sample, (batch, …).

        Raises:
            ArgumentError: the states are none, or belong to devices that are not here.
        """
        rows = [row for stretch in stretches for row, _ in itertools.groupby(stretch.rows)]
        empty = any(not stretch.rows for stretch in stretches)
        if empty or len(set(rows)) < len(rows) or any(row >= nfe for row in rows):
            raise ArgumentError(
                f"the rows of its noise are not rows of a table of {nfe}: {shown(rows)}"
            )
        for stretch in stretches:
            if stretch.shape != shape or len(stretch.order) not in (1, *shape[:1]):
                raise ArgumentError(
                    f"noise {stretch.shape} of {len(stretch.order)} generators for samples {shape}"
                )
            if set(stretch.order) != set(range(len(stretch.devices))):
                raise ArgumentError(
                    f"its noise has {len(stretch.devices)} generators and uses {stretch.order}"
                )
            _at(stretch.states, stretch.devices)
        source = cls()
        source._go_on_from(list(stretches), tuple(ends))
        return source

    def _go_on_from(self, stretches: list[Stretch], ends: tuple[Tensor, ...]) -> None:
        """Take what was remembered, and new generators where those of the caller had come to."""
        self.stretches, self.ends = stretches, ends
        if stretches:
            sources = _at(ends, stretches[-1].devices)
            self.generators = [sources[i] for i in stretches[-1].order]

    # -- copies ------------------------------------------------------------------------------------
    def fork(self) -> DrawnNoise:
        """An independent source that begins with the rows of this one."""
        with self._lock:
            twin = DrawnNoise(self.generators)
            twin.stretches, twin.ends = self.remembered()
            twin._held = self._held
            return twin

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return dict(zip(("stretches", "ends"), self.remembered(), strict=True))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self._go_on_from(**state)


def _sources(
    generators: Generators, batch: int, device: torch.device
) -> tuple[list[torch.Generator], tuple[int, ...]]:
    """The generators without repetition, and which of them each sample has."""
    several = (
        [generators]
        if generators is None or isinstance(generators, torch.Generator)
        else [*generators]
    )
    each = [_default(device) if one is None else one for one in several]
    if 1 < len(each) < batch:
        raise ArgumentError(
            f"{len(each)} generators for a batch of {batch}: give one for all, or one per sample,"
            f" e.g. [torch.Generator().manual_seed(i) for i in range({batch})]"
        )
    each = each[:batch]
    wrong = next((one for one in each if one.device.type not in ("cpu", device.type)), None)
    if wrong is not None:
        raise ArgumentError(
            f"a generator of {wrong.device} cannot draw for a sample on {device}: make it with"
            f" torch.Generator({device.type!r}), or torch.Generator() for the same numbers on any"
            " device"
        )
    sources = list(dict.fromkeys(each))
    return sources, tuple(sources.index(one) for one in each)


def _default(device: torch.device) -> torch.Generator:
    """The generator of a device that `torch.manual_seed` seeds."""
    if device.type == "cpu":
        return torch.default_generator
    module: Any = torch.get_device_module(device)
    if device.type == "mps":
        generator: torch.Generator = module._get_default_mps_generator()
        return generator
    generator = module.default_generators[
        module.current_device() if device.index is None else device.index
    ]
    return generator


def _at(states: Sequence[Tensor], devices: Sequence[str]) -> list[torch.Generator]:
    """New generators at these states."""
    generators = []
    for device, state in zip(devices, states, strict=True):
        try:
            generators.append(torch.Generator(device))
            generators[-1].set_state(state)
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ArgumentError(
                f"the noise was drawn by a generator of {shown(device)}, whose state cannot be had"
                f" again here: {str(error).splitlines()[0]}"
            ) from error
    return generators


def _normal(sources: Sequence[torch.Generator], like: Stretch) -> Tensor:
    """The next numbers of the generators: of one for the whole batch, else of each sample's."""

    def normal(shape: Sequence[int], source: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=source, device=source.device, dtype=like.dtype)

    if len(like.order) == 1:
        return normal(like.shape, sources[0])
    parts = [normal((1, *like.shape[1:]), sources[i]) for i in like.order]
    return torch.cat([part.to(parts[0].device) for part in parts])
