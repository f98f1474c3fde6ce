"""A call in the background: the handle's orders arrive, and `result` raises what went wrong."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

import timonel as tm
from support import tiny
from timonel.engine.handle import Handle
from timonel.errors import ArgumentError, HookError, RunError, UnknownName


@pytest.fixture
def helm() -> tm.Helm:
    return tm.Helm(tiny.sdxl())


def begin(helm: tm.Helm, **options: Any) -> Handle:
    handle = helm.start(
        **tiny.prompt(helm.pipe), **{"steps": 6, "seeds": [1], "sampler": "dpmpp_2m_sde", **options}
    )
    return handle


class Until:
    """A hook that pauses after a step, and tells when it did."""

    def __init__(self, step: int) -> None:
        self.step, self.reached = step, threading.Event()

    def __call__(self, run: tm.Run) -> None:
        if run.step == self.step and not self.reached.is_set():
            run.pause()
            self.reached.set()


def test_a_background_call_gives_what_a_call_gives(helm: tm.Helm) -> None:
    plain = helm(**tiny.prompt(helm.pipe), steps=6, seeds=[1], sampler="dpmpp_2m_sde").images
    handle = begin(helm)
    assert torch.equal(handle.result(60).images, plain)
    assert (handle.status, handle.done, handle.step) == ("done", True, 6)
    assert helm.pipe.scheduler is not helm.run


def test_orders_given_before_the_first_step_are_not_lost(helm: tm.Helm) -> None:
    go = threading.Event()
    helm.pipe.unet.register_forward_pre_hook(lambda m, a: (go.wait(60), None)[1])
    handle = begin(helm)
    assert handle.status == "starting"
    with pytest.raises(RunError, match="no run yet"):
        handle.preview()
    handle.pause()
    go.set()
    assert handle.wait(60)
    deadline = time.monotonic() + 60
    while handle.step < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (handle.status, handle.step) == ("paused", 1)
    handle.resume()
    assert handle.result(60).images.isfinite().all()


def test_orders_before_the_first_step_that_cannot_be_are_refused_at_once_and_the_call_goes_on(
    helm: tm.Helm,
) -> None:
    go = threading.Event()
    helm.pipe.unet.register_forward_pre_hook(lambda m, a: (go.wait(60), None)[1])
    handle = begin(helm)
    with pytest.raises(RunError, match="no run yet"):
        handle.rewind(3)
    with pytest.raises(ArgumentError, match="reason"):
        handle.stop(5)  # type: ignore[arg-type]
    go.set()
    assert handle.result(60).images.isfinite().all()
    assert handle.status == "done"


def test_pause_preview_rewind_and_resume_arrive_at_the_same_picture(helm: tm.Helm) -> None:
    plain = helm(**tiny.prompt(helm.pipe), steps=6, seeds=[1], sampler="dpmpp_2m_sde").images
    until = Until(4)
    handle = begin(helm, hooks=[until], keep=6)
    assert until.reached.wait(60)
    with pytest.raises(TimeoutError, match=r"paused at step 4"):
        handle.result(0.05)
    assert handle.preview()[0].size == (8, 8)
    assert handle.preview(decode=True)[0].size == (16, 16)
    with pytest.raises(RunError, match="cannot rewind to step 5"):
        handle.rewind(5)
    handle.rewind(1)
    handle.resume()
    assert torch.equal(handle.result(60).images, plain)


def test_a_stop_gives_the_denoised_picture_of_the_step(helm: tm.Helm) -> None:
    until = Until(2)
    handle = begin(helm, hooks=[until])
    assert until.reached.wait(60)
    handle.stop("enough")
    made = handle.result(60).images
    assert (handle.status, handle.step, handle.run.reason) == ("stopped", 2, "enough")
    assert torch.equal(made, handle.run.denoised)
    for order in (handle.pause, handle.stop, lambda: handle.rewind(0)):
        with pytest.raises(RunError, match="has ended"):
            order()


def test_a_branch_goes_another_way_from_the_same_point(helm: tm.Helm) -> None:
    until = Until(3)
    handle = begin(helm, hooks=[until])
    assert until.reached.wait(60)
    branch = handle.branch()
    branch.latents += 0.2
    handle.resume()
    main = handle.result(60).images
    other = helm(
        **tiny.prompt(helm.pipe), steps=6, seeds=[1], sampler="dpmpp_2m_sde", resume=branch
    ).images
    assert not torch.equal(other, main)
    edited = helm(
        **tiny.prompt(helm.pipe),
        steps=6,
        seeds=[1],
        sampler="dpmpp_2m_sde",
        hooks=[tm.edit(lambda x: x + 0.2, at=3)],
    ).images
    assert torch.allclose(other, edited, atol=1e-6)


def test_errors_surface_in_the_result_and_early_ones_at_the_start(helm: tm.Helm) -> None:
    def bad(run: tm.Run) -> None:
        raise ValueError("on purpose")

    handle = begin(helm, hooks=[bad])
    with pytest.raises(HookError, match="on purpose"):
        handle.result(60)
    assert handle.status == "failed"
    with pytest.raises(UnknownName, match="banana"):
        begin(helm, banana=1)
    assert helm(**tiny.prompt(helm.pipe), steps=2, seeds=[1]).images.isfinite().all()


def test_a_second_call_while_one_goes_on_is_refused(helm: tm.Helm) -> None:
    until = Until(1)
    handle = begin(helm, hooks=[until])
    assert until.reached.wait(60)
    with pytest.raises(RunError, match="at work in another call"):
        helm(**tiny.prompt(helm.pipe), steps=2)
    handle.stop()
    handle.result(60)
