"""The shifted grid of flow models, for every process."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import ArgumentError, GridError, finite
from ..process import Flow, Process, double
from .grid import Grid, few_enough
from .sigma import at_sigmas


def _shift(process: Process, shift: float | None, mu: float | None, tokens: int | None) -> float:
    """The shift from whichever of the three options is given; the process' own without any."""
    given = [n for n, v in (("shift", shift), ("mu", mu), ("tokens", tokens)) if v is not None]
    if len(given) > 1:
        raise ArgumentError(
            f"give one of shift, mu and tokens; each sets the shift, got {' and '.join(given)}"
        )
    own = process if isinstance(process, Flow) else Flow()
    if mu is not None:
        own = own.with_mu(mu)
    if tokens is not None:
        own = own.with_image_tokens(tokens)
    return own.shift if shift is None else finite("shift", shift, 1e-9, 1e9)


def flow(
    process: Process,
    steps: int,
    *,
    shift: float | None = None,
    mu: float | None = None,
    tokens: int | None = None,
    terminal: float | None = None,
) -> Grid:
    """t = s·u / (1 + (s - 1)·u) at evenly spaced u, then 0, where t = sigma / (alpha + sigma).

    What the Flux, SD3, Wan and LTX pipelines visit: u = 1 - i/N. The shift s is `shift` (arXiv
    2403.03206, eq. 23; diffusers' static shift, and its dynamic one with time_shift_type "linear"),
    or exp(`mu`) ("exponential"), or exp(mu) with mu linear in the image's `tokens` as in Flux; it
    replaces the process' own shift, which holds when none of the three is given (1 where the
    process has none). `terminal` then stretches 1 - t so that the last t above 0 is `terminal`, as
    diffusers' shift_terminal; one step has only the first level. On VP and EDM u begins where t is
    the noisiest level of the process, and the stretch leaves that level in place.

    Raises `ArgumentError` for two shifts, `GridError` where `terminal` cannot be met.
    """
    s, count = _shift(process, shift, mu, tokens), few_enough("steps", steps)
    top = process.sigma_max
    if not isinstance(process, Flow):
        top = top / (1 + top) if math.isfinite(top) else 1.0
    start = top / (s * (1 - top) + top)
    u = start * (1 - torch.arange(count, dtype=torch.float64) / count)
    t = s * u / (1 + (s - 1) * u)
    if terminal is not None:
        t = stretched(t, top, terminal)
    t = torch.cat([double([top]), t[1:]])  # exactly the noisiest level, not up to rounding
    return Grid.of(
        process, at_sigmas(process, t if isinstance(process, Flow) else t / (1 - t)), "flow"
    )


def stretched(t: Tensor, top: float, terminal: float) -> Tensor:
    """Falling t with 1 - t stretched so that the last one is `terminal`; the noisiest level `top`
    stays in place.

    One level is the noisiest alone and stays (diffusers' stretch of it is NaN).
    """
    last = finite("terminal", terminal, 1e-9, 1)
    if last >= top:
        raise GridError(
            f"terminal={last:g} must lie below the first level, t = {top:g}: use a smaller one or"
            " leave it out"
        )
    return t if len(t) == 1 else top - (top - t) * (top - last) / (top - t[-1])
