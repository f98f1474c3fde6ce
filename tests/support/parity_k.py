"""The harness for k-diffusion: its samplers in float64 beside timonel's tables.

k-diffusion works in y = x0 + sigma·eps; timonel in x = y / sqrt(1 + sigma²). What is compared is
every sample the model is shown and the result, in units of the larger of one and the root mean
square.
"""

from __future__ import annotations

import functools
import inspect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from support.models import drive
from support.parity import Path, apart, draw, inside, mixed, net
from support.peers import k_diffusion_sampling
from timonel.core import prediction, solvers
from timonel.core.grids import Grid
from timonel.core.process import EDM, Level, double
from timonel.core.table import Table

TOLERANCE = 1e-9
Data = Callable[
    [torch.Tensor, Any], torch.Tensor
]  # a sample and its level: the exact denoised sample
PROCESS = EDM(1e-5, 1e5)


@dataclass(frozen=True)
class Case:
    """One call of a k-diffusion sampler and the timonel solver that should do the same."""

    peer: str
    sigmas: tuple[float, ...]
    solver: str
    options: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)  # of the peer
    kind: str = "epsilon"
    data: Data | None = None  # denoises instead of the small network; its kind is "sample"

    def __str__(self) -> str:
        levels = " ".join(f"{s:.5g}" for s in self.sigmas)
        same = f"{self.solver}({self.options})"
        return f"{self.peer}({self.arguments}) on [{levels}] as {same}, {self.kind}"


# -- levels ----------------------------------------------------------------------------------------
def levels(rng: random.Random, clean: bool = True) -> tuple[float, ...]:
    """A falling list of sigmas: one of k-diffusion's four grids, or no grid at all."""
    n, low, high = rng.randint(2, 40), rng.choice([0.002, 0.03]), rng.choice([14.6, 80.0])
    name = rng.choice(["karras", "exponential", "polyexponential", "vp", "random"])
    if name == "random":
        logs = sorted((rng.uniform(math.log(low), math.log(high)) for _ in range(n)), reverse=True)
        values = [math.exp(v - 1e-3 * i) for i, v in enumerate(logs)]
    else:
        make = getattr(k_diffusion_sampling(), f"get_sigmas_{name}")
        values = (make(n) if name == "vp" else make(n, low, high)).tolist()[:-1]
    return (*values, 0.0) if clean else tuple(values)


def grid(sigmas: tuple[float, ...]) -> Grid:
    ratio = double(sigmas)
    alpha = 1 / torch.sqrt(1 + ratio**2)
    return Grid(PROCESS, alpha, alpha * ratio, ratio * 0, "theirs")


# -- configurations --------------------------------------------------------------------------------
def ancestral(
    name: str, solver: str, **options: Callable[[random.Random], Any]
) -> Callable[[random.Random], Case]:
    """Options that both sides call by the same name."""

    def make(rng: random.Random) -> Case:
        chosen = noisy(rng) | {k: pick(rng) for k, pick in options.items()}
        return Case(name, levels(rng), solver, chosen, chosen, kind(rng))

    return make


def kind(rng: random.Random) -> str:
    return rng.choice(["epsilon", "v", "sample"])


def noisy(rng: random.Random) -> dict[str, Any]:
    """eta, and s_noise where there is noise to scale."""
    eta = rng.choice([0.0, 0.5, 1.0])
    return {"eta": eta, "s_noise": rng.choice([1.0, 1.003])} if eta else {"eta": eta}


def churned(name: str, solver: str) -> Callable[[random.Random], Case]:
    def make(rng: random.Random) -> Case:
        options: dict[str, Any] = {}
        if rng.random() < 0.6:
            options = {"s_churn": rng.choice([4.0, 40.0]), "s_noise": rng.choice([1.0, 1.007])}
            options |= rng.choice([{}, {"s_tmin": 0.05, "s_tmax": 50.0}])
        same = "edm" if solver == "heun" and options and rng.random() < 0.5 else solver
        return Case(name, levels(rng), same, options, options, kind(rng))

    return make


def dpmpp_2m(rng: random.Random) -> Case:
    return Case("dpmpp_2m", levels(rng), "dpmpp_2m", kind=kind(rng))


def dpmpp_2m_sde(rng: random.Random) -> Case:
    both, variant = noisy(rng), rng.choice(["midpoint", "heun"])
    options, arguments = both | {"variant": variant}, both | {"solver_type": variant}
    return Case("dpmpp_2m_sde", levels(rng), "dpmpp_2m_sde", options, arguments, kind(rng))


def dpmpp_3m_sde(rng: random.Random) -> Case:
    both = noisy(rng)
    return Case("dpmpp_3m_sde", levels(rng), "dpmpp_3m_sde", both, both, kind(rng))


def lms(rng: random.Random) -> Case:
    order = {"order": rng.randint(1, 4)}
    return Case("lms", levels(rng), "lms", order | {"euler_at_final": False}, order, kind(rng))


