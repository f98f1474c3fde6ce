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
    """The shift by one of three options, else that of the process."""
    named = [n for n, v in (("shift", shift), ("mu", mu), ("tokens", tokens)) if v is not None]
    if len(named) > 1:
        raise ArgumentError(
            f"give one of shift, mu and tokens; each sets the shift, got {' and '.join(named)}"
        )
    flow = process if isinstance(process, Flow) else Flow()
    if mu is not None:
        flow = flow.with_mu(mu)
    if tokens is not None:
        flow = flow.with_image_tokens(tokens)
    return flow.shift if shift is None else finite("shift", shift, 1e-9, 1e9)


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

    The levels of the Flux, SD3, Wan and LTX pipelines: u = 1 - i/N. On VP and EDM u begins at the
    noisiest level of the process. Without shift, mu and tokens s is the shift of the process.

    Args:
        process: the noise process.
        steps: number of steps N.
        shift: s (diffusers' static shift, and time_shift_type "linear"), in [1e-9, 1e9].
        mu: log(s) (time_shift_type "exponential"), in [-50, 50].
        tokens: latent patches of the image, in which mu is linear (Flux).
        terminal: last t above 0; 1 - t is stretched to it (diffusers' shift_terminal).

    Raises:
        ArgumentError: for two shifts.
        GridError: where `terminal` does not lie below the first level.

    Source: Esser et al. 2024, arXiv 2403.03206, eq. 23.
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
    sigma = t if isinstance(process, Flow) else t / (1 - t)
    return Grid.of(process, at_sigmas(process, sigma), "flow")


def stretched(t: Tensor, top: float, terminal: float) -> Tensor:
    """Falling t with 1 - t stretched, so that the last is `terminal`; the noisiest stays in place.

    Args:
        t: (N,), falling; a single one is returned as it is (diffusers' stretch of it is NaN).
        top: t of the noisiest level.
        terminal: new last t, in (0, top).

    Returns:
        t, (N,).

    Raises:
        GridError: where `terminal` does not lie below `top`.
    """
    last = finite("terminal", terminal, 1e-9, 1)
    if last >= top:
        raise GridError(
            f"terminal={last:g} must lie below the first level, t = {top:g}: use a smaller one or"
            " leave it out"
        )
    return t if len(t) == 1 else top - (top - t) * (top - last) / (top - t[-1])
