"""Law: an order to a run is done or refused with its state, in every state and from any thread;
none is lost.
"""

from __future__ import annotations

import ast
import copy
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import timonel as tm
from support import tiny
from support.orders import FINAL, SECONDS, STEPS, VP, Gate, begun, denoise, until
from support.places import DOCS
from timonel.core.run import Run
from timonel.core.states import ORDERS, STATES, allowed, table
from timonel.errors import RunError


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
        for _ in (
            tm.iterate(run, stops, denoise) if run.guidance is not None else tm.iterate(run, stops)
        ):
            pass
    except ValueError:
        pass
    assert run.status == status
    return run


def paused() -> Run:
    run = begun()
    run.pause()
    return run


def heard(run: Run) -> Run:
    """The run, with a loop that takes another prompt."""
    run.driver.prompt = lambda *_: None
    return run


RUNS: dict[str, Callable[[], Run]] = {
    "new": new, "running": begun, "paused": paused,
    **{status: lambda s=status: ended(s) for status in FINAL},
}  # fmt: skip
GIVE: dict[str, Callable[[Run, Path], Any]] = {
    "start": lambda run, path: run.start(torch.ones(1, 4)), "stop": lambda run, path: run.stop(),
    "pause": lambda run, path: run.pause(), "resume": lambda run, path: run.resume(),
    "rewind": lambda run, path: run.rewind(0), "latents": lambda run,
    path: setattr(run, "latents", torch.zeros(1, 4)),
    "guidance": lambda run, path: setattr(run, "guidance", 2.0), "branch": lambda run,
    path: run.branch(),
    "save": lambda run, path: run.save(path), "tail": lambda run, path: run.tail("ddim"),
    "prompt": lambda run, path: heard(run).prompt("a fox"),
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
        with pytest.raises(
            RunError, match=f"{order} is refused while the run is {state}: .*(run|handle|helm)"
        ):
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
    page = (DOCS / "control.md").read_text("utf-8")
    assert table() in page
    for state, meaning in STATES.items():
        assert f"**{state}**: {meaning}" in page
    assert set(ORDERS) == {*GIVE, "preview"}


# -- copies and edits from other threads -----------------------------------------------------------
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
            for twin in (
                Run.load(tmp_path / "run.safetensors", hooks=[raised]),
                run.branch(hooks=[raised]),
            ):
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


# -- no model, and no order in which threads come --------------------------------------------------
def at_random(
    give: Callable[[random.Random], Any], ended: Callable[[], bool], seed: int
) -> list[Exception]:
    """Three threads that give orders until `ended`; what they were refused with that is no
    `RunError`.
    """
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
    name = chance.choice(
        ["stop", "pause", "resume", "resume", "rewind", "latents", "guidance", "branch", "save"]
    )
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
            while (
                not over.is_set() or run.status == "running"
            ):  # a run of one's own loop may go on after its end
                for _ in tm.iterate(run, slowly, denoise):
                    pass
                time.sleep(0.001)

        thread = threading.Thread(target=drives)
        thread.start()
        wrong = at_random(
            lambda chance, run=run: one(run, lambda: run, chance), lambda: False, seed
        )
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
    call = {
        **tiny.prompt(helm.pipe),
        "output_type": "pt",
        "steps": STEPS,
        "seeds": [1],
        "sampler": "euler",
    }
    for seed in range(6):
        handle = helm.start(**call, guidance=3.0, keep=STEPS)
        wrong = at_random(
            lambda chance, h=handle: one(h, lambda: h.run, chance), lambda h=handle: h.done, seed
        )
        assert not wrong, wrong
        while not handle.done:
            try:
                handle.resume()
            except RunError:
                break
            time.sleep(0.01)
        handle.result(SECONDS)
        assert handle.status in ("done", "stopped")


SOURCES = Path(tm.__file__).parent
OF_A_RUN = {SOURCES / "core" / f"{name}.py" for name in ("run", "control", "position", "copying")}
ASSIGNED = {"latents", "guidance"}  # properties that refuse, or act at the next row


def written(path: Path) -> list[str]:
    """The attributes of runs that a file assigns to."""
    targets = [
        target
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
        for one in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for target in (one.elts if isinstance(one, ast.Tuple) else [one])
    ]
    return [
        f"{path.relative_to(SOURCES)}:{target.lineno} {ast.unparse(target)}"
        for target in targets
        if isinstance(target, ast.Attribute)
        and ast.unparse(target.value).split(".")[-1] in ("run", "_run", "current")
        and target.attr not in ASSIGNED
    ]


def test_nothing_but_a_run_writes_into_a_run() -> None:
    paths = [path for path in SOURCES.rglob("*.py") if path not in OF_A_RUN]
    assert [line for path in paths for line in written(path)] == []
    assert written(SOURCES / "core" / "run.py") == []  # `run.` there would be another run's


def test_a_write_into_a_run_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SOURCES", tmp_path)
    path = tmp_path / "room.py"
    path.write_text("run.stopping = False\nself.run.noise, x = None, 1\nrun.latents = x\n")
    assert written(path) == ["room.py:1 run.stopping", "room.py:2 self.run.noise"]


def test_a_prediction_that_is_read_while_a_row_is_computed_takes_no_run_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tm.begin(torch.ones(1, 2), "euler", process=VP, steps=4)
    run.advance(run.latents * 0.5)
    plain, newest = type(run.program).denoised, run.newest

    def slow(program: Any, row: int, x: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        monkeypatch.undo()
        run.advance(run.latents * 0.5)  # as the loop does meanwhile, in another thread
        return plain(program, row, x, raw)

    monkeypatch.setattr(type(run.program), "denoised", slow)
    assert newest is not None
    assert torch.equal(run.denoised, newest[1])  # of the row before, which was the newest
    assert run.row == 2
    assert not torch.equal(run.denoised, newest[1])
