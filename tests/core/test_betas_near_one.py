"""Law: the levels of any betas have their digits, however little signal they leave; what no float64
holds is refused.

The judge is decimal arithmetic with 50 digits and no least exponent.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, localcontext
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
import timonel.compat as compat
from timonel.core import grids, solvers
from timonel.core.process import VP, double
from timonel.errors import ArgumentError, PredictionError

BETAS = {
    "linear .01 to .2": torch.linspace(0.01, 0.2, 1000, dtype=torch.float64),
    "linear .001 to .999": torch.linspace(0.001, 0.999, 1000, dtype=torch.float64),
    "linear .001 to 1": torch.linspace(0.001, 1, 1000, dtype=torch.float64),
    "scaled linear .01 to .5": torch.linspace(0.1, 0.5**0.5, 1000, dtype=torch.float64) ** 2,
    "trained, half of them .999": double([0.001] * 50 + [0.999] * 50),
    "sigmoid": torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * 0.5,
    "cosine": 1 - double([math.exp(-0.5 * (k / 50) ** 4) for k in range(1, 100)] + [1e-3]),
}
CONFIGS: list[dict[str, Any]] = [
    {"beta_start": 0.01, "beta_end": 0.2, "beta_schedule": "linear"},
    {"beta_start": 0.01, "beta_end": 0.2, "beta_schedule": "scaled_linear"},
    {"beta_start": 0.001, "beta_end": 0.999, "beta_schedule": "linear"},
    {"beta_start": 0.001, "beta_end": 1.0, "beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.001] * 50 + [0.999] * 50},
]


def exact(betas: torch.Tensor, index: int) -> tuple[float, float]:
    """lam and alpha at a training index."""
    with localcontext(Context(prec=50, Emin=-999999, Emax=999999)):
        bar = Decimal(1)
        for beta in betas[: index + 1].tolist():
            bar *= 1 - Decimal(beta)
        lam = -math.inf if bar == 0 else float((bar.ln() - (1 - bar).ln()) / 2)
        return lam, float(bar.sqrt())


@pytest.mark.parametrize("name", BETAS)
def test_a_level_has_the_digits_of_the_product_of_one_minus_beta(name: str) -> None:
    betas = BETAS[name]
    process, last = VP(betas), len(betas) - 1
    for index in (0, last // 3, last // 2, last - 1, last):
        level, (lam, alpha) = process.at_time(double([float(index)])), exact(betas, index)
        assert level.lam.item() == pytest.approx(lam, rel=1e-12, abs=1e-12)
        assert level.alpha.item() == pytest.approx(alpha, rel=1e-10)
        if alpha:
            back = process.at_lam(level.lam)
            assert back.alpha.item() == pytest.approx(alpha, rel=1e-10)
            assert back.time.item() == pytest.approx(index, abs=1e-6)


@pytest.mark.parametrize("grid", ["trailing", "leading", "linspace", "sgm_uniform", "beta"])
@pytest.mark.parametrize("name", BETAS)
def test_its_grids_fall_and_reproduce_a_constant(name: str, grid: str) -> None:
    process = VP(BETAS[name])
    for steps in (1, 2, 5, 20, 50):
        made = grids.make(grid, process, steps)
        assert bool((made.lam.diff() > 0).all())
        for solver in ("euler", "dpmpp_2m", "ddpm"):
            table = solvers.make(solver, made)
            assert bool(torch.isfinite(table.x).all())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_a_config_of_such_betas_runs_where_the_network_names_the_picture(
    name: str, config: dict[str, Any]
) -> None:
    for make in (tm.Scheduler, getattr(compat, name)):
        scheduler = make.from_config(
            {**config, "_class_name": name, "prediction_type": "sample", "clip_sample": False}
        )
        for steps in (1, 4, 10, 25):
            scheduler.set_timesteps(steps)
            x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
            for t in scheduler.timesteps:
                x = scheduler.step(
                    torch.full_like(x, 0.5), t, x, generator=torch.Generator().manual_seed(1)
                )[0]
            assert float((x - 0.5).abs().max()) < 1e-3


def test_the_noise_of_a_level_without_signal_is_no_picture() -> None:
    """sigma/alpha is 1e51 here; what the network says of the noise would have to be right to 51
    digits.
    """
    process = VP(torch.linspace(0.01, 0.5, 1000, dtype=torch.float64))
    with pytest.raises(PredictionError, match=r"alpha = \d.*e-.*predicts v"):
        tm.sample(
            lambda x, t: x,
            torch.randn(1, 2),
            "euler/trailing",
            process=process,
            prediction="epsilon",
            steps=5,
        )


@pytest.mark.parametrize(("betas", "said"), [
    ([1.0, 1.0, 1.0], "a beta of 1 at training level 0"),
    ([0.1] * 10 + [1.0, 0.1], "a beta of 1 at training level 10 of 0 to 11"),
    ([0.9999] * 1000, "betas up to 0.9999 at training level 152"),
])  # fmt: skip
def test_more_than_one_level_of_pure_noise_is_refused(betas: list[float], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        VP(betas)
    with pytest.raises(ArgumentError, match=said):
        tm.Scheduler.from_config({"_class_name": "DDIMScheduler", "trained_betas": betas})
    with pytest.raises(ArgumentError, match=said):
        compat.DDIMScheduler(trained_betas=betas)


def test_betas_that_begin_at_one_are_refused_by_every_name() -> None:
    for schedule in ("linear", "scaled_linear"):
        config = {"beta_start": 1.0, "beta_end": 1.0, "beta_schedule": schedule}
        for name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
            with pytest.raises(ArgumentError, match="a beta of 1 at training level 0"):
                getattr(compat, name)(**config)
            with pytest.raises(ArgumentError, match="a beta of 1 at training level 0"):
                tm.Scheduler.from_config({**config, "_class_name": name})


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"])
def test_betas_above_one_leave_diffusers_without_a_number_and_are_refused(name: str) -> None:
    """A product of 1 - beta then has the other sign at every second level: no variance has a root."""
    config = {"beta_start": 0.0001, "beta_end": 2.0, "beta_schedule": "linear"}
    theirs = getattr(diffusers, name)(**config)
    theirs.set_timesteps(5)
    x = torch.ones(1, 2)
    for t in theirs.timesteps:
        x = theirs.step(0.1 * x, t, x).prev_sample
    assert bool(x.isnan().all())
    with pytest.raises(ArgumentError, match=r"beta_end must be .* at most 1, got 2"):
        getattr(compat, name)(**config)


def test_a_high_order_up_to_sigma_zero_leaves_diffusers_without_a_number_and_is_refused() -> None:
    theirs = diffusers.UniPCMultistepScheduler(lower_order_final=False)
    theirs.set_timesteps(5)
    x = torch.ones(1, 2)
    for t in theirs.timesteps:
        x = theirs.step(0.1 * x, t, x).prev_sample
    assert not bool(x.isfinite().any())
    with pytest.raises(
        ArgumentError, match=r"lower_order_final=False asks for a high order to sigma = 0"
    ):
        compat.UniPCMultistepScheduler(lower_order_final=False).set_timesteps(5)
