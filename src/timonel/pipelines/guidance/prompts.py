"""Prompts over a run: the arguments of the network that hold a prompt, replaced row by row.

Pipelines encode their prompt once and hand the network what came of it: states for cross-attention,
pooled embeddings, masks, positions of the text. Which arguments these are is learned, not listed:
the first turn of the pipeline's loop is looked at with one prompt and with the other, same seeds
and same levels, so that whatever differs is of the prompt (`pipelines/first_turn.py`). At the rows
of the other prompt those arguments are replaced, whole, so their lengths may differ. Everything
else of a call stays: the sample, the time, sizes, pictures.

A call of the network is recognised by what it brings: the conditional and the unconditional call of
a turn, or the windows of a long video, each get the other prompt's arguments of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...core.guidance import Guidance
from ...core.prompts import Entry, Mix, Prompts, Text
from ...core.run import Run
from ...core.table import Table
from ...engine.tensor_trees import equal, map_leaves
from ...errors import ArgumentError, ModelError, shown
from . import batch_tree

Called: TypeAlias = Any  # `gate.Called`, whose file imports nothing of this one

POSITIONAL = "arguments"
"""The name of the leaves that were passed by position."""


FORECAST = (
    "forecast= reads the differences of the rows before, which are of another prompt where the"
    " prompt changes: leave it out of cfg(…), or leave the prompt as it is"
)


class Pair(NamedTuple):
    """A prompt and a negative prompt, as the pipeline takes them; None: it is not passed."""

    prompt: Any
    negative: Any


Weights = tuple[tuple[Pair, float], ...]


@dataclass(frozen=True)
class Plan:
    """What a call asks of its prompts.

    Args:
        positive: the schedule of the prompt; None: `base.prompt` everywhere.
        negative: that of the negative prompt.
        base: what the pipeline itself is called with.
    """

    positive: Prompts | None
    negative: Prompts | None
    base: Pair

    @property
    def constant(self) -> bool:
        """Whether nothing changes."""
        texts = (self.positive, self.base.prompt), (self.negative, self.base.negative)
        return all(one is None or (one.constant and one.first == base) for one, base in texts)

    def rows(self, table: Table) -> tuple[tuple[Mix, Mix], ...]:
        """The prompts and the negative prompts of every row.

        Raises:
            ArgumentError: the table does not fit the schedules.
        """
        mixes: list[Sequence[Mix]] = []
        for schedule, base in zip((self.positive, self.negative), self.base, strict=True):
            mixes.append(
                [((base, 1.0),)] * table.nfe if schedule is None else schedule.compile(table)
            )
        return tuple(zip(*mixes, strict=True))

    def pairs(self, rows: Sequence[tuple[Mix, Mix]]) -> list[Pair]:
        """All pairs that rows have, each once, `base` first."""
        each = [pair for row in rows for pair, _ in weighted(*row)]
        return list(dict.fromkeys([self.base, *each]))


def check_guidance(plan: Plan, guidance: Guidance | None) -> None:
    """Raises `ArgumentError` for a forecast across a change of the prompt."""
    if not plan.constant and guidance is not None and guidance.forecast > 1:
        raise ArgumentError(FORECAST)


def weighted(positive: Mix, negative: Mix) -> Weights:
    """The pairs of a row and their weights."""
    return tuple((Pair(p, n), a * b) for p, a in positive for n, b in negative)


class Varying:
    """An argument, or a part of one, that holds the prompt.

    Args:
        name: of the argument.
        values: one for each pair, that of the base first.
    """

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name, self.values = name, list(values)
        self._known: tuple[Any, int] | None = None

    def matches(self, now: Any) -> bool:
        """Whether a call brings the base's value."""
        version = now._version if isinstance(now, Tensor) and not now.is_inference() else -1
        if self._known is not None and self._known[0] is now and self._known[1] == version:
            return True
        if not equal(now, self.values[0]):
            return False
        self._known = (now, version) if version >= 0 else None
        return True

    def mixed(self, weights: Sequence[tuple[int, float]]) -> Any:
        """The value of a mixture.

        Args:
            weights: places in `values`, and their weights.

        Raises:
            ArgumentError: the values cannot be mixed.
        """
        first, *others = [self.values[place] for place, _ in weights]
        if all(equal(first, other) for other in others):
            return first
        alike = all(
            isinstance(one, Tensor) and one.shape == first.shape for one in [first, *others]
        )
        if not alike:
            lengths = " and ".join(map(_size, (first, *others)))
            raise ArgumentError(
                f"the conditions of these prompts are of different lengths ({self.name}:"
                f" {lengths}), so they cannot be mixed: let the prompt change at one step, without"
                " a mixture or a passage"
            )
        if "mask" in self.name:  # whatever one of them sees
            return torch.stack([first, *others]).amax(0)
        if not first.is_floating_point():
            raise ArgumentError(
                f"the conditions of these prompts cannot be mixed, for their {self.name} are whole"
                " numbers: let the prompt change at one step, without a mixture or a passage"
            )
        total = first.clone()
        for (_, weight), other in zip(weights[1:], others, strict=True):
            total += weight * (other - first)
        return total


