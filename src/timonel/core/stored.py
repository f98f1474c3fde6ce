"""A run on disk, and the points that copies of it go on from."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from .checkpoints import NetworkCall, Point
from .driver import UNKNOWN
from .guidance import CompiledGuidance
from .noise import Noise
from .process import Process
from .program import DenoisedFn, State
from .tailed import Past, Tail, Tailed

if TYPE_CHECKING:
    from typing_extensions import Self


class Stored(Tailed):
    """The part of a `Run` that is written to files and read from them."""

    if TYPE_CHECKING:

        def branch(self, *, hooks: Sequence[Any] = ()) -> Any: ...

    def _stand_at(self, point: Point) -> None:
        """Go on from a point of another run, which may be the end."""
        self._stand(point)
        if point.state.row == self.table.nfe:
            self._status = "done"

    # -- saving ------------------------------------------------------------------------------------
    def snapshot(self) -> tuple[State, Point]:
        """The start, and a copy of where the run stands between two rows, with its prediction.

        Raises:
            RunError: the run has not begun.
        """
        with self._change:
            self.check("save")
            here = self._between()
            if here.call is not None and (here.call.clean is not None or here.call.x is not None):
                clean = self._clean_of(here.call)
                here = here._replace(call=NetworkCall(here.call.row, here.call.x, clean=clean))
            assert self._checkpoints.start is not None
            return self._checkpoints.start, here.clone()

    def restore(
        self, start: State, here: Point, since: int = 0, past: Past = (),
        journey: tuple[Tail, ...] = (),
    ) -> None:  # fmt: skip
        """Continue from a saved point instead of `start(x)`.

        Args:
            start: the state before the first row.
            here: where the run stood.
            since: the row from which the run has its guidance.
            past: the guidance of the rows before its tails.
            journey: its tails.
        """
        with self._change:
            self._checkpoints.start = start
            self._stand_at(here._replace(memory=UNKNOWN))
            guidance = self._guided.guidance
            self._guided = CompiledGuidance.of(guidance, self.table, self.prediction, since)
            self._past, self.journey = past, journey

    def save(self, path: str | PathLike[str]) -> None:
        """Write the run to one safetensors file, atomically; see `saving.save`.

        Args:
            path: of the file, which is replaced.

        Raises:
            RunError: the run has not begun.
        """
        from .saving import save

        save(self.branch() if self._ahead is not None else self, path)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, noise: Noise | None = None,
        denoised_fn: DenoisedFn | None = None,
        hooks: Sequence[Any] = (), keep: int = 0, context: Any = None,
        device: str = "cpu", process: Process | None = None,
    ) -> Self:  # fmt: skip
        """A run that continues bit for bit from a saved file.

        Args:
            path: of the file.
            noise: the run's source of noise, where it did not have seeds.
            denoised_fn: as the run had it.
            hooks: called after each step.
            keep: as in `Run`.
            context: as in `Run`.
            device: where its tensors go.
            process: the model's noise process, which `tail` needs.

        Returns:
            The run, at the step where it was saved.

        Raises:
            ArgumentError: the file is not a saved run, is damaged, or needs `noise` or
                `denoised_fn` again.
        """
        from .saving import load

        return load(  # type: ignore[no-any-return]
            cls, path, noise=noise, denoised_fn=denoised_fn, hooks=hooks, keep=keep,
            context=context, device=device, process=process,
        )  # fmt: skip
