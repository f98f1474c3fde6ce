"""What a run needs of the loop that drives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .guidance import Guidance
    from .run import Run

UNKNOWN: Any = object()  # what a network remembers is not known at a state


class Driver:
    """What calls the network for a run, as far as the run has to know it. A plain loop has nothing to say.

    `patience`: seconds after which a paused run asks again whether it was interrupted.
    """

    patience: float | None = None

    def interrupted(self) -> bool:
        """Whether the caller's own switch ends the run; the switch is off again afterwards."""
        return False

    def admit(self, run: Run, guidance: Guidance) -> None:
        """Raises `TimonelError` where the coming rows of `run` cannot be guided so."""

    def remembered(self) -> Any:
        """What the network keeps of its calls so far, beside its weights; None where it keeps nothing."""
        return None

    def recall(self, memory: Any) -> None:
        """Give the network back what it kept; None is what it knows before its first call."""

    def looping(self, on: bool) -> None:
        """The rows begin (True) or are over (False), in the thread that computes them."""
