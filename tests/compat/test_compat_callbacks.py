"""diffusers' official callbacks on timonel: guidance is off where they say, also in pipelines where
diffusers fails.
"""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import callbacks as official

import timonel.compat as compat
from timonel.errors import ArgumentError

# of pipelines that are made with a scheduler of steps_offset=0
pytestmark = pytest.mark.filterwarnings(
    "ignore:The configuration file of this scheduler:FutureWarning"
)
PIPES = {
    "sd": ("StableDiffusionPipeline", "SDCFGCutoffCallback"),
    "sdxl": ("StableDiffusionXLPipeline", "SDXLCFGCutoffCallback"),
    "sd3": ("StableDiffusion3Pipeline", "SD3CFGCutoffCallback"),
    "video": ("StableVideoDiffusionPipeline", "SDCFGCutoffCallback"),
}
CONTROL = ("StableDiffusionXLControlNetPipeline", "SDXLControlnetCFGCutoffCallback")
WITH_TIMONEL = {
    "sd": "DPMSolverMultistepScheduler", "sdxl": "EulerDiscreteScheduler",
    "video": "DPMSolverMultistepScheduler",
    "sd3": "FlowMatchEulerDiscreteScheduler",
}  # fmt: skip
STEPS = 10


def build(family: str, name: str) -> tuple[Any, dict[str, Any]]:
    importlib.import_module(f"support.pipes.{family}")
    case = importlib.import_module("support.pipes.registry").CASES[name]
    return case.build(), case.inputs()


def network(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def batches(pipe: Any) -> list[int]:
    """Batch sizes that reach the inside of the network, as they come."""
    seen: list[int] = []
    first = network(pipe).conv_in if hasattr(pipe, "unet") else network(pipe).pos_embed
    first.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("own", [True, False], ids=["diffusers", "timonel"])
@pytest.mark.parametrize("family", PIPES)
@pytest.mark.parametrize(
    ("given", "guided"), [({"cutoff_step_ratio": 0.4}, 5), ({"cutoff_step_index": 2}, 3)]
)
def test_the_cutoff_halves_the_batch_from_the_next_step_on(
    family: str, own: bool, given: dict[str, Any], guided: int
) -> None:
    name, callback = PIPES[family]
    pipe, inputs = build(family, name)
    if not own:
        pipe.scheduler = getattr(compat, WITH_TIMONEL[family]).from_config(pipe.scheduler.config)
    elif family == "sd":
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    seen = batches(pipe)
    pipe(
        **inputs, num_inference_steps=STEPS, callback_on_step_end=getattr(compat, callback)(**given)
    )
    whole = seen[0]
    assert seen == [whole] * guided + [whole // 2] * (STEPS - guided)
    assert not network(pipe)._forward_pre_hooks
    assert not network(pipe)._forward_hooks
    seen.clear()
    pipe(**inputs, num_inference_steps=3)
    assert seen == [whole] * 3  # the next call is guided again


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_latents_are_those_of_diffusers_own_callback_where_that_works(family: str) -> None:
    name, callback = PIPES[family]
    made = []
    for module in (official, compat):
        pipe, inputs = build(family, name)
        cut = getattr(module, callback)(cutoff_step_ratio=0.4)
        made.append(
            pipe(
                **inputs, num_inference_steps=STEPS, generator=seeded(), callback_on_step_end=cut
            ).images
        )
    assert torch.allclose(made[0], made[1], atol=2e-4 * float(made[0].abs().max()))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_several_prompts_are_cut_too_where_diffusers_raises(family: str) -> None:
    name, callback = PIPES[family]
    pipe, inputs = build(family, name)
    inputs["prompt"] = [inputs["prompt"], "a green pear"]
    seen = batches(pipe)
    pipe(
        **inputs,
        num_inference_steps=4,
        callback_on_step_end=getattr(compat, callback)(cutoff_step_index=1),
    )
    assert seen[:2] == [4, 4]
    assert set(seen[2:]) == {2}
    theirs = getattr(official, callback)(cutoff_step_ratio=None, cutoff_step_index=1)
    with pytest.raises(RuntimeError, match="size"):
        pipe(**inputs, num_inference_steps=4, callback_on_step_end=theirs)


def test_the_controlnet_is_cut_with_its_network() -> None:
    pipe, inputs = build("sdxl", CONTROL[0])
    sizes: list[int] = []
    pipe.controlnet.conv_in.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0]))
    )
    seen = batches(pipe)
    pipe(
        **inputs,
        num_inference_steps=4,
        callback_on_step_end=getattr(compat, CONTROL[1])(cutoff_step_index=1),
    )
    assert seen == sizes == [2, 2, 1, 1]


