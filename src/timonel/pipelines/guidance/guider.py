"""The gate of pipelines with a guider, whose parts come by name and not as pieces of a batch.

In diffusers a guider (`diffusers.guiders`) says which parts of a turn the network is called for,
conditional and unconditional ones among them, and combines what it returns, by a formula that is
the guider's: plain, projected (APG), CFG-Zero*, … For a call of the helm a stand-in takes its
place: a copy, of a class that is derived from the guider's, so that the guider which is set never
changes. With every turn of the loop the stand-in is set to the row of the run: to its step and
scale, or off where the row is not guided, and then the network is called for the conditional part
alone. A forecast unconditional part goes into the formula as if it had been computed.

So `guidance=` says the scale and the interval, and the guider that is set keeps its formula. Where
the call says nothing the guider is as it was set, with the steps of the run for calls of the loop.
"""

from __future__ import annotations

import copy
import functools
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.guidance import Guidance, rescaled
from ...core.run import Run
from ...core.table import Table
from ...errors import ArgumentError, ModelError
from .. import modular
from ..session import Session
from . import batch_tree
from .called import Called, networks
from .gate import NO_FORECAST, NO_PART, Gate
from .turn import Did, Turn

OFFERED = 2.0  # the scale of a guider before the loop of a call that begins without guidance
PARTS = ["pred_cond", "pred_uncond"]  # of every guider that can be forecast
NO_SCALE = "{guider} has no guidance scale: leave the scale out of cfg(…), or set it on the guider"


class Memory:
    """What a guider remembers of earlier rows; it stays with the guider, as a cache does."""

    def __init__(self) -> None:
        self._state_cache: dict[str, Any] = {}

    def reset(self) -> None:
        """Nothing is remembered."""
        self._state_cache.clear()


_MEMORIES: weakref.WeakKeyDictionary[Any, Memory] = weakref.WeakKeyDictionary()


def memories(pipe: Any) -> list[Memory]:
    """What the guiders of a pipeline remember, of those that do."""
    each = modular.guiders(pipe).values()
    return [_memory(g) for g in each if getattr(g, "adaptive_projected_guidance_momentum", None)]


def _memory(guider: Any) -> Memory:
    """The memory of a guider or of its stand-in."""
    return _MEMORIES.setdefault(getattr(guider, "_timonel_original", guider), Memory())


class Guiding:
    """What a stand-in adds to the class of its guider.

    `_timonel_gate`: of the call. `_timonel_original`: the guider that is set. `_timonel_set`: its
    scale, whether it is on, its start and stop. `_timonel_barred`: the pipeline has switched it
    off, for a distilled network. `_timonel_most`: the most parts of a row. `_timonel_inside`: the
    guider itself is at work. Names are long so that no guider has them.
    """

    if TYPE_CHECKING:
        _timonel_gate: GuiderGate
        _timonel_original: Any
        _timonel_set: tuple[Any, bool, float, float]
        _timonel_barred: bool
        _timonel_most: int
        _timonel_inside: bool
        _identifier_key: str
        _input_predictions: list[str]
        _enabled: bool
        guidance_scale: float

    @property
    def momentum_buffer(self) -> Any:
        """The running average of an adaptive projected guider, which a rewind puts back."""
        return _memory(self)._state_cache.get("momentum")

    @momentum_buffer.setter
    def momentum_buffer(self, value: Any) -> None:
        _memory(self)._state_cache["momentum"] = value

    def enable(self) -> None:
        """The pipeline lets the guider guide; a row may still go without."""
        self._timonel_barred, self._enabled = False, True

    def disable(self) -> None:
        """The pipeline lets the guider not guide."""
        self._timonel_barred, self._enabled = True, False

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """As the guider, with the run's row in the place of the turn of the loop."""
        run, idle = self._timonel_gate.coming()
        which: Any = (step, num_inference_steps) if run is None else (run.step, run.steps)
        if idle:
            which = (None, None)  # nothing is guided or remembered, for the step advances nothing
        base: Any = super()
        base.set_state(step=which[0], num_inference_steps=which[1], timestep=timestep)
        self._timonel_turn(None if run is None else run.scale, idle)

    def _timonel_turn(self, scale: float | None, idle: bool) -> None:
        """Guide the coming row with a scale: 1 is not at all, None as the guider is set."""
        usual, enabled, start, stop = self._timonel_set
        guided = scale not in (None, 1.0)
        if hasattr(self, "guidance_scale"):
            # of a method at 1, or of a solver that reads both parts
            both = scale is not None and math.isclose(scale, 1.0)
            chosen = OFFERED if both else scale
            self.guidance_scale = chosen if guided else usual  # type: ignore[assignment]
        barred = self._timonel_barred or scale == 1.0 or idle
        self._enabled = (enabled or guided) and not barred
        self._start, self._stop = (0.0, 1.0) if guided else (start, stop)

    @property
    def num_conditions(self) -> int:
        """How many parts a pipeline has to have inputs for: as many as any row of the call."""
        base: Any = super()
        now: int = base.num_conditions
        exact = self._timonel_inside or self._timonel_barred
        return now if exact else max(now, self._timonel_most)

    def prepare_inputs(self, data: Any) -> list[Any]:
        """The parts that the network is called for."""
        base: Any = super()
        with self._timonel_row():
            return self._timonel_called(base.prepare_inputs(data))

    @contextmanager
    def _timonel_row(self) -> Iterator[None]:
        """The guider itself is at work, on the parts of this row."""
        self._timonel_inside = True
        try:
            yield
        finally:
            self._timonel_inside = False

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """The parts that the network is called for, with fields by name."""
        base: Any = super()
        with self._timonel_row():
            return self._timonel_called(base.prepare_inputs_from_block_state(data, input_fields))

    def _timonel_called(self, batches: list[Any]) -> list[Any]:
        if not self._timonel_gate.forecasts(self, batches):
            return batches
        return [one for one in batches if self._timonel_part(one) == PARTS[0]]

    def _timonel_part(self, batch: Any) -> str:
        return str(getattr(batch, self._identifier_key))

    def __call__(self, data: list[Any]) -> Any:
        """What the parts are combined to."""
        base: Any = super()
        parts = {self._timonel_part(one): one.noise_pred for one in data}
        delta = self._timonel_gate.delta(self)
        if delta is not None and PARTS[1] not in parts:
            other = copy.copy(data[0])
            setattr(other, self._identifier_key, PARTS[1])
            other.noise_pred = parts[PARTS[1]] = parts[PARTS[0]] - delta
            data = [*data, other]
        with self._timonel_row():
            combined = base.__call__(data)
        return self._timonel_gate.combine(self, parts, combined)

    def __reduce__(self) -> Any:
        return copy.copy, (self._timonel_original,)  # of a copy: the guider itself


