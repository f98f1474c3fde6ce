"""Laws of pictures: what they show, how they are written, and that the sampler never waits."""

from __future__ import annotations

import json
import math
import os
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import timonel as tm
from timonel.errors import ArgumentError, ModelError, PreviewMissing
from timonel.hooks.collect import collect
from timonel.hooks.rgb import LatentRGB, to_images

PROCESS = tm.VP.from_schedule()
SHAPE = (4, 8, 8)
GENERATOR = torch.Generator().manual_seed(0)
PICTURE = torch.randn(SHAPE, generator=GENERATOR) * 0.8
RGB = LatentRGB(
    torch.tensor([[0.3, 0.1, 0.0, 0.0], [0.0, 0.3, 0.1, 0.0], [0.1, 0.0, 0.0, 0.3]]),
    torch.full((3,), 0.5),
)


def denoise(x, level, std=0.1):
    """The exact denoiser of data N(PICTURE, std²)."""
    gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
    return PICTURE + gain * (x - level.alpha * PICTURE)


def journey(
    hooks,
    *,
    steps=6,
    batch=1,
    sampler="dpmpp_2m/karras",
    denoiser=denoise,
    context=None,
    shape=SHAPE,
):
    """A started run with its context, driven to the end."""
    noise = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1))
    run = tm.Run(tm.Sampler(sampler, steps=steps).compile(PROCESS), hooks=hooks, context=context)
    run.start(noise)
    for _ in tm.iterate(run, denoiser):
        pass
    return run


def psnr(a, b):
    return -10 * math.log10((a.float() - b.float()).square().mean().item() + 1e-12)


def pixels(image):
    return (
        torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).float() / 255
    )


# -- the linear fit ------------------------------------------------------------------------------
def test_fit_recovers_the_matrix_and_reports_its_psnr():
    latents = torch.rand(3, 4, 6, 6, generator=GENERATOR) - 0.5
    images = RGB(latents).repeat_interleave(8, -1).repeat_interleave(8, -2)
    fit = LatentRGB.fit(latents, images)
    torch.testing.assert_close(fit.weight, RGB.weight, atol=1e-5, rtol=0)
    torch.testing.assert_close(fit.bias, RGB.bias, atol=1e-5, rtol=0)
    assert fit.psnr is not None
    assert fit.psnr > 100
    noisy = (images + 0.05 * torch.randn(images.shape, generator=GENERATOR)).clamp(0, 1)
    small = torch.nn.functional.avg_pool2d(noisy, 8)
    fit = LatentRGB.fit(latents, noisy)
    assert fit.psnr == pytest.approx(psnr(fit(latents), small), abs=0.01)


def test_a_card_gives_the_same_pictures_back():
    card = json.loads(
        json.dumps(LatentRGB(RGB.weight, RGB.bias, psnr=21.5).to_card(), allow_nan=False)
    )
    assert set(card) == {"weight", "bias", "psnr"}
    again = LatentRGB.from_card(card)
    assert torch.equal(again(PICTURE[None]), RGB(PICTURE[None]))
    assert again.psnr == 21.5
    for broken in (
        {},
        {"weight": [[1.0]], "bias": [0, 0, 0]},
        {"weight": "x", "bias": [0.0] * 3},
        3,
    ):
        with pytest.raises(ArgumentError):
            LatentRGB.from_card(broken)


def test_video_frames_are_found_where_the_model_has_them():
    frames = torch.randn(2, 5, 4, 3, 6, generator=GENERATOR)
    first = RGB(frames)
    assert first.shape == (2, 5, 3, 3, 6)
    torch.testing.assert_close(first[1, 2], RGB(frames[1, 2][None])[0])
    second = LatentRGB(RGB.weight, RGB.bias, frames_dim=2)(frames.transpose(1, 2))
    assert torch.equal(first, second)
    images = to_images(first)
    assert len(images) == 2
    assert images[0].size == (2 * 6, 3 * 3)  # 5 frames of 6 x 3 as a 2 x 3 grid
    assert torch.equal(
        pixels(images[1].crop((6, 0, 12, 3))), pixels(to_images(first[1, 1][None])[0])
    )


