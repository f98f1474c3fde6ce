"""Grids: the levels that a run visits, and their table.

A grid of N steps has N + 1 levels of falling noise. The network is called at the first N; the last
is the clean level sigma = 0 unless the grid was cut. Every grid is a function
`(process, steps, **options) -> Grid`. To add one, write it in the file of its space and add one
line to `GRIDS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ...errors import ArgumentError, GridError, among, flag
from ..process import Flow, Process, double
from . import beta, flow, index, published, sigma
from .custom import custom_sigmas as custom_sigmas
from .custom import custom_times as custom_times
from .cut import bounds as bounds
from .cut import cut as cut
from .flow import stretched as stretched
from .gaussian import gaussian
from .grid import MOST_STEPS as MOST_STEPS
from .grid import Grid as Grid
from .grid import few_enough as few_enough
from .grid import ratio as ratio
from .renoise import ancestral as ancestral
from .renoise import churn as churn
from .renoise import restart as restart
from .sigma import usual as usual


@dataclass(frozen=True)
class GridSpec:
    """One line of the table of grids.

    Args:
        make: the function `(process, steps, **options) -> Grid`.
        space: the coordinate in which its levels are spaced.
        reference: paper or program.
    """

    make: Callable[..., Grid]
    space: str
    reference: str

    @cached_property
    def options(self) -> tuple[str, ...]:
        """The options of the function, by name."""
        return tuple(inspect.signature(self.make).parameters)[2:]


ENDS = ("sigma_min", "sigma_max")
CLOSE = 1e-6  # of two levels in log(alpha / sigma)
AYS, OSS = "arXiv 2404.14507", "arXiv 2503.21774"
INDEX, SIGMA = "training index", "schedule sigma"
GRIDS: dict[str, GridSpec] = {
    "leading": GridSpec(index.leading, INDEX, "DDIM, arXiv 2010.02502"),
    "linspace": GridSpec(index.linspace, INDEX, "iDDPM, arXiv 2102.09672"),
    "trailing": GridSpec(index.trailing, INDEX, "arXiv 2305.08891, table 2"),
    "normal": GridSpec(index.linspace, INDEX, "ComfyUI; the levels of linspace"),
    "simple": GridSpec(index.simple, INDEX, "ComfyUI"),
    "sgm_uniform": GridSpec(index.sgm_uniform, INDEX, "Stability generative-models"),
    "ddim_uniform": GridSpec(index.ddim_uniform, INDEX, "DDIM, arXiv 2010.02502; ComfyUI"),
    "beta": GridSpec(beta.beta, INDEX, "arXiv 2407.12173; ComfyUI"),
    "beta57": GridSpec(beta.beta57, INDEX, "RES4LYF"),
    "smoothstep": GridSpec(index.smoothstep, INDEX, "stable-diffusion.cpp"),
    "lcm": GridSpec(index.lcm, INDEX, "arXiv 2310.04378"),
    "karras": GridSpec(sigma.karras, SIGMA, "arXiv 2206.00364, eq. 5"),
    "exponential": GridSpec(sigma.exponential, "log sigma", "k-diffusion"),
    "polyexponential": GridSpec(sigma.polyexponential, "log sigma", "k-diffusion"),
    "gaussian": GridSpec(gaussian, "sigma / alpha", "arXiv 2404.14507, lemma 3.3"),
    "kl_optimal": GridSpec(sigma.kl_optimal, "atan sigma", "arXiv 2404.14507, theorem 3.1"),
    "laplace": GridSpec(sigma.laplace, "log sigma", "arXiv 2407.03297"),
    "cosine": GridSpec(sigma.cosine, SIGMA, "reForge"),
    "beta_sigma": GridSpec(beta.beta_sigma, SIGMA, "arXiv 2407.12173; A1111, diffusers"),
    "linear_quadratic": GridSpec(sigma.linear_quadratic, SIGMA, "Mochi; ComfyUI"),
    "bong_tangent": GridSpec(sigma.bong_tangent, SIGMA, "RES4LYF"),
    "lam": GridSpec(sigma.lam, "lam", "DPM-Solver, arXiv 2206.00927"),
    "vp": GridSpec(sigma.vp, "time of the continuous VP process", "arXiv 2011.13456"),
    "flow": GridSpec(flow.flow, "sigma / (alpha + sigma)", "arXiv 2403.03206, eq. 23"),
    "ays": GridSpec(published.ays, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_sd15": GridSpec(published.ays_sd15, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_sdxl": GridSpec(published.ays_sdxl, "log sigma / alpha", "arXiv 2404.14507"),
    "ays_svd": GridSpec(published.ays_svd, "log sigma / alpha", "arXiv 2404.14507"),
    "oss_flux": GridSpec(published.oss_flux, "log t", "arXiv 2503.21774"),
    "oss_wan": GridSpec(published.oss_wan, "log t", "arXiv 2503.21774"),
}


def make(
    name: str,
    process: Process,
    steps: int,
    *,
    discard_penultimate: bool | str = False,
    **options: Any,
) -> Grid:
    """The grid called `name`, checked before any compute.

    Args:
        name: a key of `GRIDS`.
        process: the noise process.
        steps: number of steps N; at most T on a VP process.
        discard_penultimate: True makes N + 1 steps and leaves out the last level above 0, as
            ComfyUI does for some samplers: that step is too small to be worth a network call, and
            the one before longer than a multistep method bears. "auto": only where that level is
            the cleanest of the model.
        **options: those of the grid, see `GRIDS[name].options`. On a flow every grid takes
            `terminal`, its last t above 0, in (0, 1).

    Returns:
        The grid.

    Raises:
        UnknownName: for a name that no grid has.
        ArgumentError, GridError: for options and levels that cannot be.
    """
    discard = penultimate(discard_penultimate)
    if discard == "auto":
        discard = _ends_cleanest(_make(name, process, steps, **options))
    if not discard:
        return _make(name, process, steps, **options)
    count = few_enough("steps", steps)
    if process.kind == "vp" and count >= process.train_steps:
        raise GridError(
            f"discard_penultimate makes one level more than {steps} steps, and this model has"
            f" {process.train_steps}; use at most {process.train_steps - 1} steps, or"
            " discard_penultimate=False"
        )
    full = _make(name, process, count + 1, **options)
    left = torch.tensor([*range(full.steps - 1), full.steps])
    return Grid(process, full.alpha[left], full.sigma[left], full.time[left], full.name)


def penultimate(value: object) -> bool | str:
    """`discard_penultimate`, checked. Raises `ArgumentError` unless it is True, False or "auto"."""
    return "auto" if value == "auto" else flag("discard_penultimate", value)


def _ends_cleanest(grid: Grid) -> bool:
    """Whether the last level above 0 is the cleanest of the training levels, or the next."""
    if grid.steps < 2:
        return False
    offset = max(float(grid.process.steps_offset), 1.0)
    return bool(grid[grid.steps - 1].lam >= grid.process.at_index(double(offset)).lam - CLOSE)


def _make(name: str, process: Process, steps: int, **options: Any) -> Grid:
    """All levels of the grid called `name`.

    `terminal` of a flow is `sigma_min` of the grids that have it; others are stretched, see
    `flow.stretched`.
    """
    spec, count = GRIDS[among("grid", name, GRIDS)], few_enough("steps", steps)
    terminal = None if "terminal" in spec.options else options.pop("terminal", None)
    _check(name, spec, process, count, terminal, options)
    if terminal is None:
        return spec.make(process, count, **options)
    if "sigma_min" in spec.options:
        return spec.make(process, count, **options, sigma_min=terminal)
    grid = spec.make(process, count, **options)
    t = stretched(grid.sigma[:-1], grid.sigma[0].item(), terminal)
    return Grid.of(process, process.at_sigma(t), grid.name)


def _check(
    name: str, spec: GridSpec, process: Process, steps: int, terminal: Any, options: dict[str, Any]
) -> None:
    """Refuse options that a grid does not have, and more steps than training levels."""
    if terminal is not None and not isinstance(process, Flow):
        raise ArgumentError(
            f"terminal={terminal!r} is the last level of a flow's grids; on a {process.kind}"
            " process take grid 'flow'"
        )
    for key in options:
        if key not in spec.options:
            has = f"it takes {', '.join(spec.options)}" if spec.options else "it takes none"
            raise ArgumentError(f"grid {name!r} has no option {key!r}; {has}")
    if steps > process.train_steps and process.kind == "vp":
        raise GridError(
            f"{steps} steps are more than the {process.train_steps} training levels of this model; "
            f"use at most {process.train_steps}"
        )
    if terminal is not None and "sigma_min" in spec.options and "sigma_min" in options:
        raise ArgumentError(
            f"terminal={terminal!r} and sigma_min={options['sigma_min']!r} both end the grid;"
            " give one"
        )