@functools.lru_cache(maxsize=32)
def _class(cls: Any) -> Any:
    """The class of the stand-ins of guiders of `cls`."""
    members = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return type(cls.__name__, (Guiding, cls), members)


class GuiderGate(Gate):
    """The gate of one call of a pipeline with guiders.

    Args:
        pipe: the pipeline.
        session: of the call.
        samples: how many the call makes, where known.
        usual: the scale that the guider guides with, whoever chose it.

    Attributes:
        parts_in: the parts of the pipeline that are other ones for the time of the call.
    """

    def __init__(
        self, pipe: Any, session: Session, samples: int | None, usual: float | None = None
    ) -> None:
        super().__init__(pipe, session, samples, usual)
        self.parts_in = {name: self._stand_in(g) for name, g in modular.guiders(pipe).items()}
        self.offered = any(one.num_conditions > 1 for one in self.parts_in.values())

    def _stand_in(self, guider: Any) -> Any:
        """A copy of a guider that has not begun, at the scale of the call."""
        kind: Any = type(guider)  # as what it is, mypy takes no class for hashable
        stand_in = _class(kind).__new__(_class(kind))
        vars(stand_in).update(vars(guider))
        vars(stand_in).pop("set_state", None)  # of `Counted`, whose run never ended
        vars(stand_in).pop("momentum_buffer", None)
        scale, usual = self.session.request.scale, getattr(guider, "guidance_scale", None)
        stand_in._timonel_gate, stand_in._timonel_original = self, guider
        stand_in._timonel_set = (
            usual if scale is None else scale, guider._enabled, guider._start, guider._stop,
        )  # fmt: skip
        stand_in._timonel_barred = stand_in._timonel_inside = False
        stand_in._timonel_most = 0
        stand_in._step = stand_in._num_inference_steps = stand_in._timestep = None
        # the unconditional prompt is encoded also where no row is guided: rows may be guided later,
        # and the blocks of some pipelines fail without it
        stand_in._timonel_turn(
            scale if scale != 1.0 or not guider._enabled else OFFERED, idle=False
        )
        stand_in._timonel_most = stand_in.num_conditions
        return stand_in

    # -- the row that comes ------------------------------------------------------------------------
    def coming(self) -> tuple[Run | None, bool]:
        """The run of the coming network call, and whether the turn is an idle one."""
        session = self.session
        return (session.coming() if session.opens else session.run), session.phase.idle

    def forecasts(self, guider: Guiding, batches: list[Any]) -> bool:
        """Whether the unconditional part of a row is forecast.

        Raises:
            ArgumentError: the guider has other parts.
        """
        run, idle = self.coming()
        if run is None or idle or not run.remembers or run.scale == 1.0 or len(batches) < 2:
            return False
        self._two_parts(guider)
        return run.forecasting

    def _two_parts(self, guider: Guiding) -> None:
        """Raises `ArgumentError` where a guider may have other parts than the usual two."""
        if guider._input_predictions != PARTS:
            why = f"guides by up to {len(guider._input_predictions)} parts"
            raise ArgumentError(NO_FORECAST.format(pipe=self._name, why=why))

    def delta(self, guider: Guiding) -> Tensor | None:
        """The forecast of conditional minus unconditional part, where the row has one."""
        run, idle = self.coming()
        return None if run is None or idle or not guider._enabled else run.forecast

    def combine(self, guider: Guiding, parts: dict[str, Tensor], combined: Any) -> Any:
        """What the parts of a row become: the one place where a formula may replace the guider's.

        Args:
            guider: that has combined them, at the scale of the row.
            parts: what the network returned, by the guider's names.
            combined: what it combined them to, a `GuiderOutput`.

        Returns:
            The same, or changed.
        """
        run, idle = self.coming()
        if run is None or run.guided.guidance is None or idle:
            return combined
        if self.turn is not None:
            self.turn.parts = list(parts.values())
        if len(parts) < 2:
            return combined
        self.did |= Did.GUIDED
        if self.applied.wants(run):
            self._for_method(run, parts, combined)
        else:
            self._by_guider(run, parts, combined)
        return combined

    def _for_method(self, run: Run, parts: dict[str, Tensor], combined: Any) -> None:
        """Leave a sum, by which `applied` knows the parts when the pipeline steps with them."""
        self.applied.admit(run, len(parts))
        if run.guided.method is not None or run.table.reads_uncond:
            cond, uncond = (parts[name] for name in PARTS)
            combined.pred = torch.lerp(uncond, cond, self._weight(run))

    def _by_guider(self, run: Run, parts: dict[str, Tensor], combined: Any) -> None:
        """Keep what the guider has combined, rescaled, and what a forecast reads."""
        if run.remembers and not run.forecasting and PARTS[1] in parts:
            run.remember(parts[PARTS[0]] - parts[PARTS[1]])
        if run.guided.rescale and run.scale != 1.0:
            combined.pred = rescaled(combined.pred, parts[PARTS[0]], run.guided.rescale)

    # -- what the gate of batches does by looking at them ------------------------------------------
    def _predict(self, turn: Turn, run: Run, called: Called) -> Any:
        output = called.compute()
        if turn.first is None:  # the conditional part comes first
            sample = called.sample
            turn.first = (sample, 1, output)
            shape = batch_tree.Shape(1, len(sample), isinstance(sample, list))
            if self.applied.evaluate(turn, run, called, shape, 0):
                self.did |= Did.WORSE
        return output

    def _difference(self, turn: Turn, raw: Tensor) -> Tensor:
        return turn.parts[0] - turn.parts[1]

    def _help(self, run: Run, called: Called) -> Any:
        return called.compute()

    def combined(self, raw: Tensor, x: Tensor) -> Tensor:
        """What the row is advanced with: what the guider has combined, or a method, and terms.

        Args:
            raw: (batch, …), what the pipeline made of what the guider has combined.
            x: the sample that it steps.

        Raises:
            ArgumentError: the row is to be guided, and the guider has one part.
        """
        run = self.session.run
        if run is None or run.guided.guidance is None:
            return raw
        self._check_parts(run)
        return super().combined(raw, x) if self.applied.wants(run) else raw

    def _check_parts(self, run: Run) -> None:
        """Raises `ArgumentError` where a row is to be guided, and the guider has one part."""
        if run.scale == 1.0 or not self._needs_both(run):
            return
        # at the scale that it is set to a guider has also the interval that it is set to
        if not self.did & Did.GUIDED and (run.scale is not None or not self.offered):
            raise ArgumentError(NO_PART.format(pipe=self._name))

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
        if not self.offered:
            raise ArgumentError(
                f"{self._name} computes no unconditional part in this call, so guidance cannot be"
                " switched on now: begin a call with guidance above 1, e.g. guidance=1.5;"
                " run.guidance = 1.0 switches it off and run.guidance = 4.0 on again at any step"
            )
        for guider in self.parts_in.values():
            if scales != {None} and not hasattr(guider, "guidance_scale"):
                raise ArgumentError(NO_SCALE.format(guider=type(guider).__name__))
            if guidance.forecast > 1:
                self._two_parts(guider)


def gate_of(pipe: Any) -> type[Gate]:
    """The class of the gate for a pipeline."""
    return GuiderGate if modular.guiders(pipe) else Gate
