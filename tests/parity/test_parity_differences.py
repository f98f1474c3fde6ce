"""Where diffusers and k-diffusion part from timonel: each difference shown, explained, and judged
by measurement.

The judges are exact: a Gaussian whose flow, moments and reverse SDE are known, or the same code in
float64. `docs/differences.md` names these tests.
"""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch

from support import parity
from support.models import Constant, drive, propagate, slope, variance
from support.parity import Case, apart, draw
from support.parity_exact import (
    FULL,
    POINTS,
    SD,
    denoise,
    every,
    flowed,
    levels,
    mine,
    my_variance,
    their_variance,
    theirs,
)
from timonel.core import solvers
from timonel.core.grids import Grid
from timonel.core.process import EDM, At, Level, double


# -- third order -----------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [6, 14, 15, 20])
@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_dpmpp_3m_of_diffusers_falls_to_order_two_at_the_end_below_15_steps(steps, variant):
    """Its second step is that of its `solver_type`, and its last but one of order 2 below 15 steps,
    3 from there on.
    """
    config = SD | {"solver_order": 3, "solver_type": variant}
    options = {"curvature": 0.5, "variant": variant}
    few, many = (
        parity.error(
            Case(
                "DPMSolverMultistepScheduler",
                config,
                steps,
                "dpmpp_3m",
                options | {"final_order": o},
                space="dpm",
            )
        )
        for o in (2, 3)
    )
    same, other = (few, many) if steps < 15 else (many, few)
    assert same <= parity.TOLERANCE[True]
    assert other > 1e-6


def test_sde_dpmsolver_of_order_three_has_a_wrong_sign_in_diffusers():
    """Its last coefficient is (1 - e^(-H) - H)/H² - 1/2, which tends to -1 with the step; + 1/2
    would tend to 0.

    The variance of its result on Gaussian data therefore converges with order 1; timonel's (and
    k-diffusion's) with 2.
    """
    steps = [48, 96, 192]
    algorithm = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    wrong = [
        their_variance("DPMSolverMultistepScheduler", levels(n), **algorithm, **FULL) for n in steps
    ]
    right = [my_variance("dpmpp_3m_sde", levels(n)) for n in steps]
    half = [my_variance("dpmpp_3m_sde", levels(n), curvature=0.5) for n in steps]
    assert slope(steps, wrong) < 1.3
    assert slope(steps, right) > 1.8
    assert slope(steps, half) > 1.8
    assert right[-1] < wrong[-1] / 20


def test_edm_sde_dpmsolver_of_order_three_fails_in_diffusers():
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        solver_order=3, algorithm_type="sde-dpmsolver++"
    )
    scheduler.set_timesteps(6)
    x, (first, second, last, *_) = torch.zeros(1, 1, 2, 2), scheduler.timesteps
    for t in (first, second):
        scheduler.step(scheduler.scale_model_input(x, t), t, x)
    raw = scheduler.scale_model_input(x, last)
    with pytest.raises(UnboundLocalError):
        scheduler.step(raw, last, x)


# -- singlestep ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("algorithm", "name", "options"), [
    ("dpmsolver", "dpm_solver", {}),
    ("dpmsolver++", "exponential_rk", {"tableau": "dpm_3"}),
])  # fmt: skip
def test_singlestep_of_order_three_has_another_second_stage_in_diffusers(algorithm, name, options):
    """DPM-Solver-3's second stage is made by DPM-Solver-2's midpoint formula there. Both are of
    order 3.
    """
    steps, config = [24, 48, 96], {"algorithm_type": algorithm, "solver_order": 3, **FULL}
    grids = [levels(n, bend=0.0) for n in steps]
    theirs_ = [theirs("DPMSolverSinglestepScheduler", grid, **config) for grid in grids]
    mine_ = [mine(name, every(grid, 3), **options) for grid in grids]
    assert slope(steps, theirs_) > 2.7
    assert slope(steps, mine_) > 2.7
    assert all(abs(a - b) > 1e-3 * a for a, b in zip(theirs_, mine_, strict=True))


def test_singlestep_sde_draws_two_noises_for_one_interval_in_diffusers():
    """The stage's noise is not part of the step's there: order 1 in the variance, 2 on one path."""
    steps, config = [24, 48, 96], {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, **FULL}
    grids = [levels(n, bend=0.0) for n in steps]
    two = [their_variance("DPMSolverSinglestepScheduler", grid, **config) for grid in grids]
    one = [my_variance("dpmpp_sde", every(grid, 2)) for grid in grids]
    assert slope(steps, two) < 1.3
    assert slope(steps, one) > 1.7
    assert one[-1] < two[-1] / 10


# -- noise, slopes and pure noise ------------------------------------------------------------------
@pytest.mark.parametrize("s_churn", [4.0, 40.0])
def test_churn_of_diffusers_is_not_shown_to_the_network(s_churn):
    """The noise is added after the network was called, so that the slope belongs to the sample
    without it.

    The error of the variance of its result is larger than EDM's, which k-diffusion and timonel
    compute.
    """
    for n in (24, 48):
        late = their_variance(
            "EulerDiscreteScheduler", levels(n), scaled=True, step={"s_churn": s_churn}
        )
        assert my_variance("euler", levels(n), s_churn=s_churn) < late / 1.5


