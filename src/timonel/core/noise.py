"""Where fresh noise comes from: a sample's seed and its place in the run, and nothing else.

A noise source is a callable `(row, like) -> unit normal tensor`, of the shape, dtype and device of
`like`. The two here draw per sample in float32 on the CPU, so a sample gets the same noise alone,
in any batch, on any device, at any precision, and after a resume or a rewind.
`Sampler(…, noise="brownian")` chooses one by name. The sources of `timonel.compat` draw as
diffusers does, see `drawn.py` and `tree.py`.

| name          | keyed by              | use it when                                              |
|---------------|-----------------------|----------------------------------------------------------|
| `independent` | seed, row             | the number of steps stays; one draw a row, the default   |
| `brownian`    | seed, interval of lam | 10 and 40 steps of a seed should give the same picture,  |
|               |                       | or samplers are compared on one noise; 18 draws a row    |

Both have the same law: every row's noise is unit normal and independent of every other row's. With
independent noise a stochastic sampler makes another picture for every number of steps, however many
there are; with Brownian noise the picture settles as the steps grow, because all of them follow one
path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import ArgumentError, among, instance, several, shown, whole

if TYPE_CHECKING:
    from typing_extensions import Self

    from .table import Table

Noise = Callable[[int, Tensor], Tensor]
Span = tuple[int, int, int]  # path, and the lattice points where a row's interval begins and ends
START = -1  # the row whose noise is the initial sample
PART = -2  # in place of a row: the seeds of the parts of a sample
DEVICES = ("cpu", "sample")
FINE = 1 << 16  # lattice points per unit of lam = log(alpha / sigma)
NOISIEST, CLEANEST = -10, 20  # lam where the path begins and ends; further levels count as these
MOST = (1 << 64) - 1  # the largest seed
_MASK = MOST


def key(seed: int, row: int) -> int:
    """A 63-bit generator seed from (seed, row): two rounds of splitmix64 part neighbours."""
    state = (seed & _MASK) ^ 0x9E3779B97F4A7C15
    for word in (row + 1, seed >> 64):
        state = (state + 0x9E3779B97F4A7C15 * (2 * (word & _MASK) + 1)) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def checked(seeds: Any) -> tuple[int, ...]:
    """Seeds as Python's numbers.

    Args:
        seeds: whole numbers from 0 to 2^64 - 1, one per sample.

    Raises:
        ArgumentError: they are none.
    """
    listed = several("seeds", seeds, "seeds=[0], one per sample")
    try:
        numbers = tuple(whole("seed", seed, 0, MOST) for seed in listed)
    except ArgumentError:
        numbers = ()
    if not numbers:
        raise ArgumentError(
            "seeds must be whole numbers from 0 to 2^64 - 1, one per sample, e.g. seeds=[0], got"
            f" {shown(seeds)}"
        )
    return numbers


@dataclass(frozen=True)
class Seeded(ABC):
    """A noise source with one seed per sample.

    Args:
        seeds: whole numbers from 0 to 2^64 - 1.
        device: where the numbers are drawn: "cpu", the same whatever device the model runs on, or
            "sample", the device of the sample: faster there, but a GPU's generator gives other
            numbers than the CPU's, and other models of GPU may too.
        first: of a part of a journey, its first row in the whole: two parts never draw the same.

    Raises:
        ArgumentError: the seeds are none.
    """

    kind: ClassVar[str]
    seeds: tuple[int, ...]
    device: str = field(default="cpu", kw_only=True)
    first: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", checked(self.seeds))
        if not isinstance(self.device, str) or self.device not in DEVICES:
            raise ArgumentError(
                "noise is drawn on device 'cpu' or 'sample' (the sample's own), got"
                f" {self.device!r}"
            )

    @abstractmethod
    def __call__(self, row: int, like: Tensor) -> Tensor:
        """The noise of a row.

        Args:
            row: of the run's table; `START` is the initial sample's.
            like: (batch, …), a tensor of the noise's shape, dtype and device.

        Raises:
            ArgumentError: there is not one seed per sample.
        """

    def check(self, batch: int) -> None:
        """Refuse a batch that has not one seed per sample.

        Args:
            batch: its size.

        Raises:
            ArgumentError: the numbers differ.
        """
        if batch != len(self.seeds):
            raise ArgumentError(
                f"{len(self.seeds)} seeds for a batch of {batch}: give one seed per sample, e.g."
                f" seeds=range({batch})"
            )

    def spread(self, sample: Tensor) -> Self:
        """The source for a batch in which a sample is several entries; this one where each is one.

        Copies of the whole batch, which a pipeline keeps alike for guidance, share their noise.
        Else a sample's entries follow each other, as frames do, and each has a seed that is drawn
        from the sample's.

        Args:
            sample: (batch, …).
        """
        count, parts = len(self.seeds), len(sample) // len(self.seeds)
        if len(sample) % count or parts < 2:
            return self
        if bool((sample.reshape(parts, count, *sample.shape[1:]) == sample[:count]).all()):
            return replace(self, seeds=self.seeds * parts)
        return replace(
            self, seeds=tuple(key(key(seed, PART), i) for seed in self.seeds for i in range(parts))
        )

    def _place(self, like: Tensor) -> torch.device:
        """Where the numbers are drawn."""
        return like.device if self.device == "sample" else torch.device("cpu")

    def _each(self, like: Tensor, make: Callable[[Callable[[int], Tensor], int], Tensor]) -> Tensor:
        """`make(draw, i)` for every sample i, as one batch in float32.

        `draw(word)` is the sample's unit noise for a word. Samples are never computed together: how
        a vector loop is cut could show in the last bit.
        """
        if not isinstance(like, Tensor) or not like.ndim:
            raise ArgumentError(f"like must be a tensor (batch, …), got {shown(like)}")
        self.check(len(like))
        place = self._place(like)
        noise = torch.empty(like.shape, dtype=torch.float32, device=place)
        generator = torch.Generator(place)

        def draws(seed: int) -> Callable[[int], Tensor]:
            def draw(word: int) -> Tensor:
                return torch.empty(like.shape[1:], dtype=torch.float32, device=place).normal_(
                    generator=generator.manual_seed(key(seed, word))
                )

            return draw

        for i, seed in enumerate(self.seeds):
            noise[i] = make(draws(seed), i)
        return noise

    def _fresh(self, row: int, like: Tensor) -> Tensor:
        """Noise keyed by the row alone."""
        row = whole("row", row, START)
        place = row if row == START else row + self.first
        return self._each(like, lambda draw, i: draw(place)).to(like)


@dataclass(frozen=True)
class SeededNoise(Seeded):
    """Independent noise, keyed by a sample's seed and the row.

    Args:
        seeds: see `Seeded`.
        device: see `Seeded`.
        first: see `Seeded`.
    """

    kind = "independent"

    def __call__(self, row: int, like: Tensor) -> Tensor:
        return self._fresh(row, like)


@dataclass(frozen=True)
class BrownianNoise(Seeded):
    """Increments of one Brownian path per seed, so that any number of steps follows the same noise.

    The noise that the reverse SDE adds between two levels is `sigma'·sqrt(1 - e^(-2h))·eps` with

        eps = (W(tau') - W(tau)) / sqrt(tau' - tau),    tau = (alpha / sigma)² = e^(2·lam),

    a Brownian increment exactly (eta = 1; other eta follow the same path to first order). A row's
    interval begins where the last row that drew in its step left off, or else where the step
    begins, and ends at the next row's level. Where the level rises (churn, restart) there is no
    such interval and the noise is independent, keyed by the row; and below the rise a new path
    begins, for no stretch of a path may be used twice.

    The path is a function of (seed, lam) only: knots at whole lam, and between them halvings by the
    Brownian bridge in tau, to 2^-16 in lam. Every interval ends on that lattice and is scaled by
    its own length there, so its variance is 1; one that is shorter than the lattice gets
    independent noise. Levels noisier than sigma/alpha = e^10 count as pure noise, those cleaner
    than e^-20 as clean. Kept in memory: the values of the last point, one tensor.

    Args:
        seeds: see `Seeded`.
        table: of the run.
        device: see `Seeded`.
        first: see `Seeded`.

    Raises:
        ArgumentError: the table draws no noise.

    Source: a path that is computed where it is read: Jia & Benson 2019, arXiv 1905.10403; Li et al.
    2020, arXiv 2001.01328, algorithm 3.
    """

    kind = "brownian"
    table: Table = field(repr=False)
    _spans: dict[int, Span | None] = field(init=False, repr=False, compare=False)
    _last: tuple[object, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from .table import Table

        super().__post_init__()
        instance("table", self.table, Table, "a timonel table, Sampler(…).compile(process)")
        object.__setattr__(self, "_spans", spans(self.table))
        if not self._spans:
            raise ArgumentError(
                f"Brownian noise has nothing to do: {self.table.solver!r} draws no noise in this"
                " table"
            )

    def __call__(self, row: int, like: Tensor) -> Tensor:
        row = whole("row", row, START)
        if row != START and row not in self._spans:
            raise ArgumentError(
                f"row {row} of this table draws no noise; rows that do: {sorted(self._spans)}"
            )
        span = None if row == START else self._spans[row]
        if span is None:
            return self._fresh(row, like)
        path, begin, end = span
        before, after = (self._points(path, at, like) for at in (begin, end))
        first, last = begin // FINE, end // FINE
        old = math.exp(first - last)  # of the beginning's cell, in units of the end's
        length = _clock(end % FINE) - old**2 * _clock(begin % FINE)

        def increment(draw: Callable[[int], Tensor], i: int) -> Tensor:
            total = after[i] - before[i] * old
            for cell in range(first, last):
                total += _across(draw, path, cell) * math.exp(cell - last)
            return total / math.sqrt(length)

        noise = self._each(like, increment)
        # the next row begins here
        object.__setattr__(self, "_last", ((path, end, like.shape, noise.device), after))
        return noise.to(like)

    def _points(self, path: int, at: int, like: Tensor) -> Tensor:
        """The path at a lattice point for the whole batch, measured from its cell's first knot."""
        last = self._last
        if last is not None and last[0] == (path, at, like.shape, self._place(like)):
            return last[1]
        return self._each(like, lambda draw, i: _point(draw, path, at))


def _clock(offset: int) -> float:
    """The tau of a lattice point, in units of tau at its cell's first knot."""
    return math.exp(2 * offset / FINE)


def _word(path: int, at: int) -> int:
    """What the draw of a lattice point is keyed by, apart from all rows."""
    return (path + 1) << 32 | (at - NOISIEST * FINE)


def _across(draw: Callable[[int], Tensor], path: int, cell: int) -> Tensor:
    """The path's increment over a whole cell, in units of e^lam at its first knot."""
    return draw(_word(path, (cell + 1) * FINE)) * math.sqrt(math.expm1(2))


def _point(draw: Callable[[int], Tensor], path: int, at: int) -> Tensor:
    """W(at) - W(first knot of its cell), in units of e^lam at that knot, by halving the cell.

    Products and sums are separate operations: fused ones round differently on other machines.
    """
    cell, offset = divmod(at, FINE)
    right, high = FINE, _across(draw, path, cell)
    left, low = 0, torch.zeros_like(high)
    if not offset:
        return low
    while True:
        middle = (left + right) // 2
        a, m, b = _clock(left), _clock(middle), _clock(right)
        value = draw(_word(path, cell * FINE + middle)) * math.sqrt((m - a) * (b - m) / (b - a))
        value += low * ((b - m) / (b - a))
        value += high * ((m - a) / (b - a))
        if middle == offset:
            return value
        if offset < middle:
            right, high = middle, value
        else:
            left, low = middle, value


def spans(table: Table) -> dict[int, Span | None]:
    """The stretch of path that every drawing row follows; None where the level does not fall.

    Args:
        table: K rows.
    """
    draws = ((table.x[:, -1] != 0) | (table.base[:, -1] != 0)).tolist()
    lam = (torch.log(table.alpha) - torch.log(table.sigma)).detach().clamp(NOISIEST, CLEANEST)
    places = [round(value * FINE) for value in lam.tolist()]
    stretches: dict[int, Span | None] = {}
    path, reached, begin = 0, places[0], 0
    for row in range(table.nfe):
        begin = max(begin, table.first_row(table.step[row]))
        if not draws[row]:
            continue
        a, b = places[begin], places[row + 1]
        if a < b:
            path, reached = path + (a < reached), b
            stretches[row] = (path, a, b)
        else:
            stretches[row] = None
        begin = row + 1
    return stretches


DEFAULT = "independent"
NOISES = (SeededNoise.kind, BrownianNoise.kind)


def find(kind: str) -> str:
    """`kind`, which has to be the name of a noise source.

    Raises:
        UnknownName: it is none.
    """
    return among("noise source", kind, NOISES)


def source(kind: str, seeds: Sequence[int], table: Table, *, device: str = "cpu") -> Seeded:
    """A noise source by name.

    A table that draws no noise, as one of a single step, has no path to follow: the start is the
    same from both.

    Args:
        kind: "independent" or "brownian".
        seeds: one per sample.
        table: of the run.
        device: see `Seeded`.

    Raises:
        UnknownName: the kind is none.
        ArgumentError: the seeds are none.
    """
    if find(kind) == BrownianNoise.kind and table.stochastic:
        return BrownianNoise(checked(seeds), table, device=device, first=table.first)
    return SeededNoise(checked(seeds), device=device, first=table.first)


def initial(
    seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Unit noise to begin with.

    Args:
        seeds: one per sample.
        shape: of one sample.
        dtype: of the noise.

    Returns:
        (len(seeds), *shape).
    """
    return SeededNoise(tuple(seeds))(START, torch.empty(len(seeds), *shape, dtype=dtype))
