"""Inversion: from the sample at the end of a deterministic table back to the one it began with.

A step takes x to `end(x)`, and its inverse solves `end(x) = target` by

    x  <-  x + (target - end(x)) / slope

where `slope` is the step's factor of x while the predicted noise (of a flow the velocity) stays
what it is. One such iteration from x = target is DDIM inversion: reverse Euler, one call a row, with
an error of the order of the step. Repeated it is a fixed-point iteration, mixed after Anderson, and
its error is the tolerance wherever it converges: the inverse is then that of the very table, with
the network calls, coefficients and rounding of a run.

A table is linear in its first sample and in the predicted noise of its rows. So where a row reads
predictions of rows before it, as multistep solvers do, its equation has their predicted noise as it
was in the sweep before, and sweeps go from the end to the beginning until none changes; the first
sweep takes the row's own for them.

Source: Song et al. 2020, arXiv 2010.02502, section 4.3 (reverse Euler); Pan et al. 2023, AIDI,
arXiv 2309.04907, and Garibi et al. 2024, ReNoise, arXiv 2403.14602 (fixed points); Hong et al. 2023,
arXiv 2311.18387 (exact inverses of multistep solvers); Walker & Ni 2011 (Anderson's mixing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import border
from ..core.guidance import CompiledGuidance, Guidance
from ..core.kernel import combine
from ..core.program import Program, State
from ..core.table import Table
from ..errors import ArgumentError, among, finite, instance, whole
from .drive import finish, run_on
from .network import Query, RunnableNetwork

METHODS = ("fixed_point", "ddim")
DEPTH = 4  # earlier iterates that Anderson's mixing reads
FLOW = 1e-6  # how far alpha + sigma of a flow is from 1
ROUNDING = 1e-12  # of the largest weight of a row, below which one is nothing
WORSE = 1e3  # times the smallest change: then the sweeps do not converge
FAINT = 1e-3  # alpha below which the noise says nothing of the sample


@dataclass(frozen=True, eq=False)
class Inverted:
    """The inverse of a sample.

    Args:
        latents: (batch, …), the sample at the table's beginning.
        method: "fixed_point" or "ddim".
        calls: network calls of the inversion, without those of the round trip.
        sweeps: from the end to the beginning.
        residuals: of every step, in order: rms of what its equation is off by, relative to the rms
            of its sample, of the worst sample; empty for "ddim", which does not look.
        converged: whether every residual is within the tolerance; False for "ddim".
        result: (batch, …), where the table takes `latents`; it ran once more for it.
        error: (batch,), rms of `result` minus the sample, relative to the rms of that.
    """

    latents: Tensor = field(repr=False)
    method: str
    calls: int
    sweeps: int
    residuals: tuple[float, ...] = field(repr=False)
    converged: bool
    result: Tensor = field(repr=False)
    error: tuple[float, ...]


def check(table: Table) -> None:
    """Refuse a table whose steps have no inverse here.

    Args:
        table: of a sampler.

    Raises:
        ArgumentError: it draws noise.
    """
    if table.stochastic:
        raise ArgumentError(
            f"{table.solver!r} draws noise, so what it began with does not follow from its end:"
            " invert with a deterministic sampler, e.g. 'ddim', 'dpmpp_2m' or eta=0"
        )


def invert(
    model: RunnableNetwork,
    table: Table,
    x: Tensor,
    *,
    conditions: Sequence[int] = (),
    guidance: Guidance | None = None,
    method: str = "fixed_point",
    tolerance: float = 1e-5,
    iterations: int = 50,
) -> Inverted:
    """The sample that a table takes to x.

    Args:
        model: the network.
        table: of a deterministic sampler, compiled for its process.
        x: (batch, …), the sample at the table's end.
        conditions: the slot of each sample's conditions.
        guidance: of the rows; None is the network's.
        method: "fixed_point" solves every step; "ddim" reverses it approximately, in one call a
            row.
        tolerance: residual of a step, relative to its sample, 1e-12 … 1.
        iterations: at most so many for a step, and at most so many sweeps.

    Returns:
        The inverse, and how far its round trip is off.

    Raises:
        ArgumentError: before any network call, for a table without an inverse or a bad argument.
    """
    border.tensor("the sample to invert", x)
    among("inversion method", method, METHODS)
    finite("tolerance", tolerance, 1e-12, 1)
    whole("iterations", iterations, 1, 10_000)
    check(instance("table", table, Table, "a timonel table, Sampler(…).compile(process)"))
    table = table.detach()
    guided = CompiledGuidance.of(guidance, table, model.prediction)
    if any(guided.weights):
        raise ArgumentError("guidance with a forecast cannot be inverted: leave forecast= out")
    solving = Solving(model, table, guided, tuple(conditions), tolerance, iterations)
    with torch.no_grad():
        start, sweeps = solving.back(x, method)
        run = run_on(model, table, guidance=guidance)
        run.start(start)
        result = finish(run, model, conditions)
    residuals = tuple(solving.residuals) if method == "fixed_point" else ()
    converged = bool(residuals) and solving.settled
    error = _rms(result - x) / _rms(x)
    return Inverted(
        start, method, solving.calls, sweeps, residuals, converged, result, tuple(error.tolist())
    )


class Solving:
    """The steps of a table, solved from the last to the first.

    Args:
        model: the network.
        table: see `invert`.
        guided: its guidance.
        conditions: see `invert`.
        tolerance: see `invert`.
        iterations: see `invert`.
    """

    def __init__(
        self,
        model: RunnableNetwork,
        table: Table,
        guided: CompiledGuidance,
        conditions: tuple[int, ...],
        tolerance: float,
        iterations: int,
    ) -> None:
        self.model, self.table, self.guided, self.conditions = model, table, guided, conditions
        self.tolerance, self.iterations = tolerance, iterations
        self.program = Program.bind(table, model.prediction, model.denoised_fn)
        self.remembers = any(table.remembers(step) for step in range(1, table.steps))
        sums = linear_parts(table)[:, 0]
        begins = [table.first_row(step) for step in range(table.steps + 1)]
        self.slopes = (sums[begins[1:]] / sums[begins[:-1]]).tolist()
        self.residuals = [0.0] * table.steps
        self.held: dict[int, Tensor] = {}  # what each row has predicted
        self.calls, self.settled = 0, False

    def back(self, x: Tensor, method: str) -> tuple[Tensor, int]:
        """The sample at the beginning, and the sweeps that it took."""
        steps = range(self.table.steps)
        if method == "ddim":
            for step in reversed(steps):
                x = x + (x - self._end(step, x)) / self.slopes[step]
            return x, 1
        if self.remembers:
            return self._sweeps(x)
        for step in reversed(steps):
            x, self.residuals[step] = self._solved(self._mover(step, x), x)
        self.settled = max(self.residuals) <= self.tolerance
        return x, 1

    def _mover(self, step: int, target: Tensor) -> Callable[[Tensor], Tensor]:
        """What takes x nearer to where a step arrives at `target`."""
        return lambda x: (target - self._end(step, x)) / self.slopes[step]

    def _sweeps(self, x: Tensor) -> tuple[Tensor, int]:
        """The sample at the beginning of a multistep table, and the sweeps that it took.

        The predicted noise of a sweep is a function of that of the sweep before; what is solved is
        that they are the same.
        """
        sums, mixing = linear_parts(self.table), Anderson()
        lagged, before = list[Tensor](), list[Tensor]()
        best, least, change = x, math.inf, 1.0  # of the predicted noise, relative
        for sweep in range(1, self.iterations + 1):
            target, each = x, list[Tensor]()
            for row in reversed(range(self.table.nfe)):
                guess = before[-1 - len(each)] if before else target
                target = self._row(row, sums, guess, target, lagged)
                each.append(target)
            before = each[::-1]
            seen = torch.stack([self.held[row] for row in range(self.table.nfe)], 1)
            if sweep == 1:
                best, lagged = target, list(seen.unbind(1))
                continue
            newest = torch.stack(lagged, 1)
            change = float((_rms(seen - newest) / _rms(seen)).nan_to_num(math.inf).max())
            if change < least:
                best, least = target, change
            self.settled = max(change, *self.residuals) <= self.tolerance
            if self.settled or change > WORSE * least:
                break
            lagged = list(mixing(newest, seen - newest).unbind(1))
        return best, sweep

    def _row(
        self, row: int, sums: Tensor, x: Tensor, target: Tensor, lagged: Sequence[Tensor]
    ) -> Tensor:
        """The sample from which a row arrives at `target`, with the noise of earlier ones."""
        now, new = sums[row], sums[row + 1]
        slope = float(new[0] / now[0])
        weights = (new - slope * now)[1 : row + 2].tolist()
        size = max(map(abs, weights))
        earlier = [(w, k) for k, w in enumerate(weights[:-1]) if abs(w) > ROUNDING * size]
        if lagged and earlier:
            target = target - combine([(w, lagged[k]) for w, k in earlier], x.dtype)
        own = weights[-1] if lagged else weights[-1] + sum(w for w, _ in earlier)

        def move(x: Tensor) -> Tensor:
            held = self.held[row] = self._held(row, x)
            return (target - own * held) / slope - x

        best, self.residuals[self.table.step[row]] = self._solved(move, x)
        return best

    def _held(self, row: int, x: Tensor) -> Tensor:
        """The predicted noise, or velocity, of a row."""
        clean = self.program.denoised(row, x, self._raw(row, x))
        c_x, c_held = _clean(self.table, row)
        return combine([(1 / c_held, clean), (-c_x / c_held, x)], x.dtype)

    def _solved(self, move: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
        """Where `move` is nothing: the best of all iterates, per sample, and its residual."""
        mixing, best, least = Anderson(), x, x.new_full((len(x),), math.inf, dtype=torch.float64)
        for _ in range(self.iterations):
            step = move(x)
            off = (_rms(step) / _rms(x)).nan_to_num(math.inf)
            better = (off < least).to(x.device)
            best = torch.where(better.reshape(-1, *[1] * (x.ndim - 1)), x, best)
            least = torch.minimum(least, off)
            if float(least.max()) <= self.tolerance:
                break
            x = mixing(x, step)
        return best, float(least.max())

    def _end(self, step: int, x: Tensor) -> Tensor:
        """Where a step takes x, by the rows of a run."""
        first, history = self.table.first_row(step), self.table.history - 1
        state = State(first, x, x if self.program.uses_base else None, (None,) * history)
        for row in range(first, self.table.first_row(step + 1)):
            state, _ = self.program.execute(state, self._raw(row, state.x), None)
        return state.x

    def _raw(self, row: int, x: Tensor) -> Tensor:
        """The network's output at a row."""
        guidance = self.guided.guidance
        scale, rescale = self.guided.scales[row], guidance.rescale if guidance else 0.0
        query = Query(x, self.program.levels[row], self.conditions, scale, rescale)
        self.calls += 1
        return border.output(self.model.evaluate([query])[0].raw, x)


