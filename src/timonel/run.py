"""A run: one journey from noise to sample, as a state machine.

What a run remembers: the sample, the base where the solver needs one, as many predictions as the
solver's history, and the initial sample; nothing that grows with the steps unless `keep` asks.

    for row in run.rows():                      # waits while paused, goes back when rewound, ends when stopped
        run.advance(network(run.latents, run.level.time))
    picture = run.result

`stop`, `pause`, `resume` and `rewind` may be called from any thread; they take effect at the next
row. Hooks are called after every completed grid step, in the thread that advances the run.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from os import PathLike
from typing import Any

from torch import Tensor

from . import prediction as predictions
from .errors import ArgumentError, HookError, RunError, TimonelError, whole
from .guidance import Guidance, Guided
from .hooks import Hook, adapt
from .kernel import combine
from .noise import Noise
from .process import At
from .program import Program, Shape, State
from .table import Table


class Run(Guided):
    """One journey. See the module's docstring; how it is guided is told by `guidance.Guided`.

    `table`: the compiled sampler. `prediction`: what the raw output means. `noise`: the noise source,
    needed by stochastic tables. `hooks`: called after each step. `shape`: changes the denoised
    prediction before it is used (clipping, thresholding). `keep`: how many step states stay in
    memory so that `rewind` is instant. `context`: what hooks may need of the model (decode, …).

    Raises `ArgumentError` when a stochastic table gets no noise, `PredictionError` as `Program.bind`.
    """

    def __init__(
        self,
        table: Table,
        prediction: str = "sample",
        *,
        noise: Noise | None = None,
        guidance: Guidance | None = None,
        hooks: Sequence[Hook | Callable[[Run], None]] = (),
        shape: Shape | None = None,
        keep: int = 0,
        context: Any = None,
    ) -> None:
        self.table, self.prediction, self.noise = table.detach(), predictions.check(prediction), noise
        self.shape, self.context = shape, context
        if self.table.stochastic and noise is None:
            raise ArgumentError(f"{table.solver!r} draws noise: give seeds, one per sample, e.g. seeds=[0]")
        self.program = Program.bind(self.table, self.prediction, shape)
        self.guidance = guidance
        self._levels = tuple(
            At(*v) for v in zip(table.alpha.tolist(), table.sigma.tolist(), table.time.tolist(), strict=True)
        )
        self.hooks = [adapt(hook) for hook in hooks]
        self._keep = whole("keep", keep, 0)
        self._kept: OrderedDict[int, State] = OrderedDict()
        self._start: State | None = None
        self._state: State | None = None
        self._last: tuple[Tensor, Tensor, int] | None = None  # x, raw and row of the newest call
        self._clean: Tensor | None = None  # the newest denoised prediction, when it was made a tensor
        self._change = threading.Condition(threading.RLock())
        self._status, self._paused, self._stopping = "new", False, False
        self._goto: int | None = None
        self._finished = False
        self._watched: tuple[Tensor, int, Tensor] | None = None  # x, its version and a copy, while edits are possible
        self.advances = 0  # rows computed so far, those computed again after a rewind included
        self.moved = False  # the state was replaced by a rewind since the last row
        self.reason = ""  # why the run was stopped

    # -- where it is -------------------------------------------------------------------------
    @property
    def status(self) -> str:
        """One of new, running, paused, stopped, done, failed."""
        return "paused" if self._status == "running" and self._paused else self._status

    @property
    def started(self) -> bool:
        return self._state is not None

    @property
    def _here(self) -> State:
        if self._state is None:
            raise RunError("the run has not started; call run.start(noise) first")
        return self._state

    @property
    def row(self) -> int:
        """The next row, 0 … nfe."""
        return self._state.row if self._state else 0

    @property
    def step(self) -> int:
        """Completed grid steps, 0 … steps."""
        return self.table.steps if self.row == self.table.nfe else self.table.step[self.row]

    @property
    def steps(self) -> int:
        return self.table.steps

    @property
    def level(self) -> At:
        """The level the sample is at now."""
        return self._levels[self.row]

    @property
    def called_at(self) -> At | None:
        """The level of the newest network call."""
        return None if self._last is None else self._levels[self._last[2]]

    @property
    def newest(self) -> tuple[Tensor, Tensor] | None:
        """The newest network call: its sample, and the raw output that its row was advanced with."""
        return None if self._last is None else self._last[:2]

    @property
    def latents(self) -> Tensor:
        """The sample at `level`. In a hook or while paused, change it in place or assign a tensor of its shape."""
        return self._here.x

    @latents.setter
    def latents(self, value: Tensor) -> None:
        with self._change:
            here = self._here
            if value.shape != here.x.shape:
                raise ArgumentError(f"latents must keep their shape {tuple(here.x.shape)}, got {tuple(value.shape)}")
            watched = self._watched is not None
            self._unwatch()
            if value is not here.x:
                self._state = self._edited(here.x, self._here._replace(x=value))
            if watched:
                self._watch()

    @property
    def denoised(self) -> Tensor:
        """The newest prediction of the clean sample, as the solver used it."""
        if self._clean is None:
            if self._last is None:
                raise RunError("there is no prediction yet; the network has not been called")
            x, raw, row = self._last
            self._clean = self.program.denoised(row, x, raw)
        return self._clean

    @property
    def result(self) -> Tensor:
        """The sample of a finished run; of an unfinished one the newest denoised prediction."""
        return self._here.x if self.row == self.table.nfe or self._last is None else self.denoised

    # -- going -------------------------------------------------------------------------------
    def start(self, x: Tensor) -> None:
        """Begin at the table's first level with the sample x (batch, …), unit normal for a full journey."""
        with self._change:
            if self.started:
                raise RunError("this run has already started; make a new Run, or rewind it with run.rewind(0)")
            x = x.clone() if self.hooks else x  # hooks may edit in place, and the tensor is the caller's
            self._begin(State(0, x, x if self.table.uses_base else None, (None,) * (self.table.history - 1)))
            self._start = self._here
        self._fire("on_start")
        with self._change:
            self._start = self._here.clone()

    def _begin(self, state: State) -> None:
        self._state, self._status = state, "running"

    def rows(self) -> Iterator[int]:
        """The rows to call the network for. Yields the same row again until `advance` is called."""
        while self.proceed():
            yield self.row
        self.finish()

    def proceed(self) -> bool:
        """Wait while paused, go back if a rewind was asked for; False once the run has ended."""
        with self._change:
            while True:
                self._unwatch()
                if self._goto is not None:  # also while paused, so that one can rewind, look, edit and go on
                    self._go_back(self._goto)
                    self._goto = None
                if not self._paused or self._stopping:
                    break
                self._watch()
                self._change.wait()
            if self._stopping and self._status == "running":
                self._status = "stopped"
            return self._status == "running"

    def advance(self, raw: Tensor) -> None:
        """Apply the next row to the network's raw output at `latents` (batch, …), then call hooks if a step ended."""
        if self._status not in ("running", "stopped"):
            raise RunError(f"cannot advance a run that is {self.status}")
        state = self._here
        if state.row == self.table.nfe:
            raise RunError("the run is complete; there is no row left to advance")
        if raw.shape != state.x.shape:
            raise ArgumentError(f"the network returned shape {tuple(raw.shape)} for a sample of {tuple(state.x.shape)}")
        new, clean = self.program.execute(state, raw, self.noise)
        new = new._replace(differences=self._remembered(state.differences))
        with self._change:
            self._state, self._clean, self._last = new, clean, (state.x, raw, state.row)
            self.advances, self.moved = self.advances + 1, False
            if new.row == self.table.nfe and self._goto is None:
                self._status = "done"
        if self.table.ends_step(state.row):
            self._fire("on_step")
            if self._keep and new.row < self.table.nfe:
                self._kept[self.step] = self._here.clone()
                while len(self._kept) > self._keep:
                    self._kept.popitem(last=False)

    def finish(self) -> None:
        """Call `on_end` hooks once; the loop that drives the run calls it when the rows are over."""
        with self._change:
            if self._status not in ("done", "stopped") or self._finished:
                return
            self._finished = True
        self._fire("on_end")

    def fail(self) -> None:
        """End a run whose network or hook raised: hooks get their `on_end`, and what they raise is dropped."""
        with self._change:
            if self._finished or self._status == "new":
                return
            self._status, self._finished = "failed", True
        for hook in self.hooks:
            with suppress(Exception):
                hook.on_end(self)

    # -- hooks -------------------------------------------------------------------------------
    def _fire(self, point: str) -> None:
        if self.hooks:
            self._watch()
        for hook in self.hooks:
            try:
                getattr(hook, point)(self)
            except TimonelError:
                self._status = "failed"
                raise
            except Exception as error:
                self._status = "failed"
                raise HookError(f"hook {hook.name!r} raised at step {self.step} of {self.steps}: {error!r}") from error
        with self._change:
            self._unwatch()

    # An edit of x must reach the base of solvers that correct it (UniPC), or the corrector undoes it.
    def _carry(self) -> float | None:
        return self.program.rows[self.row].carry if self.started and self.row < self.table.nfe else None

    def _watch(self) -> None:
        """From here to `_unwatch` x may be edited in place; remember it where that has to be carried on."""
        if self._carry() is not None:
            x = self._here.x
            self._watched = (x, -1 if x.is_inference() else x._version, x.clone())

    def _unwatch(self) -> None:
        if self._watched is None:
            return
        x, version, before = self._watched
        self._watched = None
        if self._here.x is x and (version < 0 or x._version != version):
            self._state = self._edited(before, self._here)

    def _edited(self, before: Tensor, state: State) -> State:
        """`state` with the edit x - before carried into its base."""
        carry = self._carry()
        if carry is None or state.base is None:
            return state
        return state._replace(base=combine([(1.0, state.base), (carry, state.x), (-carry, before)], state.x.dtype))

    # -- control, from any thread ------------------------------------------------------------
    def stop(self, reason: str = "") -> None:
        """End at the next row; `result` is then the newest denoised prediction."""
        with self._change:
            self._stopping, self.reason = True, reason or self.reason
            self._change.notify_all()

    def release(self) -> None:
        """Let go of the sample tensor that was handed out: the run continues with a copy of its own."""
        with self._change:
            watched = self._watched is not None
            self._unwatch()
            self._state = self._here._replace(x=self._here.x.clone())
            if watched:
                self._watch()

    @property
    def stopping(self) -> bool:
        """Whether the run ends at the next row."""
        return self._stopping

    def pause(self) -> None:
        """Wait before the next row until `resume` or `stop`."""
        with self._change:
            self._paused = True

    def resume(self) -> None:
        """Go on after `pause`; after `stop`, the loop that drives the run can be entered again."""
        with self._change:
            self._paused = False
            if self._status in ("running", "stopped"):
                self._status, self._stopping, self._finished = "running", False, False
            self._change.notify_all()

    def rewind(self, step: int) -> None:
        """Go back so that `step` steps are completed, at the next row.

        Continues from the kept state (`keep=`) at or nearest before `step`, else from the start;
        steps in between are computed again, with the same noise and the same hooks.
        Raises `RunError` for a step the run has not reached.
        """
        with self._change:
            if not isinstance(step, int) or not 0 <= step <= self.step:
                raise RunError(
                    f"cannot rewind to step {step!r}: the run has completed {self.step} of {self.steps} steps"
                )
            if self._start is None:
                raise RunError("the run has not started; there is nothing to rewind")
            self._goto, self._stopping = step, False
            if self._status in ("done", "stopped"):
                self._status, self._finished = "running", False
            self._change.notify_all()

    def _go_back(self, step: int) -> None:
        at = max((s for s in self._kept if s <= step), default=None)
        source = self._start if at is None else self._kept[at]
        assert source is not None
        self._begin(source.clone())
        for later in [s for s in self._kept if s > step]:
            del self._kept[later]
        self._last = self._clean = None
        self.moved = True

    def branch(self, *, hooks: Sequence[Hook | Callable[[Run], None]] = ()) -> Run:
        """A second run at the same point, with its own copy of the state; edits to one leave the other alone."""
        with self._change:
            self.latents = self._here.x  # an edit in place reaches the base first
            twin = Run(
                self.table, self.prediction, noise=self.noise, guidance=self.guidance, hooks=hooks,
                shape=self.shape, keep=self._keep, context=self.context,
            )  # fmt: skip
            twin._begin(self._here.clone())
            twin._start = self._start
            twin._kept = OrderedDict((k, s.clone()) for k, s in self._kept.items())
            twin._last, twin._clean = self._last, self._clean
            if self.row == self.table.nfe:
                twin._status = "done"
            return twin

    # -- saving ------------------------------------------------------------------------------
    def states(self) -> tuple[State, State]:
        """The start and the present state, as one consistent pair."""
        with self._change:
            if self._start is None:
                raise RunError("the run has not started; there is nothing to save")
            self.latents = self._here.x  # an edit in place reaches the base first
            return self._start, self._here

    def restore(self, start: State, here: State) -> None:
        """Continue from saved states instead of `start(x)`."""
        with self._change:
            self._start = start
            self._begin(here)
            if here.row == self.table.nfe:
                self._status = "done"

    def save(self, path: str | PathLike[str]) -> None:
        """Write the run to one safetensors file, atomically; see `saving.save`."""
        from .saving import save

        save(self, path)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, noise: Noise | None = None, shape: Shape | None = None,
        hooks: Sequence[Hook | Callable[[Run], None]] = (), keep: int = 0, context: Any = None, device: str = "cpu",
    ) -> Run:  # fmt: skip
        """A run that continues bit for bit from a saved file; see `saving.load`."""
        from .saving import load

        return load(path, noise=noise, shape=shape, hooks=hooks, keep=keep, context=context, device=device)
