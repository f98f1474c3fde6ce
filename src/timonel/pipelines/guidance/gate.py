"""The gate socket: what the networks of a pipeline compute, guided or in an idle turn.

Pipelines call their network for a conditional and an unconditional part, in one batch or one call
each, and combine the outputs themselves, by a formula that is theirs: `u + g·(c - u)`, per frame,
with an image's part, rescaled. The gate leaves the formula alone and changes the parts. Where a
step is not guided it computes the conditional part only and hands that back for every part, so that
any such formula yields it. A scale of its own hands back `c + k·(u - c)`, a forecast `c - d`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ...core.guidance import Guidance, stretch
from ...core.run import Run
from ...core.table import Table
from ...engine.tensor_trees import equal
from ...errors import ArgumentError, ModelError
from ..session import Phase, Session
from . import batch_tree
from .applied import NO_SUM, Applied
from .called import Called as Called
from .called import networks as networks
from .prompts import Prompted
from .turn import Did, FirstRow, Turn

NO_PART = (
    "guidance was requested, but {pipe} gives its network no unconditional part that can be"
    " recognised: raise its guidance scale above 1 and give what it needs for guidance (a negative"
    " prompt, for some), or leave guidance out for a guidance-distilled model"
)
CHANGED = "{pipe} changes what its network returns; it cannot be rescaled from outside"
NO_FORECAST = (
    "the unconditional part of {pipe} cannot be forecast: it {why}; leave forecast= out of cfg(…)"
)


class Gate:
    """The gate of one call.

    Args:
        pipe: the pipeline.
        session: of the call.
        samples: how many the call makes, where known.
        usual: the scale that the pipeline guides with, whoever chose it.

    Attributes:
        parts_in: parts of the pipeline that are other ones for the time of the call, by name.
    """

    parts_in: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, pipe: Any, session: Session, samples: int | None, usual: float | None = None
    ) -> None:
        self.pipe, self.session, self.samples, self.usual = pipe, session, samples, usual
        self.applied = Applied(pipe, session.request.weak)
        self.turn: Turn | None = None
        self.outputs: dict[nn.Module, list[Any]] = {}  # of the newest row that was computed
        # of the first row, which may hold what later ones reuse
        self.opening: dict[nn.Module, list[Any]] = {}
        self.first_row: FirstRow | None = None
        self.place: int | None = None  # which part is conditional, once measured
        self.shift = 0.0  # 1 where a pipeline's scale is that of c + g·(c - u)
        self.weight: float | None = None  # of the conditional part, where nobody says a scale
        self.sums = False  # the pipeline was seen to make nothing but a sum of two parts
        self.did = Did(0)
        self.prompts: Prompted | None = None  # where they change over the run
        self.watcher: Any = None  # the pipeline is called for its first turn alone

    # -- around a network ------------------------------------------------------------------------
    def call(self, called: Called) -> Any:
        """A network's output: computed, computed in part, or remembered."""
        if self.watcher is not None:
            return self.watcher.call(called)
        session = self.session
        run = session.coming() if session.opens else session.run
        if run is None:
            return called.compute()
        if self.prompts is not None:
            called = self.prompts.at(run, called, (run, run.advances, session.turn))
        turn, idle, module = self.turn, session.phase.idle, called.module
        if turn is None or turn.at != (run, run.advances, session.turn):
            turn = self.turn = self._begin(run)
        if idle and not turn.blank and (known := self._remembered(called)):
            turn.repeats[module] = turn.repeats.get(module, -1) + 1
            return known[min(turn.repeats[module], len(known) - 1)]
        if run.guided.guidance is None or idle:
            output = called.compute()
        elif called.main:
            output = self._predict(turn, run, called)
        else:
            output = self._help(run, called)
        self.outputs.setdefault(module, []).append(output)
        return output

    def _begin(self, run: Run) -> Turn:
        """A new turn of the loop."""
        turn = Turn((run, run.advances, self.session.turn), not (self.opening or self.outputs))
        if not self.session.phase.idle:
            self.opening, self.outputs = self.opening or self.outputs, {}
        return turn

    def _remembered(self, called: Called) -> list[Any]:
        """The outputs of a network, or of the one that it takes turns with; none: compute."""
        first = self.session.phase is Phase.OPENING and self.opening
        known = self.opening if first else self.outputs
        if called.module in known or not called.main:
            return known.get(called.module, [])
        others = (other for other, alike in networks(self.pipe).items() if alike)
        return next((known[other] for other in others if other in known), [])

    def _samples(self, run: Run, size: int) -> int:
        """How many samples the batch is made of."""
        count = len(run.latents) if run.started else 0
        if self.samples and size <= 3 * self.samples and (not count or count % self.samples == 0):
            return self.samples
        if self.samples and not count and size % 2 == 0:
            return size // 2  # every frame is one of the batch, in both parts
        return count or (size // 2 if batch_tree.guides(self.pipe) and size % 2 == 0 else size)

    def _help(self, run: Run, called: Called) -> Any:
        """A controlnet's output; only for the conditional part where the network sees only that."""
        size = len(called.sample)
        samples = self._samples(run, size)
        count = size // samples
        both = run.scale != 1.0 and not run.forecasting
        if both or count not in (2, 3) or size % samples:  # more: every frame is one of a batch
            return called.compute()
        return self._cut(called, count, samples, frames=True)

    def _predict(self, turn: Turn, run: Run, called: Called) -> Any:
        """The prediction's parts."""
        sample = called.sample
        if turn.first is not None and len(sample) <= len(turn.first[0]):
            return self._again(turn, turn.first, run, sample, called)
        size = len(sample)
        samples = self._samples(run, size)
        count = size // samples
        if size % samples or count > 3:
            raise ArgumentError(
                f"{NO_PART.format(pipe=self._name)} (its network got {size} for {samples} samples)"
            )
        shape = batch_tree.Shape(count, size, isinstance(sample, list))
        self.applied.admit(run, count)
        output = (self._alone if count == 1 else self._together)(turn, run, shape, called)
        turn.first = (sample, count, output)
        place = 0 if count == 1 else self._conditional(count)
        if self.applied.evaluate(turn, run, called, shape, place):
            self.did |= Did.WORSE
        return output

    def _alone(self, turn: Turn, run: Run, shape: batch_tree.Shape, called: Called) -> Any:
        """The output of a batch that has one part."""
        if batch_tree.guides(self.pipe) is False and self._needs_both(run):
            raise ArgumentError(NO_PART.format(pipe=self._name))
        output = called.compute()
        self._note(turn, run, output, shape)
        prediction = batch_tree.tensors(output)
        turn.parts = [] if prediction is None else [prediction]
        return output

    def _together(self, turn: Turn, run: Run, shape: batch_tree.Shape, called: Called) -> Any:
        """The output of a batch that has several parts."""
        samples = shape.size // shape.parts
        self.did |= Did.GUIDED
        if run.scale == 1.0:
            self.did |= Did.SKIPPED
            output = self._cut(called, shape.parts, samples)
        elif run.forecasting:
            output = self._cut(called, shape.parts, samples, delta=self._delta(run))
        else:
            output = called.compute()
            self._note(turn, run, output, shape)
            output = self._scaled(run, output, shape)
        if self.place is None or run.guided.rescale or self.applied.wants(run):
            whole = batch_tree.tensors(output)
            fits = whole is not None and len(whole) == shape.size
            turn.parts = list(whole.chunk(shape.parts)) if fits and whole is not None else []
        return output

    def _again(
        self, turn: Turn, first: tuple[Any, int, Any], run: Run, sample: Any, called: Called
    ) -> Any:
        """A later call in the same turn: the unconditional part if it is about the same sample."""
        before, count, conditional = first
        if count > 1 or not equal(before, sample):
            return called.compute()  # another window of a video, or a part that is not for guidance
        self.did |= Did.GUIDED
        if run.scale == 1.0:
            self.did |= Did.SKIPPED
            return conditional
        shape = batch_tree.Shape(1, len(sample), isinstance(sample, list))
        if run.forecasting:
            delta = self._delta(run)
            output = batch_tree.rearrange(conditional, lambda part: [part[0] - delta], *shape)
        else:
            output, k = called.compute(), self._share(run)
            self._note(turn, run, output, shape)
            if k != 1.0:
                output = batch_tree.blend(conditional, output, k)
        prediction = batch_tree.tensors(output)
        if prediction is not None:
            turn.parts = [*turn.parts, prediction]
        elif not run.forecasting:
            turn.parts = []
        return output

    # -- parts ---------------------------------------------------------------------------------
    def _conditional(self, count: int) -> int:
        return batch_tree.conditional(self.pipe, count) if self.place is None else self.place

    def _cut(
        self, called: Called, count: int, samples: int, *, frames: bool = False,
        delta: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Compute the conditional part only, and hand it back for all, less `delta`."""
        place, size = self._conditional(count), count * samples
        perturbed = batch_tree.perturbed(self.pipe)
        if perturbed and count == 2:
            return called.compute()  # conditional and perturbed: nothing to leave out
        kept = 2 if perturbed else 1
        wanted = slice(place * samples, (place + kept) * samples)
        listed = isinstance(called.sample, list)
        args, kwargs = (
            batch_tree.narrow(arguments, size, wanted, listed)
            for arguments in (called.args, called.kwargs)
        )
        with self._perturbed_pair() if perturbed else ExitStack():
            output = called.forward(*args, **kwargs)

        def every(computed: list[Any]) -> list[Any]:
            other = computed[0] if delta is None else computed[0] - delta
            prompt = range(count - kept + 1)
            return [computed[0] if i == place else other for i in prompt] + computed[1:]

        return batch_tree.rearrange(output, every, kept, kept * samples, listed, frames)

    @contextmanager
    def _perturbed_pair(self) -> Iterator[None]:
        """Attention that expects [conditional, perturbed], without the unconditional part."""
        layers, put = self.pipe.pag_applied_layers, self.pipe._set_pag_attn_processor
        put(pag_applied_layers=layers, do_classifier_free_guidance=False)
        try:
            yield
        finally:
            put(pag_applied_layers=layers, do_classifier_free_guidance=True)

    def _scaled(self, run: Run, output: Any, shape: batch_tree.Shape) -> Any:
        """The output with its guidance scaled to this row's."""
        k = self._share(run)
        if k == 1.0:
            return output
        if shape.parts == 3 and not batch_tree.perturbed(self.pipe):
            raise ArgumentError(
                f"{self._name} guides by two things at once; give one scale, not one per step"
            )
        place = self._conditional(shape.parts)

        def nearer(each: list[Tensor]) -> list[Tensor]:
            return [
                each[place].lerp(part, k) if i < 2 and i != place else part
                for i, part in enumerate(each)
            ]

        return batch_tree.rearrange(output, nearer, *shape)

    def _share(self, run: Run) -> float:
        """k: this row's guidance in units of the pipeline's own."""
        if run.scale is None or self.usual is None or run.scale == self.usual:
            return 1.0
        if self.applied.replaces(run):
            return 1.0  # what the pipeline makes of the parts is replaced
        self.did |= Did.SCALED
        return (run.scale - 1 + self.shift) / (self.usual - 1 + self.shift)

    # -- the forecast part -----------------------------------------------------------------------
    def _note(self, turn: Turn, run: Run, output: Any, shape: batch_tree.Shape) -> None:
        """Keep the parts of an output, for forecasts, before anything is made of them."""
        if run.scale == 1.0 or not run.remembers:
            return
        each: list[list[Tensor]] = []
        none: list[Tensor] = []

        def look(computed: list[Tensor]) -> list[Tensor]:
            each.append(computed)
            return computed

        batch_tree.rearrange(output, look, *shape)
        pairs = itertools.zip_longest(turn.outputs, each, fillvalue=none)
        turn.outputs = [a + b for a, b in pairs]

    def _delta(self, run: Run) -> Tensor:
        """The forecast of conditional minus unconditional part, as this row scales guidance."""
        delta, k = run.forecast, self._share(run)
        assert delta is not None
        return delta if k == 1.0 else delta * k

    def _difference(self, turn: Turn, raw: Tensor) -> Tensor:
        """Conditional minus unconditional part. Raises `ArgumentError` where more guides."""
        pair = turn.outputs[0] if len(turn.outputs) == 1 else []
        finite = self.sums or bool(raw.isfinite().all())
        why = ""
        if len(turn.outputs) > 1:
            why = f"has a network of {len(turn.outputs)} outputs"
        elif len(pair) != 2 or batch_tree.perturbed(self.pipe):
            why = f"guides by {len(pair)} parts, not by a conditional and an unconditional one"
        elif not self.sums and finite and not batch_tree.is_sum(pair, raw):
            # where it is not finite a guard is to say so
            why = NO_SUM
        if why:
            raise ArgumentError(NO_FORECAST.format(pipe=self._name, why=why))
        self.sums = finite
        place = 0 if turn.first is not None and turn.first[1] == 1 else self._conditional(2)
        return pair[place] - pair[1 - place]

    # -- after the pipeline combined them ------------------------------------------------------
    def combined(self, raw: Tensor, x: Tensor) -> Tensor:
        """What the row is advanced with: the pipeline's combination, or another, or that rescaled.

        Args:
            raw: (batch, …), what the pipeline made of the parts; it is checked the first time.
            x: the sample that it steps.

        Raises:
            ArgumentError, ModelError: the pipeline cannot be guided so.
        """
        run = self.session.run
        assert run is not None
        if self.first_row is None:
            self.first_row = self._first_row(run, raw, x)
        guidance, terms = run.guided.guidance, bool(run.guided.terms(run.row))
        if guidance is None or (self._off(run) and not terms):
            return raw
        if self._needs_both(run):
            self._check_guided()
        if run.scale == 1.0 and not terms:
            return raw
        turn = self.turn or Turn((run, run.advances, 0), True)
        kept = {} if run.scale == 1.0 else self._look(turn, run, raw)
        if self.applied.wants(run):
            raw, more = self._apply(turn, run, raw, x)
            kept |= more
        if kept:
            run.remember(**kept)
        return self._rescaled(turn, raw, guidance.rescale) if guidance.rescale else raw

    def _look(self, turn: Turn, run: Run, raw: Tensor) -> dict[str, Tensor]:
        """Measure the parts of a guided row; what forecasts are to remember of it."""
        if self.place is None and len(turn.parts) > 1:
            self._measure(turn.parts, raw, turn.alone)
        if not run.remembers or run.forecasting:
            return {}
        return {"difference": self._difference(turn, raw)}

    def _apply(
        self, turn: Turn, run: Run, raw: Tensor, x: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The output of a method and terms, and what the run is to remember."""
        place = 0 if turn.alone else self._conditional(len(turn.parts) or 2)
        weight = self._weight(run) if self.applied.replaces(run) else 1.0
        return self.applied.combined(turn, run, raw, x, (place, 1 - place), weight)

    def _weight(self, run: Run) -> float:
        """w of the row where parts combine as `u + w·(c - u)`."""
        scale = self.usual if run.scale is None else run.scale
        if scale is not None:
            return scale + self.shift
        if self.weight is None:
            raise ArgumentError(f"give {self._name} a scale in guidance=, e.g. tm.apg(4.0)")
        return self.weight

    def _check_guided(self) -> None:
        """Raises where guidance was requested, and no second part was seen."""
        if not networks(self.pipe):
            raise ModelError(
                f"timonel does not know the network of {self._name}, so it cannot guide it"
            )
        # guiders have intervals of their own
        if not self.did & Did.GUIDED and getattr(self.pipe, "guider", None) is None:
            raise ArgumentError(NO_PART.format(pipe=self._name))

    def _first_row(self, run: Run, raw: Tensor, x: Tensor) -> FirstRow:
        """A row's parts, what the pipeline made of them, its sample, and how they were computed."""
        modules = [module for module, main in networks(self.pipe).items() if main]
        outputs = (
            batch_tree.tensors(one) for module in modules for one in self.outputs.get(module, ())
        )
        each = [t for t in outputs if t is not None and t.ndim]
        if len(each) != 1:
            return FirstRow(each, raw, x, True)
        count = len(each[0]) // self._samples(run, len(each[0]))
        each = list(each[0].chunk(count)) if 1 < count <= 3 else each
        return FirstRow(each, raw, x, False)

    def admit(self, run: Run, guidance: Guidance, table: Table) -> None:
        """Check that the coming rows of a call, as it was begun, can be guided so.

        Raises:
            TimonelError: the network is unknown, or the call has no unconditional part or no scale.
        """
        self.applied.check(guidance)
        scales = set(guidance.scales(table)) - {1.0}
        if not scales or guidance.bare:
            return
        if not networks(self.pipe):
            raise ModelError(
                f"timonel does not know the network of {self._name}, so it cannot guide it"
            )
        guided = batch_tree.guides(self.pipe)
        if guided is None:
            guided = self.usual is not None and self.usual > 1
        if not self.did & Did.GUIDED and not guided:
            raise ArgumentError(
                f"{self._name} computes no unconditional part in this call, so guidance cannot be"
                " switched on now: begin a call with guidance above 1, e.g. guidance=1.5;"
                " run.guidance = 1.0 switches it off and run.guidance = 4.0 on again at any step"
            )
        if scales != {None} and (self.usual is None or self.usual - 1 + self.shift == 0):
            raise ArgumentError(
                f"{self._name} has no guidance scale to change: leave the scale out of cfg(…)"
            )
        if self.first_row is not None:
            self._admit_parts(table, guidance, scales, self.first_row)

    def _admit_parts(
        self, table: Table, guidance: Guidance, scales: set[float | None], first: FirstRow
    ) -> None:
        """Raises `ArgumentError` where the network's parts do not let it be guided so."""
        each, raw, x, sequential = first
        perturbed = batch_tree.perturbed(self.pipe)
        if self.place is None and len(each) > 1:
            self._measure(each, raw, sequential)
        if len(each) == 3 and not perturbed and scales - {None, self.usual}:
            raise ArgumentError(
                f"{self._name} guides by two things at once; give one scale, when the call begins"
            )
        if len(each) > 1 and (guidance.method is not None or table.reads_uncond):
            self.applied.admit_parts(guidance, each, raw, x)
        self._admit_rest(guidance, first, perturbed)

    def _admit_rest(self, guidance: Guidance, first: FirstRow, perturbed: bool) -> None:
        """Raises `ArgumentError` where parts cannot be rescaled or forecast."""
        each, raw, _, sequential = first
        place = 0 if sequential else self._conditional(len(each))
        if guidance.rescale and each[place].shape != raw.shape:
            raise ArgumentError(CHANGED.format(pipe=self._name))
        summed = len(each) == 2 and not perturbed and batch_tree.is_sum(each, raw)
        if guidance.forecast > 1 and not summed:
            raise ArgumentError(NO_FORECAST.format(pipe=self._name, why=NO_SUM))

    def _measure(self, each: Sequence[Tensor], raw: Tensor, sequential: bool) -> None:
        """Find out which part is the conditional one, and how the pipeline means its scale."""
        assumed = 0 if sequential else self._conditional(len(each))
        weights = batch_tree.weights(each, raw)
        self.place = assumed
        if weights is None:
            return
        heaviest = max(range(len(weights)), key=weights.__getitem__)
        if heaviest != assumed and weights[heaviest] > 1:
            if self.did & (Did.SKIPPED | Did.SCALED | Did.WORSE) or sequential:
                raise ArgumentError(
                    f"{self._name} has its conditional part at {heaviest} of {len(weights)}, not at"
                    f" {assumed}: begin the guidance interval at the first step, without a scale"
                    " per step"
                )
            self.place = heaviest
        self.weight = weights[self.place]
        if len(weights) == 2 and self.usual is not None and not self.did & Did.SCALED:
            off = weights[heaviest] - self.usual
            self.shift = 1.0 if abs(off - 1) < abs(off) else 0.0

    def _rescaled(self, turn: Turn, raw: Tensor, phi: float) -> Tensor:
        """arXiv 2305.08891, eq. 15-16: the std of the conditional part, per sample."""
        each, together = turn.parts, turn.first is None or turn.first[1] > 1
        conditional = each[self._conditional(len(each)) if together else 0] if each else None
        if conditional is None or conditional.shape != raw.shape:
            raise ArgumentError(CHANGED.format(pipe=self._name))
        dims = tuple(range(1, raw.ndim))
        factor = stretch(conditional.std(dim=dims, keepdim=True), raw.std(dim=dims, keepdim=True))
        return raw * (1 - phi + phi * factor)

    def _off(self, run: Run) -> bool:
        """Whether the caller wants guidance off everywhere."""
        return set(run.guided.scales) == {1.0}

    def _needs_both(self, run: Run) -> bool:
        """Whether the caller wants the prompt to guide; terms alone need no second part."""
        guidance = run.guided.guidance
        return not self._off(run) and not (guidance is not None and guidance.bare)

    @property
    def _name(self) -> str:
        return type(self.pipe).__name__
