"""An engine: one thread that owns a model, and many calls that share its network calls.

    with tm.Engine("emoji") as engine:
        a = engine.submit("red apple", sampler="dpmpp_2m/karras", steps=20, seeds=[7])
        b = engine.submit("pizza", sampler="euler_ancestral", steps=12, guidance=6.0, seeds=[1])
        a.pause(); b.result().images[0].save("pizza.png"); a.resume()

Between two network calls a newcomer is encoded and admitted; then every call that has a row to
compute takes part, each at its own sampler, step and guidance. Calls of other sizes are served in
turn. Who waits longest for a network call is served first, so a newcomer does not wait for the
longest job. A pipeline whose network cannot leave its loop makes its calls one after the other.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch

from ..core import border
from ..core.guidance import Guidance, assigned
from ..core.run import Run
from ..core.sampler import Sampler
from ..engine.batch import Job
from ..errors import ArgumentError, RunError, finite, whole
from ..pipelines import request
from ..pipelines.capture import Captured, NotCaptured, capture
from ..pipelines.decode.previews import PipelineContext, previewed
from ..pipelines.encoding import CapturedLoop, Encoded, encode, stays_in_loop
from ..pipelines.guidance import applied, scale
from ..pipelines.helm import Helm, reads_uncond
from ..pipelines.network.busy import Claim
from .bucket import Bucket, bytes_of
from .finish import Ended, Finisher
from .ticket import Output, Request, Ticket

ROWS = 32  # network evaluations a call
WAITING = 256  # calls that wait at most
MEMORY = 1 << 30  # bytes of the tensors of all runs that take part
DECODED = 8  # samples decoded at once
Learned = tuple[Captured, PipelineContext]
PAUSED = "the engine was closed while it was paused"
TICK = 0.05  # seconds after which paused runs and deadlines are looked at again


class Full(RunError):
    """The queue of an engine is full; `waiting` calls are before it."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            f"{waiting} calls wait already, which is the limit of this engine: submit again later,"
            " or make it with waiting= of more"
        )
        self.waiting = waiting


