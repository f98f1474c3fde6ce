"""Laws of a run that makes its rows as it goes: it does what k-diffusion's does, its error falls
with its tolerance, and it is stopped, rewound, edited and branched as any run.
"""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import timonel as tm
from support import tiny
from support.models import PROCESSES, Constant, Mixture
from support.parity import inside
from support.peers import k_diffusion_sampling
from timonel.core.adaptive import AdaptiveRun
from timonel.core.process import At
from timonel.errors import ArgumentError, Inexact, RunError

DATA = Mixture()
START = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OPTIONS = [
    {}, {"order": 2}, {"rtol": 0.01, "atol": 0.001}, {"rtol": 0.01, "h_init": 2.0},
    {"pcoeff": 0.2, "icoeff": 0.6, "dcoeff": 0.1, "accept_safety": 0.9},
    {"order": 2, "rtol": 0.005, "eta": 0.6}, {"eta": 1.0, "s_noise": 1.01, "rtol": 0.2},
]  # fmt: skip


def sampler(**options: object) -> tm.Sampler:
    return tm.Sampler("dpm_adaptive", options=options)


def begun(**options: object) -> AdaptiveRun:
    return tm.begin(START, sampler(**options), process=PROCESSES["vp"], keep=2)


def finished(run: tm.Run, denoise: object = DATA) -> torch.Tensor:
    for _ in tm.iterate(run, denoise):
        pass
    return run.result


def coordinate(process: str, level: At) -> tuple[float, float]:
    """(m, s) of a level: ComfyUI's sigma is sigma/alpha, on a flow its time."""
    m = level.alpha if process == "vp" else level.alpha + level.sigma
    return m, level.sigma / m


