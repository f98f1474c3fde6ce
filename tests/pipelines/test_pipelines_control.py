"""Control over pipelines that keep a sample of their own, slice their timesteps, or call two
networks.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from torch import nn

import timonel as tm
from support import tiny
from timonel.errors import ArgumentError, HookError, ModelError, RunError, UnknownName
from timonel.pipelines.inspect_source import counts

# family, class. The loops of the second half use the number of the turn, or keep a sample of their
# own.
STEERED = {
    "StableDiffusionPipeline (v)": "sd", "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusion3Pipeline": "sd3",
    "StableDiffusionInstructPix2PixPipeline": "sd", "FluxPipeline (dev)": "flux",
    "FluxKontextPipeline": "flux",
    "CogVideoXPipeline": "video", "LTXPipeline": "video", "StableVideoDiffusionPipeline": "video",
    "StableDiffusionInpaintPipeline (4 channels)": "sd", "StableDiffusionControlNetPipeline": "sd",
    "StableDiffusionXLInpaintPipeline": "sdxl", "FluxInpaintPipeline": "flux",
    "WanPipeline (2.2)": "video",
    "Flux2KleinKVPipeline": "flux",
}  # fmt: skip
SAMPLERS = ["dpmpp_3m", "dpmpp_2m_sde"]


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output[0], torch.Tensor) else torch.as_tensor(output[0])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("key", STEERED)
def test_a_rewound_run_arrives_where_a_plain_one_does(key: str) -> None:
    for sampler in SAMPLERS:
        pipe, inputs = tiny.case(STEERED[key], key)
        helm = tm.Helm(pipe)
        plain = first(helm(**inputs, steps=5, seeds=[3], sampler=sampler))
        visited: list[int] = []

        def back(run: tm.Run, visited: list[int] = visited) -> None:
            visited.append(run.step)
            if visited.count(3) == 1 and run.step == 3:
                run.rewind(1)

        again = first(helm(**inputs, steps=5, seeds=[3], sampler=sampler, hooks=[back], keep=5))
        assert visited[:5] == [1, 2, 3, 2, 3]
        assert torch.equal(again, plain)


# pipelines that hold the run's tensor, that blend a mask in, and whose loop counts its turns
EDITED = [
    "StableDiffusionPipeline (v)", "FluxPipeline (dev)", "CogVideoXPipeline",
    "StableDiffusionInpaintPipeline (4 channels)", "StableDiffusionXLInpaintPipeline",
    "FluxInpaintPipeline",
]  # fmt: skip


def halve(run: tm.Run) -> None:
    run.latents = run.latents * 0.5


def halve_in_place(run: tm.Run) -> None:
    run.latents.mul_(0.5)


def edited(helm: tm.Helm, inputs: dict[str, Any], edit: Any, paused: bool) -> torch.Tensor:
    """A call whose sample is edited after step 2: in a hook, or by another thread in a pause."""
    waits = threading.Event()

    def hook(run: tm.Run) -> None:
        if run.step == 2 and not waits.is_set():
            if not paused:
                edit(run)
                return
            run.pause()
            waits.set()

    def outside() -> None:
        assert waits.wait(60)
        assert helm.run is not None
        time.sleep(0.05)  # the loop has come to where it waits
        edit(helm.run)
        helm.run.resume()

    other = threading.Thread(target=outside) if paused else None
    if other is not None:
        other.start()
    output = first(helm(**inputs, steps=4, seeds=[3], sampler="dpmpp_2m", hooks=[hook]))
    if other is not None:
        other.join(60)
    return output


@pytest.mark.parametrize("key", EDITED)
def test_a_sample_edited_in_a_pause_is_what_the_pipeline_goes_on_with(key: str) -> None:
    pipe, inputs = tiny.case(STEERED[key], key)
    helm = tm.Helm(pipe)
    plain = edited(helm, inputs, lambda run: None, paused=False)
    in_a_hook = edited(helm, inputs, halve, paused=False)
    assert not torch.equal(in_a_hook, plain)
    assert torch.equal(edited(helm, inputs, lambda run: None, paused=True), plain)
    assert torch.equal(edited(helm, inputs, halve, paused=True), in_a_hook)
    assert torch.equal(edited(helm, inputs, halve_in_place, paused=True), in_a_hook)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_gets_the_sample_assigned_in_a_pause(dtype: torch.dtype) -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionPipeline (v)")
    pipe.to(dtype)
    seen: list[torch.Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or kwargs["sample"])[0]), with_kwargs=True
    )
    helm = tm.Helm(pipe)

    def assign(run: tm.Run) -> None:
        run.latents = torch.full_like(run.latents, 0.5)

    edited(helm, inputs, assign, paused=True)
    hook.remove()
    assert len(seen) == 4
    assert [bool((x == 0.5).all()) for x in seen] == [False, False, True, False]
    assert seen[2].dtype == dtype


@pytest.mark.parametrize("key", STEERED)
def test_a_run_that_is_stopped_from_outside_is_handed_over_clean(key: str) -> None:
    """From another thread, between two steps, and from a hook: the pipeline ends with the same
    sample.
    """
    pipe, inputs = tiny.case(STEERED[key], key)
    helm = tm.Helm(pipe)
    from_hook = first(
        helm(**inputs, steps=5, seeds=[3], hooks=[tm.stop_when(lambda run: run.step == 2)])
    )
    paused = threading.Event()

    def pause(run: tm.Run) -> None:
        if run.step == 2:
            run.pause()
            paused.set()

    def stop() -> None:
        paused.wait(60)
        assert helm.run is not None
        helm.run.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    from_outside = first(helm(**inputs, steps=5, seeds=[3], hooks=[pause]))
    thread.join()
    assert helm.run is not None
    assert (helm.run.status, helm.run.step) == ("stopped", 2)
    assert torch.equal(from_outside, from_hook)


def test_an_inpainted_stop_keeps_the_picture_outside_the_mask() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionInpaintPipeline (4 channels)")
    helm = tm.Helm(pipe)
    done = helm(**inputs, steps=5, seeds=[3]).images
    stopped = helm(
        **inputs, steps=5, seeds=[3], hooks=[tm.stop_when(lambda run: run.step == 2)]
    ).images
    assert torch.equal(
        stopped[..., 4:], done[..., 4:]
    )  # the right half is the picture's own latents
    assert not torch.equal(stopped[..., :4], done[..., :4])


def test_inpainting_blends_with_the_picture_at_the_level_that_comes_next() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionInpaintPipeline (4 channels)")
    seen: list[torch.Tensor] = []
    pipe.unet.register_forward_pre_hook(lambda m, a, k: seen.append(a[0][:1]), with_kwargs=True)
    helm = tm.Helm(pipe)
    clean = helm(**inputs, steps=5, seeds=[3], guidance_scale=1.0).images
    assert helm.run is not None
    table, residuals = helm.run.table, []
    for k, x in enumerate(seen):
        alpha, sigma = float(table.alpha[k]), float(table.sigma[k])
        residuals.append((x[..., 4:] - alpha * clean[..., 4:]) / sigma)
    for noise in residuals[1:]:  # the noise that the journey began with, at every level
        assert torch.allclose(noise, seen[0][..., 4:], atol=1e-4)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde", "unipc"])
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_img2img_starts_at_the_level_of_its_strength(sampler: str, strength: float) -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionImg2ImgPipeline")
    seen: list[torch.Tensor] = []
    pipe.unet.register_forward_pre_hook(lambda m, a, k: seen.append(a[0][:1]), with_kwargs=True)
    helm = tm.Helm(pipe)
    helm(**{**inputs, "strength": strength}, steps=8, seeds=[3], sampler=sampler)
    assert helm.run is not None
    table = helm.run.table
    assert table.steps == int(8 * strength)
    full = tm.Sampler(sampler, steps=8).compile(
        tm.Scheduler.from_config(pipe.scheduler.config).process
    )
    assert float(table.time[0]) == float(full.time[full.first_row(8 - table.steps)])
    assert len(seen) == table.nfe
    generator = torch.Generator().manual_seed(3)
    picture = pipe.image_processor.preprocess(inputs["image"])
    drawn = pipe.vae.encode(picture).latent_dist.sample(generator) * pipe.vae.config.scaling_factor
    noise = torch.randn(drawn.shape, generator=generator)
    assert torch.allclose(
        seen[0], float(table.alpha[0]) * drawn + float(table.sigma[0]) * noise, atol=1e-5
    )


def test_base_and_refiner_share_one_journey() -> None:
    """SDXL's base until 60 % and its refiner from there are the whole journey of one model."""
    base = tiny.sdxl().to(torch.float64)
    refiner = StableDiffusionXLImg2ImgPipeline(**base.components)
    refiner.set_progress_bar_config(disable=True)
    asked = {
        k: v.double() if isinstance(v, torch.Tensor) else v for k, v in tiny.prompt(base).items()
    }
    whole = tm.Helm(base)(**asked, steps=10, seeds=[1], sampler="ddim").images
    first_half, second = tm.Helm(base), tm.Helm(refiner)
    half = first_half(**asked, steps=10, seeds=[1], sampler="ddim", denoising_end=0.6).images
    rest = {k: v for k, v in asked.items() if k not in ("height", "width")}
    made = second(
        **rest, image=half, steps=10, seeds=[1], sampler="ddim", denoising_start=0.6,
        original_size=(16, 16),
        target_size=(16, 16),
    ).images  # fmt: skip
    assert first_half.run is not None
    assert second.run is not None
    assert first_half.run.steps + second.run.steps == 10
    assert relative(made, whole) < 1e-9


