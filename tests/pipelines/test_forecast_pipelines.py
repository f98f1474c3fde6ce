"""Laws: a pipeline's forecast half is the one that the rows before foresee, at the cost of the
other half.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import timonel as tm
from support import tiny
from timonel.core import forecast
from timonel.core.data import GuidanceData
from timonel.core.guidance import Guidance, cfg
from timonel.core.prediction import coefficients
from timonel.core.process import Level
from timonel.core.run import Run
from timonel.engine.batch import Batch, Job
from timonel.engine.drive import run_on
from timonel.errors import ArgumentError
from timonel.make.recipe import Recipe
from timonel.pipelines.capture import capture
from timonel.pipelines.guidance.gate import Gate

#: family, and the number of samples that the network computes at every step, in units of one half
SEEN = "221212"
HELMED = {
    "StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionControlNetPipeline": "sd",
    "StableVideoDiffusionPipeline": "video", "DiTPipeline": "dit",
    "StableDiffusion3Pipeline": "sd3",
    "CogVideoXPipeline": "video", "AnimateDiffPipeline": "video", "LTXPipeline": "video",
    "FluxPipeline (true CFG)": "flux", "QwenImagePipeline": "dit_new", "WanPipeline (2.1)": "video",
    "ZImagePipeline": "dit_new", "LuminaPipeline": "dit",
}  # fmt: skip
FIRST = ("DiT", "ZImage", "Lumina")  # whose first part is the conditional one
SCALES = ("guidance_scale", "true_cfg_scale", "max_guidance_scale", "min_guidance_scale")
NETWORKS = ("unet", "transformer", "transformer_2")


class Watched:
    """A pipeline's halves: what its network returned at every row, and what its scheduler was
    given.
    """

    def __init__(self, key: str) -> None:
        pipe, inputs = tiny.case(HELMED[key], key)
        self.inputs = {k: v for k, v in inputs.items() if k not in SCALES}
        self.helm, self.calls, self.rows = tm.Helm(pipe), [], []
        for name in NETWORKS:
            if isinstance(network := getattr(pipe, name, None), nn.Module):
                network.forward = self.seen(network.forward)

    def seen(self, forward: Any) -> Any:
        """The network below the gate, its outputs noted."""

        @functools.wraps(forward)
        def through(*args: Any, **kwargs: Any) -> Any:
            made = output = forward(*args, **kwargs)
            while not isinstance(output, Tensor):
                output = torch.stack(output) if isinstance(output, list) else output[0]
            self.calls.append(output.detach().clone())
            return made

        return through

    def ends(self, run: Run) -> None:
        assert run.newest is not None
        self.rows.append((self.calls.copy(), run.newest[1].clone(), run.called_at))
        self.calls.clear()

    def __call__(self, guidance: Guidance, hooks: Any = (), **options: Any) -> Tensor:
        self.rows.clear()
        self.helm(
            **self.inputs, steps=6, seeds=[0], guidance=guidance, hooks=[self.ends, *hooks],
            **{"sampler": "dpmpp_2m", **options},
        )  # fmt: skip
        return self.helm.run.result.clone()


@pytest.mark.parametrize("key", HELMED)
def test_a_pipeline_is_guided_by_the_forecast_at_the_cost_of_one_half(key):
    """Where guidance is not computed, raw - cond is what the rows before foresee of it, frame by
    frame.
    """
    watched = Watched(key)
    watched(cfg(4.0, forecast=2, order=2))
    sizes = [sum(len(call) for call in calls) for calls, _, _ in watched.rows]
    assert "".join(str(size // (sizes[0] // 2)) for size in sizes) == SEEN
    run = watched.helm.run
    levels = Level(run.table.alpha[:-1], run.table.sigma[:-1], run.table.time[:-1])
    c_raw = coefficients(run.prediction, levels)[1]
    conditional, apart = {}, {}
    for k, (calls, combined, _) in enumerate(watched.rows):
        halves = [*calls[0].chunk(2)] if len(calls) == 1 and SEEN[k] == "2" else calls
        halves = [
            h[:, : combined.shape[1]] if h.shape[1] == 2 * combined.shape[1] else h for h in halves
        ]
        place = 0 if len(calls) == 2 or len(halves) == 1 or key.startswith(FIRST) else 1
        conditional[k], apart[k] = (
            halves[place].double(),
            halves[place].double() - halves[-1 - place].double(),
        )
    for k, (a, b) in {2: (1, 0), 4: (3, 1)}.items():
        share = forecast.weights(run.table, [a, b], k)
        foreseen = (share[0] * c_raw[a] * apart[a] + share[1] * c_raw[b] * apart[b]) / c_raw[k]
        wanted = conditional[k] + gain(key, foreseen) * foreseen
        if key.startswith("Qwen"):
            wanted = wanted * (
                conditional[k].norm(dim=-1, keepdim=True) / wanted.norm(dim=-1, keepdim=True)
            )
        wanted = (
            wanted[:, :3] if key.startswith("Lumina") else wanted
        )  # the fourth channel is not guided there
        made = watched.rows[k][1][: len(wanted), : wanted.shape[1]].double().reshape(wanted.shape)
        made = (
            made if float((made * wanted).sum()) > 0 else -made
        )  # some schedulers are given the negative
        assert (made - wanted).abs().max() < 2e-5 * wanted.abs().max()
        assert (foreseen.abs().max() > 1e-3 * wanted.abs().max()).all()


def gain(key: str, like: Tensor) -> float | Tensor:
    """What a pipeline multiplies cond - uncond by at scale 4, on top of its conditional part."""
    if key.startswith("StableVideo"):
        return torch.linspace(1.0, 4.0, like.shape[1], dtype=like.dtype)[:, None, None, None] - 1
    return 4.0 if key.startswith("ZImage") else 3.0


@pytest.mark.parametrize(
    "key", ["StableDiffusionPipeline", "StableVideoDiffusionPipeline", "WanPipeline (2.1)"]
)
def test_a_rewound_or_resumed_pipeline_forecasts_the_same_bits(key, tmp_path):
    watched, guidance = Watched(key), cfg(4.0, forecast=2, order=2)
    whole = watched(guidance)
    visited: list[int] = []

    def back(run: Run) -> None:
        visited.append(run.step)
        if visited.count(5) == 1 and run.step == 5:
            run.rewind(3)
        if run.step == 3:
            run.save(tmp_path / "run.safetensors")

    assert torch.equal(watched(guidance, [back], keep=6), whole)
    assert visited == [1, 2, 3, 4, 5, 4, 5, 6]
    loaded = Run.load(tmp_path / "run.safetensors")
    assert len(loaded.snapshot()[1].state.differences) == 2
    assert torch.equal(watched(guidance, resume=loaded), whole)
    plain = watched(cfg(4.0))
    assert not torch.equal(plain, whole)


def test_a_scale_per_step_and_rescale_go_with_a_forecast():
    watched = Watched("StableDiffusionPipeline")
    scales = [5.0, 4.0, 3.0, 2.0, 6.0, 2.5]
    watched(cfg(scales, forecast=2, rescale=1.0))
    calls, combined, _ = watched.rows[4]
    assert len(calls[0]) == 1
    assert float(combined.std()) == pytest.approx(float(calls[0].std()), rel=1e-4)
    watched(cfg(scales, forecast=2, order=2))
    run = watched.helm.run
    levels = Level(run.table.alpha[:-1], run.table.sigma[:-1], run.table.time[:-1])
    c_raw, share = coefficients(run.prediction, levels)[1], forecast.weights(run.table, [3, 1], 4)
    apart = {k: watched.rows[k][0][0][1:] - watched.rows[k][0][0][:1] for k in (1, 3)}
    foreseen = (
        float(share[0] * c_raw[3]) * apart[3] + float(share[1] * c_raw[1]) * apart[1]
    ) / float(c_raw[4])
    calls, combined, _ = watched.rows[4]
    assert torch.allclose(
        combined, calls[0] + 5.0 * foreseen, rtol=1e-3, atol=1e-5 * float(combined.abs().max())
    )


def test_a_picture_of_forecasts_is_made_again_from_its_recipe(tmp_path):
    """Both kinds of forecast, through the PNG, to the same pixels; without them the pixels are
    others.
    """
    given = {"model": "emoji", "prompt": "red apple", "seed": 3, "sampler": "dpmpp_2m", "steps": 7}
    guided = GuidanceData.of(cfg(4.0, forecast=2, order=2))
    recipe, helm = Recipe(**given, options={"skip": [5]}, guidance=guided), tm.Helm("emoji")
    helm.pipe.set_progress_bar_config(disable=True)
    picture, made = recipe.make(helm)
    read = Recipe.read(made.save(picture, tmp_path / "apple.png"))
    assert read.guidance == guided
    assert read.options == {"skip": [5]}
    assert read.make(helm)[0].tobytes() == picture.tobytes()
    for other in ({"options": {}}, {"guidance": GuidanceData(scale=4.0)}):
        assert read.model_copy(update=other).make(helm)[0].tobytes() != picture.tobytes()


def test_an_interval_leaves_no_forecast_outside():
    watched = Watched("StableDiffusionPipeline")
    watched(cfg(4.0, forecast=2, until=0.5))
    assert [len(calls[0]) for calls, _, _ in watched.rows] == [2, 2, 1, 1, 1, 1]
    cut = watched.rows[4]
    assert torch.equal(cut[0][0], cut[1])  # not guided: the conditional output itself


@pytest.mark.parametrize(
    ("family", "key", "said"),
    [
        ("sd", "StableDiffusionInstructPix2PixPipeline", "guides by 3 parts"),
        ("sd", "StableDiffusionPAGPipeline", "guides by 3 parts"),
        ("flux", "FluxPipeline (dev)", "is guidance-distilled: the scale is an input"),
    ],
)
def test_a_pipeline_without_two_halves_says_why_nothing_can_be_forecast(family, key, said):
    pipe, inputs = tiny.case(family, key)
    inputs = {k: v for k, v in inputs.items() if k not in SCALES}
    why = f"unconditional part of {key} cannot be forecast: it {said}"
    if "distilled" in said:  # refused before it is asked
        why = f"{said} of its network"
    with pytest.raises(ArgumentError, match=why):
        tm.Helm(pipe)(**inputs, steps=5, seeds=[0], guidance=cfg(4.0, forecast=2))


def test_a_network_of_two_outputs_is_refused():
    pipe = tiny.sd()
    forward = pipe.unet.forward

    def both(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        made = forward(*args, **kwargs)[0]
        return made, made * 2

    pipe.unet.forward = both
    with pytest.raises(ArgumentError, match="a network of 2 outputs"):
        tm.Helm(pipe)(**tiny.prompt(pipe), steps=4, seeds=[0], guidance=cfg(4.0, forecast=2))


def test_a_pipeline_that_makes_something_else_of_its_parts_is_refused(monkeypatch):
    pipe, combined = tiny.sd(), Gate.combined
    sine = lambda gate, out, x: combined(gate, torch.sin(40 * out), x)  # noqa: E731
    monkeypatch.setattr(Gate, "combined", sine)
    with pytest.raises(ArgumentError, match="something else of its two parts than a sum"):
        tm.Helm(pipe)(**tiny.prompt(pipe), steps=4, seeds=[0], guidance=cfg(4.0, forecast=2))


# -- in a batch ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "key", ["StableDiffusionPipeline", "StableVideoDiffusionPipeline", "LuminaPipeline"]
)
def test_a_batch_ends_where_the_helm_does_and_counts_its_evaluations(key):
    watched, guidance = Watched(key), cfg(3.0, forecast=2)
    theirs = watched(guidance, sampler="dpmpp_2m")
    captured = capture(watched.helm, seeds=[0], guidance=3.0, **watched.inputs)
    table = tm.Sampler("dpmpp_2m", steps=6).on(captured.process).compile(captured.process)
    jobs = [
        Job(run_on(captured, table, guidance=g), captured.start, (0,))
        for g in (guidance, cfg(3.0), cfg(3.0, until=0.5))
    ]
    ended = [job for turn in Batch(captured, 8, jobs).turns() for job in turn.ended]
    assert {id(job) for job in ended} == {id(job) for job in jobs}
    assert [job.reason for job in jobs] == [""] * 3
    assert [job.evaluations for job in jobs] == [10, 12, 9]
    assert (jobs[0].run.result - theirs).abs().max() <= 2e-3 * theirs.abs().max()


def test_a_job_without_two_halves_fails_with_the_reason_and_alone():
    pipe = tiny.sd()
    captured = capture(tm.Helm(pipe), seeds=[0], guidance=1.0, **tiny.prompt(pipe))
    table = tm.Sampler("euler", steps=5).on(captured.process).compile(captured.process)
    jobs = [
        Job(Run(table, captured.prediction, guidance=g), captured.start, (0,))
        for g in (cfg(3.0, forecast=2), None)
    ]
    ended = [job for turn in Batch(captured, 8, jobs).turns() for job in turn.ended]
    assert len(ended) == 2
    assert "0 are remembered" in jobs[0].reason
    assert jobs[1].reason == ""


def test_a_slice_of_a_journey_is_refused_where_steps_are_left_out():
    pipe, inputs = tiny.case("sd", "StableDiffusionImg2ImgPipeline")
    sampler = tm.Sampler("dpmpp_2m", options={"skip": 2})
    with pytest.raises(ArgumentError, match=r"skip=2 leaves out steps of a whole journey"):
        tm.Helm(pipe)(**{**inputs, "strength": 0.5}, sampler=sampler, steps=8, seeds=[0])
