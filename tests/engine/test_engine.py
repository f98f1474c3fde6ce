"""Laws of the engine: every kind of network answers alike, one loop drives, a batch holds nobody
up, and conditions come and go.
"""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import timonel as tm
from support import tiny
from support.models import PROCESSES
from timonel.core.run import Run
from timonel.engine.batch import Batch, Job
from timonel.engine.conditions import Conditions
from timonel.engine.drive import drive, finish, run_on
from timonel.engine.network import Answer, Denoisers, Network, Query
from timonel.engine.reference import Reference, extrapolated
from timonel.errors import ArgumentError
from timonel.exact import Mixture, solve
from timonel.pipelines.capture import Captured, capture
from timonel.tuning.model import Pipeline, Plain

SOURCE = Path(tm.__file__).parent
VP = PROCESSES["vp"]
MIXTURE = Mixture.random(0, 3, 4)
CLASS = MIXTURE.conditional(0)
PROMPTS = (0, 1)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(sampler: str = "dpmpp_2m", steps: int = 5, **more: Any) -> Run:
    return Run(tm.Sampler(sampler, "karras", steps).compile(VP), **more)


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.manual_seed(0)
    return tiny.sd()


def captured(pipe: Any, prompts: Sequence[int], guidance: float = 3.0) -> Captured:
    """Conditions for prompts, which are numbers here, and the noise of the same seeds."""
    given = tiny.prompt(pipe)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        shape, sources = given[name].shape[1:], [torch.Generator().manual_seed(p) for p in prompts]
        given[name] = torch.stack([torch.randn(shape, generator=g) for g in sources])
    return capture(tm.Helm(pipe), seeds=list(prompts), guidance=guidance, **given)


# -- one loop --------------------------------------------------------------------------------------
def test_one_place_drives_a_run():
    """Loops over `run.rows()` and loops that end with `run.proceed()`; a pipeline's own is none."""
    loops = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            head = getattr(node, "iter", None) if isinstance(node, ast.For) else None
            head = node.test if isinstance(node, ast.While) else head
            calls = [] if head is None else [n for n in ast.walk(head) if isinstance(n, ast.Call)]
            names = {n.func.attr for n in calls if isinstance(n.func, ast.Attribute)}
            if names & {"rows", "proceed"}:
                loops.append(path.relative_to(SOURCE).as_posix())
    assert loops == ["core/run.py", "engine/drive.py"]  # the first is `rows` itself


def test_a_loop_ends_where_one_by_hand_does():
    by_hand, driven = (run(guidance=tm.cfg(3.0, until=0.6, forecast=2)) for _ in range(2))
    x = noise(3)
    by_hand.start(x)
    for _ in by_hand.rows():
        at, forecast = by_hand.level, by_hand.forecast
        cond = CLASS(by_hand.latents, at)
        if by_hand.scale == 1.0:
            by_hand.advance(cond)
            continue
        difference = cond - MIXTURE(by_hand.latents, at) if forecast is None else forecast
        if forecast is None:
            by_hand.remember(difference)
        by_hand.advance(torch.lerp(cond - difference, cond, 3.0))
    driven.start(x)
    result = finish(driven, Denoisers(CLASS, MIXTURE))
    assert torch.allclose(result, by_hand.result, rtol=1e-12, atol=1e-12)


def test_a_network_that_raises_leaves_a_run_that_goes_on():
    broken = [True]

    def denoise(x: Tensor, level: tm.At) -> Tensor:
        if broken[0]:
            raise ValueError("out of luck")
        return MIXTURE(x, level)

    one, other = run(), run()
    for each in (one, other):
        each.start(noise(2))
    with pytest.raises(ValueError, match="luck"):
        finish(one, Denoisers(denoise))
    assert (one.status, one.reason) == ("failed", "ValueError: out of luck")
    broken[0] = False
    one.resume()
    assert torch.equal(finish(one, Denoisers(denoise)), finish(other, Denoisers(MIXTURE)))


def test_what_does_not_go_together_is_refused_before_the_first_step():
    x = noise(2)
    for guidance, unconditional in ((None, MIXTURE), (3.0, None)):
        one = tm.begin(x, "euler/karras", process=VP, steps=3, guidance=guidance)
        with pytest.raises(ArgumentError, match="unconditional"):
            tm.iterate(one, MIXTURE, unconditional)


