"""Grids: which levels a run visits.

A grid of N steps has N + 1 levels, strictly falling in noise; the network is called at the first
N, and the last is the clean level sigma = 0 unless the grid was cut. Every grid here is a function
`(process, steps, **options) -> Grid`; adding one is a function and a line in `GRIDS`.

"Training index" is 0 (cleanest) … T-1 (noisiest), see `Process.at_index`; "schedule sigma" is
sigma / alpha for VP and EDM and t for flow, see `process.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError, GridError, UnknownName, finite, whole
from .process import EDM, VP, Flow, Level, Process, double, interpolate


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels of a run, noisiest first: float64 tensors of length `steps + 1`."""

    process: Process
    alpha: Tensor
    sigma: Tensor
    time: Tensor
    name: str = "custom"

    def __post_init__(self) -> None:
        sizes = {tuple(v.shape) for v in (self.alpha, self.sigma, self.time)}
        if len(sizes) != 1 or self.alpha.ndim != 1 or len(self.alpha) < 2:
            raise GridError(f"a grid needs at least 2 levels as equal 1-D tensors, got shapes {sorted(sizes)}")
        if not bool(torch.isfinite(torch.stack([self.alpha, self.sigma, self.time])).all()):
            raise GridError(f"grid {self.name!r} has a level that is not finite")
        angle = torch.atan2(self.sigma, self.alpha).detach()
        flat = (angle.diff() >= 0).nonzero().flatten()
        if len(flat):
            k = int(flat[0])
            a, b = self.ratio_at(k), self.ratio_at(k + 1)
            raise GridError(
                f"levels must fall strictly: in grid {self.name!r} level {k + 1} (sigma/alpha {b:.6g}) "
                f"is not below level {k} ({a:.6g}); remove repeated or rising values, or use fewer steps"
            )

    @property
    def steps(self) -> int:
        """Number of intervals N."""
        return len(self.alpha) - 1

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, k: int) -> Level:
        return Level(self.alpha[k], self.sigma[k], self.time[k])

    def ratio_at(self, k: int) -> float:
        """sigma / alpha of level k as a float (inf at pure noise)."""
        alpha, sigma = self.alpha[k].item(), self.sigma[k].item()
        return sigma / alpha if alpha > 0 else math.inf

    @property
    def lam(self) -> Tensor:
        """log(alpha / sigma) of every level."""
        return Level(self.alpha, self.sigma, self.time).lam

    @classmethod
    def of(cls, process: Process, levels: Level, name: str, *, clean: bool = True) -> Grid:
        """A grid through `levels`, followed by the clean level unless `clean` is false."""
        alpha, sigma, time = levels
        if clean:
            end = process.clean()
            alpha, sigma, time = (torch.cat([a, b]) for a, b in zip(levels, end, strict=True))
        return cls(process, alpha, sigma, time, name)


def _training_indices(process: Process, steps: int) -> int:
    if whole("steps", steps) > process.train_steps:
        raise GridError(
            f"{steps} steps are more than the {process.train_steps} training levels of this model; "
            f"use at most {process.train_steps}"
        )
    return process.train_steps


