"""The tails of a run as a recipe holds them, and the hook that orders them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from ...core.data import Data, GuidanceData
from ...core.grids import MOST_STEPS
from ...core.guidance import CompiledGuidance
from ...core.hook import Hook
from ...core.noise import DEFAULT
from ...core.sampler import Sampler
from ...core.tail import splice
from ...core.tail_levels import Turn
from ...core.tailed import Tail, graded
from ...errors import ArgumentError

if TYPE_CHECKING:
    from ...core.run import Run

EXAMPLE = "--tail '12:euler/ays,steps=4'"


class TailData(Data):
    """One tail: where it begins, and what `Run.tail` gets there.

    Args:
        step: completed steps where it begins.
        sampler: name of the solver, or solver/grid.
        steps: still to come; None: the levels that were to come, or those of the lists.
        options: of the solver.
        grid_options: of the grid.
        sigmas: the levels.
        times: the levels by network time.
        noise: source of the solver's noise.
        guidance: that begins with it; None: the one before goes on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0, lt=MOST_STEPS, strict=True)
    sampler: str
    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS, strict=True)
    options: dict[str, Any] = Field(default_factory=dict)
    grid_options: dict[str, Any] = Field(default_factory=dict)
    sigmas: list[float] | None = None
    times: list[float] | None = None
    noise: str = DEFAULT
    guidance: GuidanceData | None = None

    @classmethod
    def of(cls, tail: Tail) -> TailData:
        """The data of a tail that a run has had."""
        one = tail.sampler
        return cls(
            step=tail.step, sampler=one.label, steps=one.steps, options=dict(one.options),
            grid_options=dict(one.grid_options),
            sigmas=None if one.sigmas is None else list(one.sigmas),
            times=None if one.times is None else list(one.times), noise=one.source,
            guidance=None if tail.guidance is None else GuidanceData.of(tail.guidance),
        )  # fmt: skip

    def chosen(self) -> Sampler:
        """Its sampler, whose steps are those to come.

        Raises:
            ArgumentError: it is none.
        """
        return Sampler(
            self.sampler, None, self.steps, self.options, self.grid_options, self.sigmas,
            self.times, noise=self.noise,
        )  # fmt: skip

    def order(self, run: Run) -> Tail:
        """Order it."""
        guidance = None if self.guidance is None else self.guidance.guidance()
        return run.tail(self.chosen(), guidance=guidance)


def check(tails: Sequence[TailData], steps: int) -> None:
    """Refuse tails that no run of so many steps gets to, or that are no samplers.

    Args:
        tails: in their order.
        steps: of the run they are for.

    Raises:
        ArgumentError: a tail is at the end or behind it, or before the one before it.
    """
    before = -1
    for tail in tails:
        sampler = tail.chosen()
        if tail.step <= before:
            raise ArgumentError(
                f"a tail at step {tail.step} comes after one at step {before}: name them in the"
                " order of their steps, one for each"
            )
        if tail.step >= steps:
            raise ArgumentError(
                f"a tail at step {tail.step} has nothing left of {steps} steps: name one up to"
                f" {steps - 1}, e.g. {EXAMPLE}"
            )
        listed = tail.sigmas if tail.sigmas is not None else tail.times
        come = sampler.steps if listed is None else sum(value > 0 for value in listed)
        before, steps = tail.step, tail.step + (come or steps - tail.step)


class Tails(Hook):
    """Orders tails at their steps."""

    name = "tails"

    def __init__(self, tails: Sequence[TailData]) -> None:
        self.tails = tuple(tails)

    def on_start(self, run: Run) -> None:
        table, last, guidance = run.table, run.sampler, run.guidance
        for tail in self.tails if run.process is not None else ():  # before any compute
            assert run.process is not None
            check((tail,), table.steps)
            turn = Turn(table, table.first_row(tail.step), run.process, last)
            guidance = guidance if tail.guidance is None else tail.guidance.guidance()
            last = graded(tail.chosen(), turn, last, run.process).guided_by(guidance)
            table = splice(turn, last)
            CompiledGuidance.of(guidance, table, run.prediction)
            run.driver.fits(table)
        self._order(run)

    def on_step(self, run: Run) -> None:
        self._order(run)

    def _order(self, run: Run) -> None:
        """A run that goes back makes its tails again by itself."""
        known = {tail.step for tail in run.journey}
        for tail in self.tails:
            if tail.step == run.step and tail.step not in known:
                tail.order(run)
