"""Stable Video Diffusion with its real config: sigma 700 … 0.002, v, 0.25·log sigma."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from PIL import Image

import timonel as tm
from support import tiny
from timonel.core.solvers import SOLVERS
from timonel.errors import ArgumentError

FRAMES = 3
# AYS' published sigmas for SVD, as diffusers ships them
AYS = AysSchedules["StableDiffusionVideoSigmas"]


@pytest.fixture
def pipe() -> Any:
    return tiny.svd().to(torch.float64)


def call(count: int = 1, **more: Any) -> dict[str, Any]:
    made = {"image": tiny.still(count).double(), "height": 16, "width": 16, "num_frames": FRAMES}
    return {**made, "output_type": "latent", **more}


class Told:
    """What reaches the inside of the network: its times and its batch sizes."""

    def __init__(self, pipe: Any) -> None:
        self.times: list[float] = []
        self.batches: list[int] = []
        self.largest = 0.0
        pipe.unet.time_proj.register_forward_pre_hook(
            lambda m, a: self.times.append(float(a[0][0]))
        )
        pipe.unet.conv_in.register_forward_pre_hook(self.see)

    def see(self, module: Any, args: tuple[Any, ...]) -> None:
        self.batches.append(len(args[0]) // FRAMES)
        self.largest = max(self.largest, float(args[0][:, :4].abs().max()))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_euler_on_karras_is_diffusers_own(pipe: Any) -> None:
    theirs = pipe(
        **call(), num_inference_steps=10, generator=torch.Generator().manual_seed(3)
    ).frames
    ours = tm.Helm(pipe)(**call(), sampler="euler/karras", steps=10, seeds=[3]).frames
    assert relative(ours, theirs) < 1e-4  # measured 1e-5: diffusers computes its levels in float32


@pytest.mark.parametrize("sampler", [n for n, spec in SOLVERS.items() if not spec.reads_uncond])
def test_every_sampler_tells_the_network_a_quarter_of_log_sigma(pipe: Any, sampler: str) -> None:
    told, helm = Told(pipe), tm.Helm(pipe)
    made = helm(**call(), sampler=sampler, steps=6, seeds=[1]).frames
    assert helm.run is not None
    table = helm.run.table
    ratio = (table.sigma[:-1] / table.alpha[:-1]).tolist()
    rows = [told.times[i] for i in range(table.nfe)]
    assert rows == pytest.approx([0.25 * math.log(s) for s in ratio], abs=1e-5)
    assert ratio[0] == pytest.approx(700)
    assert made.isfinite().all()


def test_karras_and_ays_times_are_those_of_diffusers_euler(pipe: Any) -> None:
    theirs = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    for sampler, options in (
        ("dpmpp_2m_sde/karras", {"num_inference_steps": 10}),
        ("euler/ays_svd", {"sigmas": AYS}),
    ):
        told = Told(pipe)
        theirs.set_timesteps(**options)
        tm.Helm(pipe)(**call(), sampler=sampler, steps=10, seeds=[1])
        assert told.times[-10:] == pytest.approx(theirs.timesteps.tolist(), abs=1e-4)


def test_sigmas_of_the_pipelines_own_argument_are_visited(pipe: Any) -> None:
    told = Told(pipe)
    tm.Helm(pipe)(**call(), sampler="dpmpp_2m", sigmas=[*AYS[:-1], 0.0], seeds=[1])
    assert told.times == pytest.approx([0.25 * math.log(s) for s in AYS[:-1]], abs=1e-5)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde/karras", "euler_ancestral", "edm"])
def test_a_seed_gives_the_same_video_alone_in_a_batch_and_again(pipe: Any, sampler: str) -> None:
    helm = tm.Helm(pipe)
    options: dict[str, Any] = {"sampler": sampler, "steps": 4, "guidance": tm.cfg(2.0, until=0.5)}
    many = helm(**call(2), seeds=[5, 6], **options).frames
    torch.manual_seed(99)
    for i, seed in enumerate((5, 6)):
        alone = helm(
            **call(image=tiny.still(2).double()[i : i + 1]), seeds=[seed], **options
        ).frames
        assert relative(many[i : i + 1], alone) < 1e-6
    assert relative(many[:1], many[1:]) > 1e-3


def test_several_videos_of_one_picture_have_a_seed_each(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    many = helm(**call(), seeds=[5, 6], steps=3, num_videos_per_prompt=2).frames
    for i, seed in enumerate((5, 6)):
        assert relative(many[i : i + 1], helm(**call(), seeds=[seed], steps=3).frames) < 1e-6
    with pytest.raises(ArgumentError, match="2 seeds for a call of 3 samples"):
        helm(**call(), seeds=[5, 6], num_videos_per_prompt=3)


def test_guidance_that_grows_over_the_frames_is_switched_off_at_40_percent(pipe: Any) -> None:
    told, helm = Told(pipe), tm.Helm(pipe)
    helm(
        **call(),
        steps=10,
        seeds=[0],
        min_guidance_scale=1.0,
        max_guidance_scale=3.0,
        guidance=tm.cfg(until=0.4),
    )
    assert told.batches == [2] * 4 + [1] * 6


def test_the_scale_is_the_last_frames_and_varies_as_the_pipelines_own(pipe: Any) -> None:
    helm, steps = tm.Helm(pipe), 4
    own = [helm(**call(), steps=steps, seeds=[0], max_guidance_scale=s).frames for s in (4.0, 2.0)]
    for scale, expected in zip((4.0, 2.0), own, strict=True):
        assert (
            relative(helm(**call(), steps=steps, seeds=[0], guidance=scale).frames, expected)
            < 1e-12
        )
        constant = helm(**call(), steps=steps, seeds=[0], guidance=tm.cfg([scale] * steps)).frames
        assert relative(constant, expected) < 1e-12
    mixed = tm.cfg([4.0, 2.0, 2.0, 2.0])
    by_list = helm(**call(), steps=steps, seeds=[0], guidance=mixed, sampler="euler").frames

    def lower(pipeline: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        grown = torch.linspace(1.0, 2.0, FRAMES, dtype=torch.float64).reshape(1, FRAMES, 1, 1, 1)
        pipeline._guidance_scale = grown
        return kwargs

    by_callback = helm(
        **call(),
        steps=steps,
        seeds=[0],
        max_guidance_scale=4.0,
        callback_on_step_end=lower,
        sampler="euler",
    ).frames
    assert relative(by_list, by_callback) < 1e-12


def test_outside_the_interval_every_frame_is_the_conditional_one(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    off = helm(**call(), steps=4, seeds=[0], guidance=tm.cfg([1.0, 1.0, 1.0, 1.0])).frames
    late = helm(**call(), steps=4, seeds=[0], guidance=tm.cfg(between=(0.9, 1.0))).frames
    assert relative(late, off) < 1e-12
    assert relative(helm(**call(), steps=4, seeds=[0]).frames, off) > 1e-6


def test_latents_stay_of_order_one_at_sigma_700_in_half_precision() -> None:
    pipe = tiny.svd().to(torch.bfloat16)
    told = Told(pipe)
    made = tm.Helm(pipe)(
        **call(image=tiny.still().bfloat16()), steps=3, seeds=[0], sampler="dpmpp_2m_sde"
    ).frames
    assert made.isfinite().all()
    assert told.largest < 10


def test_stop_pause_and_edit_work_where_the_pipeline_has_no_interrupt(pipe: Any) -> None:
    told, helm = Told(pipe), tm.Helm(pipe)
    edited: list[torch.Tensor] = []

    def steer(run: tm.Run) -> None:
        if run.step == 2:
            run.latents[:, 1] += 0.3  # the second frame
            edited.append(run.latents.clone())
            run.pause()
            threading.Timer(0.05, run.resume).start()
        if run.step == 4:
            run.stop("enough")

    made = helm(**call(), steps=8, seeds=[0], hooks=[steer]).frames
    assert helm.run is not None
    assert (helm.run.status, helm.run.step, len(told.batches)) == ("stopped", 4, 4)
    assert torch.equal(made, helm.run.denoised)
    plain = helm(
        **call(), steps=8, seeds=[0], hooks=[tm.stop_when(lambda run: run.step == 4)]
    ).frames
    assert relative(made, plain) > 1e-3


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_previews_show_every_frame_and_decode_in_chunks(tmp_path: Path, chunk: int | None) -> None:
    pipe = tiny.svd()
    sizes: list[int] = []
    pipe.vae.decoder.register_forward_pre_hook(lambda m, a: sizes.append(len(a[0])))
    helm = tm.Helm(pipe)
    asked = call(image=tiny.still(), decode_chunk_size=chunk)
    helm(**asked, steps=2, seeds=[0], hooks=[tm.preview(tmp_path, decode=True)])
    assert sizes == {1: [1, 1, 1], 2: [2, 1], None: [3]}[chunk] * 2
    with Image.open(tmp_path / "step-01.png") as picture:
        assert picture.width * picture.height >= FRAMES * 16 * 16
    assert helm.run is not None
    clean = helm.run.denoised
    assert helm.context.decode(clean).shape == (1, FRAMES, 3, 16, 16)
    theirs = pipe.decode_latents(clean, FRAMES, 1).transpose(1, 2)
    ours = helm.context.decode(clean) * 2 - 1
    assert chunk != 1 or torch.allclose(ours, theirs.clamp(-1, 1), atol=1e-5)
    linear = helm.context.latent_rgb
    assert linear is not None
    assert linear(clean).shape == (1, FRAMES, 3, 8, 8)


def test_four_frames_of_four_channels_are_not_mixed_up() -> None:
    helm = tm.Helm(tiny.svd())
    helm.context.call = {"decode_chunk_size": 4}
    latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one = helm.context.decode(latents)
    theirs = helm.pipe.decode_latents(latents, 4, 4).transpose(1, 2)
    assert torch.allclose(one * 2 - 1, theirs.clamp(-1, 1), atol=1e-5)


def test_video_is_decoded_after_a_stop_and_the_pipeline_is_as_before() -> None:
    pipe = tiny.svd()
    own = pipe.scheduler
    made = tm.Helm(pipe)(
        **call(image=tiny.still(), output_type="pil"),
        steps=5,
        seeds=[0],
        hooks=[tm.stop_when(lambda run: run.step == 2)],
    ).frames
    assert len(made[0]) == FRAMES
    assert pipe.scheduler is own
    assert "forward" not in vars(pipe.unet)
