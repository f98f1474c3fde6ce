"""Calls of one size, which share network calls."""

from __future__ import annotations

import time

from ..engine.batch import Batch, Job, Turn
from ..errors import ArgumentError
from ..pipelines.capture import Captured
from ..pipelines.decode.previews import PipelineContext
from ..pipelines.encoding import Encoded
from .ticket import Ticket


class Bucket:
    """Runs whose samples and conditions have the same shapes, one batch of them.

    Args:
        captured: the network, as it was learned for samples of this size; the conditions of its
            capture are given up.
        context: decodes latents of this size.
        rows: network evaluations a call, at most.
    """

    def __init__(self, captured: Captured, context: PipelineContext, rows: int) -> None:
        self.captured, self.context = captured, context
        self.batch = Batch(captured, rows, fair=True)
        self.jobs: dict[Job, tuple[Ticket, Encoded]] = {}
        self.spent = 0.0  # seconds of its network calls; the bucket with the least goes next
        self.idle = False  # all of its runs are paused

    @property
    def goes(self) -> bool:
        """Whether it has a run that is not paused, as far as is known."""
        return bool(self.jobs) and not self.idle

    def takes(self, encoded: Encoded) -> tuple[int, ...] | None:
        """The slots of a call's conditions; None where they do not fit here."""
        if encoded.network.start.shape[1:] != self.captured.start.shape[1:]:
            return None
        try:
            return self.captured.admit(encoded.network)
        except ArgumentError:
            return None

    def add(self, ticket: Ticket, encoded: Encoded, slots: tuple[int, ...]) -> None:
        """Let a call take part."""
        start = None if encoded.run.started else encoded.network.start
        job = Job(
            encoded.run, start, slots, str(ticket.number), keeps_steps=False,
            priority=ticket.request.priority,
        )  # fmt: skip
        self.jobs[job], self.idle = (ticket, encoded), False
        self.batch.admit(job)

    def turn(self) -> Turn:
        """One network call. Of the jobs that have ended the conditions are let go of."""
        began = time.perf_counter()
        turn = self.batch.turn()
        self.spent += time.perf_counter() - began
        self.idle = turn == (0, [])
        for job in turn.ended:
            self.captured.conditions.evict(*job.conditions)
        return turn


def bytes_of(encoded: Encoded) -> int:
    """Bytes of a run's tensors: its sample, its start, its predictions and what it keeps."""
    run, start = encoded.run, encoded.network.start
    return start.nbytes * (run.table.history + 3 + encoded.session.request.keep)