class Anderson:
    """Anderson's mixing of fixed-point iterates, of each sample for itself.

    A sample whose residual grows far beyond its best begins anew from there, by shorter steps.
    """

    def __init__(self) -> None:
        self.xs: list[Tensor] = []
        self.moves: list[Tensor] = []

    def __call__(self, x: Tensor, move: Tensor) -> Tensor:
        """The next iterate.

        Args:
            x: (batch, …), the newest.
            move: what a plain iteration adds to it.

        Returns:
            (batch, …).
        """
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        self.xs = [*self.xs, x.flatten(1).to(wide)][-DEPTH:]
        self.moves = [*self.moves, move.flatten(1).to(wide)][-DEPTH:]
        newest, moved = self.xs[-1], self.moves[-1]
        following = newest + moved
        if len(self.xs) > 1:
            moves = torch.stack(self.moves, 1)  # (batch, k, d)
            falls = moves[:, 1:] - moves[:, :-1]
            runs = torch.stack(self.xs, 1)
            inner = falls @ falls.mT
            size = inner.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-300)
            eye = torch.eye(inner.shape[1], dtype=wide, device=inner.device)
            share = torch.linalg.solve(inner + 1e-12 * size * eye, falls @ moved[..., None])
            both = (runs[:, 1:] - runs[:, :-1]) + falls
            following = following - (both * share).sum(1)
            following = torch.where(following.isfinite(), following, newest + moved / 2)
        return following.reshape(x.shape).to(x.dtype)