class Same:
    """Stands for what does not depend on the prompt."""


SAME = Same()


class Mismatch(Exception):
    """An argument of a call is not the one that was learned in the first turn."""


class Seen(NamedTuple):
    """A call of a network in the first turn."""

    main: bool
    tree: dict[str, Any]


def tree_of(called: Called) -> dict[str, Any]:
    """The arguments of a call as one tree."""
    return {POSITIONAL: list(called.args), "kwargs": called.kwargs}


class Learned:
    """Which arguments of the network hold the prompt, and what they hold for each pair.

    Args:
        name: of the pipeline's class.
        pairs: the base first.
        turns: the calls of the first turn, for each pair.

    Raises:
        ArgumentError: the prompt reaches the network in another way than by its arguments.
    """

    def __init__(self, name: str, pairs: Sequence[Pair], turns: Sequence[Sequence[Seen]]) -> None:
        self.name, self.pairs = name, list(pairs)
        kinds = [[seen.main for seen in turn] for turn in turns]
        for pair, kind in zip(pairs, kinds, strict=True):
            if kind != kinds[0]:
                raise ArgumentError(
                    f"{name} calls its network {len(kinds[0])} times a turn for"
                    f" {shown(pairs[0].prompt)} and {len(kind)} times for {shown(pair.prompt)}: its"
                    " prompt cannot change on the way"
                )
        self.calls: list[tuple[bool, Any]] = []
        for each in zip(*turns, strict=True):
            self._check_samples(each)
            self.calls.append((each[0].main, map_leaves(_varying, *(seen.tree for seen in each))))
        for place in range(1, len(self.pairs)):
            self._check_differs(place)

    def _check_samples(self, each: Sequence[Seen]) -> None:
        """Raises `ArgumentError` where the pipeline's sample depends on its prompt."""
        samples = [
            batch_tree.sample_of(seen.tree[POSITIONAL], seen.tree["kwargs"]) for seen in each
        ]
        for sample, pair in zip(samples, self.pairs, strict=True):
            if not equal(sample, samples[0]):
                raise ArgumentError(
                    f"{self.name} mixes the prompt into the sample of its network, which is another"
                    f" for {shown(pair.prompt)}: the prompt cannot change on the way"
                )

    def _check_differs(self, place: int) -> None:
        """Raises `ArgumentError` where a pair changes nothing of what the network gets."""
        if any(
            not equal(v.values[0], v.values[place])
            for _, tree in self.calls
            for v in varying_leaves(tree)
        ):
            return
        base, pair = self.pairs[0], self.pairs[place]
        if pair.prompt == base.prompt:
            raise ArgumentError(
                f"the negative prompt {shown(pair.negative)} changes nothing: {self.name} computes"
                " no unconditional part of it in this call; raise the guidance scale above 1, or"
                " leave negative_prompts= out"
            )
        raise ArgumentError(
            f"the network of {self.name} gets the same for {shown(pair.prompt)} as for"
            f" {shown(base.prompt)}: either the two prompts are one to its encoders, or the prompt"
            " reaches the network in another way than by its arguments, and cannot change"
        )

    def values(self, weights: Weights) -> list[Any]:
        """For every call of the turn what its arguments are in a mixture of pairs.

        Raises:
            ArgumentError: they cannot be mixed.
        """
        # the largest first: what is equal for all of them stays what it is, bit for bit
        places = [(self.pairs.index(pair), w) for pair, w in sorted(weights, key=lambda w: -w[1])]

        def value(_: str, leaf: Any) -> Any:
            return Leaf(leaf.mixed(places)) if isinstance(leaf, Varying) else leaf

        return [map_leaves(value, tree) for _, tree in self.calls]


class Leaf(NamedTuple):
    """A value in the place of an argument; a class of its own, for it may be a list."""

    value: Any


def varying_leaves(tree: Any) -> list[Varying]:
    """What in a tree varies with the prompt."""
    leaves: list[Varying] = []
    map_leaves(lambda _, leaf: leaves.append(leaf) if isinstance(leaf, Varying) else None, tree)
    return leaves


def _varying(name: str, *values: Any) -> Any:
    """A leaf of several turns: whether it varies with the prompt."""
    return SAME if all(equal(values[0], value) for value in values[1:]) else Varying(name, values)


