"""Laws of an engine: each call's pictures are the helm's, whatever else it computes meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import timonel as tm
from support import tiny
from support.pipes import load
from timonel.errors import ArgumentError, RunError, UnknownName
from timonel.serve.engine import Engine, Full
from timonel.serve.ticket import Event, Ticket

SECONDS = 60
# one call each: unlike samplers, steps, scales, intervals, numbers of samples and sizes
CALLS: tuple[dict[str, Any], ...] = (
    {"sampler": "euler", "steps": 4, "seeds": [1]},
    {"sampler": "dpmpp_2m_sde/karras", "steps": 6, "seeds": [2], "guidance": 3.0},
    {"sampler": "heun", "steps": 3, "seeds": [3, 4], "guidance": tm.cfg(5.0, until=0.4)},
    {"sampler": "unipc", "steps": 5, "seeds": [5], "guidance": 1.0},
    {"sampler": "euler_ancestral", "steps": 4, "seeds": [6], "guidance": tm.cfg(4.0, forecast=2)},
    {"sampler": "euler", "steps": 3, "seeds": [7], "height": 48},
)


def made(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's arguments of a call."""
    inputs = tiny.prompt(pipe, len(call["seeds"]))
    return {**inputs, **call, "output_type": "pil"}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sdxl()


@pytest.fixture
def engine(pipe: Any) -> Iterator[Engine]:
    with Engine(pipe, rows=6) as engine:
        yield engine


def noting(order: list[str], name: str) -> Any:
    """A hook that notes a name at every step."""
    return lambda run: order.append(name)


class Gatekeeper:
    """A hook that waits at a step until it is let through."""

    def __init__(self, step: int = 1) -> None:
        self.step, self.reached, self.go = step, threading.Event(), threading.Event()

    def __call__(self, run: tm.Run) -> None:
        if run.step == self.step:
            self.reached.set()
            assert self.go.wait(SECONDS)


def pixels(output: Any) -> list[Any]:
    return [np.asarray(image).astype(int) for image in output.images]


def until(condition: Any) -> None:
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_every_call_makes_the_picture_of_the_helm(pipe: Any) -> None:
    helm = tm.Helm(pipe)
    alone = [pixels(helm(**made(pipe, call))) for call in CALLS]
    with Engine(helm, rows=6) as engine:
        tickets = [engine.submit(**made(pipe, call)) for call in CALLS]
        shared = [pixels(ticket.result(SECONDS)) for ticket in tickets]
        *_, calls, rows, _ = engine.numbers()
        assert rows > calls
    for mine, its in zip(shared, alone, strict=True):
        for one, other in zip(mine, its, strict=True):
            assert abs(one - other).max() <= 1  # a matrix product in another batch rounds otherwise
    assert not any(ticket.alone for ticket in tickets)


# what the sampler, the capture's scale or the pipeline's own loop has to be chosen for
GUIDED: tuple[dict[str, Any], ...] = (
    {"guidance": tm.apg(4.0, norm_threshold=5.0)},
    {"guidance": tm.apg(norm_threshold=5.0)},  # at the pipeline's own scale, not at the card's
    {"guidance": tm.cfg_pp(0.6)},  # takes the twin of the sampler
    {"guidance": 1.0, "sampler": "euler_cfg_pp"},  # computes both parts at 1
    {"guidance": tm.cfg(4.0) + tm.pag(2.0)},
    {"prompts": {0.0: "red apple", 0.4: "pizza"}},
)


@pytest.mark.parametrize("model", ["emoji", "emoji-lcm"])
def test_every_guidance_and_prompts_over_a_run_make_the_picture_of_the_helm(model: str) -> None:
    helm = tm.Helm(model)
    calls = [{"prompt": "red apple", "sampler": "euler", "steps": 3, "seeds": [1], **one}
             for one in GUIDED]  # fmt: skip
    for call in calls:
        if "prompts" in call:
            del call["prompt"]
    alone = [pixels(helm(**call))[0] for call in calls]
    with Engine(helm) as engine:
        tickets = [engine.submit(**call) for call in calls]
        shared = [pixels(ticket.result(SECONDS))[0] for ticket in tickets]
    for mine, its in zip(shared, alone, strict=True):
        assert abs(mine - its).max() <= 1
    assert ["loop" in ticket.alone for ticket in tickets] == [False] * 4 + [True] * 2


