"""Grids: which levels a run visits. The table of grids is what lists, checks, documents and tests
them.

A grid of N steps has N + 1 levels, falling in noise; the network is called at the first N, and the
last is the clean level sigma = 0 unless the grid was cut. Every grid is a function `(process,
steps, **options)
-> Grid`; to add one, write it in the file of its space and add one line to `GRIDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
    """One line of the table of grids."""

    make: Callable[..., Grid]
    space: str
    reference: str
    options: tuple[str, ...] = field(default=())


ENDS = ("sigma_min", "sigma_max")
CLOSE = 1e-6  # of two levels in log(alpha / sigma)
AYS, OSS = "arXiv 2404.14507", "arXiv 2503.21774"
GRIDS: dict[str, GridSpec] = {
    "leading": GridSpec(index.leading, "training index", "DDIM, arXiv 2010.02502"),
    "linspace": GridSpec(index.linspace, "training index", "iDDPM, arXiv 2102.09672"),
    "trailing": GridSpec(index.trailing, "training index", "arXiv 2305.08891, table 2"),
    "normal": GridSpec(index.linspace, "training index", "ComfyUI; the levels of linspace"),
    "simple": GridSpec(index.simple, "training index", "ComfyUI"),
    "sgm_uniform": GridSpec(index.sgm_uniform, "training index", "Stability generative-models"),
    "ddim_uniform": GridSpec(
        index.ddim_uniform, "training index", "DDIM, arXiv 2010.02502; ComfyUI"
    ),
    "beta": GridSpec(beta.beta, "training index", "arXiv 2407.12173; ComfyUI", ("alpha", "beta")),
    "smoothstep": GridSpec(index.smoothstep, "training index", "stable-diffusion.cpp"),
    "lcm": GridSpec(index.lcm, "training index", "arXiv 2310.04378", ("original_steps",)),
    "karras": GridSpec(sigma.karras, "schedule sigma", "arXiv 2206.00364, eq. 5", ("rho", *ENDS)),
    "exponential": GridSpec(sigma.exponential, "log sigma", "k-diffusion", ENDS),
    "polyexponential": GridSpec(sigma.polyexponential, "log sigma", "k-diffusion", ("rho", *ENDS)),
    "gaussian": GridSpec(gaussian, "sigma / alpha", "arXiv 2404.14507, lemma 3.3", ("std",)),
    "kl_optimal": GridSpec(sigma.kl_optimal, "atan sigma", "arXiv 2404.14507, theorem 3.1", ENDS),
    "laplace": GridSpec(sigma.laplace, "log sigma", "arXiv 2407.03297", ("mu", "beta", *ENDS)),
    "cosine": GridSpec(sigma.cosine, "schedule sigma", "reForge", ENDS),
    "beta_sigma": GridSpec(
        beta.beta_sigma,
        "schedule sigma",
        "arXiv 2407.12173; A1111, diffusers",
        ("alpha", "beta", *ENDS),
    ),
    "linear_quadratic": GridSpec(
        sigma.linear_quadratic,
        "schedule sigma",
        "Mochi; ComfyUI",
        ("threshold_noise", "linear_steps", "sigma_max"),
    ),
    "bong_tangent": GridSpec(
        sigma.bong_tangent, "schedule sigma", "RES4LYF", ("pivot", "slope", "middle", "sigma_max")
    ),
    "lam": GridSpec(sigma.lam, "lam", "DPM-Solver, arXiv 2206.00927", ENDS),
    "vp": GridSpec(
        sigma.vp,
        "time of the continuous VP process",
        "arXiv 2011.13456",
        ("beta_d", "beta_min", *ENDS),
    ),
    "flow": GridSpec(
        flow.flow,
        "sigma / (alpha + sigma)",
        "arXiv 2403.03206, eq. 23",
        ("shift", "mu", "tokens", "terminal"),
    ),
    "ays": GridSpec(published.ays, "log sigma / alpha", AYS),
    "ays_sd15": GridSpec(published.ays_sd15, "log sigma / alpha", AYS),
    "ays_sdxl": GridSpec(published.ays_sdxl, "log sigma / alpha", AYS),
    "ays_svd": GridSpec(published.ays_svd, "log sigma / alpha", AYS),
    "oss_flux": GridSpec(published.oss_flux, "log t", OSS),
    "oss_wan": GridSpec(published.oss_wan, "log t", OSS),
}


def make(
    name: str,
    process: Process,
    steps: int,
    *,
    discard_penultimate: bool | str = False,
    **options: Any,
) -> Grid:
    """The grid called `name`. Raises `UnknownName` or `GridError`, always before any compute.

    `discard_penultimate` makes a grid of one step more and leaves out its last level above 0, as
    ComfyUI does for some samplers: the step from there to the clean level is too small to be worth
    a network call, and the one before it longer than a multistep method bears. "auto": only where
    that level is the model's cleanest.
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
    """`discard_penultimate` as given. Raises `ArgumentError` unless it is True, False or "auto"."""
    return "auto" if value == "auto" else flag("discard_penultimate", value)


def _ends_cleanest(grid: Grid) -> bool:
    """Whether the last level above 0 is the cleanest that the model was trained at, or the next."""
    if grid.steps < 2:
        return False
    offset = max(float(grid.process.steps_offset), 1.0)
    return bool(grid[grid.steps - 1].lam >= grid.process.at_index(double(offset)).lam - CLOSE)


def _make(name: str, process: Process, steps: int, **options: Any) -> Grid:
    """The grid called `name`, all its levels.

    On a flow every grid takes `terminal`, its last t above 0: grids between two ends have it as
    their `sigma_min`, the others are stretched, see `flow.stretched`. One step has only the first
    level.
    """
    spec, count = GRIDS[among("grid", name, GRIDS)], few_enough("steps", steps)
    terminal = None if "terminal" in spec.options else options.pop("terminal", None)
    if terminal is not None and not isinstance(process, Flow):
        raise ArgumentError(
            f"terminal={terminal!r} is the last level of a flow's grids; on a {process.kind}"
            " process take grid 'flow'"
        )
    for key in options:
        if key not in spec.options:
            has = f"it takes {', '.join(spec.options)}" if spec.options else "it takes none"
            raise ArgumentError(f"grid {name!r} has no option {key!r}; {has}")
    if count > process.train_steps and process.kind == "vp":
        raise GridError(
            f"{count} steps are more than the {process.train_steps} training levels of this model; "
            f"use at most {process.train_steps}"
        )
    if terminal is None:
        return spec.make(process, count, **options)
    if "sigma_min" in spec.options:
        if "sigma_min" in options:
            raise ArgumentError(
                f"terminal={terminal!r} and sigma_min={options['sigma_min']!r} both end the grid;"
                " give one"
            )
        return spec.make(process, count, **options, sigma_min=terminal)
    made = spec.make(process, count, **options)
    t = stretched(made.sigma[:-1], made.sigma[0].item(), terminal)
    return Grid.of(process, process.at_sigma(t), made.name)