def _clean(table: Table, row: int) -> tuple[float, float]:
    """(c_x, c_held): denoised = c_x·x + c_held·(predicted noise; of a flow the velocity)."""
    alpha, sigma = float(table.alpha[row]), float(table.sigma[row])
    flow = abs(alpha + sigma - 1) < FLOW or alpha < FAINT
    size = alpha + sigma if flow else alpha
    return 1 / size, -sigma / size


def linear_parts(table: Table) -> Tensor:
    """Every sample of a journey as a sum of its first one and the predictions.

    Args:
        table: K rows, deterministic.

    Returns:
        (K + 1, K + 1): of the sample at each row, and of the result, the weights of the first
        sample and of each row's predicted noise (of a flow the velocity).
    """
    unit = torch.eye(table.nfe + 1, dtype=torch.float64)
    x = base = unit[0]
    history = [torch.zeros_like(x)] * table.history
    samples = [x]
    for row in range(table.nfe):
        alpha, sigma = float(table.alpha[row]), float(table.sigma[row])
        c_x, c_held = _clean(table, row)
        clean = c_x * x + c_held * unit[row + 1]
        bases = {
            "denoised": clean,
            "noise": (x - alpha * clean) / sigma,
            "velocity": (x - (alpha + sigma) * clean) / sigma,
        }
        history = [bases[table.basis], *history][: table.history]
        registers = torch.stack([x, base, *history, torch.zeros_like(x)])
        x, base = table.x[row] @ registers, table.base[row] @ registers
        samples.append(x)
    return torch.stack(samples)


def _rms(x: Tensor) -> Tensor:
    """(batch,) in float64 where there is one."""
    wide = x if x.device.type == "mps" else x.double()
    return wide.flatten(1).pow(2).mean(1).sqrt().cpu().double()