class Engine:
    """One model for many calls. It owns the model: nothing else may call the pipeline.

    Args:
        model: a pipeline, a helm, or what `Helm` takes.
        rows: network evaluations a call, at most; a guided sample is two.
        waiting: calls that may wait; more are refused with `Full`.
        memory: bytes that the tensors of the runs may have that take part; others wait.
        loading: how the model is loaded, as `Helm` takes it.

    Raises:
        ModelError: the model cannot be loaded.
        ArgumentError: a number outside its range.
    """

    def __init__(
        self,
        model: Any,
        *,
        rows: int = ROWS,
        waiting: int = WAITING,
        memory: int = MEMORY,
        **loading: Any,
    ) -> None:
        self.rows = whole("rows", rows)
        self.waiting, self.memory = whole("waiting", waiting), whole("memory", memory)
        self.helm = model if isinstance(model, Helm) else Helm(model, **loading)
        if hasattr(self.helm.pipe, "set_progress_bar_config"):
            self.helm.pipe.set_progress_bar_config(disable=True)
        self.buckets: list[Bucket] = []
        self._news = False  # an order was given, so paused runs may go on
        self._totals = [0.0, 0.0, 0.0]  # network calls, rows that they served, seconds
        self.held = 0  # bytes of the runs that take part
        # by the scale of the capture and by the size of its samples
        self._learned: dict[float | None, dict[torch.Size, Learned]] = {}
        self._numbers = itertools.count(1)
        self._queue: list[tuple[int, int, Ticket]] = []  # by priority, then by number
        self._change = threading.Condition()
        self._closing = False
        self._single: Ticket | None = None  # whose call the pipeline's own loop makes now
        # nobody else may call the pipeline; they may look at it
        self._claim = Claim(self.helm.pipe)
        self._finisher = Finisher(self.helm, DECODED)
        self._thread = threading.Thread(target=self._serve, name="timonel engine", daemon=True)
        self._thread.start()

    # -- for everybody -----------------------------------------------------------------------------
    def submit(
        self,
        *args: Any,
        guidance: Guidance | float | None = None,
        hooks: Sequence[Any] = (),
        priority: int = 0,
        deadline: float | None = None,
        **options: Any,
    ) -> Ticket:
        """Make a call when its turn comes.

        Args:
            args: as in a call of the helm: prompt, sampler, steps, seeds, keep, width, …
            guidance: of the run; None is the model's.
            hooks: of the run; they are called in the engine's thread, so they have to be quick.
            priority: those with a higher one go first.
            deadline: seconds after which the call is given up; None: never.
            options: as `args`, by name.

        Returns:
            Its handle, as `helm.start` makes one; its result is an `Output`.

        Raises:
            Full: too many calls wait.
            RunError: the engine is closed.
            ArgumentError: an argument that cannot be used, before any compute.
        """
        chosen = assigned(guidance)
        border.hooks(hooks)
        if "resume" in options:
            raise ArgumentError("an engine begins its runs itself: leave resume= out")
        pipe, parameters = self.helm.pipe, self.helm.parameters
        known, named = request.arguments(pipe, parameters, args, options)
        self.helm.choose(known.sampler, known.steps, chosen)
        applied.refuse(pipe, parameters, named, chosen, known.weak)
        submitted = Request(
            args, options, chosen, tuple(hooks), whole("priority", priority, -100, 100),
            None if deadline is None else finite("deadline", deadline, 0),
        )  # fmt: skip
        return self._enqueue(submitted)

    def _enqueue(self, submitted: Request, encoded: Encoded | None = None) -> Ticket:
        """Let a call wait for its turn. Raises `Full`, or `RunError` where the engine is closed."""
        with self._change:
            if self._closing:
                raise RunError("the engine is closed: make another")
            if len(self._queue) >= self.waiting:
                raise Full(len(self._queue))
            ticket = Ticket(next(self._numbers), submitted, self._pictures, self._wake)
            if encoded is not None:  # a branch: its run exists
                ticket.encoded = encoded
                encoded.run.equip(ticket.hooks())
                ticket.begin(encoded.run)
            heapq.heappush(self._queue, (-submitted.priority, ticket.number, ticket))
            self._count_positions()
            self._change.notify_all()
        return ticket

    def branch(self, ticket: Ticket, *, step: int | None = None, paused: bool = False) -> Ticket:
        """A second run that goes on from where a call's run stands, when its turn comes.

        Args:
            ticket: of a call of this engine that shares its network calls.
            step: goes back to so many completed steps first; None stays.
            paused: whether it waits until it is resumed.

        Returns:
            Its handle; its run may be steered at once.

        Raises:
            Full: too many calls wait.
            RunError: the call has no run yet, or none that another can go on from, or it has not
                reached the step.
        """
        if ticket.encoded is None:
            why = f", for {ticket.alone}" if ticket.alone else ": wait for its first step"
            raise RunError(f"the call has no run to branch from{why}")
        run = ticket.branch()
        if step is not None:
            run.rewind(step)
        session = copy(ticket.encoded.session)
        session.run = run
        run.drive_by(CapturedLoop(ticket.encoded.network, session))
        twin = self._enqueue(ticket.request, replace(ticket.encoded, run=run, session=session))
        if paused:
            twin.pause()
        return twin

    @property
    def closing(self) -> bool:
        """Whether the engine was closed; it may still make what was submitted."""
        return self._closing

    @property
    def takes(self) -> bool:
        """Whether a call may be submitted now."""
        return not self._closing and len(self._queue) < self.waiting

    def close(self, *, drain: bool = True) -> None:
        """End the engine.

        Args:
            drain: whether the calls that were submitted are made first, but for those that are
                paused; else all are given up.
        """
        with self._change:
            self._closing = True
            tickets = [] if drain else [*(t for _, _, t in self._queue), *self._active()]
            single = self._single
            self._change.notify_all()
        for ticket in tickets:
            ticket.cancel("the engine was closed")
        if single is not None and single.status == "paused":  # its loop holds the thread
            single.cancel(PAUSED)
        self._thread.join()
        self._finisher.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    def __len__(self) -> int:
        """How many calls wait or take part."""
        with self._change:
            return len(self._queue) + sum(len(bucket.jobs) for bucket in self.buckets)

    def numbers(self) -> tuple[float, ...]:
        """Runs that wait and that take part, bytes, network calls, rows, seconds; see `metrics`."""
        with self._change:
            active = sum(len(bucket.jobs) for bucket in self.buckets)
            return (len(self._queue), active, self.held, *self._totals)

    # -- the queue ---------------------------------------------------------------------------------
    def _active(self) -> list[Ticket]:
        shared = [ticket for bucket in self.buckets for ticket, _ in bucket.jobs.values()]
        return shared if self._single is None else [*shared, self._single]

    def _wake(self) -> None:
        """Look at paused runs and at the queue again."""
        with self._change:
            self._news = True
            self._change.notify_all()

    def _pictures(self, run: Run, decode: bool, going: bool) -> Any:
        """Pictures of a run; see `Handle.preview`."""
        return previewed(run.context, run, decode=decode, going=going)

    def _count_positions(self) -> None:
        """Every waiting call knows how many are before it."""
        for position, (_, _, ticket) in enumerate(sorted(self._queue)):
            ticket.position = position
            ticket.changed()

    def _give_up(self) -> None:
        """End calls that were cancelled or are overdue."""
        with self._change:
            for ticket in [*(t for _, _, t in self._queue), *self._active()]:
                if ticket.overdue:
                    ticket.cancel(f"its deadline of {ticket.request.deadline:g} s has passed")
            gone = [entry for entry in self._queue if entry[2].cancelled]
            if gone:
                self._queue = [entry for entry in self._queue if entry not in gone]
                heapq.heapify(self._queue)
                self._count_positions()
        for _, _, ticket in gone:
            ticket.end()

    def _newcomer(self) -> Ticket | None:
        """The call that is admitted next, where there is room."""
        with self._change:
            if not self._room():
                return None
            ticket = heapq.heappop(self._queue)[2]
            self._count_positions()
            return ticket

    # -- the engine's thread -----------------------------------------------------------------------
    def _serve(self) -> None:
        """Network calls until the engine is closed and nothing is left."""
        self._claim.thread = threading.get_ident()
        while True:
            self._give_up()
            if (ticket := self._newcomer()) is not None:
                with self._lent():
                    self._admit(ticket)
            bucket = min((b for b in self.buckets if b.goes), key=lambda b: b.spent, default=None)
            if bucket is not None:
                began = time.perf_counter()
                rows, ended = bucket.turn()
                self._totals[0] += rows > 0
                self._totals[1] += rows
                self._totals[2] += time.perf_counter() - began
                for job in ended:
                    self._ended(bucket, job)
            if self._rest():
                self._claim.release()
                return

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Without the claim on the pipeline, so that the helm can call it in this thread."""
        self._claim.release()
        try:
            yield
        finally:
            self._claim = Claim(self.helm.pipe)
            self._claim.thread = threading.get_ident()

    def _rest(self) -> bool:
        """Wait while there is nothing to compute; whether the engine is closed and empty."""
        with self._change:
            at_work = [bucket for bucket in self.buckets if bucket.jobs]
            paused = all(bucket.idle for bucket in at_work)
            if self._closing and not self._queue:
                if not at_work:
                    return True
                if paused:
                    self._abandon()
            if paused and not self._news and not self._room():
                self._change.wait(TICK if at_work or self._queue else None)
                self._news = True
            self._look_again(at_work)
            return False

    def _look_again(self, buckets: list[Bucket]) -> None:
        """After an order, paused runs may go on."""
        if self._news:
            self._news = False
            for bucket in buckets:
                bucket.idle = False

    def _abandon(self) -> None:
        """Give up paused calls, which nobody is left to resume."""
        for ticket in self._active():
            ticket.cancel(PAUSED)

    def _room(self) -> bool:
        """Whether a call waits that could be admitted."""
        return bool(self._queue) and self.held < self.memory

    def _admit(self, ticket: Ticket) -> None:
        """Encode a call, and let it take part."""
        try:
            encoded, context = self._encoded(ticket)
            ticket.encoded = encoded
        except NotCaptured as reason:
            ticket.alone = str(reason)
            self._make_alone(ticket)
            return
        except Exception as error:
            ticket.end(error=error)
            return
        encoded.run.equip(context=context)
        for bucket in self.buckets:
            slots = bucket.takes(encoded)
            if slots is not None:
                break
        else:
            shared = encoded.network.conditions.twin()
            bucket = Bucket(replace(encoded.network, conditions=shared), context, self.rows)
            slots = shared.slots
            self.buckets = [b for b in self.buckets if b.jobs] + [bucket]
        if not bucket.jobs:  # what it has not used meanwhile is no credit
            spent = [b.spent for b in self.buckets if b.jobs]
            bucket.spent = max(bucket.spent, min(spent, default=0.0))
        bucket.add(ticket, encoded, slots)
        ticket.held = bytes_of(encoded)
        self.held += ticket.held

    def _encoded(self, ticket: Ticket) -> tuple[Encoded, PipelineContext]:
        """A call, encoded; how the network is called for a new size is learned first."""
        if ticket.encoded is not None:
            return ticket.encoded, ticket.encoded.run.context
        submitted, hooks = ticket.request, ticket.hooks()
        if alone := stays_in_loop(submitted.options, submitted.guidance):
            raise NotCaptured(alone)
        learned = self._scale(submitted)
        if learned not in self._learned:
            self._learn(submitted, learned)
        sizes = self._learned[learned]
        captured = next(iter(sizes.values()))[0]
        encoded = encode(captured, submitted.args, submitted.options, submitted.guidance, hooks)
        network = encoded.network
        if network.start.shape[1:] not in sizes:
            self._learn(submitted, learned)
        captured, context = sizes[network.start.shape[1:]]
        network = replace(captured, start=network.start, conditions=network.conditions)
        return replace(encoded, network=network), context

    def _scale(self, submitted: Request) -> float | None:
        """The scale that the pipeline is called with: its usual one, or one above 1."""
        card, wanted = self.helm.card, submitted.guidance
        usual = scale.usual(self.helm.pipe, self.helm.parameters, dict(submitted.options))
        own = wanted is not None and wanted.scale is None  # the pipeline's, as in the helm
        if card is not None and card.default_guidance is not None and not own:
            usual = card.default_guidance
        if usual is not None and usual > 1:
            return float(usual)
        sampler = submitted.options.get("sampler")
        both = sampler is not None and reads_uncond(Sampler.of(sampler))
        most = None if wanted is None else scale.computed(wanted, both)
        return most if most is not None and most > 1 else None

    def _learn(self, submitted: Request, guidance: float | None) -> None:
        """Capture the network for samples of a call's size."""
        left_out = ("sampler", "steps", "keep")
        options = {key: value for key, value in submitted.options.items() if key not in left_out}
        captured = capture(self.helm, *submitted.args, guidance=guidance, **options)
        sizes = self._learned.setdefault(guidance, {})
        sizes[captured.start.shape[1:]] = captured, copy(self.helm.context)

    def _ended(self, bucket: Bucket, job: Job) -> None:
        """A run has ended: it failed, or it is decoded."""
        ticket, encoded = bucket.jobs.pop(job)
        self.held -= ticket.held
        if job.reason and not ticket.cancelled:
            ticket.end(error=RunError(f"the call has failed: {job.reason}"))
        elif ticket.cancelled:
            ticket.end()
        else:
            self._finisher.add(Ended(ticket, encoded, job, bucket.context))

    def _make_alone(self, ticket: Ticket) -> None:
        """A call through the helm, where the network cannot leave the pipeline's loop."""
        submitted = ticket.request
        options = {**submitted.options, "guidance": submitted.guidance, "hooks": ticket.hooks()}
        self._single = ticket
        try:
            call = self.helm.ready(submitted.args, options)
            output, run = call(), call.session.newest
        except Exception as error:
            ticket.end(error=error)
            return
        finally:
            self._single = None
        frames = list(getattr(output, "frames", None) or [])
        images = list(getattr(output, "images", None) or [video[0] for video in frames])
        ticket.end(Output(images, frames, 0 if run is None else run.advances))
