"""Law: what is done to a run in flight acts or is refused at once, and the run goes on; a run that
ended can go on.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import diffusers
import pytest
import torch

import timonel as tm
from support import tiny
from timonel.core.run import Run
from timonel.errors import ArgumentError, ModelError, RunError, TimonelError

VP = tm.VP.from_schedule()
# family, the argument that scales guidance; both halves in one call of the network, in two, per
# frame, and by a guider
GUIDED = {
    "StableDiffusionPipeline (v)": ("sd", "guidance_scale"),
    "FluxPipeline (true CFG)": ("flux", "true_cfg_scale"),
    "StableVideoDiffusionPipeline": ("video", "max_guidance_scale"),
    "WanPipeline (2.1)": ("video", "guidance_scale"),
    "StableDiffusion3Pipeline": ("sd3", "guidance_scale"),
    "StableDiffusionControlNetPipeline": ("sd", "guidance_scale"),
}  # fmt: skip


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output[0], torch.Tensor) else torch.as_tensor(output[0])


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) < 2e-4 * float(b.abs().max())


# -- guidance in flight ----------------------------------------------------------------------------
@pytest.mark.parametrize("key", GUIDED)
@pytest.mark.parametrize("begun", ["guidance", "argument", "interval"])
def test_a_scale_set_in_flight_is_that_scale_from_the_next_step_on(key: str, begun: str) -> None:
    family, argument = GUIDED[key]
    pipe, inputs = tiny.case(family, key)
    inputs.pop(argument, None)
    helm = tm.Helm(pipe)
    call: dict[str, Any] = {**inputs, "steps": 5, "seeds": [3], "sampler": "dpmpp_2m"}
    wanted = first(helm(**call, guidance=tm.cfg([3.0, 3.0, 9.0, 9.0, 1.0])))
    ways: dict[str, dict[str, Any]] = {
        "guidance": {"guidance": 3.0}, "argument": {argument: 3.0},
        "interval": {"guidance": tm.cfg(between=(0, 5), unit="step"), argument: 3.0},
    }  # fmt: skip

    def change(run: Run) -> None:
        if run.step in (2, 4):
            run.guidance = 9.0 if run.step == 2 else 1
            assert run.guidance == tm.cfg(9.0 if run.step == 2 else 1.0)

    assert near(first(helm(**call, **ways[begun], hooks=[change])), wanted)


def test_guidance_from_another_thread_waits_for_the_next_row() -> None:
    """Between the two calls of one row nothing changes, or a row would have halves of two
    guidances.
    """
    pipe, inputs = tiny.case("flux", "FluxPipeline (true CFG)")
    inputs.pop("true_cfg_scale")
    helm, calls = tm.Helm(pipe), list[int]()
    call: dict[str, Any] = {**inputs, "steps": 4, "seeds": [3], "sampler": "euler"}
    wanted = first(helm(**call, guidance=tm.cfg([3.0, 3.0, 9.0, 9.0])))

    def set_it() -> None:
        assert helm.run is not None
        helm.run.guidance = 9.0
        assert helm.run.guidance == tm.cfg(9.0)

    def fourth(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 4:  # the unconditional call of the second row
            other = threading.Thread(target=set_it)
            other.start()
            other.join(60)

    pipe.transformer.x_embedder.register_forward_pre_hook(fourth)
    assert near(first(helm(**call, guidance=3.0)), wanted)
    assert len(calls) == 8


@pytest.mark.parametrize(
    "bad", [True, "strong", [1.0, 2.0], object(), -3.0, float("nan"), lambda run: 4.0]
)
def test_what_is_no_guidance_is_refused_at_the_assignment_and_the_run_goes_on(bad: Any) -> None:
    helm = tm.Helm(tiny.sdxl())
    call: dict[str, Any] = {**tiny.prompt(helm.pipe), "steps": 4, "seeds": [1], "guidance": 3.0}

    def change(run: Run) -> None:
        with pytest.raises(ArgumentError):
            run.guidance = bad

    assert torch.equal(helm(**call, hooks=[change]).images, helm(**call).images)


@pytest.mark.parametrize(("family", "key", "options"), [
    ("sd", "StableDiffusionPipeline (v)", {"guidance": 1.0}),
    ("sd", "StableDiffusionPipeline (v)", {"guidance_scale": 1.0}),
    ("flux", "FluxPipeline (dev)", {}),
    ("flux", "FluxPipeline (schnell)", {}),
    ("sd", "StableDiffusionInstructPix2PixPipeline", {}),
])  # fmt: skip
def test_guidance_that_a_call_cannot_have_is_refused_at_once_and_the_run_goes_on(
    family: str, key: str, options: dict[str, Any]
) -> None:
    pipe, inputs = tiny.case(family, key)
    helm, refused = tm.Helm(pipe), list[str]()
    call: dict[str, Any] = {**inputs, "steps": 4, "seeds": [3], "sampler": "euler", **options}
    whole = first(helm(**call))

    def change(run: Run) -> None:
        with pytest.raises((ArgumentError, ModelError)) as error:
            run.guidance = 9.0
        refused.append(str(error.value))

    assert torch.equal(first(helm(**call, hooks=[change])), whole)
    assert len(refused) == 4
    if "guidance" in options:  # the remedy works
        assert "guidance=1.5" in refused[0]

        def raises(run: Run) -> None:
            if run.step < 3:
                run.guidance = 1.0 if run.step == 1 else 4.0

        made = first(helm(**{**call, "guidance": 1.5}, hooks=[raises]))
        assert near(made, first(helm(**{**call, "guidance": tm.cfg([1.5, 1.0, 4.0, 4.0])})))


def test_rescale_and_forecast_in_flight_act_from_the_next_row_on() -> None:
    helm = tm.Helm(tiny.sdxl())
    call: dict[str, Any] = {**tiny.prompt(helm.pipe), "steps": 8, "seeds": [1], "sampler": "euler"}
    counts: list[int] = []
    helm.pipe.unet.conv_in.register_forward_pre_hook(lambda m, a: counts.append(len(a[0])))

    def change(run: Run) -> None:
        if run.step == 2:
            run.guidance = tm.cfg(3.0, forecast=2)

    helm(**call, guidance=3.0, hooks=[change])
    assert counts == [
        2,
        2,
        2,
        2,
        1,
        2,
        1,
        2,
    ]  # the first two after the change are computed, as at a beginning

    def rescale(run: Run) -> None:
        if run.step == 2:
            run.guidance = tm.cfg(3.0, rescale=0.7)

    plain = helm(**call, guidance=3.0).images
    assert not torch.equal(helm(**call, guidance=3.0, hooks=[rescale]).images, plain)


def test_the_native_loop_and_a_scheduler_alone_refuse_what_they_cannot_do() -> None:
    run = tm.begin(torch.ones(1, 4), "euler", process=VP, steps=4)
    for at in tm.iterate(run, lambda x, level: x * 0.5):
        with pytest.raises(ArgumentError, match="unconditional"):
            at.guidance = 3.0
    assert run.status == "done"
    run = tm.begin(torch.ones(1, 4), "euler", process=VP, steps=4, guidance=2)
    for at in tm.iterate(run, lambda x, level: x * 0.5, lambda x, level: x * 0.1):
        with pytest.raises(ArgumentError, match="scale"):
            at.guidance = tm.cfg(until=0.5)
        at.guidance = 3.0
    assert run.status == "done"
    pipe = tiny.sdxl()
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler="euler")

    def change(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        with pytest.raises(ArgumentError, match="Helm"):
            pipe.scheduler.run.guidance = 3.0
        return tensors

    pipe(**tiny.prompt(pipe), num_inference_steps=3, callback_on_step_end=change)


# -- a rewound run has its picture -----------------------------------------------------------------
@pytest.mark.parametrize("keep", [0, 2, 8])
def test_a_paused_run_that_is_rewound_shows_the_picture_of_its_step(keep: int) -> None:
    """Also where the state was not kept: it computes up to the step and waits there."""
    run = tm.begin(
        torch.randn(1, 4, dtype=torch.float64), "dpmpp_2m", process=VP, steps=8, keep=keep
    )
    seen: dict[int, torch.Tensor] = {}
    shown: list[tuple[int, torch.Tensor, Any]] = []

    def control() -> None:
        for to in (4, 3, 1):
            while not (run.status == "paused" and run.step == max(seen)):
                time.sleep(0.001)
            run.rewind(to)
            for step in [s for s in seen if s > to]:
                del seen[step]
            while run.step != to or run._goto is not None:
                time.sleep(0.001)
            time.sleep(0.02)
            shown.append((run.step, run.denoised.clone(), run.called_at))
        run.resume()

    truth: dict[int, torch.Tensor] = {}
    for at in tm.iterate(
        tm.begin(run.latents, "dpmpp_2m", process=VP, steps=8), lambda x, level: x * 0.5
    ):
        truth[at.step] = at.denoised
    thread = threading.Thread(target=control)
    thread.start()
    for at in tm.iterate(run, lambda x, level: x * 0.5):
        seen[at.step] = at.denoised
        if at.step == 6 and not shown:
            at.pause()
    thread.join(60)
    assert [step for step, _, _ in shown] == [4, 3, 1]
    for step, clean, level in shown:
        assert torch.equal(clean, truth[step])
        assert level == run.program.levels[step - 1]
    assert run.status == "done"


def test_a_saved_and_a_branched_run_have_their_picture(tmp_path: Any) -> None:
    run = tm.begin(torch.randn(1, 4), "dpmpp_2m", process=VP, steps=8, keep=8)
    for at in tm.iterate(run, lambda x, level: x * 0.5):
        if at.step == 5:
            at.stop()
    run.save(tmp_path / "run.safetensors")
    for other in (Run.load(tmp_path / "run.safetensors"), run.branch()):
        assert torch.equal(other.denoised, run.denoised)
        assert torch.equal(other.result, run.result)
        assert other.called_at == run.called_at
    twin = run.branch()
    twin.rewind(2)
    twin.proceed()
    assert twin.step == 2
    assert twin.called_at == run.program.levels[1]


def test_a_handle_shows_every_step_it_is_sent_to_and_the_noise_at_the_start() -> None:
    helm = tm.Helm(tiny.sdxl())
    reached = threading.Event()

    def pause(run: Run) -> None:
        if run.step == 4 and not reached.is_set():
            run.pause()
            reached.set()

    handle = helm.start(**tiny.prompt(helm.pipe), steps=6, seeds=[1], keep=6, hooks=[pause])
    assert reached.wait(60)
    for step in (3, 1, 0):
        handle.rewind(step)
        while handle.step != step:
            time.sleep(0.005)
        time.sleep(0.05)
        assert handle.preview()[0].size == (8, 8)
        assert handle.preview(decode=True)[0].size == (16, 16)
    handle.resume()
    assert torch.equal(
        handle.result(60).images, helm(**tiny.prompt(helm.pipe), steps=6, seeds=[1]).images
    )


# -- a run that ended goes on ----------------------------------------------------------------------
ENDS = ("stop", "interrupt", "failure", "hook")
LOOPS = {
    "StableDiffusionPipeline (v)": "sd", "StableDiffusionInpaintPipeline (4 channels)": "sd",
    "StableDiffusionControlNetPipeline": "sd", "WanPipeline (2.2)": "video",
    "StableVideoDiffusionPipeline": "video",
}  # fmt: skip
ENDED = [(key, end) for key in LOOPS for end in ENDS if end == "interrupt" or "Video" not in key]


@pytest.mark.parametrize(("key", "end"), ENDED)
def test_a_run_that_was_ended_goes_on_to_the_picture_of_the_whole_run(key: str, end: str) -> None:
    pipe, inputs = tiny.case(LOOPS[key], key)
    helm, calls = tm.Helm(pipe), list[int]()
    call: dict[str, Any] = {**inputs, "steps": 6, "seeds": [3], "sampler": "dpmpp_2m_sde"}
    whole = first(helm(**call))
    network = getattr(pipe, "unet", None) or pipe.transformer
    limit = 4 if end in ("interrupt", "failure") else 10**6

    def breaks(module: Any, args: Any) -> None:
        calls.append(1)
        if len(calls) == limit:
            raise KeyboardInterrupt if end == "interrupt" else RuntimeError("out of memory, say")

    def ends(run: Run) -> None:
        if run.step == 3 and end == "hook":
            raise ValueError("on purpose")
        if run.step >= 3 and end == "stop":
            run.stop("enough")

    held = next(
        m for m in network.modules() if isinstance(m, torch.nn.Linear)
    ).register_forward_pre_hook(breaks)
    if end == "stop":
        assert not torch.equal(first(helm(**call, hooks=[ends])), whole)
    else:
        with pytest.raises((KeyboardInterrupt, RuntimeError, TimonelError)):
            helm(**call, hooks=[ends])
    held.remove()
    assert helm.run is not None
    assert 0 < helm.run.step < 6
    assert helm.run.status == ("stopped" if end in ("stop", "interrupt") else "failed")
    assert helm.run.reason
    if end == "interrupt":
        assert helm.preview(decode=True)[0].size
    assert torch.equal(first(helm(**call, resume=helm.run)), whole)
    assert helm.run.status == "done"
    assert torch.equal(first(helm(**call, resume=helm.run)), whole)  # only decoded


def test_an_interrupted_wait_for_a_result_can_be_waited_for_again() -> None:
    helm = tm.Helm(tiny.sdxl())
    whole = helm(**tiny.prompt(helm.pipe), steps=4, seeds=[1]).images
    go = threading.Event()

    def wait(run: Run) -> None:
        go.wait(60)

    handle = helm.start(**tiny.prompt(helm.pipe), steps=4, seeds=[1], hooks=[wait])
    main = threading.main_thread().ident
    assert main is not None
    caught = threading.Event()

    def interrupt() -> None:
        while not caught.wait(1):  # again where the interrupt fell into a finalizer, which drops it
            signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            handle.result()
    finally:
        caught.set()
        signal.signal(signal.SIGINT, before)
    with pytest.raises(TimeoutError, match=r"not ended after 0.05 s"):
        handle.result(0.05)
    go.set()
    assert torch.equal(handle.result().images, whole)
    assert torch.equal(handle.result(0).images, whole)


def test_a_native_run_that_was_interrupted_goes_on() -> None:
    run, count = tm.begin(torch.ones(1, 4), "unipc", process=VP, steps=6), list[int]()

    def denoise(x: torch.Tensor, level: Any) -> torch.Tensor:
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return x * 0.5

    with pytest.raises(KeyboardInterrupt):
        list(tm.iterate(run, denoise))
    assert (run.status, run.step, run.reason) == ("stopped", 3, "interrupted")
    run.resume()
    list(tm.iterate(run, denoise))
    assert torch.equal(
        run.result,
        tm.sample(lambda x, level: x * 0.5, torch.ones(1, 4), "unipc", process=VP, steps=6),
    )


def test_a_resumed_run_has_the_hooks_of_its_call_and_a_handle_of_its_own() -> None:
    helm, seen = tm.Helm(tiny.sdxl()), list[int]()
    call: dict[str, Any] = {
        **tiny.prompt(helm.pipe),
        "steps": 6,
        "seeds": [1],
        "sampler": "dpmpp_2m",
    }
    whole = helm(**call).images
    helm(**call, hooks=[tm.stop_when(lambda run: run.step >= 2), lambda run: seen.append(run.step)])
    paused = threading.Event()

    def pause(run: Run) -> None:
        if run.step == 4:
            run.pause()
            paused.set()

    handle = helm.start(**call, hooks=[pause], resume=helm.run)
    assert paused.wait(60)
    assert handle.step == 4
    assert handle.preview()[0].size == (8, 8)
    handle.resume()
    assert torch.equal(handle.result(60).images, whole)
    assert seen == [1, 2]


def test_a_resumed_run_keeps_its_guidance_unless_the_call_names_another() -> None:
    helm = tm.Helm(tiny.sdxl())
    call: dict[str, Any] = {**tiny.prompt(helm.pipe), "steps": 6, "seeds": [1], "sampler": "euler"}
    stop = tm.stop_when(lambda run: run.step == 3)
    whole = helm(**call, guidance=8.0).images

    def begun() -> Run:
        helm(**call, guidance=8.0, hooks=[stop])
        assert helm.run is not None
        return helm.run

    assert torch.equal(helm(**call, resume=begun()).images, whole)
    other = helm(**call, guidance=tm.cfg([8.0] * 3 + [2.0] * 3)).images
    for names in ({"guidance": 2.0}, {"guidance_scale": 2.0}):
        assert near(helm(**call, resume=begun(), **names).images, other)


def test_a_run_that_does_not_fit_the_call_is_refused_before_compute_and_stays_usable() -> None:
    helm, branches, calls = tm.Helm(tiny.sdxl()), list[Run](), list[int]()
    call: dict[str, Any] = {
        **tiny.prompt(helm.pipe),
        "steps": 6,
        "seeds": [1],
        "sampler": "dpmpp_2m",
    }
    whole = helm(
        **call, hooks=[lambda run: branches.append(run.branch()) if run.step == 3 else None]
    ).images
    branch = branches[0]
    held = helm.pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    own, said = call.pop("steps"), "at or below the present one|part of a journey"
    for change in (
        {"sampler": tm.Sampler("euler", sigmas=[14.0, 1.0])},
        {"sampler": tm.Sampler("dpmpp_2m", strength=0.5), "steps": 5},
    ):
        with pytest.raises(TimonelError, match=said):
            helm(**{**call, **change}, resume=branch)
        with pytest.raises(TimonelError, match=said):
            helm.start(**{**call, **change}, resume=branch).result(60)
    call["steps"] = own
    with pytest.raises(ArgumentError, match=r"resume must be a run"):
        helm(**call, resume="run.safetensors")
    assert not calls
    held.remove()
    assert (branch.status, branch.step) == ("running", 3)
    assert torch.equal(helm(**call, resume=branch).images, whole)


def test_a_run_of_another_size_is_refused_and_stays_usable() -> None:
    helm, branches = tm.Helm(tiny.sdxl()), list[Run]()
    call: dict[str, Any] = {**tiny.prompt(helm.pipe), "steps": 4, "seeds": [1], "sampler": "euler"}
    whole = helm(
        **call, hooks=[lambda run: branches.append(run.branch()) if run.step == 2 else None]
    ).images
    for change in ({"height": 24}, {**tiny.prompt(helm.pipe, batch=2), "seeds": [1, 2]}):
        with pytest.raises(ArgumentError, match="the size and the number of pictures"):
            helm(**{**call, **change}, resume=branches[0])
    assert torch.equal(helm(**call, resume=branches[0]).images, whole)


def test_a_run_of_video_with_sound_is_not_resumed_without_its_sound() -> None:
    pipe, inputs = tiny.case("video_new", "LTX2Pipeline")
    helm = tm.Helm(pipe)
    call: dict[str, Any] = {**inputs, "steps": 4, "seeds": [0]}
    helm(**call, hooks=[tm.stop_when(lambda run: run.step == 2)])
    with pytest.raises(RunError, match="the sound of its video"):
        helm(**call, resume=helm.run)


def test_a_call_that_ends_before_its_first_step_leaves_the_last_run_in_place() -> None:
    helm = tm.Helm(tiny.sdxl())
    call: dict[str, Any] = {**tiny.prompt(helm.pipe), "steps": 4, "seeds": [1], "sampler": "euler"}
    whole = helm(**call).images
    helm(**call, hooks=[tm.stop_when(lambda run: run.step == 2)])
    stopped = helm.run

    def breaks(*_: Any) -> None:
        raise KeyboardInterrupt

    held = helm.pipe.unet.register_forward_pre_hook(breaks)
    for resume in (None, stopped):
        with pytest.raises(KeyboardInterrupt):
            helm(**call, resume=resume)
        assert helm.run is stopped
    held.remove()
    assert torch.equal(helm(**call, resume=helm.run).images, whole)


def test_a_run_that_goes_on_elsewhere_is_not_resumed() -> None:
    helm, other, refused = tm.Helm(tiny.sdxl()), tm.Helm(tiny.sdxl()), list[int]()
    call: dict[str, Any] = {**tiny.prompt(helm.pipe), "steps": 3, "seeds": [1], "sampler": "euler"}

    def nested(run: Run) -> None:
        with pytest.raises(RunError, match="goes on in another call"):
            other(**call, resume=run)
        refused.append(1)

    helm(**call, hooks=[nested])
    assert len(refused) == 3


@pytest.mark.parametrize("sampler", ["restart", "heun", "dpm_fast", "plms"])
def test_a_stopped_run_of_unlike_steps_goes_on(sampler: str) -> None:
    helm = tm.Helm(tiny.sdxl())
    call: dict[str, Any] = {
        **tiny.prompt(helm.pipe),
        "steps": 10,
        "seeds": [1],
        "sampler": f"{sampler}/trailing",
    }
    whole = helm(**call).images
    helm(**call, hooks=[lambda run: run.stop() if run.step == 3 else None])
    assert torch.equal(helm(**call, resume=helm.run).images, whole)


def test_a_resumed_picture_keeps_its_seed_and_says_that_it_was_resumed() -> None:
    helm, branches = tm.Helm("emoji"), list[Run]()
    helm.pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"steps": 4, "sampler": "dpmpp_2m/karras"}
    helm(
        "red apple",
        seeds=[7],
        hooks=[lambda run: branches.append(run.branch()) if run.step == 2 else None],
        **call,
    )
    recipe = tm.Recipe.of(helm("red apple", resume=branches[0], **call).images[0])
    assert (recipe.seed, recipe.besides) == (7, ["resume="])


def test_a_refiner_after_a_base_that_is_complete_is_refused_before_compute() -> None:
    helm = tm.Helm(
        diffusers.StableDiffusionXLImg2ImgPipeline(**tiny.sdxl().components, add_watermarker=False)
    )
    call = {k: v for k, v in tiny.prompt(tiny.sdxl()).items() if k not in ("height", "width")}
    latents = torch.zeros(1, 4, 8, 8)
    for sampler in ("heun/trailing", "euler/trailing"):
        with pytest.raises(
            ArgumentError, match=r"denoising_start=0\.8 of 3 steps leaves none: give a smaller one"
        ):
            helm(**call, image=latents, denoising_start=0.8, sampler=sampler, steps=3, seeds=[1])