def leading(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that end at `steps_offset`: i·(T // N) + offset.

    Starts below the noisiest level: with N = 10 of 1000 at index 900. The offset is reduced where
    the list would leave the training range (diffusers then raises IndexError).
    """
    total = _training_indices(process, steps)
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (total // steps)
    offset = min(process.steps_offset, total - 1 - int(index[0]))
    return Grid.of(process, process.at_index(index + offset), "leading")


def linspace(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices from T - 1 to 0, both included; fractional. One step: T - 1."""
    total = _training_indices(process, steps)
    return Grid.of(process, process.at_index(torch.linspace(total - 1, 0, steps, dtype=torch.float64)), "linspace")


def trailing(process: Process, steps: int) -> Grid:
    """Evenly spaced training indices that start at T - 1: round(T - i·T/N) - 1 (arXiv 2305.08891, table 2).

    Flow and EDM models take fractional indices, so theirs are not rounded: a flow visits u = 1 - i/N.
    """
    total = _training_indices(process, steps)
    index = total - torch.arange(steps, dtype=torch.float64) * (total / steps)
    return Grid.of(process, process.at_index((index.round() if process.kind == "vp" else index) - 1), "trailing")


def _range(process: Process, sigma_min: float | None, sigma_max: float | None, name: str) -> tuple[float, float]:
    """The ends of a sigma grid, checked."""
    low = process.sigma_min if sigma_min is None else finite("sigma_min", sigma_min, 1e-12)
    top = process.sigma_max if sigma_max is None else finite("sigma_max", sigma_max, 1e-12)
    if not math.isfinite(top):
        raise GridError(
            f"grid {name!r} needs a finite sigma_max, and this process starts at pure noise; give one, e.g. "
            f"sigma_max=80, or use grid='trailing'"
        )
    if low >= top:
        raise GridError(f"sigma_min {low:g} must be below sigma_max {top:g}")
    return low, top


def _falling(steps: int) -> Tensor:
    """Evenly spaced from 1 to 0, both included; one step: 1."""
    count = whole("steps", steps)
    return torch.linspace(1, 0, count, dtype=torch.float64) if count > 1 else double([1.0])


def karras(
    process: Process,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Grid:
    """Evenly spaced sigma^(1/rho) from sigma_max to sigma_min, then 0, in schedule sigma.

    arXiv 2206.00364, eq. 5. One step visits sigma_max only.
    """
    low, top = _range(process, sigma_min, sigma_max, "karras")
    r = finite("rho", rho, 1e-3, 1e3)
    u = _falling(steps)
    sigma = (low ** (1 / r) + u * (top ** (1 / r) - low ** (1 / r))) ** r
    return Grid.of(process, process.at_sigma(sigma), "karras")


def exponential(
    process: Process, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None
) -> Grid:
    """Evenly spaced log(sigma) from sigma_max to sigma_min, then 0, in schedule sigma. One step: sigma_max."""
    low, top = _range(process, sigma_min, sigma_max, "exponential")
    u = _falling(steps)
    return Grid.of(process, process.at_sigma(torch.exp(math.log(low) + u * math.log(top / low))), "exponential")


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


def lcm(process: Process, steps: int, *, original_steps: int = 50) -> Grid:
    """Levels a consistency model was distilled at: every T // original_steps-th training index, then evenly thinned.

    arXiv 2310.04378, section 4.3. At most `original_steps` steps.
    """
    total = process.train_steps
    if whole("steps", steps) > whole("original_steps", original_steps, 1, total):
        raise GridError(f"{steps} steps are more than original_steps={original_steps}; use fewer, or grid='trailing'")
    origin = torch.arange(original_steps, 0, -1, dtype=torch.float64) * (total // original_steps) - 1
    pick = torch.floor(torch.arange(steps, dtype=torch.float64) * (original_steps / steps)).long()
    return Grid.of(process, process.at_index(origin[pick]), "lcm")


def _numbers(what: str, values: Any) -> Tensor:
    """`values` as a 1-D float64 tensor."""
    try:
        return double(values).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"{what} must be a list of numbers, got {values!r}") from None


def custom_sigmas(process: Process, sigmas: Sequence[float] | Tensor) -> Grid:
    """Your own schedule sigmas, falling; the final 0 may be given or left out, never given twice."""
    values = _numbers("sigmas", sigmas)
    if len(values) and bool(values[-1] == 0):
        values = values[:-1]
    if not len(values):
        raise GridError("a list of sigmas needs at least one value above 0, e.g. sigmas=[14.6, 2.8, 0.6, 0.0]")
    if bool((values == 0).any()):
        raise GridError(f"sigma 0 may stand only once, at the end; got {values.tolist()}")
    return Grid.of(process, process.at_sigma(values), "custom")


def custom_times(process: Process, times: Sequence[float] | Tensor) -> Grid:
    """Your own network times, falling (fractional allowed); the clean level is appended."""
    values = _numbers("times", times)
    if not len(values):
        raise GridError("a list of times needs at least one value, e.g. times=[999, 845, 730, 587]")
    return Grid.of(process, process.at_time(values), "custom")


@dataclass(frozen=True)
class GridSpec:
    """One line of the table of grids."""

    make: Callable[..., Grid]
    space: str
    reference: str
    options: tuple[str, ...] = field(default=())


GRIDS: dict[str, GridSpec] = {
    "leading": GridSpec(leading, "training index", "DDIM, arXiv 2010.02502"),
    "linspace": GridSpec(linspace, "training index", "iDDPM, arXiv 2102.09672"),
    "trailing": GridSpec(trailing, "training index", "arXiv 2305.08891, table 2"),
    "karras": GridSpec(karras, "schedule sigma", "arXiv 2206.00364, eq. 5", ("rho", "sigma_min", "sigma_max")),
    "exponential": GridSpec(exponential, "log sigma", "k-diffusion", ("sigma_min", "sigma_max")),
    "ays": GridSpec(ays, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_sd15": GridSpec(ays_sd15, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_sdxl": GridSpec(ays_sdxl, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_svd": GridSpec(ays_svd, "log sigma / alpha", "arXiv 2404.14507"),
    "lcm": GridSpec(lcm, "training index", "arXiv 2310.04378", ("original_steps",)),
}


def make(name: str, process: Process, steps: int, **options: Any) -> Grid:
    """The grid called `name`. Raises `UnknownName` or `GridError`, always before any compute."""
    if name not in GRIDS:
        raise UnknownName("grid", name, GRIDS)
    spec = GRIDS[name]
    for key in options:
        if key not in spec.options:
            has = f"it takes {', '.join(spec.options)}" if spec.options else "it takes none"
            raise ArgumentError(f"grid {name!r} has no option {key!r}; {has}")
    return spec.make(process, steps, **options)
