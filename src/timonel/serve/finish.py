"""Decoding, in a thread of its own: the results of calls that have ended, several at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..engine.batch import Job
from ..errors import GuardStop
from ..hooks.rgb import bytes_to_images, to_bytes
from ..pipelines.decode.not_finite import Decoded
from ..pipelines.decode.previews import PipelineContext
from ..pipelines.encoding import Encoded
from ..pipelines.helm import Helm
from ..pipelines.recipe.sign import sign
from .ticket import Output, Ticket

NOT_FINITE = "the autoencoder decodes its latents to NaN or infinity: run it in float32"


class Ended(NamedTuple):
    """A call whose run has ended, and what decodes it."""

    ticket: Ticket
    encoded: Encoded
    job: Job
    context: PipelineContext


class Finisher:
    """Decodes the results of calls in its own thread, and ends their tickets.

    Args:
        helm: with the autoencoder.
        most: samples that are decoded at once.
    """

    def __init__(self, helm: Helm, most: int) -> None:
        self.helm, self.most = helm, most
        self._ended: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
        self._held: Ended | None = None  # taken, and of another size than what was decoded
        self._over = False
        self._thread = threading.Thread(target=self._work, name="timonel decoder", daemon=True)
        self._thread.start()

    def add(self, ended: Ended) -> None:
        """Decode the result of a call, and end its ticket."""
        self._ended.put(ended)

    def close(self) -> None:
        """Wait until everything is decoded."""
        self._ended.put(None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._decode(batch)
            except Exception as error:
                for ended in batch:
                    ended.ticket.end(error=error)

    def _next(self) -> list[Ended]:
        """The next calls whose latents can be decoded together; none at the end."""
        first = self._held or (None if self._over else self._ended.get())
        self._held = None
        if first is None:
            return []
        batch, count = [first], first.job.count
        while True:
            try:
                other = self._ended.get_nowait()
            except queue.Empty:
                return batch
            if other is None:
                self._over = True
                return batch
            count += other.job.count
            if other.context is not first.context or count > self.most:
                self._held = other
                return batch
            batch.append(other)

    @torch.no_grad()
    def _decode(self, batch: Sequence[Ended]) -> None:
        latents = torch.cat([ended.job.run.result for ended in batch])
        with Decoded(self.helm.pipe) as decoded:
            pixels = batch[0].context.decode(latents)
        if len(batch) > 1 and not bool(decoded.fine().all()):
            for ended in batch:
                self._decode([ended])
            return
        if not bool(decoded.fine().any()):
            batch[0].ticket.end(error=GuardStop(NOT_FINITE))
            return
        counts = [ended.job.count for ended in batch]
        for ended, mine in zip(batch, torch.split(pixels, counts), strict=True):
            output = _output(ended, mine)
            sign(self.helm, ended.encoded.session, ended.encoded.options, output)
            ended.ticket.end(output)


def _output(ended: Ended, pixels: Tensor) -> Output:
    """Decoded pictures (n, 3, H, W), or (n, F, 3, H, W) of videos, as pictures of PIL."""
    frames = []
    if pixels.ndim == 5:
        frames = [bytes_to_images(to_bytes(video)) for video in pixels]
    images = bytes_to_images(to_bytes(pixels)) if pixels.ndim == 4 else [f[0] for f in frames]
    return Output(images, frames, ended.job.evaluations, ended.job.seconds)
