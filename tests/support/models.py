"""Exactly solvable models, grids and drivers that the laws are checked with. All in float64."""

from __future__ import annotations

import functools
import math
import re

import numpy as np
import pytest
import torch

import timonel as tm
from timonel.core import solvers
from timonel.core.grids import Grid
from timonel.core.process import EDM, VP, At, Flow, Level, double
from timonel.core.run import Run
from timonel.core.solvers import exponential, runge_kutta

torch.set_num_threads(1)

PROCESSES = {
    "vp": VP.from_schedule(),
    "edm": EDM(0.002, 80.0),
    "flow": Flow(3.0),
}
#: every solver with its defaults, and the options that change its mathematics
VARIANTS: list[tuple[str, dict]] = [(name, {}) for name in solvers.SOLVERS] + [
    ("ddim", {"eta": 1.0}),
    ("euler_ancestral", {"eta": 0.5}),
    ("edm", {"s_churn": 0.0}),
    ("dpmpp_2m_sde", {"eta": 0.0}),
    ("dpmpp_2m_sde", {"eta": 0.5}),
    ("tcd", {"eta": 0.0}),
    ("tcd", {"eta": 1.0}),
    *(
        ("unipc", {"order": order, "variant": v})
        for order in (1, 2, 3)
        for v in ("bh1", "bh2", "vary")
    ),
    *(("lms", {"order": order}) for order in (1, 2, 3)),
    *(("ipndm", {"order": order}) for order in (1, 2, 3)),
    *((name, {"euler_at_final": False}) for name in ("lms", "ipndm", "gradient_estimation")),
    *(("deis", {"order": order}) for order in (1, 2)),
    *(("deis", {"order": order, "variant": "tab"}) for order in (1, 2, 3)),
    *(("res_multistep", {"order": order}) for order in (1, 3, 4)),
    *(("er_sde", {"order": order}) for order in (1, 2)),
    *(("dpm_solver", {"order": order}) for order in (1, 2)),
    *(("dpm_multistep", {"order": order}) for order in (1, 3)),
    ("dpm_multistep", {"order": 3, "curvature": 0.5}),
    ("dpm_multistep", {"variant": "heun"}),
    *((f"{name}_singlestep", {"order": order}) for name in ("dpm", "dpmpp") for order in (1, 3)),
    *(
        (f"{name}_singlestep", {"order": o, "variant": "heun"})
        for name in ("dpm", "dpmpp")
        for o in (2, 3)
    ),
    ("dpmpp_singlestep", {"eta": 1.0}),
    *(("dpm_fast", {"remainder": left}) for left in (1, 2)),
    *(
        ("runge_kutta", {"tableau": name})
        for name in runge_kutta.TABLEAUS
        if name != "bogacki_shampine"
    ),
    *(
        ("exponential_rk", {"tableau": name})
        for name in exponential.EXPONENTIALS
        if name != "krogstad"
    ),
    ("dpm2_ancestral", {"eta": 0.5}),
    ("dpmpp_2s", {"r": 0.3}),
    ("dpmpp_2s_ancestral", {"eta": 0.5}),
    ("dpmpp_sde", {"eta": 0.5}),
    ("dpmpp_sde", {"eta": 0.0}),
    ("dpmpp_2m", {"variant": "heun"}),
    ("dpmpp_2m_sde", {"variant": "heun"}),
    ("dpmpp_3m", {"curvature": 0.5}),
    ("dpmpp_3m_sde", {"eta": 0.5}),
    ("dpmpp_3m_sde", {"eta": 0.0}),
    ("seeds_2", {"eta": 0.5, "r": 0.4}),
    ("seeds_2", {"eta": 0.0}),
    ("seeds_2", {"r": 1.0, "variant": "phi_2"}),
    ("seeds_3", {"eta": 0.0}),
    ("sa_solver", {"eta": 0.0}),
    (
        "sa_solver",
        {"eta": 0.5, "start": 0.0, "stop": 1.0, "predictor_order": 3, "corrector_order": 4},
    ),
    ("sa_solver", {"predictor_order": 4, "corrector_order": 0}),
    ("sa_solver", {"predictor_order": 1, "corrector_order": 1}),
    ("sa_solver", {"variant": "simple"}),
    ("restart", {"restarts": 2, "restart_steps": 3}),
    # what any solver takes: churn, and more or less of its noise
    ("dpmpp_2m", {"s_churn": 4.0}),
    ("lms", {"s_churn": 4.0}),
    ("unipc", {"s_churn": 4.0, "s_tmax": 2.0}),
    ("dpmpp_2m_sde", {"s_churn": 4.0}),
]
#: the defaults at once; what options change is left to the slow tests, where a law is about
#: something else
MAINLY = [v if not v[1] else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
#: where fewer steps have other numbers of calls than their text says
FEW_STEPS = {
    "N + 1": lambda n: n + (n > 1),
    "N + 9": lambda n: n + 3 * min(n - 1, 3),
    "3N - 3": lambda n: max(3 * n - 3, 1),
}


def calls(text: str, steps: int) -> int:
    """Network calls for so many steps, by the text in the table of solvers, e.g. "2N - 1"."""
    if text in FEW_STEPS:
        return FEW_STEPS[text](steps)
    factor, sign, rest = re.fullmatch(r"(\d*)N(?: ([+-]) (\d+))?", text).groups()
    return int(factor or 1) * steps + int(f"{sign or '+'}{rest or 0}")


def label(value: object) -> str | None:
    """A readable test id for a (solver, options) pair."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        return "-".join([value[0], *(f"{k}={v}" for k, v in value[1].items())])
    return None


class Constant:
    """Data at one point c: a constant denoiser, and x = alpha·c + sigma·z on every ODE path."""

    def __init__(self, c: torch.Tensor | float) -> None:
        self.c = c

    def __call__(self, x: torch.Tensor, level: At) -> torch.Tensor:
        return torch.as_tensor(self.c, dtype=x.dtype).expand_as(x).clone()


class Gaussian:
    """Data N(mean, diag(std²)). The marginal at a level is N(alpha·mean, alpha²·std² + sigma²)."""

    def __init__(self, mean: object = (0.7, -0.4, 0.2), std: object = (0.5, 1.0, 0.2)) -> None:
        self.mean, self.std = double(mean), double(std)

    def spread(self, level: Level | At) -> torch.Tensor:
        """Standard deviation of the marginal."""
        return torch.sqrt(level.alpha**2 * self.std**2 + level.sigma**2)

    def affine(self, level: Level | At) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) with denoised = a·x + b."""
        a = level.alpha * self.std**2 / (level.alpha**2 * self.std**2 + level.sigma**2)
        return a, self.mean * (1 - a * level.alpha)

    def __call__(self, x: torch.Tensor, level: At) -> torch.Tensor:
        a, b = self.affine(level)
        return x * a.to(x.dtype) + b.to(x.dtype)

    def solve(self, x: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
        """The probability-flow ODE in closed form: the standardised sample does not change."""
        return end.alpha * self.mean + self.spread(end) / self.spread(start) * (
            x - start.alpha * self.mean
        )


class Mixture:
    """Data sum w_i N(m_i, s_i²·1) in 2-D: a denoiser that is not linear, in closed form."""

    weights = double([0.3, 0.45, 0.25])
    means = double([[1.0, 0.2], [-0.6, 0.8], [0.1, -0.9]])
    stds = double([0.35, 0.5, 0.4])

    def __call__(self, x: torch.Tensor, level: At) -> torch.Tensor:
        x = x[..., None, :]
        variance = level.alpha**2 * self.stds**2 + level.sigma**2
        apart = x - level.alpha * self.means
        log = torch.log(self.weights) - torch.log(variance) - (apart**2).sum(-1) / (2 * variance)
        clean = self.means + (level.alpha * self.stds**2 / variance)[:, None] * apart
        return (torch.softmax(log, -1)[..., None] * clean).sum(-2)

    def solve(self, x: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
        """The probability-flow ODE dy/dlog s = y - denoised, y = x/alpha, by DOP853 at 1e-12."""
        from scipy.integrate import solve_ivp

        def slope(log: float, y: np.ndarray) -> np.ndarray:
            alpha = 1 / math.sqrt(1 + math.exp(2 * log))
            at = At(alpha, alpha * math.exp(log), 0.0)
            y = torch.from_numpy(y).reshape(x.shape)
            return (y - self(at.alpha * y, at)).flatten().numpy()

        span = [float(-level.lam) for level in (start, end)]
        done = solve_ivp(
            slope,
            span,
            (x / start.alpha).flatten().numpy(),
            method="DOP853",
            rtol=1e-12,
            atol=1e-13,
        )
        return torch.from_numpy(done.y[:, -1]).reshape(x.shape) * end.alpha


def lam_grid(
    process: object, steps: int, start: float = -2.0, end: float = 1.5, bend: float = 0.0
) -> Grid:
    """Levels evenly spaced in lam, or smoothly uneven with `bend`, that end above sigma = 0."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    u = u + bend * torch.sin(math.pi * u) / math.pi
    return Grid.of(process, process.at_lam(start + (end - start) * u), "lam", clean=False)


def ends(grid: Grid) -> tuple[Level, Level]:
    return grid[0], grid[grid.steps]


def drive(
    table: tm.Table,
    denoise: object,
    x: torch.Tensor,
    *,
    seeds: object = None,
    prediction: str = "sample",
    **options: object,
) -> torch.Tensor:
    """The result of a table on a denoiser."""
    noise = options.pop("noise", None) or (
        tm.SeededNoise(tuple(seeds or range(len(x)))) if table.stochastic else None
    )
    run = Run(table, prediction, noise=noise, **options)
    run.start(x)
    for _ in run.rows():
        run.advance(denoise(run.latents, run.level))
    return run.result


def propagate(
    table: tm.Table, affine: object, mean: torch.Tensor, spread: torch.Tensor
) -> list[torch.Tensor]:
    """Every row's x as an affine function of independent unit noises: rows (1 + 1 + K, dims).

    Entry 0 is the mean, entry 1 the coefficient of the start's noise, entry 2 + k that of row k's.
    `affine(level) -> (a, b)` is the denoiser. The variance is the sum of squares of entries 1….
    """
    table = table.unguided()
    k_rows, dims = table.nfe, mean.shape[0]

    def unit(row: int) -> torch.Tensor:
        out = torch.zeros(2 + k_rows, dims, dtype=torch.float64)
        out[2 + row] = 1.0
        return out

    x = torch.zeros(2 + k_rows, dims, dtype=torch.float64)
    x[0], x[1] = mean, spread
    base, history, path = x.clone(), [torch.zeros_like(x)] * (table.history - 1), [x]
    for k in range(k_rows):
        level = table.level(k)
        a, b = affine(level)
        h0 = a * x
        h0[0] = h0[0] + b
        if table.basis != "denoised":
            scale = level.alpha + level.sigma * (table.basis == "velocity")
            h0 = (x - scale * h0) / level.sigma
        registers = torch.stack([x, base, h0, *history, unit(k)])
        x, base = (torch.einsum("r,rnd->nd", row[k], registers) for row in (table.x, table.base))
        history = [h0, *history][: table.history - 1]
        path.append(x)
    return path


def variance(x: torch.Tensor) -> torch.Tensor:
    return (x[1:] ** 2).sum(0)


def slope(steps: list[int], errors: list[float]) -> float:
    """The log-log slope of errors over steps: the order of convergence."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@functools.cache
def network(
    channels: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """A small random network that also sees the time; fixed weights, outputs of order one."""
    g = torch.Generator().manual_seed(seed)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(
                torch.randn(16, channels, 3, 3, generator=g).to(dtype) * 0.2
            )
            self.b = torch.nn.Parameter(
                torch.randn(channels, 16, 3, 3, generator=g).to(dtype) * 0.15
            )
            self.t = torch.nn.Parameter(torch.randn(16, generator=g).to(dtype))

        @torch.no_grad()
        def forward(self, x: torch.Tensor, time: float) -> torch.Tensor:
            hidden = torch.nn.functional.conv2d(x, self.a.to(x.dtype), padding=1)
            hidden = torch.tanh(
                hidden + torch.sin(self.t * (float(time) / 300 + 1)).to(x.dtype)[:, None, None]
            )
            return torch.nn.functional.conv2d(hidden, self.b.to(x.dtype), padding=1) + 0.3 * x

    return Net()
