"""A pipeline's loop as the driver of a run: its switch, its guidance, its caches."""

from __future__ import annotations

from typing import Any

from ..core.driver import Driver
from ..core.guidance import Guidance
from ..core.run import Run
from ..errors import ArgumentError
from .caller import everywhere, pipeline_of
from .guidance.gate import Gate, networks
from .guidance.guider import memories
from .network import caches
from .network.busy import Claim


class Piped(Driver):
    """The loop of `pipe`; `gate` and `claim` where a helm steers it."""

    outer, patience = True, 0.2

    def __init__(self, pipe: Any, gate: Gate | None = None, claim: Claim | None = None) -> None:
        self.pipe, self.gate, self.claim = pipe, gate, claim
        self.modules: list[Any] = [*networks(pipe), *memories(pipe)]
        if not hasattr(type(pipe), "interrupt") and getattr(pipe, "_interrupt", False):
            # others switch it off where their call begins; here it is of an earlier call
            pipe._interrupt = False

    def interrupted(self) -> bool:
        """Whether `pipe._interrupt` was set. Some loops, such as SVD's, never look at it."""
        if not getattr(self.pipe, "_interrupt", False):
            return False
        # or a loop that looks skips the turn that hands the result over
        self.pipe._interrupt = False
        return True

    def holds(self) -> bool:
        """Whether the pipeline is at work, in any thread."""
        if self.claim is not None:
            return self.claim.thread is not None
        return any(pipe is self.pipe for _, pipe in everywhere())

    def admit(self, run: Run, guidance: Guidance) -> None:
        """Check that the coming rows can be guided so.

        Raises:
            ArgumentError: the pipeline cannot, or no helm steers it.
        """
        if self.gate is None:
            raise ArgumentError(
                "a scheduler alone leaves guidance to the pipeline: steer it with"
                " timonel.Helm(pipe), or change the pipeline's own scale"
            )
        self.gate.admit(run, guidance)

    def remembered(self) -> Any:
        """What the pipeline's networks keep in caches of diffusers'; None: nothing."""
        return caches.take(self.modules)

    def recall(self, memory: Any) -> None:
        """Give the networks back what they kept."""
        caches.put(self.modules, memory)

    def looping(self, on: bool) -> None:
        """The rows begin or are over; outside them the pipeline has its autoencoders for itself."""
        if self.claim is not None and self.claim.has_turns is on:
            self.claim.looping(on)


def calling(scheduler: Any) -> Driver:
    """The pipeline that calls a method of `scheduler` now, as a driver; a plain one without it."""
    pipe = pipeline_of(scheduler)
    return Driver() if pipe is None else Piped(pipe)
