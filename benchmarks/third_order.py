"""Which formula of third order `dpmpp_3m_sde` has by default: error against steps on exactly known
models.

    python benchmarks/third_order.py

Six models: two Gaussians, three mixtures, 64 pictures. eta 0: the rms distance to the limit of the
ODE, the geometric mean over the models, an error below 1e-3 counting as that. eta 1: the energy
distance between 1,500 results and as many samples of the data (0 for samples of the data itself),
the mean over the models without the pictures.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import timonel as tm
from exact import discs
from timonel.core import grids, solvers
from timonel.core.process import Process
from timonel.core.run import Run
from timonel.exact import Exact, Gaussian, Mixture, Pictures, solve

STEPS = (4, 5, 6, 8, 10, 12, 15, 20, 30)
SAMPLES, DRAWS, FLOOR = 64, 1500, 1e-3
LEVELS: dict[str, tuple[Process, str]] = {
    "karras": (tm.VP.from_schedule(), "karras"),
    "exponential": (tm.VP.from_schedule(), "exponential"),
    "trailing": (tm.VP.from_schedule(), "trailing"),
    "flow, shift 3": (tm.Flow(3.0), "trailing"),
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "default (k-diffusion's)": ("dpmpp_3m_sde", {}),
    "final_order=2": ("dpmpp_3m_sde", {"final_order": 2}),
    "curvature=1": ("dpmpp_3m_sde", {"curvature": 1.0}),
    "as dpmpp_3m": ("dpmpp_3m_sde", {"curvature": 1.0, "variant": "midpoint", "final_order": 2}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
}


def models() -> list[Exact]:
    turn = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    circle = 1.2 * torch.stack([torch.cos(turn), torch.sin(turn)], 1)
    several = Gaussian(torch.linspace(-1, 1, 8), torch.logspace(-1.3, 0.1, 8))
    mixtures = [Mixture([1.0] * 5, circle, 0.15), Mixture.random(0), Mixture.random(3, 4, 8)]
    return [
        Gaussian(torch.tensor([0.7]), torch.tensor([0.5])),
        several,
        *mixtures,
        Pictures(discs(64)),
    ]


def normal(count: int, model: Exact, seed: int) -> Tensor:
    return torch.randn(
        count, *model.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def result(model: Exact, method: str, levels: grids.Grid, eta: float, start: Tensor) -> Tensor:
    """What a sampler makes of the start; its noise is the same for every sampler."""
    name, options = METHODS[method]
    table = solvers.make(name, levels, eta=eta, **options)
    run = Run(table, noise=(lambda row, x: normal(len(x), model, 100 + row)) if eta else None)
    run.start(start)
    for _ in run.rows():
        run.advance(model(run.latents, run.level))
    return run.result


def energy(made: Tensor, data: Tensor) -> float:
    """The energy distance of two sets of samples, unbiased (Székely & Rizzo 2013)."""
    made, data = made.flatten(1), data.flatten(1)
    within = sum(torch.cdist(a, a).sum() / (len(a) * (len(a) - 1)) for a in (made, data))
    return float(2 * torch.cdist(made, data).mean() - within)


def errors(process: Process, grid: str) -> dict[str, tuple[list[float], list[float]]]:
    """By method: at every number of steps the error at eta 0 and the energy distance at eta 1."""
    far: dict[str, list[list[float]]] = {m: [[] for _ in STEPS] for m in METHODS}
    apart: dict[str, list[list[float]]] = {m: [[] for _ in STEPS] for m in METHODS}
    first = grids.make(grid, process, 4)[0]
    for model in models():
        start = first.sigma * normal(SAMPLES, model, 1)
        truth = solve(model, start, process, tolerance=1e-6)
        many = first.alpha * model.draw(DRAWS, 9) + first.sigma * normal(DRAWS, model, 5)
        data = model.draw(DRAWS, 7)
        for method in METHODS:
            for i, steps in enumerate(STEPS):
                levels = grids.make(grid, process, steps)
                found = result(model, method, levels, 0.0, start)
                far[method][i].append(max(float((found - truth).square().mean().sqrt()), FLOOR))
                if not isinstance(model, Pictures):
                    apart[method][i].append(energy(result(model, method, levels, 1.0, many), data))
    return {
        m: (
            [math.exp(sum(map(math.log, c)) / len(c)) for c in far[m]],
            [sum(c) / len(c) for c in apart[m]],
        )
        for m in METHODS
    }


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    head = "".join(f"{steps:>9}" for steps in STEPS)
    print(f"{'levels':<14}{'eta':>4}  {'sampler':<24}{head}")
    for name, (process, grid) in LEVELS.items():
        found = errors(process, grid)
        for eta in (0, 1):
            for method in METHODS:
                print(
                    f"{name:<14}{eta:>4}  {method:<24}"
                    + "".join(f"{v:>9.2g}" for v in found[method][eta])
                )


if __name__ == "__main__":
    main()