# -- one protocol ----------------------------------------------------------------------------------
def kinds(pipe: Any) -> dict[str, tuple[Network, Tensor]]:
    """Every kind of network, with samples of two slots."""
    taken, x = captured(pipe, PROMPTS), noise(2)
    guidance = tm.cfg(3.0)
    return {
        "captured": (taken, taken.start),
        "denoisers": (Denoisers(CLASS, MIXTURE), x),
        "exact": (Denoisers(MIXTURE.guided(0, 3.0)), x),
        "fit": (Plain(CLASS, x, VP, unconditional=MIXTURE, guidance=guidance), x),
        "fit of a pipeline": (Pipeline(taken, guidance, batch=3), taken.start),
    }


def test_every_network_answers_many_runs_as_it_answers_each_alone(pipe):
    for name, (network, x) in kinds(pipe).items():
        levels = [VP.at_index(torch.tensor([i], dtype=torch.float64)) for i in (900.0, 400.0)]
        first, second = (tm.core.process.At(*(float(v) for v in level)) for level in levels)
        asked = [
            Query(x, first, (0, 1), 3.0, difference=True),
            Query(x[:1], second, (0,), 1.0),
            Query(x[1:], second, (1,), 3.0, rescale=0.5),
            Query(x[1:], first, (1,), 3.0),
        ]
        together = network.evaluate(asked)
        for query, answer in zip(asked, together, strict=True):
            alone = network.evaluate([query])[0]
            assert answer.raw.shape == query.x.shape, name
            assert torch.allclose(answer.raw, alone.raw, atol=1e-4), name
        difference = together[0].difference
        assert (difference is not None) == (network.cost(3.0) == 2), name
        if difference is None:
            continue
        forecast = network.evaluate([asked[0]._replace(forecast=difference)])[0]
        assert torch.allclose(forecast.raw, together[0].raw, atol=1e-4), name
        assert [q.cost(network) for q in asked] == [4, 1, 2, 2], name
        assert asked[0]._replace(forecast=difference).cost(network) == 2, name


def test_a_run_is_the_same_on_every_network_of_one_denoiser():
    plain = Plain(MIXTURE, noise(3), VP)
    results = []
    for network in (Denoisers(MIXTURE), plain):
        one = run("unipc", 6)
        one.start(noise(3))
        results.append(finish(one, network, range(3)))
    results.append(tm.sample(MIXTURE, noise(3), "unipc/karras", process=VP, steps=6))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert plain.evaluations == 6 * 3


def test_an_output_unlike_its_sample_is_refused():
    one = run()
    one.start(noise(2))
    with pytest.raises(ArgumentError, match=r"shape \(2, 3\) for a sample of \(2, 4\)"):
        next(drive(one, Denoisers(lambda x, level: x[:, :3])))


# -- one batch -------------------------------------------------------------------------------------
class Slots:
    """A network that fails for slot 1 and answers no numbers for slot 2."""

    def cost(self, scale: float | None) -> int:
        return 1

    def evaluate(self, queries: Sequence[Query]) -> list[Answer]:
        slots = [slot for query in queries for slot in query.conditions]
        if 1 in slots:
            raise RuntimeError("out of luck")
        factor = {0: 1.0, 2: float("nan")}
        return [Answer(torch.tanh(q.x) * factor[q.conditions[0]]) for q in queries]


def jobs(slots: Sequence[int], steps: Sequence[int]) -> list[Job]:
    pairs = zip(slots, steps, strict=True)
    return [
        Job(run("euler", n), noise(1, slot), (slot,), str(i)) for i, (slot, n) in enumerate(pairs)
    ]


def ended(batch: Batch) -> list[Job]:
    return [job for turn in batch.turns() for job in turn.ended]


def test_a_run_that_fails_takes_no_other_with_it():
    some = jobs((0, 1, 2, 0), (3, 3, 3, 6))
    done = ended(Batch(Slots(), 8, some))
    assert sorted(job.name for job in done) == ["0", "1", "2", "3"]
    assert "out of luck" in some[1].reason
    assert some[2].reason == "the latents are not finite after row 0 of 3"
    assert [job.run.status for job in some] == ["done", "failed", "failed", "done"]
    assert [len(job.denoised) for job in some] == [3, 0, 0, 6]
    assert [job.evaluations for job in some] == [3, 0, 1, 6]


