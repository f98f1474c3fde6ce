"""A part of a grid: for img2img, for two models that share one journey, for any beginning and end."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...errors import ArgumentError, GridError, finite, whole
from ..process import Level, double
from .grid import Grid


def _one(what: str, **given: float | None) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ArgumentError(
            f"give one of {' and '.join(names)}; each of them sets the {what} of the grid"
        )


def _crossing(grid: Grid, fraction: float) -> int:
    """How many steps begin at or above the training index round(T - fraction·T), up to the first
    that does not.
    """
    process = grid.process
    cut = round(process.train_steps - fraction * process.train_steps)
    if cut >= process.train_steps:
        return 0
    if process.kind == "vp":
        above = grid.time[:-1] >= cut
    else:
        edge = process.at_index(double([float(cut)]))
        above = grid.lam[:-1] <= edge.lam + 1e-9
    return int(torch.cumprod(above.long(), 0).sum())


def none_left(total: int, strength: object = None) -> str:
    """What to do where a strength leaves none of all steps."""
    given = f"strength={strength:g}" if isinstance(strength, (int, float)) else "this strength"
    return f"{given} of {total} steps leaves none; use at least {1 / total:.4g}, or more steps"


def bounds(
    grid: Grid,
    *,
    start: int | None = None,
    stop: int | None = None,
    strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> tuple[int, int]:
    """The first step of the part that `cut` makes, and the one that it stops before."""
    _one("beginning", start=start, strength=strength, denoising_start=denoising_start)
    _one("end", stop=stop, denoising_end=denoising_end)
    total = grid.steps
    first, last = 0, total
    if start is not None:
        first = whole("start", start, 0, total - 1)
    elif strength is not None:
        share = finite("strength", strength, 0, 1)
        first = total - int(total * share)
        if first == total:
            raise GridError(none_left(total, share))
    elif denoising_start is not None:
        first = _crossing(grid, finite("denoising_start", denoising_start, 0, 1))
    if stop is not None:
        last = whole("stop", stop, 1, total)
    elif denoising_end is not None:
        last = _crossing(grid, finite("denoising_end", denoising_end, 0, 1))
    if first >= last:
        raise GridError(
            f"nothing is left of {total} steps between step {first}, where the part begins, and"
            f" step {last}, where it ends; begin earlier, end later, or use more steps"
        )
    return first, last


def cut(
    grid: Grid,
    *,
    start: int | None = None,
    stop: int | None = None,
    strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> Grid:
    """The steps `start` … `stop - 1` of a grid: levels start … stop, and the ends of lifted steps
    with them.

    The beginning is one of
      start            a step, 0 … N - 1;
      strength         img2img, (0, 1]: the last min(int(N·strength), N) steps, as diffusers'
      get_timesteps; denoising_start  [0, 1): SDXL's refiner: the first step whose training index is
      below round(T - fraction·T).
    The end is one of
      stop             a step, 1 … N;
      denoising_end    (0, 1]: SDXL's base: stops where denoising_start of the same fraction begins.

    A grid that stops early ends above sigma = 0, at one of the levels of the whole; cutting twice
    at the same place gives two grids that together visit exactly the whole. The training index of a
    VP level is its time; on EDM and flow the level at that training index is compared. Where a grid
    rises (restarts), a fraction cuts before the first step below it. Nothing given: the grid
    itself.

    Raises `ArgumentError` for values out of range or two beginnings, `GridError` where no step is
    left.
    """
    first, last = bounds(
        grid, start=start, stop=stop, strength=strength,
        denoising_start=denoising_start, denoising_end=denoising_end,
    )  # fmt: skip
    levels = {k: getattr(grid, k)[first : last + 1] for k in ("alpha", "sigma", "time")}
    ends = None if grid.ends is None else Level(*(v[first:last] for v in grid.ends))
    return replace(grid, **levels, ends=ends)
