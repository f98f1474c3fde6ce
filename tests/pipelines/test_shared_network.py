"""Law: a network serves one steered call at a time, whatever pipelines share it; what overlaps is
refused by name.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import MultiControlNetModel, StableDiffusionXLPipeline

import timonel as tm
from support import tiny
from timonel.compat import SDXLCFGCutoffCallback
from timonel.errors import RunError
from timonel.pipelines import caller
from timonel.pipelines.capture import capture
from timonel.pipelines.network.busy import needs

BUSY = "at work in another call"
CALL: dict[str, Any] = {"steps": 4, "sampler": "dpmpp_2m", "guidance": tm.cfg(4.0, until=0.5)}


def pipelines() -> list[Any]:
    """Three pipelines with the same components."""
    one = tiny.sdxl()
    made = [
        one,
        StableDiffusionXLPipeline.from_pipe(one),
        StableDiffusionXLPipeline(**one.components),
    ]
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return made


def plain(pipe: Any, seed: int) -> torch.Tensor:
    made: torch.Tensor = pipe(
        **tiny.prompt(pipe, seed=seed),
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(seed),
    ).images
    return made


class Until:
    """A hook that waits after a step, so that a call stays at work."""

    def __init__(self, step: int) -> None:
        self.step, self.reached, self.go = step, threading.Event(), threading.Event()

    def __call__(self, run: tm.Run) -> None:
        if run.step == self.step:
            self.reached.set()
            assert self.go.wait(60)


def untouched(pipes: list[Any], schedulers: list[Any]) -> None:
    """Nothing of a call is left on a pipeline or its network."""
    for pipe, scheduler in zip(pipes, schedulers, strict=True):
        assert type(pipe) is StableDiffusionXLPipeline
        assert pipe.scheduler is scheduler
        for module in (pipe.unet, pipe.vae):
            assert "forward" not in vars(module)


def others(pipes: list[Any]) -> dict[str, Callable[[], Any]]:
    """What may be tried meanwhile."""
    asked = tiny.prompt(pipes[0])
    return {
        "helm": lambda: tm.Helm(pipes[1])(**asked, **CALL, seeds=[2]),
        "helm of the components": lambda: tm.Helm(pipes[2])(**asked, **CALL, seeds=[2]),
        "start": lambda: tm.Helm(pipes[1]).start(**asked, **CALL, seeds=[2]),
        "start on the same": lambda: tm.Helm(pipes[0]).start(**asked, **CALL, seeds=[2]),
        "plain call": lambda: plain(pipes[0], 2),
        "plain call of another": lambda: plain(pipes[1], 2),
        "plain call of the components": lambda: plain(pipes[2], 2),
        "capture": lambda: capture(tm.Helm(pipes[1]), **asked, guidance=4.0),
    }


OTHERS = (
    "helm", "helm of the components", "start", "start on the same", "plain call",
    "plain call of another",
    "plain call of the components", "capture",
)  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_overlaps_a_steered_call_is_refused_by_name_and_leaves_it_alone(what: str) -> None:
    pipes = pipelines()
    schedulers, helm, until = [pipe.scheduler for pipe in pipes], tm.Helm(pipes[0]), Until(2)
    asked = tiny.prompt(pipes[0])
    whole = helm(**asked, **CALL, seeds=[1]).images
    handle = helm.start(**asked, **CALL, seeds=[1], hooks=[until])
    assert until.reached.wait(60)
    with pytest.raises(RunError, match=BUSY) as refused:
        others(pipes)[what]()
    assert "StableDiffusionXLPipeline" in str(refused.value)
    until.go.set()
    assert torch.equal(handle.result(60).images, whole)
    untouched(pipes, schedulers)
    assert others(pipes)[what]() is not None  # and once it is over it is not refused


def test_a_call_from_a_hook_on_the_same_network_does_not_reach_the_steered_one() -> None:
    pipes = pipelines()
    helm, seen = tm.Helm(pipes[0]), list[torch.Tensor]()
    asked = tiny.prompt(pipes[0])
    whole, other = helm(**asked, **CALL, seeds=[1]).images, plain(pipes[1], 2)

    def calls(run: tm.Run) -> None:
        if run.step == 2:
            seen.append(plain(pipes[1], 2))
            for refused in (lambda: plain(pipes[0], 2), lambda: tm.Helm(pipes[2])(**asked, **CALL)):
                with pytest.raises(RunError, match=BUSY):
                    refused()

    assert torch.equal(helm(**asked, **CALL, seeds=[1], hooks=[calls]).images, whole)
    assert torch.equal(seen[0], other)


def test_a_steered_call_does_not_begin_while_a_plain_one_goes_on() -> None:
    pipes = pipelines()
    asked, whole, caught = tiny.prompt(pipes[0]), plain(pipes[0], 2), list[str]()
    entered, go = threading.Event(), threading.Event()

    def wait(module: Any, args: Any) -> None:
        entered.set()
        go.wait(60)

    held = pipes[0].unet.register_forward_pre_hook(wait)
    made: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: made.append(plain(pipes[0], 2)))
    thread.start()
    assert entered.wait(60)
    for pipe in pipes:
        with pytest.raises(RunError, match=BUSY):
            tm.Helm(pipe).start(**asked, **CALL, seeds=[1])
        caught.append(type(pipe).__name__)
    go.set()
    thread.join(60)
    held.remove()
    assert torch.equal(made[0], whole)
    assert caught == ["StableDiffusionXLPipeline"] * 3


def test_a_pipeline_made_from_one_at_work_gets_its_own_scheduler() -> None:
    pipe, made = tiny.sdxl(), list[Any]()
    helm, own = tm.Helm(pipe), pipe.scheduler
    helm(
        **tiny.prompt(pipe),
        steps=2,
        seeds=[1],
        hooks=[lambda run: made.append(type(pipe).from_pipe(pipe))],
    )
    assert made[0].scheduler is own


@pytest.mark.parametrize("where", ["hook", "network", "start"])
def test_no_gate_is_left_in_any_order_of_ends(where: str) -> None:
    pipes = pipelines()
    schedulers, asked = [pipe.scheduler for pipe in pipes], tiny.prompt(pipes[0])

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    held = pipes[0].unet.conv_in.register_forward_pre_hook(fail) if where == "network" else None
    helm = tm.Helm(pipes[0])
    with pytest.raises((KeyboardInterrupt, tm.TimonelError)):
        helm(
            **asked,
            **CALL,
            seeds=[1],
            hooks=[fail] if where == "hook" else [],
            resume=3 if where == "start" else None,
        )
    if held is not None:
        held.remove()
    untouched(pipes, schedulers)
    # somebody wraps the network during the call, and their wrapper outlives it
    seen: list[int] = []

    def wrap(run: tm.Run) -> None:
        inner = pipes[0].unet.forward
        if not seen:
            pipes[0].unet.forward = lambda *a, **k: (seen.append(1), inner(*a, **k))[1]
        seen.append(0)

    before = plain(pipes[1], 2)
    helm(**asked, **CALL, seeds=[1], hooks=[wrap])
    assert torch.equal(plain(pipes[1], 2), before)  # through their wrapper, and through no gate
    assert sum(seen) >= 4


def test_no_garbage_is_collected_while_stacks_of_other_threads_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finalizers let those threads go on and end their frames under the reader: a crash."""
    entered, go, read = threading.Event(), threading.Event(), list[int]()
    collections, callers = [0], caller._callers

    class Waits:
        scheduler = tiny.sd().scheduler

        def __call__(self) -> None:
            entered.set()
            assert go.wait(60)
            unset = [1 for _ in range(3)]  # names without a value make the reader allocate
            del unset

    pipe, before = Waits(), gc.get_threshold()
    thread = threading.Thread(target=pipe)
    thread.start()
    assert entered.wait(60)

    def collected(phase: str, info: dict[str, int]) -> None:
        collections[0] += 1

    def reads(frame: Any) -> list[Any]:
        read.append(collections[0])
        made = callers(frame)
        read.append(collections[0])
        return made

    monkeypatch.setattr(caller, "_callers", reads)
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        for _ in range(50):
            read.clear()
            assert [one for _, one in caller.everywhere() if one is pipe] == [pipe]
            assert len(set(read)) == 1
        assert gc.isenabled()
        gc.disable()
        caller.everywhere()
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
        go.set()
        thread.join(60)
    assert collections[0]


