"""SA-Solver (Xue et al. 2023, arXiv 2309.05019): a stochastic Adams predictor-corrector, 1 call per
step.

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
from .algebra import decaying, finite_lam, fit, gap, long_last, noised, usable

VARIANTS = ("exact", "simple")


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
    """Stochastic Adams predictor of order 1 to 4 and corrector of order 0 (none) to 4. 1 call per
    step, stochastic.

    eta = tau² of the paper, used where start <= t/T <= stop, t the training time where a step ends
    (0.2 and 0.8). A corrector of order p uses p predictions, the new one included. The last step
    before the one to the clean level is predicted with order 1 where it is longer than 1.2 in lam,
    as on `normal` and in few steps on `karras`: an extrapolation over so much is worse than none.
    variant "simple" does as diffusers: it replaces, where two predictions are used, the exact first
    moment by H/2, takes t where a step begins and extrapolates over any length.
    Order min(corrector, predictor + 1), or the predictor's without corrector; at most 2 (weak) for
    eta > 0.
    """
    e, low, high = (
        finite("eta", eta, 0, 100),
        finite("start", start, 0, 1),
        finite("stop", stop, 0, 1),
    )
    ahead, back = (
        whole("predictor_order", predictor_order, 1, 4),
        whole("corrector_order", corrector_order, 0, 4),
    )
    among("variant", variant, VARIANTS)
    clean, simple = bool(grid.sigma[-1] == 0), variant == "simple"
    order = min(back, ahead + 1) if back else ahead
    rows = Rows("sa_solver", grid, order=min(order, 2) if e else order, history=max(ahead, back))
    led = 0.0  # eta of the step that led here
    for k in range(grid.steps):
        now, new, left = grid[k], grid.end(k), grid.steps - k
        here = {"x": torch.ones_like(now.alpha)}
        if back and k and finite_lam(grid[k - 1]) and not grid.renoised(k):
            count = min(back, usable(grid, k - 1, back) + 1, left + 1 if clean else back)
            here = {"base": torch.ones_like(now.alpha)} | _adams(
                grid, k - 1, count, led, variant, corrects=True
            )
        led = e if low <= share(grid.process, now if simple else new) <= high else 0.0
        move = noised(now, new, led)
        evolved = {name: move.keep * c for name, c in here.items()} | {"eps": move.fresh}
        most = 1 if not simple and long_last(grid, k) else min(ahead, left) if clean else ahead
        count = usable(grid, k, most)
        x = dict(evolved)
        for name, c in _adams(grid, k, count, led, variant, corrects=False).items():
            x[name] = x.get(name, 0.0) + c
        rows.add(k, now, x, base=evolved)
    return rows.table()


def _adams(
    grid: Grid, k: int, count: int, eta: float, variant: str, *, corrects: bool
) -> dict[str, Tensor]:
    """What `count` predictions add over step k; `corrects` where the newest was made at its end."""
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
    """Where a level lies in the training range, 0 (clean) to 1 (noisiest)."""
    if not bool(level.sigma > 0):
        return 0.0
    if isinstance(process, EDM):
        low, high = math.log(process.sigma_min), math.log(process.sigma_max)
        return (math.log(ratio(level)) - low) / (high - low)
    return level.time.item() / process.train_steps
