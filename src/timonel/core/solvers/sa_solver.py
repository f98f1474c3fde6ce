"""SA-Solver (Xue et al. 2023, arXiv 2309.05019): a stochastic Adams predictor-corrector.

With H = (1 + eta)·h the predictor integrates the polynomial in lam through the past predictions,
and the next prediction then corrects the step that led to it, with the noise of that step. `base`
is the sample of the step evolved to the new level, noise included, without the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import among, finite, whole
from ..grids import Grid, ratio
from ..process import EDM, Level, Process
from ..table import Rows, Table
from .algebra import correctable, decaying, finite_lam, fit, gap, long_last, noised, usable

VARIANTS = ("exact", "simple", "comfyui")
MOST = 4  # predictions of a step


def sa_solver(
    grid: Grid,
    *,
    eta: float = 1.0,
    start: float = 0.2,
    stop: float = 0.8,
    predictor_order: int = 2,
    corrector_order: int = 2,
    variant: str = "exact",
) -> Table:
    """SA-Solver: a stochastic Adams predictor and corrector.

    Of order min(corrector, predictor + 1), or the predictor's without corrector; at most 2 (weak)
    for eta > 0. A long last step before the one to the clean level, as on `normal`, is predicted
    with order 1: to extrapolate so far is worse.

    Args:
        grid: the levels.
        eta: noise, tau² of the paper, 0 … 100.
        start: eta acts where a step ends at t/T >= start, t the training time, in [0, 1].
        stop: and t/T <= stop, in [0, 1].
        predictor_order: number of predictions, 1 … 4.
        corrector_order: number of predictions, the new one included, 1 … 4; 0: none.
        variant: "exact"; "simple" does as diffusers: with two predictions the first moment is H/2,
            t is that where a step begins, and a long step is extrapolated too; "comfyui": the
            orders fall one step earlier towards the clean end, and a long step is no exception.

    Source: Xue et al. 2023, arXiv 2309.05019.
    """
    noise = _Noise.of(eta, start, stop)
    return _sa_solver("sa_solver", grid, noise, predictor_order, corrector_order, variant)


def sa_solver_pece(
    grid: Grid,
    *,
    eta: float = 1.0,
    start: float = 0.2,
    stop: float = 0.8,
    predictor_order: int = 3,
    corrector_order: int = 4,
    variant: str = "comfyui",
) -> Table:
    """SA-Solver that calls the network again after the corrector, as PECE methods do.

    Later steps read the second prediction of a level, not the first. Order and long steps as in
    `sa_solver`.

    Args:
        grid: the levels.
        eta: noise, tau² of the paper, 0 … 100.
        start: eta acts where a step ends at t/T >= start, t the training time, in [0, 1].
        stop: and t/T <= stop, in [0, 1].
        predictor_order: number of predictions, 1 … 4.
        corrector_order: number of predictions, the new one included, 1 … 4.
        variant: "comfyui", see `sa_solver`; "exact" with orders 2 and 2 ends as near or nearer
            (energy distance on a flow, `simple`, 8 steps: .0026 for .0058); "simple".

    Source: Xue et al. 2023, arXiv 2309.05019; sample_sa_solver_pece of ComfyUI.
    """
    noise = _Noise.of(eta, start, stop)
    whole("corrector_order", corrector_order, 1, MOST)
    return _sa_solver(
        "sa_solver_pece", grid, noise, predictor_order, corrector_order, variant, again=True
    )


class _Noise(NamedTuple):
    """How much noise, and between which times."""

    eta: float
    start: float
    stop: float

    @classmethod
    def of(cls, eta: float, start: float, stop: float) -> _Noise:
        return cls(
            finite("eta", eta, 0, 100), finite("start", start, 0, 1), finite("stop", stop, 0, 1)
        )

    def at(self, process: Process, level: Level) -> float:
        """eta of a step whose time is that of `level`."""
        return self.eta if self.start <= share(process, level) <= self.stop else 0.0


def _sa_solver(
    name: str,
    grid: Grid,
    noise: _Noise,
    predictor_order: int,
    corrector_order: int,
    variant: str,
    *,
    again: bool = False,
) -> Table:
    """The rows of both; `again`: a corrected sample gets a network call of its own."""
    ahead = whole("predictor_order", predictor_order, 1, MOST)
    back = whole("corrector_order", corrector_order, 0, MOST)
    early = among("variant", variant, VARIANTS) == "comfyui"
    history = max(2 * ahead - 1, 2 * back - 2, 1) if again else max(ahead, back)
    rows = Rows(name, grid, order=_order(grid, noise, ahead, back, again), history=history)
    eta_here = 0.0  # of the step that led to level k
    newest: list[int] = []  # the row of every level's prediction that later steps read
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        here = {"x": torch.ones_like(now.alpha)}
        newest.append(rows.count)
        if back and correctable(grid, k):
            count = min(back, usable(grid, k - 1, back) + 1, _until_clean(grid, k) + 1 - early)
            correction = _adams(grid, k - 1, count, eta_here, variant, corrects=True)
            here = {"base": torch.ones_like(now.alpha)} | _placed(correction, newest)
            if again:
                rows.add(k, now, here)
                newest[-1] = rows.count
                here = {"x": torch.ones_like(now.alpha)}
        eta_here = noise.at(grid.process, now if variant == "simple" else new)
        move = noised(now, new, eta_here)
        evolved = {name: move.keep * c for name, c in here.items()} | {"eps": move.fresh}
        most = min(ahead, max(_until_clean(grid, k) - early, 1))
        most = 1 if variant == "exact" and long_last(grid, k) else most
        x = dict(evolved)
        prediction = _adams(grid, k, usable(grid, k, most), eta_here, variant, corrects=False)
        for name, c in _placed(prediction, newest).items():
            x[name] = x.get(name, 0.0) + c
        rows.add(k, now, x, base=evolved)
    return rows.table()


def _order(grid: Grid, noise: _Noise, ahead: int, back: int, again: bool) -> int:
    """The order; fresh noise between the predictions of `again` leaves 1."""
    if again and grid.ends is not None:
        return 1
    order = min(back, ahead + 1) if back else ahead
    return min(order, 2) if noise.eta else order


def _placed(weights: list[Tensor], newest: Sequence[int]) -> dict[str, Tensor]:
    """Weights of the predictions of levels, newest first, by register of the row to come."""
    return {f"h{newest[-1] - newest[-1 - j]}": w for j, w in enumerate(weights)}


def _until_clean(grid: Grid, k: int) -> int:
    """Steps from k to a clean end; `MOST` where the grid has none."""
    return grid.steps - k if bool(grid.sigma[-1] == 0) else MOST


def _adams(
    grid: Grid, k: int, count: int, eta: float, variant: str, *, corrects: bool
) -> list[Tensor]:
    """What `count` predictions add over step k, newest first; `corrects`: one is at its end."""
    now, new = grid[k], grid.end(k)
    if not finite_lam(now) or not finite_lam(new):
        return [new.alpha * (1 - noised(now, new, eta).rest)]
    h = gap(now, new)
    past = [gap(now, grid[k - j]) / h for j in range(count - corrects)]
    nodes = [torch.ones_like(h), *past] if corrects else past
    moments = decaying((1 + eta) * h, len(nodes))
    if variant == "simple" and len(nodes) == 2:
        moments[1] = (1 + eta) * h / 2
    return [new.alpha * w for w in fit(nodes, moments)]


def share(process: Process, level: Level) -> float:
    """t/T: where a level lies in the training range, 0 (clean) to 1 (noisiest)."""
    if not bool(level.sigma > 0):
        return 0.0
    if isinstance(process, EDM):
        low, high = math.log(process.sigma_min), math.log(process.sigma_max)
        return (math.log(ratio(level)) - low) / (high - low)
    return level.time.item() / process.train_steps
