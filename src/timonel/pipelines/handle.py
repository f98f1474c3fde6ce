"""A pipeline call in a background thread, with what one does to it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import border
from ..errors import RunError, instance
from ..hooks import Hook
from ..run import Run
from .decode import previewed

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

    `pause`, `stop` and `resume` may come before the first step; the pipeline's thread is a daemon.
    """

    def __init__(self, helm: Helm, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._helm = helm
        self._run: Run | None = None
        self._early: list[Callable[[Run], None]] = []
        self._change = threading.Condition()
        self._made: Any = None
        self._error: BaseException | None = None
        self._ended = False
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

    def _order(self, order: Callable[[Run], None], early: bool = True) -> None:
        """`early`: whether it may wait for the run to begin."""
        with self._change:
            if self.done:
                raise RunError(f"this call has ended ({self.status}); begin another, with helm.start(…)")
            if self._run is None and early:
                self._early.append(order)
            else:
                order(self.run)

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
        return "finishing" if self._run.status in ("done", "stopped") else self._run.status

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
        """Wait until there is a run, or the call has failed; False if `timeout` seconds were not enough."""
        with self._change:
            return self._change.wait_for(lambda: self._run is not None or self.done, timeout)

    # -- control -------------------------------------------------------------------------------
    def pause(self) -> None:
        """Wait before the next step."""
        self._order(Run.pause)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._order(Run.resume)

    def stop(self, reason: str = "") -> None:
        """End at the next step; the newest denoised prediction is decoded and becomes the result."""
        instance("reason", reason, str, "a sentence")
        self._order(lambda run: run.stop(reason))

    def rewind(self, step: int) -> None:
        """Go back so that `step` steps are completed. Raises `RunError` for a step that was not reached."""
        self._order(lambda run: run.rewind(step), early=False)

    def branch(self, *, hooks: Sequence[Any] = ()) -> Run:
        """A second run at the same point; continue it with `helm(…, resume=branch)` once this call has ended."""
        return self.run.branch(hooks=hooks)

    def preview(self, *, decode: bool = False) -> list[Image.Image]:
        """Pictures of the newest denoised prediction, one per sample; linear and small unless `decode`.

        After a rewind they are those of the step that the run is at; at step 0 there is only its noise. With `decode`
        while the pipeline encodes or decodes itself, they wait for its end. Raises `RunError` before there is a run,
        and where no picture can be made, with the reason; the run goes on.
        """
        return previewed(self._helm.context, self.run, decode=decode, going=not self.done)

    def result(self, timeout: float | None = None) -> Any:
        """The pipeline's output, once it is there, as often as it is asked for; the call outlives an interrupted wait.

        `timeout`: seconds, or None. Raises what the call raised, and `TimeoutError`.
        """
        with self._change:  # not the thread's join, which takes an interrupted wait for the thread's end
            if not self._change.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(f"the call has not ended after {timeout} s: it is {self.status} at step {self.step}")
        if self._error is not None:
            raise self._error
        return self._made
