"""SA-Solver (Xue et al. 2023, arXiv 2309.05019): a stochastic Adams predictor-corrector.

With H = (1 + eta)·h the predictor integrates the polynomial in lam through the past predictions,
and the next prediction then corrects the step that led to it, with the noise of that step. `base`
is the sample of the step evolved to the new level, noise included, without the predictions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import among, finite, whole
from ..grids import Grid, ratio
from ..process import EDM, Level, Process
from ..table import Rows, Table
from .algebra import correctable, decaying, finite_lam, fit, gap, long_last, noised, usable

VARIANTS = ("exact", "simple")
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
            t is that where a step begins, and a long step is extrapolated too.

    Source: Xue et al. 2023, arXiv 2309.05019.
    """
    e, low, high = (
        finite("eta", eta, 0, 100),
        finite("start", start, 0, 1),
        finite("stop", stop, 0, 1),
    )
    ahead = whole("predictor_order", predictor_order, 1, MOST)
    back = whole("corrector_order", corrector_order, 0, MOST)
    simple = among("variant", variant, VARIANTS) == "simple"
    order = min(back, ahead + 1) if back else ahead
    rows = Rows("sa_solver", grid, order=min(order, 2) if e else order, history=max(ahead, back))
    eta_here = 0.0  # of the step that led to level k
    for k in range(grid.steps):
        now, new = grid[k], grid.end(k)
        here = {"x": torch.ones_like(now.alpha)}
        if back and correctable(grid, k):
            count = min(back, usable(grid, k - 1, back) + 1, _until_clean(grid, k) + 1)
            correction = _adams(grid, k - 1, count, eta_here, variant, corrects=True)
            here = {"base": torch.ones_like(now.alpha)} | correction
        eta_here = e if low <= share(grid.process, now if simple else new) <= high else 0.0
        move = noised(now, new, eta_here)
        evolved = {name: move.keep * c for name, c in here.items()} | {"eps": move.fresh}
        most = 1 if not simple and long_last(grid, k) else min(ahead, _until_clean(grid, k))
        x = dict(evolved)
        prediction = _adams(grid, k, usable(grid, k, most), eta_here, variant, corrects=False)
        for name, c in prediction.items():
            x[name] = x.get(name, 0.0) + c
        rows.add(k, now, x, base=evolved)
    return rows.table()


def _until_clean(grid: Grid, k: int) -> int:
    """Steps from k to a clean end; `MOST` where the grid has none."""
    return grid.steps - k if bool(grid.sigma[-1] == 0) else MOST


def _adams(
    grid: Grid, k: int, count: int, eta: float, variant: str, *, corrects: bool
) -> dict[str, Tensor]:
    """What `count` predictions add over step k; `corrects`: the newest is at its end."""
    now, new = grid[k], grid.end(k)
    if not finite_lam(now) or not finite_lam(new):
        return {"h0": new.alpha * (1 - noised(now, new, eta).rest)}
    h = gap(now, new)
    past = [gap(now, grid[k - j]) / h for j in range(count - corrects)]
    nodes = [torch.ones_like(h), *past] if corrects else past
    moments = decaying((1 + eta) * h, len(nodes))
    if variant == "simple" and len(nodes) == 2:
        moments[1] = (1 + eta) * h / 2
    return {f"h{i}": new.alpha * w for i, w in enumerate(fit(nodes, moments))}


def share(process: Process, level: Level) -> float:
    """t/T: where a level lies in the training range, 0 (clean) to 1 (noisiest)."""
    if not bool(level.sigma > 0):
        return 0.0
    if isinstance(process, EDM):
        low, high = math.log(process.sigma_min), math.log(process.sigma_max)
        return (math.log(ratio(level)) - low) / (high - low)
    return level.time.item() / process.train_steps