def test_after_the_cutoff_svd_sees_only_what_is_conditional() -> None:
    """A run that is cut after its first step equals one that takes that step guided and the others
    not.
    """
    pipe, inputs = build("video", PIPES["video"][0])
    cut = compat.SDCFGCutoffCallback(cutoff_step_index=0)
    frames = pipe(
        **inputs, num_inference_steps=4, generator=seeded(), callback_on_step_end=cut
    ).frames

    def unguided(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = torch.ones_like(pipeline._guidance_scale) * (
            1 + 1e-6
        )  # above 1: still two halves
        return kwargs

    slow = pipe(
        **inputs, num_inference_steps=4, generator=seeded(), callback_on_step_end=unguided
    ).frames
    assert torch.allclose(frames, slow, atol=1e-3 * float(slow.abs().max()))
    with pytest.raises(KeyError):
        pipe(
            **inputs, num_inference_steps=4, callback_on_step_end=official.SDCFGCutoffCallback(0.4)
        )


@pytest.mark.parametrize("how", ["interrupt", "error"])
def test_a_call_that_does_not_end_leaves_nothing_to_the_next(how: str) -> None:
    pipe, inputs = build("sd", PIPES["sd"][0])
    seen, cut = batches(pipe), compat.SDCFGCutoffCallback(cutoff_step_index=0)

    def end(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        cut(pipeline, i, t, kwargs)
        if i == 1 and how == "error":
            raise ZeroDivisionError
        pipeline._interrupt = i == 1
        return kwargs

    if how == "error":
        with pytest.raises(ZeroDivisionError):
            pipe(**inputs, num_inference_steps=5, callback_on_step_end=end)
    else:
        pipe(**inputs, num_inference_steps=5, callback_on_step_end=end)
    assert seen == [2, 1]
    seen.clear()
    pipe(**inputs, num_inference_steps=3)
    assert set(seen) == {2}
    assert not network(pipe)._forward_pre_hooks


def test_without_guidance_there_is_nothing_to_cut_off() -> None:
    pipe, inputs = build("sd", PIPES["sd"][0])
    seen = batches(pipe)
    pipe(
        **inputs,
        num_inference_steps=3,
        guidance_scale=1.0,
        callback_on_step_end=compat.SDCFGCutoffCallback(0.4),
    )
    assert set(seen) == {1}


def test_a_pipeline_without_guidance_of_this_kind_is_refused_at_the_first_call() -> None:
    pipe = SimpleNamespace(num_timesteps=4)
    with pytest.raises(ArgumentError, match="no classifier-free guidance"):
        compat.SDCFGCutoffCallback(0.4)(pipe, 0, None, {"latents": torch.zeros(1, 4, 8, 8)})
    sd, _ = build("sd", PIPES["sd"][0])
    sd._guidance_scale = 5.0
    with pytest.raises(ArgumentError, match="tensor_inputs"):
        compat.SDCFGCutoffCallback(0.4)(sd, 0, None, {})


def test_a_pipeline_that_runs_the_halves_in_separate_calls_is_refused_at_its_second_step() -> None:
    pipe, _ = build("sd", PIPES["sd"][0])
    pipe.scheduler.set_timesteps(4)
    pipe._guidance_scale, pipe._num_timesteps = 5.0, 4
    compat.SDCFGCutoffCallback(0.4)(pipe, 0, None, {"latents": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(ArgumentError, match=r"both parts.*Helm"):
        pipe.unet(
            torch.zeros(1, 4, 8, 8),
            1,
            encoder_hidden_states=torch.zeros(1, 5, pipe.unet.config.cross_attention_dim),
        )
    assert not pipe.unet._forward_pre_hooks


@pytest.mark.parametrize("given", [
    {"cutoff_step_ratio": 1.5}, {"cutoff_step_ratio": None}, {"cutoff_step_index": -1},
    {"cutoff_step_index": 1.5},
    {"cutoff_step_ratio": 0.4, "cutoff_step_index": 3},
])  # fmt: skip
def test_cutoffs_out_of_range_are_refused_when_they_are_made(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="cutoff_step"):
        compat.SDCFGCutoffCallback(**given)


@pytest.mark.parametrize(
    "name", [n for n, c in vars(official).items() if inspect.isclass(c) and "Callback" in n]
)
def test_every_callback_of_diffusers_has_its_name_and_arguments_here(name: str) -> None:
    theirs, ours = getattr(official, name), getattr(compat, name)
    assert list(inspect.signature(theirs.__init__).parameters) == list(
        inspect.signature(ours.__init__).parameters
    )
    assert issubclass(ours, theirs) or issubclass(ours, official.PipelineCallback)


def test_the_scale_of_an_ip_adapter_is_zero_after_the_cutoff_and_back_after_the_call() -> None:
    adapted, plain = SimpleNamespace(scale=[0.7]), SimpleNamespace()
    unet = torch.nn.Identity()
    unet.attn_processors = {"a": adapted, "b": plain}

    class Pipe:
        num_timesteps = 4

        def set_ip_adapter_scale(self, scale: float) -> None:
            adapted.scale = [scale]

    pipe = Pipe()
    pipe.unet = unet  # type: ignore[attr-defined]
    both = compat.MultiPipelineCallbacks([compat.IPAdapterScaleCutoffCallback(cutoff_step_index=1)])
    scales = []
    for i in range(4):
        both(pipe, i, None, {})
        scales.append(adapted.scale)
    assert scales == [[0.7], [0.0], [0.0], [0.7]]
    with pytest.raises(ArgumentError, match="IP adapter"):
        compat.IPAdapterScaleCutoffCallback(0.4)(SimpleNamespace(num_timesteps=4), 0, None, {})


def test_several_callbacks_in_one() -> None:
    pipe, inputs = build("sd", PIPES["sd"][0])
    pipe.scheduler = compat.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    seen, stepped = batches(pipe), []

    class Count(compat.PipelineCallback):
        def callback_fn(
            self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any
        ) -> Any:
            stepped.append(step_index)
            return callback_kwargs

    both = compat.MultiPipelineCallbacks(
        [Count(), compat.SDCFGCutoffCallback(cutoff_step_ratio=0.5)]
    )
    pipe(**inputs, num_inference_steps=4, callback_on_step_end=both)
    assert stepped == [0, 1, 2, 3]
    assert seen == [2, 2, 2, 1]