def test_a_call_that_shares_takes_a_tail_and_refuses_what_only_a_loop_does(pipe: Any) -> None:
    helm, call = tm.Helm(pipe), made(pipe, CALLS[0])

    def turn(run: Any) -> None:
        if run.step == 2 and not run.journey:
            run.tail("euler_ancestral", steps=3, guidance=tm.apg(3.0, norm_threshold=5.0))

    alone = pixels(helm(**call, hooks=[turn]))[0]
    with Engine(helm) as engine:
        keeper = Gatekeeper(2)
        ticket = engine.submit(**call, hooks=[keeper])
        assert keeper.reached.wait(SECONDS)
        ticket.pause()
        keeper.go.set()
        until(lambda: all(bucket.idle for bucket in engine.buckets))
        twin = engine.branch(ticket, paused=True)
        for one in (ticket, twin):
            with pytest.raises(ArgumentError, match="pag makes the network"):
                one.guidance = tm.cfg(3.0) + tm.pag(2.0)
            with pytest.raises(RunError, match="submit"):
                one.prompt("pizza")
            turn(one.run)
            one.resume()
        assert all(abs(pixels(t.result(SECONDS))[0] - alone).max() <= 1 for t in (ticket, twin))
        until(lambda: len(engine) == 0)
        assert engine.held == 0


def test_closing_gives_up_a_paused_call_that_is_made_alone() -> None:
    engine, keeper = Engine("emoji"), Gatekeeper()
    ticket = engine.submit(prompts={0.0: "apple", 0.5: "pizza"}, steps=3, hooks=[keeper])
    assert keeper.reached.wait(SECONDS)
    ticket.pause()
    keeper.go.set()
    until(lambda: ticket.status == "paused")
    engine.close()
    with pytest.raises(RunError, match="while it was paused"):
        ticket.result(SECONDS)


def test_its_pictures_have_the_recipe_of_the_call() -> None:
    with Engine("emoji") as engine:
        call: dict[str, Any] = {
            "sampler": "dpmpp_2m/karras",
            "steps": 3,
            "guidance": tm.cfg(2.0, until=0.5),
        }
        picture = engine.submit("red apple", seeds=[7], **call).result(SECONDS).images[0]
    again, recipe = tm.Recipe.of(picture).make(tm.Helm("emoji"))
    assert (recipe.sampler, recipe.grid, recipe.steps, recipe.seed) == ("dpmpp_2m", "karras", 3, 7)
    assert abs(np.asarray(again).astype(int) - np.asarray(picture)).max() <= 1


def test_a_paused_call_holds_nobody_up_and_goes_back_and_on(engine: Engine, pipe: Any) -> None:
    keeper = Gatekeeper(2)
    call = made(pipe, CALLS[0])
    paused = engine.submit(hooks=[keeper], keep=4, **call)
    assert keeper.reached.wait(SECONDS)
    paused.pause()
    keeper.go.set()
    other = engine.submit(**made(pipe, CALLS[1]))
    other.result(SECONDS)
    assert paused.status == "paused"
    paused.rewind(1)
    until(lambda: paused.step == 1)
    assert len(paused.preview()) == 1
    paused.resume()
    assert np.array_equal(
        pixels(paused.result(SECONDS))[0], pixels(engine.submit(**call).result(SECONDS))[0]
    )


def test_a_branch_goes_another_way_from_a_step_of_a_call_that_has_ended(
    engine: Engine, pipe: Any
) -> None:
    call = made(pipe, {**CALLS[1], "guidance": 3.0})
    first = engine.submit(keep=6, **call)
    first.result(SECONDS)
    same = engine.branch(first, step=2)
    other = engine.branch(first, step=2, paused=True)
    other.run.guidance = 1.0
    other.resume()
    assert np.array_equal(pixels(same.result(SECONDS))[0], pixels(first.result())[0])
    assert not np.array_equal(pixels(other.result(SECONDS))[0], pixels(first.result())[0])
    assert first.result().evaluations == 12
    assert other.result().evaluations == 4


