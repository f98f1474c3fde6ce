"""Law: an order to a run is done or refused with its state, in every state and from any thread; none is lost."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import timonel as tm
import tiny
from timonel.errors import RunError
from timonel.run import Run
from timonel.states import ORDERS, STATES, allowed, table

STEPS = 3
VP = tm.VP.from_schedule()
FINAL = ("done", "stopped", "failed")
SECONDS = 60.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; what never comes is a failure, not a hang."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, "nothing happened"
        time.sleep(0.002)


class Gate:
    """Where a thread waits until it is let through, once or for ever."""

    def __init__(self) -> None:
        self._change, self._permits, self.inside, self.passed = threading.Condition(), 0.0, False, 0

    def wait(self) -> None:
        with self._change:
            self.inside = True
            assert self._change.wait_for(lambda: self._permits > 0, SECONDS)
            self._permits, self.inside, self.passed = self._permits - 1, False, self.passed + 1
            self._change.notify_all()

    def open(self, times: float = 1) -> None:
        with self._change:
            before = self.passed
            self._permits += times
            self._change.notify_all()
            if self.inside:
                assert self._change.wait_for(lambda: self.passed > before, SECONDS)


def denoise(x: torch.Tensor, level: Any) -> torch.Tensor:
    return 0.5 * x


def begun(sampler: str = "euler", **options: Any) -> Run:
    return tm.begin(torch.ones(1, 4), sampler, process=VP, steps=STEPS, **options)


def new() -> Run:
    run = begun()
    return Run(run.table)


# -- the table -------------------------------------------------------------------------------------
def ended(status: str) -> Run:
    """A run that has ended so, after its first step."""
    run = begun(guidance=None)

    def stops(x: torch.Tensor, level: Any) -> torch.Tensor:
        if run.step == 1 and status == "failed":
            raise ValueError("on purpose")
        if run.step == 1 and status == "stopped":
            run.stop()
        return denoise(x, level)

    try:
        for _ in tm.iterate(run, stops, denoise) if run.guidance is not None else tm.iterate(run, stops):
            pass
    except ValueError:
        pass
    assert run.status == status
    return run


def paused() -> Run:
    run = begun()
    run.pause()
    return run


RUNS: dict[str, Callable[[], Run]] = {
    "new": new, "running": begun, "paused": paused, **{status: lambda s=status: ended(s) for status in FINAL},
}  # fmt: skip
GIVE: dict[str, Callable[[Run, Path], Any]] = {
    "start": lambda run, path: run.start(torch.ones(1, 4)), "stop": lambda run, path: run.stop(),
    "pause": lambda run, path: run.pause(), "resume": lambda run, path: run.resume(),
    "rewind": lambda run, path: run.rewind(0), "latents": lambda run, path: setattr(run, "latents", torch.zeros(1, 4)),
    "guidance": lambda run, path: setattr(run, "guidance", 2.0), "branch": lambda run, path: run.branch(),
    "save": lambda run, path: run.save(path),
}  # fmt: skip


@pytest.mark.parametrize("order", GIVE)
@pytest.mark.parametrize("state", RUNS)
def test_a_run_does_what_the_table_allows_and_refuses_the_rest_by_its_state(
    state: str, order: str, tmp_path: Path
) -> None:
    run = RUNS[state]()
    run.driver = tm.Run(run.table).driver  # one that lets any guidance in
    assert run.phase == state
    before = run.status, run.step, run.reason, run.guidance
    if not allowed(order, state):
        with pytest.raises(RunError, match=f"{order} is refused while the run is {state}: .*(run|handle|helm)"):
            GIVE[order](run, tmp_path / "run")
        assert before == (run.status, run.step, run.reason, run.guidance)
        return
    GIVE[order](run, tmp_path / "run")
    if order in ("rewind", "resume") and state in FINAL:
        assert run.status == "running"
    if run.started and run.status in ("running", "paused"):
        run.resume()
        for _ in run.rows():
            run.advance(denoise(run.latents, None))
        assert run.status == "done"


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "control.md").read_text("utf-8")
    assert table() in page
    for state, meaning in STATES.items():
        assert f"**{state}**: {meaning}" in page
    assert set(ORDERS) == {*GIVE, "preview"}


# -- a model of it ---------------------------------------------------------------------------------
class Model:
    """What a run is to be. `place`: resting, starting, network, waiting, decoding or ended."""

    def __init__(self, place: str) -> None:
        self.place, self.row, self.status = place, 0, "running"
        self.paused = self.stopping = False
        self.goto: int | None = None
        self.until = 0

    @property
    def phase(self) -> str:
        known = {"starting": "new", "decoding": "finishing", "ended": "ended"}
        if self.place in known:
            return known[self.place]
        if self.place == "resting" and self.status in FINAL:
            return self.status
        return "paused" if self.paused else "running"

    def settle(self, after: str) -> None:
        """The loop comes to a border. `after`: the place past its end."""
        if self.goto is not None:
            self.row = min(self.goto, STEPS - 1)  # the last step is not kept, it is computed again
            self.goto = None
        if self.paused and not self.stopping and self.row >= self.until:
            self.place = "waiting"
        elif self.row == STEPS or self.stopping:
            self.place, self.status, self.paused = after, "done" if self.row == STEPS else "stopped", False
        else:
            self.place = "network"

    def order(self, name: str, to: int, after: str) -> None:
        """An order that is allowed."""
        if name == "stop":
            self.stopping = True
        if name == "pause":
            self.paused = True
        if name == "resume":
            self.paused = self.stopping = False
        if name == "rewind":
            self.goto = self.until = to
            self.stopping = False
        if name in ("resume", "rewind") and self.place == "resting":
            self.status = "running"
        if self.place == "waiting" and name in ("stop", "resume", "rewind"):
            self.settle(after)


class Orders(RuleBasedStateMachine):
    """Random orders from three threads, while rows are let through one by one, against the model."""

    after = "resting"
    model: Model
    run: Run
    target: Any  # what takes stop, pause, resume and rewind

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.inputs = Gate(), list[torch.Tensor]()
        self.threads = [ThreadPoolExecutor(1) for _ in range(3)]
        self.marker: torch.Tensor | None = None

    def network(self, x: torch.Tensor) -> None:
        self.gate.wait()
        self.inputs.append(x.clone())

    def arrive(self) -> None:
        """The run comes to the place of its model."""
        places = {
            "network": lambda: self.gate.inside, "waiting": lambda: self.run._waiting and self.run._goto is None,
            "resting": self.rests, "decoding": self.decodes,
        }  # fmt: skip
        until(places[self.model.place])
        assert (self.run.phase, self.run.row) == (self.model.phase, self.model.row)
        if self.model.place != "network" and self.model.phase in FINAL:
            assert self.run.status == self.model.status

    def rests(self) -> bool:
        return True

    def decodes(self) -> bool:
        return False

    def do(self, thread: int, act: Callable[[], Any]) -> Any:
        return self.threads[thread].submit(act).result(SECONDS)

    @precondition(lambda self: self.model.place in ("starting", "network"))
    @rule()
    def lets_a_row_through(self) -> None:
        marker, self.marker = self.marker, None
        self.gate.open()
        if marker is not None:
            until(lambda: bool(self.inputs))
            assert torch.allclose(self.inputs[-1][:1], marker)
        if self.model.place == "starting":
            until(lambda: self.current() is not None)
        self.model.row += 1
        self.model.settle(self.after)
        self.arrive()

    def current(self) -> Run | None:
        return self.run

    @rule(
        thread=st.integers(0, 2), name=st.sampled_from(["stop", "pause", "resume", "rewind"]), to=st.integers(0, STEPS)
    )
    def orders(self, thread: int, name: str, to: int) -> None:
        arguments = (to,) if name == "rewind" else ()
        legal = allowed(name, self.model.phase) and (name != "rewind" or to <= self.model.row)
        if not legal:
            with pytest.raises(RunError):
                self.do(thread, lambda: getattr(self.target, name)(*arguments))
            return
        self.do(thread, lambda: getattr(self.target, name)(*arguments))
        before = self.model.place
        self.model.order(name, to, self.after)
        if name == "rewind":
            self.marker = None
        if before == "waiting":
            self.arrive()

    @precondition(lambda self: not (self.model.place == "network" and self.model.paused))  # there it waits
    @rule(thread=st.integers(0, 2), value=st.floats(-1, 1))
    def edits(self, thread: int, value: float) -> None:
        def edit() -> None:
            run = self.current()
            if run is None:
                raise RunError("there is none")
            run.latents = torch.full_like(run.latents, value)

        phase = self.run.phase if self.model.place == "ended" else self.model.phase
        if self.model.place == "network" or not allowed("latents", phase):
            with pytest.raises(RunError):
                self.do(thread, edit)
            return
        self.do(thread, edit)
        assert bool((self.run.latents == value).all())
        self.marker = self.run.latents.clone() if self.model.goto is None else None

    @rule(thread=st.integers(0, 2), value=st.sampled_from([2.0, 5.0, 7.0]))
    def guides(self, thread: int, value: float) -> None:
        def guide() -> None:
            run = self.current()
            if run is None:
                raise RunError("there is none")
            run.guidance = value

        phase = self.run.phase if self.model.place == "ended" else self.model.phase
        if self.model.place == "starting" or not allowed("guidance", phase):
            with pytest.raises(RunError):
                self.do(thread, guide)
            return
        self.do(thread, guide)
        assert self.run.guidance == tm.cfg(value)

    @rule(thread=st.integers(0, 2))
    def branches(self, thread: int) -> None:
        if self.model.place == "starting":
            with pytest.raises(RunError):
                self.do(thread, self.target.branch)
            return
        twin = self.do(thread, self.target.branch)
        assert twin.row == self.model.row
        assert torch.equal(twin.latents, self.run._here.x)


class Native(Orders):
    """A run of one's own loop, which may be entered again."""

    @initialize()
    def begin(self) -> None:
        self.model, self.run = Model("resting"), begun(guidance=3.0, keep=STEPS)
        self.run.driver = type("Any", (type(self.run.driver),), {})()
        self.target, self.loop = self.run, threading.Thread()

    def rests(self) -> bool:
        return not self.loop.is_alive()

    @precondition(lambda self: self.model.place == "resting")
    @rule()
    def enters(self) -> None:
        def rows() -> None:
            for _ in self.run.rows():
                x = self.run.latents
                self.network(x)
                self.run.advance(denoise(x, None))

        self.loop = threading.Thread(target=rows, daemon=True)
        self.loop.start()
        if self.model.status in FINAL:
            self.loop.join(SECONDS)
        else:
            self.model.settle(self.after)
        self.arrive()

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        self.gate.open(float("inf"))
        if self.run.phase in ("running", "paused"):
            self.run.resume()
            if self.rests():
                self.enters_freely()
        self.loop.join(SECONDS) if self.loop.ident else None
        assert not self.loop.is_alive()
        assert self.run.status in FINAL
        for thread in self.threads:
            thread.shutdown()

    def enters_freely(self) -> None:
        for _ in self.run.rows():
            self.run.advance(denoise(self.run.latents, None))


