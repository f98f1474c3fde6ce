"""Levels that somebody searched for and published."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import GridError
from ..process import EDM, VP, Flow, Process, double, interpolate
from ..process.level import SNAP
from .grid import Grid, few_enough

# Align Your Steps (arXiv 2404.14507): 11 noise levels for 10 steps, of SD 1.5 and SDXL as training
# times of the scaled-linear schedule, of SVD as sigmas
AYS_TIMES = {
    "ays_sd15": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
    "ays_sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
}
AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
# OptimalSteps (arXiv 2503.21774): t of the flow, for 10 steps of Flux and 20 of Wan.
OSS = {
    "oss_flux": (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808,
    0.001),
    "oss_wan": (
        1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973,
        0.968, 0.96, 0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208, 0.001,
    ),
}  # fmt: skip


def _resampled(knots: Tensor, steps: int) -> Tensor:
    """N of the published levels, log-linear between them; the last is left to the clean level."""
    place = torch.linspace(0, len(knots) - 1, few_enough("steps", steps) + 1, dtype=torch.float64)
    whole = torch.arange(len(knots), dtype=torch.float64)
    return torch.exp(interpolate(place, whole, torch.log(knots)))[:-1]


def _align(process: Process, steps: int, name: str, requested: str) -> Grid:
    """The grid `name`; `requested` is its name in messages."""
    if isinstance(process, Flow):
        raise GridError(
            f"{requested!r} has no published levels for flow models; use 'trailing', 'oss_flux' or"
            " 'oss_wan'"
        )
    published = AYS_TIMES.get(name)
    knots = VP.from_schedule().at_time(double(published)).ratio if published else double(AYS_SVD)
    if float(knots[0]) > process.sigma_max * (1 + SNAP):
        family, instead = "Stable Diffusion's VP process", "levels of your own"
        if name == "ays_svd":
            family = "SVD, whose sigma_max is 700"
            if isinstance(process, EDM):
                instead = "a process with sigma_max=700"
        raise GridError(
            f"the first level of {requested!r}, sigma {float(knots[0]):.6g} is above this process'"
            f" largest {process.sigma_max:.6g}: it was published for {family}; use grid='karras',"
            f" or {instead}"
        )
    return Grid.of(process, process.at_sigma(_resampled(knots, steps)), name)


def _ays(name: str) -> Callable[[Process, int], Grid]:
    def grid(process: Process, steps: int) -> Grid:
        return _align(process, steps, name, name)

    grid.__doc__ = f"""Align Your Steps for {name[4:].upper()}: published sigma / alpha, then 0.

    Other step counts than 10 are log-linear in sigma between them.

    Args:
        process: VP or EDM, as noisy as the first published level.
        steps: number of steps N.

    Raises:
        GridError: on a flow, and on a process that is less noisy.

    Source: Sabour et al. 2024, arXiv 2404.14507.
    """
    return grid


ays_sd15, ays_sdxl, ays_svd = _ays("ays_sd15"), _ays("ays_sdxl"), _ays("ays_svd")


def ays(process: Process, steps: int) -> Grid:
    """Align Your Steps of the process' family: SVD's levels for EDM, SDXL's for VP.

    For SD 1.5 take `ays_sd15`. None was published for flow.

    Args:
        process: VP or EDM, as noisy as the first published level.
        steps: number of steps N.

    Raises:
        GridError: on a flow, and on an EDM process that does not reach sigma 700.

    Source: Sabour et al. 2024, arXiv 2404.14507.
    """
    return _align(process, steps, "ays_svd" if isinstance(process, EDM) else "ays_sdxl", "ays")


def _oss(name: str, model: str) -> Callable[[Process, int], Grid]:
    def grid(process: Process, steps: int) -> Grid:
        if not isinstance(process, Flow):
            raise GridError(
                f"the levels of {name!r} were published for flow models such as {model}; use"
                " grid='ays' or 'karras'"
            )
        return Grid.of(process, process.at_sigma(_resampled(double(OSS[name]), steps)), name)

    grid.__doc__ = f"""OptimalSteps for {model}: the {len(OSS[name]) - 1} published t, then 0.

    Other step counts are log-linear in t between them, as in ComfyUI.

    Args:
        process: a flow, of any shift.
        steps: number of steps N.

    Raises:
        GridError: on a process that is no flow.

    Source: Pei et al. 2025, arXiv 2503.21774.
    """
    return grid


oss_flux, oss_wan = _oss("oss_flux", "Flux"), _oss("oss_wan", "Wan")