def test_half_precision_and_wild_values_become_valid_pixels():
    wild = torch.tensor([math.nan, math.inf, -math.inf, 3.0]).expand(1, 3, 2, 4)
    assert pixels(to_images(wild)[0]).unique().tolist() == [0.0, 1.0]
    assert RGB(PICTURE[None].half()).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused():
    for bad in (torch.zeros(4, 8, 8), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(ArgumentError):
            RGB(bad)
    with pytest.raises(ArgumentError, match="belong together"):
        LatentRGB.fit(torch.zeros(2, 4, 8, 8), torch.zeros(1, 3, 64, 64))
    with pytest.raises(ArgumentError, match="more pictures"):
        LatentRGB.fit(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ArgumentError, match="frames_dim"):
        LatentRGB(RGB.weight, RGB.bias, frames_dim=3)


# -- what a preview shows ------------------------------------------------------------------------
def test_a_preview_shows_the_prediction_and_not_the_noise(tmp_path):
    noisy = {}

    def watch(run):
        noisy[run.step] = pixels(to_images(RGB(run.latents), 256)[0])

    run = journey([tm.preview(tmp_path, rgb=RGB), watch], steps=8)
    final = pixels(to_images(RGB(run.result), 256)[0])
    shown = pixels(Image.open(tmp_path / "step-01.png"))
    assert psnr(shown, final) > psnr(noisy[1], final) + 10
    assert torch.equal(pixels(Image.open(tmp_path / "step-08.png")), final)


def test_pictures_are_named_by_step_and_sample_and_the_last_step_is_always_there(tmp_path):
    journey([tm.preview(tmp_path / "one", every=4, rgb=RGB)], steps=6)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["step-04.png", "step-06.png"]
    journey([tm.preview(tmp_path / "two", every=6, rgb=RGB)], steps=6, batch=2)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        "step-06-0.png",
        "step-06-1.png",
    ]
    journey(
        [tm.preview(tmp_path / "three", every=4, rgb=RGB), tm.stop_when(lambda run: run.step == 2)],
        steps=6,
    )
    assert sorted(p.name for p in (tmp_path / "three").iterdir()) == ["step-02.png"]


def test_small_previews_are_enlarged_without_smoothing():
    pictures = []
    journey([tm.preview(lambda run, images: pictures.extend(images), every=6, rgb=RGB, block=True)])
    (image,) = pictures
    assert image.size == (256, 256)
    assert (
        image.resize((8, 8), Image.Resampling.NEAREST).resize((256, 256), Image.Resampling.NEAREST)
        == image
    )
    assert image.info["step"] == 6
    journey(
        [
            tm.preview(
                lambda run, images: pictures.extend(images), every=6, rgb=RGB, block=True, size=20
            )
        ]
    )
    assert pictures[-1].size == (24, 24)


def test_the_converter_is_the_given_one_then_the_models_then_a_full_decode():
    def sizes(context, **options):
        found = []
        hook = tm.preview(
            lambda run, images: found.append(images[0].size), every=6, block=True, **options
        )
        journey([hook], context=context)
        return found[0]

    def decode(latents):
        return torch.zeros(len(latents), 3, 40, 30)

    model = SimpleNamespace(latent_rgb=RGB, decode=decode)
    bare = SimpleNamespace(latent_rgb=None, decode=decode)
    assert sizes(model) == (256, 256)
    assert sizes(model, decode=True) == (30, 40)
    assert sizes(bare) == (30, 40)
    assert sizes(None, rgb=RGB) == (256, 256)
    assert sizes(None, decode=decode, size=80) == (60, 80)
    for context, options in ((None, {}), (bare, {"decode": False}), (None, {"decode": True})):
        with pytest.raises(ArgumentError, match="pass rgb="):
            sizes(context, **options)
    with pytest.raises(ArgumentError, match="not both"):
        tm.preview("x", rgb=RGB, decode=True)


def test_nothing_is_decoded_where_no_picture_is_due():
    calls = []

    def decode(latents):
        calls.append(len(latents))
        return torch.zeros(len(latents), 3, 8, 8)

    journey([tm.preview(lambda run, images: None, every=3, decode=decode)], steps=6)
    assert calls == [1, 1]