HELM: list[Any] = []


class Background(Orders):
    """A call of a pipeline in the background, whose network and decoder wait to be let through."""

    after = "decoding"

    @initialize()
    def begin(self) -> None:
        if not HELM:
            HELM.append(tm.Helm(tiny.sdxl()))
        helm = HELM[0]
        pipe, self.model, self.decoder = helm.pipe, Model("starting"), Gate()
        self.held = pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: self.network(args[0]))
        self.decode = pipe.vae.decode

        def decode(*args: Any, **kwargs: Any) -> Any:
            self.decoder.wait()
            return self.decode(*args, **kwargs)

        pipe.vae.decode = decode
        call = {**tiny.prompt(pipe), "output_type": "pt", "steps": STEPS, "seeds": [1], "sampler": "euler"}
        self.target = self.handle = helm.start(**call, guidance=3.0, keep=STEPS)
        until(lambda: self.gate.inside)

    def current(self) -> Run | None:
        return self.handle._run

    @property
    def run(self) -> Run:  # type: ignore[override]
        return self.handle.run

    def decodes(self) -> bool:
        return self.decoder.inside

    def arrive(self) -> None:
        super().arrive()
        assert self.handle.status == self.model.phase
        assert self.handle._phase == self.model.phase

    @precondition(lambda self: self.model.place == "decoding")
    @rule()
    def lets_the_decoder_through(self) -> None:
        self.decoder.open()
        assert self.handle.result(SECONDS).images.shape == (1, 3, 16, 16)
        self.model.place = "ended"
        assert self.handle.status == self.model.status

    def teardown(self) -> None:
        if not hasattr(self, "handle"):
            return
        self.gate.open(float("inf"))
        self.decoder.open(float("inf"))
        if allowed("resume", self.handle._phase):
            try:
                self.handle.resume()
            except RunError:
                assert not allowed("resume", self.handle._phase)
        self.handle.result(SECONDS)
        assert self.handle.status in ("done", "stopped")
        self.held.remove()
        del HELM[0].pipe.vae.decode
        for thread in self.threads:
            thread.shutdown()


