"""The three sockets on real StableDiffusionPipeline and StableDiffusionXLPipeline classes with
random weights.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor

import timonel as tm
from support import tiny
from timonel.core.solvers import SOLVERS
from timonel.errors import ArgumentError, GridError, HookError, RunError, UnknownName

PIPES: dict[str, Callable[[], Any]] = {"sdxl": tiny.sdxl, "sd": tiny.sd}


@pytest.fixture(params=PIPES)
def pipe(request: pytest.FixtureRequest) -> Any:
    # float64: what a network returns for one sample then hardly depends on the batch it is in
    return PIPES[request.param]().to(torch.float64)


class Calls:
    """Batch sizes that reach the inside of the network."""

    def __init__(self, pipe: Any) -> None:
        self.batches: list[int] = []
        pipe.unet.conv_in.register_forward_pre_hook(
            lambda module, args: self.batches.append(len(args[0]))
        )


def call(pipe: Any, batch: int = 1) -> dict[str, Any]:
    made = tiny.prompt(pipe, batch)
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in made.items()}


def bare(pipe: Any, scheduler: Any, steps: int, seed: int, scale: float = 5.0) -> torch.Tensor:
    """The pipeline as diffusers runs it, with another of its schedulers."""
    own, pipe.scheduler = pipe.scheduler, scheduler
    try:
        generator = torch.Generator().manual_seed(seed)
        return pipe(
            **call(pipe), num_inference_steps=steps, generator=generator, guidance_scale=scale
        ).images
    finally:
        pipe.scheduler = own


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# name: diffusers' class, its options, our sampler, steps that are compared. 8 steps divide 1000:
# elsewhere
# diffusers' DDIM steps to t - 1000 // N, which is not the next entry of its own list. TCD's last
# step is left
# out: diffusers ends at training time 0, with sigma_min of predicted noise in the picture.
PARITY: dict[str, tuple[Any, dict[str, Any], str, int]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}, "ddim/trailing", 8),
    "euler": (EulerDiscreteScheduler, {}, "euler/trailing", 8),
    "heun": (HeunDiscreteScheduler, {}, "heun/trailing", 8),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}, "dpmpp_2m/trailing", 8),
    "unipc": (UniPCMultistepScheduler, {}, "unipc/trailing", 8),
    "lcm": (LCMScheduler, {}, "lcm", 8),
    "tcd": (TCDScheduler, {"set_alpha_to_one": True}, "tcd", 7),
}


@pytest.mark.parametrize("name", PARITY)
def test_pipeline_gives_the_same_latents_as_with_diffusers_scheduler(pipe: Any, name: str) -> None:
    cls, options, sampler, compared = PARITY[name]
    theirs = cls.from_config(pipe.scheduler.config, timestep_spacing="trailing", **options)
    theirs.set_timesteps(8)
    ours = tm.Scheduler.from_config(pipe.scheduler.config, sampler=sampler)
    seen: dict[str, list[torch.Tensor]] = {}
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def keep(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.setdefault(type(pipeline.scheduler).__name__, []).append(kwargs["latents"].clone())
        return kwargs

    for scheduler in (theirs, ours):
        generator = torch.Generator().manual_seed(9)
        if scheduler is ours:  # the same draws in the same order
            ours.session.noise = lambda row, like, g=generator: torch.randn(
                like.shape, generator=g, dtype=like.dtype
            )
        # diffusers' Euler family works on x·sqrt(1 + s²) and multiplies what it is given by its
        # first s
        scale = float(theirs.init_noise_sigma)
        unit = scale / (1 + float(theirs.sigmas[0]) ** 2) ** 0.5 if scale > 1 else 1.0
        latents = start.clone() if scheduler is theirs else start * unit
        more = (
            {"eta": 0.3} if scheduler is theirs and name == "tcd" else {}
        )  # pipelines pass eta = 0 to TCD's step
        pipe.scheduler = scheduler
        asked = {"latents": latents, "generator": generator, "callback_on_step_end": keep, **more}
        pipe(**call(pipe), num_inference_steps=8, **asked)
    mine, other = seen["Scheduler"], seen[cls.__name__]
    assert len(mine) == len(other)
    last = len(mine) if compared == 8 else compared
    assert (
        relative(mine[last - 1], other[last - 1]) < 1e-6
    )  # measured: 2e-7 to 5e-7, diffusers' float32 levels


@pytest.mark.parametrize("sampler", SOLVERS)
def test_every_sampler_runs_and_leaves_the_pipeline_as_it_was(pipe: Any, sampler: str) -> None:
    own, keys = pipe.scheduler, set(vars(pipe))
    helm = tm.Helm(pipe)
    helm(**call(pipe), sampler=sampler, steps=3, seeds=[1])
    assert pipe.scheduler is own
    assert set(vars(pipe)) - keys <= {name for name in vars(pipe) if name.startswith("_")}
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks
    assert helm.run is not None
    assert helm.run.status == "done"


def test_pipeline_is_restored_when_a_hook_raises(pipe: Any) -> None:
    def bad(run: tm.Run) -> None:
        raise ValueError("on purpose")

    own = pipe.scheduler
    with pytest.raises(HookError, match=r"'bad' raised at step 1 of 4.*on purpose"):
        tm.Helm(pipe)(**call(pipe), steps=4, hooks=[bad])
    assert pipe.scheduler is own
    assert not pipe.unet._forward_hooks


@pytest.mark.parametrize(("interval", "batches"), [
    ({"until": 0.4}, [2] * 4 + [1] * 6),
    ({"between": (0.2, 0.6)}, [1] * 2 + [2] * 4 + [1] * 4),
    ({"until": 3, "unit": "step"}, [2] * 3 + [1] * 7),
    ({"between": (5.0, 1.0), "unit": "sigma"}, None),
])  # fmt: skip
def test_unconditional_half_is_not_computed_outside_the_interval(
    pipe: Any, interval: Any, batches: Any
) -> None:
    calls = Calls(pipe)
    helm = tm.Helm(pipe)
    helm(**call(pipe), sampler="dpmpp_2m", steps=10, guidance=tm.cfg(5.0, **interval), seeds=[0])
    if batches is None:
        table = helm.run.table  # type: ignore[union-attr]
        ratio = (table.sigma[:-1] / table.alpha[:-1]).tolist()
        batches = [2 if 1.0 < s <= 5.0 else 1 for s in ratio]
    assert calls.batches == batches


def test_guidance_through_the_gate_equals_the_pipelines_own(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    own = helm(**call(pipe), steps=5, seeds=[0], guidance_scale=4.0).images
    gated = helm(**call(pipe), steps=5, seeds=[0], guidance=4.0).images
    assert relative(gated, own) < 1e-12


def test_guidance_scale_one_everywhere_equals_no_guidance(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    none = helm(**call(pipe), steps=5, seeds=[0], guidance_scale=1.0).images
    off = helm(**call(pipe), steps=5, seeds=[0], guidance=tm.cfg(4.0, until=0.0 + 1e-9)).images
    first = helm(**call(pipe), steps=5, seeds=[0], guidance=tm.cfg([1.0] * 5)).images
    assert relative(first, none) < 1e-12
    assert relative(off, none) > 1e-6  # the first step was guided


def test_scale_per_step_and_rescale_reach_the_network(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    constant = helm(**call(pipe), steps=4, seeds=[0], guidance=tm.cfg([3.0] * 4)).images
    assert relative(constant, helm(**call(pipe), steps=4, seeds=[0], guidance=3.0).images) < 1e-12
    rescaled = helm(**call(pipe), steps=4, seeds=[0], guidance=tm.cfg(3.0, rescale=0.7)).images
    theirs = helm(**call(pipe), steps=4, seeds=[0], guidance_scale=3.0, guidance_rescale=0.7).images
    assert relative(rescaled, theirs) < 1e-6


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "edm"])
@pytest.mark.parametrize("batch", [2, 3, 8])
def test_a_sample_does_not_depend_on_its_batch(pipe: Any, sampler: str, batch: int) -> None:
    helm = tm.Helm(pipe)
    seeds = [11 + i for i in range(batch)]
    options: dict[str, Any] = {"steps": 4, "sampler": sampler, "guidance": tm.cfg(3.0, until=0.5)}
    many = helm(**call(pipe, batch), seeds=seeds, **options).images
    alone = helm(**call(pipe), seeds=[seeds[-1]], **options).images
    assert relative(many[-1:], alone) <= 1e-6


def test_stop_ends_the_loop_and_hands_over_the_denoised_prediction(pipe: Any) -> None:
    calls, helm = Calls(pipe), tm.Helm(pipe)
    hooks = [tm.stop_when(lambda run: run.step == 4)]
    made = helm(**call(pipe), sampler="dpmpp_2m", steps=10, seeds=[0], hooks=hooks).images
    assert len(calls.batches) == 4
    assert helm.run is not None
    assert helm.run.status == "stopped"
    assert torch.equal(made, helm.run.denoised)


def test_stop_from_another_thread_still_decodes(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    reached, go = threading.Event(), threading.Event()

    def wait(run: tm.Run) -> None:
        if run.step == 3:
            run.pause()
            reached.set()

    def control() -> None:
        reached.wait(30)
        assert helm.run is not None
        helm.run.stop("enough")
        go.set()

    thread = threading.Thread(target=control)
    thread.start()
    made = helm(**call(pipe), steps=10, seeds=[0], hooks=[wait]).images
    thread.join()
    assert go.is_set()
    assert helm.run is not None
    assert (helm.run.status, helm.run.step, helm.run.reason) == ("stopped", 3, "enough")
    assert torch.equal(made, helm.run.denoised)  # the tensor the pipeline held was overwritten


def test_pause_and_resume_change_nothing(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    plain = helm(**call(pipe), steps=6, seeds=[0], sampler="unipc").images

    def pause(run: tm.Run) -> None:
        if run.step == 2:
            run.pause()
            threading.Timer(0.05, run.resume).start()

    assert torch.equal(
        plain, helm(**call(pipe), steps=6, seeds=[0], sampler="unipc", hooks=[pause]).images
    )


@pytest.mark.parametrize("keep", [0, 8])
@pytest.mark.parametrize("sampler", ["dpmpp_3m", "unipc", "edm", "dpmpp_2m_sde"])
def test_rewind_repeats_the_same_steps(pipe: Any, sampler: str, keep: int) -> None:
    helm = tm.Helm(pipe)
    options: dict[str, Any] = {"steps": 6, "seeds": [0], "sampler": sampler}
    plain = helm(**call(pipe), **options).images
    visited: list[int] = []

    def back(run: tm.Run) -> None:
        visited.append(run.step)
        if len(visited) == 5:
            run.rewind(2)

    again = helm(**call(pipe), **options, hooks=[back], keep=keep).images
    assert visited == [1, 2, 3, 4, 5] + ([3, 4, 5, 6] if keep else [1, 2, 3, 4, 5, 6])
    assert torch.equal(plain, again)


def test_edited_latents_are_what_the_network_sees_next(pipe: Any) -> None:
    seen: list[torch.Tensor] = []
    pipe.unet.register_forward_pre_hook(lambda m, a: seen.append(a[0][:1].clone()))
    helm = tm.Helm(pipe)
    edited: list[torch.Tensor] = []

    def edit(run: tm.Run) -> None:
        if run.step == 2:
            run.latents[:, 0] += 0.3
            edited.append(run.latents.clone())

    helm(**call(pipe), steps=4, seeds=[0], sampler="unipc", hooks=[edit])
    assert torch.equal(seen[2], edited[0])


def test_diffusers_callback_edits_are_taken_over(pipe: Any) -> None:
    def replace(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] + 0.25} if i == 1 else kwargs

    def edit(run: tm.Run) -> None:
        if run.step == 2:
            run.latents += 0.25

    helm = tm.Helm(pipe)
    theirs = helm(
        **call(pipe), steps=5, seeds=[0], sampler="unipc", callback_on_step_end=replace
    ).images
    ours = helm(**call(pipe), steps=5, seeds=[0], sampler="unipc", hooks=[edit]).images
    assert relative(theirs, ours) < 1e-12


def test_diffusers_interrupt_ends_with_the_denoised_prediction(pipe: Any) -> None:
    def interrupt(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = i >= 2
        return kwargs

    calls, helm = Calls(pipe), tm.Helm(pipe)
    made = helm(**call(pipe), steps=8, seeds=[0], callback_on_step_end=interrupt).images
    assert len(calls.batches) == 3
    assert helm.run is not None
    assert torch.equal(made, helm.run.denoised)


def test_previews_are_of_the_denoised_picture(pipe: Any, tmp_path: Any) -> None:
    helm = tm.Helm(pipe.to(torch.float32))
    helm(**tiny.prompt(pipe), steps=3, seeds=[0], hooks=[tm.preview(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-01.png",
        "step-02.png",
        "step-03.png",
    ]


def test_drop_in_scheduler_works_alone_and_draws_from_the_generator(pipe: Any) -> None:
    scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler="dpmpp_2m_sde/karras")
    one, two, other = (bare(pipe, scheduler, 5, seed) for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_drop_in_scheduler_survives_saving_copying_and_loading(tmp_path: Any) -> None:
    pipe = tiny.sdxl()
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler="dpmpp_2m/karras")
    twin = copy.deepcopy(pipe.scheduler)
    plain = [
        {k: v for k, v in s.config.items() if not k.startswith("_")} for s in (twin, pipe.scheduler)
    ]
    assert plain[0] == plain[1]
    pipe.scheduler.save_pretrained(tmp_path)
    loaded = tm.Scheduler.from_pretrained(str(tmp_path))
    for scheduler in (pipe.scheduler, twin, loaded):
        scheduler.set_timesteps(5)
    assert torch.equal(pipe.scheduler.timesteps.plain(), loaded.timesteps.plain())
    assert loaded.run.table.solver == "dpmpp_2m"
    assert loaded.run.table.grid == "karras"


def test_timesteps_and_sigmas_lists_are_used_as_given(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    times = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    scheduler = tm.Scheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(timesteps=times)
    assert scheduler.timesteps.plain().tolist() == times
    scheduler.set_timesteps(sigmas=[14.6, 6.3, 3.7, 0.5, 0.0])
    assert scheduler.sigmas.tolist() == pytest.approx([14.6, 6.3, 3.7, 0.5, 0.0])
    made = helm(**call(pipe), sampler=tm.Sampler("dpmpp_2m", times=times), seeds=[0])
    assert made.images.isfinite().all()


@pytest.mark.parametrize(("config", "grid"), [
    ({"beta_schedule": "scaled_linear"}, "karras"),
    ({"timestep_spacing": "leading"}, "leading"),
    ({"timestep_spacing": "leading", "use_karras_sigmas": True}, "karras"),
    ({"_class_name": "EDMEulerScheduler"}, "karras"),
    ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"}, "exponential"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "trailing"),
])  # fmt: skip
def test_scheduler_takes_the_grid_of_the_config(config: dict[str, Any], grid: str) -> None:
    v = {"prediction_type": "v_prediction"}
    changes = v | {"sigma_data": 1.0} if "EDM" in config.get("_class_name", "") else v
    scheduler = tm.Scheduler.from_config(config, sampler="euler", **changes)
    scheduler.set_timesteps(5)
    assert scheduler.run.table.grid == grid


def test_plain_use_of_timesteps_does_not_drive_the_run() -> None:
    scheduler = tm.Scheduler.from_config(
        tiny.sdxl().scheduler.config, sampler="heun", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(4)
    assert len(list(scheduler.timesteps)) == len(scheduler.timesteps) == 7
    assert len(list(filter(lambda t: t >= 500, scheduler.timesteps))) == 3
    assert scheduler.timesteps[0] == 999
    assert scheduler.order == 2


def test_cut_timesteps_start_from_an_intermediate_level() -> None:
    scheduler = tm.Scheduler.from_config(tiny.sdxl().scheduler.config, sampler="dpmpp_2m/karras")
    scheduler.set_timesteps(10)
    full = scheduler.timesteps.plain().clone()
    late = scheduler.timesteps[4:]
    assert torch.equal(late.plain(), full[4:])
    assert scheduler.timesteps[:1].repeat(2).tolist() == [full[0]] * 2
    assert scheduler.run.table.steps == 10  # looking at a part does not choose it
    x0, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    noisy = scheduler.add_noise(x0, noise, late.plain()[:1])
    for t in late:
        scheduler.step(noisy, t, noisy)
        break
    assert scheduler.run.table.steps == 6
    level = scheduler.run.table.level(0)
    assert torch.allclose(noisy, x0 * float(level.alpha) + noise * float(level.sigma), atol=1e-6)


@pytest.mark.parametrize(("bad", "error", "says"), [
    ({"banana": 1}, UnknownName, "banana"),
    ({"sampler": "dpmpp2m"}, UnknownName, "did you mean 'dpmpp_2m'"),
    ({"sampler": "euler/karas"}, UnknownName, "did you mean 'karras'"),
    ({"seeds": [1, 2]}, ArgumentError, "2 seeds for a call of 1 sample: "),
    ({"steps": 0}, ArgumentError, "at least 1, got 0"),
    ({"steps": 4, "num_inference_steps": 5}, ArgumentError, "disagree"),
    ({"guidance": 4.0, "guidance_scale": 4.0}, ArgumentError, "not both"),
    ({"hooks": [3]}, ArgumentError, "callable that takes the run"),
    ({"sampler": "euler/ays_svd"}, GridError, "14.6"),
    ({"seeds": [1], "generator": torch.Generator()}, ArgumentError, "not both"),
    ({"sampler": tm.Sampler("euler", options={"s_noise": 2})}, ArgumentError,
    "nothing to multiply"),
])  # fmt: skip
def test_bad_arguments_are_refused_before_any_compute(bad: Any, error: Any, says: str) -> None:
    pipe = tiny.sdxl()
    calls = Calls(pipe)
    with pytest.raises(error, match=says):
        tm.Helm(pipe)(**tiny.prompt(pipe), **bad)
    assert calls.batches == []


def test_guidance_on_a_pipeline_without_unconditional_half_says_so(pipe: Any) -> None:
    with pytest.raises(ArgumentError, match="no unconditional part"):
        tm.Helm(pipe)(**call(pipe), steps=2, guidance=tm.cfg(until=0.5), guidance_scale=1.0)


def test_what_is_not_a_pipeline_is_refused() -> None:
    with pytest.raises(tm.TimonelError, match="not a diffusers pipeline"):
        tm.Helm(object())
    with pytest.raises(tm.TimonelError, match="shipped models: emoji"):
        tm.Helm("no/such-model-anywhere")
    with pytest.raises(ArgumentError, match="use_clipped_model_output"):
        tm.Scheduler.from_config({}).step(
            torch.zeros(1), 0, torch.zeros(1), use_clipped_model_output=True
        )
    with pytest.raises(ArgumentError, match="keeps solver, grid name"):
        tm.Scheduler.from_config({}, sampler=tm.Sampler("euler", steps=8, strength=0.5))
    with pytest.raises(UnknownName, match="bananas"):
        tm.Scheduler.from_config({}, bananas=3)
    with pytest.raises(RunError, match="set_timesteps"):
        _ = tm.Scheduler.from_config({}).run


def test_scale_model_input_is_the_identity_and_sigma_starts_at_one() -> None:
    scheduler = tm.Scheduler.from_config(EulerDiscreteScheduler().config)
    x = randn_tensor((1, 4, 8, 8))
    assert scheduler.scale_model_input(x, 3) is x
    assert scheduler.init_noise_sigma == 1.0
