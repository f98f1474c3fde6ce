"""Law: the switch of a pipeline (`_interrupt`) stops its run, also where its loop never looks at
it.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import timonel as tm
from support import tiny
from timonel.core.run import Run


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output[0], torch.Tensor) else torch.as_tensor(output[0])


SWITCHED = {
    "StableVideoDiffusionPipeline": "video", "StableDiffusionPipeline (v)": "sd",
    "FluxInpaintPipeline": "flux",
    "StableDiffusionInpaintPipeline (4 channels)": "sd", "FluxPipeline (true CFG)": "flux",
    "LTXPipeline": "video",
}  # fmt: skip


@pytest.mark.parametrize("key", SWITCHED)
def test_the_switch_of_a_pipeline_stops_the_run_also_where_its_loop_never_looks(key: str) -> None:
    pipe, inputs = tiny.case(SWITCHED[key], key)
    helm = tm.Helm(pipe)
    call: dict[str, Any] = {**inputs, "steps": 5, "seeds": [3], "sampler": "euler"}
    whole = first(helm(**call))
    clean = first(helm(**call, hooks=[tm.stop_when(lambda run: run.step == 2)]))

    def switch(run: Run) -> None:
        if run.step == 2:
            pipe._interrupt = True

    made = first(helm(**call, hooks=[switch]))
    assert helm.run is not None
    assert (helm.run.status, helm.run.step, helm.run.reason) == (
        "stopped",
        2,
        "the pipeline was interrupted",
    )
    assert torch.equal(made, clean)
    assert torch.equal(first(helm(**call)), whole)  # the switch is off for the next call
    pipe._interrupt = True  # as after a call of the pipeline's own
    assert torch.equal(first(helm(**call)), whole)


def test_the_switch_stops_a_run_that_is_paused() -> None:
    helm, paused = tm.Helm(tiny.sdxl()), threading.Event()

    def pause(run: Run) -> None:
        if run.step == 2:
            run.pause()
            paused.set()

    handle = helm.start(**tiny.prompt(helm.pipe), steps=4, seeds=[1], hooks=[pause])
    assert paused.wait(60)
    helm.pipe._interrupt = True
    handle.result(60)
    assert (handle.status, handle.step) == ("stopped", 2)


def test_the_switch_stops_a_scheduler_alone_too() -> None:
    pipe, inputs = tiny.case("video", "StableVideoDiffusionPipeline")
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler="euler")
    call: dict[str, Any] = {**inputs, "num_inference_steps": 5}

    def made(**more: Any) -> torch.Tensor:
        return first(pipe(**call, generator=torch.Generator().manual_seed(3), **more))

    def switch(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if i == 1:
            pipe._interrupt = True
        return tensors

    whole, stopped = made(), made(callback_on_step_end=switch)
    assert (pipe.scheduler.run.status, pipe.scheduler.run.step) == ("stopped", 2)
    assert torch.equal(stopped, pipe.scheduler.run.denoised)
    assert torch.equal(made(), whole)


def test_an_interrupted_call_returns_what_is_nearer_to_the_picture() -> None:
    """diffusers returns the noisy latents of the step. Half-way they are .36 of the picture's size
    off, ours .007.
    """
    pipe = tiny.sdxl()
    pipe.scheduler = tm.Scheduler.from_config(pipe.scheduler.config, sampler="euler")
    noisy: list[torch.Tensor] = []

    def switch(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        noisy.append(given["latents"].clone())
        pipe._interrupt = stops and i == 4
        return given

    call = {
        **tiny.prompt(pipe),
        "num_inference_steps": 10,
        "output_type": "latent",
        "callback_on_step_end": switch,
    }
    stops = False
    whole = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    stops = True
    made = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    theirs, ours = (float((x - whole).norm() / whole.norm()) for x in (noisy[4], made))
    assert ours < theirs / 10