@pytest.mark.parametrize(("peer", "space"), [
    ("EulerDiscreteScheduler", "sigma"),
    ("EDMEulerScheduler", "edm"),
    ("FlowMatchHeunDiscreteScheduler", "flow"),
])  # fmt: skip
def test_the_network_sees_the_start_without_its_churn_in_diffusers(peer, space):
    """Its first input is the same with churn and without; the result is not."""
    plain = Case(peer, {}, 8, "euler", space=space)
    (_, seen, end), (_, still, end_still) = (
        parity.theirs(case) for case in (replace(plain, step={"s_churn": 8.0}), plain)
    )
    assert torch.equal(seen[0], still[0])
    assert apart(end, end_still) > 1e-3


def test_flow_match_euler_of_diffusers_ignores_churn():
    ends = []
    for s_churn in (0.0, 100.0):
        case = Case(
            "FlowMatchEulerDiscreteScheduler",
            {},
            8,
            "euler",
            kind="flow",
            space="flow",
            step={"s_churn": s_churn},
        )
        ends.append(parity.theirs(case)[2])
    assert torch.equal(*ends)


def test_cogvideox_ddim_of_diffusers_ignores_eta():
    ends = []
    for eta in (0.0, 1.0):
        config = {"snr_shift_scale": 1.0}
        ends.append(
            parity.theirs(
                Case("CogVideoXDDIMScheduler", config, 10, "euler", space="abar", step={"eta": eta})
            )[2]
        )
    assert torch.equal(*ends)


def test_ipndm_of_diffusers_drops_the_first_prediction():
    """At pure noise it takes the denoised sample for 0, whatever the network says: a constant is
    not reproduced.
    """
    clean = 0.7
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(12)
    x = draw(-1).clone()
    alphas, sigmas = scheduler.alphas, scheduler.betas
    for k, t in enumerate(scheduler.timesteps):
        v = (float(alphas[k]) * x - clean) / float(sigmas[k])  # alpha·eps - sigma·x0 for x0 = clean
        x = scheduler.step(v, t, x).prev_sample
    assert float((x - clean).abs().max()) > 0.1
    flat = Grid(EDM(1e-5, 1e4), double(alphas), double(sigmas), double(alphas) * 0, "theirs")
    done = drive(solvers.make("ipndm", flat), Constant(clean), draw(-1))
    assert float((done - clean).abs().max()) < 1e-12


def test_pndm_of_diffusers_mixes_v_predictions_of_different_levels():
    """It combines the raw outputs and converts the sum at the present sample, right for epsilon
    only.

    The error of its v-prediction does not fall with the steps as that of the same network read as
    epsilon does.
    """
    steps = [40, 100, 200]
    errors = {kind: [_pndm(kind, n) for n in steps] for kind in ("epsilon", "v_prediction")}
    assert slope(steps, errors["epsilon"]) > 1.7
    assert slope(steps, errors["v_prediction"]) < 1.3
    assert errors["v_prediction"][-1] > 20 * errors["epsilon"][-1]


def _pndm(kind: str, steps: int) -> float:
    scheduler = diffusers.PNDMScheduler(
        **SD, skip_prk_steps=True, timestep_spacing="trailing", prediction_type=kind
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    first, x = _level(scheduler, int(scheduler.timesteps[0])), POINTS
    for t in scheduler.timesteps:
        at = At(*(float(v) for v in _level(scheduler, int(t))))
        clean = denoise(x, at)
        raw = (
            (x - at.alpha * clean) / at.sigma
            if kind == "epsilon"
            else (at.alpha * x - clean) / at.sigma
        )
        x = scheduler.step(raw, int(t), x).prev_sample
    return float((x - flowed(POINTS, first, _level(scheduler, 0))).abs().max())


def _level(scheduler: object, t: int) -> Level:
    abar = scheduler.alphas_cumprod[t]
    return Level(abar.sqrt(), (1 - abar).sqrt(), double(t))


def test_ancestral_steps_of_ltx_take_another_amount_of_noise():
    """sigma_down = sigma'·(1 + (sigma'/sigma - 1)·eta), not DDPM's posterior.

    Both keep the marginal of a constant.
    """
    sigmas = {"sigmas": [1 - k / 8 for k in range(9)]}
    case = Case(
        "LTXEulerAncestralRFScheduler", {}, 8, "euler", kind="flow", space="ltx", timesteps=sigmas
    )
    scheduler = parity.theirs(case)[0]
    theirs_ = solvers.make("euler", parity.grid(case, scheduler))
    mine_ = solvers.make("euler_ancestral", replace(parity.grid(case, scheduler), ends=None))
    assert float((theirs_.x - mine_.x).abs().max()) > 0.01
    for table in (theirs_, mine_):
        still = propagate(
            table, lambda level: (level.alpha * 0, double([0.3])), double([0.0]), double([1.0])
        )
        for k in range(1, table.nfe):
            assert float(variance(still[k])) == pytest.approx(float(table.sigma[k]) ** 2, rel=1e-9)
