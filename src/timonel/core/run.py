"""A run: one journey from noise to sample, as a state machine.

What a run remembers: the sample, the base where the solver needs one, as many predictions as the
solver's history, and the initial sample; nothing that grows with the steps unless `keep` asks.

    for row in run.rows():  # waits while paused, goes back when rewound, ends when stopped
        run.advance(network(run.latents, run.level.time))
    picture = run.result

`stop`, `pause`, `resume` and `rewind` may be called from any thread; they take effect at the next
row, or are refused, see `states`. Hooks are called after every completed grid step, in the thread
that advances the run. A copy of the run (`save`, `branch`) is one of between two rows, when the
hooks of the first are through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, HookError, RunError, TimonelError, function, instance
from . import border
from . import prediction as predictions
from .checkpoints import NetworkCall, Point
from .driver import UNKNOWN, Driver
from .guidance import CompiledGuidance, Guidance, assigned
from .hook import Hook
from .noise import Noise
from .process import Process
from .program import DenoisedFn, Program, State
from .sampler import Sampler
from .states import REMEDIES
from .stored import Stored
from .table import Table


class Run(Stored):
    """One journey from noise to sample.

    Args:
        table: the compiled sampler, K rows.
        prediction: what the network's raw output means, see `prediction.py`.
        noise: the noise source, needed by stochastic tables.
        guidance: `cfg(…)`, a scale, or None to leave it to who calls the network.
        hooks: called after each step.
        denoised_fn: changes the denoised prediction before it is used (clipping, thresholding).
        keep: how many step ends stay in memory so that `rewind` is instant.
        context: what hooks may need of the model (decode, …).
        sampler: what the levels of a call were compiled from, of which `table` may be a part.
        driver: what calls the network; a plain loop needs none.
        lent: whether the hooks belong to a call, and go when it is over.
        process: the model's noise process, which `tail` needs.

    Raises:
        ArgumentError: a stochastic table gets no noise, or an argument is none.
        PredictionError: the prediction cannot be read at a level of the table.
    """

    def __init__(
        self,
        table: Table,
        prediction: str = "sample",
        *,
        noise: Noise | None = None,
        guidance: Guidance | float | None = None,
        hooks: Sequence[Hook | Callable[[Run], None]] = (),
        denoised_fn: DenoisedFn | None = None,
        keep: int = 0,
        context: Any = None,
        sampler: Sampler | None = None,
        driver: Driver | None = None,
        lent: bool = False,
        process: Process | None = None,
    ) -> None:
        instance("table", table, Table, "a timonel table, Sampler(…).compile(process)")
        if denoised_fn is not None:
            function("denoised_fn", denoised_fn, "lambda clean: clean.clamp(-1, 1)", 1)
        for what, value, kind, example in (
            ("sampler", sampler, Sampler, "tm.Sampler('euler')"),
            ("driver", driver, Driver, "what calls the network, a Driver"),
            ("process", process, Process, "a timonel process such as tm.VP.from_schedule()"),
        ):
            if value is not None:
                instance(what, value, kind, example)
        instance("lent", lent, bool, "True or False")
        table, prediction = table.detach(), predictions.check(prediction)
        self.draw_from(noise)
        if table.stochastic and noise is None:
            raise ArgumentError(
                f"{table.solver!r} draws noise: give seeds, one per sample, e.g. seeds=[0]"
            )
        program = Program.bind(table, prediction, denoised_fn)
        guided = CompiledGuidance.of(assigned(guidance), table, prediction)
        super().__init__(table, program, guided, keep, driver or Driver())
        self.hooks = border.hooks(hooks)
        self.lent: tuple[Hook, ...] = tuple(self.hooks) if lent else ()
        self.sampler, self.context, self.process = sampler, context, process
        self._no_tails()
        self.advances = 0  # rows computed so far, those computed again after a rewind included
        self.firing = False  # hooks are being called

    def __repr__(self) -> str:
        return f"<Run: {self.table.solver}, {self.status}, step {self.step} of {self.steps}>"

    # -- its parts ---------------------------------------------------------------------------------
    def draw_from(self, noise: Noise | None) -> None:
        """Draw the noise of the rows to come from another source.

        Args:
            noise: `(row, like) -> tensor`, see `noise.py`.

        Raises:
            ArgumentError: it cannot be called so.
        """
        if noise is not None:
            function("noise", noise, "tm.SeededNoise([0])", 2)
        self.noise = noise

    def equip(self, hooks: Sequence[Any] | None = None, context: Any = None) -> None:
        """Take the hooks and the context of another caller.

        Args:
            hooks: called after each step from here on; None keeps those of before.
            context: what hooks may need of the model; None keeps that of before.

        Raises:
            ArgumentError: a hook is none.
        """
        if hooks is not None:
            self.hooks = border.hooks(hooks)
        self.context = self.context if context is None else context

    def keep_for(self, longer: Table) -> None:
        """Keep the predictions that the rows of a longer table read, for a run of them may follow.

        Args:
            longer: begins with the rows of this run's table.

        Raises:
            ArgumentError: it does not.
        """
        instance("longer", longer, Table, "a timonel table, Sampler(…).compile(process)")
        if longer.nfe < self.table.nfe:
            raise ArgumentError(f"{longer.nfe} rows are fewer than the run's {self.table.nfe}")
        self.program = Program.bind(longer, self.prediction, self.denoised_fn)

    # -- going -------------------------------------------------------------------------------------
    def start(self, x: Tensor, behind: Sequence[Tensor] = ()) -> None:
        """Begin at the table's first level.

        Args:
            x: (batch, …), the sample there, unit normal noise for a full journey.
            behind: predictions of steps that came before, newest first, in the table's basis.

        Raises:
            RunError: it has begun already.
        """
        border.tensor("the start", x)
        with self._change:
            self.check("start")
            x = x.clone() if self.hooks else x  # hooks may edit in place what is the caller's
            past = (*behind, *[None] * self.table.history)[: self.table.history - 1]
            unread = [None] * self.table.unconditional
            base = x if self.program.uses_base else None
            self._stand(Point(State(0, x, base, past, unconditional=tuple(unread))))
            self._checkpoints.start, self._hooking = self._here, threading.get_ident()
        try:
            self.driver.looping(True)
            self._fire("on_start")
        finally:
            with self._change:
                self._checkpoints.start = self._here.clone()
                self._through()

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

    def proceed(self, wait: bool = True) -> bool | None:
        """Go back if a rewind was ordered, and wait while paused.

        Args:
            wait: False does not wait.

        Returns:
            Whether there is a row to compute: False once the run has ended, None while it is paused
            and was not waited for.
        """
        with self._change:
            self._loop, self._flight = threading.get_ident(), None
            if not self._await(wait):
                return None
            if self._stopping and self._status == "running":
                if self._checkpoints.keep:
                    self._at = self._point._replace(memory=self._resting())
                self._status = "stopped"
            if self._status != "running":
                self._loop, self._paused = None, False
                return False
            if self.driver.outer:
                self.driver.looping(True)
            if self.memory is not UNKNOWN:
                self.driver.recall(self.memory)
            self._flight = threading.get_ident()
            return True

    def advance(self, raw: Tensor, noise: Noise | None = None) -> None:
        """Apply the next row, then call the hooks if a step ended.

        Args:
            raw: (batch, …), the network's output at `latents`.
            noise: the source of this row alone, in the place of the run's.

        Raises:
            RunError: the run is complete, or cannot be advanced in its state.
            ArgumentError: `raw` is no tensor like the sample.
        """
        if self._status not in ("running", "stopped"):
            raise RunError(f"cannot advance a run that is {self.status}: {REMEDIES[self._status]}")
        before, state = self._point, self._here
        if state.row == self.table.nfe:
            raise RunError("the run is complete; there is no row left to advance")
        x, ends = state.x, self.table.ends[state.row]
        like = x.dtype, x.device, x.shape
        if type(raw) is not Tensor or (raw.dtype, raw.device, raw.shape) != like:
            border.output(raw, x)
        self._flight = threading.get_ident()
        aside, source = self._take_aside(state), self.noise if noise is None else noise
        new, clean = self.program.execute(state, raw, source, aside.uncond)
        new = self._with(aside, new)
        with self._change:
            if ends and self.hooks:
                self._before, self._hooking = before, threading.get_ident()
            drew = self.program.drawing(state)
            self._at, self._flight = Point(new, NetworkCall(state.row, x, raw, clean, drew)), None
            self._settle()
            self.advances, self._moved = self.advances + 1, False
            if new.row == self.table.nfe and self._goto is None:
                self._status = "done"
            self._change.notify_all()
        if ends:
            try:
                self._fire("on_step")
            finally:
                self._through()
            self._keep_point()

    def _through(self) -> None:
        """The hooks of a row are over: the run stands between two rows."""
        with self._change:
            self._before = self._hooking = None
            self._change.notify_all()

    def _keep_point(self) -> None:
        """Keep the end of a step, so that a rewind is instant."""
        call = self._call
        if not self._checkpoints.keep or self.row == self.table.nfe or call is None:
            return
        seen = NetworkCall(call.row, call.x, clean=self.denoised)
        point = Point(self._here.clone(), seen, self.driver.remembered())
        with self._change:  # other threads copy what is kept
            self._checkpoints.add(self.step, point)

    def finish(self) -> None:
        """Call `on_end` hooks once; the loop that drives the run does so when the rows are over."""
        with self._change:
            if self._status not in ("done", "stopped") or self._finished:
                return
            self._finished = True
        self._fire("on_end")
        self.driver.looping(False)

    def fail(self, error: BaseException | None = None) -> None:
        """End a run whose network or hook raised.

        Hooks get their `on_end`, and what they raise is dropped. A run that somebody interrupted
        (`KeyboardInterrupt`) is stopped; `resume` lets either of them go on.

        Args:
            error: what was raised; its text becomes `reason`.
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
        """Stop a run that goes on, because the call that drove it is over."""
        with self._change:
            self._loop = self._flight = None
            self._paused = False
            if self._status == "running" and self.started:
                self._status, self.reason = "stopped", self.reason or "the pipeline left its loop"
        self.finish()

    # -- hooks -------------------------------------------------------------------------------------
    def _fire(self, name: str) -> None:
        """Call a method of every hook."""
        if self.hooks:
            self._watch()
        self.firing = True
        try:
            for hook in self.hooks:
                self._call_hook(hook, name)
        finally:
            self.firing = False
        if self._watched is not None:
            with self._change:
                self._unwatch()

    def _call_hook(self, hook: Hook, name: str) -> None:
        try:
            getattr(hook, name)(self)
        except TimonelError:
            self._status = "failed"
            raise
        except Exception as error:
            self._status = "failed"
            raise HookError(
                f"hook {hook.name!r} raised at step {self.step} of {self.steps}: {error!r}"
            ) from error

    # -- another call ------------------------------------------------------------------------------
    def drive_by(self, driver: Driver) -> None:
        """Let another loop call the network.

        Args:
            driver: what the run has to know of it.

        Raises:
            ArgumentError: it is no `Driver`.
        """
        self.driver = instance("driver", driver, Driver, "what calls the network, a Driver")

    def adopt(self, fresh: Run) -> None:
        """Go on in the place of another run: with its hooks, guidance, driver and context.

        A run that was stopped, interrupted or has failed goes on; one that is done stays so.

        Args:
            fresh: a run of the same table that has not begun.

        Raises:
            TimonelError: it could not be guided so; nothing is changed.
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
        self.process = fresh.process or self.process
        self._at = self._point._replace(memory=None if self.memory is UNKNOWN else self.memory)
        self._take_back()
        for hook in self.lent:
            self._call_hook(hook, "on_resume")

    def disown(self) -> None:
        """The call that lent its hooks is over: whoever resumes the run brings hooks and a loop."""
        self.driver = Driver()
        lent = {id(hook) for hook in self.lent}
        self.hooks, self.lent = [hook for hook in self.hooks if id(hook) not in lent], ()

    def branch(self, *, hooks: Sequence[Hook | Callable[[Run], None]] = ()) -> Run:
        """A second run at the same point; edits to one leave the other alone.

        Args:
            hooks: of the second run.

        Raises:
            RunError: the run has not begun.
        """
        with self._change:
            self.check("branch")
            here = self._between()
            twin = Run(
                self.table, self.prediction, noise=self.noise, hooks=hooks, sampler=self.sampler,
                denoised_fn=self.denoised_fn, context=self.context, process=self.process,
            )  # fmt: skip
            twin._copy_tails(self)
            twin._checkpoints = self._checkpoints.copy()
            twin._stand_at(here.clone())
            twin._apply_tail()
            return twin

    # -- copies ------------------------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        from .copying import packed

        return packed(self)

    def __setstate__(self, fields: dict[str, Any]) -> None:
        from .copying import revive

        revive(self, fields)

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        from .copying import deep

        return deep(self, memo)  # type: ignore[no-any-return]
