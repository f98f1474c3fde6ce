"""Inversion: from the sample at the end of a deterministic table back to the one it began with.

A step takes x to `end(x)`, and its inverse solves `end(x) = target` by

    x  <-  x + (target - end(x)) / slope

where `slope` is the step's factor of x while the predicted noise (of a flow the velocity) stays
what it is. One such iteration from x = target is DDIM inversion: reverse Euler, one call a row, its
error of the order of the step. Repeated it is a fixed-point iteration, mixed after Anderson, whose
error is the tolerance wherever it converges: the inverse is then that of the very table, with the
network calls, coefficients and rounding of a run.

A row of a multistep solver also reads predictions of rows before it, so its equation has more than
one unknown. But a table is linear in its first sample and in the predicted noise of its rows: from
the noise of all rows the whole journey to the given end follows, and from its samples the noise.
That is solved as one fixed point, mixed after Anderson too. It needs memory for twice twelve
journeys, where single steps need that of eight samples.

Source: Song et al. 2020, arXiv 2010.02502, section 4.3 (reverse Euler); Pan et al. 2023, AIDI,
arXiv 2309.04907, and Garibi et al. 2024, ReNoise, arXiv 2403.14602 (fixed points); Hong et al.
2023, arXiv 2311.18387 (exact inverses of multistep solvers); Walker & Ni 2011, "Anderson
acceleration for fixed-point iterations".
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
DEPTH, LONG = 4, 12  # iterates that Anderson's mixing reads, of a step and of a whole journey
FLOW = 1e-6  # how far alpha + sigma of a flow is from 1
BETTER, PATIENCE = 0.95, 4  # progress of a residual; iterations without it, by depth
WORSE = 1e3  # times its smallest residual: then an iteration does not converge
FAINT = 1e-3  # alpha below which the noise says nothing of the sample


@dataclass(frozen=True, eq=False)
class Inverted:
    """The inverse of a sample.

    Args:
        latents: (batch, …), the sample at the table's beginning.
        method: "fixed_point" or "ddim".
        calls: network calls of the inversion, without those of the round trip.
        iterations: the most that a step took; of a multistep table those of the whole journey.
        residuals: of every step, in order: rms of what its equation is off by, relative to the rms
            of its sample, of the worst sample (of a multistep table that of the whole journey);
            empty for "ddim", which does not look.
        converged: whether every residual is within the tolerance; False for "ddim".
        result: (batch, …), where the table takes `latents`; it ran once more for it.
        error: (batch,), rms of `result` minus the sample, relative to the rms of that.
    """

    latents: Tensor = field(repr=False)
    method: str
    calls: int
    iterations: int
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
    if table.reads_uncond:
        raise ArgumentError(
            f"{table.solver!r} reads unconditional predictions, which no inverse follows here:"
            f" choose {table.solver.removesuffix('_cfg_pp')!r}"
        )
    if table.stochastic:
        raise ArgumentError(
            f"{table.solver!r} draws noise, so what it began with does not follow from its end:"
            " invert with a deterministic sampler, e.g. 'ddim', 'dpmpp_2m' or eta=0"
        )


def settings(method: str, tolerance: float, iterations: int) -> None:
    """Refuse settings that no inversion can have.

    Args:
        method: see `invert`.
        tolerance: see `invert`.
        iterations: see `invert`.

    Raises:
        ArgumentError: a value that is none.
        UnknownName: no method of that name.
    """
    among("inversion method", method, METHODS)
    finite("tolerance", tolerance, 1e-12, 1)
    whole("iterations", iterations, 1, 10_000)


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
        iterations: at most so many for a step, or for the journey of a multistep table.

    Returns:
        The inverse, and how far its round trip is off.

    Raises:
        ArgumentError: before any network call, for a table without an inverse or a bad argument.
    """
    border.tensor("the sample to invert", x)
    settings(method, tolerance, iterations)
    check(instance("table", table, Table, "a timonel table, Sampler(…).compile(process)"))
    table = table.detach()
    guided = CompiledGuidance.of(guidance, table, model.prediction)
    if any(guided.weights) or guided.method is not None or any(guided.added):
        raise ArgumentError(
            "only plain guidance is inverted, cfg(scale): leave forecast=, other methods and terms"
            " such as pag(…) out"
        )
    solving = Solving(model, table, guided, tuple(conditions), tolerance, iterations)
    with torch.no_grad():
        start, iterations = solving.back(x, method)
        run = run_on(model, table, guidance=guidance)
        run.start(start)
        result = finish(run, model, conditions)
    residuals = tuple(solving.residuals) if method == "fixed_point" else ()
    converged = bool(residuals) and solving.settled
    error = _rms(result - x) / _rms(x)
    return Inverted(
        start,
        method,
        solving.calls,
        iterations,
        residuals,
        converged,
        result,
        tuple(error.tolist()),
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
        self.sums = linear_parts(table)
        begins = [table.first_row(step) for step in range(table.steps + 1)]
        self.slopes = (self.sums[begins[1:], 0] / self.sums[begins[:-1], 0]).tolist()
        self.residuals = [0.0] * table.steps
        self.calls, self.settled = 0, False

    def back(self, x: Tensor, method: str) -> tuple[Tensor, int]:
        """The sample at the beginning, and the most iterations that a step took."""
        steps = range(self.table.steps)
        if method == "ddim" and self.remembers:
            return self._guess(x)[:, 0], 1
        if method == "ddim":
            for step in reversed(steps):
                x = x + self._mover(step, x)(x)
            return x, 1
        if self.remembers:
            return self._journey(x)
        most = 0
        for step in reversed(steps):
            x, self.residuals[step], count = self._solved(self._mover(step, x), x)
            most = max(most, count)
        self.settled = max(self.residuals) <= self.tolerance
        return x, most

    def _mover(self, step: int, target: Tensor) -> Callable[[Tensor], Tensor]:
        """What one iteration adds to x, so that a step from there comes nearer to `target`."""
        return lambda x: (target - self._end(step, x)) / self.slopes[step]

    def _guess(self, x: Tensor) -> Tensor:
        """The samples (batch, K, …) of a journey to x, with each row's noise for that of all."""
        each: list[Tensor] = []
        for row in reversed(range(self.table.nfe)):
            now, new = self.sums[row], self.sums[row + 1]
            slope = float(new[0] / now[0])
            x = (x - float((new - slope * now)[1:].sum()) * self._predicted(row, x)) / slope
            each.append(x)
        return torch.stack(each[::-1], 1)

    def _journey(self, x: Tensor) -> tuple[Tensor, int]:
        """The sample at the beginning of a multistep table, and the iterations that it took.

        From the predicted noise of every row all samples of the journey follow, the first one too;
        from the samples follows the noise.
        """
        sums = self.sums

        def move(samples: Tensor) -> Tensor:
            held = [self._predicted(row, samples[:, row]) for row in range(self.table.nfe)]
            flat = torch.stack(held, 1).flatten(2)
            weights = sums.to(flat)
            gone = torch.einsum("j,bjd->bd", weights[-1, 1:], flat)
            start = (x.flatten(1) - gone) / weights[-1, 0]
            moved = torch.einsum("kj,bjd->bkd", weights[:-1, 1:], flat)
            moved = moved + weights[:-1, :1] * start[:, None]
            return moved.reshape(samples.shape) - samples

        best, worst, count = self._solved(move, self._guess(x), LONG)
        self.residuals = [worst] * self.table.steps
        self.settled = worst <= self.tolerance
        return best[:, 0], count

    def _predicted(self, row: int, x: Tensor) -> Tensor:
        """The predicted noise, or velocity, of a row."""
        clean = self.program.denoised(row, x, self._raw(row, x))
        c_x, c_held = _clean(self.table, row)
        return combine([(1 / c_held, clean), (-c_x / c_held, x)], x.dtype)

    def _solved(
        self, move: Callable[[Tensor], Tensor], x: Tensor, depth: int = DEPTH
    ) -> tuple[Tensor, float, int]:
        """Where `move` is 0: the best iterate of each sample, its residual, and their number."""
        mixing, best = Anderson(depth), x
        least, count = torch.full((len(x),), math.inf, dtype=torch.float64), 0
        mark, since = math.inf, 0  # the residual that counts as progress, and when it was reached
        while count < self.iterations:
            count += 1
            step = move(x)
            off = (_rms(step) / _rms(x)).nan_to_num(math.inf)
            better = (off < least).to(x.device)
            best = torch.where(better.reshape(-1, *[1] * (x.ndim - 1)), x, best)
            least = torch.minimum(least, off)
            if float(least.max()) < BETTER * mark:
                mark, since = float(least.max()), count
            stuck = count - since >= PATIENCE * depth or not bool((off < WORSE * least).any())
            if stuck or float(least.max()) <= self.tolerance:
                break
            x = mixing(x, step)
        return best, float(least.max()), count

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

    Args:
        depth: how many iterates it reads.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
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
        self.xs = [*self.xs, x.flatten(1).to(wide)][-self.depth :]
        self.moves = [*self.moves, move.flatten(1).to(wide)][-self.depth :]
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
