"""The formulas of solvers, in pairs (alpha, sigma), so that alpha = 0 and sigma = 0 are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import ArgumentError, GridError, among, whole
from ..grids import Grid
from ..process import Level, double

SERIES = 0.2  # |z| below which phi functions are a series; above it the recurrence is accurate
TERMS = 14  # of that series
LONG = 1.2  # in lam, see `long_last`
VARIANTS = ("midpoint", "heun")  # of a line through two predictions, see `line`


# -- one step of a constant denoised sample ------------------------------------------------------
def shrink(now: Level, new: Level) -> Tensor:
    """e^(-h) = (sigma'/alpha') / (sigma/alpha): 0 from pure noise and to the clean level."""
    return (new.sigma * now.alpha) / (new.alpha * now.sigma)


def keep(now: Level, new: Level) -> Tensor:
    """sigma' / sigma: the factor of x in every exact step with a constant denoised sample."""
    return new.sigma / now.sigma


def gain(now: Level, new: Level) -> Tensor:
    """alpha' - alpha·sigma'/sigma: the factor of a constant denoised sample in an exact step."""
    return new.alpha - now.alpha * new.sigma / now.sigma


def gap(now: Level, new: Level) -> Tensor:
    """h = lam' - lam; inf where either end is infinite."""
    return new.lam - now.lam


def finite_lam(level: Level) -> bool:
    """Whether lam is finite, so that the level can be an interpolation node in lam."""
    return bool((level.alpha > 0) & (level.sigma > 0))


# -- a step of the reverse SDE -------------------------------------------------------------------
class Noised(NamedTuple):
    """`x' = keep·x + alpha'·(1 - rest)·D + fresh·eps`: exact for a constant denoised sample D."""

    keep: Tensor  # sigma'/sigma · e^(-eta·h)
    fresh: Tensor  # sigma' · sqrt(1 - e^(-2·eta·h))
    rest: Tensor  # e^(-H), H = (1 + eta)·h


def noised(now: Level, new: Level, eta: float) -> Noised:
    """One step of the reverse SDE with eta times its noise; eta = 0 is the probability-flow ODE."""
    fall = shrink(now, new)
    if not eta:
        return Noised(keep(now, new), new.sigma * 0, fall)
    fall = fall if bool(fall > 0) else fall.detach()  # fall^eta has no finite slope at 0
    left = (1 - fall ** (2 * eta)).clamp(min=0)
    fresh = new.sigma * torch.sqrt(left if bool(left > 0) else left.detach())  # nor has the root
    return Noised(keep(now, new) * fall**eta, fresh, fall ** (1 + eta))


def ancestral_kept(now: Level, new: Level, eta: float) -> Tensor:
    """sigma' · sqrt(1 - eta²·(1 - e^(-2h))): the old noise beside eta times DDPM's."""
    fall = shrink(now, new)
    return new.sigma * (fall if eta == 1 else torch.sqrt(1 - eta**2 * (1 - fall**2)))


# -- the coordinates in which slopes are predictions ----------------------------------------------
class Frame(NamedTuple):
    """Coordinates y = x / m, s = sigma / m in which the slope dy/ds is a prediction.

    It is the noise where m = alpha, the velocity where m = alpha + sigma.
    """

    basis: str

    def m(self, level: Level) -> Tensor:
        """The scale m of a level."""
        return level.alpha if self.basis == "noise" else level.alpha + level.sigma

    def s(self, level: Level) -> Tensor:
        """The noise s of a level in these coordinates."""
        return level.sigma / self.m(level)


def frame(grid: Grid) -> Frame:
    """Velocity for flows and grids that begin at pure noise, where sigma / alpha is infinite.

    Behind other slopes, those that they are kept in.
    """
    if grid.slopes is not None:
        return Frame(grid.slopes)
    flow = grid.process.kind == "flow" or bool((grid.alpha == 0).any())
    return Frame("velocity" if flow else "noise")


# -- history -------------------------------------------------------------------------------------
def rising(grid: Grid, k: int, wanted: int, *, across_noise: bool = True) -> int:
    """How many of the newest predictions at step k lie ever farther behind it: 1 … `wanted`.

    At noisier levels; of an inversion, whose steps go up, at cleaner ones. A restart ends the
    history. Without `across_noise` fresh noise ends it too, for slopes contain the noise and would
    extrapolate it.
    """
    count, way = 1, torch.sign(gap(grid[k], grid.end(k)))
    while count < wanted and k - count >= 0:
        if not bool(way * gap(grid[k - count], grid[k - count + 1]) > 0):
            break
        if not across_noise and grid.renoised(k - count + 1):
            break
        count += 1
    return count