def test_two_transformers_change_at_the_boundary_for_every_sampler() -> None:
    for sampler in ("euler", "dpmpp_2m_sde", "heun"):
        pipe, inputs = tiny.case("video", "WanPipeline (2.2)")
        who: list[str] = []
        for name in ("transformer", "transformer_2"):
            getattr(pipe, name).patch_embedding.register_forward_pre_hook(
                lambda m, a, n=name, who=who: who.append(n)
            )
        helm = tm.Helm(pipe)
        helm(**inputs, steps=6, seeds=[0], sampler=sampler, guidance=tm.cfg(3.0, until=0.5))
        assert helm.run is not None
        table, edge = helm.run.table, pipe.config.boundary_ratio * 1000
        expected = []
        for row in range(table.nfe):
            name = "transformer" if float(table.time[row]) >= edge else "transformer_2"
            expected += [name] * (1 if helm.run.guided.scales[row] == 1.0 else 2)
        assert who == expected
        assert len(set(who)) == 2


DRAWN = (
    "StableDiffusionImg2ImgPipeline",
    "FluxPipeline (true CFG)",
    "WanPipeline (2.1)",
    "StableDiffusion3Pipeline",
)


@pytest.mark.parametrize("key", DRAWN)
def test_a_sample_does_not_depend_on_its_batch_or_on_pictures_per_prompt(key: str) -> None:
    family = {"Flux": "flux", "WanP": "video"}.get(key[:4], "sd3" if "3" in key else "sd")
    pipe, inputs = tiny.case(family, key, torch.float64)
    inputs = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    helm = tm.Helm(pipe)
    many = "num_videos_per_prompt" if family == "video" else "num_images_per_prompt"
    options: dict[str, Any] = {
        "steps": 3,
        "sampler": "euler_ancestral" if family == "sd" else "euler",
    }
    both = first(helm(**inputs, **options, seeds=[4, 9], **{many: 2}))
    for i, seed in enumerate((4, 9)):
        alone = first(helm(**inputs, **options, seeds=[seed]))
        assert relative(both[i : i + 1], alone) < 1e-6


