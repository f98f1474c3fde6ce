"""Guidance: exact intervals in every unit, the formula, rescale as in diffusers, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

import timonel as tm
from support.models import PROCESSES
from timonel.core import grids, solvers
from timonel.core.guidance import cfg, combine
from timonel.errors import ArgumentError, UnknownName


def table(solver: str = "euler", steps: int = 10) -> tm.Table:
    return solvers.make(solver, grids.index.trailing(PROCESSES["vp"], steps))


def mask(guidance: tm.Guidance, of: tm.Table) -> list[bool]:
    return [s != 1.0 for s in guidance.scales(of)]


@pytest.mark.parametrize(
    ("guidance", "on"),
    [
        (cfg(5.0), range(10)),
        (cfg(5.0, until=0.4), range(4)),
        (cfg(5.0, until=1.0), range(10)),
        (cfg(5.0, until=0.05), range(1)),
        (cfg(5.0, between=(0.2, 0.6)), range(2, 6)),
        (cfg(5.0, until=3, unit="step"), range(3)),
        (cfg(5.0, between=(2, 5), unit="step"), range(2, 5)),
        (cfg(5.0, between=(0, 1), unit="step"), range(1)),
    ],
)
def test_intervals_are_exact(guidance, on):
    assert mask(guidance, table()) == [k in on for k in range(10)]


def test_sigma_intervals_are_sigma_over_alpha_from_high_to_low():
    of = table()
    ratio = [of.level(k).ratio.item() for k in range(10)]
    assert mask(cfg(5.0, between=(5.0, 0.5), unit="sigma"), of) == [0.5 < r <= 5.0 for r in ratio]
    assert mask(cfg(5.0, until=0.5, unit="sigma"), of) == [r > 0.5 for r in ratio]
    noisy = solvers.make("euler", grids.index.trailing(tm.Flow(), 4))
    assert mask(cfg(5.0, until=1.5, unit="sigma"), noisy) == [True, True, False, False]


def test_both_calls_of_a_step_are_guided_alike():
    of = table("heun", 5)
    for guidance in (cfg(5.0, until=0.4), cfg(5.0, until=1.0, unit="sigma")):
        scales = guidance.scales(of)
        assert all(
            len({scales[r] for r in range(of.nfe) if of.step[r] == s}) == 1 for s in range(5)
        )


def test_a_schedule_gives_one_scale_per_step():
    of = table("heun", 3)
    assert cfg([7.0, 5.0, 3.0]).scales(of) == (7.0, 7.0, 5.0, 5.0, 3.0)
    assert cfg([7.0, 5.0, 3.0], until=1, unit="step").scales(of) == (7.0, 7.0, 1.0, 1.0, 1.0)
    assert cfg().scales(of) == (None,) * 5
    with pytest.raises(ArgumentError, match="2 guidance scales for 3 steps"):
        cfg([7.0, 5.0]).scales(of)


def test_outside_the_interval_the_unconditional_half_is_not_computed():
    calls = []

    def uncond(x, level):
        calls.append(level.time)
        return x * 0.1

    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    tm.sample(
        lambda x, at: x * 0.2, x, "euler/trailing", process=PROCESSES["vp"], steps=10,
        unconditional=uncond, guidance=cfg(4.0, until=0.4),
    )  # fmt: skip
    assert len(calls) == 4
    calls.clear()
    tm.sample(
        lambda x, at: x * 0.2,
        x,
        "euler",
        process=PROCESSES["vp"],
        steps=10,
        unconditional=uncond,
        guidance=1.0,
    )
    assert not calls


def test_guidance_without_the_unconditional_denoiser_is_refused():
    with pytest.raises(ArgumentError, match="unconditional="):
        tm.sample(lambda x, at: x, torch.ones(1, 2), "euler", process=PROCESSES["vp"], guidance=3.0)


def test_the_formula_and_the_rescale_of_diffusers():
    g = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(3, 4, 5, 5, generator=g), torch.randn(3, 4, 5, 5, generator=g)
    for scale in (0.0, 1.0, 2.5, 7.5):
        plain = uncond + scale * (cond - uncond)
        assert torch.allclose(combine(cond, uncond, scale), plain, atol=1e-5)
        for phi in (0.3, 0.7, 1.0):
            if scale:
                wanted = rescale_noise_cfg(plain, cond, guidance_rescale=phi)
                assert torch.allclose(combine(cond, uncond, scale, phi), wanted, atol=1e-5)
    assert torch.equal(combine(cond, uncond, 1.0), cond)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rescaling_a_flat_output_has_its_limit(scale):
    """Both stds are 0; the factor's limit is 1."""
    flat = torch.full((2, 4, 4, 4), 0.5)
    assert torch.equal(combine(flat, flat * 0, scale, 0.7), combine(flat, flat * 0, scale))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: cfg(-1.0), ArgumentError, "scale.*-1"),
        (lambda: cfg(math.nan), ArgumentError, "nan"),
        (lambda: cfg([3.0, "x"]), ArgumentError, "'x'"),
        (lambda: cfg(5.0, until=4), ArgumentError, "4 is not a ratio.*unit='step'"),
        (lambda: cfg(5.0, until=2.5, unit="step"), ArgumentError, "2.5 is not a step"),
        (lambda: cfg(5.0, until=-0.1), ArgumentError, "-0.1"),
        (lambda: cfg(5.0, until=math.nan), ArgumentError, "nan"),
        (lambda: cfg(5.0, until=0.0), ArgumentError, "not empty"),
        (lambda: cfg(5.0, between=(0.6, 0.2)), ArgumentError, "from low to high.*0.6"),
        (lambda: cfg(5.0, between=(0.5, 5.0), unit="sigma"), ArgumentError, "from high to low"),
        (lambda: cfg(5.0, between=(0.1, 0.2), until=0.5), ArgumentError, "not both"),
        (lambda: cfg(5.0, unit="percent"), UnknownName, "percent"),
        (lambda: cfg(5.0, unit="steps"), UnknownName, "did you mean 'step'"),
        (lambda: cfg(5.0, rescale=1.5), ArgumentError, "rescale.*1.5"),
        (lambda: cfg("high"), ArgumentError, "high"),
        (lambda: cfg(5.0, between=0.4), ArgumentError, "0.4"),
        (lambda: cfg(5.0, between=("a", 1)), ArgumentError, "a"),
    ],
)  # fmt: skip
def test_what_cannot_be_guidance_is_refused_with_the_value(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_a_run_holds_its_guidance_as_a_table_that_never_changes():
    of = table(steps=6)
    run = tm.Run(of, "v", guidance=cfg([5.0, 4.0, 3.0, 2.0, 1.0, 1.0], forecast=2, until=0.9))
    run.start(torch.ones(1, 2))
    first = run.guided
    assert first == run.guidance.compile(of, "v")
    assert first.scales == (5.0, 4.0, 3.0, 2.0, 1.0, 1.0)
    assert [bool(weights) for weights in first.weights] == [False, False, True, False, False, False]
    run.advance(run.latents * 0.1)
    run.guidance = cfg(2.0, forecast=2)
    assert (run.guided.since, run.guided.scales) == (1, (2.0,) * 6)
    assert run.guided == cfg(2.0, forecast=2).compile(of, "v", since=1)
    assert [bool(weights) for weights in run.guided.weights] == [False] * 3 + [True, False, True]
    assert first == cfg([5.0, 4.0, 3.0, 2.0, 1.0, 1.0], forecast=2, until=0.9).compile(of, "v")
    run.guidance = None
    assert (run.guided.order, run.guided.rescale, run.guided.scales) == (0, 0.0, (None,) * 6)
