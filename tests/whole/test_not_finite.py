"""Law: NaN or infinity from a network or an autoencoder is said; no door hands on a black picture
as if it were one.

Some networks are broken in their last layer, some overflow in half precision as published
autoencoders do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import timonel as tm
from support import saved, tiny
from support.tuned_models import brief, mixture
from timonel import compat, exact
from timonel.cli import app
from timonel.errors import GuardStop, RunError, TimonelError
from timonel.make.animate import animate
from timonel.pipelines.decode.not_finite import Decoded
from timonel.tuning import fit_model

__all__ = ["brief"]
VP = tm.VP.from_schedule()
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
CALL = {"prompt": "pizza", "height": 32, "width": 32}


def broken(value: float, only: int | None = None) -> Callable[[Tensor, Any], Tensor]:
    """A network whose output has one wrong number, in every sample or in one."""

    def denoise(x: Tensor, at: Any) -> Tensor:
        made = torch.tanh(x)
        made[slice(None) if only is None else only, 0, 0, 0] = value
        return made

    return denoise


@pytest.fixture
def pipe() -> Any:
    made = saved.PIPES["sd15"].build()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "heun", "lcm", "unipc"])
@pytest.mark.parametrize(
    "guidance", [None, 3.0, tm.cfg(3.0, rescale=0.7)], ids=["unguided", "guided", "rescaled"]
)
def test_the_native_loop_says_it(value: float, sampler: str, guidance: Any) -> None:
    def go(network: Any) -> Tensor:
        other = None if guidance is None else lambda x, at: 0.9 * torch.tanh(x)
        return tm.sample(
            network, START, sampler, process=VP, prediction="v", steps=4, seeds=[0, 1],
            unconditional=other,
            guidance=guidance,
        )  # fmt: skip

    with pytest.raises(GuardStop, match="every sample has NaN or infinity"):
        go(broken(value))
    with pytest.warns(RuntimeWarning, match="sample 1 of 2 has NaN or infinity"):
        assert bool(go(broken(value, only=1))[0].isfinite().all())


@pytest.mark.parametrize("name", sorted(n for n in compat.__all__ if n.endswith("Scheduler")))
def test_a_scheduler_of_compat_says_it(name: str) -> None:
    scheduler = getattr(compat, name)()
    scheduler.set_timesteps(4)
    with pytest.raises(GuardStop, match="NaN or infinity"):
        driven(scheduler)


def driven(scheduler: Any) -> Tensor:
    x = START.clone()
    for time in scheduler.timesteps:
        seen = (
            scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        )
        x = scheduler.step(broken(math.nan)(seen, time), time, x).prev_sample
    return x


# -- pipelines -----------------------------------------------------------------------------------
def spoil_network(pipe: Any) -> None:
    torch.nn.init.constant_(pipe.unet.conv_out.bias, math.nan)


def spoil_decoder(pipe: Any) -> None:
    torch.nn.init.constant_(pipe.vae.decoder.conv_out.bias, math.inf)


def overflow(pipe: Any) -> None:
    """In half precision 65,504 is the largest number."""
    with torch.no_grad():
        pipe.vae.decoder.conv_in.bias.fill_(60_000.0)
        pipe.vae.decoder.conv_norm_out.weight.fill_(60_000.0)
    pipe.to(torch.float16)


SPOILT = {
    spoil_network: "every sample has NaN",
    spoil_decoder: "check its weights",
    overflow: "run it in float32",
}
spoilt = pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
black = pytest.mark.filterwarnings(
    "ignore:invalid value encountered in cast"
)  # what diffusers leaves it at


@spoilt
@black
@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("output", ["pil", "np", "pt"])
def test_the_helm_says_it(pipe: Any, spoil: Any, scale: float, output: str) -> None:
    spoil(pipe)
    helm = tm.Helm(pipe)
    with pytest.raises(GuardStop, match=SPOILT[spoil]):
        helm(**CALL, steps=2, guidance_scale=scale, output_type=output)
    with pytest.raises(GuardStop, match=SPOILT[spoil]):
        helm.start(**CALL, steps=2, guidance_scale=scale, output_type=output).result()
    assert not pipe.vae.decoder._forward_hooks


@black
def test_the_helm_warns_of_one_picture_of_two(pipe: Any) -> None:
    decode = pipe.vae.decoder.forward

    def half(z: Tensor, *rest: Any) -> Tensor:
        made = decode(z, *rest).clone()
        made[1] = math.nan
        return made

    pipe.vae.decoder.forward = half
    with pytest.warns(RuntimeWarning, match="a part of the pictures"):
        first, second = tm.Helm(pipe)(**CALL, num_images_per_prompt=2, steps=2).images
    assert np.asarray(first).std() > 0
    assert np.asarray(second).std() == 0


@pytest.mark.parametrize(
    "scheduler", [tm.Scheduler, compat.EulerDiscreteScheduler], ids=["timonel", "compat"]
)
def test_a_plain_call_with_our_scheduler_says_it(pipe: Any, scheduler: Any) -> None:
    spoil_network(pipe)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    with pytest.raises(GuardStop, match="NaN or infinity"):
        pipe(**CALL, num_inference_steps=2)


# -- pictures that a call begins with, and videos --------------------------------------------------
def spoil_encoder(pipe: Any) -> None:
    torch.nn.init.constant_(pipe.vae.encoder.conv_out.bias, math.nan)


def encode_too_large(pipe: Any) -> None:
    """In half precision 65,504 is the largest number."""
    with torch.no_grad():
        pipe.vae.encoder.conv_norm_out.weight.fill_(60_000.0)
        pipe.vae.encoder.conv_norm_out.bias.fill_(60_000.0)
    pipe.to(torch.float16)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(spoil_encoder, "begins with: check its weights"), (encode_too_large, "float32")],
)
def test_a_picture_that_is_encoded_wrongly_is_said_before_the_network_is_called(
    pipe: Any, spoil: Any, said: str
) -> None:
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    spoil(other)
    calls: list[int] = []
    other.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(GuardStop, match=said):
        tm.Helm(other)("pizza", image=Image.new("RGB", (32, 32), "red"), steps=4)
    assert not calls
    assert not other.vae.encoder._forward_hooks


def test_a_picture_with_infinity_in_it_is_said(pipe: Any) -> None:
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(GuardStop, match="check the picture or tensor that was passed"):
        tm.Helm(other)("pizza", image=torch.full((1, 3, 32, 32), math.nan), steps=4)


def spoil_one_frame(pipe: Any) -> None:
    decode = pipe.vae.decoder.forward

    def one(*args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = decode(*args, **kwargs).clone()
        made[1] = math.nan
        return made

    pipe.vae.decoder.forward = one


VIDEOS = {
    spoil_network: "NaN or infinity", spoil_encoder: "the picture that the call begins with",
    spoil_decoder: "of all of the pictures", spoil_one_frame: "of a part of the pictures",
}  # fmt: skip
videos = pytest.mark.parametrize("spoil", VIDEOS, ids=lambda spoil: spoil.__name__)


@videos
@black
def test_a_video_is_not_made_with_black_frames(spoil: Any, tmp_path: Path) -> None:
    pipe = tiny.svd()
    spoil(pipe)
    picture, size = Image.new("RGB", (16, 16), "red"), {"width": 16, "height": 16, "num_frames": 3}
    with pytest.raises(GuardStop, match=VIDEOS[spoil]):
        animate(picture, tmp_path / "clip.gif", helm=tm.Helm(pipe), steps=2, **size)
    assert not list(tmp_path.iterdir())


@black
def test_one_video_of_two_that_has_a_black_frame_is_a_warning() -> None:
    pipe = tiny.svd()
    spoil_one_frame(pipe)
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    size = {"width": 16, "height": 16, "num_frames": 3, "decode_chunk_size": 6}
    with pytest.warns(RuntimeWarning, match="a part of the pictures"):
        frames = tm.Helm(pipe)(pictures, steps=2, seeds=[0, 1], **size).frames
    assert [[np.asarray(one).std() > 0 for one in video] for video in frames] == [
        [True, False, True],
        [True] * 3,
    ]


@black
@pytest.mark.parametrize("values", [[1.0, math.nan], [math.nan, math.nan]], ids=["one", "both"])
def test_tiles_count_for_the_sample_that_they_are_of(values: list[float]) -> None:
    """Tiles of two pictures are decoded for both at once."""
    pipe = tiny.sd()
    seen, made = torch.tensor(values).reshape(2, 1, 1, 1), Decoded(pipe)
    with made:
        for _ in range(3):
            made._look(pipe.vae.decoder, (), seen.expand(2, 3, 8, 8))
    if not any(math.isfinite(value) for value in values):
        with pytest.raises(GuardStop, match="of all"):
            made.check(2)
    else:
        with pytest.warns(RuntimeWarning, match="a part"):
            made.check(2)


# -- commands ------------------------------------------------------------------------------------
@pytest.fixture
def folder(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    def made(spoil: Any) -> str:
        spoil(pipe)
        pipe.to(torch.float32).save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    monkeypatch.chdir(tmp_path)
    return made


@black
@pytest.mark.parametrize("spoil", [spoil_network, spoil_decoder], ids=lambda spoil: spoil.__name__)
def test_generate_says_it_and_writes_no_picture(folder: Any, spoil: Any, tmp_path: Path) -> None:
    words = [
        "generate",
        "pizza",
        "--model",
        folder(spoil),
        "--steps",
        "2",
        "--width",
        "32",
        "--height",
        "32",
    ]
    with pytest.raises(GuardStop, match="NaN or infinity"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not list((tmp_path / "out").glob("*"))


@videos
@black
def test_animate_says_it_and_writes_no_video(
    spoil: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny.svd()
    spoil(pipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("timonel.pipelines.load.load", lambda *_, **__: pipe)
    Image.new("RGB", (16, 16), "red").save("apple.png")
    words = ["--model", "tiny", "--steps", "2", "--frames", "3", "--width", "16", "--height", "16"]
    done = CliRunner().invoke(app, ["animate", "apple.png", *words])
    assert isinstance(done.exception, GuardStop), done.output
    assert done.exit_code != 0
    assert "NaN or infinity" in str(done.exception)
    assert not list((tmp_path / "out").glob("*"))


@black
@pytest.mark.parametrize("spoil", [spoil_network, spoil_decoder], ids=lambda spoil: spoil.__name__)
def test_compare_keeps_a_failure_with_its_reason(pipe: Any, spoil: Any, tmp_path: Path) -> None:
    spoil(pipe)
    told = tm.compare(
        pipe, "pizza", sampler="euler", steps=2, width=32, height=32, seeds=2, out=tmp_path / "out",
        references=False, progress=False,
    )  # fmt: skip
    for outcome in told.outcomes:
        assert outcome.status == "failed"
        assert "not finite" in outcome.reason or "NaN or infinity" in outcome.reason
    assert not list((tmp_path / "out").glob("pictures/*"))


@pytest.mark.usefixtures("brief")
def test_tune_refuses_targets_that_are_not_finite() -> None:
    model = mixture(0)
    answers = model.answers

    def wrong(queries: Any) -> Any:
        return [answer._replace(raw=answer.raw * math.nan) for answer in answers(queries)]

    object.__setattr__(model, "answers", wrong)
    with pytest.raises(TimonelError, match=r"finite|converge"):
        fit_model(model, steps=4, start="dpmpp_2m/karras", method="rows")


def test_an_exact_solution_says_it() -> None:
    with pytest.raises(RunError, match="converged"):
        exact.solve(lambda x, level: x * math.nan, START, VP, most=64)