def dpm_fast(rng: random.Random) -> Case:
    """It makes its own levels, even in log sigma, and ends at sigma_min."""
    nfe, low, high = rng.randint(3, 40), rng.choice([0.01, 0.03]), rng.choice([14.6, 80.0])
    steps = nfe // 3 + 1
    values = (
        torch.linspace(math.log(high), math.log(low), steps + 1, dtype=torch.float64).exp().tolist()
    )
    arguments = {"sigma_min": low, "sigma_max": high, "n": nfe}
    return Case("dpm_fast", tuple(values), "dpm_fast", {"remainder": nfe % 3}, arguments, kind(rng))


@dataclass(frozen=True)
class Peer:
    draw: Callable[[random.Random], Case]
    runs: int = 14


PEERS: dict[str, Peer] = {
    "euler": Peer(churned("euler", "euler")),
    "euler_ancestral": Peer(ancestral("euler_ancestral", "euler_ancestral")),
    "heun": Peer(churned("heun", "heun")),
    "dpm_2": Peer(churned("dpm_2", "dpm2")),
    "dpm_2_ancestral": Peer(ancestral("dpm_2_ancestral", "dpm2_ancestral")),
    "lms": Peer(lms),
    "dpm_fast": Peer(dpm_fast),
    "dpmpp_2s_ancestral": Peer(ancestral("dpmpp_2s_ancestral", "dpmpp_2s_ancestral")),
    "dpmpp_sde": Peer(ancestral("dpmpp_sde", "dpmpp_sde", r=lambda g: g.choice([0.5, 0.4]))),
    "dpmpp_2m": Peer(dpmpp_2m),
    "dpmpp_2m_sde": Peer(dpmpp_2m_sde, 18),
    "dpmpp_3m_sde": Peer(dpmpp_3m_sde, 18),
}
OUT_OF_SCOPE = {
    "dpm_adaptive": (
        "makes its rows as it goes, so there is no table to draw; `tests/core/test_adaptive.py`"
        " holds that `dpm_adaptive` keeps the same steps, with results equal to 1e-8"
    )
}


@functools.cache
def cases(name: str) -> tuple[Case, ...]:
    """The configurations of a sampler, the same every time."""
    return tuple(PEERS[name].draw(random.Random(f"{name} {i}")) for i in range(PEERS[name].runs))


# -- both sides ------------------------------------------------------------------------------------
def compiled(case: Case) -> Table:
    return solvers.make(case.solver, grid(case.sigmas), **case.options)


def theirs(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What the model was shown, in unit-variance coordinates, and the result."""
    module, shown, path = k_diffusion_sampling(), [], Path()
    path.mix, path.call = mixed(compiled(case)) if case.solver == "dpmpp_sde" else {}, -1

    def model(y: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        ratio = double(sigma.flatten()[0])
        alpha = 1 / torch.sqrt(1 + ratio**2)
        x = alpha * y
        shown.append(x)
        level = Level(alpha, alpha * ratio, ratio)
        return prediction.denoised(
            case.kind, case.data(x, level) if case.data else net(x, 0.0), x, level
        )

    def noise(*_: object) -> torch.Tensor:
        path.call += 1
        return path()

    sigmas, arguments = double(case.sigmas), dict(case.arguments)
    start, given = draw(-1) * sigmas[0], () if case.peer == "dpm_fast" else (sigmas,)
    sample = getattr(module, f"sample_{case.peer}")
    if "noise_sampler" in inspect.signature(sample).parameters:
        arguments["noise_sampler"] = noise
    with inside(module, False, path, randn_like=noise):
        torch.set_default_dtype(torch.float64)
        y = sample(model, start, *given, disable=True, **arguments)
    return shown, y


def ours(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    table, first, shown = compiled(case), grid(case.sigmas)[0], []
    x = draw(-1) * first.sigma
    churn = "s_churn" in case.options
    if churn:  # k-diffusion lifts a sample where a step begins, timonel where the step before ends
        rise = table.alpha[0] / first.alpha
        fresh = torch.sqrt((table.sigma[0] ** 2 - (rise * first.sigma) ** 2).clamp(min=0))
        x = rise * x + fresh * case.options["s_noise"] * draw(0)

    def noise(row: int, like: torch.Tensor) -> torch.Tensor:
        return draw(row if case.solver == "dpmpp_sde" else table.step[row] + churn)

    def look(x: torch.Tensor, at: Any) -> torch.Tensor:
        shown.append(x)
        return case.data(x, at) if case.data else net(x, 0.0)

    return shown, drive(table, look, x, prediction=case.kind, noise=noise) / table.alpha[-1]


def error(case: Case) -> float:
    """The worst difference between the two sides, over every input of the model and the result."""
    shown, result = theirs(case)
    seen, end = ours(case)
    if len(seen) != len(shown):
        return math.inf
    return max(apart(a, b) for a, b in [*zip(seen, shown, strict=True), (end, result)])


@functools.cache
def measured(name: str) -> tuple[tuple[Case, float], ...]:
    """Every configuration of a sampler with its error."""
    return tuple((case, error(case)) for case in cases(name))