def usable(grid: Grid, k: int, wanted: int) -> int:
    """As `rising`, for interpolation in lam, where pure noise and the clean level are no nodes."""
    if not finite_lam(grid[k]) or not finite_lam(grid.end(k)):
        return 1
    count = rising(grid, k, wanted)
    return count if finite_lam(grid[k - count + 1]) else count - 1


def correctable(grid: Grid, k: int) -> bool:
    """Whether the prediction at level k can correct the step that led there."""
    return k > 0 and finite_lam(grid[k - 1]) and not grid.renoised(k)


def long_last(grid: Grid, k: int) -> bool:
    """Whether step k is the last before the one to the clean level and longer than `LONG` in lam.

    As on `normal`, and in few steps on `karras`: to extrapolate so far is worse than not to.
    """
    if k != grid.steps - 2 or bool(grid.sigma[-1] > 0):
        return False
    return bool(gap(grid[k], grid.end(k)) > LONG)


def schedule(order: int | str, steps: int) -> list[int]:
    """The order of every step, from a number or a string such as "12332"."""
    if not isinstance(order, str):
        return [whole("order", order, 1, 3)] * steps
    if len(order) != steps or not set(order) <= set("123"):
        raise ArgumentError(
            f"an order schedule for {steps} steps is {steps} digits of 1 to 3, got {order!r}"
        )
    return [int(digit) for digit in order]


# -- exponential integrators ---------------------------------------------------------------------
def phi(order: int, z: Tensor) -> Tensor:
    """phi_k(z) = int_0^1 e^((1-u)z) u^(k-1)/(k-1)! du, k >= 1, accurate for every z.

    phi_1 = (e^z - 1)/z and phi_{k+1}(z) = (phi_k(z) - 1/k!)/z. arXiv 2308.02157.
    """
    if bool(z.abs() >= SERIES):
        closed = torch.expm1(z) / z
        for k in range(1, order):
            closed = (closed - 1 / math.factorial(k)) / z
        return closed
    at: Any = z if z.requires_grad else z.item()  # a float, for small tensors are slow
    series: Any = 0.0
    for i in reversed(range(TERMS)):
        series = series * at + 1 / math.factorial(i + order)
    return double(series)


def fit(nodes: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Tensor]:
    """Weights w with sum_j w_j·node_j^p = moment_p for p = 0 … n - 1."""
    if len(nodes) == 1:
        return [moments[0]]
    matrix = torch.stack([torch.stack(list(nodes)) ** p for p in range(len(nodes))])
    try:
        return list(torch.linalg.solve(matrix, torch.stack(list(moments))))
    except RuntimeError as error:  # LinAlgError, which torch.linalg does not export
        raise GridError(
            f"no polynomial goes through {len(nodes)} predictions that lie"
            f" {float(max(nodes) - min(nodes)):.3g} apart; use order=1, or levels that begin with"
            " less noise, e.g. grid='leading'"
        ) from error


def decaying(h: Tensor, count: int) -> list[Tensor]:
    """h · int_0^1 e^(-(1-u)h) u^p du, p = 0 … count - 1: what denoised u^p adds to x'/alpha'."""
    return [h * math.factorial(p) * phi(p + 1, -h) for p in range(count)]


def growing(h: Tensor, count: int) -> list[Tensor]:
    """h · int_0^1 e^((1-u)h) u^p du, p = 0 … count - 1: what a slope u^p adds to -y'/s'."""
    return [h * math.factorial(p) * phi(p + 1, h) for p in range(count)]


def line(size: Tensor, z: Tensor, r: Tensor, variant: str) -> list[Tensor]:
    """Weights of the newest prediction and of one r·h before it, for a step of h.

    Their sum is size·phi_1(z). "heun" integrates the line through both exactly; in "midpoint", the
    published one, its slope counts half of the value. They agree as the step tends to 0.
    """
    among("variant", variant, VARIANTS)
    total = size * phi(1, z)
    tilt = (total / 2 if variant == "midpoint" else size * phi(2, z)) / r
    return [total + tilt, -tilt]


def parabola(size: Tensor, z: Tensor, r0: Tensor, r1: Tensor, curvature: float) -> list[Tensor]:
    """Weights of three predictions, newest first, r0·h and r1·h between them: their parabola.

    `curvature` multiplies the second derivative. h·D' = d0 + (d0 - d1)·r0/(r0 + r1) and
    h²·D'' = 2·(d0 - d1)/(r0 + r1) with d0 = (h0 - h1)/r0, d1 = (h1 - h2)/r1;
    D = h0 + h·D'·u + h²·D''·u²/2 for u in [0, 1] along the step.
    """
    first, bend = size * phi(2, z), size * phi(3, z) * 2 * curvature
    spread = (first * r0 + bend) / (r0 + r1)
    d0, d1 = (first + spread) / r0, -spread / r1
    return [size * phi(1, z) + d0, d1 - d0, -d1]
