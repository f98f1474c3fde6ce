"""Parity with k-diffusion in float64: the same denoiser, sigmas, start and noise.

k-diffusion works in y = x0 + sigma·eps; ours is x = y / sqrt(1 + sigma²).
"""

from __future__ import annotations

import pytest
import torch

from models import Gaussian, Mixture, drive, lam_grid, slope
from peers import k_diffusion_sampling
from timonel import grids, solvers
from timonel.process import EDM, At, double

theirs = k_diffusion_sampling()
pytestmark = pytest.mark.skipif(theirs is None, reason="k-diffusion is not installed")
PROCESS = EDM(0.002, 200.0)
SIGMAS = grids.sigma.karras(PROCESS, 9, sigma_min=0.02, sigma_max=80.0)
MODEL, TOLERANCE = Mixture(), 1e-10


def noise(row: int, like: torch.Tensor | None = None) -> torch.Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(50 + row), dtype=torch.float64)


def peer_model(y: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
    s = float(sigma.flatten()[0])
    alpha = (1 + s * s) ** -0.5
    return MODEL(alpha * y, At(alpha, alpha * s, 0.0))


def sigmas() -> torch.Tensor:
    return SIGMAS.sigma / SIGMAS.alpha


def start() -> torch.Tensor:
    return noise(100) * sigmas()[0]


def compare(name: str, call: str, options: dict | None = None, **peer: object) -> float:
    y = getattr(theirs, call)(peer_model, start(), sigmas(), disable=True, **peer)
    table = solvers.make(name, SIGMAS, **(options or {}))
    return float((drive(table, MODEL, start() * SIGMAS.alpha[0], noise=noise) - y).abs().max())


def sampler():
    rows = iter(range(100))
    return lambda a, b: noise(next(rows))


def test_sigmas_are_those_of_k_diffusion():
    for steps in (2, 5, 20):
        wanted = theirs.get_sigmas_karras(steps, 0.02, 80.0).double()
        grid = grids.sigma.karras(PROCESS, steps, sigma_min=0.02, sigma_max=80.0)
        assert torch.allclose(grid.sigma / grid.alpha, wanted, rtol=2e-5)
        wanted = theirs.get_sigmas_exponential(steps, 0.02, 80.0).double()
        grid = grids.sigma.exponential(PROCESS, steps, sigma_min=0.02, sigma_max=80.0)
        assert torch.allclose(grid.sigma / grid.alpha, wanted, rtol=2e-5)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_deterministic_samplers(name):
    assert compare(name, f"sample_{name}") <= TOLERANCE


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde"])
def test_stochastic_samplers(name, eta):
    assert compare(name, f"sample_{name}", {"eta": eta}, eta=eta, noise_sampler=sampler()) <= TOLERANCE


def test_dpmpp_2m_sde_without_noise():
    assert compare("dpmpp_2m_sde", "sample_dpmpp_2m_sde", {"eta": 0.0}, eta=0.0, noise_sampler=sampler()) <= TOLERANCE


CHURNS = [(4.0, 0.0, float("inf"), 1.0), (40.0, 0.05, 50.0, 1.007)]


@pytest.mark.parametrize(("churn", "low", "high", "s_noise"), CHURNS)
def test_edm_churn(churn, low, high, s_noise, monkeypatch):
    """k-diffusion lifts a sample where a step begins, ours where the step before ends: the same noise, a row early."""
    rows = iter(range(100))
    monkeypatch.setattr(torch, "randn_like", lambda y: noise(next(rows)))
    y = theirs.sample_heun(
        peer_model, start(), sigmas(), disable=True, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=s_noise
    )
    table = solvers.make("edm", SIGMAS, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=s_noise)
    lifted = table.level(0).ratio
    first = start() + noise(0) * s_noise * torch.sqrt((lifted**2 - sigmas()[0] ** 2).clamp(min=0))
    x = drive(table, MODEL, first * table.alpha[0], noise=lambda row, like: noise(table.step[row] + 1))
    assert float((x - y).abs().max()) <= TOLERANCE


def test_dpmpp_3m_of_k_diffusion_is_of_order_two_and_ours_of_three():
    """Both extrapolate quadratically. h²·D'' is twice the second divided difference; k-diffusion (and diffusers'

    third-order DPM-Solver++) leave out that 2, so that their error falls with
    order 2. From near pure noise, on Gaussian data, against the closed form.
    """
    data, process, steps = Gaussian(), EDM(0.002, 700.0), (48, 72, 108)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, peers = [], []

    def model(y, sigma, **_):
        s = float(sigma.flatten()[0])
        alpha = (1 + s * s) ** -0.5
        return data(alpha * y, At(alpha, alpha * s, 0.0))

    for n in steps:
        grid = lam_grid(process, n, -6.0, bend=0.4)
        exact = data.solve(x, grid[0], grid[n])
        mine.append(float((drive(solvers.make("dpmpp_3m", grid), data, x) - exact).abs().max()))
        y = theirs.sample_dpmpp_3m_sde(
            model, x / grid.alpha[0], grid.sigma / grid.alpha, disable=True, eta=0.0, noise_sampler=sampler()
        )
        peers.append(float((y * grid.alpha[n] - exact).abs().max()))
    assert slope(list(steps), mine) > 2.8
    assert slope(list(steps), peers) < 2.5
    assert mine[-1] < peers[-1] / 2


def test_the_quadratic_coefficient_is_twice_the_divided_difference():
    """The factor itself, on a denoiser that is exactly quadratic in lam: ours integrates it exactly."""
    process = EDM(0.002, 700.0)
    grid = lam_grid(process, 5, -1.0, 1.0, bend=0.3)
    table = solvers.make("dpmpp_3m", grid)
    k, lam = 3, grid.lam

    def clean(value):
        return 0.3 - 0.7 * value + 0.9 * value**2

    names = table.registers
    row = dict(zip(names, table.x[k].tolist(), strict=True))
    got = sum(row[f"h{i}"] * clean(lam[k - i]) for i in range(3))
    t = torch.linspace(0, 1, 20001, dtype=torch.float64) * (lam[k + 1] - lam[k]) + lam[k]
    exact = grid.sigma[k + 1] * torch.trapezoid(torch.exp(t) * clean(t), t)
    assert float((got - exact).abs()) < 1e-9
    assert double(row["x"]) == pytest.approx(float(grid.sigma[k + 1] / grid.sigma[k]))
