"""Law: random orders from three threads do to a run, and to a call in the background, what a model
of it says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import timonel as tm
from support import tiny
from support.orders import FINAL, SECONDS, STEPS, Gate, begun, denoise, until
from timonel.core.run import Run
from timonel.core.states import allowed
from timonel.errors import RunError


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
            self.place, self.status, self.paused = (
                after,
                "done" if self.row == STEPS else "stopped",
                False,
            )
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
        self.inputs.append(x.clone())
        self.gate.wait()

    def arrive(self) -> None:
        """The run comes to the place of its model."""
        places = {
            "network": lambda: self.gate.inside,
            "waiting": lambda: self.run._waiting and self.run._goto is None,
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
        if marker is not None:
            assert torch.allclose(self.inputs[-1][:1], marker)
        self.gate.open()
        if self.model.place == "starting":
            until(lambda: self.current() is not None)
        self.model.row += 1
        self.model.settle(self.after)
        self.arrive()

    def current(self) -> Run | None:
        return self.run

    def begun(self) -> Run:
        run = self.current()
        if run is None:
            raise RunError("there is none")
        return run

    @rule(
        thread=st.integers(0, 2),
        name=st.sampled_from(["stop", "pause", "resume", "rewind"]),
        to=st.integers(0, STEPS),
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

    @precondition(
        lambda self: not (self.model.place == "network" and self.model.paused)
    )  # there it waits
    @rule(thread=st.integers(0, 2), value=st.floats(-1, 1))
    def edits(self, thread: int, value: float) -> None:
        def edit() -> None:
            run = self.begun()
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
            self.begun().guidance = value

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
        self.held = pipe.unet.conv_in.register_forward_pre_hook(
            lambda module, args: self.network(args[0])
        )
        self.decode = pipe.vae.decode

        def decode(*args: Any, **kwargs: Any) -> Any:
            self.decoder.wait()
            return self.decode(*args, **kwargs)

        pipe.vae.decode = decode
        call = {
            **tiny.prompt(pipe),
            "output_type": "pt",
            "steps": STEPS,
            "seeds": [1],
            "sampler": "euler",
        }
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


TestNative = Native.TestCase
TestNative.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestBackground = Background.TestCase
TestBackground.settings = settings(max_examples=8, stateful_step_count=14, deadline=None)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Native, Background])
def test_many_random_orders_do_what_the_model_says(machine: type[Orders]) -> None:
    many = settings(max_examples=150, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(machine, settings=many)  # type: ignore[no-untyped-call]