def test_guidance_may_be_changed_while_it_goes_on(engine: Engine, pipe: Any) -> None:
    keeper = Gatekeeper(1)
    ticket = engine.submit(hooks=[keeper], **made(pipe, {**CALLS[3], "guidance": 1.0}))
    assert keeper.reached.wait(SECONDS)
    ticket.run.guidance = 4.0
    keeper.go.set()
    # one row without, four rows with the unconditional part
    assert ticket.result(SECONDS).evaluations == 1 + 2 * 4


@pytest.mark.parametrize("waits", [False, True])
def test_a_cancelled_call_ends_without_a_result(engine: Engine, pipe: Any, waits: bool) -> None:
    keeper = Gatekeeper(1)
    first = engine.submit(hooks=[keeper], **made(pipe, CALLS[0]))
    assert keeper.reached.wait(SECONDS)
    victim = engine.submit(**made(pipe, CALLS[1])) if waits else first
    victim.cancel("nobody wants it")
    keeper.go.set()
    with pytest.raises(RunError, match="nobody wants it"):
        victim.result(SECONDS)
    engine.submit(**made(pipe, CALLS[0])).result(SECONDS)
    assert len(engine) == 0
    assert engine.held == 0


def test_a_call_is_given_up_at_its_deadline(engine: Engine, pipe: Any) -> None:
    long = engine.submit(deadline=0.2, **made(pipe, {**CALLS[0], "steps": 1000}))
    with pytest.raises(RunError, match=r"deadline of 0\.2 s"):
        long.result(SECONDS)


def test_a_call_that_fails_ends_alone(engine: Engine, pipe: Any) -> None:
    def raises(run: tm.Run) -> None:
        raise ValueError("no")

    def breaks(run: tm.Run) -> None:
        run.latents = torch.full_like(run.latents, float("nan"))

    keeper = Gatekeeper(1)
    good = engine.submit(hooks=[keeper], **made(pipe, CALLS[1]))
    bad = [engine.submit(hooks=[hook], **made(pipe, CALLS[0])) for hook in (raises, breaks)]
    keeper.go.set()
    good.result(SECONDS)
    for ticket, words in zip(bad, ("raised at step 1", "not finite"), strict=True):
        with pytest.raises(RunError, match=words):
            ticket.result(SECONDS)
    assert len(engine.buckets[0].captured.conditions) == 0


def test_a_call_with_a_higher_priority_is_admitted_first(engine: Engine, pipe: Any) -> None:
    keeper = Gatekeeper(1)
    order: list[str] = []
    first = engine.submit(hooks=[keeper], **made(pipe, CALLS[0]))
    assert keeper.reached.wait(SECONDS)
    calls = {"low": 0, "high": 5}
    tickets = [
        engine.submit(priority=p, hooks=[lambda run, n=n: order.append(n)], **made(pipe, CALLS[0]))
        for n, p in calls.items()
    ]
    assert [ticket.position for ticket in tickets] == [1, 0]
    keeper.go.set()
    for ticket in (first, *tickets):
        ticket.result(SECONDS)
    assert order[0] == "high"