# -- copies and edits from other threads ---------------------------------------------------------------
def raised(run: Run) -> None:
    """An edit in two pieces, with time between them."""
    run.latents[:, :2] += 0.25
    time.sleep(0.002)
    run.latents = run.latents * 1.5


def finish(run: Run) -> torch.Tensor:
    for _ in run.rows():
        run.advance(denoise(run.latents, None))
    return run.result


@pytest.mark.parametrize("how", ["save", "branch", "deepcopy"])
def test_a_copy_while_hooks_are_at_work_is_of_before_their_row(how: str, tmp_path: Path) -> None:
    entered, go, me = threading.Event(), threading.Event(), threading.get_ident()

    def waits(run: Run) -> None:
        run.latents[:, :2] += 0.25
        if run.step == 2 and threading.get_ident() != me:
            entered.set()
            assert go.wait(SECONDS)
        run.latents = run.latents * 1.5

    whole = finish(begun("unipc", hooks=[waits]))
    run = begun("unipc", hooks=[waits])
    thread = threading.Thread(target=lambda: finish(run))
    thread.start()
    assert entered.wait(SECONDS)
    if how == "save":
        run.save(tmp_path / "run.safetensors")
        twin = Run.load(tmp_path / "run.safetensors", hooks=[waits])
    else:
        twin = run.branch(hooks=[waits]) if how == "branch" else copy.deepcopy(run)
    assert (run.step, twin.step) == (2, 1)
    go.set()
    thread.join(SECONDS)
    assert torch.equal(finish(twin), whole)
    assert torch.equal(run.result, whole)


