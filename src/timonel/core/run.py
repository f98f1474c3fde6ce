"""A run: one journey from noise to sample, as a state machine.

What a run remembers: the sample, the base where the solver needs one, as many predictions as the
solver's history, and the initial sample; nothing that grows with the steps unless `keep` asks.

    for row in run.rows():                      # waits while paused, goes back when rewound, ends
    when stopped
        run.advance(network(run.latents, run.level.time))
    picture = run.result

`stop`, `pause`, `resume` and `rewind` may be called from any thread; they take effect at the next
row, or are refused, see `states`. Hooks are called after every completed grid step, in the thread
that advances the run. A copy of the run (`save`, `branch`) is one of between two rows, when the
hooks of the first are through.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..errors import ArgumentError, HookError, RunError, TimonelError, function, instance, whole
from . import border
from . import prediction as predictions
from .control import Border, Controlled, elsewhere
from .driver import UNKNOWN, Driver
from .guidance import Guidance, Guided, Guiding, settled
from .hook import Hook
from .noise import Noise
from .process import At
from .program import Program, Shape, State
from .states import REMEDIES
from .table import Table

if TYPE_CHECKING:
    from .sampler import Sampler


class Kept(NamedTuple):
    """A state that can be gone back to, with the picture it shows and what the network remembered
    at it.
    """

    state: State
    clean: Tensor | None
    called: int | None  # the row of the network call that `clean` comes from
    memory: Any


class Run(Guided, Controlled):
    """One journey. See the module's docstring; what one orders it is in `control.Controlled`, how
    it is guided in `guidance.Guided`.

    `table`: the compiled sampler. `prediction`: what the raw output means. `noise`: the noise
    source, needed by stochastic tables. `hooks`: called after each step. `shape`: changes the
    denoised prediction before it is used (clipping, thresholding). `keep`: how many step states
    stay in memory so that `rewind` is instant. `context`: what hooks may need of the model (decode,
    …). `sampler`: what the list of a call was made with, of which the table may be a part.
    `driver`: the loop that drives the run; with `lent` the hooks leave with it, see `disown`.

    Raises `ArgumentError` when a stochastic table gets no noise, `PredictionError` as
    `Program.bind`.
    """

    def __init__(
        self,
        table: Table,
        prediction: str = "sample",
        *,
        noise: Noise | None = None,
        guidance: Guidance | float | None = None,
        hooks: Sequence[Hook | Callable[[Run], None]] = (),
        shape: Shape | None = None,
        keep: int = 0,
        context: Any = None,
        sampler: Sampler | None = None,
        driver: Driver | None = None,
        lent: bool = False,
    ) -> None:
        instance("table", table, Table, "a timonel table, Sampler(…).compile(process)")
        for what, value in (("noise", noise), ("shape", shape)):
            if value is not None:
                example = (
                    "tm.SeededNoise([0])" if what == "noise" else "lambda clean: clean.clamp(-1, 1)"
                )
                function(what, value, example, 2 if what == "noise" else 1)
        self.table, self.prediction, self.noise = (
            table.detach(),
            predictions.check(prediction),
            noise,
        )
        self.sampler = sampler
        self.shape, self.context = shape, context
        if self.table.stochastic and noise is None:
            raise ArgumentError(
                f"{table.solver!r} draws noise: give seeds, one per sample, e.g. seeds=[0]"
            )
        self.program = Program.bind(self.table, self.prediction, shape)
        self._guiding = Guiding.of(settled(guidance), self.table, self.prediction)
        self._coming, self._difference, self.driver = None, None, driver or Driver()
        self._levels = tuple(
            At(*v)
            for v in zip(
                table.alpha.tolist(), table.sigma.tolist(), table.time.tolist(), strict=True
            )
        )
        self.hooks = border.hooks(hooks)
        self.lent: tuple[Hook, ...] = tuple(self.hooks) if lent else ()
        self._keep = whole("keep", keep, 0)
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._start: State | None = None
        self._state: State | None = None
        self._last: tuple[Tensor, Tensor, int] | None = None  # x, raw and row of the newest call
        self._clean: Tensor | None = (
            None  # the newest denoised prediction, when it was made a tensor
        )
        self._called: int | None = None  # the row of the newest call
        self.memory: Any = UNKNOWN  # what the network remembered where the run came to rest
        self._due: Any = UNKNOWN  # what it has to be given back before the next row
        self._change = threading.Condition(threading.RLock())
        self._rest()
        self.advances = 0  # rows computed so far, those computed again after a rewind included
        self.firing = False  # hooks are being called
        self.moved = False  # the state was replaced by a rewind since the last row

    # -- where it is -------------------------------------------------------------------------
    def __repr__(self) -> str:
        return f"<Run: {self.table.solver}, {self.status}, step {self.step} of {self.steps}>"

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
        return None if self._called is None else self._levels[self._called]

    @property
    def newest(self) -> tuple[Tensor, Tensor] | None:
        """The newest network call: its sample, and the raw output that its row was advanced with.

        None after a rewind, until the network is called again.
        """
        return None if self._last is None else self._last[:2]

    @property
    def history(self) -> tuple[Tensor | None, ...]:
        """Predictions of the rows before, newest first, in the table's basis; None where no later
        row reads one.
        """
        return self._here.history

    @property
    def denoised(self) -> Tensor:
        """The newest prediction of the clean sample, as the solver used it; after a rewind that of
        its step.
        """
        if self._clean is None:
            if self._last is None:
                raise RunError("there is no prediction yet; the network has not been called")
            x, raw, row = self._last
            self._clean = self.program.denoised(row, x, raw)
        return self._clean

    @property
    def result(self) -> Tensor:
        """The sample of a finished run; of an unfinished one the newest denoised prediction."""
        return self._here.x if self.row == self.table.nfe or self._called is None else self.denoised

    # -- going -------------------------------------------------------------------------------
    def start(self, x: Tensor, behind: Sequence[Tensor] = ()) -> None:
        """Begin at the table's first level with the sample x (batch, …), unit normal for a full
        journey.

        `behind`: predictions of steps that came before, newest first, in the table's basis.
        """
        border.tensor("the start", x)
        with self._change:
            self.check("start")
            x = (
                x.clone() if self.hooks else x
            )  # hooks may edit in place, and the tensor is the caller's
            past = (*behind, *[None] * self.table.history)[: self.table.history - 1]
            self._begin(State(0, x, x if self.program.uses_base else None, past))
            self._start, self._hooking = self._here, threading.get_ident()
        try:
            self.driver.looping(True)
            self._fire("on_start")
        finally:
            with self._change:
                self._start = self._here.clone()
                self._through()

    def _begin(self, state: State) -> None:
        self._state, self._status = state, "running"

    def rows(self) -> Iterator[int]:
        """The rows to call the network for. Yields the same row again until `advance` is called."""
        try:
            while True:
                while self.proceed():
                    yield self.row
                self.finish()
                if self._status != "running":  # or somebody went back at the very end
                    return
        finally:
            with self._change:
                self._loop = self._flight = None

    def proceed(self) -> bool:
        """Wait while paused, go back if a rewind was ordered; False once the run has ended."""
        with self._change:
            self._loop, self._flight = threading.get_ident(), None
            self._await()
            if self._stopping and self._status == "running":
                self._status = "stopped"
                self.memory = self.driver.remembered() if self._keep else UNKNOWN
            if self._status != "running":
                self._loop, self._paused = None, False
                return False
            self.driver.looping(True)
            if self._due is not UNKNOWN:
                self.driver.recall(self._due)
            self._flight = threading.get_ident()
            return True

    def _await(self) -> None:
        """Between two rows: what was ordered meanwhile is done, and what is paused waits."""
        while True:
            self._unwatch()
            self._settle()
            if (
                self._goto is not None
            ):  # also while paused, so that one can rewind, look, edit and go on
                self._go_back(self._goto)
                self._goto = None
            if self.driver.interrupted():
                self._stop("the pipeline was interrupted")
            waits = self._paused and self._status in ("running", "done")
            if not waits or self._stopping or self.step < self._until:
                return
            self._watch()
            self._waiting = True
            try:
                self._change.wait(self.driver.patience)
            finally:
                self._waiting = False

    def advance(self, raw: Tensor, noise: Noise | None = None) -> None:
        """Apply the next row to the network's raw output at `latents` (batch, …), then call hooks
        if a step ended.

        `noise`: of this row alone, in the place of the run's.
        """
        if self._status not in ("running", "stopped"):
            raise RunError(f"cannot advance a run that is {self.status}: {REMEDIES[self._status]}")
        state, ends = self._here, self.table.ends_step(self.row)
        if state.row == self.table.nfe:
            raise RunError("the run is complete; there is no row left to advance")
        border.output(raw, state.x)
        self._flight = threading.get_ident()
        new, clean = self.program.execute(state, raw, self.noise if noise is None else noise)
        new = new._replace(differences=self._remembered(state.differences))
        with self._change:
            if ends and self.hooks:
                self._border = Border(state, self._last, self._clean, self._called, UNKNOWN)
                self._hooking = threading.get_ident()
            self._state, self._clean, self._last = new, clean, (state.x, raw, state.row)
            self._called, self.memory, self._due, self._flight = state.row, UNKNOWN, UNKNOWN, None
            self._settle()
            self.advances, self.moved = self.advances + 1, False
            if new.row == self.table.nfe and self._goto is None:
                self._status = "done"
            self._change.notify_all()
        if ends:
            try:
                self._fire("on_step")
            finally:
                self._through()
            self._keep_state()

    def _through(self) -> None:
        """The hooks of a row are: its border is reached."""
        with self._change:
            self._border = self._hooking = None
            self._change.notify_all()

    def _keep_state(self) -> None:
        if not self._keep or self.row == self.table.nfe:
            return
        kept = Kept(self._here.clone(), self.denoised, self._called, self.driver.remembered())
        with self._change:  # other threads copy what is kept
            self._kept[self.step] = kept
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)

    def finish(self) -> None:
        """Call `on_end` hooks once; the loop that drives the run calls it when the rows are over."""
        with self._change:
            if self._status not in ("done", "stopped") or self._finished:
                return
            self._finished = True
        self._fire("on_end")
        self.driver.looping(False)

    def fail(self, error: BaseException | None = None) -> None:
        """End a run whose network or hook raised: hooks get their `on_end`, and what they raise is
        dropped.

        One that somebody interrupted (`KeyboardInterrupt`) is stopped; `resume` lets either of them
        go on.
        """
        with self._change:
            self._loop = self._flight = None
            self._through()
            self._settle()
            if self._finished or self._status == "new":
                return
            interrupted = isinstance(error, KeyboardInterrupt)
            self._status, self._finished = "stopped" if interrupted else "failed", True
            if not self.reason and error is not None:
                self.reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
        for hook in self.hooks:
            with suppress(Exception):
                hook.on_end(self)

    def leave(self) -> None:
        """The call that drove the run is over, and no loop of it will ask for a row: a run that
        goes on is stopped.
        """
        with self._change:
            self._loop = self._flight = None
            self._paused = False
            if self._status == "running" and self.started:
                self._status, self.reason = "stopped", self.reason or "the pipeline left its loop"
        self.finish()

    # -- hooks -------------------------------------------------------------------------------
    def _fire(self, point: str) -> None:
        if self.hooks:
            self._watch()
        self.firing = True
        try:
            for hook in self.hooks:
                self._call(hook, point)
        finally:
            self.firing = False
        with self._change:
            self._unwatch()

    def _call(self, hook: Hook, point: str) -> None:
        try:
            getattr(hook, point)(self)
        except TimonelError:
            self._status = "failed"
            raise
        except Exception as error:
            self._status = "failed"
            raise HookError(
                f"hook {hook.name!r} raised at step {self.step} of {self.steps}: {error!r}"
            ) from error

    # -- another call ------------------------------------------------------------------------
    def drive_by(self, driver: Driver) -> None:
        """Let a loop drive the run, in the place of the one before."""
        self.driver = driver

    def draw_from(self, noise: Noise | None) -> None:
        """Draw the noise of the rows to come from another source."""
        self.noise = noise

    def take_rewind(self) -> bool:
        """Whether a rewind has replaced the state since the last row, which is said once."""
        moved, self.moved = self.moved, False
        return moved

    def keep_for(self, longer: Table) -> None:
        """Keep the predictions that the rows of a longer table read, for a run of them may follow."""
        self.program = Program.bind(longer, self.prediction, self.shape)

    def adopt(self, fresh: Run) -> None:
        """Go on in the place of `fresh`, a run of the same table: with its hooks, guidance, driver
        and context.

        A run that was stopped, interrupted or has failed goes on; one that is done stays so. Raises
        `TimonelError`, and changes nothing, where `fresh` could not be guided so.
        """
        before, self.driver = self.driver, fresh.driver
        try:
            if self.row < self.table.nfe:
                self._guide(fresh.guidance)
        except TimonelError:
            self.driver = before
            raise
        self.disown()
        self.driver = fresh.driver
        self.hooks, self.lent = [*self.hooks, *fresh.hooks], tuple(fresh.hooks)
        self.context, self.noise = fresh.context, self.noise or fresh.noise
        self._due = None if self.memory is UNKNOWN else self.memory
        self._go_on()
        for hook in self.lent:
            self._call(hook, "on_resume")

    def disown(self) -> None:
        """The call that lent its hooks is over: whoever resumes the run brings hooks and a loop of
        their own.
        """
        self.driver = Driver()
        self.hooks, self.lent = (
            [hook for hook in self.hooks if all(hook is not other for other in self.lent)],
            (),
        )

    def _go_back(self, step: int) -> None:
        at = max((s for s in self._kept if s <= step), default=None)
        kept = None if at is None else self._kept[at]
        source = self._start if kept is None else kept.state
        assert source is not None
        self._begin(source.clone())
        for later in [s for s in self._kept if s > step]:
            del self._kept[later]
        self._last = None
        self._clean, self._called = (None, None) if kept is None else (kept.clean, kept.called)
        self._due = None if kept is None else kept.memory
        self.moved = True

    def branch(self, *, hooks: Sequence[Hook | Callable[[Run], None]] = ()) -> Run:
        """A second run at the same point, with its own copy of the state; edits to one leave the
        other alone.
        """
        with self._change:
            self.check("branch")
            here = self._between()
            twin = Run(
                self.table, self.prediction, noise=self.noise, hooks=hooks, shape=self.shape,
                keep=self._keep,
                context=self.context,
            )  # fmt: skip
            twin._guiding, twin.sampler = self._coming or self._guiding, self.sampler
            twin._begin(here.state.clone())
            twin._start = self._start
            twin._kept = OrderedDict(
                (k, s._replace(state=s.state.clone())) for k, s in self._kept.items()
            )
            twin._last, twin._clean, twin._called, twin.memory = (
                here.last,
                here.clean,
                here.called,
                here.memory,
            )
            if here.state.row == self.table.nfe:
                twin._status = "done"
            return twin

    def _between(self) -> Border:
        """Where the run stands between two rows. While hooks are called that is before their row,
        but for themselves.

        Raises `RunError` while those of the start are called.
        """
        if elsewhere(self._hooking):
            if self._border is None:
                raise RunError(
                    "the run is about to begin, its hooks are called: wait for its first step"
                )
            return self._border
        self.replace(self._here.x)  # an edit in place reaches the base first
        return Border(self._here, self._last, self._clean, self._called, self._resting())

    def _resting(self) -> Any:
        """What the network remembers at this state; `UNKNOWN` while a row is computed or after the
        run's end.
        """
        if self._flight is not None or self._status != "running":
            return self.memory
        return self.driver.remembered() if self._due is UNKNOWN else self._due

    # -- copies ------------------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        from .copying import packed

        return packed(self)

    def __setstate__(self, made: dict[str, Any]) -> None:
        from .copying import revive

        revive(self, made)

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        from .copying import deep

        return deep(self, memo)

    # -- saving ------------------------------------------------------------------------------
    def snapshot(self) -> tuple[State, Kept]:
        """The start, and a copy of the state between two rows with its prediction, as one
        consistent pair.
        """
        with self._change:
            self.check("save")
            here = self._between()
            clean = here.clean
            if clean is None and here.last is not None:
                x, raw, row = here.last
                clean = self.program.denoised(row, x, raw)
            assert self._start is not None
            return self._start, Kept(here.state.clone(), clean, here.called, here.memory)

    def restore(
        self,
        start: State,
        here: State,
        clean: Tensor | None = None,
        called: int | None = None,
        since: int = 0,
    ) -> None:
        """Continue from saved states instead of `start(x)`.

        `clean, called`: the newest denoised prediction and the row of its network call. `since`:
        the row from which the run has its guidance.
        """
        with self._change:
            self._start = start
            self._begin(here)
            self._clean, self._called = clean, called
            self._guiding = Guiding.of(self.guiding, self.table, self.prediction, since)
            if here.row == self.table.nfe:
                self._status = "done"

    def save(self, path: str | PathLike[str]) -> None:
        """Write the run to one safetensors file, atomically; see `saving.save`."""
        from .saving import save

        save(self, path)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, noise: Noise | None = None, shape: Shape | None = None,
        hooks: Sequence[Hook | Callable[[Run], None]] = (), keep: int = 0, context: Any = None,
        device: str = "cpu",
    ) -> Run:  # fmt: skip
        """A run that continues bit for bit from a saved file; see `saving.load`."""
        from .saving import load

        return load(
            cls,
            path,
            noise=noise,
            shape=shape,
            hooks=hooks,
            keep=keep,
            context=context,
            device=device,
        )