def test_what_does_not_fit_waits_and_a_full_queue_refuses(pipe: Any) -> None:
    with Engine(pipe, waiting=2, memory=1) as engine:
        keeper = Gatekeeper(1)
        first = engine.submit(hooks=[keeper], **made(pipe, CALLS[0]))
        assert keeper.reached.wait(SECONDS)
        others = [engine.submit(**made(pipe, CALLS[0])) for _ in range(2)]
        with pytest.raises(Full, match="2 calls wait already"):
            engine.submit(**made(pipe, CALLS[0]))
        keeper.go.set()
        first.result(SECONDS)
        for ticket in others:
            ticket.result(SECONDS)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"sampler": "eulr"}, UnknownName), ({"stepz": 3}, UnknownName),
        ({"steps": 0}, ArgumentError), ({"guidance": -1}, ArgumentError),
        ({"deadline": -1}, ArgumentError), ({"priority": 1000}, ArgumentError),
        ({"guidance": tm.cfg(3.0) + tm.autoguidance(2.0)}, ArgumentError),
        ({"guidance": tm.cfg_pp(0.6), "sampler": "heun"}, ArgumentError),
        ({"resume": None}, ArgumentError), ({"hooks": [3]}, ArgumentError),
    ],
)  # fmt: skip
def test_a_wrong_call_is_refused_when_it_is_submitted(
    engine: Engine, pipe: Any, wrong: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.submit(**{**made(pipe, CALLS[0]), **wrong})
    assert len(engine) == 0


def test_the_pipeline_is_the_engines_until_it_is_closed() -> None:
    pipe = tiny.sdxl()
    scheduler, call = pipe.scheduler, made(pipe, CALLS[0])
    engine = Engine(pipe)
    engine.submit(**call).result(SECONDS)
    with pytest.raises(RunError, match="at work in another call"):
        tm.Helm(pipe)(**call)
    with pytest.raises(RunError, match="at work in another call"):
        Engine(pipe)
    engine.close()
    with pytest.raises(RunError, match="closed"):
        engine.submit(**call)
    assert pipe.scheduler is scheduler
    tm.Helm(pipe)(**call)


def test_closing_makes_what_was_submitted_and_gives_up_what_is_paused(pipe: Any) -> None:
    engine = Engine(pipe)
    paused = engine.submit(**made(pipe, CALLS[0]))
    paused.pause()
    other = engine.submit(**made(pipe, CALLS[1]))
    engine.close()
    assert other.done
    assert other.succeeded
    with pytest.raises(RunError, match="closed while it was paused"):
        paused.result(SECONDS)


def test_closing_without_draining_gives_calls_up(pipe: Any) -> None:
    engine = Engine(pipe)
    keeper = Gatekeeper(1)
    tickets = [engine.submit(hooks=[keeper], **made(pipe, CALLS[0])) for _ in range(3)]
    assert keeper.reached.wait(SECONDS)
    closing = threading.Thread(target=lambda: engine.close(drain=False))
    closing.start()
    until(lambda: all(ticket.cancelled for ticket in tickets))
    keeper.go.set()
    closing.join(SECONDS)
    for ticket in tickets:
        with pytest.raises(RunError, match="closed"):
            ticket.result(SECONDS)


def test_a_pipeline_that_is_not_captured_makes_its_calls_alone() -> None:
    case = load()["StableDiffusionImg2ImgPipeline"]
    torch.manual_seed(0)
    helm = tm.Helm(case.build())
    inputs = {**case.inputs(), "output_type": "pil", "seeds": [3]}
    alone = pixels(helm(**inputs))
    with Engine(helm) as engine:
        tickets = [engine.submit(**inputs) for _ in range(2)]
        assert all(np.array_equal(pixels(t.result(SECONDS))[0], alone[0]) for t in tickets)
    assert all("mixes a picture with noise" in ticket.alone for ticket in tickets)


@pytest.mark.parametrize("call", [
    {"prompts": {0.0: "red apple", 0.5: "pizza"}},
    {"prompt": "red apple", "guidance": tm.cfg(4.0) + tm.pag(3.0)},
], ids=["prompts", "terms"])  # fmt: skip
def test_what_shared_calls_cannot_do_is_made_alone_and_is_the_helms(call: dict[str, Any]) -> None:
    helm, call = tm.Helm("emoji"), {**call, "steps": 3, "seeds": [7]}
    right = pixels(helm(**call))[0]
    with Engine(helm) as engine:
        ticket = engine.submit(**call)
        assert np.array_equal(pixels(ticket.result(SECONDS))[0], right)
    assert ticket.alone


def test_a_shared_run_refuses_terms_when_they_are_assigned(engine: Engine, pipe: Any) -> None:
    keeper = Gatekeeper()
    ticket = engine.submit(**made(pipe, CALLS[0]), hooks=[keeper])
    assert keeper.reached.wait(SECONDS)
    with pytest.raises(ArgumentError, match="needs the helm"):
        ticket.run.guidance = tm.cfg(4.0) + tm.skip_layers("mid_block")
    keeper.go.set()
    assert ticket.result(SECONDS).images


def test_its_events_are_every_state_in_order_and_end_with_the_call(
    engine: Engine, pipe: Any
) -> None:
    async def watch(ticket: Ticket) -> list[Event]:
        return [event async for event in ticket.events()]

    ticket = engine.submit(**made(pipe, CALLS[0]))
    events = asyncio.run(asyncio.wait_for(watch(ticket), SECONDS))
    assert events[-1].kind == "done"
    steps = [event.step for event in events if event.kind == "step"]
    assert steps == sorted(steps)
    assert events[-1].step == 4