def test_copies_at_any_moment_keep_what_hooks_change(tmp_path: Path) -> None:
    whole, lost = finish(begun("unipc", hooks=[raised])), 0
    for _ in range(12):
        run = begun("unipc", hooks=[raised])
        thread = threading.Thread(target=lambda run=run: finish(run))
        thread.start()
        while thread.is_alive():
            run.save(tmp_path / "run.safetensors")
            for twin in (Run.load(tmp_path / "run.safetensors", hooks=[raised]), run.branch(hooks=[raised])):
                lost += not torch.equal(finish(twin), whole)
        thread.join()
    assert not lost


def test_the_sample_of_a_paused_run_is_that_of_after_the_row_that_is_computed() -> None:
    gate, run, seen = Gate(), begun(), list[torch.Tensor]()

    def slowly(x: torch.Tensor, level: Any) -> torch.Tensor:
        gate.wait()
        return denoise(x, level)

    thread = threading.Thread(target=lambda: list(tm.iterate(run, slowly)))
    thread.start()
    until(lambda: gate.inside)
    with pytest.raises(RunError, match=r"while a row is computed: call run.pause\(\) first"):
        run.latents = torch.zeros(1, 4)
    run.pause()
    other = threading.Thread(target=lambda: seen.append(run.latents))
    other.start()
    time.sleep(0.02)
    assert not seen
    gate.open()
    other.join(SECONDS)
    assert run.row == 1
    assert seen[0] is run.latents
    run.resume()
    gate.open(float("inf"))
    thread.join(SECONDS)


