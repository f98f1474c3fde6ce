"""A part of a grid: for img2img, and for two models that share the steps of a run."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...errors import ArgumentError, GridError, finite, whole
from ..process import Level, double
from .grid import Grid


def _at_most_one(what: str, **options: float | None) -> None:
    names = [name for name, value in options.items() if value is not None]
    if len(names) > 1:
        raise ArgumentError(
            f"give one of {' and '.join(names)}; each of them sets the {what} of the grid"
        )


def _crossing(grid: Grid, fraction: float) -> int:
    """The first step that begins below the training index round(T - fraction·T)."""
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
    """The message for a strength that leaves none of the steps."""
    value = f"strength={strength:g}" if isinstance(strength, (int, float)) else "this strength"
    return f"{value} of {total} steps leaves none; use at least {1 / total:.4g}, or more steps"


def bounds(
    grid: Grid,
    *,
    start: int | None = None,
    stop: int | None = None,
    strength: float | None = None,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> tuple[int, int]:
    """The first step of a part of a grid, and the step it stops before.

    Args:
        grid: the whole grid, of N steps.
        start: first step, 0 … N - 1.
        stop: the step it stops before, 1 … N.
        strength: img2img, in (0, 1]: begins with the last min(int(N·strength), N) steps, as
            diffusers' get_timesteps.
        denoising_start: SDXL's refiner, in [0, 1): begins with the first step whose training index
            is below round(T - fraction·T).
        denoising_end: SDXL's base, in (0, 1]: stops where `denoising_start` of the same fraction
            begins.

    Returns:
        The two steps.

    Raises:
        ArgumentError: for a value out of range, or two values that set the same end.
        GridError: where no step is left.
    """
    _at_most_one("beginning", start=start, strength=strength, denoising_start=denoising_start)
    _at_most_one("end", stop=stop, denoising_end=denoising_end)
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
    """A part of a grid: its steps `start` … `stop - 1`.

    Two parts that are cut at the same place together visit exactly the levels of the whole. A part
    that stops early ends above sigma = 0. On EDM and flow a fraction compares with the level at the
    training index. Without options it is the whole grid.

    Args:
        grid: the whole grid, of N steps.
        start: first step, 0 … N - 1.
        stop: the step it stops before, 1 … N.
        strength: img2img, in (0, 1]: begins with the last min(int(N·strength), N) steps, as
            diffusers' get_timesteps.
        denoising_start: SDXL's refiner, in [0, 1): begins with the first step whose training index
            is below round(T - fraction·T).
        denoising_end: SDXL's base, in (0, 1]: stops where `denoising_start` of the same fraction
            begins.

    Returns:
        The part, with the same noise process and name.

    Raises:
        ArgumentError: for a value out of range, or two values that set the same end.
        GridError: where no step is left.
    """
    first, last = bounds(
        grid, start=start, stop=stop, strength=strength,
        denoising_start=denoising_start, denoising_end=denoising_end,
    )  # fmt: skip
    levels = {k: getattr(grid, k)[first : last + 1] for k in ("alpha", "sigma", "time")}
    ends = None if grid.ends is None else Level(*(v[first:last] for v in grid.ends))
    return replace(grid, **levels, ends=ends)
