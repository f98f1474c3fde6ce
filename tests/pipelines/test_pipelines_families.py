"""What the helm does with families whose loops differ: guiders, frames as a batch, segments, lists
of their own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import timonel as tm
from support import tiny
from timonel.errors import ArgumentError, ModelError
from timonel.pipelines.inspect_source import counts


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output[0], torch.Tensor) else torch.as_tensor(output[0])


# -- levels ----------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_a_named_grid_goes_before_the_list_that_a_pipeline_makes() -> None:
    pipe, inputs = tiny.case("video", "MochiPipeline")
    helm = tm.Helm(pipe)
    helm(**inputs, steps=3, seeds=[0], sampler="euler")
    assert helm.run is not None
    assert helm.run.table.grid == "custom"  # Mochi's own levels
    helm(**inputs, steps=3, seeds=[0], sampler="euler/trailing")
    assert helm.run.table.grid == "trailing"
    with pytest.raises(ArgumentError, match="both set the levels"):
        helm(**inputs, steps=3, sampler="euler/trailing", timesteps=[1000.0, 500.0, 200.0])


def test_a_call_in_segments_shows_the_run_that_was_made_last() -> None:
    pipe, inputs = tiny.case(
        "video", "WanAnimatePipeline"
    )  # it chooses the levels again at its end
    helm = tm.Helm(pipe)
    helm(**inputs, steps=2, seeds=[0])
    assert helm.run is not None
    assert helm.run.status == "done"
    assert helm.run.advances == 2


def test_a_network_that_is_told_shares_gets_them_and_a_clean_end() -> None:
    pipe, inputs = tiny.case("cascade", "WuerstchenPriorPipeline")
    told: list[float] = []
    handle = pipe.prior.register_forward_pre_hook(
        lambda module, args, named: told.append(
            float((named.get("r") if "r" in named else args[1])[0])
        ),
        with_kwargs=True,
    )
    helm = tm.Helm(pipe)
    helm(**inputs, steps=4, seeds=[0])
    handle.remove()
    assert told == [1.0, 0.75, 0.5, 0.25]
    assert helm.run is not None
    assert float(helm.run.level.sigma) == 0


# -- seeds -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "key"), [("video", "TextToVideoSDPipeline"), ("dit", "DiTPipeline")]
)
def test_a_stochastic_sampler_serves_frames_and_halves_with_one_seed_a_sample(
    family: str, key: str
) -> None:
    pipe, inputs = tiny.case(family, key)
    helm = tm.Helm(pipe)
    made = [
        first(helm(**inputs, steps=3, seeds=[seed], sampler="dpmpp_2m_sde")) for seed in (3, 4, 4)
    ]
    assert torch.equal(made[1], made[2])
    assert not torch.equal(made[0], made[1])


def test_several_sounds_of_a_prompt_have_a_seed_each() -> None:
    pipe, inputs = tiny.case("audio", "StableAudioPipeline")
    helm = tm.Helm(pipe)
    both = first(helm(**inputs, steps=2, seeds=[1, 2], num_waveforms_per_prompt=2))
    alone = first(helm(**inputs, steps=2, seeds=[2]))
    assert float((both[1:] - alone).abs().max()) < 1e-4 * float(alone.abs().max())
    with pytest.raises(ArgumentError, match="1 seeds for a call of 2 samples"):
        helm(**inputs, steps=2, seeds=[1], num_waveforms_per_prompt=2)


# -- guidance --------------------------------------------------------------------------------------
def test_the_scale_of_a_call_is_told_to_the_guider_and_taken_back() -> None:
    pipe, inputs = tiny.case("video_more", "MotifVideoPipeline")
    helm, before = tm.Helm(pipe), pipe.guider.guidance_scale
    made = {
        scale: first(helm(**inputs, steps=2, seeds=[0], guidance=scale)) for scale in (2.0, 6.0)
    }
    assert pipe.guider.guidance_scale == before
    assert not torch.equal(made[2.0], made[6.0])
    pipe.guider.guidance_scale = 6.0
    assert torch.equal(first(helm(**inputs, steps=2, seeds=[0])), made[6.0])

    def fail(run: tm.Run) -> None:
        raise ValueError("in a hook")

    with pytest.raises(tm.TimonelError):
        helm(**inputs, steps=2, seeds=[0], guidance=3.0, hooks=[fail])
    assert pipe.guider.guidance_scale == 6.0


# -- loops -----------------------------------------------------------------------------------------
def test_a_loop_that_draws_noise_is_called_again_after_a_rewind() -> None:
    pipe, inputs = tiny.case("video", "LTXConditionPipeline")
    assert counts(pipe)
    helm, done = tm.Helm(pipe), []

    def back(run: tm.Run) -> None:
        if run.step == 2 and not done:
            done.append(run.step)
            run.rewind(1)

    plain = first(helm(**inputs, steps=3, seeds=[0]))
    again = first(helm(**inputs, steps=3, seeds=[0], hooks=[back], keep=3))
    assert done
    assert float((again - plain).abs().max()) < 1e-6 * float(plain.abs().max())


def test_a_loop_with_a_list_of_its_own_says_which_samplers_it_takes() -> None:
    pipe, inputs = tiny.case("sd_more", "StableDiffusionDiffEditPipeline")
    helm = tm.Helm(pipe)
    with pytest.raises(ArgumentError, match=r"one entry a step.*one call a step"):
        helm(**inputs, steps=3, seeds=[0], sampler="heun")
    helm(**inputs, steps=3, seeds=[0], sampler="dpmpp_2m")


@pytest.mark.parametrize(
    ("family", "key", "why"),
    [
        (
            "sd_more",
            "StableDiffusionPanoramaPipeline",
            "copy of its scheduler's state for each view",
        ),
        ("pixels", "RePaintPipeline", "goes back in its list"),
        ("pixels", "KarrasVePipeline", "corrects each step"),
        ("sd_more", "CycleDiffusionPipeline", "its own scheduler's variances"),
    ],
)
def test_a_loop_that_needs_its_own_sampler_is_refused_at_the_helm(
    family: str, key: str, why: str
) -> None:
    pipe, _ = tiny.case(family, key)
    with pytest.raises(ModelError, match=why):
        tm.Helm(pipe)