# -- the background thread -----------------------------------------------------------------------
def test_a_slow_viewer_drops_late_pictures_and_shows_the_last():
    gate, seen = threading.Event(), []

    def show(run, images):
        seen.append(images[0].info["step"])
        assert gate.wait(10)

    def release(run):
        if run.step == run.steps:
            gate.set()

    hook = tm.preview(show, rgb=RGB)
    run = journey([hook, release], steps=10)
    assert run.status == "done"
    assert seen[-1] == 10
    assert len(seen) <= 2
    assert hook.dropped == 10 - len(seen)


def test_with_block_every_picture_is_shown_in_order():
    seen = []

    def show(run, images):
        time.sleep(0.002)
        seen.append(images[0].info["step"])

    journey([tm.preview(show, rgb=RGB, block=True)], steps=20)
    assert seen == list(range(1, 21))


def test_an_error_in_the_viewer_is_said_once_and_the_run_goes_on():
    seen = []

    def show(run, images):
        seen.append(images[0].info["step"])
        raise KeyError("window closed")

    with pytest.warns(PreviewMissing, match="'window closed'; the run goes on") as said:
        run = journey([tm.preview(show, rgb=RGB, block=True)], steps=5)
    assert run.status == "done"
    assert seen == [1, 2, 3, 4, 5]  # it is called again, for the next may work
    assert len(said) == 1


@pytest.mark.parametrize("hook", [tm.preview, lambda to, **options: collect(**options)])
def test_a_decode_that_raises_in_the_middle_is_said_once_and_the_run_goes_on(hook):
    calls = []

    def decode(latents):
        calls.append(len(latents))
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory")
        return torch.zeros(len(latents), 3, 8, 8)

    with pytest.warns(
        PreviewMissing, match="no more pictures of this run: RuntimeError: CUDA out of memory"
    ) as said:
        run = journey([hook(lambda run, images: None, decode=decode)], steps=5)
    assert run.status == "done"
    assert len(said) == 1
    assert len(calls) == 2  # what cannot be decoded is not tried at every step
    torch.testing.assert_close(run.result, journey([], steps=5).result, atol=0, rtol=0)


def test_the_next_run_of_a_hook_is_shown_and_says_again():
    broken = [True]

    def decode(latents):
        if broken:
            raise ValueError("no")
        return torch.zeros(len(latents), 3, 8, 8)

    story = collect(decode=decode)
    for _ in range(2):
        with pytest.warns(PreviewMissing):
            journey([story], steps=2)
    broken.clear()
    journey([story], steps=2)
    assert [moment.step for moment, _ in story.frames] == [1, 2]


def test_a_warning_that_is_an_error_does_not_end_the_run_either(caplog):
    def decode(latents):
        raise ValueError("no")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert journey([collect(decode=decode)], steps=3).status == "done"
    assert caplog.text.count("no more pictures") == 1


def test_the_linear_picture_that_fails_gives_way_to_the_full_one():
    def small(latents):
        raise ModelError("no map fits")

    seen = []
    model = SimpleNamespace(
        small=small, latent_rgb=None, decode=lambda x: torch.zeros(len(x), 3, 40, 30)
    )
    journey(
        [tm.preview(lambda run, images: seen.append(images[0].size), block=True)],
        steps=3,
        context=model,
    )
    assert seen == [(30, 40)] * 3
    with pytest.warns(PreviewMissing, match="no map fits"):
        journey([tm.preview(lambda run, images: None, decode=False)], steps=3, context=model)


def test_a_picture_is_never_half_written(tmp_path, monkeypatch):
    journey([tm.preview(tmp_path, every=6, rgb=RGB)])
    before = (tmp_path / "step-06.png").read_bytes()

    def torn(self, path, *rest, **options):
        path.write_bytes(b"\x89PNG half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.warns(PreviewMissing, match="No space left") as said:
        assert journey([tm.preview(tmp_path, rgb=RGB)]).status == "done"
    assert len(said) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-06.png"]
    assert (tmp_path / "step-06.png").read_bytes() == before


def test_a_reader_of_the_folder_only_ever_sees_whole_pictures(tmp_path):
    done, broken, opened = threading.Event(), [], []

    def read():
        while not (done.is_set() and (opened or broken)):
            for path in tmp_path.glob("step-*.png"):
                try:
                    with Image.open(path) as image:
                        image.load()
                    opened.append(path.name)
                except Exception as error:
                    broken.append(repr(error))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        journey([tm.preview(tmp_path, rgb=RGB, size=512)], steps=6)
    done.set()
    reader.join()
    assert opened
    assert broken == []


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "x").write_text("")
    for make in (tm.preview, tm.save_steps):
        with pytest.raises(ArgumentError, match="is a file"):
            make(tmp_path / "x")
    with pytest.raises(ArgumentError, match="give a folder"):
        tm.preview(3)


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    (tmp_path / "x").write_text("")
    inside = tmp_path / "x" / "frames"
    for make in (
        tm.preview,
        tm.save_steps,
        lambda folder: tm.checkpoint(folder / "run.safetensors"),
    ):
        with pytest.raises(ArgumentError, match="cannot write"):
            make(inside)
    tm.preview(tmp_path / "new" / "frames")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "x"
    ]  # nothing is left behind by a hook without a run


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root"
)
def test_a_folder_without_permission_is_refused_before_the_run(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArgumentError, match="Permission denied"):
        tm.preview(tmp_path)


