"""Levels that somebody searched for and published."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import GridError, whole
from ..process import EDM, VP, Flow, Process, double, interpolate
from .grid import Grid

# Align Your Steps (arXiv 2404.14507): 11 noise levels for 10 steps. SD 1.5 and SDXL are published as
# training times of the scaled-linear schedule, SVD as sigmas.
AYS_TIMES = {
    "ays_sd15": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
    "ays_sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
}
AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def _ays(name: str) -> Callable[[Process, int], Grid]:
    def grid(process: Process, steps: int) -> Grid:
        published = AYS_TIMES.get(name)
        knots = VP.from_schedule().at_time(double(published)).ratio if published else double(AYS_SVD)
        place = torch.linspace(0, len(knots) - 1, whole("steps", steps) + 1, dtype=torch.float64)
        sigma = torch.exp(interpolate(place, torch.arange(len(knots), dtype=torch.float64), torch.log(knots)))
        return Grid.of(process, process.at_sigma(sigma[:-1]), name)

    grid.__doc__ = (
        f"Align Your Steps for {name[4:].upper()}: published levels, log-linear in sigma for other step counts; "
        "the last becomes 0. In sigma / alpha. arXiv 2404.14507."
    )
    return grid


ays_sd15, ays_sdxl, ays_svd = _ays("ays_sd15"), _ays("ays_sdxl"), _ays("ays_svd")


def ays(process: Process, steps: int) -> Grid:
    """Align Your Steps of the process' family: SVD's levels for EDM, SDXL's for VP; none was published for flow.

    For SD 1.5 name `ays_sd15`.
    """
    if isinstance(process, Flow):
        raise GridError("Align Your Steps has no published levels for flow models; use grid='trailing'")
    return (ays_svd if isinstance(process, EDM) else ays_sdxl)(process, steps)
