"""Forecasts of denoised predictions, or of what guidance adds, from those of earlier calls.

A forecast is the polynomial through the newest denoised predictions, read at the level of the call
that is left out: `D(lam) = sum_j w_j·D(lam_j)`, lam = log(alpha/sigma), with the true spacing.
Order 1 repeats the newest prediction, order 2 draws a line through two (ZEUS draws it over the
number of the step). Where one of the levels is pure noise, alpha/(alpha + sigma) takes the place of
lam, which is infinite there; the prediction is smooth in alpha.

**Rows without a call.** A forecast is linear, so a step that uses one needs no row: it
merges with the row before it, and `skip` turns a table into one of fewer rows, which runs, saves
and plots as any other. Every solver of one call a step that adds no noise takes it as an option:

| option               | leaves out                                        |
|----------------------|---------------------------------------------------|
| `skip=3`             | every third step: 2, 5, 8, … (steps count from 0) |
| `skip="2/3"`         | two of every three: 2, 3, 5, 6, …                 |
| `skip="4,6"`, `[4]`  | these steps                                       |
| `skip_order=1` … `4` | (how many predictions a forecast reads, at most)  |

The patterns call the network in the first two steps and in the last; a list may leave out any but
the first. Higher orders pay where steps are so short that predictions hardly bend; with 20 steps
they mostly cost (measured in `benchmarks/forecast.py`).

**The unconditional output.** `cfg(4.0, forecast=2)` forecasts its difference from the conditional
one; see `guidance/guidance.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ArgumentError, Idle, number_of_steps, whole
from .analysis import trace
from .table import Table, registers

ORDER, MOST_ORDER = 1, 4
ROUNDING = 1e-14  # a coefficient below this is what rounding leaves of a zero
GRAMMAR = (
    "skip takes 2 (every second step), '2/3' (two of every three) or a list of steps such as '4,6'"
)


def weights(table: Table, nodes: Sequence[int], at: int) -> Tensor:
    """Lagrange weights of a forecast.

    Args:
        table: of the run.
        nodes: the rows whose predictions are known.
        at: the row that is forecast.

    Returns:
        w, one per node, with `D(at) = sum_j w_j·D(nodes_j)` for denoised predictions D that are a
        polynomial in lam through the nodes (in alpha/(alpha + sigma) where one is pure noise).
    """
    rows = [*nodes, at]
    alpha, sigma = table.alpha[rows], table.sigma[rows]
    place = torch.log(alpha) - torch.log(sigma)
    if bool((alpha == 0).any()):
        place = alpha / (alpha + sigma)
    known, here = place[:-1], place[-1]
    ones = torch.eye(len(known), dtype=place.dtype)
    distance = known[:, None] - known[None, :] + ones
    return torch.prod((here - known)[None, :] * (1 - ones) / distance + ones, 1)


def skip(table: Table, steps: Sequence[int], order: int = ORDER) -> Table:
    """The table without the network calls of some steps, whose predictions are forecast.

    The rows that are left are in the denoised basis and remember what they need; their steps count
    the calls. The order of convergence is at most that of the forecasts.

    Args:
        table: deterministic, of one call a step.
        steps: to leave out, from 1 on.
        order: how many predictions a forecast reads, at most; 1 to 4.

    Raises:
        ArgumentError: another table, or a step that cannot be left out.
    """
    most = whole("skip_order", order, 1, MOST_ORDER)
    real = _calls(table, steps)
    clean = _predictions(table, real, most)
    start, none = torch.eye(len(clean[0]), dtype=torch.float64)[0], torch.zeros_like(clean[0])
    path = trace(table, start, lambda row, x: clean[row], lambda row: none)
    x = torch.stack(
        [_row(path[row], path[after], i) for i, (row, after) in enumerate(_pairs(real, table.nfe))]
    )
    used = (x[:, 1:] != 0).any(0).nonzero().flatten()
    history = int(used[-1]) + 1 if len(used) else 1
    empty = x.new_zeros(len(real), 1)
    rows = torch.cat([x[:, :1], empty, x[:, 1 : history + 1], empty], 1)
    base = torch.zeros_like(rows)
    base[:, registers(history).index("base")] = 1.0
    alpha, sigma, time = (
        level[[*real, table.nfe]] for level in (table.alpha, table.sigma, table.time)
    )
    return replace(
        table, basis="denoised", order=min(table.order, most), alpha=alpha, sigma=sigma, time=time,
        step=tuple(range(len(real))), x=rows, base=base,
    )  # fmt: skip


def chosen(skip: int | str | Sequence[int], steps: int) -> tuple[int, ...]:
    """The steps that a `skip=` leaves out.

    Args:
        skip: see the module's table.
        steps: of the table.

    Raises:
        ArgumentError: it is none of these, or leaves nothing out.
    """
    if isinstance(skip, str):
        if share := re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", skip):
            return _pattern(int(share[1]), int(share[2]), skip, steps)
        if re.fullmatch(r"\s*\d+\s*", skip):
            return _pattern(1, int(skip), skip, steps)
        if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*,?\s*", skip):
            raise ArgumentError(f"{GRAMMAR}, got {skip!r}")
        return tuple(int(number) for number in re.findall(r"\d+", skip))
    if isinstance(skip, int) and not isinstance(skip, bool):
        return _pattern(1, skip, skip, steps)
    listed = isinstance(skip, (list, tuple)) and all(type(step) is int for step in skip)
    if not listed or not skip:
        raise ArgumentError(f"{GRAMMAR}, got {skip!r}")
    return tuple(skip)  # type: ignore[arg-type]


def _pattern(some: int, of: int, skip: object, steps: int) -> tuple[int, ...]:
    """`some` of every `of` steps, after the first two and before the last."""
    if not 0 < some < of:
        raise ArgumentError(f"{GRAMMAR}, got {skip!r}")
    left_out = tuple(step for step in range(2, steps - 1) if (step - 2) % of < some)
    if not left_out:
        raise Idle(
            f"skip={skip!r} leaves nothing out of {number_of_steps(steps)}; take at least 4",
            {"skip": None, "skip_order": None},
        )
    return left_out


def _calls(table: Table, steps: Sequence[int]) -> list[int]:
    """The rows that are left."""
    if table.nfe != table.steps:
        raise ArgumentError(
            f"{table.solver!r} calls the network {table.nfe} times in {table.steps} steps; only"
            " steps of one call can be left out: use a multistep sampler, e.g. 'dpmpp_2m' or"
            " 'unipc'"
        )
    if table.reads_uncond:
        raise ArgumentError(
            f"{table.solver!r} reads the unconditional prediction of every step, which no forecast"
            f" has: leave skip= out, or use {table.solver.removesuffix('_cfg_pp')!r}"
        )
    if table.stochastic:
        raise ArgumentError(
            f"{table.solver!r} adds noise here, which no forecast foresees: skip= goes with a"
            " deterministic sampler, e.g. 'dpmpp_2m' or 'unipc'"
        )
    for step in steps:
        if not 0 < step < table.steps:
            why = "the first call has nothing before it"
            if step:
                why = f"the steps are 0 to {table.steps - 1}"
            raise ArgumentError(f"step {step} cannot be left out: {why}")
    return [row for row in range(table.nfe) if row not in set(steps)]


def _pairs(real: list[int], end: int) -> list[tuple[int, int]]:
    return list(zip(real, [*real[1:], end], strict=True))


def _predictions(table: Table, real: list[int], most: int) -> list[Tensor]:
    """Every row's denoised prediction, as a vector over the start and the network's predictions."""
    unit = torch.eye(1 + len(real), dtype=torch.float64)
    predictions = []
    for row in range(table.nfe):
        before = [i for i, r in enumerate(real) if r <= row][::-1]
        nodes = before[:1] if real[before[0]] == row else before[:most]
        share = weights(table, [real[i] for i in nodes], row)
        predictions.append(share @ unit[[1 + i for i in nodes]])
    return predictions


def _row(now: Tensor, new: Tensor, call: int) -> Tensor:
    """Coefficients of x and of the predictions, newest first, in the row of a call.

    An edit of x is kept as the start is: in the ratio of the noise that is left of it.
    """
    share = new[0] / now[0]
    rest = new - share * now
    newest = rest[1 : call + 2].flip(0)
    newest = torch.where(newest.abs() < ROUNDING, 0.0, newest)
    return torch.cat([share[None], newest, rest.new_zeros(len(rest) - 2 - call)])