def test_a_job_that_cannot_begin_is_refused(pipe):
    begun = run()
    begun.start(noise(2))
    with pytest.raises(ArgumentError, match="is new: give start="):
        Job(run())
    with pytest.raises(ArgumentError, match="is running: leave start= out"):
        Job(begun, noise(2))
    with pytest.raises(ArgumentError, match="1 conditions for 2 samples"):
        Job(begun, conditions=(0,))
    taken = captured(pipe, PROMPTS)
    with pytest.raises(
        ArgumentError, match="2 samples need the slot of each one's conditions, got 0"
    ):
        taken.evaluate([Query(taken.start, tm.core.process.At(0.5, 0.5, 500.0))])


def test_a_paused_run_holds_nobody_up_and_ends_as_if_it_had_not_waited():
    still, *_ = some = jobs((0, 0, 0), (4, 4, 8))
    still.run.hooks.append(_pausing(2))
    batch, seen = Batch(Slots(), 2, some), []
    for turn in batch.turns():
        seen += [job.name for job in turn.ended]
        if set(seen) == {"1", "2"} and still.run.status == "paused":
            assert still.run.step == 2
            still.run.resume()
    assert seen == ["1", "2", "0"]
    alone = jobs((0,), (4,))
    ended(Batch(Slots(), 2, alone))
    assert torch.equal(still.run.result, alone[0].run.result)


def test_a_batch_of_paused_runs_waits_for_other_threads():
    (one,) = some = jobs((0,), (4,))
    one.run.hooks.append(_pausing(1))

    def order() -> None:
        while one.run.status != "paused":
            time.sleep(0.005)
        batch.admit(*jobs((0,), (2,)))
        one.run.latents = torch.zeros_like(one.run.latents)
        one.run.resume()

    batch, other = Batch(Slots(), 4, some), threading.Thread(target=order)
    other.start()
    done = ended(batch)
    other.join()
    assert sorted(job.run.table.nfe for job in done) == [2, 4]
    assert torch.equal(one.run.result, torch.zeros_like(one.run.result))


def test_runs_in_a_batch_are_stopped_rewound_and_gone_on_with():
    stopped, back, whole = some = jobs((0, 0, 0), (6, 6, 6))
    stopped.run.hooks.append(_at(2, lambda one: one.stop("enough")))
    once: list[bool] = []
    back.run.hooks.append(_at(4, lambda one: once or once.append(True) or one.rewind(1)))
    done = ended(Batch(Slots(), 8, some))
    assert {job.name for job in done} == {"0", "1", "2"}
    assert (stopped.run.status, stopped.run.step) == ("stopped", 2)
    assert (back.run.status, back.run.advances) == ("done", 4 + 6)
    assert torch.equal(back.run.result, whole.run.result)
    stopped.run.resume()
    ended(Batch(Slots(), 8, [Job(stopped.run, conditions=(0,))]))
    assert torch.equal(stopped.run.result, whole.run.result)


def _at(step: int, order: Callable[[Run], Any]) -> tm.Hook:
    class Ordering(tm.Hook):
        def on_step(self, run: Run) -> None:
            if run.step == step:
                order(run)

    return Ordering()


def _pausing(step: int) -> tm.Hook:
    return _at(step, lambda one: one.pause())


# -- conditions ------------------------------------------------------------------------------------
def axis(value: Tensor, size: int, name: str) -> int | None:
    return 0 if value.ndim and len(value) == size else None


def test_conditions_keep_their_slots_while_others_come_and_go():
    def of(values: Sequence[float]) -> Conditions:  # two parts: 10·v and v
        text = torch.tensor([10 * v for v in values] + list(values))[:, None]
        return Conditions({"text": [text], "scale": 2.0}, len(values), 2, axis)

    some = of([1.0, 2.0, 3.0])
    assert some.add(of([4.0])) == (3,)
    some.evict(0, 2)
    assert some.slots == (1, 3)
    assert some.add(of([5.0, 6.0])) == (4, 5)
    chosen = some.select([5, 1, 4, 3, 3], [0, 0, 1, 1, 0])
    assert chosen["text"][0].flatten().tolist() == [60.0, 20.0, 5.0, 4.0, 40.0]
    assert chosen["scale"] == 2.0
    with pytest.raises(ArgumentError, match="no conditions in slot 0; the slots are 1, 3, 4, 5"):
        some.select([0], [0])