# -- stories -------------------------------------------------------------------------------------
def test_a_story_becomes_a_labelled_sheet_and_an_animation(tmp_path):
    story = collect(rgb=RGB, size=96)
    journey([story], steps=6)
    assert [moment.step for moment, _ in story.frames] == [1, 2, 3, 4, 5, 6]
    assert story.frames[0][0].label == "step 1 · σ 14.61"
    with Image.open(story.contact_sheet(tmp_path / "sheet.png", columns=3)) as sheet:
        assert sheet.width == 3 * 96 + 4 * 8
        assert (
            len(set(sheet.crop((8, 8 + 96, sheet.width, 8 + 96 + 18)).convert("L").tobytes())) > 2
        )  # text
    for name in ("steps.gif", "steps.webp"):
        with Image.open(story.animation(tmp_path / name, fps=10)) as film:
            times = []
            for i in range(film.n_frames):
                film.seek(i)
                film.load()
                times.append(film.info["duration"])
            assert times == [100] * 5 + [1500]
            assert film.info["loop"] == 0
    for call in (
        lambda: story.animation(tmp_path / "steps.mp4"),
        lambda: collect(rgb=RGB).contact_sheet("x.png"),
    ):
        with pytest.raises(ArgumentError):
            call()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sheet.png", "steps.gif", "steps.webp"]


def test_a_story_holds_no_more_than_its_limit_and_still_ends_with_the_last_step():
    story = collect(limit=5, rgb=RGB, size=8)
    journey([story], steps=37, sampler="ddim/leading")
    steps = [moment.step for moment, _ in story.frames]
    assert len(steps) <= 5
    assert steps == [8, 16, 24, 32, 37]


def test_a_rewound_run_tells_its_story_anew():
    story, rewound = collect(rgb=RGB, size=8), []

    def back(run):
        if run.step == 4 and not rewound:
            rewound.append(run.rewind(2))

    journey([story, back], steps=6)
    assert [moment.step for moment, _ in story.frames] == [1, 2, 3, 4, 5, 6]


def test_a_still_picture_stays_as_long_as_its_frames(tmp_path):
    story = collect(rgb=RGB, size=8)
    journey([story], steps=4, denoiser=lambda x, level: PICTURE.expand_as(x).clone())
    with Image.open(story.animation(tmp_path / "a.gif", fps=10)) as film:
        assert film.n_frames == 1


# -- latents on disk -----------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["denoised", "latents", "both"])
def test_saved_steps_hold_what_the_run_held(tmp_path, what):
    held = []
    hooks = [
        tm.save_steps(tmp_path, what),
        lambda run: held.append((run.denoised.clone(), run.latents.clone())),
    ]
    journey(hooks, steps=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-0{i}.safetensors" for i in (1, 2, 3)
    ]
    for i, (clean, x) in enumerate(held, 1):
        with safe_open(tmp_path / f"step-0{i}.safetensors", framework="pt") as file:
            assert set(file.keys()) == ({"denoised", "latents"} if what == "both" else {what})
            for name, tensor in (("denoised", clean), ("latents", x)):
                assert name not in file.keys() or torch.equal(file.get_tensor(name), tensor)  # noqa: SIM118
            assert json.loads(file.metadata()["timonel"])["step"] == i


def test_what_to_save_is_one_of_three():
    with pytest.raises(ArgumentError, match="one of"):
        tm.save_steps("x", "noise")