def test_inpainted_pictures_of_a_batch_are_those_they_would_be_alone() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionInpaintPipeline (4 channels)", torch.float64)
    helm = tm.Helm(pipe)
    options: dict[str, Any] = {"steps": 3, "sampler": "euler_ancestral"}
    twice = {
        k: [v] * 2 if k == "prompt" else v.repeat(2, 1, 1, 1)
        for k, v in inputs.items()
        if k in PER_SAMPLE
    }
    both = first(helm(**{**inputs, **twice}, **options, seeds=[4, 9]))
    for i, seed in enumerate((4, 9)):
        assert relative(both[i : i + 1], first(helm(**inputs, **options, seeds=[seed]))) < 1e-6


PER_SAMPLE = ("prompt", "image", "mask_image")


def test_a_branch_and_a_saved_run_are_continued_in_the_pipeline(tmp_path: Any) -> None:
    for key in ("StableDiffusionPipeline (v)", "StableDiffusionInpaintPipeline (4 channels)"):
        pipe, inputs = tiny.case("sd", key)
        helm = tm.Helm(pipe)
        kept: list[tm.Run] = []
        options: dict[str, Any] = {"steps": 5, "seeds": [3], "sampler": "dpmpp_2m_sde"}

        def keep(run: tm.Run, kept: list[tm.Run] = kept) -> None:
            if run.step == 3:
                kept.append(run.branch())
                run.save(tmp_path / "run.safetensors")

        whole = helm(**inputs, **options, hooks=[keep]).images
        assert torch.equal(helm(**inputs, **options, resume=kept[-1]).images, whole)
        loaded = tm.Run.load(tmp_path / "run.safetensors")
        assert torch.equal(helm(**inputs, **options, resume=loaded).images, whole)
        assert torch.equal(helm(**inputs, **options, resume=helm.run).images, whole)  # only decoded
    with pytest.raises(RunError, match="complete: go back"):
        helm(**inputs, steps=6, seeds=[3], sampler="dpmpp_2m_sde", resume=loaded)
    with pytest.raises(RunError, match="has made no step"):
        helm(**inputs, **options, resume=tm.Run(loaded.table, noise=lambda row, like: like))


