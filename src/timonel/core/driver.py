"""What a run needs of the loop that drives it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from .guidance import Guidance
    from .noise import Noise
    from .table import Table

Run: TypeAlias = Any  # `run.Run`, which stands above this file


class Memory(Enum):
    """Stands for the memory of a network where there is none to restore."""

    UNKNOWN = "unknown"


UNKNOWN: Any = Memory.UNKNOWN  # one, also after a copy or a pickle


class Driver:
    """What calls the network for a run, as far as the run has to know it.

    A plain loop needs nothing of it.
    """

    outer = False  # whether a pipeline has the loop, with a switch and claims of its own
    patience: float | None = None  # seconds after which a paused run looks for an interruption

    def interrupted(self) -> bool:
        """Whether the caller's own switch ends the run; the switch is off again afterwards."""
        return False

    def holds(self) -> bool:
        """Whether the call that drives the run is past its loop; no order is done meanwhile."""
        return False

    def admit(self, run: Run, guidance: Guidance, table: Table) -> None:
        """Refuse guidance that the coming rows of a run cannot have.

        Args:
            run: that goes on.
            guidance: of its coming rows.
            table: that they are of, the run's own or the one of a tail.

        Raises:
            TimonelError: it is refused.
        """

    def prompt(self, run: Run, prompts: Any, negative: Any) -> None:
        """Let other prompts hold for the coming rows of a run.

        Raises:
            TimonelError: they are refused, and the run goes on as it was.
        """
        raise RunError(
            "the denoiser of this run has its prompt itself: change it there; a prompt changes in"
            " calls of a helm, helm.start(…) or helm(…, prompts=…)"
        )

    def pending(self) -> bool:
        """Whether another thread waits for a task that only the loop's own thread can do."""
        return False

    def serve(self) -> None:
        """Carry out the tasks of other threads, in the loop's thread, between two rows."""

    def remembered(self) -> Any:
        """What the network keeps of its calls so far, beside its weights; None for nothing."""
        return None

    def recall(self, memory: Any) -> None:
        """Give the network back what it kept; None is what it knows before its first call."""

    def turn(self, run: Run, table: Table) -> None:
        """Raises `TimonelError` where the loop cannot go on with the rows of another table."""

    def fits(self, table: Table) -> None:
        """Raises `TimonelError` where the call has what the rows of another table cannot have."""

    def source(self, kind: str, table: Table, sample: Tensor) -> Noise | None:
        """The noise of a table for a run that has had none; None where no seeds are known."""

    def looping(self, on: bool) -> None:
        """The rows begin (True) or are over (False), in the thread that computes them."""
