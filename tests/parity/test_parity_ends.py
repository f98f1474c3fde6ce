"""Where diffusers and k-diffusion end a run, round or choose levels otherwise than timonel, each
shown by a test.

`docs/differences.md` names these tests; `test_parity_differences.py` holds the mathematics of the
steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from support import parity, parity_draw
from support.parity import Case, apart, net
from support.parity_exact import FULL, SD, levels, mine, theirs
from timonel.core.process import double


# -- the last step ---------------------------------------------------------------------------------
def test_lower_order_final_costs_accuracy_where_the_run_ends_above_zero():
    """Below 15 steps diffusers' last step is of order 1 even where nothing forces it; timonel's
    only at sigma = 0.
    """
    for n in (6, 9, 12):
        grid = levels(n)
        lowered = theirs("DPMSolverMultistepScheduler", grid, final_sigmas_type="sigma_min")
        assert theirs("DPMSolverMultistepScheduler", grid, **FULL) == pytest.approx(
            mine("dpmpp_2m", grid), rel=1e-9
        )
        assert mine("dpmpp_2m", grid) < lowered / 1.5


def test_unipc_bh1_ends_in_nan_in_diffusers():
    """Its last step multiplies B(h) = h = infinity by 0."""
    config = SD | {"solver_type": "bh1"}
    case = Case("UniPCMultistepScheduler", config, 10, "unipc", {"variant": "bh1"}, space="dpm")
    scheduler, _, end = parity.theirs(case)
    assert torch.isnan(end).all()
    assert torch.isfinite(parity.ours(case, scheduler)[1]).all()
    assert parity.error(replace(case, end=False)) <= parity.TOLERANCE[True]


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_tcd_ends_at_time_zero_in_diffusers(eta):
    """So that alpha_0·h0 + sigma_0·(predicted noise) comes out, with sigma_min of noise in the
    picture.

    timonel ends at sigma = 0 and returns h0; diffusers' end follows from the last network call by
    DDIM's formula.
    """
    case = Case(
        "TCDScheduler",
        SD | {"clip_sample": False},
        4,
        "tcd",
        {"eta": eta},
        space="abar",
        step={"eta": eta},
        end=False,
    )
    assert parity.error(case) <= parity.TOLERANCE[True]
    scheduler, shown, end = parity.theirs(case)
    _, clean = parity.ours(case, scheduler)
    abar, t = double(scheduler.alphas_cumprod), int(scheduler.timesteps[-1])
    eps = net(shown[-1], float(t))
    zero = abar[0].sqrt() * clean + (1 - abar[0]).sqrt() * eps
    assert apart(zero, end) <= parity.TOLERANCE[True]
    assert apart(clean, end) > 1e-3


def test_deis_on_karras_sigmas_wastes_its_last_call_in_diffusers():
    """The list repeats its last sigma, so that the network is called and nothing moves; the noise
    there stays in.
    """
    config = SD | {"use_karras_sigmas": True}
    case = Case(
        "DEISMultistepScheduler",
        config,
        8,
        "deis",
        {"order": 2, "variant": "logrho"},
        space="dpm",
        idle=1,
    )
    scheduler, shown, end = parity.theirs(case)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2] > 0.02
    assert apart(end, shown[-1]) <= 1e-12


def test_wuerstchen_calls_the_network_twice_at_its_noisiest_level():
    """abar is clamped at 0.0001, where a fine grid stands still; timonel refuses a level that does
    not fall.
    """
    scheduler = diffusers.DDPMWuerstchenScheduler(scaler=1.5, s=0.02)
    scheduler.set_timesteps(40)
    abar = scheduler._alpha_cumprod(scheduler.timesteps, "cpu")
    assert abar[0] == abar[1]


def test_cogvideox_dpm_of_diffusers_ends_with_order_one_above_zero():
    """As DPM++ below 15 steps: with `set_alpha_to_one=False` its last step forgets the history; the
    rest agrees.
    """
    config = {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"}
    case = Case(
        "CogVideoXDPMScheduler", config, 10, "dpmpp_2m_sde", kind="v", space="abar", call="cogvideo"
    )
    assert parity.error(case) > 1e-3
    assert parity.error(replace(case, end=False)) <= parity.TOLERANCE[True]


@pytest.mark.parametrize(("peer", "solver"), [
    ("DDIMScheduler", "ddim"),
    ("DDIMParallelScheduler", "ddim"),
    ("PNDMScheduler", "plms"),
    ("CogVideoXDDIMScheduler", "euler"),
])  # fmt: skip
def test_schedulers_that_count_back_1000_over_n_leave_their_own_list(peer, solver):
    """On 7 trailing times the next is 143 or 142 below, and the step goes 142; 8 steps of 125
    agree.
    """
    more = {"skip_prk_steps": True} if peer == "PNDMScheduler" else {"clip_sample": False}
    case = Case(
        peer, SD | {"timestep_spacing": "trailing"} | more, 7, solver, space="abar", blind=True
    )
    assert parity.error(case) > 1e-4
    assert parity.error(replace(case, steps=8)) <= parity.TOLERANCE[True]


# -- rounding --------------------------------------------------------------------------------------
HARSH = {
    "beta_schedule": "squaredcos_cap_v2",
    "timestep_spacing": "trailing",
    "prediction_type": "sample",
}
FAR = SD | {"use_exponential_sigmas": True, "beta_end": 0.02}
CLOSE = {
    "solver_order": 3,
    "lower_order_final": False,
    "use_karras_sigmas": True,
    "beta_end": 0.012,
}
THREE = {"predictor_order": 3, "corrector_order": 3}
ROUGH = [
    Case("EulerDiscreteScheduler", HARSH, 10, "euler", kind="sample"),
    Case("KDPM2AncestralDiscreteScheduler", FAR, 4, "dpm2_ancestral", blind=True),
    Case("DEISMultistepScheduler", CLOSE | {"prediction_type": "sample"}, 23, "deis",
         {"order": 3, "variant": "logrho"}, kind="sample",
         space="dpm", idle=1),
    Case("SASolverScheduler",
    SD | THREE | {"lower_order_final": False, "tau_func": parity_draw.Tau(0.0, 0.0, 1.0)}, 33,
         "sa_solver", {"eta": 0.0, **THREE, "variant": "simple"}, space="dpm"),
]  # fmt: skip


@pytest.mark.parametrize("case", ROUGH, ids=lambda case: case.peer)
def test_where_float32_results_part_diffusers_has_lost_the_digits(case):
    """Samples of size 20000 in float32, or differences of nearly equal numbers, where timonel has a
    float64 table.

    In float64 both agree; the judge is that float64 result on the levels of the float32 scheduler.
    """
    assert parity.error(case) <= parity.TOLERANCE[True]
    rough = replace(case, double=False)
    scheduler, *theirs_ = parity.theirs(rough)
    exact = parity.ours(case, scheduler)
    lost = farthest(theirs_, exact)
    assert lost > parity.TOLERANCE[False]
    assert farthest(parity.ours(rough, scheduler), exact) < lost / 3


def farthest(one: Sequence[Any], exact: Sequence[Any]) -> float:
    """The largest error of a run, over what the network was shown and the result."""
    pairs = [*zip(one[0], exact[0], strict=False), (one[1], exact[1])]
    return max(apart(a, b) for a, b in pairs)