# -- what is on the network already --------------------------------------------------------------
@pytest.mark.slow
def test_a_compiled_network_is_gated_and_left_compiled() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionPipeline (v)")
    plain = tm.Helm(pipe)(**inputs, steps=4, seeds=[0], guidance=tm.cfg(3.0, until=0.5)).images
    own = pipe.unet
    pipe.unet = torch.compile(own, backend="eager")
    before = pipe.unet.forward
    made = tm.Helm(pipe)(**inputs, steps=4, seeds=[0], guidance=tm.cfg(3.0, until=0.5)).images
    assert torch.allclose(made, plain, atol=1e-5)
    assert pipe.unet.forward is before
    pipe.unet = own
    own.compile(backend="eager")
    compiled = own._compiled_call_impl
    in_place = tm.Helm(pipe)(**inputs, steps=4, seeds=[0], guidance=tm.cfg(3.0, until=0.5)).images
    assert torch.allclose(in_place, plain, atol=1e-5)
    assert own._compiled_call_impl is compiled
    assert "forward" not in vars(own)


def test_hooks_and_forwards_that_others_put_on_the_network_stay() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionPipeline (v)")
    seen: list[int] = []
    handle = pipe.unet.register_forward_hook(lambda m, a, out: seen.append(1))
    inner = pipe.unet.forward

    def theirs(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    pipe.unet.forward = theirs  # as offloading libraries do
    tm.Helm(pipe)(**inputs, steps=3, seeds=[0], guidance=tm.cfg(3.0, until=0.5))
    assert pipe.unet.forward is theirs
    assert len(seen) == 3
    assert list(pipe.unet._forward_hooks) == [handle.id]


class Breaks(nn.Module):
    """A decoder that fails."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory, say")


@pytest.mark.parametrize(
    "key", ["StableDiffusionPAGPipeline", "StableDiffusionPipeline (v)", "FluxPipeline (true CFG)"]
)
@pytest.mark.parametrize("where", ["hook", "network", "decoder"])
def test_the_pipeline_is_as_before_whatever_raised(key: str, where: str) -> None:
    pipe, inputs = tiny.case("flux" if "Flux" in key else "sd", key)
    network = pipe.transformer if "Flux" in key else pipe.unet
    tm.Helm(pipe)(
        **inputs, steps=1, seeds=[0]
    )  # diffusers hangs a registry on some networks at their first call
    own, before = pipe.scheduler, dict(vars(network))
    processors = dict(network.attn_processors) if "PAG" in key else None
    config = dict(pipe.config)

    def fail(run: tm.Run) -> None:
        raise ValueError("on purpose")

    handle = None
    if where == "network":
        calls: list[int] = []

        def third(m: Any, a: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("out of memory, say")

        handle = next(
            m for m in network.modules() if isinstance(m, nn.Linear)
        ).register_forward_pre_hook(third)
    if where == "decoder":
        pipe.vae.decoder = Breaks()
    helm = tm.Helm(pipe)
    with pytest.raises((HookError, RuntimeError)):
        helm(
            **{**inputs, "output_type": "pt"},
            steps=3,
            seeds=[0],
            hooks=[fail] if where == "hook" else [],
        )
    assert pipe.scheduler is own
    assert vars(network).keys() == before.keys()
    assert dict(pipe.config) == config
    assert processors is None or network.attn_processors == processors
    if handle is not None:
        handle.remove()
    assert first(helm(**inputs, steps=2, seeds=[0])).isfinite().all()  # it can be called again


# -- refused before compute ------------------------------------------------------------------------
def test_video_with_sound_is_stopped_together_and_goes_back_together() -> None:
    pipe, inputs = tiny.case("video_new", "LTX2Pipeline")
    helm = tm.Helm(pipe)
    stepped: list[tm.Run] = []
    advance = tm.Run.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tm.Run, "advance", lambda run, raw: (stepped.append(run), advance(run, raw))[1]
        )
        helm(**inputs, steps=4, seeds=[0], hooks=[tm.stop_when(lambda run: run.step == 2)])
    video, sound = stepped[0], stepped[1]
    assert (video.step, sound.step) == (2, 2)
    assert torch.equal(sound.table.time, video.table.time)
    assert sound.stopping
    whole, seen = helm(**inputs, steps=4, seeds=[0]), []

    def back(run: tm.Run) -> None:
        seen.append(run.step)
        if seen == [1, 2, 3]:
            run.rewind(1)

    again = helm(**inputs, steps=4, seeds=[0], hooks=[back], keep=4)
    assert seen == [1, 2, 3, 1, 2, 3, 4]  # from the beginning: the sound keeps no states
    assert torch.equal(first(again), first(whole))
    assert torch.equal(again[1], whole[1])


def test_one_pipeline_does_one_call_at_a_time() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionPipeline (v)")
    helm = tm.Helm(pipe)

    def nested(run: tm.Run) -> None:
        with pytest.raises(RunError, match="at work in another call"):
            tm.Helm(pipe)(**inputs, steps=2)

    helm(**inputs, steps=2, seeds=[0], hooks=[nested])


def test_bad_input_is_refused_before_compute_with_the_remedy() -> None:
    pipe, inputs = tiny.case("sd", "StableDiffusionPipeline (v)")
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda m, a: calls.append(1))
    helm = tm.Helm(pipe)
    for bad, error, says in (
        ({"gudance_scale": 3}, UnknownName, "did you mean 'guidance_scale'"),
        ({"guidanc": 3}, UnknownName, "'guidance'"),
        ({"seeds": [1, 2, 3]}, ArgumentError, "3 seeds for a call of 1 sample: "),
        ({"hooks": [lambda: None]}, ArgumentError, "takes one argument, the run"),
        ({"hooks": [lambda run, step: None]}, ArgumentError, "takes one argument, the run"),
        ({"hooks": [tm.Hook]}, ArgumentError, "give an instance"),
    ):
        with pytest.raises(error, match=says):
            helm(**inputs, steps=2, **bad)
    with pytest.raises(ArgumentError, match="passed twice"):
        helm("a red apple", prompt="a green one", steps=2)
    assert calls == []


def test_a_pipeline_without_a_loop_of_its_own_is_refused() -> None:
    class Both:
        def __init__(self, scheduler: Any) -> None:
            self.scheduler = scheduler

        def __call__(self, prompt: str) -> None:
            """Calls two other pipelines."""

    both = Both(tiny.sd().scheduler)
    with pytest.raises(ModelError, match="no loop of its own"):
        tm.Helm(both)


def test_loops_that_count_their_turns_are_told_from_those_that_do_not() -> None:
    assert not counts(tiny.sd())
    assert not counts(tiny.svd())
    assert counts(tiny.case("sd", "StableDiffusionControlNetPipeline")[0])
    assert counts(tiny.case("sd", "StableDiffusionInpaintPipeline")[0])
    assert counts(object())