def _size(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return f"{len(value)} entries" if isinstance(value, (list, tuple)) else repr(value)


class Prompted:
    """The prompts of a call, as the gate puts them before its networks.

    Args:
        plan: of the call.
        learned: of all its pairs; None until the first turn was looked at.
    """

    def __init__(self, plan: Plan, learned: Learned | None = None) -> None:
        self.plan, self.learned = plan, learned
        self.journey: dict[int, tuple[Mix, Mix]] = {}  # of the rows that were computed
        self.live = False  # the plan was changed on the way
        self._table: Table | None = None
        self._rows: tuple[tuple[Mix, Mix], ...] = ()
        self._turn: tuple[Any, ...] | None = None
        self._count, self._opens = 0, True
        self._newest: tuple[Weights, list[Any]] | None = None

    def rows(self, table: Table) -> tuple[tuple[Mix, Mix], ...]:
        """What holds at every row of a table. Raises `ArgumentError` where it does not fit."""
        if table is not self._table:
            self._rows, self._table = self.plan.rows(table), table
        return self._rows

    def journey_of(self, table: Table) -> tuple[Prompts | None, Prompts | None] | None:
        """The schedules of what was really used, where prompts changed on the way.

        Args:
            table: of the run.

        Returns:
            Of the prompt and of the negative prompt, by steps; None where no schedule says it, as
            for a prompt that changed in the midst of a step.
        """
        each = [(table.step[row], self.journey[row]) for row in sorted(self.journey)]
        if any(s == t and a != b for (s, a), (t, b) in itertools.pairwise(each)):
            return None
        prompts = _journey([(step, positive) for step, (positive, _) in each], self.plan.base[0])
        negative = _journey([(step, other) for step, (_, other) in each], self.plan.base[1])
        texts = () if negative is None else negative.texts
        return None if None in texts else (prompts, negative)  # none is more than an empty one

    def change(self, plan: Plan, learned: Learned, rows: tuple[tuple[Mix, Mix], ...]) -> None:
        """Go on with another plan.

        Args:
            plan: for the rows to come.
            learned: of its pairs.
            rows: of the plan on the present table.
        """
        self.plan, self.learned, self._rows, self.live = plan, learned, rows, True
        self._newest = None

    def at(self, run: Run, called: Called, turn: tuple[Any, ...]) -> Called:
        """A call of a network, with the arguments of the prompts that hold at its row.

        Args:
            run: of the call.
            called: the call.
            turn: says which turn of the loop it is in.

        Raises:
            ModelError: the pipeline calls its network otherwise than in its first turn.
        """
        row = min(run.row, run.table.nfe - 1)
        again = self.journey.get(row) if run.returning else None
        self.journey[row] = mixes = again or self.rows(run.table)[row]
        weights, learned = weighted(*mixes), self.learned
        if self._turn != turn:
            self._opens, self._turn, self._count = self._turn is None, turn, 0
        place, self._count = self._count, self._count + 1
        base = weights == ((self.plan.base, 1.0),)
        if learned is None or (base and not self._opens):
            return called
        if self._newest is None or self._newest[0] != weights:
            self._newest = weights, learned.values(weights)
        tree = self._replaced(learned, self._newest[1], called, place)
        return (
            called if base else called._replace(args=tuple(tree[POSITIONAL]), kwargs=tree["kwargs"])
        )

    def _replaced(self, learned: Learned, values: list[Any], called: Called, place: int) -> Any:
        """The arguments of a call, with those that hold the prompt replaced."""
        known = [i for i, (main, _) in enumerate(learned.calls) if main is called.main]
        for i in sorted(known, key=lambda i: i != place):
            try:
                return map_leaves(_put, tree_of(called), learned.calls[i][1], values[i])
            except Mismatch:
                continue
        raise ModelError(
            f"{learned.name} gives {type(called.module).__name__} other conditions here than in the"
            " first turn of its loop, so its prompt cannot change on the way; leave prompts= out"
        )


def _journey(each: Sequence[tuple[int, Mix]], base: Any) -> Prompts | None:
    """A schedule of the prompts of steps; None where it was `base` at all of them."""
    entries: list[Entry] = []
    for step, mix in each:
        if not entries or entries[-1].mix != mix:
            entries.append(Entry(mix, float(step), float(step)))
    still = len(entries) == 1 and entries[0].mix == ((base, 1.0),)
    return None if still else Prompts(tuple(entries), "step")


def _put(_: str, now: Any, varying: Any, value: Any) -> Any:
    """A leaf of a call: as it is, or replaced where it holds the prompt."""
    if varying is SAME:
        return now
    if isinstance(varying, Varying) and varying.matches(now):
        return value.value
    raise Mismatch


Encode = Callable[[Sequence[Pair]], Learned]


def expanded(schedule: Prompts, call: Any, what: str) -> Prompts:
    """A schedule for the batch of prompts of a call.

    Args:
        schedule: with texts, or a list of them in every entry.
        call: the prompt of the call, or a list.
        what: the argument's name.

    Raises:
        ArgumentError: a list has not as many prompts as the call.
    """
    count = len(call) if isinstance(call, (list, tuple)) else None

    def each(text: Text) -> Text:
        if isinstance(text, str):
            return text if count is None else (text,) * count
        if count is None or len(text) != count:
            raise ArgumentError(
                f"an entry of {what}= is a list of {len(text)} and the call has"
                f" {'one prompt' if count is None else f'{count} prompts'}: give as many, or one"
                " text for all"
            )
        return text

    return schedule.mapped(each)
