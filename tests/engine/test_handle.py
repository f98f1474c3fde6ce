"""The native loop in the background: the same result, the same orders, the same refusals as for a
pipeline's call.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from timonel.errors import ArgumentError, GuardStop, HookError, RunError, UnknownName

VP = tm.VP.from_schedule()
STEPS, SECONDS = 6, 30
SHAPE = (2, 3, 4, 4)


def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def denoise(x: Tensor, level: Any) -> Tensor:
    """Exact for data of standard deviation 0.5."""
    return x * level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)


def nothing(x: Tensor, level: Any) -> Tensor:
    """An unconditional denoiser."""
    return torch.zeros_like(x)


class Slow:
    """A denoiser whose calls wait, from the one numbered `at` on, until they are let through."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, x: Tensor, level: Any) -> Tensor:
        self.calls += 1
        if self.calls > self.at:
            self.reached.set()
            assert self.go.wait(SECONDS)
        return denoise(x, level)


CALL: dict[str, Any] = {"process": VP, "steps": STEPS, "seeds": [1, 2]}


def start(network: Any = denoise, sampler: str = "dpmpp_2m_sde", **more: Any) -> tm.Handle:
    return tm.start(network, noise(), sampler, **{**CALL, **more})


def paused(at: int, **more: Any) -> tm.Handle:
    """A call that is paused after `at` steps."""
    reached = threading.Event()

    def pause(run: tm.Run) -> None:
        if run.step == at and not reached.is_set():
            run.pause()
            reached.set()

    handle = start(hooks=[pause], **more)
    assert reached.wait(SECONDS)
    return handle


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "unipc", "heun"])
def test_the_background_makes_what_sample_makes(sampler: str) -> None:
    plain = tm.sample(denoise, noise(), sampler, **CALL)
    handle = start(sampler=sampler)
    assert torch.equal(handle.result(SECONDS), plain)
    assert torch.equal(handle.result(), plain)
    assert (handle.status, handle.done, handle.step) == ("done", True, STEPS)


def test_guidance_is_changed_while_it_runs() -> None:
    more = {"unconditional": nothing, "guidance": 2.0}
    handle = paused(3, **more, keep=STEPS)
    handle.run.guidance = 5.0
    handle.resume()
    want = tm.begin(noise(), "dpmpp_2m_sde", **CALL, guidance=2.0)
    for run in tm.iterate(want, denoise, nothing):
        if run.step == 3:
            run.guidance = 5.0
    assert torch.equal(handle.result(SECONDS), want.result)


def test_pause_rewind_and_resume_arrive_at_the_same_sample() -> None:
    plain = tm.sample(denoise, noise(), "dpmpp_2m_sde", **CALL)
    handle = paused(4, keep=STEPS)
    with pytest.raises(TimeoutError, match=r"the call has not ended after 0\.05 s"):
        handle.result(0.05)
    with pytest.raises(RunError, match="cannot rewind to step 5"):
        handle.rewind(5)
    handle.rewind(1)
    handle.resume()
    assert torch.equal(handle.result(SECONDS), plain)
    assert handle.run.advances == STEPS + 3


def test_a_stop_gives_the_denoised_prediction_of_its_step() -> None:
    network = Slow(2)
    handle = start(network)
    assert network.reached.wait(SECONDS)
    handle.stop("enough")
    network.go.set()
    assert torch.equal(handle.result(SECONDS), handle.run.denoised)
    assert (handle.status, handle.step, handle.run.reason) == ("stopped", 3, "enough")
    for order in (handle.pause, handle.stop, handle.resume, lambda: handle.rewind(0)):
        with pytest.raises(RunError, match="has ended"):
            order()


def test_an_edit_and_a_branch_go_their_own_ways() -> None:
    plain = tm.sample(denoise, noise(), "dpmpp_2m_sde", **CALL)
    handle = paused(3)
    branch = handle.branch()
    handle.run.latents = handle.run.latents + 0.2
    handle.resume()
    edited = handle.result(SECONDS)
    for _ in tm.iterate(branch, denoise):
        pass
    assert torch.equal(branch.result, plain)
    edit = tm.edit(lambda x: x + 0.2, at=3)
    want = tm.sample(denoise, noise(), "dpmpp_2m_sde", **CALL, hooks=[edit])
    assert torch.equal(edited, want)


def test_a_preview_is_what_the_caller_makes_of_the_prediction() -> None:
    handle = paused(2, pictures=lambda clean: list(clean))
    shown = handle.preview()
    assert torch.equal(torch.stack(shown), handle.run.denoised)
    with pytest.raises(RunError, match="has no autoencoder"):
        handle.preview(decode=True)
    handle.resume()
    handle.result(SECONDS)
    with pytest.raises(RunError, match=r"pictures="):
        start().preview()


def test_what_cannot_be_is_refused_before_the_thread_starts() -> None:
    before = set(threading.enumerate())
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UnknownName, "banana", {"sampler": "banana"}),
        (ArgumentError, "denoise", {"network": 5}),
        (ArgumentError, "unconditional", {"unconditional": 5, "guidance": 2.0}),
        (ArgumentError, "nothing to do without guidance", {"unconditional": nothing}),
        (ArgumentError, "needs the unconditional denoiser", {"guidance": 3.0}),
        (ArgumentError, "seeds", {"seeds": [1, 2, 3]}),
        (ArgumentError, "pictures", {"pictures": 3}),
        (ArgumentError, "process", {"process": None}),
    ]
    for kind, match, call in wrong:
        with pytest.raises(kind, match=match):
            start(**call)
    assert set(threading.enumerate()) <= before


def test_errors_come_out_of_the_result() -> None:
    def bad(run: tm.Run) -> None:
        raise ValueError("on purpose")

    handle = start(hooks=[bad])
    with pytest.raises(HookError, match="on purpose"):
        handle.result(SECONDS)
    assert handle.status == "failed"

    def broken(x: Tensor, level: Any) -> Tensor:
        return x * float("nan")

    with pytest.raises(GuardStop, match="NaN"):
        start(broken).result(SECONDS)


def test_the_run_goes_on_without_its_handle() -> None:
    network = Slow(2)
    handle = start(network)
    assert network.reached.wait(SECONDS)
    handle.stop()
    network.go.set()
    handle.result(SECONDS)
    run = handle.run
    run.resume()
    for _ in tm.iterate(run, denoise):
        pass
    assert torch.equal(run.result, tm.sample(denoise, noise(), "dpmpp_2m_sde", **CALL))
