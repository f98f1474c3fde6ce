"""Laws: a captured network is the pipeline's own, for any mix of samples, levels and scales, or it
says why not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from support.pipes import load
from timonel.comparison.engine import converges
from timonel.comparison.plan import Plan
from timonel.core import noise as noises
from timonel.core.run import Run
from timonel.engine.drive import finish, run_on
from timonel.errors import ArgumentError
from timonel.pipelines.capture import Captured, NotCaptured, capture

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:diffusers"
)  # of old scheduler configurations
CASES = load()
# what each stands for: plain, text_time, frames with an image beside them, flow, a batch of frames,
# conditional first
FAITHFUL = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableVideoDiffusionPipeline",
    "StableDiffusion3Pipeline",
    "AnimateDiffPipeline", "ChromaPipeline",
)  # fmt: skip
SCALES = ("guidance_scale", "true_cfg_scale", "max_guidance_scale", "min_guidance_scale")
REFUSED = {
    "StableDiffusionImg2ImgPipeline": "mixes a picture with noise",
    "StableDiffusionControlNetPipeline": "a second network beside its own",
    "ZImagePipeline": "no batch",
}


def taken(name: str, scale: float = 3.0) -> tuple[tm.Helm, dict[str, Any], Captured]:
    torch.manual_seed(0)
    case = CASES[name]
    helm = tm.Helm(case.build())
    helm.pipe.set_progress_bar_config(disable=True)
    given = {key: value for key, value in case.inputs().items() if key not in SCALES}
    return helm, given, capture(helm, seeds=[5], guidance=scale, **given)


def go(
    captured: Captured,
    sampler: tm.Sampler,
    guidance: tm.Guidance | None,
    sample: int = 0,
    seed: int = 5,
) -> Tensor:
    table = sampler.compile(captured.process)
    noise = noises.source(sampler.source, [seed], table) if table.stochastic else None
    run = Run(
        table, captured.prediction, noise=noise, guidance=guidance, denoised_fn=captured.denoised_fn
    )
    run.start(captured.start[sample : sample + 1])
    for _ in run.rows():
        run.advance(captured(run.latents, torch.tensor([run.level.time]), [sample], [run.scale]))
    return run.result


@pytest.mark.parametrize("name", FAITHFUL)
@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "heun"])
def test_a_captured_run_ends_where_the_helms_does(name, sampler):
    helm, given, captured = taken(name)
    guidance, chosen = tm.cfg(3.0, until=0.5), tm.Sampler(sampler, steps=4)
    helm(sampler=chosen, seeds=[5], guidance=guidance, **given)
    theirs = helm.run.result
    ours = go(captured, chosen.on(captured.process), guidance)
    assert (ours - theirs).abs().max() <= 2e-3 * theirs.abs().max()


def test_one_call_serves_any_mix_of_samples_levels_and_scales():
    torch.manual_seed(0)
    helm = tm.Helm(CASES["StableDiffusionPipeline"].build())
    helm.pipe.set_progress_bar_config(disable=True)
    captured = capture(
        helm, prompt=["a", "b", "c"], seeds=[1, 2, 3], guidance=5.0, height=64, width=64
    )
    assert captured.count == 3
    assert captured.scale == 5.0
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, *captured.start.shape[1:], generator=g)
    times, samples = torch.tensor([999.0, 12.5, 300.0, 700.0, 12.5]), [0, 2, 1, 1, 0]
    scales = [5.0, 1.0, 2.5, None, 7.0]
    together = captured(x, times, samples, scales)
    for i in range(5):
        alone = captured(x[i : i + 1], times[i : i + 1], samples[i : i + 1], scales[i : i + 1])[0]
        assert torch.allclose(together[i], alone, atol=1e-4)
    assert not torch.allclose(
        captured(x[:1], times[:1], [0], [5.0]), captured(x[:1], times[:1], [1], [5.0])
    )


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableVideoDiffusionPipeline"])
def test_another_scale_is_what_the_pipeline_makes_of_it(name):
    helm, given, captured = taken(name, 3.0)
    helm(sampler="euler", steps=2, seeds=[5], guidance=6.0, **given)
    ours = go(captured, tm.Sampler("euler", steps=2).on(captured.process), tm.cfg(6.0))
    assert (ours - helm.run.result).abs().max() <= 2e-3 * ours.abs().max()


# noise, a flow, the conditional part first
@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "ChromaPipeline"]
)
@pytest.mark.parametrize(
    ("sampler", "guidance"),
    [
        ("dpmpp_2m", tm.apg(3.0, norm_threshold=5.0, momentum=-0.5)),
        ("heun", tm.tcfg(3.0, until=0.5, rescale=0.5)),
        ("dpmpp_2m", tm.cfg_pp(1.0)),
        ("dpmpp_2m_cfg_pp", tm.cfg(0.7)),
        ("euler_cfg_pp", tm.cfg(1.8)),
    ],
)
def test_methods_and_solvers_of_both_outputs_end_where_the_helm_does(name, sampler, guidance):
    helm, given, captured = taken(name, 2.0)
    chosen = tm.Sampler(sampler, steps=4)
    helm(sampler=chosen, seeds=[5], guidance=guidance, **given)
    table = chosen.on(captured.process).guided_by(guidance).compile(captured.process)
    run = run_on(captured, table, guidance=guidance)
    run.start(captured.start)
    ours = finish(run, captured, (0,))
    theirs = helm.run.result
    assert (ours - theirs).abs().max() <= 2e-3 * theirs.abs().max()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_says_why(name):
    with pytest.raises(NotCaptured, match=REFUSED[name]):
        taken(name)


def test_the_pipeline_is_what_it_was():
    helm, given, _ = taken("StableDiffusionPipeline")
    pipe = helm.pipe
    before = (pipe.scheduler, pipe.unet.__dict__.get("forward"))
    capture(helm, seeds=[5], guidance=3.0, **given)
    assert (pipe.scheduler, pipe.unet.__dict__.get("forward")) == before
    call = {**given, "num_inference_steps": 2, "output_type": "latent"}
    plain, again = (
        pipe(**call, generator=torch.Generator().manual_seed(0)).images for _ in range(2)
    )
    assert torch.equal(plain, again)


def test_without_guidance_there_is_one_part():
    torch.manual_seed(0)
    case = CASES["StableDiffusionPipeline"]
    helm = tm.Helm(case.build())
    given = {key: value for key, value in case.inputs().items() if key not in SCALES}
    captured = capture(helm, seeds=[5], guidance=1.0, **given)
    assert (captured.parts, captured.cost(None)) == (1, 1)


def test_a_scheduler_alone_refuses_a_solver_of_both_outputs_and_a_helm_chooses_it():
    helm = tm.Helm(CASES["StableDiffusionPipeline"].build())
    chosen = tm.Sampler("euler_cfg_pp", steps=3)
    assert helm.choose(chosen).sampler.name == "euler_cfg_pp"
    alone = tm.Scheduler.from_config(helm.pipe.scheduler.config, sampler="euler_cfg_pp")
    with pytest.raises(ArgumentError, match=r"reads the unconditional output.*'euler'"):
        alone.set_timesteps(3)


def test_a_plan_takes_methods_and_their_samplers():
    plan = Plan.of("a", model="emoji", sampler="euler", guidance=[4.0, "apg:4", "cfg_pp:0.6"])
    recipes = [cell.recipe for cell in plan]
    assert [recipe.sampler for recipe in recipes] == ["euler", "euler", "euler_cfg_pp"]
    assert [converges(recipe) for recipe in recipes] == [True, True, False]
    assert recipes[1].guidance is not None
    assert recipes[1].guidance.guidance() == tm.apg(4.0)
