"""Which prompt holds at which step: a schedule of prompts, and its shares by row.

A schedule is a table as guidance is: `schedule.compile(table)` has for every row the prompts that
hold there with their weights. One prompt of weight 1 is the usual row; in a mixture, and in a
passage from one prompt to the next, there are several, and the weights sum to 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ArgumentError, among, finite, is_number, number_of_steps, plain, shown, whole
from .table import Table

UNITS = ("ratio", "step", "sigma")
ROUNDING = 1e-6  # of weights that sum to 1
ENDS = {"ratio": 1.0, "step": math.inf, "sigma": 0.0}

Text = str | tuple[str, ...]
"""One prompt for all samples, or one for each prompt of a call."""
Mix = tuple[tuple[Text, float], ...]
"""Prompts and their weights, which sum to 1."""


@dataclass(frozen=True)
class Entry:
    """What holds from a position on.

    Args:
        mix: the prompts and their weights.
        start: from where; a passage from the entry before begins there.
        stop: where the passage is over; `start` for a change at once.
    """

    mix: Mix
    start: float
    stop: float


@dataclass(frozen=True)
class Prompts:
    """Prompts over the steps of a run. Make one with `prompts`.

    Args:
        entries: in the order of the run.
        unit: of their positions, see `prompts`.
    """

    entries: tuple[Entry, ...]
    unit: str = "ratio"

    @property
    def first(self) -> Text:
        """The prompt that the pipeline itself is called with."""
        return self.entries[0].mix[0][0]

    @property
    def texts(self) -> tuple[Text, ...]:
        """All prompts, each once."""
        return tuple(dict.fromkeys(text for entry in self.entries for text, _ in entry.mix))

    def of(self, i: int, count: int) -> Prompts:
        """The schedule of sample `i` of `count`, with one text in every entry."""

        def one(text: Text) -> Text:
            return text if isinstance(text, str) else text[i * len(text) // count]

        return self.mapped(one)

    @property
    def constant(self) -> bool:
        """Whether one prompt holds everywhere."""
        return len(self.texts) == 1

    def mapped(self, change: Any) -> Prompts:
        """The schedule with `change(text)` in the place of every text."""
        entries = (
            replace(entry, mix=tuple((change(text), weight) for text, weight in entry.mix))
            for entry in self.entries
        )
        return replace(self, entries=tuple(entries))

    def compile(self, table: Table) -> tuple[Mix, ...]:
        """The prompts of every row of a table, K rows.

        Raises:
            ArgumentError: a position is beyond the table's steps, or an entry holds for none.
        """
        self._check_reach(table)
        at = [self._position(table, step) for step in range(table.steps)]
        mixes = [self._at(position) for position in at]
        for i, entry in enumerate(self.entries):
            later = self._never(entry, table)
            if not later and not any(self._has(i, position) for position in at):
                raise ArgumentError(
                    f"the prompt {shown(_plain(entry.mix))} at {self._shown(entry)} holds for no"
                    f" step of {number_of_steps(table.steps)}: give more steps, or leave it out"
                )
        return tuple(mixes[step] for step in table.step)

    def _check_reach(self, table: Table) -> None:
        """Raises `ArgumentError` where the table does not reach a position."""
        if self.unit == "step":
            last = max(entry.stop for entry in self.entries)
            if last > table.steps:
                raise ArgumentError(
                    f"a prompt is to change at step {last:g} of {number_of_steps(table.steps)}:"
                    f" give a step from 1 to {table.steps - 1}"
                )
        if self.unit == "sigma":
            first, top = self.entries[0].start, self._position(table, 0)
            if first < top:
                raise ArgumentError(
                    f"the first prompt begins at sigma {first:g} and the run at {top:.6g}: let it"
                    " begin at math.inf, tm.prompts({math.inf: …}, unit='sigma')"
                )

    def _position(self, table: Table, step: int) -> float:
        """Where a step begins, in the unit of the schedule."""
        if self.unit == "ratio":
            return step / table.steps
        if self.unit == "step":
            return float(step)
        alpha, sigma = (float(v) for v in table.level(table.first_row(step))[:2])
        return sigma / alpha if alpha > 0 else math.inf

    def _at(self, position: float) -> Mix:
        """The prompts at a position."""
        mix = self.entries[0].mix
        for entry in self.entries[1:]:
            share = self._share(entry, position)
            mix = entry.mix if share == 1 else _mixed(mix, entry.mix, share)
        return mix

    def _share(self, entry: Entry, position: float) -> float:
        """How much of an entry holds at a position, 0 to 1."""
        sign = -1.0 if self.unit == "sigma" else 1.0
        if sign * position >= sign * entry.stop:
            return 1.0
        if sign * position <= sign * entry.start:
            return 0.0
        return (position - entry.start) / (entry.stop - entry.start)

    def _has(self, i: int, position: float) -> bool:
        """Whether entry `i` has a part in a position."""
        if i and not self._share(self.entries[i], position):
            return False
        return not any(self._share(later, position) == 1 for later in self.entries[i + 1 :])

    def _never(self, entry: Entry, table: Table) -> bool:
        """Whether an entry says itself that no step reaches it."""
        return entry.start == (table.steps if self.unit == "step" else ENDS[self.unit])

    def _shown(self, entry: Entry) -> str:
        ends = (entry.start,) if entry.start == entry.stop else (entry.start, entry.stop)
        return f"{self.unit} {' to '.join(f'{end:g}' for end in ends)}"


def prompts(
    schedule: Mapping[Any, Any] | Sequence[tuple[Any, Any]] | str, *, unit: str = "ratio"
) -> Prompts:
    """Prompts that change over the steps, as `helm(…, prompts=…)` takes them.

    >>> prompts({0: "a fox", 12: "a fox in the snow"}, unit="step").texts
    ('a fox', 'a fox in the snow')

    A position is a number, where the prompt changes at once, or a pair, between which the
    conditions pass from the prompt before to this one, linearly in the unit. What holds there is a
    prompt, a list with one for each prompt of the call, or a mixture `{"a fox": 0.7, "a cat": 0.3}`
    of conditions.

    Args:
        schedule: a dictionary from positions to prompts, in the order of the run, from its
            beginning (0; in sigma `math.inf`) on; one prompt or one mixture for all of it.
        unit: of the positions: "ratio" of the steps in [0, 1], "step" index (0-based), or "sigma" =
            sigma/alpha, from high to low. A prompt holds from the first step on that begins there
            or after it.

    Returns:
        The schedule.

    Raises:
        ArgumentError: positions out of order, out of their unit's range, or twice; a first one that
            is not the beginning; no prompt, or weights that do not sum to 1.
    """
    among("unit of prompts", unit, UNITS)
    beginning = math.inf if unit == "sigma" else 0
    pairs = _pairs(schedule, beginning)
    entries = tuple(_entry(position, value, unit) for position, value in pairs)
    _check_order(entries, unit, beginning)
    counts = {len(text) for entry in entries for text, _ in entry.mix if not isinstance(text, str)}
    if len(counts) > 1:
        raise ArgumentError(
            f"prompts are lists of {' and '.join(map(str, sorted(counts)))}: give each entry as"
            " many as the call has prompts"
        )
    return Prompts(entries, unit)


def read(value: Any) -> Prompts:
    """A schedule from what a call takes: a `Prompts`, or what `prompts` makes one of."""
    return value if isinstance(value, Prompts) else prompts(value)


def parsed(prompt: str, changes: Iterable[str]) -> Prompts | None:
    """A schedule from words of the command line.

    Args:
        prompt: the first one.
        changes: each a position and a prompt: "0.4:a fox" (of the steps), "step:12:a fox",
            "sigma:1.2:a fox"; with a passage "0.3-0.6:a fox".

    Returns:
        None where nothing changes.

    Raises:
        ArgumentError: one of them is none of these.
    """
    read = [_typed(change) for change in changes]
    if not read:
        return None
    units = list(dict.fromkeys(unit for unit, _, _ in read))
    if len(units) > 1:
        raise ArgumentError(
            f"the prompts change by {' and by '.join(units)}: write all positions in one unit"
        )
    beginning = math.inf if units[0] == "sigma" else 0
    return prompts(
        [(beginning, prompt), *((position, text) for _, position, text in read)], unit=units[0]
    )


def _typed(change: str) -> tuple[str, Any, str]:
    """The unit, the position and the prompt of a change."""
    unit, colon, rest = change.partition(":")
    if not colon or unit not in UNITS:
        unit, rest = "ratio", change
    position, colon, text = rest.partition(":")
    first, dash, last = position.partition("-")
    kind = int if unit == "step" else float
    try:
        ends = [kind(end) for end in ((first, last) if dash else (first,))]
    except ValueError:
        ends = []
    if not ends or not colon or not text.strip():
        raise ArgumentError(
            "a change of the prompt is a position and a prompt, e.g. '0.4:a fox in the snow' (of"
            f" the steps), 'step:12:a fox', 'sigma:1.2:a fox' or '0.3-0.6:a fox', got {change!r}"
        )
    return unit, tuple(ends) if dash else ends[0], text


# -- reading -------------------------------------------------------------------------------------
def _pairs(schedule: Any, beginning: float) -> list[tuple[Any, Any]]:
    """Positions and what holds there."""
    if isinstance(schedule, str):
        return [(beginning, schedule)]
    if isinstance(schedule, Mapping):
        if schedule and all(isinstance(key, str) for key in schedule):
            return [(beginning, schedule)]
        pairs = list(schedule.items())
    elif isinstance(schedule, (list, tuple)):
        pairs = [tuple(one) for one in schedule if isinstance(one, (list, tuple)) and len(one) == 2]
        if len(pairs) != len(schedule):
            pairs = []
    else:
        pairs = []
    if not pairs:
        raise ArgumentError(
            "prompts must be a dictionary from positions to prompts, e.g. {0.0: 'a fox', 0.4: 'a"
            f" fox in the snow'}}, got {shown(schedule)}"
        )
    return pairs


def _entry(position: Any, value: Any, unit: str) -> Entry:
    """One entry, checked for itself."""
    ends = position if isinstance(position, (list, tuple)) else (position,)
    if len(ends) not in (1, 2):
        raise ArgumentError(
            f"a prompt has a position, e.g. 0.4, or the two ends of a passage, e.g. (0.3, 0.6), got"
            f" {shown(position)}"
        )
    start, stop = _end(ends[0], unit), _end(ends[-1], unit)
    if len(ends) == 2 and ((start <= stop) if unit == "sigma" else (start >= stop)):
        way = "from high to low" if unit == "sigma" else "from low to high"
        raise ArgumentError(f"a passage runs {way} and is not empty, got {shown(position)}")
    return Entry(_mix(value), start, stop)


def _end(value: Any, unit: str) -> float:
    """A position as a Python number."""
    if unit == "sigma" and is_number(value) and value == math.inf:
        return math.inf
    if unit == "step":
        return float(whole("the step of a prompt", value, 0))
    number = finite("the position of a prompt", value, 0)
    if unit == "ratio" and number > 1:
        index = ""
        if number.is_integer():
            index = f": for a step index say tm.prompts({{0: …, {number:g}: …}}, unit='step')"
        raise ArgumentError(
            f"the position of a prompt {number:g} is no ratio of the steps in [0, 1]{index}"
        )
    return number


def _mix(value: Any) -> Mix:
    """What holds from a position on."""
    if isinstance(value, str):
        return ((value, 1.0),)
    if isinstance(value, Mapping):
        return _mixture(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, str) for one in value):
        return ((tuple(value), 1.0),)
    raise ArgumentError(
        "a prompt is a text, a list of texts or a mixture {'a fox': 0.7, 'a cat': 0.3}, got"
        f" {shown(value)}"
    )


def _mixture(value: Mapping[Any, Any]) -> Mix:
    """Texts and their weights."""
    weights = plain(dict(value))
    if not weights or not all(isinstance(text, str) for text in weights):
        raise ArgumentError(
            f"a mixture has texts and weights, e.g. {{'a fox': 0.7, 'a cat': 0.3}}, got"
            f" {shown(value)}"
        )
    for text, weight in weights.items():
        weights[text] = finite(f"the weight of {text!r}", weight, 0)
    total = math.fsum(weights.values())
    if abs(total - 1) > ROUNDING:
        hint = {text: round(weight / total, 4) for text, weight in weights.items()} if total else {}
        fix = f", e.g. {hint}" if hint else ""
        raise ArgumentError(f"the weights of a mixture sum to 1, got {total:g}{fix}")
    return tuple((text, weight) for text, weight in weights.items() if weight)


def _check_order(entries: Sequence[Entry], unit: str, beginning: float) -> None:
    """Raises `ArgumentError` for entries that do not follow each other from the beginning on."""
    first = entries[0]
    if first.start != first.stop or (unit != "sigma" and first.start != beginning):
        raise ArgumentError(
            f"the first prompt holds from the beginning, {beginning:g}: got the first at"
            f" {first.start:g}{'' if first.start == first.stop else f' to {first.stop:g}'}"
        )
    sign = -1.0 if unit == "sigma" else 1.0
    for before, after in itertools.pairwise(entries):
        if after.start == before.start == before.stop and after.start == after.stop:
            raise ArgumentError(f"two prompts begin at {after.start:g}; give one")
        if sign * after.start < sign * before.stop or after.start == before.start:
            way = "from high to low sigma" if unit == "sigma" else "in the order of the steps"
            raise ArgumentError(
                f"prompts go {way}, and a passage ends before the next begins: got {after.start:g}"
                f" after {before.stop:g}"
            )


def _mixed(before: Mix, after: Mix, share: float) -> Mix:
    """`share` of one mixture, the rest of another."""
    weights: dict[Text, float] = {}
    for mix, part in ((before, 1 - share), (after, share)):
        for text, weight in mix:
            weights[text] = weights.get(text, 0.0) + part * weight
    return tuple((text, weight) for text, weight in weights.items() if weight)


def _plain(mix: Mix) -> Any:
    """A mixture as it is written."""
    return mix[0][0] if len(mix) == 1 else dict(mix)
