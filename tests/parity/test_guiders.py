"""Guidance methods against diffusers' guiders: one call, and whole runs of an exact flow."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from diffusers import guiders as d

import timonel as tm
from support.models import drive
from timonel import exact
from timonel.core.guidance import Guidance, Outputs, Place, guide
from timonel.core.run import Run

W, STEPS = 4.0, 10
DATA = exact.Mixture.random(seed=3, components=6, dimension=6, rank=1, classes=2)
COND = DATA.conditional(0)
PROCESS = tm.Flow(3.0)
#: the method, and diffusers' guider of the same
PAIRS = {
    "apg": (
        tm.apg(W, eta=1.0, momentum=0, formula="diffusers", norm_threshold=15),
        lambda: d.AdaptiveProjectedGuidance(W),
    ),
    "apg-momentum": (
        tm.apg(W, eta=0.3, momentum=-0.5, formula="diffusers", norm_threshold=2.0),
        lambda: d.AdaptiveProjectedGuidance(
            W, eta=0.3, adaptive_projected_guidance_momentum=-0.5,
            adaptive_projected_guidance_rescale=2.0,
        ),
    ),
    "apg-rescaled": (
        tm.apg(W, eta=0.0, momentum=0, formula="diffusers", norm_threshold=2.0, rescale=0.7),
        lambda: d.AdaptiveProjectedGuidance(
            W, eta=0.0, adaptive_projected_guidance_rescale=2.0, guidance_rescale=0.7
        ),
    ),
    "apg-mix": (
        tm.apg(
            [3.5] * 4 + [6.0] * (STEPS - 4), eta=0.0, momentum=-0.5, norm_threshold=2.0,
            plain_steps=4, formula="diffusers",
        ),
        lambda: d.AdaptiveProjectedMixGuidance(
            3.5, adaptive_projected_guidance_scale=6.0, adaptive_projected_guidance_momentum=-0.5,
            adaptive_projected_guidance_rescale=2.0, adaptive_projected_guidance_start_step=3,
        ),
    ),
    "cfg_zero": (tm.cfg_zero(W), lambda: d.ClassifierFreeZeroStarGuidance(W)),
    "cfg_zero-2": (
        tm.cfg_zero(W, zero_init=2), lambda: d.ClassifierFreeZeroStarGuidance(W, zero_init_steps=2)
    ),
    "tcfg": (tm.tcfg(W), lambda: d.TangentialClassifierFreeGuidance(W)),
    "tcfg-interval": (
        tm.tcfg(W, between=(0.2, 0.7)),
        lambda: d.TangentialClassifierFreeGuidance(W, start=0.2, stop=0.7),
    ),
    "mambo": (tm.mambo(W, damping=3.0), lambda: d.MagnitudeAwareGuidance(W, alpha=3.0)),
    "cfg-rescaled": (
        tm.cfg(W, rescale=0.7), lambda: d.ClassifierFreeGuidance(W, guidance_rescale=0.7)
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", PAIRS)


def outputs(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cond = torch.randn(shape, generator=generator)
    return cond, cond + 0.5 * torch.randn(shape, generator=generator)


@EVERY
@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (1, 4, 3, 6, 6), (2, 7, 5)])
def test_a_call_after_another_is_that_of_the_guider(name, shape):
    guidance, make = PAIRS[name]
    guider, momentum = make(), None
    for step in (3, 4, 5):
        cond, uncond = outputs(shape, step)
        if name == "mambo":  # torch takes the guider's norms over two dimensions at most
            cond, uncond = cond.flatten(1), uncond.flatten(1)
        guider._step, guider._num_inference_steps = step, STEPS
        if step == 3 and ("momentum" in name or "mix" in name):
            guider.momentum_buffer = d.adaptive_projected_guidance.MomentumBuffer(-0.5)
        theirs = guider.forward(cond, uncond).pred
        scale = guidance.scale[step] if isinstance(guidance.scale, tuple) else guidance.scale
        ours, momentum = guide(
            Outputs(cond, uncond, place=Place(0.0, 1.0, step, STEPS, "flow")), scale,
            rescale=guidance.rescale, method=guidance.method, momentum=momentum,
        )  # fmt: skip
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def start() -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def velocity(data: exact.Exact, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """noise - data of a flow, x = (1 - sigma)·data + sigma·noise."""
    return (x - data(x, tm.At(1 - sigma, sigma, 1000 * sigma))) / sigma


def of_diffusers(guider: object) -> torch.Tensor:
    """Euler's method with a guider, as diffusers' modular pipelines call it."""
    levels = tm.Sampler("euler", steps=STEPS).levels(PROCESS).sigma.tolist()
    x = start()
    if getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
        momentum = guider.adaptive_projected_guidance_momentum
        guider.momentum_buffer = d.adaptive_projected_guidance.MomentumBuffer(momentum)
    for step, (sigma, after) in enumerate(pairwise(levels)):
        guider.set_state(step, STEPS, torch.tensor(1000 * sigma))
        cond, uncond = velocity(COND, x, sigma), velocity(DATA, x, sigma)
        x = x + (after - sigma) * guider.forward(cond, uncond).pred
    return x


def of_timonel(guidance: Guidance) -> torch.Tensor:
    return tm.sample(
        lambda x, at: velocity(COND, x, at.sigma), start(), "euler", process=PROCESS, steps=STEPS,
        prediction="flow", unconditional=lambda x, at: velocity(DATA, x, at.sigma),
        guidance=guidance,
    )  # fmt: skip


@EVERY
def test_a_whole_run_is_that_of_the_guider(name):
    guidance, make = PAIRS[name]
    theirs, ours = of_diffusers(make()), of_timonel(guidance)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_rescaling_a_step_of_velocity_zero_is_zero_and_not_nan():
    guider = d.ClassifierFreeZeroStarGuidance(W, guidance_rescale=0.7)
    cond, uncond = outputs((2, 4, 8, 8), 0)
    guider._step, guider._num_inference_steps = 0, STEPS
    assert guider.forward(cond, uncond).pred.isnan().all()
    guidance = tm.cfg_zero(W, rescale=0.7)
    ours = guide(
        Outputs(cond, uncond, place=Place(0.0, 1.0, 0, STEPS, "flow")), W,
        rescale=guidance.rescale, method=guidance.method,
    )  # fmt: skip
    assert torch.equal(ours.raw, torch.zeros_like(cond))


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def papers_apg(cond, uncond, w, eta, limit, beta, average):
    """Algorithm 1 of arXiv 2410.02416, on denoised predictions."""
    average = (cond - uncond) + beta * average
    dims = tuple(range(1, cond.ndim))
    size = average.norm(dim=dims, keepdim=True)
    update = average * torch.minimum(torch.ones_like(size), limit / size)
    unit = cond / cond.norm(dim=dims, keepdim=True)
    parallel = (update * unit).sum(dim=dims, keepdim=True) * unit
    return cond + (w - 1) * (update - parallel + eta * parallel), average


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v", "sample"])
def test_apg_is_the_papers_on_denoised_predictions_whatever_the_network_predicts(prediction):
    process = PROCESS if prediction == "flow" else tm.VP.from_schedule()
    guidance = tm.apg(W, eta=0.3, norm_threshold=2.0, momentum=-0.5)
    table = tm.Sampler("euler", steps=STEPS).compile(process)
    run = Run(table, prediction, guidance=guidance)
    run.start(start())
    average: torch.Tensor | float = 0.0
    c_x, c_raw = (c.tolist() for c in table.clean(prediction))
    for row in run.rows():
        x, k = run.latents, (c_x[row], c_raw[row])
        cond, uncond = ((data(x, run.level) - k[0] * x) / k[1] for data in (COND, DATA))
        ours, momentum = run.guided.combine(row, Outputs(cond, uncond, x), run.momentum)
        clean, average = papers_apg(
            COND(x, run.level), DATA(x, run.level), W, 0.3, 2.0, -0.5, average
        )
        assert torch.allclose(k[0] * x + k[1] * ours, clean, rtol=1e-9, atol=1e-9)
        run.remember(momentum=momentum)
        run.advance(ours)


def test_apg_of_diffusers_projects_raw_outputs_and_does_not_tend_to_the_conditional_one():
    settings = {"eta": 0.0, "norm_threshold": 2.0}
    paper, peer = (of_timonel(tm.apg(W, formula=f, **settings)) for f in ("paper", "diffusers"))
    plain = of_timonel(tm.cfg(W))
    assert rms(paper - peer) > 0.1 * rms(plain)
    for formula, least, most in (("paper", 0, 1e-3), ("diffusers", 0.1, 1)):
        nearly = of_timonel(tm.apg(1.0001, eta=0.0, momentum=0, formula=formula))
        assert least <= rms(nearly - of_timonel(tm.cfg(1.0))) < most


def test_plain_guidance_of_a_table_is_as_before():
    table = tm.Sampler("euler", steps=STEPS).compile(PROCESS)
    guided = DATA.guided(0, W)
    alone = drive(table, guided, start())
    ours = of_timonel(tm.cfg(W))
    assert torch.allclose(alone, ours, rtol=1e-9, atol=1e-9)
