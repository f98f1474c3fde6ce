"""What test_killed kills, and a warm process that forks it: a kill costs no start of Python.

python -m support.nursery

It reads a kind and the path of a result from each line, forks a child that makes it, and prints the
child's number, a line at each mark of the child's, and "gone" once that has ended.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import timonel as tm
from timonel.core.run import Run

Mark = Callable[[], None]
HELM: dict[str, Any] = {"steps": 8, "seeds": [1], "sampler": "dpmpp_2m_sde"}


def nothing() -> None:
    """The mark of a process that nobody kills."""


# -- a native run, saved after every row -----------------------------------------------------------
def fresh() -> Run:
    table = tm.Sampler("dpmpp_2m_sde", steps=100).compile(tm.VP.from_schedule())
    run = Run(table, "v", noise=tm.SeededNoise([1]))
    run.start(torch.ones(1, 4, 8, 8))
    return run


def go_on(run: Run) -> torch.Tensor:
    for _ in run.rows():
        run.advance(torch.tanh(run.latents))
    return run.result


def native(path: Path, mark: Mark) -> None:
    run = fresh()
    for _ in run.rows():
        run.advance(torch.tanh(run.latents))
        run.save(path)
        mark()


# -- a pipeline under a helm, saved after every step -----------------------------------------------
@cache
def helm() -> tm.Helm:
    from support import tiny

    return tm.Helm(tiny.sdxl())


def asked() -> dict[str, Any]:
    from support import tiny

    return {**tiny.prompt(helm().pipe), **HELM}


def steered(path: Path, mark: Mark) -> None:
    helm()(**asked(), hooks=[tm.checkpoint(path), lambda run: mark()])


# -- a comparison ----------------------------------------------------------------------------------
@cache
def emoji() -> tm.Helm:
    return tm.Helm("emoji")


def compared(path: Path, mark: Mark) -> None:
    from timonel.comparison import engine

    helm = emoji()
    with patch.multiple(engine, FIRST=2, LAST=4):
        tm.compare(
            helm, "ghost", sampler=["euler", "dpmpp_2m_sde"], steps=[1, 2], seeds=2, out=path,
            batch=2,
            progress=lambda state: mark(),
        )  # fmt: skip


# -- a fit -----------------------------------------------------------------------------------------
def tuned(path: Path, mark: Mark) -> None:
    from support.tuned_models import START, mixture
    from timonel.tuning import fit_model, held_out

    with patch.multiple(held_out, USUAL=(START,), GOALS=()):
        fit_model(
            mixture(0),
            steps=3,
            start=START,
            method="differences",
            iterations=4,
            out=path,
            log=lambda message: mark(),
        )


# -- the command line ------------------------------------------------------------------------------
def generated(path: Path, mark: Mark) -> None:
    from timonel.cli import app
    from timonel.make import generate as made

    before = made.collect

    def collect(*args: Any, **kwargs: Any) -> Any:
        story: Any = before(*args, **kwargs)
        step = story.on_step
        story.on_step = lambda run: (step(run), mark())[0]
        return story

    with patch.object(made, "collect", collect):
        app(
            ["generate", "ghost", "--steps", "2", "--seed", "7", "--preview", "-o", str(path)],
            standalone_mode=False,
        )


WARM: dict[str, Callable[[], Any]] = {
    "steered": asked,
    "compared": emoji,
    "generated": emoji,
}  # before a fork
KINDS: dict[str, Callable[[Path, Mark], None]] = {
    "native": native, "steered": steered, "compared": compared, "tuned": tuned,
    "generated": generated,
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    words, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what the work prints is not for the test

    def mark() -> None:
        os.write(words, b"mark\n")

    for line in sys.stdin:
        kind, path = line.rstrip("\n").split(" ", 1)
        WARM.get(kind, nothing)()
        child = os.fork()
        if not child:
            try:
                KINDS[kind](Path(path), mark)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.write(words, f"child {child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(
            words, b"failed\n" if os.WIFEXITED(status) and os.WEXITSTATUS(status) else b"gone\n"
        )


if __name__ == "__main__":
    main()