@pytest.mark.parametrize(
    ("arguments", "parts", "said"),
    [
        ({"text": torch.zeros(2, 5)}, 2, r"their 'text' is another: a tensor \(2, 5\)"),
        ({"text": torch.zeros(2, 3), "size": 4}, 2, "join the batch"),
        ({"text": torch.zeros(1, 3)}, 1, "1 parts a sample, and the batch 2"),
    ],
)
def test_conditions_that_are_no_batch_together_are_refused(arguments, parts, said):
    some = Conditions({"text": torch.zeros(4, 3)}, 2, 2, axis)
    with pytest.raises(ArgumentError, match=said):
        some.add(Conditions(arguments, 1, parts, axis))
    assert some.slots == (0, 1)


def test_a_prompt_joins_a_running_batch_and_leaves_it(pipe):
    table = tm.Sampler("dpmpp_2m", steps=6).on(VP).compile(captured(pipe, PROMPTS).process)

    def job(network: Captured, start: Tensor, slot: int) -> Job:
        one = run_on(network, table, guidance=tm.cfg(3.0))
        return Job(one, start, (slot,), str(slot))

    apart = [captured(pipe, [prompt]) for prompt in (0, 1, 2)]
    alone = [job(one, one.start, 0) for one in apart]
    for network, one in zip(apart, alone, strict=True):
        ended(Batch(network, 16, [one]))
    network = captured(pipe, [0])
    first = job(network, network.start, 0)
    batch, late = Batch(network, 16, [first]), []
    for turn in batch.turns():
        network.conditions.evict(*(int(one.name) for one in turn.ended))
        if first.run.row in (2, 4) and len(late) < first.run.row // 2:
            other = apart[1 + len(late)]
            (slot,) = network.admit(other)
            late.append(job(network, other.start, slot))
            batch.admit(late[-1])
    assert network.conditions.slots == ()
    assert [one.name for one in late] == ["1", "2"]
    for one, truth in zip((first, *late), alone, strict=True):
        assert torch.allclose(one.run.result, truth.run.result, atol=1e-3), one.name
    assert not torch.allclose(alone[0].run.result, alone[1].run.result, atol=1e-2)


def test_another_capture_that_cannot_share_a_call_is_refused(pipe):
    network = captured(pipe, PROMPTS)
    with pytest.raises(ArgumentError, match="capture it with guidance=3"):
        network.admit(captured(pipe, PROMPTS, guidance=5.0))
    torch.manual_seed(1)
    with pytest.raises(ArgumentError, match="another pipeline"):
        network.admit(captured(tiny.sd(), PROMPTS))


# -- one reference ---------------------------------------------------------------------------------
def test_a_reference_doubles_its_steps_and_trusts_what_no_longer_changes():
    reference, asked = Reference("euler", 4, 40, 0.2), []
    refined = list(reference.refine(lambda steps: asked.append(steps) or 1 / steps))
    assert asked == [4, 8, 16, 32]
    assert [(one.result, one.coarse) for one in refined] == [
        (0.25, None), (0.125, 0.25), (1 / 16, 0.125), (1 / 32, 1 / 16)
    ]  # fmt: skip
    assert reference.trusts(0.2)
    assert not reference.trusts(0.21)
    assert reference.trusts(0.4, size=2.0)


def test_an_extrapolation_removes_one_order_after_the_other():
    def result(steps: int) -> Tensor:
        h = 1 / torch.tensor(steps, dtype=torch.float64)
        return 3.0 + h**2 - 2 * h**3

    values = (
        [extrapolate(n) for n in (4, 8, 16)] if (extrapolate := extrapolated(result, 2)) else []
    )
    assert float((values[2] - 3.0).abs()) < 1e-14
    assert float((values[1] - 3.0).abs()) > 1e-3


def test_the_uses_of_a_reference_agree_on_an_exact_model():
    from timonel.tuning.targets import converge

    x = noise(12)
    exact = solve(MIXTURE, x, VP, tolerance=1e-6)
    targets = converge(Plain(MIXTURE, x, VP), range(12), lambda _: None)
    assert float((targets.result - exact).abs().max()) < 0.05 * float(exact.abs().max())
    assert float(targets.change.max()) < 0.2
