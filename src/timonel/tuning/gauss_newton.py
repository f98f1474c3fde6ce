"""Fitting: damped Gauss-Newton steps on the mean log error, watched on samples it never uses.

The log of the error makes every sample count alike, whatever its size (arXiv 2403.01329 maximises
PSNR); its least-squares form weighs each sample by one over its squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..engine.reference import distance, typical
from ..errors import GridError
from . import rollout
from .model import Model
from .parameters import Form
from .rollout import Slope, roll
from .targets import Targets

MEMORY = 0.7  # of the curvature, from one iteration to the next
AVERAGE = 0.6  # of the averaged parameters
DAMPING, LEAST, MOST = 0.03, 1e-4, 1e3
RIDGE = 1e-6  # of the mean curvature, toward the start
TOGETHER = 16  # samples that travel together
PATIENCE = 8  # iterations without a better held-out error


@dataclass
class FitState:
    """Where a fit is; plain numbers, so that it can be written and taken up again.

    Args:
        theta: The parameters (P,).
        best: Those with the least held-out error so far.
        error: That error.
        average: The averaged parameters.
        curvature: (P, P), averaged; None before the first iteration.
        damping: Of the next step.
        iteration: How many are done.
        idle: Iterations since the error fell.
        held: The held-out error by iteration.
        seconds: What the fit cost before this call took it up.
        calls: Network evaluations before.
    """

    theta: Tensor
    best: Tensor
    error: float
    average: Tensor
    curvature: Tensor | None = None
    damping: float = DAMPING
    iteration: int = 0
    idle: int = 0
    held: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    calls: int = 0


@dataclass(frozen=True, eq=False)
class Task:
    """What is fitted to what.

    Args:
        model: What the sampler runs on.
        form: What its parameters mean.
        targets: The converged samples.
        fit: Samples that the steps are computed from.
        held: Samples that only judge.
        method: backward or differences.
        batch: Samples an iteration.
    """

    model: Model
    form: Form
    targets: Targets
    fit: tuple[int, ...]
    held: tuple[int, ...]
    method: str
    batch: int

    @torch.no_grad()
    def error(self, theta: Tensor, samples: Sequence[int]) -> Tensor:
        """The distance of the results to the targets (n,); infinite where theta has no table."""
        try:
            arrays = self.form.arrays(theta)
        except GridError:
            return torch.full((len(samples),), torch.inf, dtype=torch.float64)
        errors = [
            distance(roll(self.model, arrays, some).result, self.targets.of(some))
            for some in (samples[i : i + TOGETHER] for i in range(0, len(samples), TOGETHER))
        ]
        return torch.nan_to_num(torch.cat(errors), nan=torch.inf).clamp(min=1e-12)

    def typical(self, theta: Tensor, samples: Sequence[int]) -> float:
        """The geometric mean of the errors."""
        return typical(self.error(theta, samples))

    def chosen(self, iteration: int) -> list[int]:
        """The samples of an iteration: all of them in a new order, then again."""
        many = min(self.batch, len(self.fit))
        rounds = len(self.fit) // many
        generator = torch.Generator().manual_seed(iteration // rounds)
        order = torch.randperm(len(self.fit), generator=generator)
        begin = iteration % rounds * many
        return [self.fit[i] for i in order[begin : begin + many].tolist()]

    def slope(self, theta: Tensor, iteration: int) -> Slope:
        """How the error moves with the parameters, from the samples of an iteration."""
        samples = self.chosen(iteration)
        problem = (self.model, self.form, theta, samples, self.targets.of(samples))
        if self.method == "backward":
            generator = torch.Generator().manual_seed(iteration)
            return rollout.backward(*problem, floor=self.targets.floor, generator=generator)
        with torch.no_grad():
            return rollout.differences(*problem, floor=self.targets.floor)


def begin(task: Task) -> FitState:
    """A fit that has not moved."""
    zero = task.form.zero()
    error = task.typical(zero, task.held)
    return FitState(zero, zero, error, zero, held=[(0, error)])


def improve(
    task: Task, state: FitState, until: Callable[[FitState], bool], log: Callable[[FitState], None]
) -> FitState:
    """Iterate until there is no held-out gain for a while.

    Args:
        task: The fit.
        state: Where it is.
        until: Ends it where it is true of the state.
        log: Gets every state.
    """
    while not until(state) and state.idle < PATIENCE:
        state = step(task, state)
        log(state)
    return state


def step(task: Task, state: FitState) -> FitState:
    """One iteration: a slope, the best of a few damped steps, and the held-out error."""
    slope = task.slope(state.theta, state.iteration)
    curvature = slope.curvature
    if state.curvature is not None:
        curvature = MEMORY * state.curvature + (1 - MEMORY) * curvature
    proposals = [
        (state.damping * f, _move(curvature, slope.gradient, state.damping * f))
        for f in (0.2, 1.0, 5.0)
    ]
    samples = _judges(task, state.iteration)
    here = task.typical(state.theta, samples)
    scored = [
        (task.typical(state.theta + move, samples), damping, move) for damping, move in proposals
    ]
    error, damping, move = min(scored, key=lambda one: one[0])
    if error < here:
        theta, damping = state.theta + move, max(LEAST, damping)
    else:
        theta, damping = state.theta, min(MOST, state.damping * 10)
    average = AVERAGE * state.average + (1 - AVERAGE) * theta
    new = replace(
        state, theta=theta, average=average, curvature=curvature, damping=damping,
        iteration=state.iteration + 1,
    )  # fmt: skip
    return look(task, new)


def _judges(task: Task, iteration: int) -> list[int]:
    """The samples that say which step is best: of this iteration and of the one before."""
    return list(dict.fromkeys(task.chosen(iteration) + task.chosen(max(iteration - 1, 0))))


def _move(curvature: Tensor, gradient: Tensor, damping: float) -> Tensor:
    """The step to the lowest point of the damped quadratic model."""
    scale = curvature.diagonal().clamp(min=1e-12)
    ridge = RIDGE * scale.mean()
    move: Tensor = -torch.linalg.solve(curvature + torch.diag(damping * scale + ridge), gradient)
    return move


def look(task: Task, state: FitState) -> FitState:
    """The held-out error of the parameters and of their average; the best is kept."""
    tried = [(task.typical(theta, task.held), theta) for theta in (state.theta, state.average)]
    error, theta = min(tried, key=lambda one: one[0])
    held = [*state.held, (state.iteration, error)]
    if error < state.error:
        idle = 0 if error < 0.99 * state.error else state.idle + 1
        return replace(state, best=theta, error=error, held=held, idle=idle)
    return replace(state, held=held, idle=state.idle + 1)


def moved(state: FitState, theta: Tensor) -> FitState:
    """The state at other parameters."""
    return replace(state, theta=theta, average=theta)
