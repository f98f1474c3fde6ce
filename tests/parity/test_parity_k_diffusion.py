"""Parity with k-diffusion in float64: all its samplers that are tables, over random configurations.

`parity_k.py` runs both sides and draws the configurations; `test_parity_differences.py` holds what
differs.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from support import parity_k
from support.models import Gaussian, Mixture, drive, lam_grid, slope
from support.parity_k import OUT_OF_SCOPE, PEERS, PROCESS, TOLERANCE, measured
from support.peers import k_diffusion_sampling
from timonel.core import grids, solvers
from timonel.core.process import EDM, At, double

theirs = k_diffusion_sampling()
pytestmark = pytest.mark.skipif(theirs is None, reason="k-diffusion is not installed")


@pytest.mark.parametrize("name", PEERS)
def test_every_configuration_computes_the_same(name: str) -> None:
    wrong = [f"{found:.2e}: {case}" for case, found in measured(name) if not found <= TOLERANCE]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_sampler_of_k_diffusion_is_left_out() -> None:
    found = {
        n.removeprefix("sample_")
        for n, _ in inspect.getmembers(theirs, callable)
        if n.startswith("sample_")
    }
    assert found == {*PEERS, *OUT_OF_SCOPE}


@pytest.mark.parametrize("steps", [2, 5, 20])
@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_sigmas_are_those_of_k_diffusion(name: str, steps: int) -> None:
    wanted = getattr(theirs, f"get_sigmas_{name}")(steps, 0.02, 80.0).double()
    grid = getattr(grids.sigma, name)(PROCESS, steps, sigma_min=0.02, sigma_max=80.0)
    assert torch.allclose(grid.sigma / grid.alpha, wanted, rtol=2e-5)


def test_dpmpp_3m_of_k_diffusion_is_of_order_two_and_ours_of_three() -> None:
    """Both extrapolate quadratically. h²·D'' is twice the second divided difference; k-diffusion
    (and diffusers'

    third-order DPM-Solver++) leave out that 2, so that their error falls with order 2. From near
    pure noise, on Gaussian data, against the closed form.
    """
    data, process, steps = Gaussian(), EDM(0.002, 700.0), (48, 72, 108)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, peers = [], []

    def model(y: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        s = float(sigma.flatten()[0])
        alpha = (1 + s * s) ** -0.5
        return data(alpha * y, At(alpha, alpha * s, 0.0))

    for n in steps:
        grid = lam_grid(process, n, -6.0, bend=0.4)
        exact = data.solve(x, grid[0], grid[n])
        mine.append(float((drive(solvers.make("dpmpp_3m", grid), data, x) - exact).abs().max()))
        y = theirs.sample_dpmpp_3m_sde(
            model,
            x / grid.alpha[0],
            grid.sigma / grid.alpha,
            disable=True,
            eta=0.0,
            noise_sampler=lambda *_: 0.0,
        )
        peers.append(float((y * grid.alpha[n] - exact).abs().max()))
    assert slope(list(steps), mine) > 2.8
    assert slope(list(steps), peers) < 2.5
    assert mine[-1] < peers[-1] / 2


@pytest.mark.parametrize("steps", [16, 24])
def test_in_few_karras_steps_the_halved_second_derivative_is_nearer(steps: int) -> None:
    """An order is a promise for small steps. From sigma = 80 to 0 on a mixture, the peers' 1/2 wins
    at 16 and 24.
    """
    data, process = Mixture(), EDM(0.002, 80.0)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = grids.make("karras", process, steps)
    exact = data.solve(x, grid[0], process.at_lam(double(7.0)))

    def distance(curvature: float) -> float:
        return float(
            (drive(solvers.make("dpmpp_3m", grid, curvature=curvature), data, x) - exact)
            .abs()
            .mean()
        )

    assert distance(0.5) < distance(1.0) / 1.5


def test_the_quadratic_coefficient_is_twice_the_divided_difference() -> None:
    """The factor itself, on a denoiser that is exactly quadratic in lam: ours integrates it
    exactly.
    """
    process = EDM(0.002, 700.0)
    grid = lam_grid(process, 5, -1.0, 1.0, bend=0.3)
    table = solvers.make("dpmpp_3m", grid)
    k, lam = 3, grid.lam

    def clean(value: torch.Tensor) -> torch.Tensor:
        return 0.3 - 0.7 * value + 0.9 * value**2

    row = dict(zip(table.registers, table.x[k].tolist(), strict=True))
    got = sum(row[f"h{i}"] * clean(lam[k - i]) for i in range(3))
    t = torch.linspace(0, 1, 20001, dtype=torch.float64) * (lam[k + 1] - lam[k]) + lam[k]
    exact = grid.sigma[k + 1] * torch.trapezoid(torch.exp(t) * clean(t), t)
    assert float((got - exact).abs()) < 1e-9
    assert double(row["x"]) == pytest.approx(float(grid.sigma[k + 1] / grid.sigma[k]))


def test_the_two_noises_of_dpmpp_sde_share_one_path() -> None:
    """What the harness feeds k-diffusion is a Brownian path: the shares of both halves make one
    unit noise.
    """
    case = parity_k.cases("dpmpp_sde")[0]
    shares = [
        v
        for c in parity_k.cases("dpmpp_sde")
        for v in parity_k.mixed(parity_k.compiled(c)).values()
    ]
    assert parity_k.compiled(case).steps >= 2
    assert shares
    for first, second in shares:
        assert first**2 + second**2 == pytest.approx(1.0)
