"""A call of a helm: the pipeline runs with the call's scheduler, and is as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.run import Run
from ..errors import ModelError
from . import modular, prompting, request
from .decode.not_finite import Decoded
from .first_turn import FirstTurn, generators
from .guidance import scale
from .guidance.gate import Gate
from .inspect_source import one_row_loops
from .network.busy import Claim, gated
from .piped import Piped
from .recipe.sign import sign
from .session import Phase, Session
from .sockets import requested_levels
from .sockets.timesteps import Rewound
from .variation import Mixed

if TYPE_CHECKING:
    from .steered import Steered


class Call:
    """A call that has everything it needs for itself.

    Calling it makes the call; else `cancel` lets go of it.

    Args:
        helm: whose pipeline is called.
        session: of the call, with a scheduler that has its levels.
        gate: for the pipeline's networks.
        options: the pipeline's arguments.
        claim: what the call has for itself.
        stack: lets go of that; the call takes it over.

    Raises:
        RunError: a call that is not steered uses a network of the pipeline already.
    """

    def __init__(
        self,
        helm: Steered,
        session: Session,
        gate: Gate,
        options: dict[str, Any],
        claim: Claim,
        stack: ExitStack,
    ) -> None:
        self.helm, self.session, self.gate, self.options = helm, session, gate, options
        self._claim = claim
        claim.session = session
        self._first = FirstTurn(helm.pipe, session, gate, claim, options)
        self._driver = Piped(
            session, helm.pipe, gate, claim, partial(prompting.change, self._first)
        )
        session.driver = self._driver
        if session.run is not None:
            session.run.drive_by(session.driver)
        stack.enter_context(gated(gate, claim))
        self._stack = stack.pop_all()
        self._mixed: Mixed | None = None

    def cancel(self) -> None:
        """Make no call."""
        self._stack.close()

    def __call__(self) -> Any:
        """Make the call. After it the pipeline is what it was before, whatever happened."""
        with self._stack:
            helm, session = self.helm, self.session
            decoded = Decoded(helm.pipe, lambda: _has_ended(session.run))
            scaled = None if self.gate.parts_in else session.request.scale
            guiders = scale.guiders_at(helm.pipe, helm.parameters, scaled)
            with self._claim.working(), self._steered(), guiders:
                output = self._run(decoded)
            self._check_stepped()
            if helm.choice is not None and session.request.listed:
                steps = session.scheduler.run.table.steps
                helm.choice = helm.choice.listed(session.scheduler.settled, steps)
            decoded.check(self.gate.samples or len(session.scheduler.run.latents))
            sign(helm, session, self.options, output)
            return output

    def _run(self, decoded: Decoded) -> Any:
        """Run the pipeline, and end its run."""
        session = self.session
        self.helm.context.call = self.options
        if session.driver is not None:
            session.driver.recall(None)  # a plain call that failed leaves its caches as they are
        try:
            prompting.begin(self._first, session.request.prompts)
            with one_row_loops(self.helm.pipe, session), decoded, self._varied():
                output = self._pass()
            if session.run is not None:
                session.run.leave()
        except BaseException as error:
            if session.run is not None:
                session.run.fail(error)
            self._let_go(error)
            raise
        finally:
            self._driver.close()
            if session.run is not None:
                session.run.disown()
        return output

    def _let_go(self, error: BaseException) -> None:
        """After an error. Raises `ArgumentError` instead of one that the arguments have caused."""
        pipe = self.helm.pipe
        getattr(pipe, "maybe_free_model_hooks", lambda: None)()
        if self.gate.turn is None and not self.session.steps:
            refused = request.refused(pipe, error)
            if refused is not None:
                raise refused from error

    def _check_stepped(self) -> None:
        """Raises `GridError` or `ModelError` where the pipeline made no step."""
        if self.session.steps:
            return
        steps, pipe = self.session.scheduler.sampler.steps, self.helm.pipe
        requested_levels.left(steps, self.options, self.helm.parameters)
        raise ModelError(
            f"{type(pipe).__name__} made no step with its scheduler; timonel cannot steer it"
        )

    def _pass(self) -> Any:
        """Run the pipeline; again from its beginning after a rewind that its loop cannot follow."""
        each = generators(self.options)
        states = [generator.get_state() for generator in each]
        while True:
            try:
                return self.helm.pipe(**self.options)
            except Rewound:
                self._claim.looping(False)
                self.session.let_go()
                self.session.phase = Phase.AGAIN
                for generator, state in zip(each, states, strict=True):
                    generator.set_state(state)
                if self._mixed is not None:
                    self._mixed.again()

    @contextmanager
    def _varied(self) -> Iterator[None]:
        """With the noise of a variation, where the call has one that acts."""
        variation, generator = self.session.request.variation, self.options.get("generator")
        if variation is None or not variation[1]:
            yield
            return
        each: list[Any] = generator if isinstance(generator, list) else [generator]
        self._mixed = Mixed(each, *variation)
        with self._mixed:
            yield
        self._mixed.check()

    @contextmanager
    def _steered(self) -> Iterator[None]:
        """The pipeline with the call's scheduler and guiders, and with one progress bar at most."""
        helm, pipe, session = self.helm, self.helm.pipe, self.session
        parts = {"scheduler": session.scheduler, **self.gate.parts_in}
        former = {name: getattr(pipe, name) for name in parts}
        before, helm.session = helm.session, session
        shows = any(getattr(hook, "shows_progress", False) for hook in session.request.hooks)
        try:
            bars = modular.without_bar(pipe) if shows else nullcontext()
            with modular.without_log(pipe), bars, _counted(pipe, session):
                for name, part in parts.items():
                    setattr(pipe, name, part)
                yield
        finally:
            if session.newest is None or not session.newest.started:
                # it ended before its run began: the last run is still there to go on with
                helm.session = before
            for name, part in former.items():
                setattr(pipe, name, part)


@contextmanager
def _counted(pipe: Any, session: Session) -> Iterator[None]:
    """The pipeline's progress bar with as many steps as its run has, also where that gets a tail.

    Args:
        pipe: that is called in this context.
        session: of the call.
    """
    make = getattr(pipe, "progress_bar", None)
    if make is None or "progress_bar" in vars(pipe):
        yield
        return

    def counted(iterable: Any = None, total: int | None = None, **more: Any) -> Any:
        if total is not None:
            total += session.added
        session.bar = make(iterable, total, **more)
        return session.bar

    pipe.progress_bar = counted
    try:
        yield
    finally:
        session.bar = None
        vars(pipe).pop("progress_bar", None)


def _has_ended(run: Run | None) -> bool:
    """Whether a run has ended, and none of its hooks makes pictures."""
    return run is not None and run.status in ("done", "stopped") and not run.firing