def test_random_overlaps_in_threads_are_right_or_refused() -> None:
    chance, pipes = random.Random(5), pipelines()
    schedulers, asked = [pipe.scheduler for pipe in pipes], tiny.prompt(pipes[0])
    ways = {
        "helm": lambda pipe: tm.Helm(pipe)(**asked, **CALL, seeds=[2]).images,
        "start": lambda pipe: tm.Helm(pipe).start(**asked, **CALL, seeds=[2]).result(60).images,
        "plain": lambda pipe: plain(pipe, 2),
    }
    right = {name: way(pipes[0]) for name, way in ways.items()}
    count, wrong = {"right": 0, "refused": 0}, list[str]()

    def do(name: str, pipe: Any, pause: float) -> None:
        time.sleep(pause)
        try:
            made = ways[name](pipe)
        except RunError as error:
            count["refused"] += 1
            if BUSY not in str(error):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            count["right"] += 1
            if not torch.equal(made, right[name]):
                wrong.append(f"{name}: another picture")

    for _ in range(50):
        # one plain call at a time: two of them share the scheduler, which is the pipelines' own
        # affair
        chosen = [
            (name, chance.choice(pipes), 0.03 * chance.random())
            for name in ("helm", "start", "plain")
        ]
        threads = [threading.Thread(target=do, args=one) for one in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong, wrong[:5]
    assert count["right"] >= 40
    assert count["refused"] >= 10
    untouched(pipes, schedulers)
    assert torch.equal(ways["helm"](pipes[2]), right["helm"])


def test_a_cutoff_of_a_call_that_was_interrupted_does_not_reach_another_pipeline() -> None:
    one, other = pipelines()[:2]
    before = plain(other, 2)
    cutoff = SDXLCFGCutoffCallback(cutoff_step_index=0)

    def ends(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = cutoff.callback_fn(pipe, i, t, tensors)
        if i == 2:
            raise KeyboardInterrupt
        return made

    with pytest.raises(KeyboardInterrupt):
        one(**tiny.prompt(one), num_inference_steps=4, callback_on_step_end=ends)
    assert torch.equal(plain(other, 2), before)


def test_a_network_is_known_under_what_wraps_it() -> None:
    pipe, other = pipelines()[:2]
    other.unet = torch.compile(pipe.unet, backend="eager")
    assert pipe.unet in needs(other)
    control = tiny.case("sd", "StableDiffusionControlNetPipeline")[0]
    net = control.controlnet
    control.controlnet = MultiControlNetModel([net])
    assert net in needs(control)


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*:FutureWarning")  # diffusers on its own code
def test_two_networks_with_one_autoencoder_decode_one_after_the_other() -> None:
    pipes = [tiny.sdxl(0), tiny.sdxl(1)]
    pipes[0].vae.register_to_config(force_upcast=True)
    pipes[0].vae.half()
    pipes[1].register_modules(vae=pipes[0].vae)
    asked = {**tiny.prompt(pipes[0]), "output_type": "pt", "steps": 2, "seeds": [1]}
    whole = [tm.Helm(pipe)(**asked).images for pipe in pipes]
    for _ in range(5):
        handles = [tm.Helm(pipe).start(**asked) for pipe in pipes]
        for handle, picture in zip(handles, whole, strict=True):
            assert torch.equal(handle.result(60).images, picture)


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*:FutureWarning")  # diffusers on its own code
def test_a_preview_waits_while_the_pipeline_decodes_and_the_pipeline_while_it_does() -> None:
    """SDXL's half-precision autoencoder is cast to float32 for the time of a decode, by whoever
    decodes.
    """
    pipe = tiny.sdxl()
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.half()
    helm, decode, entered, clash = tm.Helm(pipe), pipe.vae.decode, threading.Event(), list[str]()
    asked = {**tiny.prompt(pipe), "output_type": "pt"}
    whole = helm(**asked, steps=2, seeds=[1]).images
    inside: list[int] = []

    def slowly(*args: Any, **kwargs: Any) -> Any:
        inside.append(threading.get_ident())
        entered.set()
        time.sleep(0.1)
        if len(set(inside)) > 1 or pipe.vae.dtype != torch.float32:
            clash.append(f"{len(set(inside))} decode, dtype {pipe.vae.dtype}")
        made = decode(*args, **kwargs)
        inside.pop()
        return made

    pipe.vae.decode = slowly
    handle = helm.start(**asked, steps=2, seeds=[1])
    assert entered.wait(60)
    assert handle.status == "finishing"
    assert handle.preview(decode=True)[0].size == (16, 16)
    assert torch.equal(handle.result(60).images, whole)
    until = Until(2)
    handle = helm.start(**asked, steps=2, seeds=[1], hooks=[until])
    assert until.reached.wait(60)
    entered.clear()
    looks = threading.Thread(target=lambda: handle.preview(decode=True))
    looks.start()
    assert entered.wait(60)
    until.go.set()  # the pipeline comes to its own decode while the preview is at it
    assert torch.equal(handle.result(60).images, whole)
    looks.join(60)
    assert not clash
    assert pipe.vae.dtype == torch.float16


@pytest.mark.filterwarnings("ignore:.*upcast_vae.*:FutureWarning")  # diffusers on its own code
def test_a_picture_of_an_ended_run_is_refused_while_a_plain_call_decodes_and_vice_versa() -> None:
    pipes, entered, go = pipelines(), threading.Event(), threading.Event()
    vae = pipes[0].vae.half()
    vae.register_to_config(force_upcast=True)
    helm, decode, made = tm.Helm(pipes[0]), vae.decode, list[Any]()
    helm(**tiny.prompt(pipes[0]), **CALL, seeds=[2])
    asked = {**tiny.prompt(pipes[1]), "output_type": "pt"}

    def plainly(pipe: Any) -> torch.Tensor:
        pictures: torch.Tensor = pipe(
            **asked, num_inference_steps=2, generator=torch.Generator().manual_seed(2)
        ).images
        return pictures

    whole, seen = plainly(pipes[1]), helm.preview(decode=True)

    def waits(*args: Any, **kwargs: Any) -> Any:
        entered.set()
        assert go.wait(60)
        return decode(*args, **kwargs)

    vae.decode = waits
    for first, then in (
        (lambda: plainly(pipes[1]), lambda: helm.preview(decode=True)),
        (lambda: helm.preview(decode=True), lambda: plainly(pipes[1])),
    ):
        thread = threading.Thread(target=lambda first=first: made.append(first()))
        thread.start()
        assert entered.wait(60)
        with pytest.raises(RunError, match=BUSY):
            then()
        go.set()
        thread.join(60)
        entered.clear()
        go.clear()
    del vae.decode
    assert torch.equal(made[0], whole)
    assert made[1] == seen
    assert vae.dtype == torch.float16


def overlapping(rounds: int, seed: int) -> dict[str, int]:
    """Random overlaps on three pipelines with one network and one half-precision autoencoder that
    is cast to decode.

    Steered calls, calls in the background that are looked at meanwhile and after their end, and
    plain calls: each is right or refused. Returns how many were what.
    """
    chance, pipes = random.Random(seed), pipelines()
    vae = pipes[0].vae.half()
    vae.register_to_config(force_upcast=True)
    decode = vae.decode

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return decode(*args, **kwargs)

    vae.decode = slowly
    asked = {**tiny.prompt(pipes[0]), "output_type": "pt"}
    count, wrong = {"right": 0, "refused": 0, "looks": 0}, list[str]()
    lock = threading.Lock()

    def note(what: str, fault: str = "") -> None:
        with lock:
            count[what] += 1
            wrong.extend([fault] * bool(fault))

    def looked(pipe: Any) -> torch.Tensor:
        handle = tm.Helm(pipe).start(**asked, **CALL, seeds=[2])
        pauses = random.Random(chance.random())
        for _ in range(6):
            time.sleep(0.03 * pauses.random())
            try:
                (picture,) = handle.preview(decode=True)
                note("looks", "" if picture.size == (16, 16) else f"a look of {picture.size}")
            except RunError as error:
                if "no run yet" not in str(error) and BUSY not in str(error):
                    note("looks", f"a look: {error}")
        made: torch.Tensor = handle.result(60).images
        return made

    def called(pipe: Any) -> torch.Tensor:
        made: torch.Tensor = pipe(
            **asked, num_inference_steps=4, generator=torch.Generator().manual_seed(2)
        ).images
        return made

    ways: dict[str, Callable[[Any], torch.Tensor]] = {
        "helm": lambda pipe: tm.Helm(pipe)(**asked, **CALL, seeds=[2]).images, "look": looked,
        "plain": called,
    }  # fmt: skip
    right = {name: way(pipes[0]) for name, way in ways.items()}

    def do(name: str, pipe: Any, pause: float) -> None:
        time.sleep(pause)
        try:
            made = ways[name](pipe)
        except RunError as error:
            note("refused", "" if BUSY in str(error) else f"{name}: {error}")
        except Exception as error:
            note("refused", f"{name}: {type(error).__name__}: {error}")
        else:
            note("right", "" if torch.equal(made, right[name]) else f"{name}: another picture")

    schedulers = [pipe.scheduler for pipe in pipes]
    for _ in range(rounds):
        # one plain call at a time: two of them share the scheduler, which is the pipelines' own
        # affair
        names = ("plain", *chance.choices(("helm", "look"), k=2))
        chosen = [(name, chance.choice(pipes), 0.15 * chance.random()) for name in names]
        threads = [threading.Thread(target=do, args=one) for one in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert vae.dtype == torch.float16
    assert not wrong, wrong[:5]
    del vae.decode
    untouched(pipes, schedulers)
    return count


CASTS = pytest.mark.filterwarnings(
    "ignore:.*upcast_vae.*:FutureWarning"
)  # diffusers on its own code


@CASTS
def test_overlaps_on_an_autoencoder_that_is_cast_are_right_or_refused() -> None:
    count = overlapping(4, 1)
    assert count["right"] >= 4


@CASTS
@pytest.mark.slow
def test_fifty_overlaps_on_an_autoencoder_that_is_cast_are_right_or_refused() -> None:
    count = overlapping(50, 7)
    assert count["right"] >= 50
    assert count["refused"] >= 10
    assert count["looks"] >= 20
