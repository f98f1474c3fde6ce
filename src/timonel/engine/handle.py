"""A call in a background thread, with what one does to it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..core.guidance import Guidance
from ..core.hook import Hook
from ..core.noise import Noise
from ..core.process import Process
from ..core.program import DenoisedFn
from ..core.run import Run
from ..core.sampler import Sampler
from ..core.states import GOES, allowed, check
from ..core.tailed import Tail
from ..errors import RunError, flag, function, instance
from .loop import NativeCall
from .network import Denoiser

if TYPE_CHECKING:
    from PIL import Image

Pictures = Callable[[Run, bool, bool], "list[Image.Image]"]  # of run, decode, going


class PreparedCall(Protocol):
    """A call that is checked and claimed."""

    def __call__(self) -> Any:
        """Make the call, and return its result."""

    def cancel(self) -> None:
        """Let go of what it has claimed."""


class Begun(Hook):
    """Gives the run to a handle as soon as it exists. It has to be the first hook.

    Args:
        begun: `handle.begin`.
        look: called after every step, in the thread of the call.
    """

    def __init__(
        self, begun: Callable[[Run], None], look: Callable[[Run], None] | None = None
    ) -> None:
        self._begun, self._look = begun, look

    def on_start(self, run: Run) -> None:
        """The run has begun."""
        self._begun(run)

    def on_resume(self, run: Run) -> None:
        """The run goes on."""
        self._begun(run)

    def on_step(self, run: Run) -> None:
        """Let the call be looked at."""
        if self._look is not None:
            self._look(run)


class Handle:
    """A call that goes on in the background. Make one with `helm.start(…)` or `tm.start(…)`.

        handle = helm.start("red apple", steps=20, keep=20)
        handle.pause(); handle.preview()[0].show(); handle.rewind(8); handle.resume()
        handle.run.guidance = 9.0
        picture = handle.result().images[0]

    `pause`, `stop` and `resume` may come before the first step. Once the loop is over, while a
    pipeline decodes and afterwards, orders are refused with `RunError`, see `states`. The thread is
    a daemon.

    Args:
        pictures: makes pictures of a run; whether decoded, and whether the call goes on.
        run: of the call, where it has begun already; else `begin` says it.
        complete: the run has no row to compute, and is only decoded.
    """

    def __init__(
        self, pictures: Pictures, *, run: Run | None = None, complete: bool = False
    ) -> None:
        self._run = run
        self._early: list[Callable[[Run], None]] = []
        self._change = threading.Condition()
        self._outcome: tuple[Any, BaseException | None] | None = None  # once the call has ended
        self._complete, self._pictures = complete, pictures

    # -- for what makes the call -----------------------------------------------------------------
    def begin(self, run: Run) -> None:
        """The run exists: it gets the orders that came earlier."""
        with self._change:
            self._run = run
            for order in self._early:
                order(run)
            self._early.clear()
            self._change.notify_all()

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """The call has ended.

        Args:
            result: what `result()` returns.
            error: what it raises in the place of a result.
        """
        with self._change:
            self._outcome = result, error
            self._change.notify_all()

    def _order(self, name: str, order: Callable[[Run], Any]) -> Any:
        """Do an order, or let it wait for the run to begin.

        Raises `RunError` where the state refuses it, see `states`.
        """
        with self._change:
            if self._run is None:
                if not self.done and not allowed(name, "new"):
                    return order(self.run)  # which says that there is none
                check(name, self._phase, self.status)
                return self._early.append(order)
            with self._run.holding():
                check(name, self._phase, self.status)
                return order(self._run)

    @property
    def _phase(self) -> str:
        """The state that `states.ORDERS` is about.

        That of the loop of this call: nobody else drives its run.
        """
        if self.done:
            return "ended"
        if self._run is None:
            return "finishing" if self._complete else "new"
        phase = self._run.phase
        return phase if phase in ("new", *GOES) else "finishing"

    # -- where it is -----------------------------------------------------------------------------
    def __repr__(self) -> str:
        steps = "" if self._run is None else f", step {self.step} of {self._run.steps}"
        return f"<Handle: {self.status}{steps}>"

    @property
    def done(self) -> bool:
        """Whether the call has ended, by whatever way."""
        return self._outcome is not None

    @property
    def status(self) -> str:
        """One of starting, running, paused, finishing (decoding), done, stopped, failed."""
        if self._outcome is not None:
            failed = self._outcome[1] is not None or self._run is None
            return "failed" if failed or self._run is None else self._run.status
        if self._run is None:
            return "starting"
        return "failed" if self._run.status == "failed" else self._phase

    @property
    def run(self) -> Run:
        """The run. Raises `RunError` before the first network call."""
        if self._run is None:
            raise RunError("the call has no run yet; wait a moment, e.g. with handle.wait()")
        return self._run

    @property
    def step(self) -> int:
        """Completed steps."""
        return 0 if self._run is None else self._run.step

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is a run, or the call has failed.

        Args:
            timeout: seconds; None: as long as it takes.

        Returns:
            False where the time was not enough.
        """
        with self._change:
            return self._change.wait_for(lambda: self._run is not None or self.done, timeout)

    # -- control -------------------------------------------------------------------------------
    def pause(self) -> None:
        """Wait before the next step."""
        self._order("pause", Run.pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._order("resume", Run.resume)

    def stop(self, reason: str = "") -> None:
        """End at the next step; the newest denoised prediction becomes the result, decoded."""
        instance("reason", reason, str, "a sentence")
        self._order("stop", lambda run: run.stop(reason))

    def rewind(self, step: int) -> None:
        """Go back so that `step` steps are completed.

        Raises:
            RunError: the step was not reached, or the loop is over.
        """
        self._order("rewind", lambda run: run.rewind(step))

    def tail(
        self,
        sampler: Sampler | str | None = None,
        *,
        steps: int | None = None,
        grid: str | None = None,
        sigmas: Sequence[float] | None = None,
        guidance: Guidance | float | Sequence[float] | None = None,
    ) -> Tail:
        """Go on with another sampler, number of steps, or levels; see `Run.tail`.

        Args:
            sampler: of the steps to come.
            steps: how many are to come.
            grid: the name of their levels.
            sigmas: the levels themselves.
            guidance: of the steps to come.

        Returns:
            What was done.

        Raises:
            TimonelError: it cannot be; the run goes on as it was.
        """
        done: Tail = self._order(
            "tail",
            lambda run: run.tail(sampler, steps=steps, grid=grid, sigmas=sigmas, guidance=guidance),
        )
        return done

    @property
    def guidance(self) -> Guidance | None:
        """How the run is guided; assign `cfg(…)`, a scale or None to change it, as `run.guidance`.

        Raises:
            TimonelError: at the assignment, and the call goes on as it was.
        """
        return self.run.guidance

    @guidance.setter
    def guidance(self, value: Guidance | float | Sequence[float] | None) -> None:
        self._order("guidance", lambda run: setattr(run, "guidance", value))

    def prompt(self, prompts: Any = None, *, negative: Any = None) -> None:
        """Let another prompt hold for every row that is computed from here on.

        Args:
            prompts: a prompt, a mixture or a schedule, see `timonel.prompts`; None leaves it.
            negative: likewise the negative prompt.

        Raises:
            TimonelError: it is refused, and the call goes on as it was.
        """
        with self._change:
            check("prompt", self._phase, self.status)
        # not under the lock: the loop, which it waits for, needs it
        self.run.prompt(prompts, negative=negative)

    def branch(self, *, hooks: Sequence[Any] = ()) -> Run:
        """A second run at the same point.

        It goes on with `helm(…, resume=branch)` once this call has ended, or with `tm.iterate`.

        Args:
            hooks: of the second run.
        """
        twin: Run = self._order("branch", lambda run: run.branch(hooks=hooks))
        return twin

    def preview(self, *, decode: bool = False) -> list[Image.Image]:
        """Pictures of the newest denoised prediction, one per sample.

        After a rewind they are those of the step that the run is at; at step 0 there is only its
        noise. With `decode` while the pipeline encodes or decodes itself, they wait for its end.

        Args:
            decode: through the pipeline's autoencoder; else linear and small.

        Raises:
            RunError: there is no run yet, or no preview is possible, with the reason; the run
                goes on.
        """
        return self._pictures(self.run, decode, not self.done)

    def result(self, timeout: float | None = None) -> Any:
        """The result of the call, once it is there; may be called repeatedly.

        The call outlives an interrupted wait.

        Args:
            timeout: seconds; None: as long as it takes.

        Raises:
            TimeoutError: the call has not ended.
            BaseException: what the call raised.
        """
        # not the thread's join, which takes an interrupted wait for the thread's end
        with self._change:
            self._change.wait_for(lambda: self.done, timeout)
        if self._outcome is None:
            raise TimeoutError(
                f"the call has not ended after {timeout} s: it is {self.status} at step {self.step}"
            )
        result, error = self._outcome
        if error is not None:
            raise error
        return result


def in_background(
    prepare: Callable[[Hook], PreparedCall],
    pictures: Pictures,
    *,
    run: Run | None = None,
    look: Callable[[Run], None] | None = None,
    complete: bool = False,
) -> Handle:
    """Make a call in a thread of its own.

    Args:
        prepare: the call with a hook, which has to be the first; what it raises is raised here.
        pictures: see `Handle`.
        run: see `Handle`.
        look: called after every step, in the thread of the call.
        complete: see `Handle`.

    Returns:
        The handle of the call.
    """
    handle = Handle(pictures, run=run, complete=complete)
    work = prepare(Begun(handle.begin, look))

    def call() -> None:
        try:
            handle.end(work())
        except BaseException as error:
            handle.end(error=error)

    thread = threading.Thread(target=call, name="timonel", daemon=True)
    try:
        thread.start()
    except BaseException:
        work.cancel()
        raise
    return handle


# -- the native loop -------------------------------------------------------------------------------
def start(
    denoise: Denoiser,
    x: Tensor,
    sampler: Sampler | str,
    *,
    process: Process,
    prediction: str = "sample",
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    unconditional: Denoiser | None = None,
    guidance: Guidance | float | None = None,
    hooks: Sequence[Any] = (),
    denoised_fn: DenoisedFn | None = None,
    keep: int = 0,
    pictures: Callable[[Tensor], Any] | None = None,
) -> Handle:
    """Sample in a background thread.

        handle = tm.start(denoise, noise, "dpmpp_2m", process=process, steps=20, keep=20)
        handle.pause(); handle.rewind(8); handle.resume()
        x0 = handle.result()

    The hooks' `on_start` is called in this thread, everything else in the background.

    Args:
        denoise: `denoise(x, level)`, the network's output for samples (batch, …).
        x: see `begin`.
        sampler: see `begin`.
        process: see `begin`.
        prediction: see `begin`.
        steps: see `begin`.
        seeds: see `begin`.
        noise: see `begin`.
        unconditional: the unconditional denoiser, where there is guidance.
        guidance: see `begin`.
        hooks: see `begin`.
        denoised_fn: see `begin`.
        keep: see `begin`.
        pictures: makes what `handle.preview()` returns of a denoised prediction (batch, …).

    Returns:
        The handle of the call; its result is the sample (batch, …), of a stopped run the denoised
        prediction.

    Raises:
        ArgumentError: an argument cannot be used, before any network call.
    """
    if pictures is not None:
        function("pictures", pictures, "lambda denoised: list(denoised)", 1)
    call = NativeCall(
        denoise, unconditional, x, sampler, process=process, prediction=prediction, steps=steps,
        seeds=seeds, noise=noise, guidance=guidance, hooks=hooks, denoised_fn=denoised_fn,
        keep=keep,
    )  # fmt: skip

    def show(run: Run, decode: bool, going: bool) -> Any:
        if flag("decode", decode) or pictures is None:
            raise RunError(
                "the native loop has no autoencoder; give tm.start(…, pictures=…), which makes"
                " something of a denoised prediction"
            )
        return pictures(run.result if run.called_at is None else run.denoised)

    return in_background(lambda begun: call, show, run=call.run)