def draw(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(START.shape, generator=generator, dtype=torch.float64)


def of_k_diffusion(process: str, ends: tuple[float, float], options: dict) -> tuple:
    """The levels that were kept, the result at the last, and what it says of the run."""
    module, kept = k_diffusion_sampling(), []

    def model(y: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        s = float(sigma.flatten()[0])
        alpha = 1 / math.sqrt(1 + s * s) if process == "vp" else 1 - s
        scale = alpha if process == "vp" else 1.0
        return DATA(y * scale, At(alpha, s * scale, 0.0))

    def heard(info: dict) -> None:
        kept.append(float(info["sigma"])) if info["n_accept"] > len(kept) else None

    first = START * (math.sqrt(1 + ends[0] ** 2) if process == "vp" else 1.0)
    with inside(module, False, None):
        torch.set_default_dtype(torch.float64)
        result, info = module.sample_dpm_adaptive(
            model, first, ends[1], ends[0], disable=True, return_info=True, callback=heard,
            noise_sampler=lambda a, b: draw(len(kept)), **options,
        )  # fmt: skip
    return kept, result, info


@pytest.mark.parametrize("process", ["vp", "flow"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_keeps_the_steps_that_k_diffusion_keeps(options, process):
    """And ends where it ends; then one more call goes to the clean level."""
    if process == "flow" and options.get("eta"):
        pytest.skip("k-diffusion's noise is that of image models")
    run = tm.begin(START, sampler(**options), process=PROCESSES[process],
                   noise=lambda row, like: draw(run.table.step[row]))  # fmt: skip
    first, path = coordinate(process, run.level), []
    for one in tm.iterate(run, DATA):
        path.append((*coordinate(process, one.level), one.latents.clone()))
    *path, _ = path
    kept, result, info = of_k_diffusion(process, (first[1], path[-1][1]), options)
    assert [s for _, s, _ in path] == pytest.approx(kept, rel=1e-8)
    assert torch.allclose(path[-1][2] / path[-1][0], result, atol=1e-8, rtol=0)
    assert (run.rejected, run.calls) == (info["n_reject"], info["nfe"] + 1)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("order", [2, 3])
def test_the_error_falls_with_the_tolerance(process, order):
    """By a decade and more in three decades of tolerance, in ever more calls."""
    errors, calls = [], []
    for rtol in (0.1, 0.01, 0.001, 0.0001):
        options = {"rtol": rtol, "atol": rtol / 6, "order": order, "budget": 5000}
        ends = [0.99, 0.01] if process == "flow" else None  # below pure noise
        named = tm.Sampler("dpm_adaptive", sigmas=ends, options=options)
        run = tm.begin(START, named, process=PROCESSES[process])
        for one in tm.iterate(run, DATA):
            if float(one.level.sigma) > 0:
                last = one.table.level(one.row), one.latents.clone()
        end = DATA.solve(START, run.table.level(0), last[0])
        errors.append(float((last[1] - end).abs().max()))
        calls.append(run.calls)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 30
    assert calls == sorted(calls)


def test_a_constant_denoised_sample_is_met_in_few_calls():
    run = begun()
    assert torch.allclose(finished(run, Constant(0.3)), torch.full_like(START, 0.3), atol=1e-12)
    assert run.rejected == 0


# -- its life --------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"eta": 1.0, "rtol": 0.2}], ids=str)
def test_it_is_rewound_branched_and_copied_bit_for_bit(options):
    run = begun(**options) if not options else tm.begin(
        START, sampler(**options), process=PROCESSES["vp"], seeds=[1, 2, 3, 4], keep=2
    )  # fmt: skip
    twins, back = [], []
    for one in tm.iterate(run, DATA):
        if one.step == 4 and not twins:
            twins = [one.branch(), copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
        if one.step == 6 and len(back) < 2:
            back.append(6)
            one.rewind(5 if len(back) == 1 else 1)  # from a kept point, and from the start
    whole, calls = run.result, run.table.nfe
    for twin in twins:
        assert torch.equal(finished(twin), whole)
        assert (twin.table.nfe, twin.status) == (calls, "done")
    run.rewind(run.step - 1)
    assert torch.equal(finished(run), whole)


def test_hooks_are_called_at_kept_steps_and_what_they_change_goes_on():
    seen: list[tuple[int, float]] = []

    def moves(run: tm.Run) -> None:
        seen.append((run.step, run.level.sigma))
        if run.step == 3:
            run.latents += 0.5

    plain = begun()
    run = tm.begin(START, sampler(), process=PROCESSES["vp"], hooks=[moves])
    result = finished(run)
    assert [step for step, _ in seen] == list(range(1, run.step + 1))
    assert [s for _, s in seen] == sorted((s for _, s in seen), reverse=True)
    assert run.rejected
    assert not torch.allclose(result, finished(plain), atol=0.01)
    assert float(seen[-1][1]) == 0


def test_a_stopped_run_has_its_newest_prediction_and_goes_on():
    run = begun()
    for one in tm.iterate(run, DATA):
        if one.step == 3:
            one.stop("enough")
    assert (run.status, run.reason, run.step) == ("stopped", "enough", 3)
    assert torch.equal(run.result, run.denoised)
    run.resume()
    assert torch.equal(finished(run), finished(begun()))


def test_an_edit_while_it_waits_inside_a_step_is_kept():
    run = begun(rtol=1e-4, atol=1e-5, h_init=2.0)  # so long a trial would not be kept
    run.advance(DATA(run.latents, run.level))
    run.latents = run.latents + 1.0
    for _ in range(2):
        run.advance(DATA(run.latents, run.level))
    assert (run.step, run.rejected) == (1, 0)


def test_the_budget_ends_it_with_a_reason():
    whole = begun()
    finished(whole)
    for budget in (whole.calls - 1, 11, 4):
        run = begun(budget=budget)
        with pytest.warns(Inexact, match=f"budget of {budget} network calls is spent"):
            finished(run)
        assert (run.status, run.calls <= budget) == ("stopped", True)
        assert "rtol above 0.05" in run.reason
        assert torch.isfinite(run.result).all()
    exact = begun(budget=whole.calls)
    assert torch.equal(finished(exact), whole.result)


def test_it_is_guided_by_level_and_by_step():
    def other(x: torch.Tensor, level: At) -> torch.Tensor:
        return DATA(x, level) * 0.5

    results = []
    for guidance in (2.0, tm.cfg(2.0, until=1.0, unit="sigma"), tm.cfg(2.0, until=3, unit="step")):
        run = tm.begin(START, sampler(), process=PROCESSES["vp"], guidance=guidance)
        for _ in tm.iterate(run, DATA, other):
            pass
        assert len(run.guided.scales) == run.table.nfe
        results.append(run.result)
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])


# -- what it cannot --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "call", "said"),
    [
        ({"order": 4}, {}, "order"),
        ({"rtol": 0}, {}, "rtol"),
        ({"atol": -1}, {}, "atol"),
        ({"eta": 2}, {}, "eta"),
        ({"budget": 3}, {}, "budget"),
        ({"banana": 1}, {}, "no option 'banana'.*rtol"),
        ({"s_churn": 4.0}, {}, "no option 's_churn'"),
        ({}, {"steps": 20}, "as many steps as its tolerance asks.*rtol"),
        ({"eta": 1.0}, {}, "seeds"),
        ({}, {"guidance": tm.cfg(3.0, until=0.4)}, "ratios of the steps.*unit='sigma'"),
        ({}, {"guidance": tm.cfg([3.0, 2.0])}, "scale for every step"),
    ],
)
def test_what_it_cannot_do_is_refused_before_the_first_call(options, call, said):
    with pytest.raises(ArgumentError, match=said):
        tm.begin(START, sampler(**options), process=PROCESSES["vp"], **call)


def test_other_levels_noise_and_orders_are_refused_with_what_works():
    run = begun()
    with pytest.raises(ArgumentError, match="ratios of the steps"):
        run.guidance = tm.cfg(2.0, between=(0.1, 0.5))
    with pytest.raises(RunError, match=r"branch\(\).*dpm_solver"):
        run.save("nowhere")
    with pytest.raises(RunError, match=r"no tail.*tm\.begin"):
        run.tail("euler", steps=4)
    brownian = tm.Sampler("dpm_adaptive", options={"eta": 1.0}, noise="brownian")
    with pytest.raises(ArgumentError, match="independent"):
        tm.begin(START, brownian, process=PROCESSES["vp"], seeds=[1, 2, 3, 4])
    with pytest.raises(ArgumentError, match="two levels above sigma = 0"):
        tm.begin(START, tm.Sampler("dpm_adaptive", sigmas=[3.0, 0.0]), process=PROCESSES["vp"])


def test_what_needs_a_table_refuses_it_with_the_nearest():
    process = PROCESSES["vp"]
    for name in ("dpm_adaptive", "DPM adaptive Karras", "dpm_adaptive/karras"):
        with pytest.raises(ArgumentError, match=r"no table.*tm\.sample.*'dpm_solver'"):
            tm.Sampler(name).compile(process)
    helm = tm.Helm(tiny.sdxl())
    for call in ({}, {"steps": 8}):
        with pytest.raises(ArgumentError, match=r"no table.*'dpm_solver'"):
            helm(**tiny.prompt(helm.pipe), sampler="dpm_adaptive", **call)


def test_a_named_grid_and_listed_sigmas_set_its_ends():
    ends = tm.begin(START, "dpm_adaptive/karras", process=PROCESSES["vp"]).plan.ends
    assert [end.ratio.item() for end in ends] == pytest.approx([14.6146, 0.0291672], rel=1e-4)
    listed = tm.Sampler("dpm_adaptive", sigmas=[10.0, 0.5])
    run = tm.begin(START, listed, process=PROCESSES["vp"])
    finished(run)
    assert float(run.table.level(run.table.nfe - 1).ratio) == pytest.approx(0.5)
    assert float(run.level.sigma) == 0
