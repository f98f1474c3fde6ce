"""A pipeline call in a background thread, with what one does to it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..core import border
from ..core.hook import Hook
from ..core.run import Run
from ..core.states import GOES, allowed, check
from ..errors import RunError, instance
from .decode.previews import previewed

if TYPE_CHECKING:
    from PIL import Image

    from .helm import Helm


class _Begun(Hook):
    """Gives the run to the handle as soon as it exists, with the orders that came earlier."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def on_start(self, run: Run) -> None:
        self.handle._begin(run)

    def on_resume(self, run: Run) -> None:
        self.handle._begin(run)

    def on_step(self, run: Run) -> None:
        run.context.look(run.latents)  # for `Handle.preview`


class Handle:
    """A call that goes on in the background. Make one with `helm.start(…)`.

        handle = helm.start("red apple", steps=20, keep=20)
        handle.pause(); handle.preview()[0].show(); handle.rewind(8); handle.resume()
        handle.run.guidance = 9.0
        picture = handle.result().images[0]

    `pause`, `stop` and `resume` may come before the first step. Once the loop is over, while the
    pipeline decodes and afterwards, orders are refused with `RunError`, see `states`. The
    pipeline's thread is a daemon.
    """

    def __init__(self, helm: Helm, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._helm = helm
        self._run: Run | None = None
        self._early: list[Callable[[Run], None]] = []
        self._change = threading.Condition()
        self._made: Any = None
        self._error: BaseException | None = None
        self._ended = False
        resume = options.get("resume")
        self._complete = (
            isinstance(resume, Run) and resume.row == resume.table.nfe
        )  # it is only decoded
        hooks = [_Begun(self), *border.listed(options.pop("hooks", None))]
        self._call = helm.ready(args, {**options, "hooks": hooks})
        self._thread = threading.Thread(target=self._work, name="timonel-helm", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._call.cancel()
            raise

    def _work(self) -> None:
        try:
            self._made = self._call()
        except BaseException as error:
            self._error = error
        with self._change:
            self._ended = True
            self._change.notify_all()

    def _begin(self, run: Run) -> None:
        with self._change:
            self._run = run
            for order in self._early:
                order(run)
            self._early.clear()
            self._change.notify_all()

    def _order(self, name: str, order: Callable[[Run], Any]) -> Any:
        """Do an order, or let it wait for the run to begin; `RunError` where the state refuses it,
        see `states`.
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
        """The state that `states.ORDERS` is about. The call's own loop is meant: nobody else goes
        on with its run.
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
        return self._ended

    @property
    def status(self) -> str:
        """One of starting, running, paused, finishing (decoding), done, stopped, failed."""
        if self.done:
            return "failed" if self._error is not None or self._run is None else self._run.status
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
        """Wait until there is a run, or the call has failed; False if `timeout` seconds were not
        enough.
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
        """End at the next step; the newest denoised prediction is decoded and becomes the result."""
        instance("reason", reason, str, "a sentence")
        self._order("stop", lambda run: run.stop(reason))

    def rewind(self, step: int) -> None:
        """Go back so that `step` steps are completed. Raises `RunError` for a step that was not
        reached.
        """
        self._order("rewind", lambda run: run.rewind(step))

    def branch(self, *, hooks: Sequence[Any] = ()) -> Run:
        """A second run at the same point; continue it with `helm(…, resume=branch)` once this call
        has ended.
        """
        made: Run = self._order("branch", lambda run: run.branch(hooks=hooks))
        return made

    def preview(self, *, decode: bool = False) -> list[Image.Image]:
        """Pictures of the newest denoised prediction, one per sample; linear and small unless
        `decode`.

        After a rewind they are those of the step that the run is at; at step 0 there is only its
        noise. With `decode` while the pipeline encodes or decodes itself, they wait for its end.
        Raises `RunError` before there is a run, and where no picture can be made, with the reason;
        the run goes on.
        """
        return previewed(self._helm.context, self.run, decode=decode, going=not self.done)

    def result(self, timeout: float | None = None) -> Any:
        """The pipeline's output, once it is there, as often as it is asked for; the call outlives
        an interrupted wait.

        `timeout`: seconds, or None. Raises what the call raised, and `TimeoutError`.
        """
        with (
            self._change
        ):  # not the thread's join, which takes an interrupted wait for the thread's end
            if not self._change.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(
                    f"the call has not ended after {timeout} s: it is {self.status} at step"
                    f" {self.step}"
                )
        if self._error is not None:
            raise self._error
        return self._made