# -- no model, and no order in which threads come ---------------------------------------------------------
def at_random(give: Callable[[random.Random], Any], ended: Callable[[], bool], seed: int) -> list[Exception]:
    """Three threads that give orders until `ended`; what they were refused with that is no `RunError`."""
    wrong: list[Exception] = []

    def orders(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            if ended():
                return
            time.sleep(0.004 * chance.random())
            try:
                give(chance)
            except RunError:
                pass
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=orders, args=(3 * seed + i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    return wrong


def one(target: Any, run: Callable[[], Run], chance: random.Random) -> None:
    name = chance.choice(["stop", "pause", "resume", "resume", "rewind", "latents", "guidance", "branch", "save"])
    if name == "latents":
        run().latents = torch.zeros_like(run().latents)
    elif name == "guidance":
        run().guidance = 2.0
    elif name == "save":
        run().snapshot()
    else:
        getattr(target, name)(*([chance.randrange(3)] if name == "rewind" else []))


def test_a_run_that_three_threads_order_at_random_comes_to_an_end() -> None:
    for seed in range(8):
        run = begun(guidance=3.0, keep=STEPS)

        def slowly(x: torch.Tensor, level: Any) -> torch.Tensor:
            time.sleep(0.001)
            return denoise(x, level)

        over = threading.Event()

        def drives(run: Run = run, over: threading.Event = over) -> None:
            while not over.is_set() or run.status == "running":  # a run of one's own loop may go on after its end
                for _ in tm.iterate(run, slowly, denoise):
                    pass
                time.sleep(0.001)

        thread = threading.Thread(target=drives)
        thread.start()
        wrong = at_random(lambda chance, run=run: one(run, lambda: run, chance), lambda: False, seed)
        assert not wrong, wrong
        if allowed("resume", run.phase):
            try:
                run.resume()
            except RunError:
                assert run.status in FINAL
        over.set()
        thread.join(SECONDS)
        assert not thread.is_alive()
        assert run.status in FINAL


def test_a_call_that_three_threads_order_at_random_comes_to_an_end() -> None:
    helm = tm.Helm(tiny.sdxl())
    decode = helm.pipe.vae.decode

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return decode(*args, **kwargs)

    helm.pipe.vae.decode = slowly
    call = {**tiny.prompt(helm.pipe), "output_type": "pt", "steps": STEPS, "seeds": [1], "sampler": "euler"}
    for seed in range(6):
        handle = helm.start(**call, guidance=3.0, keep=STEPS)
        wrong = at_random(lambda chance, h=handle: one(h, lambda: h.run, chance), lambda h=handle: h.done, seed)
        assert not wrong, wrong
        while not handle.done:
            try:
                handle.resume()
            except RunError:
                break
            time.sleep(0.01)
        handle.result(SECONDS)
        assert handle.status in ("done", "stopped")


TestNative = Native.TestCase
TestNative.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestBackground = Background.TestCase
TestBackground.settings = settings(max_examples=8, stateful_step_count=14, deadline=None)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Native, Background])
def test_many_more_orders(machine: type[Orders]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    many = settings(max_examples=150, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(machine, settings=many)  # type: ignore[no-untyped-call]
